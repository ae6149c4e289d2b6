"""Reads the footers of packs, which list the chunks that a pack holds."""

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
    """Read and verify the trailer and the index of one pack.

    Args:
        store: The tier that has the pack.
        key: Key of the pack.
        size: Size of the pack in bytes.

    Raises:
        Damaged: The pack is too short, or its footer is not what it should be.
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
    """Return the place of every chunk, from the footers of all packs, and the packs' sizes.

    A missing layout is rebuilt from this. It reads three small ranges of each pack; packs whose
    footer cannot be read are logged and skipped.
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
