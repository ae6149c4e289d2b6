"""The scene of a plan: durable tiers, packs, what ties packs together, and what moves cost.

A ``Scene`` is changed in step with the moves that are planned, and refuses those that must not be:
every rule that a plan may never break is held here and nowhere else.

* The last copy never goes: a copy is dropped only when another tier that can be relied on has one.
* A tier takes in no more than it has room for.
* What is pinned does not leave the warm tiers.
* A pack whose frames are the bases of another pack's deltas is never in a colder class than that
  pack. The classes are warm, cold and archive.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import exp2, inf, log
from typing import Literal

from tierstore.placement.cost import MONTH_S, Bill, Prices, bill
from tierstore.placement.heat import HALF_LIFE_S, REMEMBERED

MoveKind = Literal["promote", "demote", "drop", "drain"]
"""The kinds of moves.

``promote`` copies to a faster tier; ``demote`` copies to a slower tier and then drops from the
source; ``drop`` drops from the source what ``target`` has already; ``drain`` is a ``demote`` to
whatever tier remains.
"""

DEFAULT_MIN_HEAT = 0.25  # what is read about once a day
WARM, COLD, ARCHIVE = 0, 1, 2
"""The classes of tiers, by how fast they answer."""


@dataclass(frozen=True, slots=True)
class TierState:
    """One durable tier as a plan sees it.

    Attributes:
        name: The name of the tier.
        warm: Whether it is for packs that are read often; otherwise it is for what must be kept.
        quota_bytes: The quota; ``None`` for no limit.
        high_percent: The high watermark in percent of the quota; above it packs leave.
        low_percent: The low watermark in percent of the quota; packs leave down to it, and are
            promoted up to it.
        prices: The prices of the tier.
        draining: Whether packs leave it and none is written to it.
        takes: Whether packs may be moved to it when nobody asks for that.
        reachable: Whether it could be listed.
        archive: Whether its packs are read only after a restore.
        min_heat: The heat that a warm tier asks for even when it has room.
        ttl_s: Seconds after which a pack that was not read leaves (reads are remembered for at
            least 150 days).
    """

    name: str
    warm: bool
    quota_bytes: int | None = None
    high_percent: int = 95
    low_percent: int = 85
    prices: Prices = field(default_factory=Prices)
    draining: bool = False
    takes: bool = True
    reachable: bool = True
    archive: bool = False
    min_heat: float = DEFAULT_MIN_HEAT
    ttl_s: float | None = None

    @property
    def high_bytes(self) -> float:
        """The high watermark in bytes: above it packs leave, and nothing is written beyond it."""
        return inf if self.quota_bytes is None else self.quota_bytes * self.high_percent / 100

    @property
    def low_bytes(self) -> float:
        """The low watermark in bytes: packs leave down to it and are promoted up to it.

        The room above it is for saves.
        """
        return inf if self.quota_bytes is None else self.quota_bytes * self.low_percent / 100

    @property
    def keeps(self) -> bool:
        """Whether other tiers may rely on a copy here."""
        return self.reachable and not self.draining and not self.archive

    @property
    def depth(self) -> int:
        """The class of the tier: ``WARM``, ``COLD`` or ``ARCHIVE``."""
        return ARCHIVE if self.archive else WARM if self.warm else COLD


@dataclass(frozen=True, slots=True)
class PackState:
    """One pack and its copies.

    Attributes:
        pack: The id of the pack.
        size: The bytes of the pack.
        heat: Bytes read, decayed to now, divided by ``size``.
        copies: For each tier with a copy, when that was written, in seconds.
    """

    pack: bytes
    size: int
    heat: float
    copies: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The parameters of a plan.

    Attributes:
        half_life_s: The half-life of heat, as it was counted.
        promote: A pack is copied up above this many times the threshold.
        demote: A pack leaves below this many times the threshold.
    """

    half_life_s: float = HALF_LIFE_S
    promote: float = 1.25
    demote: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMove:
    """One step of a plan.

    Attributes:
        kind: The kind of move.
        pack: The id of the pack.
        source: The tier that it is read from, or dropped from.
        target: The tier that it is copied to, or that keeps it when the source is dropped.
        copies: Whether ``target`` lacks it, so that its bytes have to be moved.
        bytes: The bytes of the pack.
        why: The reason, one sentence for people.
        heat: The heat of the pack, or of the hottest pack that needs it.
        threshold: The threshold that the heat was compared with.
        expected_saving: Money a month if the pack goes on being read as recently; negative when it
            costs.
        cost_once: Money for the move, and charges for deleting early.
    """

    kind: MoveKind
    pack: bytes
    source: str
    target: str
    copies: bool
    bytes: int
    why: str
    heat: float
    threshold: float
    expected_saving: Decimal
    cost_once: Decimal

    @property
    def drops(self) -> bool:
        """Whether the source loses its copy."""
        return self.kind != "promote"


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves, in the order in which they are to be made.

    Attributes:
        moves: After each of them every pack is readable, and no quota is exceeded that was not
            before.
        notes: What could not be planned, sentences for people.
    """

    moves: tuple[PlannedMove, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def expected_saving(self) -> Decimal:
        """Money a month that all moves save together."""
        return sum((move.expected_saving for move in self.moves), Decimal(0))

    @property
    def cost_once(self) -> Decimal:
        """Money that carrying out the plan costs."""
        return sum((move.cost_once for move in self.moves), Decimal(0))

    @property
    def copied_bytes(self) -> int:
        """Bytes that have to be copied."""
        return sum(move.bytes for move in self.moves if move.copies)


class Scene:
    """Packs and tiers at one moment.

    It is changed by each move that is planned, and refuses moves that break a rule; see the module.

    Args:
        packs: Every pack that some reachable tier has.
        tiers: The durable tiers in the order in which they are read.
        now: The present in seconds, by the clock of the copies' times.
        pinned: The ids of packs that stay in warm tiers, with the bases that they need.
        bases: For each pack, the packs that hold the bases of its delta frames.
        rules: The parameters of the plan.
    """

    def __init__(
        self,
        packs: Iterable[PackState],
        tiers: Sequence[TierState],
        *,
        now: float,
        pinned: Iterable[bytes] = (),
        bases: Mapping[bytes, Iterable[bytes]] | None = None,
        rules: Rules | None = None,
    ) -> None:
        self.packs = {state.pack: state for state in sorted(packs, key=lambda s: s.pack)}
        self.tiers = tuple(tiers)
        self.rules, self.now = rules or Rules(), now
        self.by_name = {tier.name: tier for tier in self.tiers}
        self._rank = {tier.name: rank for rank, tier in enumerate(self.tiers)}
        self.bases: dict[bytes, list[bytes]] = {}
        self.needed_by: dict[bytes, list[bytes]] = {}
        for pack, found in sorted((bases or {}).items()):
            known = sorted({base for base in found if base != pack and base in self.packs})
            if pack in self.packs and known:
                self.bases[pack] = known
                for base in known:
                    self.needed_by.setdefault(base, []).append(pack)
        self.copies = {pack: dict(state.copies) for pack, state in self.packs.items()}
        self.used_bytes = {tier.name: 0 for tier in self.tiers}
        for pack, copies in self.copies.items():
            for name in copies:
                self.used_bytes[name] += self.packs[pack].size
        self.pinned = {
            base for pack in pinned if pack in self.packs for base in self.with_bases(pack)
        }
        self.heat = self._spread({pack: state.heat for pack, state in self.packs.items()})
        scores = {pack: max(state.heat, self._fresh(state)) for pack, state in self.packs.items()}
        self.score = self._spread(scores)
        """The heat of each pack, where a pack counts as read once when it was written."""

    def _fresh(self, state: PackState) -> float:
        age = self.now - min(state.copies.values(), default=self.now)
        return exp2(-max(0.0, age) / self.rules.half_life_s)

    def _spread(self, own: Mapping[bytes, float]) -> dict[bytes, float]:
        """Give each pack the value of the hottest pack that needs it, if that is higher."""
        spread: dict[bytes, float] = {}
        for pack in sorted(own, key=lambda p: (-own[p], p)):
            if pack not in spread:
                for base in walk(pack, self._bases_of, spread):
                    spread[base] = own[pack]
        return spread

    # What lies where

    def rank(self, tier: TierState) -> int:
        """Return a tier's place in the order, from 0."""
        return self._rank[tier.name]

    def slower(self, tier: TierState) -> tuple[TierState, ...]:
        """Return the tiers behind a tier."""
        return self.tiers[self.rank(tier) + 1 :]

    def residents(self, tier: TierState) -> list[bytes]:
        """Return the packs in a tier, the coldest first."""
        found = [pack for pack, copies in self.copies.items() if tier.name in copies]
        return sorted(found, key=lambda pack: (self.score[pack], pack))

    def has(self, pack: bytes, tier: TierState) -> bool:
        """Return whether a tier has a copy of a pack."""
        return tier.name in self.copies[pack]

    def fastest(self, pack: bytes) -> TierState:
        """Return the first tier that has a pack, archives last."""
        have = [self.by_name[name] for name in self.copies[pack]]
        return min(have, key=lambda tier: (tier.archive, self.rank(tier)))

    def depth(self, pack: bytes) -> int:
        """Return the class of the tier that a pack is read from."""
        return min(self.by_name[name].depth for name in self.copies[pack])

    def with_bases(self, pack: bytes) -> list[bytes]:
        """Return a pack and, before it, all packs whose frames it needs."""
        return walk(pack, self._bases_of)

    def leaving_with(self, pack: bytes, tier: TierState) -> list[bytes]:
        """Return a pack and, before it, all packs in the tier that need its frames."""
        return walk(pack, lambda one: self._users_in(one, tier))

    def tied_to(self, pack: bytes, tier: TierState) -> list[bytes]:
        """Return a pack with all packs in the tier that it is tied to by bases, users first."""

        def neighbours(one: bytes) -> list[bytes]:
            bases = [base for base in self._bases_of(one) if self.has(base, tier)]
            return [*bases, *self._users_in(one, tier)]

        order: dict[bytes, None] = {}
        for one in sorted(walk(pack, neighbours)):
            order.update(dict.fromkeys(walk(one, lambda p: self._users_in(p, tier), order)))
        return list(order)

    def _users_in(self, pack: bytes, tier: TierState) -> list[bytes]:
        return [user for user in self.needed_by.get(pack, ()) if self.has(user, tier)]

    def _bases_of(self, pack: bytes) -> Sequence[bytes]:
        return self.bases.get(pack, ())

    def room(self, tier: TierState, *, to_low: bool = False) -> float:
        """Return the bytes that a tier may take in up to its high (or low) watermark."""
        return (tier.low_bytes if to_low else tier.high_bytes) - self.used_bytes[tier.name]

    def age(self, pack: bytes, tier: TierState) -> float:
        """Return the seconds since a tier's copy of a pack was written; never negative."""
        return max(0.0, self.now - self.copies[pack].get(tier.name, self.now))

    # Moving

    def can_enter(self, unit: Sequence[bytes], tier: TierState, *, to_low: bool = False) -> bool:
        """Return whether the packs of a unit that are not in the tier yet may be copied to it."""
        new = [pack for pack in unit if not self.has(pack, tier)]
        if not tier.reachable or tier.draining:
            return False
        if sum(self.packs[pack].size for pack in new) > self.room(tier, to_low=to_low):
            return False
        entering = {*unit}
        return all(
            base in entering or self.depth(base) <= tier.depth
            for pack in new
            if tier.depth < self.depth(pack)
            for base in self.bases.get(pack, ())
        )

    def may_leave(
        self, unit: Sequence[bytes], tier: TierState, targets: Mapping[bytes, TierState]
    ) -> bool:
        """Return whether all packs of a unit may leave the tier once their targets have them."""
        coming = {target.name: 0 for target in targets.values()}
        after: dict[bytes, int] = {}
        for pack in unit:
            target = targets[pack]
            if target is tier or not target.reachable or target.draining:
                return False
            if not self.has(pack, target):
                coming[target.name] += self.packs[pack].size
            rest = [self.by_name[name].depth for name in self.copies[pack] if name != tier.name]
            after[pack] = min([*rest, target.depth])
            if pack in self.pinned and tier.warm and after[pack] != WARM:
                return False
        if any(size > self.room(self.by_name[name]) for name, size in coming.items()):
            return False

        def stay_together(user: bytes, base: bytes) -> bool:
            apart = self.depth(user) < self.depth(base)  # already: this is not what parts them
            return apart or after.get(user, self.depth(user)) >= after.get(base, self.depth(base))

        return all(
            all(stay_together(user, pack) for user in self.needed_by.get(pack, ()))
            and all(stay_together(pack, base) for base in self._bases_of(pack))
            for pack in unit
        )

    def move(
        self,
        kind: MoveKind,
        pack: bytes,
        source: TierState,
        target: TierState,
        why: str,
        threshold: float,
    ) -> PlannedMove:
        """Carry out one move in the scene and return it as a step of a plan."""
        size, copies = self.packs[pack].size, self.copies[pack]
        before, once, copied = self._monthly(pack), Decimal(0), target.name not in copies
        if copied:
            once += source.prices.reading(size) + target.prices.writing()
            copies[target.name] = self.now
            self.used_bytes[target.name] += size
        if kind != "promote":
            once += source.prices.unpaid(size, self.age(pack, source))
            del copies[source.name]
            self.used_bytes[source.name] -= size
        return PlannedMove(
            kind=kind,
            pack=pack,
            source=source.name,
            target=target.name,
            copies=copied,
            bytes=size,
            why=why,
            heat=self.score[pack],
            threshold=threshold,
            cost_once=once,
            expected_saving=before - self._monthly(pack),
        )

    def restore(self, pack: bytes, copies: dict[str, float]) -> None:
        """Give a pack the copies that it had before a move, which is taken back."""
        size = self.packs[pack].size
        for name in self.copies[pack]:
            self.used_bytes[name] -= size
        self.copies[pack] = copies
        for name in copies:
            self.used_bytes[name] += size

    def unread(self, seconds: float) -> float:
        """Return the heat of a pack that was last read so long ago, as far as heat remembers."""
        return exp2(-min(seconds / self.rules.half_life_s, REMEMBERED))

    # Money

    def reads_a_month(self, pack: bytes) -> Decimal:
        """Return how often a pack would be read whole in a month if it goes on as recently."""
        return Decimal(self.packs[pack].heat * log(2) * MONTH_S / self.rules.half_life_s)

    def bill(self) -> dict[str, Bill]:
        """Return each tier's charges for a month; reads are charged where a pack lies fastest."""
        sums = {tier.name: Bill() for tier in self.tiers}
        for pack, state in self.packs.items():
            fastest = self.fastest(pack).name
            for name in self.copies[pack]:
                reads = self.reads_a_month(pack) if name == fastest else Decimal(0)
                sums[name] += bill(self.by_name[name].prices, state.size, reads)
        return sums

    def _monthly(self, pack: bytes) -> Decimal:
        size = self.packs[pack].size
        kept = (self.by_name[name].prices.storage(size) for name in self.copies[pack])
        reading = self.fastest(pack).prices.reading(size) * self.reads_a_month(pack)
        return sum(kept, reading)


def walk(
    start: bytes, edges: Callable[[bytes], Iterable[bytes]], known: Container[bytes] = ()
) -> list[bytes]:
    """Return ``start`` and all that its edges lead to, each after those its own edges lead to.

    Nodes that are ``known`` are left out, with what lies behind them. In a circle the order is
    arbitrary.
    """
    order: list[bytes] = []
    seen = {start}
    stack = [(start, iter(edges(start)))]
    while stack:
        one, rest = stack[-1]
        for more in rest:
            if more not in seen and more not in known:
                seen.add(more)
                stack.append((more, iter(edges(more))))
                break
        else:
            order.append(one)
            stack.pop()
    return order
