"""Values that codecs trip over, and payloads written by hand from the specification."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard

from tests.unit.codec_data import back, kernels, stored
from tierstore.codecs import DELTA, PLANES, EncodedChunk
from tierstore.codecs.base import WORD_TYPES

BOTH = pytest.mark.parametrize("native", [True, False], ids=["native", "numpy"])
FLOAT_WORDS = {1: "F8_E5M2", 2: "BF16", 4: "F32", 8: "F64"}


def special_words(word: int) -> np.ndarray:
    """Zeros, infinities, quiet and signalling NaNs, denormals, extremes; both signs."""
    bits = 8 * word
    top, ones = 1 << (bits - 1), (1 << bits) - 1
    exponent = {1: 5, 2: 8, 4: 8, 8: 11}[word]
    infinity = ((1 << exponent) - 1) << (bits - 1 - exponent)
    positive = [
        0,
        1,
        2,
        infinity - 1,
        infinity,
        infinity + 1,
        ones >> 1,
        (ones >> 1) - 1,
        infinity >> 1,
    ]
    return np.array([v | s for v in positive for s in (0, top)], f"<u{word}")


@BOTH
@pytest.mark.parametrize("word", [1, 2, 4, 8])
def test_special_floats_against_each_other(word: int, native: bool) -> None:
    values = special_words(word)
    plain = np.tile(values, 4 * values.size).tobytes()
    base = np.repeat(np.tile(values, 4), values.size).tobytes()
    dtype = FLOAT_WORDS[word]
    with kernels(native):
        assert back(stored(plain, dtype), dtype, len(plain)) == plain
        encoded = stored(plain, dtype, base)
        assert back(encoded, dtype, len(plain), base) == plain
        same = stored(plain, dtype, plain)
        assert same.codec == DELTA
        assert back(same, dtype, len(plain), plain) == plain


@BOTH
def test_every_16_bit_float_against_its_neighbour(native: bool) -> None:
    """Neighbours in the order of values differ by one step, also across zero."""
    order = np.arange(1 << 16, dtype=np.uint32)
    ordered = np.where(order < 1 << 15, 0xFFFF - order, order - (1 << 15)).astype("<u2")
    plain, base = ordered.tobytes(), np.roll(ordered, 1).tobytes()
    for dtype in ("BF16", "F16"):
        with kernels(native):
            encoded = stored(plain, dtype, base)
            assert encoded.codec == DELTA
            assert len(encoded.payload) < 2000
            assert back(encoded, dtype, len(plain), base) == plain


def block(*planes: tuple[int, int, bytes], tail: bytes = b"") -> bytes:
    heads = b"".join(struct.pack("<BBI", mode, table, len(data)) for mode, table, data in planes)
    return heads + b"".join(data for _, _, data in planes) + tail


# Codes: 5 -> 0, 7 -> 10, 8 -> 11.
TABLE = bytes([5, 8, 0x01, 0x22])
# Seven symbols, two to a stream: 5 7 | 8 8 | 7 5 | 5 | nothing.
STREAMS = struct.pack("<5H", 1, 1, 1, 1, 0) + bytes([0b010, 0b1111, 0b001, 0b0])
SYMBOLS = bytes([5, 7, 8, 8, 7, 5, 5])


@BOTH
def test_payloads_written_by_hand(native: bool) -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(7))
    cases = {
        "raw": ("U8", block((0, 0, b"\1\2\3\4\5\6\7")), b"\1\2\3\4\5\6\7"),
        "const": ("U8", block((1, 0, b"\x2a")), b"\x2a" * 7),
        "zstd": ("U8", block((2, 0, frame)), bytes(7)),
        "huffman": ("I8", block((3, 0, STREAMS)), SYMBOLS),
        "planes": (
            "U16",
            block((3, 0, STREAMS), (1, 0, b"\xee"), tail=b"t"),
            b"".join(bytes([s, 0xEE]) for s in SYMBOLS) + b"t",
        ),
        # 1.0 is 0x3f800000; rotated left by one 0x7f000000.
        "rotated": (
            "F32",
            block((1, 0, b"\0"), (1, 0, b"\0"), (1, 0, b"\0"), (1, 0, b"\x7f")),
            np.ones(7, "<f4").tobytes(),
        ),
        "no whole word": ("F32", block(*[(0, 0, b"")] * 4, tail=b"abc"), b"abc"),
    }
    with kernels(native):
        for name, (dtype, payload, plain) in cases.items():
            encoded = EncodedChunk(PLANES, TABLE, (len(payload),), payload)
            assert back(encoded, dtype, len(plain)) == plain, name


@BOTH
def test_deltas_written_by_hand(native: bool) -> None:
    """+0 against -0 is one step up, zigzag 2; -1 against 1 as integers is -2, zigzag 3."""
    cases = [
        ("BF16", [0x0000] * 3, [0x8000] * 3, block((1, 0, b"\2"), (1, 0, b"\0"))),
        ("I16", [0xFFFF] * 3, [0x0001] * 3, block((1, 0, b"\3"), (1, 0, b"\0"))),
        ("I8", [0xFF] * 3, [0x01] * 3, block((1, 0, b"\3"))),
    ]
    with kernels(native):
        for dtype, plain, base, payload in cases:
            word = f"<u{WORD_TYPES[dtype].word_bytes}"
            encoded = EncodedChunk(DELTA, b"", (len(payload),), payload)
            expected = np.array(plain, word).tobytes()
            assert back(encoded, dtype, len(expected), np.array(base, word).tobytes()) == expected
