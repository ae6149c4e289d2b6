"""Deleting packs from tiers that do not delete all of them: the rest goes, and only that counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_tiers import Tiered
from tierstore.errors import BackendError, NotDurable, PermissionDenied, Unreachable
from tierstore.format.keys import PACKS
from tierstore.modelstore.home.probe import Probe
from tierstore.modelstore.reclaim import collector, sweep
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.report import Report
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault


@pytest.fixture
def tiered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiered]:
    monkeypatch.setattr(sweep, "BATCH", 1)
    made = Tiered(tmp_path)
    yield made
    made.plans.clear()
    for store in made.opened:
        store.close()


@pytest.fixture
def store(tiered: Tiered) -> Store:
    """Four versions without anything in common, three of them removed; packs in two tiers."""
    store = tiered.open()
    enable(store._parts.home, wait_s=0)
    for seed in range(4):
        store.save("m", {"w": np.random.default_rng(seed).standard_normal(9000)}, base=None)
    tiered.copy("warm", "cold")
    store.remove("m@1", "m@2", "m@3")
    return store


def collect(store: Store) -> Report:
    return Collector(store._parts.home).run(grace_s=0, window_s=0)


def refuse(tiered: Tiered, name: str, error: BackendError) -> str:
    """Let a tier refuse to delete the first pack that goes; return its key."""
    first = min(tiered.packs(name))

    def plan(op: str, key: str, n: int) -> Fault:
        return error if (op, key) == ("delete", first) else None

    tiered.plans[name] = plan
    return first


def test_one_pack_that_is_not_deleted_keeps_no_other(tiered: Tiered, store: Store) -> None:
    [live] = {one.pack for one in collect_dry(store).of("live")}
    tiered.stores["cold"].inner.delete([f"packs/{live.hex()[:2]}/{live.hex()}"])
    first = refuse(tiered, "cold", PermissionDenied("it is retained"))
    size = tiered.stores["cold"].inner.info(first).size
    before = {name: sum_of(tiered, name) for name in ("warm", "cold")}
    report = collect(store)
    assert tiered.packs("cold") == [first]
    assert report.freed == {name: before[name] - sum_of(tiered, name) for name in before}
    assert (report.refused, report.down) == ({"cold": "it is retained"}, {})
    [left] = report.of("down")
    assert (dict(left.bytes), left.why) == (
        {"cold": size}, "nothing needs it, but tier cold does not delete it",
    )  # fmt: skip
    assert len(report.of("deleted")) == 2
    assert report.left()["cold"]["down"].bytes == size
    assert "down" not in report.left()["warm"]
    tiered.plans.clear()
    report = collect(store)
    assert (report.freed, report.refused, tiered.packs("cold")) == ({"cold": size}, {}, [])


def test_what_a_power_loss_may_bring_back_is_deleted(tiered: Tiered, store: Store) -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        if op == "delete" and key.startswith(PACKS):
            tiered.stores["warm"].inner.delete([key])
            return NotDurable("not synced")
        return None

    tiered.plans["warm"] = plan
    report = collect(store)
    assert report.refused == {}
    assert report.amounts()["deleted"].packs == 3
    assert len(tiered.packs("warm")) == 1


def collect_dry(store: Store) -> Report:
    return Collector(store._parts.home).run(grace_s=0, window_s=0, dry_run=True)


def sum_of(tiered: Tiered, name: str) -> int:
    blobs = tiered.stores[name].inner
    return sum(blobs.info(key).size for key in tiered.packs(name))


def test_what_a_tier_deleted_before_it_went_down_counts(tiered: Tiered, store: Store) -> None:
    before = sum_of(tiered, "cold")
    last = max(one.pack.hex() for one in collect_dry(store).of("deleted"))

    def plan(op: str, key: str, n: int) -> Fault:
        return Unreachable("it is gone") if op == "delete" and key.endswith(last) else None

    tiered.plans["cold"] = plan
    report = collect(store)
    assert report.freed["cold"] == before - sum_of(tiered, "cold") > 0
    assert (report.down, report.refused) == ({"cold": "it is gone"}, {})


def test_a_tier_that_cannot_say_what_it_refused_may_have_all(tiered: Tiered, store: Store) -> None:
    [live] = {one.pack for one in collect_dry(store).of("live")}
    tiered.stores["cold"].inner.delete([f"packs/{live.hex()[:2]}/{live.hex()}"])
    first = refuse(tiered, "cold", PermissionDenied("it is retained"))
    refusing = tiered.plans["cold"]
    deletions = 0

    def plan(op: str, key: str, n: int) -> Fault:
        nonlocal deletions
        deletions += op == "delete"
        if op == "list" and deletions:
            return Unreachable("it is gone")
        return refusing(op, key, n)

    tiered.plans["cold"] = plan
    report = collect(store)
    assert "cold" not in report.freed
    assert report.down == {"cold": "it is gone"}
    assert len(report.of("down")) == 3
    assert first in tiered.packs("cold")


def test_where_a_new_object_replaces_an_old_one_nothing_is_deleted(
    tiered: Tiered, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "probe", lambda home: Probe(False, 0.0))
    before = tiered.packs("warm")
    with pytest.raises(BackendError, match="overwrites where it should create"):
        collect(store)
    assert tiered.packs("warm") == before
    assert len(collect_dry(store).of("deleted")) == 3, "a dry run changes nothing"


def test_a_pack_that_is_above_the_limit_keeps_no_smaller_one(tiered: Tiered, store: Store) -> None:
    """Whichever comes first: else it would end each run before anything is deleted."""
    [live] = {one.pack for one in collect_dry(store).of("live")}
    first, second, third = (
        key for key in sorted(tiered.packs("warm")) if not key.endswith(live.hex())
    )
    tiered.stores["cold"].inner.delete([second, third])  # so the first counts twice
    size = tiered.stores["warm"].inner.info(second).size
    run = Collector(store._parts.home).run
    report = run(grace_s=0, window_s=0, max_bytes=size * 3 // 2)
    assert report.stopped == "the limit of bytes is reached"
    assert [one.pack.hex() for one in report.of("deleted")] == [second[-64:]]
    assert first in tiered.packs("warm")
    assert not run(grace_s=0, window_s=0, max_bytes=size // 2).of("deleted")
