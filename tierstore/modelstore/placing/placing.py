"""Placement of packs in durable tiers: makes plans from what is there and carries them out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tierstore.errors import BackendError, NotFound, UnsupportedFormat, UsageError
from tierstore.format.keys import PACKS, pack_key
from tierstore.format.tiers import HOME_NAME
from tierstore.ids import Digest
from tierstore.modelstore.chunks.examine import quarantine
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.identity import asked
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.placing.packgraph import PackGraph
from tierstore.modelstore.placing.snapshot import Snapshot, pinned_packs, snapshot
from tierstore.placement.forecast import Forecast, forecast
from tierstore.placement.plan import drain, rebalance, relocate
from tierstore.placement.scene import Plan, PlannedMove, Scene
from tierstore.tiers.durable.budget import Budget
from tierstore.tiers.durable.mover import Moved, Mover, MoverStats
from tierstore.tiers.durable.tier import DurableTier

_log = logging.getLogger("tierstore.mover")
_SHORTEST_PREFIX = 8
_BEST = ("readable", "restored", "restoring", "archived")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where one pack lies, and why.

    Attributes:
        pack: Id of the pack.
        size_bytes: Size of the pack in bytes.
        copies: Names of the tiers that have it, the fastest first.
        heat: How often it was read whole recently, with old reads decayed.
        counted: The heat that decides: at least that of the hottest pack that needs this one, and
            more than 0 for a new pack.
        pinned: Whether a pin holds it in warm tiers.
        bases: Packs that hold the bases of its delta frames.
        needed_by: Packs whose delta frames need it.
        forecasts: What would move it into or out of each tier.
        moves: What a plan made now would do with it.
    """

    pack: bytes
    size_bytes: int
    copies: tuple[str, ...]
    heat: float
    counted: float
    pinned: bool
    bases: tuple[bytes, ...]
    needed_by: tuple[bytes, ...]
    forecasts: tuple[Forecast, ...]
    moves: tuple[PlannedMove, ...]


@dataclass(slots=True)
class MoveReport:
    """The result of one run of the mover.

    Attributes:
        plan: The plan at the start of the run.
        moved: The outcome of each move, in order.
        stopped: Whether the run was asked to stop before the end.
    """

    plan: Plan
    moved: list[Moved] = field(default_factory=list)
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """Whether every planned move was made or had become unnecessary."""
        failed = any(one.status == "failed" for one in self.moved)
        return not (failed or self.stopped or self.plan.notes)


class Placement:
    """Plans where packs should lie, and moves them there. Thread-safe.

    Args:
        home: The store's home.
        pins: The store's pins.
        heat: Returns the bytes read of each pack by all nodes, decayed to now.
    """

    def __init__(
        self, home: Home, pins: Pins, heat: Callable[[], Mapping[bytes, float]] = dict
    ) -> None:
        self._home, self._pins, self._heat = home, pins, heat
        self._graph = PackGraph(home)
        self.stats = MoverStats()
        """Counts of all moves so far."""

    def __repr__(self) -> str:
        return f"<Placement of {self._home.blobs.url}>"

    # Looking

    def snapshot(self, draining: str | None = None) -> Snapshot:
        """Return what the durable tiers hold; the tier ``draining`` counts as one that drains."""
        return snapshot(self._home, self._graph, self._pinned(), self._heat(), draining)

    def _pinned(self) -> frozenset[bytes]:
        return pinned_packs(self._pins, self._graph)

    def packs_of(self, version: Digest) -> list[bytes]:
        """Return the packs that a version needs."""
        return self._graph.packs_of(version)

    def find(self, prefix: str) -> bytes | None:
        """Return the pack whose id begins with these hex digits; ``None`` when there is none.

        Raises:
            UsageError: Several packs begin with these digits.
        """
        text = prefix.lower()
        if len(text) < _SHORTEST_PREFIX or set(text) - set("0123456789abcdef"):
            return None
        found = {
            name
            for info in self._home.packs.list(f"{PACKS}{text[:2]}/")
            if (name := info.key.rpartition("/")[2]).startswith(text)
        }
        if len(found) > 1:
            raise UsageError(f"{len(found)} packs begin with {prefix}: give more digits")
        return bytes.fromhex(found.pop()) if found else None

    def explain(self, packs: Iterable[bytes]) -> list[Explanation]:
        """Return why packs lie where they are and what would move them, the hottest first.

        Packs that no tier has are left out.
        """
        snapshot = self.snapshot()
        scene, plan = snapshot.scene(), rebalance(snapshot.scene())
        known = [pack for pack in dict.fromkeys(packs) if pack in scene.packs]
        return [
            Explanation(
                pack=pack,
                size_bytes=scene.packs[pack].size,
                copies=tuple(tier.name for tier in scene.tiers if scene.has(pack, tier)),
                heat=scene.packs[pack].heat,
                counted=scene.score[pack],
                pinned=pack in scene.pinned,
                bases=tuple(scene.bases.get(pack, ())),
                needed_by=tuple(scene.needed_by.get(pack, ())),
                forecasts=tuple(forecast(scene, pack)),
                moves=tuple(move for move in plan.moves if move.pack == pack),
            )
            for pack in sorted(known, key=lambda p: (-scene.score[p], p))
        ]

    def readiness(self, packs: Iterable[bytes]) -> dict[bytes, str]:
        """Return for each pack whether it can be read.

        States are ``readable``, ``restored`` (for a while), ``restoring``, ``archived`` and
        ``missing``.

        Raises:
            BackendError: A tier cannot be reached.
        """
        tiers = self._home.packs.tiers
        quick = [tier for tier in tiers if tier.archive is None]
        found = {}
        for pack in packs:
            if any(_has(tier, pack) for tier in quick):
                found[pack] = "readable"
                continue
            states = [
                tier.archive.state(pack_key(pack))[0]
                for tier in tiers
                if tier.archive is not None and _has(tier, pack)
            ]
            found[pack] = min(states, key=_BEST.index, default="missing")
        return found

    def restore(
        self, packs: Iterable[bytes], days: int = 7, speed: str = "Standard"
    ) -> dict[bytes, str]:
        """Ask for readable copies of packs that only an archive has; return their ``readiness``.

        Args:
            packs: Ids of the wanted packs.
            days: Days for which the copies are kept.
            speed: ``Expedited``, ``Standard`` or ``Bulk``: it takes minutes, hours, or half a day.
        """
        wanted = self.readiness(packs)
        for pack, state in wanted.items():
            for tier in self._home.packs.tiers if state == "archived" else ():
                if tier.archive is not None and _has(tier, pack):
                    tier.archive.restore(pack_key(pack), days, speed)
                    break
        return self.readiness(wanted)

    # Planning

    def plan(self) -> Plan:
        """Return the moves that ``rebalance`` would make now."""
        return self._planned(rebalance)

    def plan_move(self, packs: Iterable[bytes], tier: str) -> Plan:
        """Return the moves that bring packs into a tier and drop them from faster ones.

        Raises:
            NotFound: There is no such durable tier.
            UsageError: The tier is being drained.
        """
        if not self._durable(tier).takes_writes:
            raise UsageError(f"tier {tier} is being drained: nothing is moved to it")
        wanted = list(packs)
        return self._planned(
            lambda scene: relocate(scene, [p for p in wanted if p in scene.packs], tier)
        )

    def plan_drain(self, tier: str) -> Plan:
        """Return the moves that empty a tier."""
        self._durable(tier)
        return self._planned(lambda scene: drain(scene, tier), draining=tier)

    def _planned(self, make: Callable[[Scene], Plan], draining: str | None = None) -> Plan:
        snapshot = self.snapshot(draining)
        plan = make(snapshot.scene())
        return Plan(plan.moves, (*snapshot.notes, *plan.notes))

    def _durable(self, name: str) -> DurableTier:
        self._home.packs.refresh()
        known = {tier.name: tier for tier in self._home.packs.tiers}
        if name not in known:
            raise NotFound(
                f"there is no durable tier {name!r}; the store's are: {', '.join(known)}"
            )
        return known[name]

    # Moving

    def rebalance(
        self,
        *,
        budget: Budget | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[Moved], None] | None = None,
    ) -> MoveReport:
        """Promote hot packs, demote cold ones, relieve full tiers, empty those that drain.

        Where home is the only tier nothing is asked of it: there is nowhere to move to.

        Args:
            budget: The bandwidth that moves may use.
            stop: When set, ends the run between two pieces of work.
            progress: Called with the outcome of each move.

        Raises:
            Conflict: Another mover is at work, or has taken over.
        """
        self._home.packs.refresh()
        if len(self._home.packs.tiers) == 1:
            return MoveReport(Plan())
        return self._run(self.plan, budget, stop, progress)

    def move(
        self,
        packs: Iterable[bytes],
        tier: str,
        *,
        budget: Budget | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[Moved], None] | None = None,
    ) -> MoveReport:
        """Move packs, with the bases they need, to a tier and drop them from faster ones."""
        wanted = list(packs)
        return self._run(lambda: self.plan_move(wanted, tier), budget, stop, progress)

    def warm(
        self,
        version: Digest,
        *,
        budget: Budget | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[Moved], None] | None = None,
    ) -> MoveReport:
        """Bring a version into warm tiers; what is in one already stays there.

        Raises:
            UsageError: The store has no warm tier that takes packs.
        """
        missing = self.not_warm(version)
        first = next(
            (t for t in self._home.packs.tiers if t.role == "warm" and t.takes_writes), None
        )
        if first is None:
            raise UsageError(
                f"{self._home.blobs.url} has no warm tier that takes packs; "
                "'tierstore tier add' adds one"
            )
        if not missing:
            return MoveReport(Plan())
        return self.move(missing, first.name, budget=budget, stop=stop, progress=progress)

    def not_warm(self, version: Digest) -> list[bytes]:
        """Return the packs of a version that no warm tier has.

        Raises:
            BackendError: A warm tier cannot be reached.
        """
        missing = self._graph.packs_of(version)
        for tier in self._home.packs.tiers:
            if tier.role == "warm" and missing:
                tier.verify()
                missing = [pack for pack in missing if not _has(tier, pack)]
        return missing

    def drain(
        self,
        tier: str,
        *,
        budget: Budget | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[Moved], None] | None = None,
    ) -> MoveReport:
        """Move every pack out of a tier that is marked as draining, or out of home.

        Raises:
            UsageError: The tier still takes new packs.
        """
        if tier != HOME_NAME and self._durable(tier).takes_writes:
            raise UsageError(
                f"tier {tier} still takes new packs; run 'tierstore tier drain {tier}' first"
            )
        return self._run(lambda: self.plan_drain(tier), budget, stop, progress)

    def _run(
        self,
        plan: Callable[[], Plan],
        budget: Budget | None,
        stop: threading.Event | None,
        progress: Callable[[Moved], None] | None,
    ) -> MoveReport:
        event = stop or threading.Event()
        with HeldLease(self._home.blobs) as lease:
            report = MoveReport(plan())
            self._confirm_home(report.plan)
            mover = Mover(
                self._home.packs,
                lease,
                budget=budget,
                stop=event,
                may_leave=self._may_leave,
                check_home=self._home.identity.check,
                is_condemned=lambda pack: bool(self._home.condemned.among([pack])),
                on_damage=self._quarantine,
                stats=self.stats,
            )
            for moved in mover.run(report.plan.moves):
                report.moved.append(moved)
                if progress is not None:
                    progress(moved)
            report.stopped = mover.stopped
        return report

    def _confirm_home(self, plan: Plan) -> None:
        """Make sure, before a plan drops copies, that this home is no copy of another one."""
        if any(move.drops for move in plan.moves):
            self._home.identity.confirm(asked(self._home.packs.tiers))

    def _quarantine(self, pack: bytes) -> None:
        try:
            if pack not in self._home.quarantine.packs():
                quarantine(self._home, pack)
                _log.warning("pack %s is quarantined: no tier has a good copy", pack.hex())
        except (BackendError, UnsupportedFormat) as error:
            _log.warning("pack %s is damaged, but not quarantined: %s", pack.hex(), error)

    def _may_leave(self, move: PlannedMove) -> bool:
        roles = {tier.name: tier.role for tier in self._home.packs.tiers}
        down = roles[move.source] == "warm" != roles[move.target]
        return not down or move.pack not in self._pinned()


def _has(tier: DurableTier, pack: bytes) -> bool:
    try:
        tier.blobs.info(pack_key(pack))
    except NotFound:
        return False
    return True
