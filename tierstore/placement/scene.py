"""What a plan is made from: durable tiers, packs, what ties packs together, and what moves cost.

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
"""``promote``: copy to a faster tier; ``demote``: copy to a slower tier, then drop from the source;
``drop``: from the source, ``target`` has it; ``drain``: as ``demote``, to whatever tier remains."""

BAR = 0.25  # what is read about once a day
WARM, COLD, ARCHIVE = 0, 1, 2
"""Classes of tiers by how fast they answer."""


@dataclass(frozen=True, slots=True)
class TierState:
    """One durable tier as the plan sees it.

    Attributes:
        name: of the tier.
        warm: whether it is for what is read often; else it is for what must be kept.
        size: quota in bytes; ``None`` for no limit.
        high: percent of the quota above which packs leave ...
        low: ... down to this percent; packs are promoted up to it.
        prices: what it costs.
        draining: packs leave it, and none is written to it.
        takes: whether packs may be moved to it unless somebody asks for that.
        reachable: it could be asked what it holds.
        archive: what it holds is read only after a restore.
        min_heat: heat that a warm tier asks for even when it has room.
        ttl_s: a pack not read for so long leaves (reads are remembered for 150 days at least).
    """

    name: str
    warm: bool
    size: int | None = None
    high: int = 95
    low: int = 85
    prices: Prices = field(default_factory=Prices)
    draining: bool = False
    takes: bool = True
    reachable: bool = True
    archive: bool = False
    min_heat: float = BAR
    ttl_s: float | None = None

    @property
    def high_bytes(self) -> float:
        """Above so many bytes packs leave; never written beyond."""
        return inf if self.size is None else self.size * self.high / 100

    @property
    def low_bytes(self) -> float:
        """Down to so many bytes packs leave; promoted up to here, so that saves find room."""
        return inf if self.size is None else self.size * self.low / 100

    @property
    def keeps(self) -> bool:
        """Whether other tiers may rely on a copy here."""
        return self.reachable and not self.draining and not self.archive

    @property
    def depth(self) -> int:
        """Its class."""
        return ARCHIVE if self.archive else WARM if self.warm else COLD


@dataclass(frozen=True, slots=True)
class PackState:
    """One pack.

    Attributes:
        pack: its id.
        size: bytes.
        heat: bytes read over ``size``, decayed to now.
        copies: when each copy was written, in seconds, by the name of its tier.
    """

    pack: bytes
    size: int
    heat: float
    copies: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The knobs of the plan.

    Attributes:
        half_life_s: of heat, as it was counted.
        promote: times the bar, above which a pack is copied up.
        demote: times the bar, below which it leaves.
    """

    half_life_s: float = HALF_LIFE_S
    promote: float = 1.25
    demote: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMove:
    """One step of a plan.

    Attributes:
        kind: what is done.
        pack: id.
        source: the tier that it is read from, or dropped from.
        target: the tier that it is copied to, or that keeps it when the source is dropped.
        copies: whether ``target`` lacks it, so that its bytes have to be moved.
        bytes: of the pack.
        why: one sentence for people.
        heat: of the pack, with that of those which need it.
        bar: that its heat was held against.
        expected_saving: money a month if it goes on being read as of late; negative when it costs.
        cost_once: money for moving it, and what is charged for deleting it early.
    """

    kind: MoveKind
    pack: bytes
    source: str
    target: str
    copies: bool
    bytes: int
    why: str
    heat: float
    bar: float
    expected_saving: Decimal
    cost_once: Decimal

    @property
    def drops(self) -> bool:
        """Whether the source loses its copy."""
        return self.kind != "promote"


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves in the order in which they are to be made.

    Attributes:
        moves: each leaves every pack readable, and no quota exceeded that was not before.
        notes: what could not be planned, for people.
    """

    moves: tuple[PlannedMove, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def expected_saving(self) -> Decimal:
        """Money a month of all moves."""
        return sum((move.expected_saving for move in self.moves), Decimal(0))

    @property
    def cost_once(self) -> Decimal:
        """Money for carrying it out."""
        return sum((move.cost_once for move in self.moves), Decimal(0))

    @property
    def copied_bytes(self) -> int:
        """Bytes that have to be moved."""
        return sum(move.bytes for move in self.moves if move.copies)


class Scene:
    """Packs and tiers at one moment; see the module's docstring.

    Args:
        packs: every pack that some reachable tier has.
        tiers: the durable tiers in the order in which they are read.
        now: seconds, by the clock of the copies' times.
        pinned: ids of packs that stay in warm tiers, with the bases that they need.
        bases: by pack, the packs that hold the bases of its delta frames.
        rules: the knobs.
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
        self.used = {tier.name: 0 for tier in self.tiers}
        for pack, copies in self.copies.items():
            for name in copies:
                self.used[name] += self.packs[pack].size
        self.pinned = {
            base for pack in pinned if pack in self.packs for base in self.with_bases(pack)
        }
        self.heat = self._spread({pack: state.heat for pack, state in self.packs.items()})
        self.worth = self._spread({
            pack: max(state.heat, self._fresh(state)) for pack, state in self.packs.items()
        })  # fmt: skip
        """Heat, where a pack that was written a while ago counts as read once then."""

    def _fresh(self, state: PackState) -> float:
        age = self.now - min(state.copies.values(), default=self.now)
        return exp2(-max(0.0, age) / self.rules.half_life_s)

    def _spread(self, own: Mapping[bytes, float]) -> dict[bytes, float]:
        """A pack's value is that of the hottest which needs it, if that is more."""
        spread: dict[bytes, float] = {}
        for pack in sorted(own, key=lambda p: (-own[p], p)):
            if pack not in spread:
                for base in walk(pack, self._bases_of, spread):
                    spread[base] = own[pack]
        return spread

    # What lies where

    def rank(self, tier: TierState) -> int:
        """Its place in the order, from 0."""
        return self._rank[tier.name]

    def slower(self, tier: TierState) -> tuple[TierState, ...]:
        """The tiers behind it."""
        return self.tiers[self.rank(tier) + 1 :]

    def residents(self, tier: TierState) -> list[bytes]:
        """The packs in a tier, the coldest first."""
        found = [pack for pack, copies in self.copies.items() if tier.name in copies]
        return sorted(found, key=lambda pack: (self.worth[pack], pack))

    def has(self, pack: bytes, tier: TierState) -> bool:
        """Whether the tier has a copy."""
        return tier.name in self.copies[pack]

    def fastest(self, pack: bytes) -> TierState:
        """The first tier that has it, archives last."""
        have = [self.by_name[name] for name in self.copies[pack]]
        return min(have, key=lambda tier: (tier.archive, self.rank(tier)))

    def depth(self, pack: bytes) -> int:
        """The class that it is read from."""
        return min(self.by_name[name].depth for name in self.copies[pack])

    def with_bases(self, pack: bytes) -> list[bytes]:
        """The pack and all whose frames it needs, itself last."""
        return walk(pack, self._bases_of)

    def leaving_with(self, pack: bytes, tier: TierState) -> list[bytes]:
        """The pack and all in the tier that need its frames, itself last."""
        return walk(pack, lambda one: [p for p in self.needed_by.get(one, ()) if self.has(p, tier)])

    def _bases_of(self, pack: bytes) -> Sequence[bytes]:
        return self.bases.get(pack, ())

    def room(self, tier: TierState, *, to_low: bool = False) -> float:
        """Bytes that it may take in."""
        return (tier.low_bytes if to_low else tier.high_bytes) - self.used[tier.name]

    def age(self, pack: bytes, tier: TierState) -> float:
        """Seconds since its copy there was written; never negative."""
        return max(0.0, self.now - self.copies[pack].get(tier.name, self.now))

    # Moving

    def can_enter(self, unit: Sequence[bytes], tier: TierState, *, to_low: bool = False) -> bool:
        """Whether the packs of a unit that are not there yet may be copied to the tier."""
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
        """Whether all packs of a unit may leave the tier once their targets have them."""
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
        return all(
            after.get(user, self.depth(user)) >= after[pack] or self.depth(user) < self.depth(pack)
            for pack in unit
            for user in self.needed_by.get(pack, ())
        )

    def move(
        self, kind: MoveKind, pack: bytes, source: TierState, target: TierState, why: str,
        bar: float,
    ) -> PlannedMove:  # fmt: skip
        """Note one move as made, and say what it is."""
        size, copies = self.packs[pack].size, self.copies[pack]
        before, once, copied = self._monthly(pack), Decimal(0), target.name not in copies
        if copied:
            once += source.prices.reading(size) + target.prices.writing()
            copies[target.name] = self.now
            self.used[target.name] += size
        if kind != "promote":
            once += source.prices.unpaid(size, self.age(pack, source))
            del copies[source.name]
            self.used[source.name] -= size
        return PlannedMove(
            kind=kind, pack=pack, source=source.name, target=target.name, copies=copied, bytes=size,
            why=why, heat=self.worth[pack], bar=bar, cost_once=once,
            expected_saving=before - self._monthly(pack),
        )  # fmt: skip

    def unread(self, seconds: float) -> float:
        """The heat of what was last read so long ago, as far as heat remembers."""
        return exp2(-min(seconds / self.rules.half_life_s, REMEMBERED))

    # Money

    def reads_a_month(self, pack: bytes) -> Decimal:
        """How often it would be read whole, if it goes on as of late."""
        return Decimal(self.packs[pack].heat * log(2) * MONTH_S / self.rules.half_life_s)

    def bill(self) -> dict[str, Bill]:
        """What each tier costs a month; reads are charged where a pack lies fastest."""
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
    """``start`` and all that its edges lead to, each behind those that its own edges lead to.

    What is ``known`` is left out, and what lies behind it. In a circle the order is arbitrary.
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
