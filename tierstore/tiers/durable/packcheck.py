"""Verification of a whole pack."""

from __future__ import annotations

from tierstore.errors import Damaged
from tierstore.format.checks import damaged
from tierstore.format.frame import frame_payload, parse_frame_head
from tierstore.format.keys import pack_key
from tierstore.format.pack import TRAILER_BYTES, parse_index, parse_trailer
from tierstore.format.table import PACK_HEADER_BYTES


def check_pack(key: str, data: memoryview) -> None:
    """Check a pack's id, its index, and each frame's head and payload; decodes nothing.

    Args:
        key: The key under which the pack is stored.
        data: All bytes of the pack.

    Raises:
        Damaged: Any of its bytes are wrong.
        UnsupportedFormat: The pack was written by a newer version and cannot be checked here.
    """
    name = f"pack {key}"
    if len(data) < PACK_HEADER_BYTES + TRAILER_BYTES:
        raise Damaged(f"{name} is damaged: {len(data)} bytes are too few; restore it from a copy")
    trailer = parse_trailer(data[-TRAILER_BYTES:], len(data), name)
    stop = trailer.index_offset + trailer.index_bytes
    index = data[trailer.index_offset : stop]
    if pack_key(trailer.pack_id) != key:
        damaged(name, f"it is the pack {trailer.pack_id.hex()}")
    for place in parse_index(data[:PACK_HEADER_BYTES], index, trailer, name):
        frame = data[place.offset : place.offset + place.frame_bytes]
        head = parse_frame_head(frame[: place.head_bytes], name, place.digest)
        frame_payload(head, frame, name)
