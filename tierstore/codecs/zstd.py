"""Zstandard frames: whole blocks of bytes that are no tensor, and single planes of the plane
codecs.

Compressors and decompressors are not thread-safe and cost time to make: each thread keeps its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import zstandard

from tierstore.errors import Damaged

_local = threading.local()


def _level_1() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=1)


def _level_3() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=3)


def _entropy() -> zstandard.ZstdCompressor:
    """Nearly no LZ matches: on an exponent plane they cost bytes (.331, level 1 .364) and time."""
    parameters = zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST,
        min_match=7,
        hash_log=6,
        window_log=17,
        chain_log=6,
        search_log=1,
        target_length=0,
        write_content_size=True,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def _compress(make: Callable[[], zstandard.ZstdCompressor], plain: bytes | memoryview) -> bytes:
    compressor: zstandard.ZstdCompressor | None = getattr(_local, make.__name__, None)
    if compressor is None:
        compressor = make()
        setattr(_local, make.__name__, compressor)
    return compressor.compress(plain)


def compress_block(plain: memoryview) -> bytes:
    """A frame of level 3, for bytes that are no tensor."""
    return _compress(_level_3, plain)


def compress_sparse(plane: bytes | memoryview, capacity: int) -> bytes:
    """A frame of level 1, for planes of one dominant symbol; empty above ``capacity`` bytes."""
    frame = _compress(_level_1, plane)
    return frame if len(frame) <= capacity else b""


def compress_entropy(plane: bytes | memoryview, capacity: int) -> bytes:
    """A frame of entropy coding alone; empty when above ``capacity`` bytes."""
    frame = _compress(_entropy, plane)
    return frame if len(frame) <= capacity else b""


def decompress(frame: bytes | memoryview, length: int) -> bytes:
    """Exactly ``length`` bytes out of one frame that declares them; ``Damaged`` otherwise."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        # The declared length decides what is allocated, so it is checked first.
        declared = zstandard.frame_content_size(frame)
        if declared != length:
            raise Damaged(f"a zstd frame declares {declared} bytes where {length} are expected")
        plain = decompressor.decompress(frame, allow_extra_data=False) if length else b""
    except zstandard.ZstdError as error:
        raise Damaged(f"a zstd frame is not well formed: {error}") from error
    if len(plain) != length:
        raise Damaged(f"a zstd frame holds {len(plain)} bytes where {length} are expected")
    return plain
