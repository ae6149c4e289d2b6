"""Frames: one encoded chunk with all that is needed to decode it (SPEC.md section 3)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tierstore.codecs import CODECS
from tierstore.errors import UsageError
from tierstore.format.checks import damaged, unsupported, xxh3
from tierstore.format.dtypes import DTYPE_CODES, DTYPE_OF_CODE
from tierstore.ids import Buffer, ByteRange

MAX_PLAIN_BYTES = 16 << 20
MAX_CODEC_HEAD = 32 << 10
MAX_BASES = 1024
FIXED_BYTES = 80
BLOCK_LOG2 = 18

_MAGIC = b"TSFR"
_FIXED = struct.Struct("<4s4B2IQI12s2B3H32s")
_BLOCK = struct.Struct("<IQ")
_PIECE = struct.Struct("<32s2I")
_SUM = struct.Struct("<Q")
_NO_NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class BasePiece:
    """A range of a base chunk that a delta refers to: ``plain_bytes`` bytes from ``offset`` on."""

    digest: bytes
    offset: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class FrameHead:
    """The head of a frame: how the chunk is encoded, and its checksums.

    Attributes:
        digest: The digest of the chunk's plain bytes (32 bytes).
        codec: The id of the payload's codec, a key of ``tierstore.codecs.CODECS``.
        dtype: The safetensors dtype, or ``""`` for bytes that are no tensor.
        plain_bytes: The length of the decoded chunk.
        payload_bytes: The length of the payload.
        payload_xxh3: The checksum of the payload.
        block_log2: The base-2 logarithm of a block's plain bytes.
        ends: For each block, where its payload ends, counted from the payload's start.
        sums: For each block, the xxh3 of its plain bytes.
        bases: The pieces that, end to end, are the base of a delta.
        codec_head: Data of the codec that all blocks share.
        head_bytes: The length of the head, and so where the payload begins.
    """

    digest: bytes
    codec: int
    dtype: str
    plain_bytes: int
    payload_bytes: int
    payload_xxh3: int
    block_log2: int
    ends: tuple[int, ...]
    sums: tuple[int, ...]
    bases: tuple[BasePiece, ...]
    codec_head: bytes
    head_bytes: int

    @property
    def block_size(self) -> int:
        """Plain bytes of a block; the last one may be shorter."""
        return 1 << self.block_log2

    @property
    def frame_bytes(self) -> int:
        """Bytes of the whole frame."""
        return self.head_bytes + self.payload_bytes

    def block_payload(self, index: int) -> ByteRange:
        """Return the bytes of the frame in which a block's payload lies."""
        start = self.ends[index - 1] if index else 0
        return ByteRange(self.head_bytes + start, self.head_bytes + self.ends[index])

    def block_plain(self, index: int) -> ByteRange:
        """Return the plain bytes of the chunk that a block holds."""
        start = index << self.block_log2
        return ByteRange(start, min(start + self.block_size, self.plain_bytes))


def build_head(
    *,
    digest: bytes,
    codec: int,
    dtype: str,
    plain: Buffer,
    codec_head: bytes,
    ends: Sequence[int],
    payload: Buffer,
    block_log2: int = BLOCK_LOG2,
    bases: Sequence[BasePiece] = (),
) -> bytes:
    """Return the head of a frame; the payload follows right behind it.

    Args:
        digest: The digest of ``plain``.
        codec: The id of the codec that made ``payload``.
        dtype: The safetensors dtype, or ``""``.
        plain: The chunk's plain bytes, for the blocks' checksums.
        codec_head: Data of the codec that all blocks share.
        ends: For each block, where its payload ends.
        payload: The blocks' payloads end to end.
        block_log2: The base-2 logarithm of a block's plain bytes.
        bases: The base pieces of a delta.

    Raises:
        UsageError: A length is beyond the limits of a frame.
    """
    size = 1 << block_log2
    view = memoryview(plain)
    if (
        len(view) > MAX_PLAIN_BYTES
        or len(payload) > len(view)
        or len(codec_head) > MAX_CODEC_HEAD
        or len(bases) > MAX_BASES
    ):
        raise UsageError(f"a chunk of {len(view)} bytes does not fit a frame's limits")
    sums = [xxh3(view[at : at + size]) for at in range(0, len(view), size)]
    before = (_MAGIC, 1, codec, DTYPE_CODES[dtype], 0, len(view), len(payload), xxh3(payload))
    after = (0, _NO_NONCE, block_log2, 0, len(bases), len(codec_head), 0, digest)
    parts = [
        _FIXED.pack(*before, *after),
        *(_BLOCK.pack(end, value) for end, value in zip(ends, sums, strict=True)),
        *(_PIECE.pack(piece.digest, piece.offset, piece.plain_bytes) for piece in bases),
        codec_head,
    ]
    head = b"".join(parts)
    return head + _SUM.pack(xxh3(head))


def _head_bytes(blocks: int, bases: int, codec_head: int) -> int:
    return FIXED_BYTES + _BLOCK.size * blocks + _PIECE.size * bases + codec_head + _SUM.size


def parse_frame_head(data: Buffer, name: str, digest: bytes | None = None) -> FrameHead:
    """Read the head at the start of ``data``, which may go on with the payload.

    Args:
        data: Bytes from the frame's start, the whole head at least.
        name: How messages call the frame.
        digest: The digest of the chunk that the frame must hold; ``None`` accepts any.

    Raises:
        Damaged: The head is cut short, of another chunk, or breaks its checksum, a limit or the
            format.
        UnsupportedFormat: It was written by a newer version.
    """
    if len(data) < FIXED_BYTES:
        damaged(name, f"a frame head of {len(data)} bytes is cut short")
    fields = _FIXED.unpack_from(data)
    magic, version, codec, dtype, flags, plain_bytes, payload_bytes, payload_sum = fields[:8]
    key_id, nonce, block_log2, zero1, n_base, codec_head_bytes, zero2, found = fields[8:]
    if magic != _MAGIC:
        damaged(name, "it does not begin with a frame")
    if version != 1:
        unsupported(name, f"frame version {version}")
    if not 16 <= block_log2 <= 24:
        damaged(name, f"a block size of 2^{block_log2} is out of range")
    if plain_bytes > MAX_PLAIN_BYTES or payload_bytes > plain_bytes:
        damaged(name, f"lengths {plain_bytes} and {payload_bytes} are out of range")
    if n_base > MAX_BASES or codec_head_bytes > MAX_CODEC_HEAD:
        damaged(name, "its head is longer than the format allows")
    blocks = (plain_bytes + (1 << block_log2) - 1) >> block_log2
    head_bytes = _head_bytes(blocks, n_base, codec_head_bytes)
    if len(data) < head_bytes:
        damaged(name, f"its head of {head_bytes} bytes is cut short at {len(data)}")
    view = memoryview(data)[:head_bytes]
    if _SUM.unpack_from(view, head_bytes - _SUM.size)[0] != xxh3(view[: -_SUM.size]):
        damaged(name, "the checksum of its head does not match")
    if flags or key_id:
        unsupported(name, f"frame flags {flags:#x} and key {key_id}")
    known = CODECS.get(codec)
    if known is None:
        unsupported(name, f"codec {codec}")
    if dtype not in DTYPE_OF_CODE and known.by_words:
        unsupported(name, f"dtype code {dtype}")
    if zero1 or zero2 or nonce != _NO_NONCE or (n_base > 0) != known.needs_base:
        damaged(name, "its head breaks the format")
    if digest is not None and found != digest:
        damaged(name, f"it is the frame of another chunk, b3:{found.hex()}")
    ends, sums, pieces = _parse_tables(view, blocks, n_base)
    rising = all(a <= b for a, b in itertools.pairwise(ends))
    if not rising or (ends[-1] if ends else 0) != payload_bytes:
        damaged(name, "the ends of its blocks are out of order")
    if pieces and sum(piece.plain_bytes for piece in pieces) != plain_bytes:
        damaged(name, "its base pieces do not add up to the chunk")
    sizes = (plain_bytes, payload_bytes, payload_sum, block_log2)
    codec_head = bytes(view[-_SUM.size - codec_head_bytes : -_SUM.size])
    dtype_name = DTYPE_OF_CODE.get(dtype, "")
    return FrameHead(found, codec, dtype_name, *sizes, ends, sums, pieces, codec_head, head_bytes)


def _parse_tables(
    head: memoryview, blocks: int, n_base: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[BasePiece, ...]]:
    """Return the ends and sums of the blocks, and the base pieces, of a complete head."""
    middle = FIXED_BYTES + _BLOCK.size * blocks
    table = list(_BLOCK.iter_unpack(head[FIXED_BYTES:middle]))
    pieces = _PIECE.iter_unpack(head[middle : middle + _PIECE.size * n_base])
    return (
        tuple(end for end, _ in table),
        tuple(value for _, value in table),
        tuple(BasePiece(*row) for row in pieces),
    )


def frame_payload(head: FrameHead, frame: Buffer, name: str) -> memoryview:
    """Return the payload of a whole frame after checking its length and checksum."""
    view = memoryview(frame)
    if len(view) != head.frame_bytes:
        damaged(name, f"the frame has {len(view)} bytes instead of {head.frame_bytes}")
    payload = view[head.head_bytes :]
    if xxh3(payload) != head.payload_xxh3:
        damaged(name, "the checksum of its payload does not match")
    return payload
