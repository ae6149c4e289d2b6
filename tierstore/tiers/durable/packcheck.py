"""Verification of a whole pack."""

from __future__ import annotations

from collections.abc import Iterable

from tierstore.codecs import decode
from tierstore.errors import Damaged
from tierstore.format.checks import damaged, digest_of
from tierstore.format.frame import FrameHead, frame_payload, parse_frame_head
from tierstore.format.keys import pack_key
from tierstore.format.pack import TRAILER_BYTES, parse_index, parse_trailer
from tierstore.format.proof import can_prove, parse_proof
from tierstore.format.table import PACK_HEADER_BYTES, ChunkPlace


def places_in(key: str, data: memoryview) -> list[ChunkPlace]:
    """Return the places of a pack's frames by its own index, having checked id and index.

    Args:
        key: The key under which the pack is stored.
        data: All bytes of the pack.

    Raises:
        Damaged: The index or the id is wrong.
        UnsupportedFormat: The pack was written by a newer version.
    """
    name = f"pack {key}"
    if len(data) < PACK_HEADER_BYTES + TRAILER_BYTES:
        raise Damaged(f"{name} is damaged: {len(data)} bytes are too few; restore it from a copy")
    trailer = parse_trailer(data[-TRAILER_BYTES:], len(data), name)
    stop = trailer.index_offset + trailer.index_bytes
    if pack_key(trailer.pack_id) != key:
        damaged(name, f"it is the pack {trailer.pack_id.hex()}")
    index = data[trailer.index_offset : stop]
    return parse_index(data[:PACK_HEADER_BYTES], index, trailer, name)


def check_pack(key: str, data: memoryview) -> None:
    """Check a pack's id, its index, and every frame.

    A standalone frame is decoded and compared with its chunk's digest; of a delta, whose base lies
    elsewhere, the checksums are compared. Proofs are verified where the native part can.

    Args:
        key: The key under which the pack is stored.
        data: All bytes of the pack.

    Raises:
        Damaged: Any of its bytes are wrong.
        UnsupportedFormat: The pack was written by a newer version and cannot be checked here.
    """
    check_frames(key, data, places_in(key, data))


def check_frames(key: str, data: memoryview, places: Iterable[ChunkPlace]) -> None:
    """Check the frames that ``places_in`` found in a pack; raises as ``check_pack`` does."""
    name = f"pack {key}"
    for place in places:
        head = check_frame(data[place.offset : place.offset + place.frame_bytes], place, name)
        if place.proof_bytes and can_prove():
            parse_proof(data[place.offset - place.proof_bytes : place.offset], head, name)


def check_frame(frame: memoryview, place: ChunkPlace, name: str) -> FrameHead:
    """Check one frame and return its head: its chunk, or of a delta its checksums alone.

    Args:
        frame: All bytes of the frame.
        place: Its place, which says what chunk it is.
        name: How messages call what it lies in.

    Raises:
        Damaged: Any of its bytes are wrong.
        UnsupportedFormat: The frame was written by a newer version.
    """
    head = parse_frame_head(frame[: place.head_bytes], name, place.digest)
    payload = frame_payload(head, frame, name)
    if not head.bases:
        _check_chunk(head, payload, name)
    return head


def _check_chunk(head: FrameHead, payload: memoryview, name: str) -> None:
    plain = memoryview(bytearray(head.plain_bytes))
    try:
        decode(
            head.codec,
            head.codec_head,
            head.ends,
            payload,
            plain,
            head.dtype,
            block_size=head.block_size,
        )
    except Damaged as error:
        damaged(name, str(error))
    if digest_of(plain).raw != head.digest:
        damaged(name, f"chunk b3:{head.digest.hex()} does not match its digest")
