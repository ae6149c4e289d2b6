"""Packs: immutable objects of many frames with an index in the footer (SPEC.md section 4)."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import blake3

from tierstore.format.checks import damaged, unsupported, xxh3
from tierstore.format.frame import parse_frame_head
from tierstore.format.proof import proof_frame
from tierstore.format.sealed import Kind, decode_body
from tierstore.format.table import (
    PACK_HEADER_BYTES,
    ChunkPlace,
    ChunkTable,
    TableBody,
    encode_table,
    table_columns,
)
from tierstore.ids import Buffer

TRAILER_BYTES = 64
TARGET_BYTES = 64 << 20
MAX_FRAME_BYTES = 128 << 20

_HEAD_MAGIC, _TAIL_MAGIC = b"TSPK", b"TSPE"
_HEADER = struct.Struct("<4s2BH16sI12s16sQ")
_TRAILER = struct.Struct("<QII32sI4sQ")
_MAX_INDEX_BYTES = 32 << 20
_TARGET_INDEX_BYTES = 16 << 20
_MAX_FRAMES = 1 << 20
_ROW_BYTES = 32 + 4 * 4 + 1 + 4 + 2  # the columns of section 6 that an index has


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last bytes of a pack: where its index is, and the id that it must have."""

    index_offset: int
    index_bytes: int
    frames: int
    pack_id: bytes


class PackBuilder:
    """Collects frames in load order and closes them into one pack."""

    def __init__(self) -> None:
        fields = (_HEAD_MAGIC, 1, 0, 0, os.urandom(16), 0, bytes(12), bytes(16), 0)
        start = _HEADER.pack(*fields)[:-8]
        self._header = start + struct.pack("<Q", xxh3(start))
        self._parts: list[Buffer] = []
        self._places: list[ChunkPlace] = []
        self._proofs: set[int] = set()
        self.size = PACK_HEADER_BYTES
        self._index_size = 0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def full(self) -> bool:
        """Whether to close the pack now: it is large enough, or its index is (many tiny frames)."""
        return self.size >= TARGET_BYTES or self._index_size >= _TARGET_INDEX_BYTES

    def add(
        self,
        digest: bytes,
        frame: Buffer | Sequence[Buffer],
        head_bytes: int,
        plain_bytes: int,
        codec: int,
        bases: tuple[bytes, ...] = (),
        proof: bytes = b"",
    ) -> None:
        """Append one frame, whole or in parts; the caller closes the pack once it is ``full``.

        ``proof`` is what ``hash_plain`` gave of the chunk; it is laid before the frame.
        """
        proof_bytes = self._add_proof(proof) if proof else 0
        parts = (frame,) if isinstance(frame, (bytes, bytearray, memoryview)) else frame
        place = (digest, b"", self.size, sum(map(len, parts)), head_bytes, plain_bytes, codec)
        self._lay(ChunkPlace(*place, bases, proof_bytes), parts)

    def copy(self, place: ChunkPlace, data: Buffer) -> None:
        """Append a frame of another pack as it is there, with the proof before it.

        Args:
            place: Its place in that pack.
            data: The bytes of the proof and the frame, which lie end to end.
        """
        view = memoryview(data)
        proof, frame = view[: place.proof_bytes], view[place.proof_bytes :]
        if proof:
            head = parse_frame_head(proof, "the frame of a proof")
            own = (head.digest, b"", self.size, len(proof), head.head_bytes)
            self._lay(ChunkPlace(*own, head.plain_bytes, head.codec), [proof])
            self._proofs.add(len(self._places) - 1)
        self._lay(replace(place, pack=b"", offset=self.size), [frame])

    def _add_proof(self, proof: bytes) -> int:
        """Append the frame of a proof and return its length; it is of no version's chunks."""
        frame = proof_frame(proof)
        head = parse_frame_head(frame, "the frame of a proof")
        place = (head.digest, b"", self.size, len(frame), head.head_bytes, len(proof), head.codec)
        self._lay(ChunkPlace(*place), [frame])
        self._proofs.add(len(self._places) - 1)
        return len(frame)

    def _lay(self, place: ChunkPlace, parts: Sequence[Buffer]) -> None:
        self._places.append(place)
        self._parts += parts
        self.size += place.frame_bytes
        self._index_size += _ROW_BYTES + 32 * len(place.bases)

    def close(self) -> tuple[bytes, list[Buffer], list[ChunkPlace]]:
        """Return the pack's id, its bytes as buffers to lay end to end, and its chunks' places.

        Frames of proofs are in the pack's index alone, and not among these places.
        """
        body = TableBody(**table_columns(self._places))
        index = encode_table(Kind.SEGMENT, body, own=True)
        pack_id = blake3.blake3(self._header).update(index).digest()
        fields = (self.size, len(index), len(self._places), pack_id, 0, _TAIL_MAGIC)
        start = _TRAILER.pack(*fields, 0)[:-8]
        trailer = start + struct.pack("<Q", xxh3(start))
        places = [
            replace(place, pack=pack_id)
            for row, place in enumerate(self._places)
            if row not in self._proofs
        ]
        return pack_id, [self._header, *self._parts, index, trailer], places


def parse_trailer(data: Buffer, pack_size: int, name: str) -> Trailer:
    """Read a pack's last ``TRAILER_BYTES`` bytes and check them against the pack's size."""
    if len(data) != TRAILER_BYTES or pack_size < PACK_HEADER_BYTES + TRAILER_BYTES:
        damaged(name, f"a pack of {pack_size} bytes is too short")
    offset, length, frames, pack_id, zero, magic, value = _TRAILER.unpack(data)
    if magic != _TAIL_MAGIC:
        damaged(name, "it does not end with a pack's trailer")
    if value != xxh3(memoryview(data)[:-8]) or zero:
        damaged(name, "the checksum of its trailer does not match")
    if offset > PACK_HEADER_BYTES + MAX_FRAME_BYTES or length > _MAX_INDEX_BYTES:
        damaged(name, "its index is out of range")
    if not 1 <= frames <= _MAX_FRAMES:
        damaged(name, f"it says that it holds {frames} frames")
    if offset < PACK_HEADER_BYTES or offset + length + TRAILER_BYTES != pack_size:
        damaged(name, f"its index does not end where the pack of {pack_size} bytes does")
    return Trailer(offset, length, frames, pack_id)


def parse_index(header: Buffer, index: Buffer, trailer: Trailer, name: str) -> list[ChunkPlace]:
    """Read a pack's index and check it against the pack's id.

    Args:
        header: The pack's first ``PACK_HEADER_BYTES`` bytes.
        index: The bytes that the trailer points to.
        trailer: The trailer of the same pack.
        name: How messages call the pack.
    """
    return list(parse_index_table(header, index, trailer, name))


def parse_index_table(header: Buffer, index: Buffer, trailer: Trailer, name: str) -> ChunkTable:
    """Read a pack's index and check it, as ``parse_index``."""
    check_header(header, name)
    if blake3.blake3(bytes(header)).update(index).digest() != trailer.pack_id:
        damaged(name, "its header and index do not give the pack's id")
    body = decode_body(Kind.SEGMENT, bytes(index), TableBody, name)
    table = ChunkTable(body, name, own=trailer.pack_id)
    is_gapless = table.lies_end_to_end(PACK_HEADER_BYTES, trailer.index_offset)
    if len(table) != trailer.frames or not is_gapless:
        damaged(name, "the frames of its index do not lie end to end")
    return table


def check_header(header: Buffer, name: str) -> None:
    """Check a pack's first ``PACK_HEADER_BYTES`` bytes."""
    if len(header) != PACK_HEADER_BYTES:
        damaged(name, "its header is cut short")
    magic, version, flags, zero, _, key_id, nonce, zeros, value = _HEADER.unpack(header)
    if magic != _HEAD_MAGIC:
        damaged(name, "it does not begin with a pack's header")
    if version != 1:
        unsupported(name, f"pack version {version}")
    if value != xxh3(memoryview(header)[:-8]):
        damaged(name, "the checksum of its header does not match")
    if flags or key_id:
        unsupported(name, f"pack flags {flags:#x} and key {key_id}")
    if zero or any(nonce) or any(zeros):
        damaged(name, "its header breaks the format")
