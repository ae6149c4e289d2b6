"""Condemned lists and segments: what their filter says, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.format_by_hand import msgpack, sealed
from tierstore.errors import Damaged
from tierstore.format.condemned import (
    CondemnedList,
    CondemnedSegment,
    SegmentOfList,
    filter_of,
    parse_list,
    parse_segment,
)
from tierstore.format.sealed import Kind, seal_body

RUN = "ab" * 16
FIELDS: dict[str, Any] = {
    "requires": [], "seq": 3, "run": RUN, "time_us": 7, "filter": b"\xff",
    "segments": [{"key": "cd" * 16, "time_us": 5}],
}  # fmt: skip


def listed(found: bytes) -> CondemnedList:
    segments = [SegmentOfList(key="cd" * 16, time_us=5)] if found else []
    return CondemnedList(seq=3, run=RUN, time_us=7, filter=found, segments=segments)


@given(st.sets(st.binary(min_size=32, max_size=32), max_size=60))
def test_the_filter_has_every_pack(packs: set[bytes]) -> None:
    made = listed(filter_of(packs))
    assert all(made.may_hold(pack) for pack in packs)
    assert len(made.filter) == (max(len(packs), 64) if packs else 0)


def test_the_bits_of_the_filter_are_those_of_the_specification() -> None:
    words = (0, 1, 8, 15, 513, 1023)  # modulo 512 bits: 0, 1, 8, 15, 1, 511
    pack = b"".join(word.to_bytes(4, "little") for word in words) + bytes(8)
    bits = bytes([0b00000011, 0b10000001, *bytes(61), 0b10000000])
    assert filter_of([pack, bytes(32)]) == bits
    assert filter_of([]) == b""
    assert not listed(b"").may_hold(bytes(32))


def test_a_list_of_62_500_packs_takes_64_kib_and_finds_few_others() -> None:
    draw = random.Random(7)
    packs = [draw.randbytes(32) for _ in range(62_500)]
    made = listed(filter_of(packs))
    body = CondemnedList(
        seq=999_999_999, run=RUN, time_us=1 << 56, filter=made.filter,
        segments=[SegmentOfList(key=f"{n:032x}", time_us=1 << 56) for n in range(30)],
    )  # fmt: skip
    assert len(seal_body(Kind.CONDEMNED_LIST, body)) <= 64 << 10
    others = [draw.randbytes(32) for _ in range(10_000)]
    assert sum(made.may_hold(other) for other in others) < 300


def test_a_list_is_read_as_it_was_written() -> None:
    found = parse_list(sealed(16, msgpack(FIELDS)), 3, "x")
    assert found == listed(b"\xff")
    assert parse_list(seal_body(Kind.CONDEMNED_LIST, found), 3, "x") == found


@pytest.mark.parametrize(("change", "why"), [
    ({"seq": 4}, "it is list 4"),
    ({"filter": b""}, "segments without a filter"),
    ({"segments": []}, "a filter without segments"),
    ({"segments": [{"key": "cd" * 16, "time_us": 5}] * 2}, "names a segment twice"),
    ({"segments": [{"key": "../x", "time_us": 5}]}, "matching regex"),
    ({"run": "r"}, "matching regex"),
])  # fmt: skip
def test_a_list_that_breaks_the_format_is_damaged(change: dict[str, Any], why: str) -> None:
    with pytest.raises(Damaged, match=why):
        parse_list(sealed(16, msgpack(FIELDS | change)), 3, "x")


@pytest.mark.parametrize(("packs", "why"), [
    (b"", "no list of ids"),
    (bytes(33), "no list of ids"),
    (b"b" * 32 + b"a" * 32, "do not rise"),
    (b"a" * 64, "do not rise"),
])  # fmt: skip
def test_a_segment_that_breaks_the_format_is_damaged(packs: bytes, why: str) -> None:
    with pytest.raises(Damaged, match=why):
        parse_segment(sealed(17, msgpack({"requires": [], "packs": packs})), "x")


def test_a_segment_is_read_as_it_was_written() -> None:
    body = CondemnedSegment(packs=b"a" * 32 + b"b" * 32)
    found = parse_segment(seal_body(Kind.CONDEMNED_SEGMENT, body), "x")
    assert found == ({b"a" * 32, b"b" * 32}, set())


def test_a_segment_holds_packs_or_manifests() -> None:
    body = CondemnedSegment(manifests=b"a" * 32)
    found = parse_segment(seal_body(Kind.CONDEMNED_SEGMENT, body), "x")
    assert (found.packs, found.manifests, found.every) == (set(), {b"a" * 32}, {b"a" * 32})
    both = msgpack({"requires": [], "packs": b"a" * 32, "manifests": b"b" * 32})
    with pytest.raises(Damaged, match="no list of ids"):
        parse_segment(sealed(17, both), "x")
