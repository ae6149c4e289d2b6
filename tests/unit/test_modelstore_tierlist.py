"""The list of tiers: revisions, conflicts, lost answers, and what old clients see."""

from __future__ import annotations

import json
from functools import partial

import pytest

from tierstore.blobs.memory import MemoryStore
from tierstore.errors import ConfigError, Conflict, Damaged, NotFound, UnsupportedFormat
from tierstore.format.checks import xxh3
from tierstore.format.storeconfig import parse_config
from tierstore.format.tiers import TierSpec, tiers_key
from tierstore.modelstore.home.features import add_features
from tierstore.modelstore.home.home import Home, create_config, read_config
from tierstore.modelstore.home.tierlist import TierLog, added, changed, check_tier, find, removed
from tierstore.testing.faulty import Fault, FaultyStore

WARM = TierSpec(name="warm", role="warm", url="file:///w")
COLD = TierSpec(name="cold", role="cold", url="s3://bucket/prefix")
HOT = TierSpec(name="hot", role="hot", url="file:///h")
REDIS = TierSpec(name="redis", role="shared", url="redis://h")


@pytest.fixture
def home() -> MemoryStore:
    blobs = MemoryStore("home")
    create_config(blobs)
    return blobs


def test_a_store_without_tiers_says_nothing_of_them(home: MemoryStore) -> None:
    assert TierLog(home).current() is None
    assert (
        b"tiers" not in json.dumps(json.loads(bytes(home.get("config.json")))["features"]).encode()
    )


def test_revisions(home: MemoryStore) -> None:
    log = TierLog(home)
    first = log.change(lambda tiers: added(tiers, COLD), "cold storage")
    assert (first.seq, first.tiers, first.message) == (1, [COLD], "cold storage")
    before = bytes(home.get(tiers_key(1)))
    log.change(lambda tiers: added(tiers, WARM))
    assert log.current() == TierLog(home).current()
    current = log.current()
    assert current is not None
    assert (current.seq, [tier.name for tier in current.tiers]) == (2, ["warm", "cold"])
    assert bytes(home.get(tiers_key(1))) == before


def test_a_client_that_does_not_know_tiers_refuses_the_store(home: MemoryStore) -> None:
    """It would call the packs in other tiers missing, and its check would call them garbage."""
    TierLog(home).change(lambda tiers: added(tiers, WARM))
    config = read_config(home)
    assert config.features.read == config.features.write == ["tiers"]
    assert config.features.gc == []
    assert Home(home).config == config


def test_the_feature_is_announced_before_the_first_list(home: MemoryStore) -> None:
    class Stop(Exception):
        pass

    def plan(op: str, key: str, n: int) -> Fault:
        return Stop() if op == "put_if_absent" else None

    with pytest.raises(Stop):
        TierLog(FaultyStore(home, plan)).change(lambda tiers: added(tiers, WARM))
    assert read_config(home).features.read == ["tiers"]
    assert TierLog(home).current() is None


def test_an_unknown_feature_is_still_refused(home: MemoryStore) -> None:
    fields = json.loads(bytes(home.get("config.json")))
    fields.pop("check")
    fields["features"]["read"] = ["tiers", "sparse"]
    compact = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    home.put("config.json", json.dumps(fields | {"check": f"{xxh3(compact):016x}"}).encode())
    with pytest.raises(UnsupportedFormat, match="'sparse'"):
        TierLog(home).change(lambda tiers: added(tiers, WARM))
    assert parse_config(home.get("config.json"), "x").features.read == ["tiers", "sparse"]


def test_of_two_admins_one_gets_a_conflict(home: MemoryStore) -> None:
    log = TierLog(home)

    def meanwhile(tiers: object) -> list[TierSpec]:
        TierLog(home).change(lambda tiers: added(tiers, WARM))
        return [COLD]

    with pytest.raises(Conflict, match="at the same time"):
        log.change(meanwhile)
    current = log.current()
    assert current is not None
    assert current.tiers == [WARM]


def test_a_lost_answer_is_no_conflict(home: MemoryStore) -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return "lose-response" if op == "put_if_absent" else None

    assert TierLog(FaultyStore(home, plan)).change(lambda tiers: added(tiers, WARM)).seq == 1
    current = TierLog(home).current()
    assert current is not None
    assert current.tiers == [WARM]


def test_tiers_stand_from_fast_to_slow() -> None:
    tiers: list[TierSpec] = []
    for spec in (COLD, WARM, HOT, REDIS):
        tiers = added(tiers, spec)
    assert tiers == [HOT, REDIS, WARM, COLD]
    second = TierSpec(name="nfs", role="warm", url="file:///n")
    assert added(tiers, second) == [HOT, REDIS, WARM, second, COLD]
    with pytest.raises(Conflict, match="'warm'"):
        added(tiers, TierSpec(name="warm", role="cold", url="file:///x"))
    with pytest.raises(NotFound, match="home is the store itself"):
        find(tiers, "home")


def test_change_and_remove() -> None:
    tiers = [HOT, WARM, COLD]
    assert changed(tiers, "warm", size=5)[1].size == 5
    assert removed(tiers, "warm") == [HOT, COLD]
    assert find(tiers, "cold") is COLD
    for call in (lambda: removed(tiers, "worm"), lambda: changed(tiers, "worm", size=1)):
        with pytest.raises(NotFound, match="hot, warm, cold"):
            call()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": "home"}, "not a valid name of a tier"),
        ({"low": 90, "high": 80}, "watermarks"),
        ({"size": -1}, "negative"),
        ({"timeout_ms": 0}, "timeout"),
        ({"url": "redis://user:hunter2@h"}, "password_env"),
        ({"options": {"secret_key": "hunter2"}}, "password or key"),
        ({"prices": {"gb_mont": "1"}}, "did you mean 'gb_month'"),
        ({"prices": {"gb_month": "1 cent"}}, "not a price"),
        ({"prices": {"gb_month": "-1"}}, "not a price"),
        ({"prices": {"gb_month": "NaN"}}, "not a price"),
    ],
)
def test_a_bad_tier_is_refused_and_nothing_secret_repeated(
    home: MemoryStore, fields: dict[str, object], why: str
) -> None:
    spec = TierSpec(**({"name": "t", "role": "warm", "url": "file:///t"} | fields))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=why) as caught:
        TierLog(home).change(lambda tiers: added(tiers, spec))
    assert "hunter2" not in str(caught.value)
    assert "damaged" not in str(caught.value)
    assert TierLog(home).current() is None


def test_a_node_has_one_hot_tier(home: MemoryStore) -> None:
    with pytest.raises(ConfigError, match="one hot tier"):
        TierLog(home).change(lambda _: [HOT, TierSpec(name="ram", role="hot", url="file:///r")])


@pytest.mark.parametrize("stray", ["foreign", "000000000", "0000000009", "00000000a", "9"])
def test_what_is_not_ours_is_no_list(home: MemoryStore, stray: str) -> None:
    home.put(f"tiers/{stray}", b"of somebody else")
    add_features(home, gc=["reclaim"])
    assert Home(home).config.features.read == []
    assert TierLog(home).current() is None
    for name in ("warm", "cold"):
        spec = TierSpec(name=name, role="warm", url=f"file:///{name}")
        TierLog(home).change(partial(added, spec=spec))
    current = TierLog(home).current()
    assert current is not None
    assert [tier.name for tier in current.tiers] == ["warm", "cold"]


def test_a_damaged_list_is_no_empty_list(home: MemoryStore) -> None:
    TierLog(home).change(lambda tiers: added(tiers, WARM))
    home.put(tiers_key(1), bytes(home.get(tiers_key(1)))[:-1])
    with pytest.raises(Damaged, match="tiers/000000001"):
        TierLog(home).current()


@pytest.mark.parametrize("options", [{"min_heat": "much"}, {"ttl_s": "-1"}, {"ttl_s": "inf"}])
def test_options_for_the_mover_are_numbers(options: dict[str, str]) -> None:
    spec = TierSpec(name="cold", role="cold", url="memory://cold", options=options)
    with pytest.raises(ConfigError, match="is not a number such as"):
        check_tier(spec)
    check_tier(TierSpec(name="cold", role="cold", url="memory://cold", options={"ttl_s": "9e5"}))
