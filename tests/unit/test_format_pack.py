"""Packs: SPEC.md section 4 byte by byte, and every limit."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from tests.unit.format_by_hand import (
    b3,
    frame,
    msgpack,
    pack_header,
    pack_trailer,
    read_frame,
    read_msgpack,
    u32,
    xxh3,
)
from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.format import pack as pack_module
from tierstore.format.frame import parse_frame_head
from tierstore.format.keys import pack_key
from tierstore.format.pack import (
    MAX_FRAME_BYTES,
    TARGET_BYTES,
    TRAILER_BYTES,
    PackBuilder,
    Trailer,
    check_header,
    parse_index,
    parse_trailer,
)
from tierstore.format.table import ChunkPlace
from tierstore.testing.strategies import PackFrame, pack_frames

MIB = 1 << 20
ONE, TWO = b"the first chunk", b"the second"
FRAMES = [frame(ONE), frame(TWO, codec=3, dtype=2, bases=[(b3(ONE), 0, 10)])]


def index_of(**columns: Any) -> bytes:
    """The index of a pack with the two frames above."""
    lengths = [len(data) for data in FRAMES]
    fields = {
        "requires": [], "digests": b3(ONE) + b3(TWO), "offsets": u32(64, 64 + lengths[0]),
        "lengths": u32(*lengths), "heads": u32(100, 140), "plains": u32(len(ONE), len(TWO)),
        "codecs": b"\0\3", "base_starts": u32(0, 0, 1), "bases": b3(ONE),
    }  # fmt: skip
    return msgpack(fields | columns)


def pack_of(index: bytes, *, frames: int = 2, header: bytes | None = None) -> bytes:
    header = pack_header() if header is None else header
    body = header + b"".join(FRAMES)
    return body + index + pack_trailer(len(body), len(index), frames, b3(header + index))


def parse(data: bytes) -> list[ChunkPlace]:
    trailer = parse_trailer(data[-64:], len(data), "pack X")
    stop = trailer.index_offset + trailer.index_bytes
    return parse_index(data[:64], data[trailer.index_offset : stop], trailer, "pack X")


def test_a_pack_by_hand_is_read() -> None:
    data = pack_of(index_of())
    pack = b3(pack_header() + index_of())
    first = 64 + len(FRAMES[0])
    assert parse(data) == [
        ChunkPlace(b3(ONE), pack, 64, len(FRAMES[0]), 100, len(ONE), 0),
        ChunkPlace(b3(TWO), pack, first, len(FRAMES[1]), 140, len(TWO), 3, (b3(ONE),)),
    ]
    for place in parse(data):
        head = parse_frame_head(data[place.offset :], "x", place.digest)
        assert (head.head_bytes, head.frame_bytes) == (place.head_bytes, place.frame_bytes)
    assert pack_key(pack) == f"packs/{pack.hex()[:2]}/{pack.hex()}"


def by_hand(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Pack id and index of a pack, after asserting all that section 4 demands."""
    magic, version, flags, zero = struct.unpack_from("<4sBBH", data)
    assert (magic, version, flags, zero) == (b"TSPK", 1, 0, 0)
    assert data[24:56] == bytes(32)
    assert struct.unpack_from("<Q", data, 56)[0] == xxh3(data[:56])
    tail = data[-64:]
    offset, length, frames, pack, zero, end, value = struct.unpack("<QII32sI4sQ", tail)
    assert (zero, end, value) == (0, b"TSPE", xxh3(tail[:56]))
    assert offset + length + 64 == len(data)
    index = data[offset : offset + length]
    assert pack == b3(data[:64] + index)
    columns = read_msgpack(index)
    assert frames == len(columns["codecs"]) == len(columns["digests"]) // 32 > 0
    return pack, columns


@given(pack_frames())
def test_our_pack_is_the_one_of_the_specification(frames: list[PackFrame]) -> None:
    builder = PackBuilder()
    for one in frames:
        builder.add(one.digest, one.frame, one.head, one.plain, one.codec, one.bases, one.proof)
    proofs = {b3(one.proof): one.proof for one in frames if one.proof}
    assert len(builder) == len(frames) + sum(bool(one.proof) for one in frames)
    pack, buffers, places = builder.close()
    data = b"".join(buffers)
    assert [place for place in parse(data) if place.digest not in proofs] == places
    found, columns = by_hand(data)
    assert found == pack
    assert "pack_ids" not in columns or columns["pack_ids"] == b""
    at, row = 64, -1
    lengths = columns.get("proofs") or bytes(2 * len(columns["codecs"]))
    for one, place in zip(frames, places, strict=True):
        row += 1
        if one.proof:  # a frame of its own, right before that of the chunk
            assert columns["digests"][32 * row : 32 * row + 32] == b3(one.proof)
            (length,) = struct.unpack_from("<I", columns["lengths"], 4 * row)
            assert data[at : at + length] == frame(one.proof)
            assert lengths[2 * row : 2 * row + 2] == bytes(2), "a proof has no proof"
            at, row = at + length, row + 1
            assert place.proof_bytes == length == 100 + len(one.proof)
        assert struct.unpack_from("<H", lengths, 2 * row)[0] == place.proof_bytes
        assert place.pack == pack
        (length,) = struct.unpack_from("<I", columns["lengths"], 4 * row)
        assert struct.unpack_from("<I", columns["offsets"], 4 * row)[0] == at
        seen = read_frame(data[at : at + length])
        assert seen["digest"] == columns["digests"][32 * row : 32 * row + 32] == one.digest
        assert tuple(base for base, _, _ in seen["bases"]) == place.bases == one.bases
        at += length


def test_every_pack_is_unique() -> None:
    ids = set()
    for _ in range(20):
        builder = PackBuilder()
        builder.add(b3(ONE), FRAMES[0], 100, len(ONE), 0)
        ids.add(builder.close()[0])
    assert len(ids) == 20


BAD_INDEX = {
    "a gap before the first frame": {"offsets": u32(65, 64 + len(FRAMES[0]))},
    "a gap between frames": {"offsets": u32(64, 65 + len(FRAMES[0]))},
    "overlapping frames": {"offsets": u32(64, 64)},
    "frames end before the index": {"lengths": u32(len(FRAMES[0]), len(FRAMES[1]) - 1)},
    "frames in another order": {"offsets": u32(64 + len(FRAMES[1]), 64)},
    "packs are listed": {"pack_ids": bytes(32), "pack_sizes": bytes(8), "packs": bytes(8)},
    "packs are listed, rows do not name them": {"pack_ids": bytes(32), "pack_sizes": bytes(8)},
    "pack sizes are listed": {"pack_sizes": bytes(8)},
    "rows name packs": {"packs": bytes(8)},
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_an_index_that_does_not_fit_its_pack(case: str) -> None:
    with pytest.raises(Damaged, match=r"end to end|lists packs|in length"):
        parse(pack_of(index_of(**BAD_INDEX[case])))


def test_the_count_of_frames_is_checked() -> None:
    with pytest.raises(Damaged, match="end to end"):
        parse(pack_of(index_of(), frames=3))


def test_what_the_index_requires_is_checked() -> None:
    with pytest.raises(UnsupportedFormat, match="'new'"):
        parse(pack_of(index_of(requires=["new"])))


def test_the_id_binds_header_and_index() -> None:
    data = pack_of(index_of())
    trailer = parse_trailer(data[-64:], len(data), "x")
    index = data[trailer.index_offset : -64]
    for header, found in (
        (pack_header(random=bytes(16)), index),
        (pack_header(), index_of(heads=u32(99, 140))),
    ):
        with pytest.raises(Damaged, match="give the pack's id"):
            parse_index(header, found, trailer, "x")


SIZE = 64 + 200 + 100 + 64
ID = b3(b"id")
BAD_TRAILERS = {
    "cut": (pack_trailer(264, 100, 1, ID)[:-1], SIZE, "too short"),
    "pack too short": (pack_trailer(64, 0, 1, ID), 127, "too short"),
    "magic": (pack_trailer(264, 100, 1, ID, magic=b"TSPK"), SIZE, "does not end"),
    "checksum": (pack_trailer(264, 100, 1, ID, tail_sum=5), SIZE, "checksum of its trailer"),
    "zero": (pack_trailer(264, 100, 1, ID, zero=1), SIZE, "trailer"),
    "index offset above the limit": (
        pack_trailer(65 + 128 * MIB, 100, 1, ID), 65 + 128 * MIB + 164, "out of range",
    ),
    "index above the limit": (
        pack_trailer(264, 32 * MIB + 1, 1, ID), 264 + 32 * MIB + 65, "out of range",
    ),
    "frames above the limit": (pack_trailer(264, 100, MIB + 1, ID), SIZE, "1048577 frames"),
    "no frames": (pack_trailer(264, 100, 0, ID), SIZE, "0 frames"),
    "index within the header": (pack_trailer(63, 100, 1, ID), 63 + 164, "where the pack"),
    "index ends before the trailer": (pack_trailer(264, 99, 1, ID), SIZE, "where the pack"),
    "index ends within the trailer": (pack_trailer(264, 101, 1, ID), SIZE, "where the pack"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TRAILERS)
def test_bad_trailers(case: str) -> None:
    data, size, why = BAD_TRAILERS[case]
    with pytest.raises(Damaged, match=why):
        parse_trailer(data, size, "pack X")


def test_the_limits_of_the_trailer_are_allowed() -> None:
    offset = 64 + 128 * MIB
    data = pack_trailer(offset, 32 * MIB, MIB, ID)
    assert parse_trailer(data, offset + 32 * MIB + 64, "x") == Trailer(offset, 32 * MIB, MIB, ID)
    assert (TRAILER_BYTES, TARGET_BYTES, MAX_FRAME_BYTES) == (64, 64 * MIB, 128 * MIB)


BAD_HEADERS = {
    "cut": (pack_header()[:-1], Damaged, "cut short"),
    "long": (pack_header() + b"\0", Damaged, "cut short"),
    "magic": (pack_header(magic=b"TSPE"), Damaged, "does not begin"),
    "checksum": (pack_header(head_sum=1), Damaged, "checksum of its header"),
    "zero": (pack_header(zero=256), Damaged, "breaks the format"),
    "nonce": (pack_header(nonce=bytes(11) + b"\1"), Damaged, "breaks the format"),
    "zeros": (pack_header(zeros=bytes(15) + b"\1"), Damaged, "breaks the format"),
    "version": (pack_header(version=2), UnsupportedFormat, "pack version 2"),
    "flags": (pack_header(flags=2), UnsupportedFormat, "pack flags 0x2"),
    "key": (pack_header(key_id=7), UnsupportedFormat, "key 7"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers(case: str) -> None:
    data, error, why = BAD_HEADERS[case]
    with pytest.raises(error, match=why):
        check_header(data, "pack X")
    with pytest.raises(error, match=why):
        parse_index(data, b"", Trailer(64, 0, 1, b3(data)), "pack X")


def test_a_builder_is_full_at_its_target() -> None:
    builder = PackBuilder()
    frame_bytes = memoryview(bytes(1 << 24))
    for _ in range(3):
        builder.add(ID, frame_bytes, 88, 1, 0)
    assert not builder.full
    builder.add(ID, frame_bytes, 88, 1, 0)
    assert builder.full
    assert builder.size == 64 + (64 << 20)


def test_many_tiny_frames_fill_the_index_before_the_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack that is closed when it says so has an index and a trailer that readers take.

    With a sixteenth of both limits: the real ones take 90,000 frames.
    """
    limits = {"_TARGET_INDEX_BYTES": 16 * MIB, "_MAX_INDEX_BYTES": 32 * MIB}
    for name, value in limits.items():
        assert getattr(pack_module, name) == value
        monkeypatch.setattr(pack_module, name, value // 16)
    builder = PackBuilder()
    data = frame(b"tiny", codec=3, dtype=2, bases=[(ID, 0, 1)] * 4)
    count = 0
    while not builder.full:
        builder.add(count.to_bytes(32, "big"), data, len(data) - 4, 4, 3, (ID,) * 4)
        count += 1
    assert MIB < count * (57 + 32 * 4) < 17 * MIB // 16
    assert builder.size < TARGET_BYTES
    pack, buffers, places = builder.close()
    size = sum(len(buffer) for buffer in buffers)
    trailer = parse_trailer(bytes(buffers[-1]), size, "x")
    assert 15 * MIB // 16 < trailer.index_bytes < 17 * MIB // 16
    assert trailer.frames == count
    found = parse_index(buffers[0], buffers[-2], trailer, "x")
    assert found[-1] == places[-1] == replace(found[-1], pack=pack)
