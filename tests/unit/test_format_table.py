"""Chunk tables, layouts, segments and moves: SPEC.md sections 6 and 8."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from tests.unit.format_by_hand import b3, msgpack, read_msgpack, read_sealed, sealed, u32, u64
from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.format.condemned import EarlyCondemned
from tierstore.format.layout import (
    Fold,
    Mark,
    Move,
    missing_chunks,
    parse_layout,
    parse_mark,
    parse_segment,
    seal_layout,
    seal_moved_layout,
    seal_segment,
)
from tierstore.format.sealed import Body, Kind, seal_body, unseal_body
from tierstore.format.table import ChunkPlace, TableBody, join_tables
from tierstore.ids import Digest
from tierstore.testing.strategies import places

A, B, C, D = b3(b"a"), b3(b"b"), b3(b"c"), b3(b"d")
P, Q, R = b3(b"pack p"), b3(b"pack q"), b3(b"pack r")
MANIFEST = Digest(b3(b"manifest"))
MIB = 1 << 20

COLUMNS: dict[str, Any] = {
    "requires": [],
    "pack_ids": P + Q,
    "pack_sizes": u64(10_000, 5_000),
    "digests": A + B + C,
    "packs": u32(1, 0, 0),
    "offsets": u32(64, 64, 500),
    "lengths": u32(400, 436, 200),
    "heads": u32(100, 100, 140),
    "plains": u32(300, 336, 70),
    "codecs": b"\0\2\3",
    "base_starts": u32(0, 0, 0, 2),
    "bases": A + B,
    "proofs": b"",
}
ROWS = [
    ChunkPlace(A, Q, 64, 400, 100, 300, 0),
    ChunkPlace(B, P, 64, 436, 100, 336, 2),
    ChunkPlace(C, P, 500, 200, 140, 70, 3, (A, B)),
]


def segment(**columns: Any) -> bytes:
    return sealed(3, msgpack(COLUMNS | columns))


def layout(**columns: Any) -> bytes:
    return sealed(2, msgpack(COLUMNS | {"manifest": MANIFEST.raw} | columns), encoding=1)


def test_a_table_by_hand_is_read() -> None:
    for table in (parse_segment(segment(), "x"), parse_layout(layout(), MANIFEST, "x")):
        assert list(table) == ROWS
        assert len(table) == 3
        assert (table.pack_ids, table.pack_sizes) == ([P, Q], [10_000, 5_000])
        assert [table.find(row.digest) for row in ROWS] == ROWS
        assert table.find(b3(b"nowhere")) is None


def test_what_relies_on_packs_are_their_chunks_and_deltas_on_them() -> None:
    a, b, c = ROWS
    table = parse_segment(segment(), "x")
    assert list(table.places_relying_on({Q})) == [a, c]
    assert list(table.places_relying_on({P})) == [b, c]
    assert list(table.places_relying_on({R})) == []
    above = ChunkPlace(D, R, 64, 200, 140, 70, 3, (C,))  # a delta on a delta, which nobody writes
    deep = parse_segment(seal_segment([*ROWS, above], {P: 10_000, Q: 5_000, R: 264}), "x")
    assert list(deep.places_relying_on({Q})) == [a, c, above]


def test_chunks_are_picked_from_where_they_lie_by_now() -> None:
    a, b, c = ROWS
    table = parse_segment(segment(), "x")
    moved = [replace(b, pack=R, offset=80), replace(a, pack=R, offset=600)]

    def picked(chunks: list[bytes], moved: list[ChunkPlace]) -> tuple[list[ChunkPlace], list[int]]:
        data = seal_moved_layout(MANIFEST, table, chunks, moved, {R: 9_000})
        new = parse_layout(data, MANIFEST, "x")
        assert {*new.pack_ids} == {place.pack for place in new}
        return list(new), new.pack_sizes

    assert picked([A, B, C], []) == (ROWS, [5_000, 10_000])
    assert picked([C], moved) == ([c, moved[1], moved[0]], [10_000, 9_000]), "the bases come last"
    assert picked([C, B], moved[:1]) == ([c, moved[0], a], [10_000, 9_000, 5_000])
    alone = replace(c, pack=R, codec=2, bases=())
    assert picked([C], [alone]) == ([alone], [9_000]), "what is no base any more is left out"


def test_a_table_says_where_proofs_lie() -> None:
    (table,) = [parse_segment(segment(proofs=b"\0\0\0\0\x64\x01"), "x")]
    assert [row.proof_bytes for row in table] == [0, 0, 356]
    assert [replace(row, proof_bytes=0) for row in table] == ROWS
    joined = join_tables([parse_segment(segment(), "x"), table], "z")
    assert [row.proof_bytes for row in joined] == [0, 0, 0, 0, 0, 356]


def test_tables_are_joined() -> None:
    one = parse_segment(segment(), "x")
    alone = ChunkPlace(b3(b"alone"), Q, 900, 150, 90, 80, 1)
    again = ChunkPlace(A, P, 2000, 300, 100, 300, 0)
    two = parse_segment(seal_segment([alone, again], {Q: 5_000, P: 10_000}), "y")
    assert join_tables([one], "z") is one
    for tables, found_at in (([one, two], again), ([two, one], ROWS[0])):
        joined = join_tables(tables, "z")
        assert list(joined) == [row for table in tables for row in table]
        assert sorted(zip(joined.pack_ids, joined.pack_sizes, strict=True)) == sorted(
            [(P, 10_000), (Q, 5_000)]
        )
        assert joined.find(A) == found_at
        assert joined.find(C) == ROWS[2]
        assert joined.bases == [A, B]
        assert joined.longest_frame_bytes == 436
    empty = parse_segment(seal_segment([], {}), "e")
    assert list(join_tables([empty, two, empty], "z")) == list(two)


def test_our_table_is_the_one_of_the_specification() -> None:
    kind, plain = read_sealed(seal_layout(MANIFEST, ROWS, {P: 10_000, Q: 5_000}))
    assert (kind, read_msgpack(plain)) == (2, COLUMNS | {"manifest": MANIFEST.raw})
    kind, plain = read_sealed(seal_segment(ROWS, {P: 10_000, Q: 5_000}))
    assert (kind, read_msgpack(plain)) == (3, COLUMNS)


@given(places())
def test_any_table_round_trips(drawn: tuple[list[ChunkPlace], dict[bytes, int]]) -> None:
    rows, sizes = drawn
    for table in (
        parse_segment(seal_segment(rows, sizes), "x"),
        parse_layout(seal_layout(MANIFEST, rows, sizes), MANIFEST, "x"),
    ):
        assert list(table) == rows
        assert dict(zip(table.pack_ids, table.pack_sizes, strict=True)) == sizes
        assert all(table.find(row.digest) == row for row in rows)
    stored = read_msgpack(read_sealed(seal_segment(rows, sizes))[1])
    assert stored["digests"] == b"".join(row.digest for row in rows)
    assert stored["bases"] == b"".join(base for row in rows for base in row.bases)


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "digests of odd length": ({"digests": A + B + C + b"\0"}, "in length"),
    "a digest too many": ({"digests": A + B + C + A}, "in length"),
    "pack_ids of odd length": ({"pack_ids": P + Q + b"\0"}, "in length"),
    "a pack without a size": ({"pack_sizes": u64(10_000)}, "in length"),
    "a size too many": ({"pack_sizes": u64(10_000, 5_000, 1)}, "in length"),
    **{
        f"{name} too {how}": ({name: COLUMNS[name][:stop] + more}, "in length")
        for name in ("packs", "offsets", "lengths", "heads", "plains", "codecs", "base_starts")
        for how, stop, more in (("short", -1, b""), ("long", None, b"\0"), ("few", -4, b""))
    },
    "a proof's length cut": ({"proofs": bytes(5)}, "in length"),
    "proofs of fewer rows": ({"proofs": bytes(4)}, "in length"),
    "proofs of more rows": ({"proofs": bytes(8)}, "in length"),
    "a proof within the pack's header": ({"proofs": bytes(4) + b"\xb5\x01"}, "out of range"),
    "a pack that is not listed": ({"packs": u32(1, 0, 2)}, "not listed"),
    "no packs at all": ({"pack_ids": b"", "pack_sizes": b"", "packs": b""}, "in length"),
    "no packs, rows all the same": ({"pack_ids": b"", "pack_sizes": b""}, "not listed"),
    "plain above the limit": ({"plains": u32(300, 336, 16 * MIB + 1)}, "out of range"),
    "frame above the limit": (
        {"lengths": u32(400, 436, 16 * MIB + 131073), "plains": u32(300, 336, 16 * MIB),
         "heads": u32(100, 100, 131073), "pack_sizes": u64(64 * MIB, 5_000)},
        "out of range",
    ),
    "head below a frame's": (
        {"heads": u32(79, 100, 140), "plains": u32(400, 336, 70)}, "out of range",
    ),
    "head longer than its frame": ({"heads": u32(401, 100, 140)}, "out of range"),
    "payload above the chunk": ({"plains": u32(299, 336, 70)}, "out of range"),
    "frame within the pack's header": ({"offsets": u32(63, 64, 500)}, "out of range"),
    "frame beyond the pack": ({"pack_sizes": u64(699, 5_000)}, "out of range"),
    "frame beyond the other pack": ({"pack_sizes": u64(10_000, 463)}, "out of range"),
    "a delta without bases": ({"base_starts": b"", "bases": b""}, "no bases"),
    "bases without a column": ({"base_starts": b"", "codecs": b"\0\2\2"}, "no bases"),
    "a delta with an empty list": (
        {"codecs": b"\3\2\3"}, "not the deltas",
    ),
    "bases of a frame that is no delta": (
        {"codecs": b"\0\2\2"}, "not the deltas",
    ),
    "bases begin late": ({"base_starts": u32(1, 1, 1, 2)}, "out of order"),
    "bases decrease": ({"base_starts": u32(0, 2, 1, 2)}, "out of order"),
    "bases end early": ({"base_starts": u32(0, 0, 0, 1)}, "out of order"),
    "bases end late": ({"base_starts": u32(0, 0, 0, 3)}, "out of order"),
    "bases of odd length": ({"bases": A + B + b"\0"}, "out of order"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_tables(case: str) -> None:
    columns, why = DAMAGED[case]
    with pytest.raises(Damaged, match=why):
        parse_segment(segment(**columns), "segment X")
    with pytest.raises(Damaged, match=why):
        parse_layout(layout(**columns), MANIFEST, "layout X")


def test_the_limits_of_a_table_are_allowed() -> None:
    longest = 16 * MIB + 131072
    table = parse_segment(
        segment(
            digests=A, packs=u32(0), offsets=u32(64), lengths=u32(longest), heads=u32(131072),
            plains=u32(16 * MIB), codecs=b"\0", base_starts=b"", bases=b"",
            pack_sizes=u64(64 + longest, 2**64 - 1),
        ),
        "x",
    )  # fmt: skip
    assert table.place(0) == ChunkPlace(A, P, 64, longest, 131072, 16 * MIB, 0)
    smallest = {"lengths": u32(80, 436, 200), "heads": u32(80, 100, 140), "plains": u32(0, 336, 70)}
    assert parse_segment(segment(**smallest), "x").place(0).frame_bytes == 80


def test_an_empty_table() -> None:
    table = parse_layout(seal_layout(MANIFEST, [], {}), MANIFEST, "x")
    assert list(table) == []
    assert table.find(A) is None


def test_a_layout_is_of_its_manifest() -> None:
    with pytest.raises(Damaged, match="another manifest"):
        parse_layout(layout(), Digest(A), "x")
    with pytest.raises(Damaged, match="manifest"):
        parse_layout(sealed(2, msgpack(COLUMNS)), MANIFEST, "x")


def test_features_are_checked() -> None:
    with pytest.raises(UnsupportedFormat, match="'places-in-space'"):
        parse_segment(segment(requires=["places-in-space"]), "x")
    with pytest.raises(UnsupportedFormat, match="'places-in-space'"):
        parse_layout(layout(requires=["places-in-space"]), MANIFEST, "x")
    assert list(parse_segment(segment(more_columns=b"ignored"), "x")) == ROWS


def test_chunks_and_bases_that_a_layout_does_not_place() -> None:
    table = parse_segment(segment(), "x")
    assert missing_chunks(table, [A, B, C]) == []
    assert missing_chunks(table, [A, P]) == [P]
    alone = {
        "digests": C, "packs": u32(0), "offsets": u32(500), "lengths": u32(200),
        "heads": u32(140), "plains": u32(70), "codecs": b"\3", "base_starts": u32(0, 2),
    }  # fmt: skip
    assert missing_chunks(parse_segment(segment(**alone), "x"), [C]) == [A, B]


HEX = A.hex()


@pytest.mark.parametrize(("kind", "body", "fields"), [
    (Kind.MOVE, Move(pack=HEX, into=[B.hex(), C.hex()]), {"pack": HEX, "into": [B.hex(), C.hex()]}),
    (Kind.FOLD, Fold(patch=HEX, full=B.hex()), {"patch": HEX, "full": B.hex()}),
    (Kind.CONDEMNED, EarlyCondemned(run="r", packs=[HEX]), {"run": "r", "packs": [HEX]}),
], ids=["move", "fold", "condemned"])  # fmt: skip
def test_moves_folds_and_condemned_lists(kind: Kind, body: Body, fields: dict[str, Any]) -> None:
    stored, plain = read_sealed(seal_body(kind, body))
    assert (stored, json.loads(plain)) == (kind.value, {"requires": []} | fields)
    by_hand = sealed(kind, json.dumps({"requires": [], "more": 1} | fields).encode())
    assert unseal_body(kind, by_hand, type(body), "x") == body
    for name, value in fields.items():
        if name == "run":
            continue
        for bad in ("", HEX[:-1], HEX + "0", HEX.upper(), HEX + "\n", "g" * 64, "../" + HEX[3:]):
            wrong = fields | {name: bad if isinstance(value, str) else [bad]}
            data = sealed(kind, json.dumps({"requires": []} | wrong).encode())
            with pytest.raises(Damaged, match=r"regex|matching"):
                unseal_body(kind, data, type(body), "x")


def test_bodies_are_kept_apart_by_kind() -> None:
    with pytest.raises(Damaged, match="kind 3 instead of 2"):
        unseal_body(Kind.LAYOUT, segment(), TableBody, "x")


def test_quarantine_marks() -> None:
    fields: dict[str, Any] = {
        "pack": A, "chunks": B + C, "tiers": ["warm", "home"], "why": "bit rot", "who": "a@b",
        "time_us": 7,
    }  # fmt: skip
    stored, plain = read_sealed(seal_body(Kind.QUARANTINE, Mark(**fields)))
    assert (stored, read_msgpack(plain)) == (15, {"requires": []} | fields)
    by_hand = sealed(15, msgpack({"requires": [], "more": 1} | fields))
    assert parse_mark(by_hand, A, "x") == Mark(**fields)
    for wrong in (
        {"pack": B},
        {"chunks": B[1:]},
        {"tiers": [1]},
        {"time_us": 1 << 57},
        {"why": None},
    ):
        data = sealed(15, msgpack({"requires": []} | fields | wrong))
        with pytest.raises(Damaged):
            parse_mark(data, A, "x")
    for name in fields:
        left = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(Damaged, match="missing required field"):
            parse_mark(sealed(15, msgpack({"requires": []} | left)), A, "x")
    with pytest.raises(UnsupportedFormat):
        parse_mark(sealed(15, msgpack({"requires": ["x"]} | fields)), A, "x")
