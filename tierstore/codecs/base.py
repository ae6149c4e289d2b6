"""Common to all codecs: limits, the encoded form of a chunk, and the words of each dtype."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tierstore.errors import Damaged, UsageError
from tierstore.ids import Buffer

EncodedBlocks: TypeAlias = tuple[bytes, tuple[int, ...], int]
"""The codec head, where each block ends in the payload, and the bytes of the payload."""

MAX_CHUNK = 1 << 24
MAX_HEAD = 1 << 15
MIN_BLOCK = 1 << 6


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """One encoded chunk.

    Attributes:
        codec: The id of the codec, a key of ``CODECS``.
        head: Data that all blocks share (at most 32 KiB).
        ends: For each block, where it ends in ``payload``, in bytes.
        payload: A view of the buffer that ``encode`` was given or made; for ``RAW`` a view of the
            plain bytes themselves.
    """

    codec: int
    head: bytes
    ends: tuple[int, ...]
    payload: Buffer


@dataclass(frozen=True, slots=True)
class WordType:
    """The words that a dtype's bytes are taken apart into: their size, and whether floats."""

    word_bytes: int
    is_float: bool

    @property
    def rotates(self) -> bool:
        """Whether words are rotated left by one so that the exponent fills their top byte."""
        return self.is_float and self.word_bytes > 1


WORD_TYPES = {
    **{name: WordType(1, False) for name in ("BOOL", "U8", "I8", "F8_E8M0")},
    **{name: WordType(1, True) for name in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")},
    **{name: WordType(2, False) for name in ("U16", "I16")},
    **{name: WordType(2, True) for name in ("F16", "BF16")},
    **{name: WordType(4, False) for name in ("U32", "I32")},
    **{name: WordType(4, True) for name in ("F32", "C64")},
    **{name: WordType(8, False) for name in ("U64", "I64")},
    "F64": WordType(8, True),
}
"""The dtypes that the codecs by words know; every other one is compressed by zstd."""

BYTES = WordType(1, False)
"""The words of data that no dtype of ``WORD_TYPES`` describes."""


def lay_blocks(payloads: Iterable[bytes], out: memoryview) -> EncodedBlocks | None:
    """Lay the payloads of a chunk's blocks end to end in ``out``; they share no head.

    Returns:
        ``None`` when they do not fit.
    """
    ends: list[int] = []
    payload_bytes = 0
    for payload in payloads:
        if payload_bytes + len(payload) > out.nbytes:
            return None
        out[payload_bytes : payload_bytes + len(payload)] = payload
        payload_bytes += len(payload)
        ends.append(payload_bytes)
    return b"", tuple(ends), payload_bytes


def flat(data: Buffer) -> memoryview:
    """Return the bytes of any contiguous buffer as one flat view, without a copy."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise UsageError(
            "a codec takes contiguous bytes; copy the array into a contiguous one first"
        )
    if not view.nbytes:  # cast() refuses shapes that hold a zero
        return memoryview(bytearray())
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def check_sizes(plain_bytes: int, block_size: int, base: memoryview | None) -> None:
    """Raise ``UsageError`` unless the caller's sizes are within the format's limits."""
    if plain_bytes > MAX_CHUNK:
        raise UsageError(
            f"a chunk has at most {MAX_CHUNK} bytes, not {plain_bytes}; cut it smaller"
        )
    if block_size & (block_size - 1) or not MIN_BLOCK <= block_size <= MAX_CHUNK:
        raise UsageError(
            f"block_size must be a power of two from {MIN_BLOCK} to {MAX_CHUNK}, not {block_size}"
        )
    if base is not None and base.nbytes != plain_bytes:
        raise UsageError(
            f"the base has {base.nbytes} bytes, its chunk {plain_bytes}; they must be equal"
        )


def block_bounds(
    ends: Sequence[int], payload_bytes: int, plain_bytes: int, block_size: int
) -> list[int]:
    """Return ``[0, *ends]``; raise ``Damaged`` unless these bounds cover the payload exactly."""
    bounds = [0, *ends]
    if len(ends) != -(-plain_bytes // block_size):
        raise Damaged(f"{len(ends)} block ends for {plain_bytes} bytes in blocks of {block_size}")
    if bounds[-1] != payload_bytes or any(a > b for a, b in zip(bounds, ends, strict=False)):
        raise Damaged(f"the block ends do not cover the payload of {payload_bytes} bytes")
    return bounds
