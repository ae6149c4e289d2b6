"""What every codec agrees on: ids, limits, the encoded form, and what a dtype means to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tierstore.errors import Damaged, UsageError
from tierstore.ids import Buffer

RAW, ZSTD, PLANES, DELTA = range(4)
"""The stable codec ids, as frames store them."""

MAX_CHUNK = 1 << 24
MAX_HEAD = 1 << 15
MIN_BLOCK = 1 << 6


@dataclass(frozen=True, slots=True)
class Encoded:
    """One chunk, encoded.

    ``codec`` is its stable id; ``head`` holds what its blocks share (at most 32 KiB); ``ends[i]``
    is where block ``i`` ends in ``payload`` (bytes). ``payload`` is a view: of the buffer that
    ``encode`` was given or made, or for ``RAW`` of the plain bytes themselves.
    """

    codec: int
    head: bytes
    ends: tuple[int, ...]
    payload: Buffer


@dataclass(frozen=True, slots=True)
class Form:
    """How the bytes of a dtype are taken apart: ``word`` bytes each, floats or not."""

    word: int
    is_float: bool

    @property
    def rotates(self) -> bool:
        """Whether words are rotated left by one so that the exponent fills their top byte."""
        return self.is_float and self.word > 1


FORMS = {
    **{name: Form(1, False) for name in ("BOOL", "U8", "I8", "F8_E8M0")},
    **{name: Form(1, True) for name in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")},
    **{name: Form(2, False) for name in ("U16", "I16")},
    **{name: Form(2, True) for name in ("F16", "BF16")},
    **{name: Form(4, False) for name in ("U32", "I32")},
    **{name: Form(4, True) for name in ("F32", "C64")},
    **{name: Form(8, False) for name in ("U64", "I64")},
    "F64": Form(8, True),
}
"""dtypes that the plane codecs know; every other one is compressed by zstd."""


def flat(data: Buffer) -> memoryview:
    """The bytes of any contiguous buffer as one flat view, without a copy."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise UsageError(
            "a codec takes contiguous bytes; copy the array into a contiguous one first"
        )
    if not view.nbytes:  # cast() refuses shapes that hold a zero
        return memoryview(bytearray())
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def check_sizes(length: int, block_size: int, base: memoryview | None) -> None:
    """``UsageError`` unless the caller's sizes are within the format's limits."""
    if length > MAX_CHUNK:
        raise UsageError(f"a chunk has at most {MAX_CHUNK} bytes, not {length}; cut it smaller")
    if block_size & (block_size - 1) or not MIN_BLOCK <= block_size <= MAX_CHUNK:
        raise UsageError(
            f"block_size must be a power of two from {MIN_BLOCK} to {MAX_CHUNK}, not {block_size}"
        )
    if base is not None and base.nbytes != length:
        raise UsageError(
            f"the base has {base.nbytes} bytes, its chunk {length}; they must be equal"
        )


def block_bounds(ends: Sequence[int], payload: int, plain: int, block_size: int) -> list[int]:
    """``[0, *ends]`` if these cover ``payload`` bytes; ``Damaged`` otherwise."""
    bounds = [0, *ends]
    if len(ends) != -(-plain // block_size):
        raise Damaged(f"{len(ends)} block ends for {plain} bytes in blocks of {block_size}")
    if bounds[-1] != payload or any(a > b for a, b in zip(bounds, ends, strict=False)):
        raise Damaged(f"the block ends do not cover the payload of {payload} bytes")
    return bounds
