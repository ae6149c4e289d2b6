"""Garbage collection: packs that nothing needs are condemned, and then deleted (SPEC.md 10.1).

::

    right -> mark, heal -> condemn -> note the saves that run -> mark, heal -> rewrite layouts
                                                                      -> delete -> tidy

What is condemned was not live before, and what is deleted is not live afterwards. A save, a name or
a reader that comes in between is seen by the second mark, or it looks at the list itself. So
nothing that stays is lost, whatever is paused, and however many collect at once.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from tierstore.blobs.base import BlobStore
from tierstore.errors import (
    BackendError,
    Conflict,
    Damaged,
    NotFound,
    OtherHome,
    OutOfSpace,
    UnsupportedFormat,
)
from tierstore.format.reflog import Lease
from tierstore.format.storeconfig import check_features
from tierstore.ids import Digest
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.condemned import GRACE_S
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import standing
from tierstore.modelstore.home.probe import probe
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.home.reserve import (
    NO_RESERVE,
    give_up_reserve,
    keep_reserve,
    with_reserve,
)
from tierstore.modelstore.home.retention import NONE_OVER, Over
from tierstore.modelstore.placing.moverlease import COLLECTOR, HeldLease
from tierstore.modelstore.reclaim.cutshort import SoFar
from tierstore.modelstore.reclaim.errand import NOTHING, Errand
from tierstore.modelstore.reclaim.feature import check_enabled, keep_enabled
from tierstore.modelstore.reclaim.fullhome import Unheld, newest_s
from tierstore.modelstore.reclaim.heal import Healer
from tierstore.modelstore.reclaim.indexmerge import tidy_index
from tierstore.modelstore.reclaim.kept import Kept, last_of, read_kept, write_kept
from tierstore.modelstore.reclaim.mark import Demand, Mark, Marker
from tierstore.modelstore.reclaim.repack import Repacker
from tierstore.modelstore.reclaim.report import PackReport, Report, State, end_text
from tierstore.modelstore.reclaim.rewrite import rewrite_layouts
from tierstore.modelstore.reclaim.sweep import Checked, Swept, sweep
from tierstore.modelstore.reclaim.tidy import tidy, tidy_unneeded
from tierstore.modelstore.reclaim.unpromised import end_holders, end_orphans
from tierstore.modelstore.reclaim.waste import fingerprint
from tierstore.progress import Progress
from tierstore.shown import size

_Done = TypeVar("_Done")
_ROUNDS = 10
_OF_NO_VERSION = "no version has it: a save that was not finished can go on with it"
_log = logging.getLogger("tierstore.gc")


@dataclass(slots=True)
class _How:
    """How to collect: the arguments of ``Collector.run``.

    Attributes:
        freed: What was deleted to make room, by the tier's name.
        is_full: Whether home has no room for the whole reserve when the run has ended.
        over: Removals of which something was deleted to make room.
    """

    grace_s: float
    window_s: float | None
    max_bytes: int | None
    is_over: Callable[[], bool]
    so_far: SoFar
    repack: bool
    errand: Errand
    freed: dict[str, int] = field(default_factory=dict)
    is_full: bool = False
    over: Over = NONE_OVER

    def count(self, freed: Mapping[str, int]) -> int:
        """Count what was deleted before the run itself; return how many bytes that were."""
        for tier, nbytes in freed.items():
            self.freed[tier] = self.freed.get(tier, 0) + nbytes
        total = sum(freed.values())
        if self.max_bytes is not None:
            self.max_bytes = max(0, self.max_bytes - total)
        return total


class Collector:
    """Collects the garbage of one store. Not thread-safe.

    A second run of one object reads what is new alone. What runs must know of those before them
    they keep in home, for whoever collects next.

    Args:
        home: The store's home.
        cache_path: A local file that can be lost, where what was read of home is kept for the next
            process; ``None`` keeps nothing.

    Attributes:
        marker: What it marks with.
        mark: The last mark of the last run; ``None`` before the first.
    """

    def __init__(self, home: Home, cache_path: Path | None = None) -> None:
        self._home = home
        self.marker = Marker(home, ReadCache(cache_path))
        self.mark: Mark | None = None
        self._kept = Kept()
        self._leases: dict[str, tuple[Lease, float]] = {}
        """The leases of saves, and until when they hold unless they are renewed, by id."""

    def run(
        self,
        *,
        dry_run: bool = False,
        grace_s: float = GRACE_S,
        window_s: float | None = None,
        max_bytes: int | None = None,
        max_time_s: float | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
        repack: bool = False,
        errand: Errand = NOTHING,
    ) -> Report:
        """Collect once.

        Args:
            dry_run: Whether nothing is changed: the report says what would be.
            grace_s: Seconds for which a pack is seen not live before it is condemned; 0 is allowed.
            window_s: Seconds for which removed versions stay; ``None``: what is set in the store.
            max_bytes: Delete at most this much, counted in all tiers together, and write no more
                than that when packs are repacked, less what is condemned and still there.
            max_time_s: Begin no further batch of deletions after so many seconds, and repack no
                further pack.
            repack: Whether packs of which more than a fifth is waste are written anew.
            is_stopped: Asked before each batch of deletions: whether to begin no more.
            progress: Called with the bytes that were deleted and those to delete.
            errand: What else is to be deleted at once; not with ``dry_run``.

        Raises:
            UsageError: The store does not allow it yet.
            Conflict: Another process is collecting.
            OtherHome: Another home of the store deletes in one of its tiers; nothing was deleted.
            Damaged, NotFound, UnsupportedFormat: Something cannot be read that may need a pack, or
                cannot be healed; nothing was deleted. The message names it.
            BackendError: Home cannot be asked.
        """
        began = running_s()
        self._check(dry_run)

        def is_over() -> bool:
            return is_stopped() or (max_time_s is not None and running_s() - began >= max_time_s)

        so_far = SoFar(progress, is_dry=dry_run)
        how = _How(grace_s, window_s, max_bytes, is_over, so_far, repack, errand)
        with so_far.told(), self._right(dry_run, how) as lease:
            report = self._with_room(lambda: self._collect(lease, how), lease, how)
        for tier, freed in how.freed.items():
            report.freed[tier] = report.freed.get(tier, 0) + freed
        if how.is_full and (held := report.amounts().get("window")) is not None:
            _log.warning(
                "%s is full, and %s of removed versions can be undeleted still: 'tierstore gc "
                "--window 0' deletes them now",
                self._home.blobs.url,
                size(held.bytes),
            )
        return report

    def _collect(self, lease: HeldLease | None, how: _How) -> Report:
        now_s = time.time() + self._skew_s(lease is None)
        offset_s = now_s - running_s()
        before = read_kept(self._home.blobs, now_s)
        self._kept = replace(before, over=before.over | how.over)
        if lease is not None and self._kept != before:  # before anything can end this run
            lease.check()
            write_kept(self._home.blobs, self._kept, now_s)
            before = self._kept
        work = _Run(self._home, self.marker, lease, now_s, how.window_s, self._kept)
        cleared = self._cleared(now_s)
        how.errand.begin()
        mark = work.prepared(how)
        new = self._candidates(mark, now_s, how.grace_s, how.errand)
        # or nobody would know that these windows are over, once longer ones are set
        self._kept = replace(self._kept, over=self._kept.over | mark.over)
        if lease is not None and self._kept != before:
            lease.check()  # who has lost the right writes no note
            write_kept(self._home.blobs, self._kept, offset_s + running_s())
        if how.repack and (seen := fingerprint(mark)) != self._kept.no_waste:
            new, is_done = work.repack(mark, new, how)
            self._kept = replace(self._kept, no_waste=seen if is_done else b"")
        new = work.give_up(mark, new, how.errand)
        names = how.errand.names(mark)
        if (new or names) and lease is not None:
            work.condemn(mark, new, names, how.errand)
            how.so_far.condemned(new, mark.holdings)
            cleared = self._cleared(now_s)
        if (new or names or how.errand.doomed) and lease is not None:
            mark = work.mark(how.errand.doomed)
        doomed = self._doomed(mark, cleared, new if lease is None else set())
        self.mark = mark
        swept = Swept(asked=doomed, down=dict(mark.holdings.down))
        merged: Mapping[str, Sequence[str]] = {}
        if lease is not None:
            rewrite_layouts(self._home, self.marker, mark, lease, how.is_over)
            swept = self._sweep(doomed, mark, lease, how)
            how.errand.swept(mark, lease)
            merged = tidy(self._home, mark.condemned, mark.holdings, run=work.run, now_s=now_s)
            tidy_index(self._home, mark.condemned, mark.holdings, lease, now_s, how.is_over)
        report = self._reported(work.report, mark, swept, cleared, how.grace_s)
        if lease is not None:
            lease.check()
            self._kept = replace(self._kept, logs=mark.logs)
            self._keep(report, how.errand, new, merged, offset_s + running_s())
            how.errand.conclude(report)
        return report

    def _sweep(self, doomed: Set[bytes], mark: Mark, right: Checked, how: _How) -> Swept:
        return sweep(
            sorted(doomed),
            mark.holdings,
            right,
            self._home.identity,
            max_bytes=how.max_bytes,
            is_over=how.is_over,
            progress=how.so_far.swept,
        )

    def _with_room(self, do: Callable[[], _Done], right: Checked | None, how: _How) -> _Done:
        """Do something; where home is full make room and do it again, while that gives any."""
        while True:
            try:
                return do()
            except OutOfSpace as full:
                if right is None:
                    raise
                if not self._make_room(right, how):
                    raise OutOfSpace(f"{full}. {NO_RESERVE}") from full

    def _make_room(self, right: Checked, how: _How) -> bool:
        """Free what can be freed without writing anything, and else the reserve.

        Returns:
            Whether anything was freed.
        """
        blobs = self._home.blobs
        now_s = newest_s(blobs)
        self._kept = kept = read_kept(blobs, now_s)
        if tidy_unneeded(self._home, now_s):
            return True
        try:
            waited = self._cleared(now_s)
            mark = self.marker.mark(now_s, how.window_s, before=kept.logs, over=kept.over)
            if not _to_heal(self._home, self.marker, mark):
                swept = self._sweep(self._doomed(mark, waited, set()), mark, right, how)
                how.over |= mark.over
                if how.count(swept.freed):
                    return True
        except (Damaged, NotFound, UnsupportedFormat) as error:
            _log.warning("nothing is deleted before there is room: %s", error)
        return give_up_reserve(blobs)

    def _check(self, dry_run: bool) -> None:
        if not dry_run:
            check_enabled(self._home)
        check_features(self._home.config, "gc", self._home.blobs.url)
        self._home.packs.refresh()

    @contextmanager
    def _right(self, dry_run: bool, how: _How) -> Iterator[HeldLease | None]:
        if dry_run:
            yield None
            return
        blobs = self._home.blobs
        with ExitStack() as stack:
            lease = HeldLease(blobs, COLLECTOR)
            self._with_room(lambda: stack.enter_context(lease), Unheld(blobs), how)
            stack.callback(_end, blobs, lease, how)
            keep_enabled(self._home)  # the lease may be the first object that shows it
            stack.enter_context(lease.kept())
            yield lease

    def _skew_s(self, dry_run: bool) -> float:
        """Return home's clock minus ours; 0 where it cannot be asked because nothing is written."""
        try:
            tried = probe(self._home.blobs)
        except BackendError:
            if not dry_run:
                raise
            return 0.0
        if not (tried.put_if_absent or dry_run):
            raise BackendError(
                f"{self._home.blobs.url} overwrites where it should create, so two collections "
                "could delete what the other one relies on: nothing was deleted. If its bucket "
                "keeps older versions, switch that off"
            )
        return tried.clock_skew_s

    def _cleared(self, now_s: float) -> set[bytes]:
        """Return the packs of the highest list whose saves have ended; it is read right before.

        The saves of a segment are those that run when it is first seen here: what ran when it was
        written, and has not ended, is among them. They are known by their leases' ids.
        """
        segments = self._home.condemned.every().segments
        found = standing(self._home.blobs, now_s)
        self._leases = {
            lease.id: (lease, found.until_s[lease.id])
            for lease in found.standing
            if lease.role == "writer"
        }
        running = frozenset(self._leases)
        before = self._kept.writers
        writers = {key: before.get(key, running) & running for key in segments}
        self._kept = replace(self._kept, writers=writers)
        return set().union(*(packs for key, (_, packs) in segments.items() if not writers[key]))

    def _candidates(self, mark: Mark, now_s: float, grace_s: float, errand: Errand) -> set[bytes]:
        """Return the packs to condemn: no layout that stays needs them, and they have waited.

        What is in a tier that cannot be asked goes on waiting, unless something needs it now.
        """
        at_once = mark.dead | errand.doomed
        there, needed = mark.holdings.every(), mark.live.keys() | mark.condemned.listed
        hidden = self._kept.seen.keys() - there if mark.holdings.down else set[bytes]()
        waiting = (there | hidden) - needed
        seen = {pack: self._kept.seen.get(pack, now_s) for pack in waiting}
        self._kept = replace(self._kept, seen=seen)
        return {
            pack
            for pack, since_s in seen.items()
            if pack in there and (pack in at_once or now_s - since_s >= grace_s)
        }

    def _doomed(self, mark: Mark, cleared: set[bytes], would_be: set[bytes]) -> set[bytes]:
        """Return what is deleted: the highest list names it, nothing needs it, a tier has it."""
        listed = (mark.condemned.listed & cleared) | would_be
        return (listed & mark.holdings.every()) - mark.live.keys()

    def _keep(
        self,
        report: Report,
        errand: Errand,
        condemned: Set[bytes],
        merged: Mapping[str, Sequence[str]],
        now_s: float,
    ) -> None:
        writers = dict(self._kept.writers)
        for key, before in merged.items():  # it waits for whom any of them waits
            if writers.keys() >= set(before):
                writers[key] = frozenset().union(*(writers.pop(one) for one in before))
        seen = {pack: at for pack, at in self._kept.seen.items() if pack not in condemned}
        # an errand counts as no collection, or those that are due would wait for it
        last = last_of(report, now_s) if errand is NOTHING else self._kept.last
        self._kept = replace(self._kept, seen=seen, writers=writers, last=last)
        write_kept(self._home.blobs, self._kept, now_s)

    def _reported(
        self, report: Report, mark: Mark, swept: Swept, cleared: set[bytes], grace_s: float
    ) -> Report:
        report.down, report.refused = swept.down, swept.refused
        report.freed, report.kept = swept.freed, swept.kept
        report.stopped = swept.stopped or report.stopped
        for pack in sorted(mark.holdings.every()):
            state, why = self._state_of(pack, mark, swept, cleared, grace_s)
            held = mark.holdings.bytes_of(pack)
            if state == "down":
                held = {tier: held[tier] for tier in swept.may_have(pack) if tier in held}
            report.packs.append(PackReport(pack, state, why, held))
        return report

    def _state_of(
        self, pack: bytes, mark: Mark, swept: Swept, cleared: set[bytes], grace_s: float
    ) -> tuple[State, str]:
        reason = mark.live.get(pack)
        if reason is not None:
            return reason.kind, reason.why
        if pack in swept.asked:
            if any(pack in left for left in swept.left.values()):
                refused = ", ".join(tier for tier, left in swept.left.items() if pack in left)
                return "down", f"nothing needs it, but tier {refused} does not delete it"
            if swept.down:
                return (
                    "down",
                    f"nothing needs it: it goes once tier {', '.join(swept.down)} can be asked",
                )
            return "deleted", "nothing needs it"
        if pack not in mark.condemned.listed:
            until_s = self._kept.seen.get(pack, time.time()) + grace_s
            return "waiting", f"{_OF_NO_VERSION} until {end_text(until_s)}"
        if pack not in cleared:
            writers = {
                one
                for key, (_, packs) in mark.condemned.segments.items()
                if pack in packs
                for one in self._kept.writers.get(key, ())
            }
            waits = ", ".join(sorted(_who(*self._leases[one]) for one in writers))
            return (
                "writing",
                f"nothing needs it: it goes once these saves have ended: {waits or 'unknown'}",
            )
        return "condemned", f"left to the next run: {swept.stopped}"


def _end(home_blobs: BlobStore, lease: HeldLease, how: _How) -> None:
    """Write the reserve and give the right back: on a full home by the reserve.

    Else nobody could collect next. Who never had the right, or has lost it, writes no reserve:
    another may be at work in its room.
    """
    try:
        lease.check()
    except Conflict:
        return
    how.is_full = not keep_reserve(home_blobs)
    with suppress(BackendError):  # the lease says so when it ends
        with_reserve(home_blobs, lease.give_back)


class _Run:
    """One run: marks, and heals what a mark finds lacking.

    Attributes:
        run: Its id, 32 hex digits.
        report: What it did so far.
    """

    def __init__(
        self,
        home: Home,
        marker: Marker,
        lease: HeldLease | None,
        now_s: float,
        window_s: float | None,
        before: Kept,
    ) -> None:
        self._home, self.marker, self._lease = home, marker, lease
        self._now_s, self._window_s, self._before = now_s, window_s, before
        self.run = uuid.uuid4().hex
        self.report = Report(dry_run=lease is None)
        self._left: set[Digest] = set()
        self._spared: set[Digest] = set()

    def _confirm_home(self, mark: Mark) -> None:
        """Make sure that this home is no copy of another one that needs what is in its tiers."""
        held, packs = mark.holdings, self._home.packs
        seen = [(t, held.keepers.get(t.name)) for t in packs.tiers if t.name not in held.down]
        try:
            self._home.identity.confirm(seen, dry_run=self._lease is None)
        except OtherHome as error:
            if self._lease is not None:
                raise
            _log.warning("a collection would delete nothing: %s", error)

    def prepared(self, how: _How) -> Mark:
        """Mark, and let the errand see to it that as little as possible stays for others' sake."""
        how.so_far.report = self.report
        mark = self.mark()
        for _ in range(_ROUNDS):
            if self._lease is None or not how.errand.prepare(mark, self.marker, self._lease):
                break
            mark = self.mark()
        return mark

    def give_up(self, mark: Mark, new: set[bytes], errand: Errand) -> set[bytes]:
        """Copy what is needed out of packs that are to go; return the packs to condemn."""
        if self._lease is None:
            return new
        errand.found(mark)  # what is condemned from now on anybody may delete
        staying = errand.doomed & mark.live.keys()
        if not staying:
            return new
        done = Repacker(self._home, self.marker, mark).give_up(staying, self._lease)
        errand.rewrote(done)
        self.report.repacked = len(done.packs)
        self.report.rewritten_bytes = done.written_bytes
        return (new - done.into) | done.packs

    def condemn(self, mark: Mark, packs: Set[bytes], names: Set[bytes], errand: Errand) -> None:
        """Condemn packs, and manifests that nothing needs which came since a mark."""
        now_us, needed = int(self._now_s * 1e6), partial(errand.needed, mark)
        condemned = self._home.condemned.condemn(
            packs, names, run=self.run, now_us=now_us, needed=needed
        )
        _log.info("%d packs condemned by list %d", len(packs), condemned.seq)

    def mark(self, given_up: Set[bytes] = frozenset()) -> Mark:
        """Mark, and heal until a mark finds nothing lacking; without a lease nothing is healed.

        Args:
            given_up: As in ``Marker.mark``.
        """
        failed = False
        for _ in range(_ROUNDS):
            mark = self.marker.mark(
                self._now_s, self._window_s, given_up, self._before.logs, self._before.over
            )
            self._confirm_home(mark)
            end_orphans(self._home, mark, self._lease)
            if self._lease is None:
                lacking = _to_heal(self._home, self.marker, mark)
                self.report.lacking = [demand.root.why for demand in lacking]
                return mark
            end_holders(self._home, mark, self._lease)
            lacking = mark.to_heal(self._left, self._spared)
            if not lacking:
                return mark
            self._lease.check()
            try:
                healer = Healer(self._home, self.marker, mark)
                self.report.healed += healer.heal()
                self._left |= healer.left
                self._spared |= healer.spared
                failed = False
            except (Damaged, NotFound):
                if failed:
                    raise
                failed = True  # another collector may have healed it since, and deleted the rest
        raise BackendError(
            f"packs that {lacking[0].root.why} relies on keep disappearing from "
            f"{self._home.packs.url}; nothing was deleted. See that no other program deletes "
            "objects there"
        )

    def repack(self, mark: Mark, new: set[bytes], how: _How) -> tuple[set[bytes], bool]:
        """Repack packs with waste.

        Returns:
            The packs to condemn, of which some are in ``new``, and whether there was nothing to do.
        """
        done = Repacker(self._home, self.marker, mark).run(self._lease, how.max_bytes, how.is_over)
        self.report.repacked = len(done.packs)
        self.report.rewritten_bytes = done.written_bytes
        self.report.waste_bytes, self.report.stopped = done.waste_bytes, done.stopped
        given_up = done.packs if self._lease is not None else set()
        return (new - done.into) | given_up, not done.tried


def _to_heal(home: Home, marker: Marker, mark: Mark) -> list[Demand]:
    """Return what must be healed before anything is deleted, without writing anything.

    Where what is needed to know that cannot be read now, it may be anything that lacks something.
    """
    healer = Healer(home, marker, mark)
    try:
        healer.find_left()
    except BackendError as error:
        _log.warning("whether all that is removed can be brought back is not known: %s", error)
    return mark.to_heal(healer.left)


def _who(lease: Lease, until_s: float) -> str:
    return (
        f"{lease.who} (pid {lease.pid} on {lease.host}, lease {lease.id}; if it was killed, until "
        f"{end_text(until_s)})"
    )
