"""Plain bytes of a chunk <-> encoded payload, without loss for any bytes, by what the dtype is.

Payloads are specified in tierstore/format/SPEC-codecs.md. Everything here may be called from any
thread.
"""

from tierstore.codecs.base import DELTA, PLANES, RAW, ZSTD, Encoded
from tierstore.codecs.chunk import decode, decode_block, encode
from tierstore.codecs.native import NativeInfo, native_info, use_native

__all__ = [
    "DELTA",
    "PLANES",
    "RAW",
    "ZSTD",
    "Encoded",
    "NativeInfo",
    "base",
    "decode",
    "decode_block",
    "encode",
    "native_info",
    "use_native",
]
