"""The raw codec: a chunk is stored as it is."""

from __future__ import annotations

from collections.abc import Sequence

from tierstore.codecs.base import WordType, block_bounds
from tierstore.errors import Damaged


def decode(
    head: bytes,
    ends: Sequence[int],
    payload: memoryview,
    base: memoryview | None,
    out: memoryview,
    word_type: WordType,
    block_size: int,
) -> None:
    """Copy the payload into ``out``; ``base`` and ``word_type`` are not used.

    Raises:
        Damaged: There is a head, or a block does not have its plain length.
    """
    bounds = block_bounds(ends, payload.nbytes, out.nbytes, block_size)
    if head:
        raise Damaged(f"a raw chunk has no head, but there are {len(head)} bytes of it")
    for index, start in enumerate(range(0, out.nbytes, block_size)):
        block = out[start : start + block_size]
        stored = payload[bounds[index] : bounds[index + 1]]
        if stored.nbytes != block.nbytes:
            raise Damaged(f"raw block {index} has {stored.nbytes} bytes, not {block.nbytes}")
        block[:] = stored
