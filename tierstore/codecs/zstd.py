"""The zstd codec, for bytes that are no tensor; and the zstd frames of single planes.

Compressors and decompressors are not thread-safe and cost time to make: each thread keeps its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import zstandard

from tierstore.codecs.base import EncodedBlocks, WordType, block_bounds, lay_blocks
from tierstore.errors import Damaged

_local = threading.local()


def _level_1() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=1)


def _level_3() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=3)


def _entropy() -> zstandard.ZstdCompressor:
    """Make a compressor of nearly no LZ matches.

    On an exponent plane they cost bytes (ratio .331; .364 at level 1) and time.
    """
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
    """Return a frame of level 3, for bytes that are no tensor."""
    return _compress(_level_3, plain)


def compress_sparse(plane: bytes | memoryview, capacity: int) -> bytes:
    """Return a frame of level 1, for sparse planes; empty when above ``capacity`` bytes."""
    frame = _compress(_level_1, plane)
    return frame if len(frame) <= capacity else b""


def compress_entropy(plane: bytes | memoryview, capacity: int) -> bytes:
    """Return a frame of entropy coding alone; empty when above ``capacity`` bytes."""
    frame = _compress(_entropy, plane)
    return frame if len(frame) <= capacity else b""


def decompress(frame: bytes | memoryview, plain_bytes: int) -> bytes:
    """Decompress one frame that declares ``plain_bytes`` bytes; ``Damaged`` when it is not so."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        # The declared length decides what is allocated, so it is checked first.
        declared = zstandard.frame_content_size(frame)
        if declared != plain_bytes:
            raise Damaged(
                f"a zstd frame declares {declared} bytes where {plain_bytes} are expected"
            )
        plain = decompressor.decompress(frame, allow_extra_data=False) if plain_bytes else b""
    except zstandard.ZstdError as error:
        raise Damaged(f"a zstd frame is not well formed: {error}") from error
    if len(plain) != plain_bytes:
        raise Damaged(f"a zstd frame holds {len(plain)} bytes where {plain_bytes} are expected")
    return plain


def encode(
    plain: memoryview,
    word_type: WordType,
    base: memoryview | None,
    out: memoryview,
    block_size: int,
) -> EncodedBlocks | None:
    """Compress each block into a frame; ``word_type`` and ``base`` are not used.

    Returns:
        ``None`` when the frames do not fit into ``out``.
    """
    starts = range(0, plain.nbytes, block_size)
    return lay_blocks((compress_block(plain[at : at + block_size]) for at in starts), out)


def decode(
    head: bytes,
    ends: Sequence[int],
    payload: memoryview,
    base: memoryview | None,
    out: memoryview,
    word_type: WordType,
    block_size: int,
) -> None:
    """Decompress each block's frame into ``out``; ``base`` and ``word_type`` are not used.

    Raises:
        Damaged: There is a head, or a frame is not well formed or has another length.
    """
    bounds = block_bounds(ends, payload.nbytes, out.nbytes, block_size)
    if head:
        raise Damaged(f"a zstd chunk has no head, but there are {len(head)} bytes of it")
    for index, start in enumerate(range(0, out.nbytes, block_size)):
        block = out[start : start + block_size]
        block[:] = decompress(payload[bounds[index] : bounds[index + 1]], block.nbytes)
