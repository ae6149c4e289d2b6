"""Ref entries, hints, leases, keys and the config: SPEC.md sections 9 and 10."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given

from tests.unit.format_by_hand import read_sealed, sealed, xxh3
from tierstore.errors import Damaged, InvalidName, UnsupportedFormat
from tierstore.format import keys
from tierstore.format.reflog import Hint, Lease, RefEntry, Summary, parse_entry
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.format.storeconfig import (
    Features,
    StoreConfig,
    check_features,
    encode_config,
    parse_config,
)
from tierstore.ids import Digest
from tierstore.testing.strategies import configs, hints, leases, names, ref_entries

HEX, ID = "ab" * 32, "cd" * 16
ENTRY: dict[str, Any] = {
    "requires": [], "seq": 7, "write_id": ID, "action": "rollback", "version": 3, "manifest": HEX,
    "previous": 6, "time_us": 1, "who": "me@here", "message": "why", "tool": "by hand",
}  # fmt: skip
GONE = ENTRY | {"action": "remove", "version": None, "manifest": None}
LEASE: dict[str, Any] = {
    "requires": [], "id": ID, "role": "reader", "who": "me", "host": "here", "pid": 1,
    "ttl_s": 60, "versions": [HEX],
}  # fmt: skip


def stored(kind: int, fields: dict[str, Any]) -> bytes:
    return sealed(kind, json.dumps(fields).encode())


def test_an_entry_by_hand_is_read_and_ours_is_the_same() -> None:
    for fields in (ENTRY, GONE, ENTRY | {"previous": None}):
        entry = parse_entry(stored(6, fields | {"new": [1.5]}), 7, "x")
        assert {name: getattr(entry, name) for name in fields} == fields
        kind, plain = read_sealed(seal_body(Kind.REF, entry))
        # entries written before there were rollouts and removals lack the fields; it is the same
        assert (kind, json.loads(plain)) == (6, fields | {"rollout": None, "versions": []})


@given(ref_entries())
def test_any_entry_round_trips(entry: RefEntry) -> None:
    assert parse_entry(seal_body(Kind.REF, entry), entry.seq, "x") == entry


ROLLOUT: dict[str, Any] = {
    "version": 4, "manifest": "ef" * 32, "salt": ID, "stages": [100, 5000, 10000], "stage": 1,
    "every_s": 1800, "gates": [{"metric": "p99_ms", "op": "<=", "limit": "12.5"}],
    "labels": {"region": "eu"}, "windows": ["22:00-06:00"], "paused": False,
}  # fmt: skip
MOVING = ENTRY | {"action": "step", "rollout": ROLLOUT}


def test_a_rollout_by_hand_is_read_and_ours_is_the_same() -> None:
    entry = parse_entry(stored(6, MOVING), 7, "x")
    assert entry.rollout is not None
    assert (entry.version, entry.rollout.version) == (3, 4)
    assert json.loads(read_sealed(seal_body(Kind.REF, entry))[1]) == MOVING | {"versions": []}


SUMMARY = {"bytes": 5_000_000_000, "files": 3, "tensors": 291}
PUBLISHED = ENTRY | {
    "action": "publish", "previous": None, "rollout": None, "versions": [], "summary": SUMMARY,
}  # fmt: skip


def test_a_summary_by_hand_is_read_and_ours_is_the_same() -> None:
    entry = parse_entry(stored(6, PUBLISHED | {"summary": SUMMARY | {"new": 1}}), 7, "x")
    assert entry.summary == Summary(bytes=5_000_000_000, files=3, tensors=291)
    assert json.loads(read_sealed(seal_body(Kind.REF, entry))[1]) == PUBLISHED


REMOVED = GONE | {"action": "forget", "previous": None, "rollout": None, "versions": [3, 5]}


def test_a_removal_by_hand_is_read_and_ours_is_the_same() -> None:
    for fields in (REMOVED, REMOVED | {"action": "undelete", "versions": list(range(1, 10_001))}):
        entry = parse_entry(stored(6, fields), 7, "x")
        assert entry.versions == fields["versions"]
        assert json.loads(read_sealed(seal_body(Kind.REF, entry))[1]) == fields


BAD_ENTRIES: dict[str, dict[str, Any]] = {
    **{
        f"a rollout with {name} {value!r}": MOVING | {"rollout": ROLLOUT | {name: value}}
        for name, value in [
            ("stages", []),
            ("stages", [100]),
            ("stages", [5000, 100, 10000]),
            ("stage", 3),
            ("stages", [100, 100, 10000]),
            ("stages", [0, 10000]),
            ("every_s", 0),
            ("salt", "x"),
            ("windows", ["24:00-06:00"]),
            ("gates", [{"metric": "m", "op": "<", "limit": "1"}]),
            ("gates", [{"metric": "m", "op": "<=", "limit": "1e9"}]),
            ("manifest", "x"),
        ]
    },
    "a rollout from nowhere": GONE | {"rollout": ROLLOUT},
    "another seq": ENTRY | {"seq": 8},
    "seq zero": ENTRY | {"seq": 0},
    "a version without its manifest": ENTRY | {"manifest": None},
    "a manifest without its version": ENTRY | {"version": None},
    "removed with a version": ENTRY | {"action": "remove"},
    "set to nothing": GONE | {"action": "set"},
    "nothing is removed": REMOVED | {"versions": []},
    "removed versions that fall": REMOVED | {"versions": [5, 3]},
    "a version that is removed twice": REMOVED | {"versions": [3, 3]},
    "version zero is removed": REMOVED | {"versions": [0, 3]},
    "more are removed than one entry may name": REMOVED | {"versions": list(range(1, 10_002))},
    "brought back, and points to a version": ENTRY | {"action": "undelete", "versions": [3]},
    "an alias that removes versions": ENTRY | {"versions": [3]},
    "an unknown action": ENTRY | {"action": "merge"},
    "previous is itself": ENTRY | {"previous": 7},
    "previous is later": ENTRY | {"previous": 8},
    "previous is zero": ENTRY | {"previous": 0},
    "version zero": ENTRY | {"version": 0},
    "version beyond nine digits": ENTRY | {"version": 10**9},
    "manifest is no digest": ENTRY | {"manifest": HEX[1:]},
    "manifest in upper case": ENTRY | {"manifest": HEX.upper()},
    "write_id is no id": ENTRY | {"write_id": ID[1:]},
    "time before the epoch": ENTRY | {"time_us": -1},
    "time beyond any date": ENTRY | {"time_us": 2**57},
    "who is missing": {name: value for name, value in ENTRY.items() if name != "who"},
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_damaged_entries(case: str) -> None:
    with pytest.raises(Damaged, match="entry X is damaged"):
        parse_entry(stored(6, BAD_ENTRIES[case]), 7, "entry X")


def test_the_highest_sequence() -> None:
    last = 999_999_999
    fields = ENTRY | {"seq": last, "version": last, "previous": last - 1}
    assert parse_entry(stored(6, fields), last, "x").seq == last
    with pytest.raises(Damaged, match="is damaged"):
        parse_entry(stored(6, ENTRY | {"seq": last + 1}), last + 1, "x")


def test_a_newer_entry_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="'rings'"):
        parse_entry(stored(6, {"requires": ["rings"]}), 7, "x")


@given(hints(), leases())
def test_hints_and_leases_round_trip(hint: Hint, lease: Lease) -> None:
    for kind, body in ((Kind.HINT, hint), (Kind.LEASE, lease)):
        assert unseal_body(kind, seal_body(kind, body), type(body), "x") == body


def test_hints_and_leases_by_hand() -> None:
    hint = {"requires": [], "seq": 12}
    assert unseal_body(Kind.HINT, stored(8, hint), Hint, "x") == Hint(seq=12)
    assert json.loads(read_sealed(seal_body(Kind.HINT, Hint(seq=12)))[1]) == hint
    lease = unseal_body(Kind.LEASE, stored(7, LEASE), Lease, "x")
    assert json.loads(read_sealed(seal_body(Kind.LEASE, lease))[1]) == LEASE
    for seq in (0, -1, 10**9, 10**30, "1", None, 1.5):
        with pytest.raises(Damaged, match="is damaged"):
            unseal_body(Kind.HINT, stored(8, {"requires": [], "seq": seq}), Hint, "x")
    for wrong in ({"role": "owner"}, {"ttl_s": 0}, {"ttl_s": 604_801}, {"id": "../x"},
                  {"versions": ["no digest"]}, {"pid": "1"}):  # fmt: skip
        with pytest.raises(Damaged, match="is damaged"):
            unseal_body(Kind.LEASE, stored(7, LEASE | wrong), Lease, "x")


CONFIG: dict[str, Any] = {
    "format": 1, "store_id": ID, "chunk_size": 1 << 22, "hash": "blake3",
    "features": {"read": [], "write": [], "gc": []}, "tiers": [],
}  # fmt: skip


def config(fields: dict[str, Any], check: str | None = None) -> bytes:
    compact = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(fields | {"check": check or f"{xxh3(compact):016x}"}, indent=4).encode()


def test_a_config_by_hand_is_read_and_ours_is_the_same() -> None:
    parsed = parse_config(config(CONFIG), "x")
    assert parsed == StoreConfig(store_id=ID, chunk_size=1 << 22)
    assert json.loads(encode_config(parsed)) == json.loads(config(CONFIG))


@given(configs())
def test_any_config_round_trips(one: StoreConfig) -> None:
    assert parse_config(encode_config(one), "x") == one
    fields = json.loads(encode_config(one))
    check = fields.pop("check")
    compact = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    assert check == f"{xxh3(compact):016x}"


BAD_CONFIGS = {
    "empty": b"",
    "no JSON": b"format = 1",
    "a list": b"[]",
    "not UTF-8": config(CONFIG).replace(b"blake3", b"\xff\xfe"),
    "too long": b" " * (1 << 20) + config(CONFIG),
    "deep": b'{"a":' * 100_000,
    "a huge number": b'{"format":' + b"1" * 5000 + b"}",
    "edited by hand": config(CONFIG).replace(b"4194304", b"1048576"),
    "another checksum": config(CONFIG, check="0" * 16),
    "no checksum": json.dumps(CONFIG).encode(),
    **{
        f"no {name}": config({key: value for key, value in CONFIG.items() if key != name})
        for name in CONFIG
    },
    "store_id": config(CONFIG | {"store_id": ID + "0"}),
    "store_id in upper case": config(CONFIG | {"store_id": ID.upper()}),
    "chunk size": config(CONFIG | {"chunk_size": 5 << 20}),
    "chunk size above": config(CONFIG | {"chunk_size": 32 << 20}),
    "chunk size of text": config(CONFIG | {"chunk_size": "4194304"}),
    "format is true": config(CONFIG | {"format": True}),
    "features of text": config(CONFIG | {"features": {"read": "x", "write": [], "gc": []}}),
    "features missing": config(CONFIG | {"features": {"read": [], "write": []}}),
}

NEWER_CONFIGS = {
    "format 2": config(CONFIG | {"format": 2}),
    "format 2 with other fields and no checksum": b'{"format": 2, "stores": [], "size": 1.5}',
    "keyed hash": config(CONFIG | {"hash": "blake3-keyed"}),
    "an unknown field": config(CONFIG | {"region": "eu"}),
    "tiers": config(CONFIG | {"tiers": [{"url": "s3://cold"}]}),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_damaged_configs(case: str) -> None:
    with pytest.raises(Damaged, match="config X is damaged"):
        parse_config(BAD_CONFIGS[case], "config X")


@pytest.mark.parametrize("case", NEWER_CONFIGS)
def test_newer_configs(case: str) -> None:
    with pytest.raises(UnsupportedFormat, match="newer tierstore"):
        parse_config(NEWER_CONFIGS[case], "config X")


def test_features_bind_only_what_they_are_for() -> None:
    one = StoreConfig(store_id=ID, features=Features(write=["quick"]))
    check_features(one, "read", "x")
    check_features(one, "gc", "x")
    with pytest.raises(UnsupportedFormat, match="'quick'"):
        check_features(one, "write", "x")


def test_keys_are_those_of_the_specification() -> None:
    digest = Digest(bytes(range(32)))
    text = digest.hex
    assert keys.CONFIG == "config.json"
    assert keys.pack_key(digest.raw) == f"packs/00/{text}"
    assert keys.version_key(digest) == f"versions/{text}"
    assert keys.layout_key(digest) == f"layouts/{text}"
    assert keys.move_key(digest.raw) == f"moves/{text}"
    assert keys.move_key(digest.raw, 12) == f"moves/{text}-12"
    assert keys.quarantine_key(digest.raw) == f"quarantine/{text}"
    assert (keys.FOLDS, keys.INDEX, keys.LEASES, keys.GC) == ("folds/", "index/", "leases/", "gc/")
    prefix = keys.ref_prefix("org/model", "versions")
    assert prefix == "refs/org%2Fmodel/versions/"
    assert keys.ref_prefix("m", "alias/a/b") == "refs/m/alias/a%2Fb/"
    assert keys.ref_prefix("m", "variant/int8-row") == "refs/m/variant/int8-row/"
    assert keys.REPORTS == "reports/"
    assert keys.HEAD == "HEAD"
    assert keys.entry_key(prefix, 1) == prefix + "000000/000000001"
    assert keys.entry_key(prefix, 999_999_999) == prefix + "999999/999999999"
    assert keys.entry_key(prefix, 1_234_567) == prefix + "001234/001234567"


@pytest.mark.parametrize(("name", "text"), [
    ("plain-Name_0.9", "plain-Name_0.9"), (".hidden", "%2Ehidden"), ("..", "%2E."), ("~", "%7E"),
    ("a b", "a%20b"), ("é", "%C3%A9"), ("100%", "100%25"), ("a.b", "a.b"), ("+&=:", "%2B%26%3D%3A"),
])  # fmt: skip
def test_segments_by_hand(name: str, text: str) -> None:
    assert keys.segment(name) == text
    assert keys.unsegment(text) == name


@given(names())
def test_any_name_is_one_segment_and_comes_back(name: str) -> None:
    try:
        text = keys.segment(name)
    except InvalidName:
        assert len(name.encode()) > 80
        return
    assert re.fullmatch(r"[A-Za-z0-9\-._%]+", text)
    assert not text.startswith(".")
    assert keys.unsegment(text) == name


def test_the_longest_segment() -> None:
    assert len(keys.segment("x" * 240)) == 240
    assert len(keys.segment("é" * 40)) == 240
    for name in ("x" * 241, "é" * 41):
        with pytest.raises(InvalidName, match="too long"):
            keys.segment(name)


def test_entries_sort_as_they_are_numbered() -> None:
    numbers = [1, 2, 9, 10, 999, 1000, 1001, 9999, 10_000, 999_999, 1_000_000, 999_999_999]
    listed = [keys.entry_key("refs/m/versions/", number) for number in numbers]
    assert listed == sorted(listed)
