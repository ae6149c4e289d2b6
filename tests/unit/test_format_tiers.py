"""Lists of tiers, pins, movers' leases and heat: SPEC.md section 13."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.format_by_hand import msgpack, read_msgpack, read_sealed, sealed
from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.format.heat import HeatBody, heat_columns, heat_entries, parse_heat, seal_heat
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.format.tiers import (
    MoverLease,
    Pin,
    TierSpec,
    has_secret,
    parse_tiers,
    pin_key,
    seal_tiers,
    tiers_key,
)

WARM: dict[str, Any] = {
    "name": "warm", "role": "warm", "url": "file:///mnt/w", "size": 7, "high": 90, "low": 80,
    "timeout_ms": 100, "state": "draining", "options": {"a": "b"}, "prices": {"gb_month": "0.02"},
}  # fmt: skip
LIST = {
    "requires": [], "seq": 3, "write_id": "ab" * 16, "tiers": [WARM], "time_us": 5, "who": "u@h",
    "message": "m",
}  # fmt: skip
PIN = {
    "requires": [], "version": "cd" * 32, "ref": "m@prod", "roles": ["hot", "warm"],
    "until_us": None, "who": "u@h",
}  # fmt: skip
MOVER = {
    "requires": [], "seq": 12, "id": "ab" * 16, "who": "u@h", "host": "h", "pid": 3, "ttl_s": 60,
    "done": True,
}  # fmt: skip
HEAT = {
    "requires": [], "node": "n1", "half_life_s": 3600, "landmark_us": 5, "offset_us": -7,
    "kinds": b"\0\1", "keys": b"a" * 32 + b"b" * 32, "scores": struct.pack("<2i", -65536, 98304),
}  # fmt: skip


def listed(**fields: Any) -> bytes:
    return sealed(10, json.dumps(LIST | fields).encode())


def heat(**fields: Any) -> bytes:
    return sealed(12, msgpack(HEAT | fields))


def test_by_hand() -> None:
    tiers = parse_tiers(listed(), 3, "x")
    assert tiers.tiers == [TierSpec(**WARM)]
    assert json.loads(read_sealed(seal_tiers(tiers))[1]) == LIST
    for number, kind, model, fields in (
        (11, Kind.PIN, Pin, PIN), (13, Kind.MOVER, MoverLease, MOVER),
    ):  # fmt: skip
        body = unseal_body(kind, sealed(number, json.dumps(fields).encode()), model, "x")
        assert read_sealed(seal_body(kind, body)) == (number, json.dumps(
            fields, separators=(",", ":")).encode())  # fmt: skip
    body = parse_heat(heat(), "x")
    assert heat_entries(body) == {(0, b"a" * 32): -1.0, (1, b"b" * 32): 1.5}
    number, plain = read_sealed(seal_heat(body))
    assert (number, read_msgpack(plain)) == (12, HEAT)


def test_keys() -> None:
    assert tiers_key(3) == "tiers/000000003"
    assert pin_key("cd" * 32) == "pins/" + "cd" * 32


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "home"}, {"name": ""}, {"name": "Warm"}, {"name": "a" * 33}, {"name": "1a"},
        {"name": "a\n"}, {"role": "lukewarm"}, {"url": ""}, {"size": -1}, {"low": 0},
        {"low": 91}, {"high": 101}, {"timeout_ms": 0}, {"state": "gone"}, {"new": 1},
        {"url": "redis://u:p@h"}, {"url": "redis://:p@h/0"}, {"options": {"a": 1}},
        {"options": {"secret_access_key": "x"}}, {"url": "unix:///s?db=0&password=p"},
    ],
    ids=str,
)  # fmt: skip
def test_a_tier_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Damaged) as caught:
        parse_tiers(listed(tiers=[WARM | wrong]), 3, "x")
    assert ":p@" not in str(caught.value)


def test_a_list_out_of_range_is_refused() -> None:
    cold = WARM | {"name": "cold"}
    assert len(parse_tiers(listed(tiers=[WARM, cold]), 3, "x").tiers) == 2
    assert parse_tiers(listed(tiers=[]), 3, "x").tiers == []
    for wrong in (
        {"tiers": [WARM, WARM]}, {"seq": 4}, {"write_id": "x"}, {"time_us": -1},
        {"time_us": 1 << 57},
    ):  # fmt: skip
        with pytest.raises(Damaged):
            parse_tiers(listed(**wrong), 3, "x")
    with pytest.raises(UnsupportedFormat, match="'quorum'"):
        parse_tiers(listed(requires=["quorum"]), 3, "x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": b"\0"}, {"keys": b"a" * 64}, {"keys": b"a" * 63}, {"scores": b"abc"},
        {"kinds": b"\0\2"}, {"half_life_s": 0}, {"landmark_us": -1}, {"landmark_us": 1 << 57},
        {"offset_us": 1 << 57}, {"keys": b"a" * 64, "kinds": b"\1\1"},
    ],
    ids=str,
)  # fmt: skip
def test_heat_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    if wrong == {"keys": b"a" * 64}:  # a digest and a pack's id may well be equal
        assert len(heat_entries(parse_heat(heat(**wrong), "x"))) == 2
        return
    with pytest.raises(Damaged):
        parse_heat(heat(**wrong), "x")


@given(
    st.dictionaries(
        st.tuples(st.sampled_from([0, 1]), st.binary(min_size=32, max_size=32)),
        st.floats(-1e9, 1e9),
    )
)
def test_heat_round_trips(entries: dict[tuple[int, bytes], float]) -> None:
    kinds, keys, scores = heat_columns(entries)
    body = HeatBody(node="n", half_life_s=60, landmark_us=0, kinds=kinds, keys=keys, scores=scores)
    found = heat_entries(parse_heat(seal_heat(body), "x"))
    assert found.keys() == entries.keys()
    for key, score in entries.items():
        assert found[key] == pytest.approx(max(-32768, min(32768, score)), abs=2**-16)


def test_what_counts_as_a_secret() -> None:
    for url in (
        "redis://user:pw@host:6379/0", "sftp://u:p@h/x", "redis://:@h", "s3://k:s@bucket/p",
        "https://h/p?X-Amz-Signature=1", "https://h/p?a=1&sig=x", "x://h?Access_Key_Id=1",
    ):  # fmt: skip
        assert has_secret(url), url
    for url in (
        "redis://host:6379/0", "s3://bucket/prefix", "file:///a:b@c", "sftp://user@host:22/p",
        "unix:///run/redis.sock?db=1", "h1:11211,h2:11211", "s3://bucket/token=1",
    ):  # fmt: skip
        assert not has_secret(url), url
