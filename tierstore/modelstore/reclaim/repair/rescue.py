"""Rescues chunks of packs that no tier has a good copy of (SPEC.md 10.2).

Good frames of a damaged pack are copied into a new one as they are. What is not good there is
looked for in other packs, and then in hot tiers. Moves from the damaged pack lead to what was
found; layouts stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial

from tierstore.errors import BackendError, Damaged, NotFound, OutOfSpace, UnsupportedFormat
from tierstore.format.keys import pack_key
from tierstore.format.pack import PackBuilder
from tierstore.format.proof import hash_plain
from tierstore.format.table import ChunkPlace, ChunkTable, TableBody, table_columns
from tierstore.ids import Digest
from tierstore.modelstore.chunks.copies import Copies
from tierstore.modelstore.chunks.decode import FrameDecoder
from tierstore.modelstore.chunks.pool import ReadPool
from tierstore.modelstore.chunks.reader import ChunkReader
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.confirm import gone_packs, lost_since, unfit_packs
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import write_segment
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.reclaim.holdings import read_holdings
from tierstore.modelstore.reclaim.repair.footers import read_footers
from tierstore.modelstore.reclaim.repair.wanted import (
    Wanted,
    WantedChunks,
    dtypes_of,
    read_table,
)
from tierstore.modelstore.saving.framing import BufferPool
from tierstore.modelstore.saving.healing import Healing
from tierstore.modelstore.saving.packer import Packer
from tierstore.tiers.hot.tiers import HotTiers

_log = logging.getLogger("tierstore.repair")
_ROUNDS = 5
_KEPT = 4
"""How many layouts are kept at once."""
_MAX_CHUNK_BYTES = 16 << 20
_MEMORY_BYTES = 192 << 20

_Unread = (Damaged, NotFound, BackendError, UnsupportedFormat)


@dataclass(slots=True)
class _Stored:
    """What one attempt stored, and the moves that are to lead there.

    Attributes:
        into: The packs in which chunks lie now, by the pack where their way ended.
        places: The places of the chunks in new packs.
        sizes: The bytes of all these packs.
    """

    into: dict[bytes, set[bytes]] = field(default_factory=dict)
    places: list[ChunkPlace] = field(default_factory=list)
    sizes: dict[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Missing:
    """A chunk that is not good where its way ends.

    Attributes:
        end: The pack where its way ends, from which a move may lead on.
        wanted: Who needs it.
    """

    end: bytes
    wanted: Wanted

    @property
    def digest(self) -> bytes:
        """The digest of the chunk."""
        return self.wanted.place.digest


class Rescue:
    """Rescues chunks. Not thread-safe.

    Args:
        home: The store's home.
        hot: The hot tiers of this process, which may have what no pack has any more.
        lease: The lease of a writer; ``None`` where nothing is written, and only looked.
        bad: The ids of packs that are damaged or gone.
        wanted: What versions need of these.
    """

    def __init__(
        self,
        home: Home,
        hot: HotTiers,
        lease: WriterLease | None,
        bad: set[bytes],
        wanted: WantedChunks,
    ) -> None:
        self._home, self._hot, self._lease, self._wanted = home, hot, lease, wanted
        self._unfit = set(bad)
        self._healing = Healing(home, self._unfit)
        self._readers: dict[Digest, tuple[ChunkReader, ChunkTable]] = {}
        self._dtypes: dict[Digest, dict[bytes, str]] = {}
        self._found: dict[bytes, list[tuple[ChunkPlace, int]]] = {}
        """Places of chunks in packs, and the bytes of these packs, by the chunk's digest."""

    # What a damaged pack itself has

    def from_copies(self, copies: Copies) -> tuple[int, list[Missing]]:
        """Copy the good frames of a damaged pack into a new one.

        Returns:
            The number of chunks that were copied, and those that are needed and not good there.
        """
        wanted = self._wanted.by_pack.get(copies.pack, {})
        places = {place.digest: place for place in copies.places or ()}
        places |= {digest: one.place for digest, one in wanted.items()}
        ends = self._ends(copies.pack, places.keys(), wanted)
        frames = {
            digest: frame
            for digest in ends
            if (frame := self._frame(copies, places[digest], wanted.get(digest))) is not None
        }
        if frames and self._lease is not None:
            every = [(places[digest], frame) for digest, frame in frames.items()]
            self._settle(self._lease, lambda: self._copied(every, ends))
        missing = [
            Missing(ends[digest], wanted[digest])
            for digest in ends
            if digest not in frames and digest in wanted
        ]
        return len(frames), missing

    def _ends(
        self, pack: bytes, digests: Set[bytes], wanted: Mapping[bytes, Wanted]
    ) -> dict[bytes, bytes]:
        """Return where the ways of those chunks end that no move leads to a fit pack yet.

        It is enough that one of the layouts that name the pack leads a reader there in vain.
        """
        needed = [one for one in digests if one in wanted]
        manifests = [wanted[one].manifest for one in needed]  # these have all of them
        manifests += self._wanted.named_by.get(pack, ())
        readers = map(self._reader, dict.fromkeys(manifests))
        tables = (reader[1] for reader in readers if reader is not None)
        try:
            found = self._healing.ends(pack, needed, tables)
            return found | self._healing.ends(pack, digests - wanted.keys(), ())
        except (Damaged, UnsupportedFormat) as error:
            if self._lease is not None:  # damaged since it was repaired
                raise
            _log.info("what moves lead to is seen once they and the lists are repaired: %s", error)
        return {}

    def is_good(self, copies: Copies, wanted: Wanted) -> bool:
        """Return whether a pack has a good frame of a chunk, which gives it if it is a delta."""
        return self._frame(copies, wanted.place, wanted) is not None

    def _frame(self, copies: Copies, place: ChunkPlace, wanted: Wanted | None) -> memoryview | None:
        """Return proof and frame of a chunk if they are good; of a delta that can be read."""
        frame = copies.frame(place)
        if frame is None or not place.bases:
            return frame
        # a delta whose bases nobody knows, or that cannot be decoded, is of no use
        if wanted is None or not self._decodes(wanted, frame[place.proof_bytes :]):
            return None
        return frame

    def _decodes(self, wanted: Wanted, frame: memoryview) -> bool:
        reader = self._reader(wanted.manifest)
        if reader is None:
            return False
        _, table = reader
        decoder = FrameDecoder(self._pool(table), table, 2, HotTiers())
        try:
            plain = memoryview(bytearray(wanted.place.plain_bytes))
            decoder.decode(wanted.place, frame, plain)
        except _Unread:
            return False
        return True

    def _copied(
        self, frames: Sequence[tuple[ChunkPlace, memoryview]], ends: Mapping[bytes, bytes]
    ) -> _Stored:
        stored = _Stored()
        builder = PackBuilder()
        for number, (place, frame) in enumerate(frames, 1):
            builder.copy(place, frame)
            if not builder.full and number < len(frames):
                continue
            pack, buffers, places = builder.close()
            self._home.packs.put(pack_key(pack), buffers)
            stored.places += places
            stored.sizes[pack] = sum(map(len, buffers))
            for one in places:
                stored.into.setdefault(ends[one.digest], set()).add(pack)
            builder = PackBuilder()
        return stored

    # What other packs and hot tiers have

    def unreadable_on(self, lost: Iterable[Missing]) -> list[Missing]:
        """Return the deltas, wherever they lie, that cannot be read as their bases are lost."""
        bases = {one.digest for one in lost}
        known = {(one.wanted.place.pack, one.digest) for one in lost}
        above = [one for base in bases for one in self._wanted.above.get(base, ())]
        beside = [one for every in self._wanted.by_pack.values() for one in every.values()]
        above += [one for one in beside if not bases.isdisjoint(one.place.bases)]
        found: dict[tuple[bytes, bytes], Missing] = {}
        for one in above:
            pack, digest = one.place.pack, one.place.digest
            if (pack, digest) not in known and self._read(one) is None:
                end = self._ends(pack, {digest}, {digest: one}).get(digest, pack)
                found[pack, digest] = Missing(end, one)
        return list(found.values())

    def missing_from(self, pack: bytes) -> list[Missing]:
        """Return those of the chunks of a pack that no move leads to."""
        wanted = self._wanted.by_pack.get(pack, {})
        ends = self._ends(pack, wanted.keys(), wanted)
        return [Missing(end, wanted[digest]) for digest, end in ends.items()]

    def from_elsewhere(self, missing: Sequence[Missing]) -> list[Missing]:
        """Find chunks in other packs or hot tiers, and lead readers there; return the rest."""
        if not missing:
            return []
        self._search({one.digest for one in missing})
        self._search({base for one in missing for base in self._bases_of(one.digest)})
        leads = {
            number: place.pack
            for number, one in enumerate(missing)
            if (place := self._standalone(one)) is not None
        }
        if self._lease is None:
            rest = [one for number, one in enumerate(missing) if number not in leads]
            return [one for one in rest if self._plain(one) is None]
        lost: list[Missing] = []

        def store() -> _Stored:
            stored, rest = _Stored(), []
            for number, one in enumerate(missing):
                pack = leads.get(number)
                if pack is None or pack in self._unfit:
                    rest.append(one)
                else:
                    stored.into.setdefault(one.end, set()).add(pack)
                    stored.sizes[pack] = self._size(one.digest, pack)
            lost[:] = self._store(rest, stored)
            return stored

        self._settle(self._lease, store)
        return lost

    def _search(self, digests: set[bytes]) -> None:
        """Note the places of chunks by the footers of all packs that can be read."""
        new = digests - self._found.keys()
        if not new:
            return
        self._found |= {digest: [] for digest in new}
        holdings = read_holdings(self._home.packs)
        for _, table in read_footers(self._home, holdings, sorted(holdings.every())):
            [size] = table.pack_sizes
            for place in filter(None, map(table.find, new & table.digests)):
                self._found[place.digest].append((place, size))

    def _bases_of(self, digest: bytes) -> set[bytes]:
        return {base for place, _ in self._found.get(digest, ()) for base in place.bases}

    def _standalone(self, missing: Missing) -> ChunkPlace | None:
        """Return a place in another pack, fit and verified, to which a move may lead."""
        for place, size in self._found.get(missing.digest, ()):
            if place.bases or place.pack == missing.end:
                continue
            if place.pack not in self._unfit:
                self._unfit |= unfit_packs(self._home, {place.pack: size})
            if place.pack not in self._unfit and self._plain_at(place) is not None:
                return place
        return None

    def _size(self, digest: bytes, pack: bytes) -> int:
        return next(size for place, size in self._found[digest] if place.pack == pack)

    def _store(self, missing: Sequence[Missing], stored: _Stored) -> list[Missing]:
        """Store chunks standalone in new packs; return those that cannot be read anywhere."""
        lost: list[Missing] = []
        pool = BufferPool(_MAX_CHUNK_BYTES)
        with closing(Packer(self._home.packs, pool)) as packer:
            for one in missing:
                plain = self._plain(one)
                if plain is None:
                    lost.append(one)
                elif one.digest not in packer.places:
                    buffer = pool.take()
                    view = memoryview(buffer)[: len(plain)]
                    view[:] = plain
                    packer.add_chunk(
                        buffer, view, hashed=hash_plain(view), dtype=self._dtype(one.wanted)
                    )
            packer.finish()
            for one in missing:
                if one.digest in packer.places:
                    into = packer.places[one.digest].pack
                    stored.into.setdefault(one.end, set()).add(into)
            stored.places += packer.places.values()
            stored.sizes |= packer.pack_sizes
        return lost

    def _dtype(self, wanted: Wanted) -> str:
        if wanted.manifest not in self._dtypes:
            self._dtypes[wanted.manifest] = dtypes_of(self._home, wanted.manifest)
        return self._dtypes[wanted.manifest].get(wanted.place.digest, "")

    def _plain(self, missing: Missing) -> memoryview | None:
        """Return the verified plain bytes of a chunk from wherever it can be read."""
        plain = self._read(missing.wanted)
        if plain is not None:
            return plain
        for place, _ in self._found.get(missing.digest, ()):
            if (plain := self._plain_at(place)) is not None:
                return plain
        return None

    def _read(self, wanted: Wanted) -> memoryview | None:
        """Return the plain bytes of a chunk as readers find it, hot tiers first; verified."""
        reader = self._reader(wanted.manifest)
        if reader is None:
            return None
        try:
            return reader[0].verified().chunk(wanted.place)
        except _Unread as error:
            _log.debug("chunk %s: %s", wanted.place.digest.hex(), error)
            return None

    def _plain_at(self, place: ChunkPlace) -> memoryview | None:
        """Return the plain bytes of a chunk that a pack's footer places there, if they are good."""
        bases = [self._found.get(base, ()) for base in place.bases]
        below = [next((one for one in every if not one[0].bases), None) for every in bases]
        found = [one for one in [(place, 0), *below] if one is not None]
        try:
            sizes = {one.pack: self._home.packs.size(pack_key(one.pack)) for one, _ in found}
            columns = table_columns(list(dict.fromkeys(one for one, _ in found)), sizes)
            table = ChunkTable(TableBody(**columns), f"pack {place.pack.hex()}")
            return ChunkReader(self._pool(table), table).verified().chunk(place)
        except _Unread as error:
            _log.debug("chunk %s: %s", place.digest.hex(), error)
            return None

    # Reading, and leading to what was stored

    def _reader(self, manifest: Digest) -> tuple[ChunkReader, ChunkTable] | None:
        if manifest not in self._readers:
            table = read_table(self._home, manifest)
            if table is None:
                return None
            if len(self._readers) == _KEPT:
                self._readers.clear()
            self._readers[manifest] = ChunkReader(self._pool(table), table, self._hot), table
        return self._readers[manifest]

    def _pool(self, table: ChunkTable) -> ReadPool:
        return ReadPool(
            self._home.blobs, self._home.packs, table, threads=1, memory_limit_bytes=_MEMORY_BYTES
        )

    def _settle(self, lease: WriterLease, store: Callable[[], _Stored]) -> None:
        """Store chunks and lead readers to them, until no pack that is relied on is condemned."""
        for _ in range(_ROUNDS):
            if self._is_settled(lease, store):
                return
        raise BackendError(
            f"packs that repair writes keep disappearing from {self._home.packs.url}; see that no "
            "other program deletes objects there, then repair again"
        )

    def _is_settled(self, lease: WriterLease, store: Callable[[], _Stored]) -> bool:
        """Do it once; return whether all packs that are relied on then can be."""
        since_s, blobs = running_s(), self._home.blobs
        stored = with_reserve(blobs, store)  # home is the last tier that takes them
        with_reserve(blobs, lease.renew)
        if lost := gone_packs(self._home, stored.sizes):
            self._unfit |= lost
            return False
        for end, into in stored.into.items():
            with_reserve(blobs, partial(self._healing.move, end, into))
        self._readers.clear()  # they have read the moves before
        if lost := lost_since(self._home, stored.sizes.keys(), since_s):
            self._unfit |= lost
            return False
        self._publish(stored)
        return True

    def _publish(self, stored: _Stored) -> None:
        """Let later saves find the chunks of new packs."""
        if stored.places:
            with suppress(OutOfSpace):  # they find others, or store them again
                write_segment(self._home.blobs, stored.places, stored.sizes)
