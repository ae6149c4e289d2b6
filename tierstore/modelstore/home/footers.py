"""The footers of packs: what a pack holds by its own word."""

from __future__ import annotations

import logging

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import PACKS, pack_key
from tierstore.format.pack import TRAILER_BYTES, Trailer, parse_index, parse_trailer
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
    stop = trailer.index_offset + trailer.index_bytes
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
