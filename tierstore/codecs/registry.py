"""The table of codecs. A new codec is a module of its own and one row here.

The payloads are specified in tierstore/format/SPEC-codecs.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tierstore.codecs import native, raw, zstd
from tierstore.codecs.base import EncodedBlocks, WordType


class Encode(Protocol):
    """Encodes a chunk into ``out``; returns ``None`` when the payload does not fit there."""

    def __call__(
        self,
        plain: memoryview,
        word_type: WordType,
        base: memoryview | None,
        out: memoryview,
        block_size: int,
        /,
    ) -> EncodedBlocks | None: ...


class Decode(Protocol):
    """Decodes a chunk into exactly ``out``; raises ``Damaged`` when anything does not fit."""

    def __call__(
        self,
        head: bytes,
        ends: Sequence[int],
        payload: memoryview,
        base: memoryview | None,
        out: memoryview,
        word_type: WordType,
        block_size: int,
        /,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Codec:
    """One codec.

    Attributes:
        id: The number that frames store; an id is never given to another codec.
        name: The name that commands print.
        by_words: Whether it takes chunks apart into words, and so needs a dtype of ``WORD_TYPES``;
            other codecs take any bytes.
        needs_base: Whether it stores differences from the chunks that the frame names as bases.
        encode: ``None`` for raw, which is what a chunk becomes when no codec saves enough.
        decode: Its inverse.
    """

    id: int
    name: str
    by_words: bool
    needs_base: bool
    encode: Encode | None
    decode: Decode


RAW, ZSTD, PLANES, DELTA = range(4)

CODECS = {
    codec.id: codec
    for codec in (
        Codec(RAW, "raw", False, False, None, raw.decode),
        Codec(ZSTD, "zstd", False, False, zstd.encode, zstd.decode),
        Codec(PLANES, "planes", True, False, native.encode_planes, native.decode_planes),
        Codec(DELTA, "delta", True, True, native.encode_planes, native.decode_planes),
    )
}
"""Every codec by its id."""
