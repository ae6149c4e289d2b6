"""Lossless codecs: from the plain bytes of a chunk to an encoded payload and back.

The codecs know the dtype of the bytes, and work for any bytes. Their payloads are specified in
tierstore/format/SPEC-codecs.md. Everything here may be called from any thread.

Names are imported when they are first used: who opens a store to look at names decodes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore.codecs.base import EncodedChunk
    from tierstore.codecs.chunk import decode, decode_block, encode
    from tierstore.codecs.native import NativeInfo, native_info, use_native
    from tierstore.codecs.registry import CODECS, DELTA, PLANES, RAW, ZSTD

__all__ = [
    "CODECS",
    "DELTA",
    "PLANES",
    "RAW",
    "ZSTD",
    "EncodedChunk",
    "NativeInfo",
    "base",
    "choice",
    "decode",
    "decode_block",
    "encode",
    "native_info",
    "use_native",
]

_HOMES = {
    **dict.fromkeys(("CODECS", "DELTA", "PLANES", "RAW", "ZSTD"), "registry"),
    **dict.fromkeys(("NativeInfo", "native_info", "use_native"), "native"),
    **dict.fromkeys(("decode", "decode_block", "encode"), "chunk"),
    "EncodedChunk": "base",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tierstore.codecs' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"tierstore.codecs.{_HOMES[name]}"), name)
    return value
