"""Chunks of every kind that the codecs' tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ml_dtypes
import numpy as np

from tierstore.codecs import EncodedChunk, decode, encode, native_info, use_native
from tierstore.codecs.base import WORD_TYPES

DTYPES = [*WORD_TYPES, "", "F4", "F6_E2M3"]
BLOCK = 1 << 12

FLOATS = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}


@contextmanager
def kernels(native: bool) -> Iterator[None]:
    """Run with the native kernels, or with numpy."""
    before = native_info().in_use
    assert use_native(native) == native, (
        "the native kernels are not built: pip install -e . needs a C compiler"
    )
    try:
        yield
    finally:
        use_native(before)


def weights(dtype: str, count: int, seed: int = 0, scale: float = 0.04) -> bytes:
    """``count`` normally distributed weights of a dtype."""
    values = np.random.default_rng(seed).normal(0, scale, count)
    if dtype in FLOATS:
        return values.astype(FLOATS[dtype]).tobytes()
    word = WORD_TYPES[dtype].word_bytes if dtype in WORD_TYPES else 1
    return (values * 1000).astype(np.int64).astype(f"<i{word}").tobytes()


def tuned(plain: bytes, dtype: str, seed: int = 1) -> bytes:
    """What a little fine-tuning makes of a chunk: the low bits of some words differ."""
    word = WORD_TYPES[dtype].word_bytes
    words = np.frombuffer(plain[: len(plain) // word * word], f"<u{word}")
    steps = np.random.default_rng(seed).integers(0, 3, words.size).astype(words.dtype)
    return (words ^ steps).tobytes() + plain[words.size * word :]


def back(
    encoded: EncodedChunk,
    dtype: str,
    length: int,
    base: bytes | None = None,
    block_size: int = BLOCK,
) -> bytes:
    """The plain bytes of an encoded chunk."""
    out = bytearray(length)
    e = encoded
    decode(
        e.codec, e.head, e.ends, e.payload, memoryview(out), dtype, block_size=block_size, base=base
    )
    return bytes(out)


def stored(
    plain: bytes, dtype: str, base: bytes | None = None, block_size: int = BLOCK
) -> EncodedChunk:
    """``encode``, with what must hold for every result."""
    kept = bytes(plain)
    encoded = encode(plain, dtype, block_size=block_size, base=base)
    assert plain == kept, "encode changed its input"
    assert len(encoded.ends) == -(-len(plain) // block_size)
    assert list(encoded.ends) == sorted(encoded.ends)
    assert (encoded.ends[-1] if encoded.ends else 0) == len(encoded.payload)
    assert len(encoded.payload) + len(encoded.head) <= len(plain)
    assert len(encoded.head) <= 1 << 15
    return encoded
