"""Merged index segments (SPEC.md section 8), compared with the plainest way to merge places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.format_by_hand import b3, msgpack, read_msgpack, read_sealed, sealed
from tests.unit.test_format_table import COLUMNS, ROWS, A, B, C, P, Q
from tierstore.errors import Damaged
from tierstore.format import segments
from tierstore.format.layout import parse_segment, seal_segment
from tierstore.format.segments import (
    is_segment_key,
    merge_tables,
    parse_any_segment,
    seal_merged,
)
from tierstore.format.table import ChunkPlace, ChunkTable

PACKS = [P, Q, b3(b"pack r")]
SIZES = dict.fromkeys(PACKS, 1 << 20)
DIGESTS = [b3(bytes([number])) for number in range(6)]
KEYS = [f"index/{number:032x}" for number in range(3)]


def table(*rows: ChunkPlace) -> ChunkTable:
    sizes = {row.pack: SIZES[row.pack] for row in rows}
    return parse_segment(seal_segment(rows, sizes), "t")


@st.composite
def _places(draw: st.DrawFn) -> ChunkPlace:
    bases = tuple(draw(st.lists(st.sampled_from(DIGESTS), max_size=3)))
    return ChunkPlace(
        draw(st.sampled_from(DIGESTS)), draw(st.sampled_from(PACKS)),
        draw(st.integers(9_000, 90_000)), 200, 100, 4096, 3 if bases else 0, bases,
        draw(st.sampled_from([0, 0, 600])),
    )  # fmt: skip


@given(
    st.lists(st.lists(_places(), max_size=6), min_size=1, max_size=4),
    st.sets(st.sampled_from(PACKS)),
    st.sets(st.sampled_from(PACKS)),
)
def test_each_chunk_has_the_best_of_its_places(
    tables: list[list[ChunkPlace]], without: set[bytes], last: set[bytes]
) -> None:
    merged = merge_tables([table(*rows) for rows in tables], without=without, last=last)
    left: dict[bytes, list[ChunkPlace]] = {}
    for row in (row for rows in tables for row in rows if row.pack not in without):
        left.setdefault(row.digest, []).append(row)

    def rank(row: ChunkPlace) -> tuple[bool, bool]:
        return row.pack in last, bool(row.bases)

    assert [row.digest for row in merged] == sorted(left)
    for row in merged:
        assert row in left[row.digest]
        assert rank(row) == min(map(rank, left[row.digest]))
    assert set(merged.pack_ids) == {row.pack for row in merged}
    assert dict(zip(merged.pack_ids, merged.pack_sizes, strict=True)) == {
        pack: SIZES[pack] for pack in merged.pack_ids
    }


def test_a_merged_segment_names_what_it_replaces() -> None:
    (data,) = seal_merged(merge_tables([table(*ROWS[:2]), table(ROWS[2])]), set(KEYS))
    stored = read_msgpack(read_sealed(data)[1])
    assert stored["replaces"] == b"".join(bytes.fromhex(key[6:]) for key in KEYS)
    found = parse_any_segment(data, "x")
    assert found.replaces == set(KEYS)
    assert list(found.table) == sorted(ROWS, key=lambda row: row.digest)
    assert list(parse_segment(data, "x")) == list(found.table), "older readers know the rows"


def test_a_segment_of_a_save_replaces_none() -> None:
    assert parse_any_segment(sealed(3, msgpack(COLUMNS)), "x").replaces == set()


def test_names_that_are_cut_short_are_damage() -> None:
    with pytest.raises(Damaged, match="no list of names"):
        parse_any_segment(sealed(3, msgpack(COLUMNS | {"replaces": bytes(17)})), "x")


@pytest.mark.parametrize(
    ("name", "limit", "parts"),
    [("MOST_ROWS", 2, [2, 2, 1]), ("_MOST_BASES", 3, [4, 1]), ("_MOST_BASES", 1, [2, 1, 1, 1])],
)
def test_a_segment_is_cut_by_its_rows_and_its_bases(
    monkeypatch: pytest.MonkeyPatch, name: str, limit: int, parts: list[int]
) -> None:
    monkeypatch.setattr(segments, name, limit)
    rows = [
        ChunkPlace(digest, P, 64, 200, 100, 4096, 3 if number else 0, (A, B)[:number])
        for digest, number in zip(sorted(DIGESTS)[:5], (0, 0, 2, 1, 2), strict=True)
    ]
    if limit == 1:
        rows[3:] = [ChunkPlace(row.digest, P, 64, 200, 100, 4096, 3, (C, C)) for row in rows[3:]]
    found = [list(parse_any_segment(data, "x").table) for data in seal_merged(table(*rows), [])]
    assert list(map(len, found)) == parts
    assert [row for part in found for row in part] == rows


def test_nothing_is_sealed_of_nothing() -> None:
    assert list(seal_merged(merge_tables([table(*ROWS)], without={P, Q}), KEYS)) == []


def test_keys_that_a_segment_can_name() -> None:
    assert all(map(is_segment_key, KEYS))
    assert not any(map(is_segment_key, ["index/a", KEYS[0] + "0", KEYS[0].upper(), KEYS[0][6:]]))
