"""Carries purge orders out: what a collector deletes for them, and what is left (SPEC.md 10.3).

All that one run does for orders is done under its right: they are read under it, what is to be
deleted is noted before anything is, and what is left is written at its end. So each of two that go
on at once sees what the other has done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, field

import msgspec

from tierstore.errors import BackendError, Damaged, NotFound, OutOfSpace, UnsupportedFormat
from tierstore.format.keys import REPORTS, fold_key, layout_key, segment, version_key
from tierstore.format.layout import parse_layout
from tierstore.format.purge import PurgedPack, PurgeOrder, SharedChunks
from tierstore.ids import Digest
from tierstore.modelstore.care.rebase import Rebasing
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.opener import Opened
from tierstore.modelstore.placing.moverlease import HeldLease, mover_at_work
from tierstore.modelstore.reclaim.collector import Errand
from tierstore.modelstore.reclaim.holdings import Holdings, read_holdings
from tierstore.modelstore.reclaim.mark import Mark, Marker, Reason
from tierstore.modelstore.reclaim.purge.content import Content, chunks_in, find, leftovers
from tierstore.modelstore.reclaim.purge.frames import Frames
from tierstore.modelstore.reclaim.purge.orders import Orders
from tierstore.modelstore.reclaim.repack import Repacked
from tierstore.modelstore.reclaim.report import Report
from tierstore.shown import counted
from tierstore.tiers.hot.shared import bases_of

_log = logging.getLogger("tierstore.purge")
_NEEDED = frozenset({"live", "chain", "base", "window", "leased"})


@dataclass(slots=True)
class _One:
    """One order while it is carried out.

    Attributes:
        order: It, with its receipt.
        content: What was found of its content.
        before: The same as it is in home.
        shared: The chunks that others need for good, by who does.
        waits: Who needs chunks or manifests for a while only, or why nobody knows what is left.
        unread: Manifests of which nobody knows the chunks.
        is_touched: Whether this run found packs with purged frames.
        was_gone: The packs, each with its tier, that were gone before this run ended.
        has_more: Whether caches have more to drop, whatever is in ``content``.
    """

    order: PurgeOrder
    content: Content
    before: Content
    shared: dict[str, set[bytes]] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    unread: set[bytes] = field(default_factory=set)
    is_touched: bool = False
    was_gone: set[tuple[str, str]] = field(default_factory=set)
    has_more: bool = False

    def note(self, **fields: object) -> None:
        """Change fields of the order."""
        self.order = msgspec.structs.replace(self.order, **fields)


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
        self._every: list[_One] = []
        self._tried: set[Digest] = set()
        self._failed: list[str] = []
        self._in_place: set[bytes] = set()
        self._unfinished: str | None = None
        self._needed: dict[Digest, str] = {}
        self._rewritten_bytes = 0

    def begin(self) -> None:
        """Read the orders, as the right to collect is held now."""
        self._every = []
        for name in self._names:
            content = self._content(name)
            self._every.append(_One(self._orders.get(name), content, deepcopy(content)))

    def _content(self, name: str) -> Content:
        """Return what was found of an order; where that is damaged, all is to be found again."""
        try:
            return Content.read(self._orders.content(name))
        except (Damaged, UnsupportedFormat) as error:
            _log.warning("%s: what is there is found again", error)
            return Content()

    @property
    def doomed(self) -> Set[bytes]:
        """The packs that are to go."""
        found = set[bytes]()
        for one in self._every:
            found |= self._frames.with_purged(one.content.gone)
        return found - self._in_place

    def prepare(self, mark: Mark, marker: Marker, lease: HeldLease) -> bool:
        """Find what is to go, and store standalone what lies on it; tell whether anything was."""
        unfinished, self._unfinished = leftovers(self._home, mark, marker.layouts)
        for one in self._every:
            variants, manifests = find(self._home, one.order)
            own = manifests - one.content.manifests
            digests, one.unread = chunks_in(self._home, own, mark.condemned.manifests)
            if not one.order.done:  # of one that cannot be read nobody can say whose it is
                digests |= chunks_in(self._home, unfinished - one.content.manifests, frozenset())[0]
                one.content.manifests |= unfinished
            one.content.digests |= digests
            one.content.manifests |= manifests - one.unread
            one.note(variants=sorted({*one.order.variants, *variants}))
        every = set[bytes]().union(*(one.content.digests for one in self._every))
        needed = {
            manifest: (reason, own)
            for manifest, reason in (mark.below | mark.kept).items()
            if (own := every & set(marker.layouts.chunks(manifest)))
        }
        for one in self._every:
            self._share(one, mark, needed)
        self._frames.look(mark.holdings, every)
        gone = set[bytes]().union(*(one.content.gone for one in self._every))
        done = self._rebase(mark, marker, lease, gone)
        self._in_place = set() if done else self._needed_in_place(mark, gone)
        return done

    @staticmethod
    def _share(one: _One, mark: Mark, needed: Mapping[Digest, tuple[Reason, Set[bytes]]]) -> None:
        """Find out who else needs chunks and manifests of one order."""
        one.shared, waits = {}, set[str]()
        for manifest, (reason, chunks) in needed.items():
            own = one.content.digests & chunks
            if own and manifest in mark.firm:
                one.shared.setdefault(reason.why, set()).update(own)
            elif own:
                waits.add(reason.why)
        one.waits = [f"{why} needs it for a while" for why in sorted(waits)]
        one.waits += [
            f"neither the manifest b3:{manifest.hex()} nor its layout can be read, so nobody knows "
            "its chunks: run 'tierstore repair', or restore one of them from a copy"
            for manifest in sorted(one.unread)
        ]
        if (lost := one.order.chunks - len(one.content.digests)) > 0:
            one.waits.append(
                f"the record of its chunks was damaged, and {counted(lost, 'chunk')} of it that "
                "others do not need may be left in packs that they share"
            )
        one.content.kept = set().union(
            *(one.content.digests & chunks for _, chunks in needed.values())
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

    def rewrote(self, done: Repacked) -> None:
        """Count the bytes of new packs, and keep why some could not be written."""
        self._rewritten_bytes += done.written_bytes
        if done.stopped:
            self._failed.append(done.stopped)

    def found(self, mark: Mark) -> None:
        """Note which packs have purged frames, and who needs chunks, before any is deleted."""
        sizes = self._frames.sizes()

        def plain_bytes(digests: Iterable[bytes]) -> int:
            return sum(sizes.get(digest, 0) for digest in digests)

        for one in self._every:
            packs = self._frames.with_purged(one.content.gone)
            shared = [
                SharedChunks(why=why, chunks=len(own), plain_bytes=plain_bytes(own))
                for why, own in one.shared.items()
            ]
            needed = set[bytes]().union(*one.shared.values())
            one.is_touched = one.is_touched or bool(packs)
            one.note(
                packs=_with_new(one.order.packs, packs, mark.holdings),
                chunks=max(one.order.chunks, len(one.content.digests)),
                plain_bytes=max(one.order.plain_bytes, plain_bytes(one.content.digests)),
                shared_chunks=len(needed),
                shared_plain_bytes=plain_bytes(needed),
                shared=sorted(shared, key=lambda by: (-by.plain_bytes, by.why)),
            )
            self._write(one)

    def _write(self, one: _One) -> None:
        """Write an order with its content, which counts what caches have to drop."""
        content = one.content
        deltas = self._frames.deltas(content.gone)
        content.deltas |= {place.digest + bases_of(place) for place in deltas}
        if one.has_more or content.drops_more_than(one.before):
            content.sweep = max(one.before.sweep, one.order.sweep) + 1
            one.before, one.has_more = deepcopy(content), False
        one.note(sweep=content.sweep)
        self._orders.put_content(content.stored(one.order.id))
        self._orders.put(one.order)

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

    def _keys(self, one: _One, digest: Digest) -> list[str]:
        """Return the keys of what is there of a manifest; the order is no matter."""
        own = [fold_key(digest), layout_key(digest), version_key(digest)]
        prefix = f"{REPORTS}{segment(one.order.model)}/{digest.hex}/"
        reports = [info.key for info in self._home.blobs.list(prefix)]
        return [*reports, *self._home.blobs.present(own)]

    def conclude(self, report: Report) -> None:
        """Look what is left, and write the receipts."""
        waits = mover_at_work(self._home.blobs)  # before the tiers are listed
        holdings = read_holdings(self._home.packs)
        every = set[bytes]().union(*(one.content.digests for one in self._every))
        self._frames.look(holdings, every)
        reasons = {pack.pack: (pack.state, pack.why) for pack in report.packs}
        for one in self._every:
            self._conclude(one, holdings, reasons, [waits] if waits else [])
            self._count(one, report)
            self._write(one)
        self._every = []

    def _conclude(
        self,
        one: _One,
        holdings: Holdings,
        reasons: Mapping[bytes, tuple[str, str]],
        waits: list[str],
    ) -> None:
        there = holdings.every()
        unread = self._frames.unknown & there
        # a pack is named until it is gone, or was looked into and has no such frame
        left = (self._frames.with_purged(one.content.gone) & there) | unread
        noted = _with_new(one.order.packs, left, holdings)
        one.was_gone = {(pack.pack, pack.tier) for pack in one.order.packs if pack.gone}
        states = (self._as_it_is(pack, left, holdings, reasons) for pack in noted)
        packs = [pack for pack in states if pack is not None]
        writing = {why for pack in left if (why := _writer(reasons.get(pack)))}
        manifests = self._manifests_left(one)
        every = [*waits, *one.waits, *sorted(writing)]
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

    def _count(self, one: _One, report: Report) -> None:
        """Count what was written for an order by this run, and what tiers keep of what was deleted.

        Orders that had nothing to delete were only looked at.
        """
        if not one.is_touched:
            return
        kept = dict(one.order.kept_bytes)
        for pack in one.order.packs:
            if (
                pack.gone
                and pack.tier in report.kept
                and (pack.pack, pack.tier) not in one.was_gone
            ):
                kept[pack.tier] = kept.get(pack.tier, 0) + pack.bytes
        rewritten = one.order.rewritten_bytes + self._rewritten_bytes
        one.note(kept_bytes=kept, rewritten_bytes=rewritten)

    def _manifests_left(self, one: _One) -> dict[str, str]:
        """Return why manifests are there still; nothing is said where nobody needs one."""
        found: dict[str, str] = {}
        for digest in map(Digest, sorted(one.content.manifests)):
            keys = [version_key(digest), layout_key(digest), fold_key(digest)]
            if self._home.blobs.present(keys):
                found[digest.hex] = self._needed.get(digest, "")
        return found

    def _as_it_is(
        self,
        one: PurgedPack,
        left: Set[bytes],
        holdings: Holdings,
        reasons: Mapping[bytes, tuple[str, str]],
    ) -> PurgedPack | None:
        """Return the state of a pack; ``None`` for one that has no purged frame any more."""
        pack = bytes.fromhex(one.pack)
        if one.tier in holdings.down:
            why = f"the tier cannot be asked: {holdings.down[one.tier]}"
        elif one.tier not in holdings.by_tier:
            why = "the tier is in the store no more, and was not asked"
        elif pack not in holdings.by_tier[one.tier]:
            return msgspec.structs.replace(one, gone=True, why="")
        elif pack not in left:  # what it has of the content somebody needs again
            return None
        else:
            why = self._why_there(pack, holdings, reasons)
        return msgspec.structs.replace(one, gone=False, why=why)

    def _why_there(
        self, pack: bytes, holdings: Holdings, reasons: Mapping[bytes, tuple[str, str]]
    ) -> str:
        if pack in self._frames.unknown:
            todo = "restore it" if holdings.is_archived(pack) else "run 'tierstore repair'"
            return f"nobody can look into it, so it may have purged chunks: {todo}"
        state, why = reasons.get(pack, ("new", "it came while the purge went on"))
        if state not in _NEEDED:
            return why
        if holdings.is_archived(pack):
            return f"{why} needs other chunks of it, and archives alone have it: restore it"
        if pack in self._home.quarantine.packs():
            return f"{why} needs other chunks of it, and it is damaged: 'tierstore repair'"
        failed = f"; {self._failed[-1]}" if self._failed else ""
        return f"{why} needs other chunks of it{failed}"


def noted(home: Home, order: PurgeOrder) -> tuple[PurgeOrder, Content]:
    """Return an order with the packs that its layouts name, and its content as far as it is known.

    Once its version is purged any collection may delete these packs, whoever carries it out.
    """
    content, packs = Content(), set[bytes]()
    manifests = find(home, order)[1]
    content.digests, unread = chunks_in(home, manifests, frozenset())
    content.manifests = manifests - unread
    for digest in map(Digest, content.manifests):
        key = layout_key(digest)
        try:
            table = parse_layout(home.blobs.get(key), digest, key)
        except (Damaged, NotFound, UnsupportedFormat) as error:
            _log.warning("%s", error)
            continue
        packs |= {bytes(pack) for pack in table.pack_ids}
        content.deltas |= {place.digest + bases_of(place) for place in table if place.bases}
    there = _with_new([], packs, read_holdings(home.packs))
    return msgspec.structs.replace(order, packs=there), content


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
