"""What a reader refuses, a writer does not write: every kind of record, field by field."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import UsageError
from tierstore.format.collected import Collected, Growth, Held, LastCollection
from tierstore.format.condemned import CondemnedList, CondemnedSegment, EarlyCondemned
from tierstore.format.heat import HeatBody, parse_heat
from tierstore.format.layout import (
    Fold,
    LayoutBody,
    Mark,
    Move,
    seal_layout,
    seal_segment,
)
from tierstore.format.manifest import FileEntry, Manifest, parse_manifest, seal_manifest
from tierstore.format.pack import PackBuilder
from tierstore.format.purge import (
    Acknowledgement,
    NodeNote,
    PurgedContent,
    PurgedPack,
    PurgeOrder,
    PurgePart,
    SharedChunks,
)
from tierstore.format.reflog import Hint, Lease, RefEntry, Report, Rollout, parse_entry
from tierstore.format.retention import Retention, Rules
from tierstore.format.sealed import Body, Kind, decode_body, encode_body, seal_body, unseal_body
from tierstore.format.table import ChunkPlace, TableBody, encode_table
from tierstore.format.tiers import MoverLease, Pin, TierList, TierSpec, parse_tiers
from tierstore.ids import Digest

HEX16, HEX32 = "ab" * 16, "cd" * 32
WARM = TierSpec(name="warm", role="warm", url="file:///warm")
COLUMNS: dict[str, Any] = {
    "digests": b"",
    "offsets": b"",
    "lengths": b"",
    "heads": b"",
    "plains": b"",
    "codecs": b"",
}

BODIES: dict[Kind, Body] = {
    Kind.MANIFEST: Manifest(files=(FileEntry(path="a", size=0, sha256=bytes(32)),)),
    Kind.LAYOUT: LayoutBody(manifest=bytes(32), **COLUMNS),
    Kind.SEGMENT: TableBody(**COLUMNS),
    Kind.FOLD: Fold(patch=HEX32, full=HEX32),
    Kind.MOVE: Move(pack=HEX32, into=[HEX32]),
    Kind.REF: RefEntry(
        seq=2, write_id=HEX16, action="set", version=1, manifest=HEX32, previous=1, time_us=7,
        who="me@here", message="why", tool="test",
        rollout=Rollout(version=2, manifest=HEX32, salt=HEX16, stages=[100, 10_000]),
    ),
    Kind.LEASE: Lease(id=HEX16, role="reader", who="me", host="here", pid=1, ttl_s=60),
    Kind.HINT: Hint(seq=1),
    Kind.CONDEMNED: EarlyCondemned(run="1", packs=[HEX32]),
    Kind.CONDEMNED_LIST: CondemnedList(seq=1, run=HEX16, time_us=7, filter=b"", segments=[]),
    Kind.CONDEMNED_SEGMENT: CondemnedSegment(packs=bytes(32)),
    Kind.TIERS: TierList(seq=1, write_id=HEX16, tiers=[WARM], time_us=7, who="me", message="why"),
    Kind.PIN: Pin(version=HEX32, ref="m@1", roles=["hot"], until_us=None, who="me"),
    Kind.HEAT: HeatBody(node="n", half_life_s=60, landmark_us=7, kinds=b"", keys=b"", scores=b""),
    Kind.MOVER: MoverLease(seq=1, id=HEX16, who="me", host="here", pid=1, ttl_s=60),
    Kind.REPORT: Report(version=HEX32, node="n", values={"p99_ms": "12.5"}),
    Kind.QUARANTINE: Mark(
        pack=bytes(32), chunks=bytes(64), tiers=["warm"], why="cut short", who="me", time_us=7
    ),
    Kind.GROWTH: Growth(since_us=7, bytes=8),
    Kind.PURGE: PurgeOrder(
        id=HEX16, time_us=7, who="me", model="m", version=1, manifest=HEX32, variants=["half"],
        manifests_left={HEX32: "m@2"},
        shared=[SharedChunks(why="m@2", chunks=1, plain_bytes=8)],
        packs=[PurgedPack(pack=HEX32, tier="home", bytes=7, gone=True)], down={"warm": "no"},
    ),
    Kind.PURGED: PurgedContent(
        id=HEX16, sweep=1, manifests=bytes(32), digests=bytes(32) + b"x" * 32, kept=b"\1",
        deltas=bytes(48),
    ),
    Kind.ACKNOWLEDGEMENT: Acknowledgement(
        id=HEX16, node="n", place=HEX16, who="me", sweep=1, time_us=7,
        dropped={"hot": 3}, failed={"r": "no"},
    ),
    Kind.PURGE_PART: PurgePart(
        id=HEX16, manifests=bytes(32), digests=bytes(32), deltas=bytes(48), objects=["layouts/x"],
        packs=[PurgedPack(pack=HEX32, tier="home", bytes=7)], kept_bytes={"home": 7},
    ),
    Kind.NODE: NodeNote(node="n", place=HEX16, who="me", tool="tierstore 1", time_us=7),
    Kind.RETENTION: Retention(
        window_s=60, alias_history_s=9, rules=Rules(keep_last=3), time_us=7, who="me"
    ),
    Kind.COLLECTED: Collected(
        time_us=7, boot="b", running_us=7, packs=bytes(32), since_s=[7], writers={HEX16: [HEX16]},
        last=LastCollection(
            time_us=7, who="me", condemned=1, healed=0, down={}, freed={"home": 7},
            tiers={"home": {"live": Held(packs=1, bytes=7)}},
        ),
    ),
}  # fmt: skip
READ_IN_ONE_WAY = [kind for kind in Kind if kind not in {Kind.LAYOUT, Kind.SEGMENT}]

WRONG: tuple[Any, ...] = (
    None, 7, 1.5, 20e9, True, "x", b"x", [7], {"x": 7}, ["x"], Path("x"), np.int64(7),
    np.str_("x"), uuid.UUID(int=7), decimal.Decimal(7), datetime.date(2026, 1, 1), "\udc80", -1,
    1 << 70, object(), ("x",), [], {}, "", b"",
)  # fmt: skip


def test_every_kind_is_looked_at() -> None:
    assert set(BODIES) == set(Kind)


def read(kind: Kind, data: bytes, body: Any) -> object:
    """Read a sealed object with the reader of its kind, which the program has."""
    readers: dict[Kind, Callable[[], object]] = {
        Kind.REF: lambda: parse_entry(data, body.seq, "it"),
        Kind.TIERS: lambda: parse_tiers(data, body.seq, "it"),
        Kind.HEAT: lambda: parse_heat(data, "it"),
    }
    if kind in readers:
        return readers[kind]()
    return unseal_body(kind, data, type(body), "it")


@pytest.mark.parametrize("kind", READ_IN_ONE_WAY, ids=str)
def test_a_wrong_field_is_named(kind: Kind) -> None:
    """Each value that is not of a field's type is refused, and said of which field."""
    good = BODIES[kind]
    assert read(kind, seal_body(kind, good), good) == good
    refused = 0
    for field in good.__struct_fields__:
        for value in WRONG:
            body = msgspec.structs.replace(good, **{field: value})
            try:
                data = seal_body(kind, body)
            except UsageError as error:
                refused += 1
                said = str(error)
                assert said.startswith(f"such a {kind.title} cannot be stored: ")
                continue
            assert read(kind, data, body) == body, (field, value)
            assert type(value) in {str, int, bool, list, dict, type(None), bytes, tuple}
    assert refused > 10 * len(good.__struct_fields__)


@pytest.mark.parametrize(("kind", "field", "value", "says"), [
    (Kind.REF, "message", None, "message: expected text, not None"),
    (Kind.REF, "message", 7, "message: expected text, not 7"),
    (Kind.REF, "message", ["a"], "message: expected text, not a value of type list"),
    (Kind.REF, "message", b"why",
     "message: a value of type bytes would be read as one of type str"),
    (Kind.REF, "message", "\udc80", "message: 'utf-8' codec can't encode character"),
    (Kind.REF, "who", uuid.UUID(int=7),
     "who: a value of type UUID would be read as one of type str"),
    (Kind.REF, "seq", 1 << 40, "seq: expected a whole number <= 999999999, not 1099511627776"),
    (Kind.TIERS, "tiers", [msgspec.structs.replace(WARM, size=20e9)],
     "tiers[0].size: expected a whole number or None, got a number"),
    (Kind.TIERS, "tiers", [msgspec.structs.replace(WARM, role="tepid")],
     "tiers[0].role: invalid enum value 'tepid'"),
    (Kind.TIERS, "tiers", [{"name": "warm"}], "tiers[0]: object missing required field `role`"),
    (Kind.PIN, "ref", None, "ref: expected text, not None"),
    (Kind.REPORT, "values", {"p99_ms": 12.5}, "values[...]: expected text, got a number"),
    (Kind.HEAT, "keys", "x", "keys: expected bytes, not 'x'"),
])  # fmt: skip
def test_the_message_names_the_field(kind: Kind, field: str, value: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        seal_body(kind, msgspec.structs.replace(BODIES[kind], **{field: value}))
    assert str(caught.value).startswith(f"such a {kind.title} cannot be stored: {says}")


@pytest.mark.parametrize(("kind", "fields", "says"), [
    (Kind.HINT, {"requires": ["sparse"]}, "the feature 'sparse'"),
    (Kind.REF, {"version": None}, "its target is incomplete"),
    (Kind.REF, {"action": "remove"}, "its target is incomplete"),
    (Kind.REF, {"previous": 2}, "it goes back to entry 2"),
    (Kind.REF, {"rollout": Rollout(version=2, manifest=HEX32, salt=HEX16, stages=[5000])},
     "the stages of its rollout do not rise to all nodes"),
    (Kind.REF, {"versions": [1]}, "the versions that it removes or brings back are not as they"),
    (Kind.REF, {"action": "forget", "version": None, "manifest": None, "rollout": None},
     "the versions that it removes or brings back are not as they"),
    (Kind.RETENTION, {"rules": Rules()}, "there is no rule among its rules"),
    (Kind.COLLECTED, {"since_s": []}, "its packs and their times are not as many"),
    (Kind.COLLECTED, {"packs": bytes(64), "since_s": [7, 7]}, "its packs do not rise"),
    (Kind.TIERS, {"tiers": [WARM, WARM]}, "two tiers have the same name"),
    (Kind.TIERS, {"time_us": -1}, "its time is out of range"),
    (Kind.TIERS, {"tiers": [msgspec.structs.replace(WARM, size=-1)]},
     "the size of tier warm is negative"),
    (Kind.HEAT, {"kinds": b"\0"}, "its columns differ in length"),
    (Kind.HEAT, {"half_life_s": 0}, "its half-life or landmark is out of range"),
    (Kind.MANIFEST, {"files": (FileEntry(path="/a", size=0, sha256=bytes(32)),)}, "file path '/a'"),
    (Kind.MANIFEST, {"kind": "sparse"}, "manifests of kind 'sparse'"),
    (Kind.MANIFEST, {"chunk_size": 7}, "a chunk size of 7 is out of range"),
    (Kind.QUARANTINE, {"chunks": bytes(31)}, "its chunks are no list of digests"),
])  # fmt: skip
def test_what_contradicts_itself_is_not_written(
    kind: Kind, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        seal_body(kind, msgspec.structs.replace(BODIES[kind], **fields))
    assert str(caught.value).startswith(f"such a {kind.title} cannot be stored: {says}")


def test_a_manifest_goes_the_same_way() -> None:
    good = BODIES[Kind.MANIFEST]
    assert isinstance(good, Manifest)
    digest, data = seal_manifest(good)
    assert parse_manifest(data, digest, "it") == good
    with pytest.raises(UsageError, match="such a manifest cannot be stored: a chunk size of 7"):
        seal_manifest(msgspec.structs.replace(good, chunk_size=7))


PLACE = ChunkPlace(bytes(32), b"p" * 32, 64, 100, 88, 12, 0)
OUTSIDE = ChunkPlace(bytes(32), b"p" * 32, 10, 100, 88, 12, 0)


def test_a_table_that_contradicts_itself_is_not_written() -> None:
    sizes = {b"p" * 32: 400}
    assert seal_layout(Digest(bytes(32)), [PLACE], sizes)
    assert seal_segment([PLACE], sizes)
    with pytest.raises(UsageError, match="layout cannot be stored: a chunk's place is out of"):
        seal_layout(Digest(bytes(32)), [OUTSIDE], sizes)
    with pytest.raises(UsageError, match="segment of the index cannot be stored: a chunk's place"):
        seal_segment([OUTSIDE], sizes)
    pack = PackBuilder()
    pack.add(bytes(32), bytes(100), head_bytes=3, plain_bytes=12, codec=0)
    with pytest.raises(UsageError, match="segment of the index cannot be stored: a chunk's place"):
        pack.close()
    with pytest.raises(UsageError, match="differ in length"):
        encode_table(Kind.SEGMENT, TableBody(**{**COLUMNS, "digests": b"x" * 31}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.sampled_from([HEX16, HEX32, "hot", "warm", "set", WARM]),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(), some, max_size=2),
    max_leaves=4,
)  # fmt: skip


@given(st.sampled_from(READ_IN_ONE_WAY), st.data())
def test_whatever_is_accepted_is_read_back(kind: Kind, data: st.DataObject) -> None:
    good = BODIES[kind]
    fields = data.draw(st.sets(st.sampled_from(good.__struct_fields__), min_size=1, max_size=2))
    body = msgspec.structs.replace(good, **{field: data.draw(VALUES) for field in fields})
    try:
        plain = encode_body(kind, body)
    except UsageError:
        return
    assert decode_body(kind, plain, type(body), "it") == body
