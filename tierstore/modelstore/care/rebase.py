"""Rebase: stores a version's deltas as standalone chunks where reading them costs too much.

Reading a delta fetches its own frame and its bases'. Rebase encodes such chunks anew, puts them
into new packs and writes the version's layout again (format/SPEC.md 11). The old frames stay, for
readers that use them now and for other versions, until nothing needs them. Any delta of a version
may be replaced by hand; an agent does so where the version as a whole costs too much.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from tierstore.arguments import as_number
from tierstore.errors import (
    BackendError,
    Damaged,
    NotFound,
    UnsupportedFormat,
    UsageError,
)
from tierstore.format.keys import REMOVED_LOG, VARIANTS, VERSION_LOG, layout_key
from tierstore.format.layout import seal_layout
from tierstore.format.manifest import Manifest
from tierstore.format.proof import hash_plain
from tierstore.format.storeconfig import check_features
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import split_digests
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.defaults import COSTS
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.confirm import gone_packs, lost_since
from tierstore.modelstore.home.heads import Heads
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.modelstore.home.index import ChunkIndex, write_segment
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.refs import RefLog
from tierstore.modelstore.loading.opener import Opened
from tierstore.modelstore.names.removed import Removals
from tierstore.modelstore.saving.framing import BufferPool
from tierstore.modelstore.saving.healing import Healing
from tierstore.modelstore.saving.packer import Packer
from tierstore.modelstore.version import Version, version_of

_ROUNDS = 5
_FRAME_BYTES, _PER_BLOCKS = 1024, 256
"""What a standalone frame takes at most besides the plain bytes, with its proof and its row in the
index: so many bytes, and one for so many plain bytes.
"""
_log = logging.getLogger("tierstore.rebase")


@dataclass(frozen=True, slots=True)
class Rebased:
    """The result of a rebase.

    Attributes:
        deltas: Number of the version's chunks that were stored as deltas before.
        chunks: Number of those that are standalone now.
        plain_bytes: Plain bytes of the chunks that are standalone now.
        stored_bytes: Bytes written to storage.
        cost_before: Bytes that reading the whole version fetched, per byte that it would fetch if
            all its frames were standalone.
        cost_after: The same cost after the rebase.
    """

    deltas: int
    chunks: int
    plain_bytes: int
    stored_bytes: int
    cost_before: float
    cost_after: float


class Allowance(Protocol):
    """How much a sweep may write."""

    def left_bytes(self) -> float:
        """Return how many bytes of packs may be written now."""

    def add(self, nbytes: int) -> None:
        """Note that so many bytes of packs were written."""


class _Unlimited:
    """No limit."""

    def left_bytes(self) -> float:
        return math.inf

    def add(self, nbytes: int) -> None:
        """Note nothing."""


UNLIMITED: Allowance = _Unlimited()


class ReadCosts:
    """Costs of reading the deltas of a version, computed from its layout alone.

    A base that several deltas share is fetched once, so each bears a part of it. The standalone
    size of a delta is estimated from its bases: they are the same tensor's content.
    """

    def __init__(self, table: ChunkTable, manifest: Manifest) -> None:
        self._own = [place for d in dict.fromkeys(chunks_of(manifest)) if (place := table.find(d))]
        own = {place.digest for place in self._own}
        users: dict[bytes, int] = dict.fromkeys(own, 1)  # fetched for their own sake, too
        for place in self._own:
            for base in place.bases:
                users[base] = users.get(base, 0) + 1
        self._share: dict[bytes, float] = {}
        self._ratio: dict[bytes, float] = {}
        for base in {base for place in self._own for base in place.bases}:
            at = table.find(base)
            assert at is not None  # a layout holds every base
            self._share[base] = at.frame_bytes / users[base]
            self._ratio[base] = at.frame_bytes / max(1, at.plain_bytes)

    @property
    def deltas(self) -> list[ChunkPlace]:
        """The chunks that are stored as deltas."""
        return [place for place in self._own if place.bases]

    def standalone(self, place: ChunkPlace) -> float:
        """Return the estimated bytes of a chunk's frame if it were standalone."""
        if not place.bases:
            return place.frame_bytes
        return place.plain_bytes * sum(self._ratio[base] for base in place.bases) / len(place.bases)

    def fetched(self, place: ChunkPlace) -> float:
        """Return the bytes fetched to read a chunk."""
        return place.frame_bytes + sum(self._share[base] for base in place.bases)

    def ratio(self, place: ChunkPlace) -> float:
        """Return the bytes fetched per byte of a standalone frame."""
        return self.fetched(place) / max(1.0, self.standalone(place))

    def whole(self, instead: dict[bytes, int]) -> float:
        """Return the cost of reading the version with some frames replaced by standalone ones.

        Args:
            instead: Bytes of the new standalone frames, by chunk digest.
        """
        fetched = sum(instead.get(place.digest) or self.fetched(place) for place in self._own)
        alone = sum(instead.get(place.digest) or self.standalone(place) for place in self._own)
        return fetched / alone if alone else 1.0


class Rebasing:
    """Rebases versions of a store.

    Args:
        home: The store's home.
        index: The dedup index, which is told about the new frames.
        opened: Opens the full version that a version is or lies on.
    """

    def __init__(self, home: Home, index: ChunkIndex, opened: Callable[[Version], Opened]) -> None:
        self._home, self._index, self._opened = home, index, opened
        self._looked_at: dict[tuple[str, str], int] = {}
        self._removals = Removals(home)

    def version(self, version: Version, above: float = COSTS) -> Rebased:
        """Store a version's deltas as standalone chunks where reading them costs over ``above``.

        Args:
            version: The version to rebase.
            above: Bytes fetched per byte of a standalone frame, at least 1, which takes every
                delta.
        """
        above = as_number("above", above, "a number", -math.inf)
        if above < 1:
            raise UsageError(
                f"a delta never costs less than a standalone frame: give 1 or more, not {above}"
            )
        return self._rebase(version, above, math.inf)[0]

    def _rebase(self, version: Version, above: float, most_bytes: float) -> tuple[Rebased, bool]:
        """Rebase a version, its dearest deltas first; tell whether ``most_bytes`` left some."""
        check_features(self._home.config, "write", self._home.blobs.url)
        since_s = running_s()
        full = self._opened(version)
        costs = ReadCosts(full.content.table, full.manifest)
        every = [p for p in costs.deltas if costs.fetched(p) > above * costs.standalone(p)]
        expensive = _within(every, costs, most_bytes)
        is_cut = len(expensive) < len(every)
        before = costs.whole({})
        if not expensive:
            return Rebased(len(costs.deltas), 0, 0, 0, before, before), is_cut
        return self._replace(full, costs, expensive, since_s), is_cut

    def _replace(
        self, full: Opened, costs: ReadCosts, deltas: Sequence[ChunkPlace], since_s: float
    ) -> Rebased:
        with (
            WriterLease(self._home.blobs) as lease,
            closing(_Work(self._home, lease, full, since_s)) as work,
        ):
            packer = work.packer
            written = work.run(deltas) + _publish(self._home, self._index, packer)
        return Rebased(
            deltas=len(costs.deltas),
            chunks=len(work.places),
            plain_bytes=sum(place.plain_bytes for place in packer.places.values()),
            stored_bytes=sum(packer.pack_sizes.values()) + written,
            cost_before=costs.whole({}),
            cost_after=costs.whole({one: at.frame_bytes for one, at in packer.places.items()}),
        )

    def without(self, alone: Opened, bases: Set[bytes]) -> Rebased | None:
        """Store the deltas of a manifest standalone that lie on any of these chunks.

        Args:
            alone: The manifest, opened without what it lies on.
            bases: Digests of chunks.

        Returns:
            ``None`` where it has no such deltas.
        """
        check_features(self._home.config, "write", self._home.blobs.url)
        since_s = running_s()
        costs = ReadCosts(alone.content.table, alone.manifest)
        deltas = [place for place in costs.deltas if not bases.isdisjoint(place.bases)]
        return self._replace(alone, costs, deltas, since_s) if deltas else None

    def sweep(
        self,
        heads: Heads,
        stop: Callable[[], bool] = lambda: False,
        allowance: Allowance = UNLIMITED,
    ) -> dict[str, Rebased]:
        """Rebase the versions that cost more than ``COSTS`` to read as a whole; return by name.

        An agent calls this now and then on one object, which remembers what it looked at, so that
        each version and variant is looked at once. One that cannot be read is left to ``check``.

        Args:
            heads: Where the logs of the store end: no other version is looked for.
            stop: Asked before each version; ``True`` ends the sweep.
            allowance: How much may be written. Where it ends a version is rebased in part, and the
                next sweep goes on with it.
        """
        done = {}
        for log, seq, model, variant in self._new(heads):
            if stop():
                break
            try:
                version = version_of(model, log.entry(seq), variant=variant or None)
                if self._may_be_rebased(version, heads) and self._is_expensive(version):
                    rebased, is_cut = self._rebase(version, COSTS, allowance.left_bytes())
                    if rebased.chunks:
                        done[str(version)] = rebased
                        allowance.add(rebased.stored_bytes)
                    if is_cut:
                        break
            except (Damaged, NotFound, UnsupportedFormat) as error:
                _log.warning("entry %d of %s is not rebased: %s", seq, log.title, error)
            self._looked_at[model, variant] = seq
        return done

    def _may_be_rebased(self, version: Version, heads: Heads) -> bool:
        """Return whether a version has content, and was not removed when the logs were listed."""
        last = heads.of(version.model, REMOVED_LOG).seq
        removed = self._removals.as_read(version.model, last) if last else {}
        return not version.is_release and version.number not in removed

    def _new(self, heads: Heads) -> Iterator[tuple[RefLog, int, str, str]]:
        """Yield the entries written since the last look with their logs, by log, oldest first."""
        own = ((model, "", last) for model, (last, _) in heads.versions())
        for model, variant, last in chain(own, heads.variants()):
            before = self._looked_at.get((model, variant), 0)
            if before < last.seq:
                log = self._home.log(model, VARIANTS + variant if variant else VERSION_LOG)
                for seq in range(before + 1, last.seq + 1):
                    yield log, seq, model, variant

    def _is_expensive(self, version: Version) -> bool:
        """Return whether a version costs too much to read, and is not removed by now."""
        full = self._opened(version)
        manifest, content = full.manifest, full.content
        if not len(content.table.bases):
            return False
        if ReadCosts(content.table, manifest).whole({}) <= COSTS:
            return False
        return version.number not in self._removals.of(version.model)


def _within(
    places: Sequence[ChunkPlace], costs: ReadCosts, most_bytes: float
) -> Sequence[ChunkPlace]:
    """Return the dearest of these chunks that are stored in at most so many bytes, in order."""
    chosen = set()
    for place in sorted(places, key=costs.ratio, reverse=True):
        most_bytes -= place.plain_bytes + place.plain_bytes // _PER_BLOCKS + _FRAME_BYTES
        if most_bytes < 0:
            break
        chosen.add(place.digest)
    return [place for place in places if place.digest in chosen]


class _Work:
    """One rebase: stores chunks of a version standalone, and leads its readers to them.

    The moves come before the layout, and lead both ways. What a live layout leads to is live, so
    that the new packs are kept before the new layout names them. And should this be paused until
    the version was removed and its new packs were collected, then the layout that it writes, over
    one that somebody relies on again, still leads to the old packs.
    """

    def __init__(self, home: Home, lease: WriterLease, full: Opened, since_s: float) -> None:
        self._home, self._lease = home, lease
        self._digest, self._manifest = full.digest, full.manifest
        self._content = full.content.verified()
        self._pool = BufferPool(full.manifest.chunk_size)
        self._unfit: set[bytes] = set()
        self._since_s = since_s
        self._healing = Healing(home, self._unfit)
        self.packer = Packer(home.packs, self._pool)
        self.places: dict[bytes, ChunkPlace] = {}
        """Where the chunks that were stored standalone lie, by digest."""

    def close(self) -> None:
        """Stop; what is not uploaded is dropped."""
        self.packer.close()

    def run(self, expensive: Sequence[ChunkPlace]) -> int:
        """Store these chunks standalone; return the bytes of the layout that was written."""
        self._store(expensive)
        self._lead_back(expensive)
        self._lease.renew()
        if gone_packs(self._home, self.packer.pack_sizes):
            raise BackendError(
                f"packs that were just written for version b3:{self._digest.hex} disappeared while "
                "it was rebased; nothing was changed. Run 'tierstore check', then try again"
            )
        places = self._new_places()
        table = self._content.table
        sizes = dict(zip(table.pack_ids, table.pack_sizes, strict=True)) | self.packer.pack_sizes
        used = {place.pack: sizes[place.pack] for place in places}
        sealed = seal_layout(self._digest, places, used)
        self._home.blobs.put(layout_key(self._digest), sealed)
        self._settle(places)
        return len(sealed)

    def _store(self, chunks: Sequence[ChunkPlace]) -> None:
        """Store chunks standalone, and write the moves from where they lie."""
        old = self._content.table
        for place, dtype in _with_dtypes(chunks, self._manifest):
            buffer = self._pool.take()
            plain = memoryview(buffer)[: place.plain_bytes]
            self._content.reader.read([Want(old.find(place.digest) or place, plain)])
            self.packer.add_chunk(buffer, plain, hashed=hash_plain(plain), dtype=dtype)
            self._lease.keep()
        self.packer.finish()
        into: dict[bytes, set[bytes]] = {}
        for place in chunks:
            now = self.places[place.digest] = self.packer.places[place.digest]
            into.setdefault(place.pack, set()).add(now.pack)
        for pack, packs in into.items():
            self._healing.move(pack, packs)

    def _lead_back(self, chunks: Sequence[ChunkPlace]) -> None:
        """Write moves from the new packs to where the chunks, and their bases, lay until now."""
        table = self._content.table
        old: dict[bytes, set[bytes]] = {}
        for place in chunks:
            bases = [below.pack for base in place.bases if (below := table.find(base))]
            old.setdefault(self.places[place.digest].pack, set()).update([place.pack, *bases])
        for pack, packs in old.items():
            self._healing.move(pack, packs)

    def _new_places(self) -> list[ChunkPlace]:
        """Return the places of the new layout: of the version's chunks, and of their bases."""
        table = self._content.table
        places: dict[bytes, ChunkPlace] = {}
        for chunk in chunks_of(self._manifest):
            place = self.places.get(chunk) or table.find(chunk)
            assert place is not None  # loading checked that the layout holds every chunk
            places[chunk] = place
        for place in list(places.values()):
            for base in place.bases:
                below = self.places.get(base) or table.find(base)
                assert below is not None
                places.setdefault(base, below)
        return list(places.values())

    def _settle(self, places: Sequence[ChunkPlace]) -> None:
        """Store anew what lies in packs that were given up until the layout was there."""
        for _ in range(_ROUNDS):
            relied_on = {*(place.pack for place in places), *self._healing.leads_to} - self._unfit
            lost = lost_since(self._home, relied_on, self._since_s)
            if not lost:
                return
            self._unfit |= lost
            now = [self.places.get(place.digest, place) for place in places]
            self._store([place for place in now if place.pack in lost])
        raise BackendError(
            f"packs of version b3:{self._digest.hex} keep being condemned while it is rebased; run "
            "'tierstore check'"
        )


def _with_dtypes(
    places: Sequence[ChunkPlace], manifest: Manifest
) -> Iterator[tuple[ChunkPlace, str]]:
    dtypes: dict[bytes, str] = {}
    for file in manifest.files:
        for tensor in file.tensors:
            for chunk in split_digests(tensor.chunks):
                dtypes.setdefault(chunk, tensor.dtype)
    return ((place, dtypes.get(place.digest, "")) for place in places)


def _publish(home: Home, index: ChunkIndex, packer: Packer) -> int:
    places = list(packer.places.values())
    written = write_segment(home.blobs, places, packer.pack_sizes)
    if written is None:
        return 0
    key, size = written
    index.add(key, places, packer.pack_sizes)
    return size
