"""Plans of moves: which packs should move between the durable tiers, and why.

* A pack's heat is the bytes read of it over its bytes: how often it was read whole recently. Heat
  per byte is what a byte of the faster tier earns by holding it, so packs compare by heat alone.
  A pack that others refer to by delta frames counts as hot as the hottest of them.
* The threshold of a warm tier is its ``min_heat`` while a pack fits below the low watermark;
  otherwise it is the heat of all victims that would have to go, in proportion to the pack's bytes.
* Above the threshold x ``promote`` a pack is copied up (the slower copy stays). Below ``min_heat``
  x ``demote`` it leaves the warm tier, once the minimum that is paid for has passed. What was
  written recently counts as read once when it was written.
* Above the high watermark the coldest leave, down to the low one.
* What was not read for a tier's ``ttl_s`` leaves; only this way are packs put into an archive.
* Packs move together with the bases that their deltas need.
* Tiers that drain are emptied, into whatever tiers remain.

``Scene`` enforces what a plan may never do.

Aggregate victims: Einziger, Eytan, Friedman, Manes, "Lightweight Robust Size Aware Cache
Management", ACM Transactions on Storage 18(3), 2022.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf

from tierstore.placement.scene import (
    WARM,
    MoveKind,
    Plan,
    PlannedMove,
    Scene,
    TierState,
)
from tierstore.placement.texts import age, human, short

TargetChooser = Callable[[bytes, dict[str, int]], TierState | None]
"""Chooses where a pack goes, given the bytes by tier that others of its unit will take."""


def rebalance(scene: Scene) -> Plan:
    """Return the moves that the rules ask for.

    The plan is deterministic; ``scene`` is changed into what the moves lead to.
    """
    planner = Planner(scene)
    for tier in scene.tiers:
        if tier.draining and tier.reachable:
            planner.drain(tier)
    # the slowest first, so that packs leaving them make room for those from faster tiers
    for tier in reversed(scene.tiers):
        planner.relieve(tier)
        planner.expire(tier)
    for tier in scene.tiers:
        if tier.warm and tier.keeps:
            planner.retire(tier)
            planner.join(tier)
            planner.raise_into(tier)
    return planner.done()


def drain(scene: Scene, tier: str) -> Plan:
    """Return the moves that empty the named tier into the remaining ones. Changes ``scene``."""
    planner = Planner(scene)
    planner.drain(scene.by_name[tier])
    return planner.done()


def relocate(scene: Scene, packs: Iterable[bytes], tier: str) -> Plan:
    """Return the moves that leave packs, with their bases, in the named tier and in no faster one.

    Slower copies stay. Changes ``scene``.
    """
    planner = Planner(scene)
    for pack in packs:
        planner.relocate(pack, scene.by_name[tier])
    return planner.done()


class Planner:
    """Collects the moves of one plan; each is carried out in ``scene`` at once."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.moves: list[PlannedMove] = []
        self.notes: list[str] = []
        self._sorted: dict[str, deque[bytes]] = {}
        self._left: dict[bytes, None] = {}
        """Packs that left a tier; they do not come back in the same plan."""
        self._before: list[dict[str, float]] = []
        """The copies that the pack of each of ``moves`` had before it."""

    def done(self) -> Plan:
        """Return the plan so far."""
        return Plan(tuple(self.moves), tuple(dict.fromkeys(self.notes)))

    def _move(
        self,
        kind: MoveKind,
        pack: bytes,
        source: TierState,
        target: TierState,
        why: str,
        threshold: float,
    ) -> None:
        self._before.append(dict(self.scene.copies[pack]))
        self.moves.append(self.scene.move(kind, pack, source, target, why, threshold))

    def _undo(self, moves: int, left: int) -> None:
        """Take back all but the first so many moves, and packs that left."""
        while len(self.moves) > moves:
            self.scene.restore(self.moves.pop().pack, self._before.pop())
        while len(self._left) > left:
            self._left.popitem()

    # Leaving a tier

    def relieve(self, tier: TierState) -> None:
        """Bring a tier that is above its high watermark down to its low one."""
        scene = self.scene
        if not tier.keeps or scene.room(tier) >= 0:
            return
        full = (
            f"tier {tier.name} holds {human(scene.used_bytes[tier.name])}, above its high "
            f"watermark of {tier.high_percent} % of {human(tier.quota_bytes or 0)}"
        )
        for pack in scene.residents(tier):
            if scene.used_bytes[tier.name] <= tier.low_bytes:
                return
            if scene.has(pack, tier):
                why = f"{full}, and its heat of {scene.score[pack]:.2g} is the lowest"
                self.leave(pack, tier, why, scene.score[pack])
        if scene.room(tier) < 0:
            self.notes.append(
                f"{full}: what is left is pinned, or no slower tier has room for it; raise its "
                f"size, or that of a slower tier"
            )

    def retire(self, tier: TierState) -> None:
        """Move out of a warm tier what is colder than its threshold."""
        scene, threshold = self.scene, tier.min_heat * self.scene.rules.demote
        for pack in scene.residents(tier):
            if scene.score[pack] >= threshold:
                return
            if scene.has(pack, tier) and self._paid(pack, tier):
                why = (
                    f"its heat of {scene.score[pack]:.2g} is below {threshold:.2g}, "
                    f"{scene.rules.demote:g} x the threshold of tier {tier.name}"
                )
                self.leave(pack, tier, why, tier.min_heat)

    def expire(self, tier: TierState) -> None:
        """Move out what was not read for longer than the tier's ``ttl_s``, even into an archive."""
        scene = self.scene
        if tier.ttl_s is None or not tier.keeps:
            return
        threshold = scene.unread(tier.ttl_s)
        for pack in scene.residents(tier):
            if scene.score[pack] >= threshold:
                return
            old = scene.age(pack, tier) >= tier.ttl_s
            if old and scene.has(pack, tier) and self._paid(pack, tier):
                why = f"it was not read for {age(tier.ttl_s)}, as long as tier {tier.name} keeps it"
                self.leave(pack, tier, why, threshold, archive=True)

    def _paid(self, pack: bytes, tier: TierState) -> bool:
        return not tier.prices.unpaid(self.scene.packs[pack].size, self.scene.age(pack, tier))

    def leave(
        self, pack: bytes, tier: TierState, why: str, threshold: float, *, archive: bool = False
    ) -> bool:
        """Move a pack, and those in the tier that need it, to slower tiers, if they can move.

        Returns whether they moved.
        """

        def slower(one: bytes, coming: dict[str, int]) -> TierState | None:
            return self._shelf(one, self.scene.slower(tier), coming, archive=archive)

        return self._leave(self.scene.leaving_with(pack, tier), tier, slower, why, threshold)

    def _leave(
        self,
        unit: Sequence[bytes],
        tier: TierState,
        target: TargetChooser,
        why: str,
        threshold: float,
        kind: MoveKind | None = None,
    ) -> bool:
        scene, targets = self.scene, {}
        coming: dict[str, int] = {}
        for pack in unit:
            found = target(pack, coming)
            if found is None:
                return False
            targets[pack] = found
            if not scene.has(pack, found):
                coming[found.name] = coming.get(found.name, 0) + scene.packs[pack].size
        if not scene.may_leave(unit, tier, targets):
            return False
        # a pack never waits in a faster class for its bases: up they go first, and down last
        up = [pack for pack in reversed(unit) if targets[pack].depth < scene.depth(pack)]
        for pack in [*up, *(pack for pack in unit if pack not in up)]:
            reason = f"pack {short(unit[-1])}, which it needs, leaves"
            if pack == unit[-1] or kind == "drain":
                reason = why
            step = kind or ("drop" if scene.has(pack, targets[pack]) else "demote")
            self._move(step, pack, tier, targets[pack], reason, threshold)
        self._left.update(dict.fromkeys(unit))
        return True

    def _shelf(
        self,
        pack: bytes,
        tiers: Iterable[TierState],
        coming: dict[str, int],
        *,
        archive: bool = False,
    ) -> TierState | None:
        """Return the first tier that has the pack, or else the first that has room for it."""
        scene, size = self.scene, self.scene.packs[pack].size
        usable = [t for t in tiers if t.keeps or (archive and t.archive and t.reachable)]
        usable = [tier for tier in usable if not tier.draining]
        for tier in usable:
            if scene.has(pack, tier) and not tier.archive:
                return tier
        for tier in usable:
            if tier.takes and size <= scene.room(tier) - coming.get(tier.name, 0):
                return tier
        return None

    def drain(self, tier: TierState) -> None:
        """Move every pack out of a tier, to another one of the same class if it has room."""
        scene = self.scene
        others = sorted(
            (other for other in scene.tiers if other is not tier),
            key=lambda t: (t.depth != tier.depth, scene.rank(t) < scene.rank(tier), scene.rank(t)),
        )

        def anywhere(pack: bytes, coming: dict[str, int]) -> TierState | None:
            return self._shelf(pack, others, coming, archive=tier.archive)

        why = f"tier {tier.name} is drained"
        for pack in scene.residents(tier):
            if scene.has(pack, tier):
                unit = scene.leaving_with(pack, tier)
                if not self._leave(unit, tier, anywhere, why, 0.0, "drain"):
                    unit = scene.tied_to(pack, tier)
                    self._leave(unit, tier, anywhere, why, 0.0, "drain")
        stuck = len(scene.residents(tier))
        if stuck:
            self.notes.append(
                f"packs that cannot leave tier {tier.name}: {stuck}; they are pinned, or no other "
                "tier has room for them"
            )

    # Entering a tier

    def join(self, tier: TierState) -> None:
        """Bring packs and the bases that they need together: all into the tier, or out of it."""
        scene = self.scene
        for pack in scene.residents(tier):
            if scene.has(pack, tier) and self._apart(pack, tier):
                unit = [p for p in scene.with_bases(pack) if scene.depth(p) > WARM]
                why = f"pack {short(pack)} in tier {tier.name} needs it"
                if not self._enter(unit, tier, why, tier.min_heat):
                    why = f"tier {tier.name} has no room for the packs that it needs"
                    self.leave(pack, tier, why, tier.min_heat)

    def _apart(self, pack: bytes, tier: TierState) -> bool:
        scene = self.scene
        return any(scene.depth(base) > tier.depth for base in scene.with_bases(pack))

    def raise_into(self, tier: TierState) -> None:
        """Copy into a tier what is hotter than the threshold, in place of colder victims."""
        scene = self.scene
        hottest = sorted(scene.packs, key=lambda pack: (-scene.heat[pack], pack))
        for pack in hottest:
            if scene.heat[pack] <= tier.min_heat * scene.rules.promote:
                return
            if scene.rank(scene.fastest(pack)) <= scene.rank(tier):
                continue
            unit = self.entering(pack, tier)
            if self._left.keys().isdisjoint(unit) and not self._is_frozen(unit, tier):
                self._raise(pack, unit, tier)

    def entering(self, pack: bytes, tier: TierState) -> list[bytes]:
        """Return the pack and, before it, the bases that lie in a slower class."""
        scene = self.scene
        return [p for p in scene.with_bases(pack) if p == pack or scene.depth(p) > tier.depth]

    def _raise(self, pack: bytes, unit: Sequence[bytes], tier: TierState) -> None:
        scene = self.scene
        threshold, victims = self.threshold(unit, tier, scene.heat[pack] / scene.rules.promote)
        if scene.heat[pack] <= threshold * scene.rules.promote:
            return
        why = (
            f"its heat of {scene.heat[pack]:.2g} is above {scene.rules.promote:g} x {threshold:.2g}"
        )
        moves, left = len(self.moves), len(self._left)
        for victim in victims:
            if not scene.has(victim, tier):
                continue
            makes_room = f"it makes room for pack {short(pack)}, which is hotter"
            self.leave(victim, tier, makes_room, scene.score[victim])
        if scene.can_enter(unit, tier, to_low=True):
            self._enter(unit, tier, why, threshold, last=pack)
        else:  # a victim could not leave: the others did not make room either
            self._undo(moves, left)

    def _is_frozen(self, unit: Sequence[bytes], tier: TierState) -> bool:
        """Return whether a pack would have to be read from an archive to enter a tier."""
        scene = self.scene
        return any(scene.fastest(p).archive for p in unit if not scene.has(p, tier))

    def _enter(
        self,
        unit: Sequence[bytes],
        tier: TierState,
        why: str,
        threshold: float,
        last: bytes | None = None,
        *,
        frozen: bool = False,
    ) -> bool:
        """Copy the packs of a unit to a faster tier; return whether there was room.

        A pack that only an archive has cannot be read, unless it was restored (``frozen``).
        """
        scene = self.scene
        if not scene.can_enter(unit, tier):
            return False
        if not frozen and self._is_frozen(unit, tier):
            return False
        for pack in unit:
            if not scene.has(pack, tier):
                named = last is None or pack == last
                reason = why if named else f"pack {short(last or b'')}, which needs it, comes too"
                source = scene.fastest(pack)
                kind: MoveKind = "promote"
                self._move(kind, pack, source, tier, reason, threshold)
        return True

    def threshold(
        self, unit: Sequence[bytes], tier: TierState, limit: float
    ) -> tuple[float, list[bytes]]:
        """Return the heat that a unit needs to enter a tier, and the victims that would leave.

        The search for victims ends when the threshold exceeds ``limit``.
        """
        scene = self.scene
        size = sum(scene.packs[pack].size for pack in unit)
        missing = size - scene.room(tier, to_low=True)
        if missing <= 0:
            return tier.min_heat, []
        needed = {base for pack in unit for base in scene.with_bases(pack)}
        value, victims = 0.0, dict[bytes, None]()
        for resident in self._coldest(tier):
            group = scene.leaving_with(resident, tier)
            if not scene.pinned.isdisjoint(group) or not needed.isdisjoint(group):
                continue
            for victim in (one for one in group if one not in victims):
                victims[victim] = None
                value += scene.packs[victim].size * scene.score[victim]
                missing -= scene.packs[victim].size
            threshold = max(tier.min_heat, value / size)
            if missing <= 0 or threshold > limit:
                return threshold, list(victims)
        return inf, []

    def _coldest(self, tier: TierState) -> Iterator[bytes]:
        """Return what may make room in a tier, coldest first, without what was just copied there.

        It is sorted once: a plan asks again for each pack that it would like to promote.
        """
        scene = self.scene
        if tier.name not in self._sorted:
            found = [pack for pack in scene.residents(tier) if pack not in scene.pinned]
            self._sorted[tier.name] = deque(found)
        waiting = self._sorted[tier.name]
        while waiting and not scene.has(waiting[0], tier):
            waiting.popleft()
        return (pack for pack in waiting if scene.has(pack, tier))

    def relocate(self, pack: bytes, tier: TierState) -> None:
        """Move or copy a pack so that it is in a tier and in no faster one."""
        scene = self.scene
        name = f"pack {short(pack)}"
        why = f"it was asked for in tier {tier.name}"
        if not scene.has(pack, tier) and scene.rank(scene.fastest(pack)) > scene.rank(tier):
            unit = self.entering(pack, tier)
            if not self._enter(unit, tier, why, 0.0, last=pack, frozen=True):
                self.notes.append(f"{name} is not copied: tier {tier.name} has no room")
            return
        for faster in scene.tiers[: scene.rank(tier)]:
            if scene.has(pack, faster):
                unit = scene.leaving_with(pack, faster)
                if not self._leave(unit, faster, lambda p, _: tier, why, 0.0):
                    why_not = self._held(pack, unit, faster, tier)
                    self.notes.append(f"{name} stays in tier {faster.name}: {why_not}")

    def _held(
        self, pack: bytes, unit: Sequence[bytes], source: TierState, target: TierState
    ) -> str:
        """Return why a pack, and those that need it, cannot leave a tier for another one."""
        scene = self.scene
        if source.warm and not target.warm and not scene.pinned.isdisjoint(unit):
            return "it is pinned there" if pack in scene.pinned else "a pinned pack needs it"
        if not target.reachable:
            return f"tier {target.name} cannot be reached"
        size = sum(scene.packs[one].size for one in unit if not scene.has(one, target))
        if size > scene.room(target):
            return f"tier {target.name} has no room"
        return "packs in other tiers need it"
