"""Frames: byte by byte against SPEC.md section 3, every limit, and any frame there and back."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given

from tests.unit.format_by_hand import b3, frame, read_frame, xxh3
from tierstore.errors import Damaged, UnsupportedFormat, UsageError
from tierstore.format.dtypes import DTYPE_CODES, DTYPE_OF_CODE, DTYPES
from tierstore.format.frame import (
    MAX_BASES,
    MAX_CODEC_HEAD,
    MAX_PLAIN_BYTES,
    BasePiece,
    FrameHead,
    build_head,
    frame_payload,
    parse_frame_head,
)
from tierstore.ids import ByteRange
from tierstore.testing.strategies import FrameParts, frames

B = b3(b"the base")
PLAIN = bytes(range(256)) * 600  # 153,600 bytes: three blocks of 64 KiB
DELTA: dict[str, Any] = {"codec": 3, "dtype": 17, "bases": [(B, 0, 16)]}

DAMAGED = {
    "empty": (b"", "cut short"),
    "fixed part cut": (frame()[:79], "cut short"),
    "block table cut": (frame()[:85], "cut short"),
    "checksum cut": (frame(PLAIN, block_log2=16)[: 80 + 36 + 7], "cut short"),
    "magic": (frame(magic=b"TSFQ"), "does not begin"),
    "head checksum": (frame(head_sum=1), "checksum of its head"),
    "plain_bytes above the limit": (frame(plain_bytes=(16 << 20) + 1), "out of range"),
    "payload_bytes above plain_bytes": (frame(payload=b"x" * 17), "out of range"),
    "block_log2 below": (frame(block_log2=15), "block size"),
    "block_log2 above": (frame(block_log2=25), "block size"),
    "bases above the limit": (frame(**DELTA | {"n_base": 1025}), "longer than the format"),
    "codec head above the limit": (
        frame(codec_head_bytes=(32 << 10) + 1), "longer than the format",
    ),
    "zero byte": (frame(zero1=1), "breaks the format"),
    "zero word": (frame(zero2=1), "breaks the format"),
    "nonce": (frame(nonce=b"\1" + bytes(11)), "breaks the format"),
    "a delta without bases": (frame(codec=3), "breaks the format"),
    "bases without a delta": (frame(bases=[(B, 0, 16)]), "breaks the format"),
    "ends decrease": (
        frame(PLAIN, block_log2=16, ends=[9, 8, len(PLAIN)]), "out of order",
    ),
    "the last end is not payload_bytes": (
        frame(PLAIN, block_log2=16, ends=[1, 2, len(PLAIN) - 1]), "out of order",
    ),
    "bases do not add up": (frame(**DELTA | {"bases": [(B, 0, 15)]}), "add up"),
    "bases add up to more": (frame(**DELTA | {"bases": [(B, 0, 16), (B, 0, 1)]}), "add up"),
}  # fmt: skip

UNSUPPORTED = {
    "version": frame(version=2),
    "encrypted": frame(flags=1),
    "an unknown flag": frame(flags=128),
    "a key": frame(key_id=1),
    "an unknown codec": frame(codec=255),
    "planes of an unknown dtype": frame(codec=2, dtype=51),
    "a delta of an unknown dtype": frame(**DELTA | {"dtype": 51}),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused(case: str) -> None:
    data, why = DAMAGED[case]
    with pytest.raises(Damaged, match=why) as caught:
        parse_frame_head(data, "chunk X")
    assert str(caught.value).startswith("chunk X is damaged")


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_newer_is_refused(case: str) -> None:
    with pytest.raises(UnsupportedFormat, match="newer tierstore"):
        parse_frame_head(UNSUPPORTED[case], "chunk X")


def test_the_limits_themselves_are_allowed() -> None:
    empty = parse_frame_head(frame(b""), "x")
    assert (empty.plain_bytes, empty.ends, empty.head_bytes) == (0, (), 88)
    largest = bytes(MAX_PLAIN_BYTES)
    assert parse_frame_head(frame(largest, block_log2=16), "x").plain_bytes == 16 << 20
    assert parse_frame_head(frame(largest, block_log2=24), "x").ends == (16 << 20,)
    pieces = [(B, i, 1) for i in range(1024)]
    head = parse_frame_head(frame(bytes(1024), codec=3, dtype=17, bases=pieces), "x")
    assert len(head.bases) == MAX_BASES
    shared = bytes(32 << 10)
    assert parse_frame_head(frame(codec_head=shared, codec=2, dtype=2), "x").codec_head == shared


def test_a_payload_without_blocks_is_damage() -> None:
    data = bytearray(frame(b""))
    data[12:16] = (1).to_bytes(4, "little")  # payload_bytes above plain_bytes 0
    data[-8:] = xxh3(bytes(data[:-8])).to_bytes(8, "little")
    with pytest.raises(Damaged, match="out of range"):
        parse_frame_head(bytes(data), "x")


@pytest.mark.parametrize("codec", [0, 1])
def test_raw_and_zstd_of_an_unknown_dtype_are_read(codec: int) -> None:
    head = parse_frame_head(frame(codec=codec, dtype=99), "x")
    assert (head.codec, head.dtype) == (codec, "")


def test_the_digest_in_the_head_is_the_one_that_is_wanted() -> None:
    data = frame(b"abc")
    assert parse_frame_head(data, "x", b3(b"abc")).digest == b3(b"abc")
    with pytest.raises(Damaged, match="another chunk"):
        parse_frame_head(data, "x", b3(b"abd"))


def test_the_payload_is_checked() -> None:
    data = frame(PLAIN, block_log2=16)
    head = parse_frame_head(data, "x")
    assert frame_payload(head, data, "x") == PLAIN
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(Damaged, match="instead of"):
            frame_payload(head, wrong, "x")
    with pytest.raises(Damaged, match="checksum of its payload"):
        frame_payload(head, data[:-1] + b"\xfe", "x")


def test_every_field_by_hand() -> None:
    pieces = [(B, 7, len(PLAIN) - 5), (b3(b"other"), 2**32 - 1, 5)]
    data = frame(
        PLAIN, codec=3, dtype=17, block_log2=16, bases=pieces, codec_head=b"tables",
        payload=b"0123456789", ends=[3, 3, 10], sums=[1, 2, 2**64 - 1],
    )  # fmt: skip
    head = parse_frame_head(data + b"what follows", "x")
    assert head == FrameHead(
        digest=b3(PLAIN), codec=3, dtype="BF16", plain_bytes=153600, payload_bytes=10,
        payload_xxh3=xxh3(b"0123456789"), block_log2=16, ends=(3, 3, 10),
        sums=(1, 2, 2**64 - 1), bases=tuple(BasePiece(*piece) for piece in pieces),
        codec_head=b"tables", head_bytes=80 + 36 + 80 + 6 + 8,
    )  # fmt: skip
    assert head.frame_bytes == len(data)
    assert head.block_size == 65536
    assert [head.block_payload(i) for i in range(3)] == [
        ByteRange(210, 213), ByteRange(213, 213), ByteRange(213, 220),
    ]  # fmt: skip
    assert [head.block_plain(i) for i in range(3)] == [
        ByteRange(0, 65536), ByteRange(65536, 131072), ByteRange(131072, 153600),
    ]  # fmt: skip


def test_our_frame_is_the_one_of_the_specification() -> None:
    pieces = [(B, 7, len(PLAIN) - 5), (b3(b"other"), 9, 5)]
    ours = build_head(
        digest=b3(PLAIN), codec=3, dtype="F6_E2M3", plain=PLAIN, codec_head=b"tables",
        ends=[3, 3, 10], payload=b"0123456789", block_log2=16,
        bases=[BasePiece(*piece) for piece in pieces],
    )  # fmt: skip
    by_hand = frame(
        PLAIN, codec=3, dtype=48, block_log2=16, bases=pieces, codec_head=b"tables",
        payload=b"0123456789", ends=[3, 3, 10],
    )  # fmt: skip
    assert ours + b"0123456789" == by_hand


@pytest.mark.parametrize("wrong", [
    {"plain": bytes(MAX_PLAIN_BYTES + 1), "ends": [0] * 65},
    {"payload": bytes(17)},
    {"codec_head": bytes(MAX_CODEC_HEAD + 1)},
    {"bases": [BasePiece(B, 0, 1)] * (MAX_BASES + 1)},
], ids=["plain", "payload", "codec head", "bases"])  # fmt: skip
def test_a_frame_that_no_reader_would_take_is_not_built(wrong: dict[str, object]) -> None:
    fields: dict[str, object] = {
        "digest": B, "codec": 0, "dtype": "", "plain": bytes(16), "codec_head": b"",
        "ends": [16], "payload": bytes(16),
    }  # fmt: skip
    with pytest.raises(UsageError, match="limits"):
        build_head(**fields | wrong)  # type: ignore[arg-type]


def test_huge_claims_allocate_nothing() -> None:
    most = 2**32 - 1
    hostile = [
        frame(plain_bytes=most, payload_bytes=most, n_base=65535, codec_head_bytes=65535),
        frame(plain_bytes=16 << 20, payload_bytes=16 << 20),
        frame(plain_bytes=16 << 20, block_log2=16, n_base=1024, codec_head_bytes=32 << 10, codec=3),
    ]
    tracemalloc.start()
    for data in hostile:
        with pytest.raises(Damaged):
            parse_frame_head(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20, f"{peak} bytes were allocated for heads of 112 bytes"


def test_dtype_codes_are_those_of_the_specification() -> None:
    table = {
        0: "", 1: "BOOL", 2: "U8", 3: "I8", 4: "I16", 5: "U16", 6: "I32", 7: "U32", 8: "I64",
        9: "U64", 16: "F16", 17: "BF16", 18: "F32", 19: "F64", 20: "C64", 32: "F8_E5M2",
        33: "F8_E4M3", 34: "F8_E8M0", 35: "F8_E4M3FNUZ", 36: "F8_E5M2FNUZ", 48: "F6_E2M3",
        49: "F6_E3M2", 50: "F4",
    }  # fmt: skip
    assert table == DTYPE_OF_CODE
    assert {name: code for code, name in table.items()} == DTYPE_CODES
    assert set(DTYPE_CODES) == {"", *DTYPES}


@given(frames())
def test_any_frame_round_trips_and_an_independent_reader_agrees(parts: FrameParts) -> None:
    data, head_bytes = parts.build()
    head = parse_frame_head(data, "x", parts.fields["digest"])
    assert (head.head_bytes, head.frame_bytes) == (head_bytes, len(data))
    assert bytes(frame_payload(head, data, "x")) == parts.fields["payload"]
    seen = read_frame(data)
    assert seen == {
        "codec": head.codec, "dtype": DTYPE_CODES[parts.fields["dtype"]],
        "plain_bytes": head.plain_bytes, "block_log2": head.block_log2, "digest": head.digest,
        "ends": list(head.ends), "sums": list(head.sums),
        "bases": [(piece.digest, piece.offset, piece.plain_bytes) for piece in head.bases],
        "codec_head": head.codec_head, "payload": parts.fields["payload"],
        "head_bytes": head.head_bytes,
    }  # fmt: skip
    assert head.dtype == parts.fields["dtype"]
    assert head.ends == tuple(parts.fields["ends"])
    size = head.block_size
    plain = parts.fields["plain"]
    assert list(head.sums) == [xxh3(plain[at : at + size]) for at in range(0, len(plain), size)]
