"""Lossless codecs: from the plain bytes of a chunk to an encoded payload and back.

The codecs know the dtype of the bytes, and work for any bytes. Their payloads are specified in
tierstore/format/SPEC-codecs.md. Everything here may be called from any thread.
"""

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
    "decode",
    "decode_block",
    "encode",
    "native_info",
    "use_native",
]
