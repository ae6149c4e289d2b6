"""The agent removes by stored rules, after it has said for a window what it will remove."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tierstore.errors import Conflict, UsageError
from tierstore.format.keys import VERSION_LOG, entry_key, ref_prefix
from tierstore.serving.agent import Agent


def round_of(store: tierstore.Store) -> int:
    """What the first round of a new agent removes."""
    agent = Agent(store)
    agent.round()
    assert agent.stats.failed_rounds == 0
    agent.round()  # within the hour the rules are not looked at again
    return agent.stats.removed


def test_rules_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tierstore.agent")
    with tierstore.init(tmp_path / "store") as store:
        for model in ("m", "n"):
            for number in range(6):
                store.save(model, {"w": np.full(9, number, np.float32)})
        store.retention.set("m", keep_last=5)
        assert round_of(store) == 0, "the store does not allow it"
        store.reclaim.enable(wait_s=0)
        assert round_of(store) == 0
        said = [one.getMessage() for one in caplog.records if "rules of m" in one.getMessage()]
        assert [line.partition(" from ")[0] for line in said] == ["the rules of m will remove"]
        assert said[0].endswith(" on: m@1")
        store.retention.set("m", keep_last=5, window=timedelta(0))
        assert round_of(store) == 1
        assert [version.number for version in store.versions("m")] == [6, 5, 4, 3, 2]
        assert "removed by the rules of m: m@1" in caplog.text
        assert store.deleted("m")[0].message == "by the rules of retention"
        store.retention.set(None, keep_last=1, window=timedelta(0))
        assert round_of(store) == 0
        assert "nothing of n is removed by its rules: 5 of the 6 versions of n" in caplog.text
        store.retention.set(None, keep_last=5, window=timedelta(0))
        assert round_of(store) == 1
        assert len(store.versions("n")) == 5


def saved(store: tierstore.Store, model: str, values: range) -> None:
    for value in values:
        store.save(model, {"w": np.full(9, value, np.float32)})


def test_rules_that_keep_few_are_kept_whatever_was_saved_meanwhile(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        store.reclaim.enable(wait_s=0)
        saved(store, "m", range(3))
        store.retention.set(None, keep_last=3, window=timedelta(0))
        saved(store, "m", range(3, 4))
        assert round_of(store) == 1, "25 % of the four, but three stay three"
        saved(store, "m", range(4, 20))
        saved(store, "n", range(4))  # there was none of it when the rules were set
        assert round_of(store) == 17
        assert [version.number for version in store.versions("m")] == [20, 19, 18]
        assert [version.number for version in store.versions("n")] == [4, 3, 2]


def test_rules_that_make_a_model_much_smaller_wait_until_they_are_allowed(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        store.reclaim.enable(wait_s=0)
        saved(store, "m", range(8))
        store.retention.set("m", keep_last=2, window=timedelta(0))
        saved(store, "m", range(8, 10))
        assert round_of(store) == 0
        [outlook] = store.retention.outlooks()
        assert (outlook.model, outlook.set_for, outlook.versions) == ("m", "m", 10)
        assert [version.number for version in outlook.going] == [*range(8, 0, -1)]
        assert outlook.blocked is not None
        assert outlook.blocked.startswith("8 of the 10 versions of m would be removed by rules, ov")
        blocked = f"nothing of m is removed by its rules: {outlook.blocked}"
        assert blocked in store.admin.doctor().problems
        with pytest.raises(Conflict, match="tierstore retention apply m --dry-run"):
            store.retention.apply("m")
        done = store.retention.apply("m", most_percent=75)  # two of the eight that there were
        assert done is not None
        assert len(done.removed) == 8
        saved(store, "m", range(10, 14))
        assert round_of(store) == 4
        store.alias("m", "prod", "m@13")
        saved(store, "m", range(14, 40))
        assert round_of(store) == 25
        assert [version.number for version in store.versions("m")] == [40, 39, 13]
        health = store.admin.doctor().store
        assert health is not None
        assert health.blocked_rules == ()


def test_rules_that_are_allowed_at_once_do_not_wait_for_a_window(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        saved(store, "m", range(3))
        store.retention.set("m", keep_last=1)
        assert "gc --enable" in "".join(store.admin.doctor().problems)
        with pytest.raises(UsageError, match="gc --enable"):
            store.retention.apply("m", most_percent=100, at_once=True)
        store.reclaim.enable(wait_s=0)
        for done in (
            store.retention.apply("m", most_percent=100),
            store.retention.apply("m", most_percent=100, at_once=True, dry_run=True),
        ):
            assert done is not None
            assert done.dry_run
        assert len(store.versions("m")) == 3
        store.retention.apply("m", most_percent=100, at_once=True)
        assert len(store.versions("m")) == 1


def test_a_model_that_cannot_be_looked_at_blocks_no_other(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        store.reclaim.enable(wait_s=0)
        for at, model in enumerate(("m", "n", "gone")):
            saved(store, model, range(10 * at, 10 * at + 2))
        store.remove_model("gone")
        store.retention.set(None, keep_last=2, window=timedelta(0))
        saved(store, "n", range(12, 13))
        store._blobs.put(entry_key(ref_prefix("m", VERSION_LOG), 1), b"TSOB")
        with tierstore.open(tmp_path / "store") as other:
            assert round_of(other) == 1
            first, second = other.retention.outlooks()
        assert first.model == "m"
        assert "damaged" in (first.blocked or "")
        assert (second.model, second.blocked) == ("n", None)
