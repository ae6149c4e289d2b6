"""The choice between the native kernels, where they were built, and numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tierstore.codecs import planes, zstd
from tierstore.codecs.base import EncodedBlocks, WordType
from tierstore.codecs.choice import choice
from tierstore.errors import Damaged

_PLAIN, _ROTATE, _DELTA_INT, _DELTA_FLOAT = range(4)

try:
    _kernels: Any = import_module("tierstore.codecs._native")
except ImportError:  # not built: no compiler when tierstore was installed
    _kernels = None


@dataclass(frozen=True, slots=True)
class NativeInfo:
    """The state of the native kernels.

    Attributes:
        built: Whether the extension was built.
        in_use: Whether it does the work.
        instructions: The instructions that it uses on this processor (``avx512``, ``avx2`` or
            ``generic``); ``None`` when it was not built.
    """

    built: bool
    in_use: bool
    instructions: str | None


def native_info() -> NativeInfo:
    """Return the state of the native kernels, as ``tierstore doctor`` shows it."""
    return NativeInfo(_kernels is not None, _in_use(), _kernels.isa() if _kernels else None)


def use_native(flag: bool) -> bool:
    """Choose the native kernels or numpy for the whole process.

    Returns:
        Whether the native kernels are in use now: never when they were not built.
    """
    choice.wanted = flag
    return _in_use()


def _in_use() -> bool:
    return choice.wanted and _kernels is not None


def _mapping(word_type: WordType, base: memoryview | None) -> int:
    if base is not None:
        return _DELTA_FLOAT if word_type.is_float else _DELTA_INT
    return _ROTATE if word_type.rotates else _PLAIN


def encode_planes(
    plain: memoryview,
    word_type: WordType,
    base: memoryview | None,
    out: memoryview,
    block_size: int,
) -> EncodedBlocks | None:
    """Encode planes, or their differences from ``base``; ``None`` if they do not fit in ``out``."""
    if not _in_use():
        return planes.encode(plain, word_type, base, out, block_size)
    encode: Callable[..., EncodedBlocks | None] = _kernels.encode
    mapping = _mapping(word_type, base)
    return encode(plain, base, out, word_type.word_bytes, mapping, block_size, zstd.compress_sparse)


def decode_planes(
    head: bytes,
    ends: Sequence[int],
    payload: memoryview,
    base: memoryview | None,
    out: memoryview,
    word_type: WordType,
    block_size: int,
) -> None:
    """Decode what ``encode_planes`` made into exactly ``out``; ``Damaged`` when it does not fit."""
    if not _in_use():
        planes.decode(head, ends, payload, base, out, word_type, block_size)
        return
    mapping = _mapping(word_type, base)
    try:
        _kernels.decode(
            head,
            tuple(map(int, ends)),
            payload,
            base,
            out,
            word_type.word_bytes,
            mapping,
            block_size,
            zstd.decompress,
        )
    except _kernels.Damage as error:
        raise Damaged(str(error)) from None
