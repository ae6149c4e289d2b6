"""The agent removes by stored rules, after it has said for a window what it will remove."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import tierstore
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
