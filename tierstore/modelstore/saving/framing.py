"""Builds frames in reused buffers, without copying big payloads.

Fresh memory costs a page fault every 4 KiB, and joining bytes holds the interpreter lock; both cost
more than the checksums do.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from tierstore.codecs import DELTA, RAW, encode
from tierstore.format.frame import BasePiece, build_head
from tierstore.format.proof import HashedPlain
from tierstore.ids import Buffer

_IN_FLIGHT_BYTES = 192 << 20
"""Bytes for chunks that are read, encoded and waiting; two packs of up to 128 MiB come on top."""


def encoders(chunk_size: int, *, deltas: bool) -> int:
    """Return how many threads may encode at once within the memory for chunks in flight.

    Each thread has two chunks in flight and the caller's thread two more. A chunk takes a buffer
    and another to encode into; with deltas also a base as it was read and one put together.
    """
    return max(1, (_IN_FLIGHT_BYTES // chunk_size - 4) // (6 if deltas else 4))


class BufferPool:
    """Buffers for chunks of ``chunk_size`` bytes. Thread-safe.

    The last one given back is taken first: the processor's caches may still hold it.
    """

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._free: list[mmap.mmap] = []

    def take(self) -> mmap.mmap:
        """Return a buffer; its content is undefined."""
        try:
            return self._free.pop()
        except IndexError:  # unlike a bytearray, it is not filled with zeros first
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return mmap.mmap(-1, self.chunk_size, flags=flags)

    def give(self, buffer: mmap.mmap) -> None:
        """Give a buffer back; it must not be used any more."""
        self._free.append(buffer)


@dataclass(frozen=True, slots=True)
class ChunkBase:
    """The base of a delta.

    Attributes:
        pieces: Pieces of standalone chunks, end to end as long as the new chunk.
        data: The plain bytes of the pieces.
    """

    pieces: tuple[BasePiece, ...]
    data: memoryview


@dataclass(slots=True)
class Frame:
    """One encoded chunk: its head, and the payload that follows.

    ``bases`` are the digests of the chunks that a delta refers to; ``proof`` is that of the chunk.
    """

    head: bytes
    payload: Buffer
    plain_bytes: int
    codec: int
    bases: tuple[bytes, ...] = ()
    proof: bytes = b""


class Framing:
    """Frames of chunks that were read into one pooled buffer and are encoded into another.

    Payloads lie end to end in the second buffer; a raw one stays in the first.

    Args:
        pool: The pool of the buffers.
        source: The buffer that the chunks are views of; it is taken over.
    """

    def __init__(self, pool: BufferPool, source: mmap.mmap) -> None:
        self._pool, self._source = pool, source
        self._room = pool.take()
        self._used = self._raw = 0
        self._frames: list[Frame] = []

    def add(
        self, plain: memoryview, *, hashed: HashedPlain, dtype: str, base: ChunkBase | None = None
    ) -> Frame:
        """Encode one chunk, as a delta if a ``base`` is given and that is smaller.

        Args:
            plain: Plain bytes of the chunk.
            hashed: What hashing ``plain`` gave.
            dtype: Safetensors dtype; ``""`` for bytes of other files.
            base: The base that the chunk may be a delta of.
        """
        out = memoryview(self._room)[self._used : self._used + len(plain)]
        encoded = encode(plain, dtype, base=base.data if base else None, out=out)
        pieces = base.pieces if base and encoded.codec == DELTA else ()
        head = build_head(
            digest=hashed.digest,
            codec=encoded.codec,
            dtype=dtype,
            plain=plain,
            codec_head=encoded.head,
            ends=encoded.ends,
            payload=encoded.payload,
            bases=pieces,
        )
        if encoded.codec == RAW:
            self._raw += len(encoded.payload)
        else:
            self._used += len(encoded.payload)
        bases = tuple(dict.fromkeys(piece.digest for piece in pieces))
        frame = Frame(head, encoded.payload, len(plain), encoded.codec, bases, hashed.proof)
        self._frames.append(frame)
        return frame

    def finish(self) -> list[mmap.mmap]:
        """Return the buffers to give back once the frames are written.

        The others are given back now: packs wait for their upload with all their frames, and few
        bytes must not keep a big buffer. These bytes are copied out and their frames changed.
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
