"""Frames built where they are encoded: buffers are reused, and big payloads are never copied.

Fresh memory costs a page fault every 4 KiB and joining bytes holds the interpreter lock; both cost
more than the checksums do.
"""

from __future__ import annotations

from dataclasses import dataclass

from tierstore.codecs import DELTA, RAW, encode
from tierstore.format.frame import MAX_HEAD_NO_BASES, BasePiece, build_head

HEAD_ROOM = -(-MAX_HEAD_NO_BASES // 4096) * 4096
"""Bytes before the chunk in every pooled buffer, so that the head fits right before its payload."""


class BufferPool:
    """Buffers for chunks of ``chunk_size`` bytes behind ``HEAD_ROOM``; the last one given back,
    which the processor's caches may still hold, is taken first. Thread-safe.
    """

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        """A buffer with anything in it."""
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(HEAD_ROOM + self.chunk_size)

    def give(self, buffer: bytearray) -> None:
        """Give a buffer back; nobody may use it any more."""
        self._free.append(buffer)


@dataclass(frozen=True, slots=True)
class Base:
    """What a chunk can be a delta against.

    Attributes:
        pieces: of standalone chunks, which end to end are as long as the chunk.
        data: their plain bytes.
    """

    pieces: tuple[BasePiece, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class Frame:
    """One encoded chunk; ``buffer`` goes back to the pool once ``data`` was written.

    ``bases`` are the digests of the chunks that a delta refers to.
    """

    data: memoryview
    head: int
    plain: int
    codec: int
    buffer: bytearray | None
    bases: tuple[bytes, ...] = ()


def plain_view(buffer: bytearray, length: int) -> memoryview:
    """Where a chunk of ``length`` bytes lies in a pooled buffer."""
    return memoryview(buffer)[HEAD_ROOM : HEAD_ROOM + length]


def frame_chunk(
    pool: BufferPool,
    plain: memoryview,
    *,
    digest: bytes,
    dtype: str,
    buffer: bytearray | None,
    base: Base | None = None,
) -> Frame:
    """Encode one chunk; with a ``base`` as a delta, where that is smaller.

    Args:
        pool: of the buffer, and for the one to encode into.
        plain: the chunk.
        digest: of ``plain``.
        dtype: safetensors dtype, or ``""``.
        buffer: the pooled buffer whose ``plain_view`` is ``plain``: it is taken over, and becomes
            the frame's or is given back. ``None`` when others use it, too.
        base: what the chunk may refer to.
    """
    room = pool.take()
    encoded = encode(
        plain, dtype, base=base.data if base else None, out=plain_view(room, len(plain))
    )
    pieces = base.pieces if base and encoded.codec == DELTA else ()
    head = build_head(
        digest=digest, codec=encoded.codec, dtype=dtype, plain=plain, codec_head=encoded.head,
        ends=encoded.ends, payload=encoded.payload, bases=pieces,
    )  # fmt: skip
    # a raw payload is the plain bytes where they are
    holder, spare = (buffer, room) if encoded.codec == RAW else (room, buffer)
    length = len(head) + len(encoded.payload)
    if holder is not None and 8 * length >= 5 * pool.chunk_size and len(head) <= HEAD_ROOM:
        start = HEAD_ROOM - len(head)
        holder[start:HEAD_ROOM] = head
        data = memoryview(holder)[start : start + length]
    else:
        # a small frame must not keep a big buffer: packs wait for their upload with all frames
        data = memoryview(b"".join([head, encoded.payload]))
        if holder is not None:
            pool.give(holder)
        holder = None
    if spare is not None:
        pool.give(spare)
    bases = tuple(dict.fromkeys(piece.digest for piece in pieces))
    return Frame(data, len(head), len(plain), encoded.codec, holder, bases)
