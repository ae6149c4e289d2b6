"""Repairs a store: what is damaged or gone is put back from what is left (SPEC.md 10.2).

::

    every copy of every pack is read -> bad ones get the bytes of a good one
    no good one: quarantine mark -> good frames into a new pack -> other packs -> hot tiers
    what is found nowhere is said to be lost, with the versions that need it

What is whole is never written to. It may be killed at any point and begun again: the mark comes
before the new pack, and that before the move, as in a save that heals.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from tierstore.errors import BackendError, Damaged, NotFound, OutOfSpace, UnsupportedFormat
from tierstore.format import keys
from tierstore.format.storeconfig import check_features
from tierstore.format.table import ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.chunks.copies import Copies, read_copies
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.reclaim.holdings import Holdings, read_holdings
from tierstore.modelstore.reclaim.repair.content import ContentRepair, MoveRepair, bad_manifests
from tierstore.modelstore.reclaim.repair.hits import find_hits
from tierstore.modelstore.reclaim.repair.hot import HotRepair
from tierstore.modelstore.reclaim.repair.lists import ListRepair
from tierstore.modelstore.reclaim.repair.logs import LogRepair
from tierstore.modelstore.reclaim.repair.marks import repair_marks
from tierstore.modelstore.reclaim.repair.objects import (
    Objects,
    digest_in,
    repair_hints,
    repair_leases,
    repair_pins,
    repair_purges,
    repair_retention,
)
from tierstore.modelstore.reclaim.repair.putback import put_back
from tierstore.modelstore.reclaim.repair.report import HitVersion, Outcome, RepairReport
from tierstore.modelstore.reclaim.repair.rescue import Missing, Rescue
from tierstore.modelstore.reclaim.repair.users import UserReader, Users
from tierstore.modelstore.reclaim.repair.wanted import Wanted, find_wanted, read_tables
from tierstore.modelstore.version import Version
from tierstore.shown import counted
from tierstore.tiers.hot.tiers import HotTiers

_GONE = "the pack is in no tier"
_SAVE_AGAIN = "saving that content again heals it"

Told = Callable[[int, int], None]
"""Called with the bytes done, and the bytes in all."""


def repair_store(
    home: Home,
    hot: HotTiers,
    versions: Sequence[Version] | None = None,
    *,
    dry_run: bool = False,
    progress: Told | None = None,
) -> RepairReport:
    """Repair a store, or what some versions need of it.

    Args:
        home: The store's home.
        hot: The hot tiers of this process: bad values in them are dropped, and they may have what
            no pack has any more.
        versions: The versions; ``None`` for everything in the store.
        dry_run: Whether nothing is changed: the report says what would be.
        progress: Told of the bytes of packs that were read.

    Returns:
        What it found and did. Where there was no room for some of it, not even with home's reserve,
        the report says so.

    Raises:
        Conflict: Another process moves packs now.
        BackendError: Home cannot be asked.
        UnsupportedFormat: The store needs a newer tierstore to be written to.
    """
    check_features(home.config, "write", home.blobs.url)
    return _Repair(home, hot, versions, dry_run, progress).run()


class _Repair:
    """One run.

    Attributes:
        report: What it found and did so far.
    """

    def __init__(
        self,
        home: Home,
        hot: HotTiers,
        versions: Sequence[Version] | None,
        dry_run: bool,
        progress: Told | None,
    ) -> None:
        self._home, self._hot, self._versions = home, hot, versions
        self._users = UserReader(home, versions)
        self._progress = progress
        self._bad_marks: set[bytes] = set()
        self._no_right: OutOfSpace | None = None
        self.report = RepairReport(dry_run=dry_run)

    def run(self) -> RepairReport:
        self._home.packs.refresh()
        lost = self._repair_home()
        hot = HotRepair(self._hot, self.report)
        hot.repair_local()
        users = self._users.read()
        objects = Objects(self._home.blobs, self.report)
        holdings = read_holdings(self._home.packs)
        self.report.down = dict(holdings.down)
        self._repair_lists(objects, holdings, users)
        named = self._named(users, hot.repair_shared)
        gone = {pack for pack in named if not holdings.is_there(pack)}
        every = holdings.every() if self._versions is None else holdings.every() & named
        with self._right() as right:
            damaged = self._repair_copies(sorted(every), holdings, right)
        hits: list[HitVersion] = []
        if damaged or gone:
            try:
                hits = self._rescue(damaged, gone)
            except OutOfSpace as error:
                self._leave(damaged, error)
        self.report.hit = sorted([*lost, *hits], key=lambda hit: (hit.version, hit.manifest))
        return self.report

    def _named(self, users: Users, look_at: Callable[[ChunkTable], None]) -> set[bytes]:
        """Return the packs that layouts name; show each layout to ``look_at``."""
        named: set[bytes] = set()
        for _, table in read_tables(self._home, users):
            named.update(table.pack_ids)
            look_at(table)
        return named

    # Home

    def _repair_home(self) -> list[HitVersion]:
        """Repair what leads to the chunks of versions; return those that are lost as a whole."""
        objects = Objects(self._home.blobs, self.report)
        whole_store = self._versions is None
        manifests = objects.listed(keys.VERSIONS)
        if not whole_store:
            needed = map(keys.version_key, self._users.read())
            manifests = [key for key in needed if key in manifests]
        bad = bad_manifests(objects, manifests)
        if whole_store:
            LogRepair(self._home, objects).run()
        users = self._users.read()
        content = ContentRepair(self._home, objects, users)
        there = {digest for key in manifests if (digest := digest_in(key, keys.VERSIONS))}
        lost = content.manifests(bad, there)
        content.layouts(objects.there(map(keys.layout_key, users)))
        content.folds(objects.there(map(keys.fold_key, users)))
        if whole_store:
            repair_hints(objects)
            repair_leases(objects)
            repair_retention(objects)
            repair_purges(objects, self._home)
            repair_pins(objects, self._home)
        return lost

    def _repair_lists(self, objects: Objects, holdings: Holdings, users: Users) -> None:
        if self._versions is None:
            ListRepair(self._home, objects, holdings, users).run()
        MoveRepair(self._home, objects, holdings, users).run()
        self._bad_marks = repair_marks(objects, holdings)

    # Copies

    @contextmanager
    def _right(self) -> Iterator[HeldLease | None]:
        if self.report.dry_run:
            yield None
            return
        blobs, right = self._home.blobs, HeldLease(self._home.blobs)
        with ExitStack() as stack:
            try:
                with_reserve(blobs, lambda: stack.enter_context(right))
            except OutOfSpace as error:
                self._no_right = error
                yield None
                return
            yield right
            with suppress(BackendError):  # the lease says so when it ends
                with_reserve(blobs, right.give_back)

    def _repair_copies(
        self, packs: Sequence[bytes], holdings: Holdings, right: HeldLease | None
    ) -> dict[bytes, str]:
        """Put good bytes over bad copies.

        Returns:
            The packs of which no copy is known to be good, and what is wrong with one; nothing
            where the pack was marked alone: a delta in it may be wrong although its checksums are
            right.
        """
        condemned: Set[bytes] = set()
        with suppress(
            Damaged, UnsupportedFormat
        ):  # of lists that were not repaired: it is looked at again
            condemned = self._home.condemned.every().packs
        marked = self._home.quarantine.packs()
        todo = [pack for pack in packs if pack not in condemned and holdings.is_readable(pack)]
        total = sum(_readable_bytes(holdings, pack) for pack in todo)
        damaged: dict[bytes, str] = {}
        for pack in todo:
            copies = read_copies(self._home, pack)
            self.report.packs += 1
            self.report.read_bytes += sum(len(copy.data) for copy in copies.every)
            if copies.newer:
                self._leave_newer(copies)
            elif self._is_damaged(copies, right) or (pack in marked and copies.every):
                damaged[pack] = next((str(copy.why) for copy in copies.bad), "")
            if right is not None:
                right.keep()
            if self._progress is not None:
                self._progress(min(self.report.read_bytes, total), total)
        return damaged

    def _is_damaged(self, copies: Copies, right: HeldLease | None) -> bool:
        """Repair the bad copies of a pack, if it can be put together; return whether it cannot."""
        data = copies.whole() if copies.bad else None
        if data is None:
            return bool(copies.bad)
        source = self.report.did("put together from what is good in each copy")
        if copies.good is not None:
            source = self.report.did(f"put back from tier {copies.good.tier.name}")
        for copy in copies.bad:
            try:
                if self._no_right is not None:
                    raise self._no_right
                if right is not None:
                    put_back(self._home, copy, copies.pack, data, right)
            except (BackendError, Damaged, NotFound, UnsupportedFormat) as error:
                self.report.leave(copies.key, copy.why, "written anew", error, copy.tier.name)
            else:
                self.report.add("repaired", copies.key, copy.why, source, copy.tier.name)
        return False

    def _leave_newer(self, copies: Copies) -> None:
        why = next(copy.why for copy in copies.every if copy.why is not None)
        self.report.add("left", copies.key, why, "repair it with that version of tierstore")

    # Packs without a good copy

    def _leave(self, damaged: Mapping[bytes, str], error: OutOfSpace) -> None:
        """Say that nothing could be rescued; which packs that are gone are needed is not known."""
        for pack, why in sorted(damaged.items()):
            what = why or "the pack is quarantined"
            self.report.leave(keys.pack_key(pack), what, "rescued", error)
        self.report.full = self.report.full or str(error)

    def _rescue(self, damaged: Mapping[bytes, str], gone: Set[bytes]) -> list[HitVersion]:
        """Rescue what versions need of bad packs; return those that lack what is lost."""
        bad = damaged.keys() | gone
        users = self._users.read()
        wanted = find_wanted(self._home, users, bad.__contains__)
        with ExitStack() as stack:
            lease = None
            if not self.report.dry_run:
                lease = WriterLease(self._home.blobs)
                with_reserve(self._home.blobs, partial(stack.enter_context, lease))
            rescue = Rescue(self._home, self._hot, lease, set(bad), wanted)
            found = [
                self._from_copies(rescue, pack, wanted.by_pack.get(pack, {}), damaged.get(pack))
                for pack in sorted(bad)
            ]
            removed = users.removed
            collected = _collected([m for pack in found for m in pack.missing], damaged, removed)
            for pack in found:
                pack.missing = [one for one in pack.missing if one not in collected]
            lost = rescue.from_elsewhere([one for pack in found for one in pack.missing])
            above = rescue.unreadable_on(lost)
            collected = _collected([*lost, *above], damaged, removed)
            lost += rescue.from_elsewhere([one for one in above if one not in collected])
        chunks = {(one.wanted.place.pack, one.digest) for one in lost}
        # some may be removed by now
        hits = find_hits(self._home, self._users.read(), chunks, bad)
        # else a fold stands for it, or what lies below it; or it is a base of what lies elsewhere
        no_loss = {one for one in lost if (one.wanted.place.pack, one.digest) not in hits.needed}
        lost = [one for one in lost if one not in no_loss]
        for pack in found:
            pack.missing = [one for one in pack.missing if one not in no_loss]
            self._tell(pack, {one.digest for one in lost})
        return hits.versions

    def _from_copies(
        self, rescue: Rescue, pack: bytes, wanted: Mapping[bytes, Wanted], why: str | None
    ) -> _Found:
        """Mark a damaged pack, and rescue what is good in it.

        Args:
            rescue: Copies what is good.
            pack: The id of the pack.
            wanted: The chunks that versions need of it.
            why: What was wrong with its copies when they were looked at, which may be hours ago;
                ``None`` where it was in no tier.
        """
        found = _Found(pack, why or "")
        copies = Copies(pack) if why is None else read_copies(self._home, pack)
        found.down, found.archives = copies.down, copies.archives
        if not copies.every:  # it is gone, or nobody can say now how it is
            found.missing = rescue.missing_from(pack)
            return found
        if copies.newer:
            self._leave_newer(copies)
            return found
        if copies.good is not None:
            if pack not in self._home.quarantine.packs():  # it is whole by now
                return found
            if all(rescue.is_good(copies, one) for one in wanted.values()):
                # a save may reuse a delta that nothing needs now, and nobody has decoded that
                if all(not place.bases or place.digest in wanted for place in copies.places or ()):
                    self._lift(copies)
                return found
        found.why = "a delta in it does not give its chunk"
        if copies.good is None:
            found.why = next(str(copy.why) for copy in copies.bad)
        found.is_new = self._mark(copies, wanted, found.why)
        if wanted:
            found.copied, found.missing = rescue.from_copies(copies)
        return found

    def _mark(self, copies: Copies, wanted: Mapping[bytes, Wanted], why: str) -> bool:
        """Quarantine a pack of which every copy was just found damaged; return whether it was."""
        is_new = copies.pack not in self._home.quarantine.packs()
        if not self.report.dry_run and (is_new or copies.pack in self._bad_marks):
            chunks = {place.digest for place in copies.places or ()} | wanted.keys()
            tiers = [copy.tier.name for copy in copies.every]
            with_reserve(
                self._home.blobs,
                lambda: self._home.quarantine.mark(copies.pack, chunks, tiers=tiers, why=why),
            )
        return is_new

    def _lift(self, copies: Copies) -> None:
        if not self.report.dry_run:
            self._home.quarantine.lift(copies.pack)
        what = "the pack was quarantined, but a copy is good"
        self.report.add(
            "repaired", keys.quarantine_key(copies.pack), what, self.report.did("deleted")
        )

    def _tell(self, found: _Found, lost: Set[bytes]) -> None:
        """Say what came of a bad pack, unless an earlier repair has done all that could be done."""
        mine = [one for one in found.missing if one.digest in lost]
        elsewhere = len(found.missing) - len(mine)
        done = [self.report.did("quarantined")] if found.is_new else []
        if found.copied:
            copied = self.report.did("copied from it into a new pack")
            done.append(f"{counted(found.copied, 'chunk')} {copied}")
        if elsewhere:
            done.append(f"{counted(elsewhere, 'chunk')} found in other packs or hot tiers")
        outcome: Outcome = "repaired"
        if mine:
            outcome = "lost"
            nbytes = sum(one.wanted.place.plain_bytes for one in mine)
            done.append(f"{counted(len(mine), 'chunk')} of {nbytes} bytes lost; {_SAVE_AGAIN}")
            if found.archives:
                outcome = "left"
                tiers = ", ".join(found.archives)
                done.append(f"{tiers} has an archived copy: 'tierstore restore', then repair again")
            elif down := {**self.report.down, **found.down}:
                outcome = "left"
                done.append(f"{', '.join(down)} could not be asked and may have it: repair again")
        if done:
            what = found.why or _GONE
            self.report.add(outcome, keys.pack_key(found.pack), what, "; ".join(done))


@dataclass(slots=True)
class _Found:
    """What came of one bad pack.

    Attributes:
        pack: The id of the pack.
        why: What is wrong with it; empty when it is gone.
        is_new: Whether it was not marked before.
        copied: The number of chunks that were copied from it.
        missing: Chunks that are needed and not good in it.
        down: Why tiers could not be asked for it, by name.
        archives: The names of tiers that have it in an archive.
    """

    pack: bytes
    why: str = ""
    is_new: bool = False
    copied: int = 0
    missing: list[Missing] = field(default_factory=list)
    down: Mapping[str, str] = field(default_factory=dict)
    archives: Sequence[str] = ()


def _collected(
    missing: Sequence[Missing], damaged: Collection[bytes], removed: Set[Digest]
) -> set[Missing]:
    """Return those of missing chunks that are gone since a collection had a shorter window.

    They are of removed versions alone, and no damaged pack had them or their bases. They are not
    looked for: who had them collected does not want them stored again from some hot tier.
    """
    bad = {one.digest for one in missing if one.wanted.place.pack in damaged}
    return {
        one
        for one in missing
        if one.wanted.manifest in removed
        and one.digest not in bad
        and bad.isdisjoint(one.wanted.place.bases)
    }


def _readable_bytes(holdings: Holdings, pack: bytes) -> int:
    sizes = holdings.bytes_of(pack)
    return sum(size for tier, size in sizes.items() if tier not in holdings.archives)
