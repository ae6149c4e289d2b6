"""Frames built where they are encoded: buffers are reused, and big payloads are never copied.

Fresh memory costs a page fault every 4 KiB and joining bytes holds the interpreter lock; both cost
more than the checksums do.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from tierstore.codecs import DELTA, RAW, encode
from tierstore.format.frame import BasePiece, build_head
from tierstore.ids import Buffer

_IN_FLIGHT = 192 << 20
"""Bytes for chunks that are read, encoded and waiting; two packs, in buffers of up to 128 MiB
each, come on top."""


def encoders(chunk_size: int, *, deltas: bool) -> int:
    """How many threads may encode at once.

    Each has two chunks in flight, the caller's thread two more, and each of these is a buffer and
    one to encode into; a delta needs a base as it was read and one put together.
    """
    return max(1, (_IN_FLIGHT // chunk_size - 4) // (6 if deltas else 4))


class BufferPool:
    """Buffers for chunks of ``chunk_size`` bytes; the last one given back, which the processor's
    caches may still hold, is taken first. Thread-safe.
    """

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._free: list[mmap.mmap] = []

    def take(self) -> mmap.mmap:
        """A buffer with anything in it."""
        try:
            return self._free.pop()
        except IndexError:  # unlike a bytearray, it is not filled with zeros first
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return mmap.mmap(-1, self.chunk_size, flags=flags)

    def give(self, buffer: mmap.mmap) -> None:
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


@dataclass(slots=True)
class Frame:
    """One encoded chunk: its head, and the payload that follows.

    ``bases`` are the digests of the chunks that a delta refers to.
    """

    head: bytes
    payload: Buffer
    plain: int
    codec: int
    bases: tuple[bytes, ...] = ()


class Framing:
    """Frames of chunks that were read into one pooled buffer, and that fit into another.

    Payloads lie end to end in that second buffer; a raw one is the plain bytes where they are.

    Args:
        pool: of the buffers.
        source: taken over; the chunks are views of it.
    """

    def __init__(self, pool: BufferPool, source: mmap.mmap) -> None:
        self._pool, self._source = pool, source
        self._room = pool.take()
        self._used = self._raw = 0
        self._frames: list[Frame] = []

    def add(
        self, plain: memoryview, *, digest: bytes, dtype: str, base: Base | None = None
    ) -> Frame:
        """Encode one chunk; with a ``base`` as a delta, where that is smaller.

        Args:
            plain: the chunk.
            digest: of ``plain``.
            dtype: safetensors dtype, or ``""``.
            base: what the chunk may refer to.
        """
        out = memoryview(self._room)[self._used : self._used + len(plain)]
        encoded = encode(plain, dtype, base=base.data if base else None, out=out)
        pieces = base.pieces if base and encoded.codec == DELTA else ()
        head = build_head(
            digest=digest, codec=encoded.codec, dtype=dtype, plain=plain, codec_head=encoded.head,
            ends=encoded.ends, payload=encoded.payload, bases=pieces,
        )  # fmt: skip
        if encoded.codec == RAW:
            self._raw += len(encoded.payload)
        else:
            self._used += len(encoded.payload)
        bases = tuple(dict.fromkeys(piece.digest for piece in pieces))
        frame = Frame(head, encoded.payload, len(plain), encoded.codec, bases)
        self._frames.append(frame)
        return frame

    def finish(self) -> list[mmap.mmap]:
        """The buffers to give back once the frames were written; the others are given back now.

        Few bytes must not keep a big buffer: packs wait for their upload with all their frames.
        They are copied out of it, and their frames change.
        """
        held = []
        for buffer, used, raw in (
            (self._room, self._used, False),
            (self._source, self._raw, True),
        ):
            if 2 * used >= self._pool.chunk_size:
                held.append(buffer)
                continue
            for frame in self._frames:
                if (frame.codec == RAW) == raw:
                    frame.payload = bytes(frame.payload)
            self._pool.give(buffer)
        return held
