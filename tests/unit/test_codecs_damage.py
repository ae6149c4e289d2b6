"""Damaged payloads raise or decode to the right length, the same with both kernels."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import zstandard

from tests.unit.codec_data import BLOCK, back, kernels, stored, tuned, weights
from tests.unit.test_codecs_values import STREAMS, TABLE, block
from tierstore.codecs import PLANES, RAW, ZSTD, EncodedChunk, decode
from tierstore.codecs.base import WORD_TYPES
from tierstore.errors import Damaged

BOTH = pytest.mark.parametrize("native", [True, False], ids=["native", "numpy"])


def outcome(encoded: EncodedChunk, dtype: str, length: int, base: bytes | None) -> bytes | None:
    """The decoded bytes, None when they are refused."""
    try:
        return back(encoded, dtype, length, base)
    except Damaged:
        return None


def mutations(encoded: EncodedChunk, rng: random.Random, count: int) -> Iterator[EncodedChunk]:
    for _ in range(count):
        head, payload, ends = (
            bytearray(encoded.head),
            bytearray(encoded.payload),
            list(encoded.ends),
        )
        kind = rng.randrange(10)
        if kind == 0 and head:
            head[rng.randrange(len(head))] = rng.randrange(256)
        elif kind == 1:
            ends[rng.randrange(len(ends))] += rng.choice([-1, 1, 7, -300, 1 << 40, -(1 << 70)])
        elif kind == 2:
            del payload[rng.randrange(len(payload)) :]
            ends[-1] = len(payload)
        elif kind == 3:
            del head[rng.randrange(len(head) + 1) :]
        elif kind == 4:
            ends = ends[: rng.randrange(len(ends))]
        elif kind < 8:  # descriptors and the first stream lengths
            start = rng.choice([0, *ends[:-1]])
            payload[min(start + rng.randrange(40), len(payload) - 1)] = rng.randrange(256)
        else:
            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        yield EncodedChunk(encoded.codec, bytes(head), tuple(ends), bytes(payload))


def chunks() -> Iterator[tuple[EncodedChunk, str, bytes, bytes | None]]:
    for dtype in ("I8", "BF16", "F32", "F64", ""):
        plain = weights(dtype, 3_000) + b"\0"
        yield stored(plain, dtype), dtype, plain, None
        if dtype in WORD_TYPES:
            base = tuned(plain, dtype)
            yield stored(plain, dtype, base), dtype, plain, base


def test_native_kernels_survive_mutations() -> None:
    rng = random.Random(1)
    refused = done = 0
    with kernels(True):
        for encoded, dtype, plain, base in chunks():
            for mutated in mutations(encoded, rng, 1_500):
                done += 1
                refused += outcome(mutated, dtype, len(plain), base) is None
    assert done > 10_000
    assert refused > done / 4, "most mutations break something that a decoder checks"


def test_both_kernels_refuse_the_same() -> None:
    rng = random.Random(2)
    for encoded, dtype, plain, base in chunks():
        for mutated in mutations(encoded, rng, 60):
            with kernels(True):
                ours = outcome(mutated, dtype, len(plain), base)
            with kernels(False):
                assert outcome(mutated, dtype, len(plain), base) == ours


GOOD = (3, 0, STREAMS)
BAD_BLOCKS = {
    "mode": block((4, 0, STREAMS)),
    "table that is not there": block((3, 1, STREAMS)),
    "table of a raw plane": block((0, 1, bytes(7))),
    "raw too short": block((0, 0, bytes(6))),
    "const too long": block((1, 0, bytes(2))),
    "empty zstd": block((2, 0, b"")),
    "no zstd": block((2, 0, b"\x28\xb5\x2f\xfd")),
    "zstd of another length": block((2, 0, zstandard.ZstdCompressor().compress(bytes(8)))),
    "zstd and more": block((2, 0, zstandard.ZstdCompressor().compress(bytes(7)) + b"x")),
    "zstd without its length": block(
        (2, 0, zstandard.ZstdCompressor(write_content_size=False).compress(bytes(7)))
    ),
    "zstd that claims 2^60 bytes": block(
        (2, 0, b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little"))
    ),
    "bytes behind the plane": block(GOOD) + b"x",
    "bytes behind the segment": block((3, 0, STREAMS + b"x")),
    "segment cut short": block((3, 0, STREAMS[:-1])),
    "segment without its head": block((3, 0, STREAMS[:9])),
    "stream of another length": block((3, 0, b"\2\0\0\0" + STREAMS[4:])),
    "no descriptors": b"\3\0",
    "length of 4 GiB": b"\3\0\xff\xff\xff\xff" + STREAMS,
}
BAD_HEADS = {
    "cut short": TABLE[:-1],
    "bytes behind": TABLE + b"\5",
    "first is last": bytes([5, 5, 1]),
    "length 12": bytes([5, 8, 0x01, 0xC2]),
    "incomplete": bytes([5, 8, 0x02, 0x22]),
    "too many codes": bytes([5, 8, 0x11, 0x22]),
    "first without a code": bytes([4, 8, 0x10, 0x20, 0x02]),
    "last without a code": bytes([5, 9, 0x01, 0x22, 0x00]),
    "half a byte too much": bytes([5, 7, 0x21, 0x12]),
    "256 tables": bytes([5, 6, 0x11]) * 256,
    "more than 32 KiB": TABLE * 8193,
}


@BOTH
def test_what_the_specification_forbids(native: bool) -> None:
    good = EncodedChunk(PLANES, TABLE, (len(block(GOOD)),), block(GOOD))
    with kernels(native):
        assert outcome(good, "I8", 7, None) is not None
        assert outcome(replace(good, head=bytes([5, 7, 0x21, 0x02])), "I8", 7, None) is not None
        for name, payload in BAD_BLOCKS.items():
            bad = replace(good, ends=(len(payload),), payload=payload)
            assert outcome(bad, "I8", 7, None) is None, name
        for name, head in BAD_HEADS.items():
            assert outcome(replace(good, head=head), "I8", 7, None) is None, name
        for ends in ((), (0,), (len(good.payload) - 1,), (len(good.payload),) * 2, (-1,)):
            assert outcome(replace(good, ends=ends), "I8", 7, None) is None, ends
        assert outcome(replace(good, ends=(), payload=b""), "I8", 0, None) == b""
        assert outcome(good, "I8", 0, None) is None


@pytest.mark.parametrize("codec", [RAW, ZSTD])
def test_raw_and_zstd_payloads_are_checked(codec: int) -> None:
    plain = bytes(range(200)) * 50
    compress = zstandard.ZstdCompressor().compress
    parts = [plain[at : at + BLOCK] for at in range(0, len(plain), BLOCK)]
    blocks = parts if codec == RAW else [compress(part) for part in parts]
    ends = tuple(np.cumsum([len(b) for b in blocks]).tolist())
    good = EncodedChunk(codec, b"", ends, b"".join(blocks))
    assert back(good, "U8", len(plain)) == plain
    bad = [
        replace(good, head=b"x"),
        replace(good, payload=good.payload[:-1]),
        replace(good, ends=ends[:-1]),
        replace(good, ends=(ends[0] - 1, *ends[1:])),
        replace(good, ends=(ends[1], ends[0], *ends[2:])),
    ]
    for encoded in bad:
        with pytest.raises(Damaged):
            back(encoded, "U8", len(plain))


def test_a_hostile_zstd_frame_allocates_nothing() -> None:
    claim = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + bytes(8)
    with pytest.raises(Damaged, match="declares"):
        decode(ZSTD, b"", (len(claim),), claim, memoryview(bytearray(10)), "", block_size=BLOCK)
