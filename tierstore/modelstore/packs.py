"""Reading packs: frames by place, footers, and where frames went when a pack was rewritten."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.checks import damaged
from tierstore.format.keys import PACKS, move_key, pack_key
from tierstore.format.layout import Move
from tierstore.format.pack import (
    TRAILER_BYTES,
    Trailer,
    parse_index,
    parse_trailer,
)
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.table import PACK_HEADER_BYTES, ChunkPlace
from tierstore.ids import ByteRange

_log = logging.getLogger("tierstore.packs")


def read_footer(store: BlobStore, key: str, size: int) -> tuple[Trailer, list[ChunkPlace]]:
    """Read the trailer and the index of one pack.

    Args:
        store: the tier that has the pack.
        key: of the pack.
        size: of the pack in bytes.
    """
    name = f"pack {key}"
    if size < PACK_HEADER_BYTES + TRAILER_BYTES:
        raise Damaged(f"{name} is damaged: {size} bytes are too few; restore it from a copy")
    trailer = parse_trailer(store.get(key, ByteRange(size - TRAILER_BYTES, size)), size, name)
    header = store.get(key, ByteRange(0, PACK_HEADER_BYTES))
    stop = trailer.index_offset + trailer.index_len
    index = store.get(key, ByteRange(trailer.index_offset, stop))
    places = parse_index(header, index, trailer, name)
    if pack_key(trailer.pack_id) != key:
        raise Damaged(f"{name} is damaged: it is the pack {trailer.pack_id.hex()}")
    return trailer, places


def scan_packs(store: BlobStore) -> tuple[dict[bytes, ChunkPlace], dict[bytes, int]]:
    """Where every chunk lies by the packs' own footers, and the packs' sizes.

    What a missing layout is rebuilt from; reads three small ranges a pack.
    """
    found: dict[bytes, ChunkPlace] = {}
    sizes: dict[bytes, int] = {}
    for info in store.list(PACKS):
        try:
            trailer, places = read_footer(store, info.key, info.size)
        except (Damaged, NotFound, UnsupportedFormat) as error:
            _log.warning("skipped: %s", error)  # what is wanted may lie elsewhere
            continue
        sizes[trailer.pack_id] = info.size
        for place in places:
            # a standalone frame is read alone: prefer it to a delta
            if place.digest not in found or not place.bases:
                found[place.digest] = place
    return found, sizes


class Packs:
    """Reads byte ranges of packs, following moves. Thread-safe."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._moved: dict[bytes, dict[bytes, ChunkPlace]] = {}
        self.requests = 0
        self.bytes_fetched = 0

    @property
    def local(self) -> bool:
        """Whether a read costs no network."""
        return self._store.capabilities.local

    def current(self, place: ChunkPlace) -> ChunkPlace:
        """Where the frame is now, as far as this reader knows."""
        moved = self._moved.get(place.pack)
        if moved is None:
            return place
        if place.digest not in moved:
            raise Damaged(
                f"chunk b3:{place.digest.hex()} is lost: pack {place.pack.hex()} was rewritten "
                "without it; run 'tierstore check' and save the model again from its source"
            )
        return self.current(moved[place.digest])

    def follow(self, pack: bytes) -> None:
        """Learn where the frames of a pack went that is gone; ``NotFound`` when nobody says."""
        self._follow(pack, frozenset())

    def _follow(self, pack: bytes, behind: frozenset[bytes]) -> dict[bytes, ChunkPlace]:
        key = move_key(pack)
        try:
            data = self._store.get(key)
        except NotFound:
            raise NotFound(
                f"pack {pack.hex()} is missing from {self._store.url}; run 'tierstore check' to "
                "see which versions need it, and restore it from a copy"
            ) from None
        move = unseal_body(Kind.MOVE, data, Move, key)
        places: dict[bytes, ChunkPlace] = {}
        for into in map(bytes.fromhex, move.into):
            target = pack_key(into)
            try:
                _, found = read_footer(self._store, target, self._store.info(target).size)
            except NotFound:  # moved on once more
                if into in behind or into == pack:
                    damaged(key, "the moves of its packs go round in a circle")
                places.update(self._follow(into, behind | {pack}))
            else:
                places.update((place.digest, place) for place in found)
        with self._lock:
            self._moved[pack] = places
        return places

    def read(self, pack: bytes, parts: Sequence[tuple[int, memoryview]]) -> None:
        """Fill every buffer from its offset in the pack; ``NotFound`` when the pack is gone."""
        key = pack_key(pack)
        self._store.get_ranges([RangeRead(key, start, out) for start, out in parts])
        self._count(out for _, out in parts)

    def _count(self, outs: Iterable[memoryview]) -> None:
        sizes = [len(out) for out in outs]
        with self._lock:
            self.requests += len(sizes)
            self.bytes_fetched += sum(sizes)

    def read_frame(self, place: ChunkPlace, start: int, stop: int) -> bytearray:
        """Bytes ``[start, stop)`` of one frame, wherever it is now."""
        place = self.current(place)
        out = bytearray(stop - start)
        try:
            self.read(place.pack, [(place.offset + start, memoryview(out))])
        except NotFound:
            self.follow(place.pack)
            return self.read_frame(place, start, stop)
        return out
