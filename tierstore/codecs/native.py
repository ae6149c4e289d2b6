"""Which kernels run: the native ones where they were built, numpy otherwise or when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tierstore.codecs import planes, zstd
from tierstore.codecs.base import Form
from tierstore.errors import Damaged

_PLAIN, _ROTATE, _DELTA_INT, _DELTA_FLOAT = range(4)

try:
    _kernels: Any = import_module("tierstore.codecs._native")
except ImportError:  # not built: no compiler when tierstore was installed
    _kernels = None
_in_use = _kernels is not None


@dataclass(frozen=True, slots=True)
class NativeInfo:
    """``built``: the extension is there. ``in_use``: it does the work. ``instructions``: what it
    runs
    on this processor (avx512, avx2, generic), or None when it was not built."""

    built: bool
    in_use: bool
    instructions: str | None


def native_info() -> NativeInfo:
    """What ``tierstore doctor`` shows about the kernels."""
    return NativeInfo(_kernels is not None, _in_use, _kernels.isa() if _kernels else None)


def use_native(flag: bool) -> bool:
    """Choose the native kernels or numpy for the whole process; returns whether native is in use
    now.

    Asking for kernels that were not built leaves numpy in use.
    """
    global _in_use
    _in_use = flag and _kernels is not None
    return _in_use


def _mapping(form: Form, base: memoryview | None) -> int:
    if base is not None:
        return _DELTA_FLOAT if form.is_float else _DELTA_INT
    return _ROTATE if form.rotates else _PLAIN


def encode_planes(
    plain: memoryview, form: Form, base: memoryview | None, out: memoryview, block_size: int
) -> planes.Result | None:
    """Planes, or their differences from ``base``, into ``out``; None when they do not fit there."""
    if not _in_use:
        return planes.encode(plain, form, base, out, block_size)
    encode: Callable[..., planes.Result | None] = _kernels.encode
    mapping = _mapping(form, base)
    return encode(plain, base, out, form.word, mapping, block_size, zstd.compress_sparse)


def decode_planes(
    head: bytes,
    ends: Sequence[int],
    payload: memoryview,
    base: memoryview | None,
    out: memoryview,
    form: Form,
    block_size: int,
) -> None:
    """The inverse of ``encode_planes``, into exactly ``out``; ``Damaged`` when it does not fit."""
    if not _in_use:
        planes.decode(head, ends, payload, base, out, form, block_size)
        return
    mapping = _mapping(form, base)
    try:
        _kernels.decode(
            head,
            tuple(map(int, ends)),
            payload,
            base,
            out,
            form.word,
            mapping,
            block_size,
            zstd.decompress,
        )
    except _kernels.Damage as error:
        raise Damaged(str(error)) from None
