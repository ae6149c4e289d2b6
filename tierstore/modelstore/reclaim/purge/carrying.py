"""Carries purge orders out: what a collector deletes for them, and what is left (SPEC.md 10.3).

All that one run does for orders is done under its right: they are read under it, what is to be
deleted is noted before anything is, and what is left is written at its end. So each of two that go
on at once sees what the other has done.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import msgspec

from tierstore.errors import BackendError, Damaged, NotFound, OutOfSpace, UnsupportedFormat
from tierstore.format.keys import REPORTS, fold_key, layout_key, segment, version_key
from tierstore.format.purge import PurgedPack, PurgeOrder
from tierstore.ids import Digest
from tierstore.modelstore.care.rebase import Rebasing
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.opener import Opened
from tierstore.modelstore.placing.moverlease import HeldLease, mover_at_work
from tierstore.modelstore.reclaim.errand import Errand
from tierstore.modelstore.reclaim.holdings import Holdings, read_holdings
from tierstore.modelstore.reclaim.mark import Mark, Marker
from tierstore.modelstore.reclaim.purge.content import (
    FoundContent,
    chunks_in,
    find,
    layout_of,
    leftovers,
)
from tierstore.modelstore.reclaim.purge.frames import Frames
from tierstore.modelstore.reclaim.purge.orders import Orders
from tierstore.modelstore.reclaim.purge.record import Record
from tierstore.modelstore.reclaim.purge.sharers import find_sharing
from tierstore.modelstore.reclaim.repack import Repacked
from tierstore.modelstore.reclaim.report import Report
from tierstore.shown import counted
from tierstore.tiers.hot.shared import bases_of

_log = logging.getLogger("tierstore.purge")
_KEYS = (fold_key, layout_key, version_key)
"""What home has of a manifest, besides reports."""

_NEEDED = frozenset({"live", "chain", "base", "window", "leased"})


@dataclass(frozen=True, slots=True)
class _After:
    """The store as it is when a run has ended, for all orders.

    Attributes:
        holdings: The packs of the tiers.
        there: All of these packs.
        marked: The packs that are marked as damaged.
        manifests: The manifests of orders of which anything is there still.
        reasons: The state of each pack, and why it is there.
        waits: Whom every order waits for.
    """

    holdings: Holdings
    there: Set[bytes]
    marked: Set[bytes]
    manifests: Set[bytes]
    reasons: Mapping[bytes, tuple[str, str]]
    waits: Sequence[str]


class Carrying(Errand):
    """What one run of the collector does for purge orders.

    Args:
        home: The store's home.
        orders: The orders of the store.
        names: The ids of those that are carried out.
        frames: What was read of packs before.
        is_first: Whether this counts as one more try; else it is a further pass of the last one.
        rebasing: Stores deltas standalone.
        open_alone: Opens a manifest without what it lies on.
    """

    def __init__(
        self,
        home: Home,
        orders: Orders,
        names: Sequence[str],
        frames: Frames,
        is_first: bool,
        rebasing: Rebasing,
        open_alone: Callable[[Digest], Opened],
    ) -> None:
        self._home, self._orders, self._names = home, orders, names
        self._rebasing, self._open_alone = rebasing, open_alone
        self._frames, self._is_first = frames, is_first
        self._lease: HeldLease | None = None
        self._marker: Marker | None = None
        self._every: list[Record] = []
        self._tried: set[Digest] = set()
        self._failed: list[str] = []
        self._doomed: Set[bytes] = frozenset()
        self._unfinished: str | None = None
        self._needed: dict[Digest, str] = {}
        self._rewritten_bytes = 0

    def begin(self) -> None:
        """Read the orders, as the right to collect is held now."""
        there = self._orders.part_names()
        self._every = [self._read(name, there.get(name, set())) for name in self._names]

    def _read(self, name: str, there: Set[str]) -> Record:
        """Return an order and its content; where that is damaged, all is to be found again.

        Parts that are there and that the order does not count were written over; all of them may
        be, where the content is of another writer than the order.
        """
        order = self._orders.get(name)
        try:
            stored = self._orders.content(name)
        except (Damaged, UnsupportedFormat) as error:
            _log.warning("%s: what is there is found again", error)
            stored = None
        one = Record(order, FoundContent.read(stored), (order, stored))
        is_of_one = stored is not None and stored.sweep == order.sweep
        wanted = there - set(order.parts or ()) if is_of_one else there
        parts = self._orders.parts(name, wanted)
        one.unread_parts = len(wanted) - len(parts)
        one.take_in(parts)
        return one

    @property
    def doomed(self) -> Set[bytes]:
        """The packs that are to go."""
        return self._doomed

    def prepare(self, mark: Mark, marker: Marker, lease: HeldLease) -> bool:
        """Find what is to go, and store standalone what lies on it; tell whether anything was."""
        self._lease, self._marker = lease, marker
        self._find(mark, marker)
        every = set[bytes]().union(*(one.content.digests for one in self._every))
        self._frames.look(mark.holdings, every)
        contents = [one.content.digests for one in self._every]
        shared = find_sharing(contents, mark, marker.layouts, self._frames)
        for one, sharing in zip(self._every, shared, strict=True):
            one.sharing, one.content.kept = sharing, sharing.kept
            one.waits = [*sharing.waits, *_unknown(one)]
        gone = every.difference(*(one.content.kept for one in self._every))
        done = self._rebase(mark, marker, lease, gone)
        in_place = set() if done else self._needed_in_place(mark, gone)
        self._doomed = self._frames.with_purged(gone) - in_place
        return done

    def _find(self, mark: Mark, marker: Marker) -> None:
        """Find the manifests of the orders, and their chunks."""
        unfinished, self._unfinished = leftovers(self._home, mark, marker)
        # of one that cannot be read nobody can say whose it is
        open_ones = [one.content.manifests for one in self._every if not one.order.done]
        new = set[bytes]().union(*(unfinished - known for known in open_ones))
        left = chunks_in(self._home, new, frozenset())[0]
        found = find(self._home, [one.order for one in self._every])
        for one in self._every:
            variants, manifests = found[one.order.id]
            own = manifests - one.content.manifests
            digests, one.unread = chunks_in(self._home, own, mark.condemned.manifests)
            if not one.order.done:
                digests |= left
                one.content.manifests |= unfinished
            one.content.digests |= digests
            one.content.manifests |= manifests - one.unread
            one.note(
                variants=sorted({*one.order.variants, *variants}),
                digests=one.order.digests | variants,
            )

    def _rebase(self, mark: Mark, marker: Marker, lease: HeldLease, gone: Set[bytes]) -> bool:
        deltas, done = self._frames.on(gone), False
        for digest in mark.below | mark.kept if deltas else {}:
            if digest in self._tried or deltas.isdisjoint(marker.layouts.chunks(digest)):
                continue
            self._tried.add(digest)
            lease.check()
            try:
                rebased = self._rebasing.without(self._open_alone(digest), gone)
            except (BackendError, Damaged, NotFound, OutOfSpace) as error:
                _log.warning("deltas of b3:%s on what is purged stay: %s", digest.hex, error)
                self._failed.append(f"deltas on it could not be stored standalone: {error}")
                continue
            if rebased is not None:
                self._rewritten_bytes += rebased.stored_bytes
                done = True
        return done

    def _needed_in_place(self, mark: Mark, gone: Set[bytes]) -> set[bytes]:
        """Return the packs where a root needs a purged frame as a base: copies would be no help."""
        found = set[bytes]()
        for digest in mark.kept if gone else {}:
            for part in mark.needs.frames(digest):
                found |= {place.pack for place in part if place.digest in gone}
        return found

    def names(self, mark: Mark) -> Set[bytes]:
        """Return the digests of the manifests that nothing needs, and that are not condemned."""
        every = set[bytes]().union(*(one.content.manifests for one in self._every))
        return every - {one.raw for one in mark.manifests} - mark.condemned.manifests

    def needed(self, mark: Mark) -> Set[bytes]:
        """Return the digests of manifests that something needs now that came since a mark.

        What is condemned is so for ever: what was saved or named meanwhile is looked for first.
        """
        assert self._marker is not None
        return {one.raw for one in self._marker.needed_since(mark)}

    def rewrote(self, done: Repacked) -> None:
        """Count the bytes of new packs, and keep why some could not be written."""
        self._rewritten_bytes += done.written_bytes
        if done.stopped:
            self._failed.append(done.stopped)

    def found(self, mark: Mark) -> None:
        """Note which packs have purged frames, and who needs chunks, before any is deleted."""
        for one in self._every:
            packs = self._frames.with_purged(one.content.gone)
            digests, for_good = one.content.digests, one.sharing.for_good
            one.is_touched = one.is_touched or bool(packs)
            one.note(
                packs=_with_new(one.order.packs, packs, mark.holdings),
                chunks=max(one.order.chunks, len(digests)),
                plain_bytes=max(one.order.plain_bytes, self._frames.plain_bytes(digests)),
                shared_chunks=len(for_good),
                shared_plain_bytes=self._frames.plain_bytes(for_good),
                shared=one.sharing.by,
            )
            self._write(one)

    def _write(self, one: Record) -> None:
        """Write an order with its content, which counts what caches have to drop.

        What is in home already is not written again: most orders are only looked at.
        """
        content, (order, before) = one.content, one.in_home
        deltas = self._frames.deltas(content.gone)
        content.deltas |= {place.digest + bases_of(place) for place in deltas}
        stored = content.stored(one.order.id)
        new = FoundContent() if stored == before else content.beyond(FoundContent.read(before))
        if one.has_more or not new.is_empty:
            # random: who writes over what another one found must not give the same number
            content.sweep = max(content.sweep, one.order.sweep) + 1 + secrets.randbelow(1 << 32)
            stored, one.has_more = content.stored(one.order.id), False
        one.note(sweep=content.sweep)
        if (one.order, stored) == (order, before):
            return
        if self._lease is not None:  # whoever has the right by now has read it, and writes it
            self._lease.check()
        if (part := one.new_part(new)) is not None:
            name = self._orders.add_part(part)
            one.note(parts=sorted({*(one.order.parts or ()), name}))
        if stored != before:
            self._orders.put_content(stored)
        if one.order != order:
            self._orders.put(one.order)
        one.in_home = one.order, stored

    def swept(self, mark: Mark, lease: HeldLease) -> None:
        """Delete what home says of the content, where nothing needs it and no name comes back."""
        why = mark.below | mark.kept
        self._needed = {
            digest: why[digest].why if digest in why else "something lies on it"
            for digest in mark.manifests
        }
        needed = {digest.raw for digest in mark.manifests}
        for one in self._every:
            going = one.content.manifests & mark.condemned.manifests - needed
            keys = [key for digest in sorted(going) for key in self._keys(one, Digest(digest))]
            if not keys:
                continue
            lease.check()
            one.note(objects=sorted({*one.order.objects, *keys}))
            one.has_more = True  # files of these manifests, which nobody needs now
            self._write(one)
            self._home.blobs.delete(keys)

    def _keys(self, one: Record, digest: Digest) -> list[str]:
        """Return the keys of what is there of a manifest; the order is no matter."""
        own = [key(digest) for key in _KEYS]
        prefix = f"{REPORTS}{segment(one.order.model)}/{digest.hex}/"
        reports = [info.key for info in self._home.blobs.list(prefix)]
        return [*reports, *self._home.blobs.present(own)]

    def conclude(self, report: Report) -> None:
        """Look what is left, and write the receipts."""
        waits = mover_at_work(self._home.blobs)  # before the tiers are listed
        holdings = read_holdings(self._home.packs)
        every = set[bytes]().union(*(one.content.digests for one in self._every))
        self._frames.look(holdings, every)
        after = _After(
            holdings=holdings,
            there=holdings.every(),
            marked=self._home.quarantine.packs(),
            manifests=self._manifests_there(),
            reasons={pack.pack: (pack.state, pack.why) for pack in report.packs},
            waits=[waits] if waits else [],
        )
        for one in self._every:
            self._conclude(one, after)
            self._count(one, report)
            self._write(one)
        self._every = []

    def _conclude(self, one: Record, after: _After) -> None:
        unread = self._frames.unknown & after.there
        # a pack is named until it is gone, or was looked into and has no such frame
        left = (self._frames.with_purged(one.content.gone) & after.there) | unread
        noted = _with_new(one.order.packs, left, after.holdings)
        one.was_gone = {(pack.pack, pack.tier) for pack in one.order.packs if pack.gone}
        states = (self._as_it_is(pack, left, after) for pack in noted)
        packs = [pack for pack in states if pack is not None]
        writing = {why for pack in left if (why := _writer(after.reasons.get(pack)))}
        needed = one.content.manifests & after.manifests
        manifests = {pack.hex(): self._needed.get(Digest(pack), "") for pack in sorted(needed)}
        holdings = after.holdings
        every = [*after.waits, *one.waits, *sorted(writing)]
        if self._unfinished is not None and not one.order.done:
            every.append(self._unfinished)
        done = not (left or unread or holdings.down or every or "" in manifests.values())
        one.note(
            updated_us=time.time_ns() // 1000,
            tries=0 if done else one.order.tries + self._is_first,
            tiers=[tier.name for tier in holdings.packs.tiers],
            packs=packs,
            manifests_left=manifests,
            unread=len(unread),
            down=dict(holdings.down),
            waits=every,
            done=done,
        )

    def _count(self, one: Record, report: Report) -> None:
        """Count what was written for an order by this run, and what tiers keep of what was deleted.

        Orders that had nothing to delete were only looked at.
        """
        if not one.is_touched:
            return
        for pack in one.order.packs:
            if (
                pack.gone
                and pack.tier in report.kept
                and (pack.pack, pack.tier) not in one.was_gone
            ):
                one.kept_bytes[pack.tier] = one.kept_bytes.get(pack.tier, 0) + pack.bytes
        one.rewritten_bytes = self._rewritten_bytes
        one.count(one.rewritten_bytes, one.kept_bytes)

    def _manifests_there(self) -> set[bytes]:
        """Return the manifests of all orders of which anything is there still."""
        every = set[bytes]().union(*(one.content.manifests for one in self._every))
        keys = {key(Digest(one)): one for one in every for key in _KEYS}
        return {keys[key] for key in self._home.blobs.present(sorted(keys))}

    def _as_it_is(
        self,
        one: PurgedPack,
        left: Set[bytes],
        after: _After,
    ) -> PurgedPack | None:
        """Return the state of a pack; ``None`` for one that has no purged frame any more."""
        pack, holdings = bytes.fromhex(one.pack), after.holdings
        if one.tier in holdings.down:
            why = f"the tier cannot be asked: {holdings.down[one.tier]}"
        elif one.tier not in holdings.by_tier:
            why = "the tier is in the store no more, and was not asked"
        elif pack not in holdings.by_tier[one.tier]:
            return msgspec.structs.replace(one, gone=True, why="")
        elif pack not in left:  # what it has of the content somebody needs again
            return None
        else:
            why = self._why_there(pack, after)
        return msgspec.structs.replace(one, gone=False, why=why)

    def _why_there(self, pack: bytes, after: _After) -> str:
        holdings = after.holdings
        if pack in self._frames.unknown:
            todo = "restore it" if holdings.is_archived(pack) else "run 'tierstore repair'"
            return f"nobody can look into it, so it may have purged chunks: {todo}"
        state, why = after.reasons.get(pack, ("new", "it came while the purge went on"))
        if state not in _NEEDED:
            return why
        if holdings.is_archived(pack):
            return f"{why} needs other chunks of it, and archives alone have it: restore it"
        if pack in after.marked:
            return f"{why} needs other chunks of it, and it is damaged: 'tierstore repair'"
        failed = f"; {self._failed[-1]}" if self._failed else ""
        return f"{why} needs other chunks of it{failed}"


def _unknown(one: Record) -> list[str]:
    """Return why nobody knows all chunks of an order."""
    found = [
        f"neither the manifest b3:{manifest.hex()} nor its layout can be read, so nobody knows "
        "its chunks: run 'tierstore repair', or restore one of them from a copy"
        for manifest in sorted(one.unread)
    ]
    if one.unread_parts:
        found.append(
            f"{counted(one.unread_parts, 'part')} of what was found of it cannot be read: run "
            "'tierstore repair'"
        )
    if (missing := one.order.chunks - len(one.content.digests)) > 0:
        found.append(
            f"the record of its chunks was damaged, and {counted(missing, 'chunk')} of it that "
            "others do not need may be left in packs that they share"
        )
    return found


def noted(home: Home, orders: Sequence[PurgeOrder]) -> Iterator[tuple[PurgeOrder, FoundContent]]:
    """Yield orders with the packs that their layouts name, and their content as far as is known.

    Once its version is purged any collection may delete these packs, whoever carries it out.
    """
    manifests = find(home, orders)
    holdings = read_holdings(home.packs)
    for order in orders:
        content, packs = FoundContent(), set[bytes]()
        own = manifests[order.id][1]
        content.digests, unread = chunks_in(home, own, frozenset())
        content.manifests = own - unread
        for digest in map(Digest, content.manifests):
            table = layout_of(home, digest)
            if table is None:
                continue
            packs |= {bytes(pack) for pack in table.pack_ids}
            content.deltas |= {place.digest + bases_of(place) for place in table if place.bases}
        there = _with_new([], packs, holdings)
        chunks = len(content.digests)
        yield msgspec.structs.replace(order, packs=there, chunks=chunks), content


def _with_new(
    noted: Iterable[PurgedPack], packs: Iterable[bytes], holdings: Holdings
) -> list[PurgedPack]:
    """Return the packs that were noted, and others, wherever they are."""
    known = {(one.pack, one.tier): one for one in noted}
    for pack in packs:
        for tier, size in holdings.bytes_of(pack).items():
            one = PurgedPack(pack=pack.hex(), tier=tier, bytes=size)
            known.setdefault((pack.hex(), tier), one)
    return [known[key] for key in sorted(known)]


def _writer(reason: tuple[str, str] | None) -> str | None:
    """Return whom a pack waits for, if it waits for saves."""
    return reason[1] if reason is not None and reason[0] == "writing" else None
