"""Agents collect garbage: when it is due, once for all of them, and never before it is allowed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.test_cli_gc import MIB, noise
from tierstore.modelstore.placing.moverlease import COLLECTOR, HeldLease
from tierstore.modelstore.reclaim.kept import Kept, last_of, write_kept
from tierstore.modelstore.reclaim.report import Report
from tierstore.serving.agent import Agent, JsonLines
from tierstore.serving.collecting import Collecting, CollectingPlan

DAY_S = 86_400
HOURLY = CollectingPlan(timedelta(hours=1))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tierstore.Store]:
    """A store of m@1 and m@2, of which the first is removed, without a window."""
    with tierstore.init(tmp_path / "store") as store:
        for number in (1, 2):
            store.save("m", noise(number), base=None)
        yield store


def allow(store: tierstore.Store) -> None:
    store.reclaim.enable(wait_s=0)
    store.retention.set(None, window=timedelta(0))
    store.remove("m@1")


def counted(agent: Agent) -> tuple[float, float, float]:
    found = agent.counters()
    assert agent.stats.failed_rounds == 0
    return found["gc_runs"], found["gc_deleted_packs"], found["gc_freed_bytes"]


def test_an_agent_collects_once_it_is_allowed_and_never_allows_it(
    store: tierstore.Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tierstore.agent")
    agent = Agent(store)
    agent.round()
    assert counted(agent) == (0, 0, 0)
    with tierstore.open(tmp_path / "store") as other:
        assert not other.reclaim.is_enabled
        allow(other)
    agent = Agent(store)  # it has the config of before
    agent.round()
    runs, packs, freed = counted(agent)
    assert (runs, packs) == (1, 1)
    assert MIB < freed < 1.01 * MIB
    [line] = [one for one in caplog.records if "garbage collection" in one.getMessage()]
    assert "deleted 1 pack of 1.0 MiB; 0 B of garbage wait" in line.getMessage()
    assert f'"event": "gc", "deleted_packs": 1, "freed_bytes": {freed}' in JsonLines().format(line)


def test_one_collection_is_enough_for_all_agents(store: tierstore.Store) -> None:
    allow(store)
    clock = [0.0]
    agents = [
        Collecting(store, HOURLY, threading.Event(), clock=lambda: clock[0]) for _ in range(3)
    ]
    for _ in range(3):
        for agent in agents:
            agent.round()
        clock[0] += 700
    assert [agent.stats.runs for agent in agents] == [1, 0, 0]
    home = store._parts.home.blobs
    now_s = store.reclaim.last().time.timestamp()  # type: ignore[union-attr]
    for age_s, who in ((3500, None), (3700, 0), (-3700, 1)):
        write_kept(home, Kept(last=last_of(Report(dry_run=False), now_s - age_s)), now_s)
        before = [agent.stats.runs for agent in agents]
        for agent in (agents[who or 0], agents[2]):
            agent.round()
        after = [agent.stats.runs for agent in agents]
        assert [at for at in range(3) if after[at] > before[at]] == ([] if who is None else [who])
        clock[0] += 700


def test_switched_off_and_within_its_limits(store: tierstore.Store) -> None:
    allow(store)
    agent = Agent(store, collecting=CollectingPlan(every=None))
    agent.round()
    assert counted(agent) == (0, 0, 0)
    agent = Agent(store, collecting=CollectingPlan(max_bytes=1))
    agent.round()
    assert counted(agent) == (1, 0, 0)
    assert store.reclaim.last().stopped == "the limit of bytes is reached"  # type: ignore[union-attr]
    stop = threading.Event()
    stop.set()
    collecting = Collecting(store, CollectingPlan(timedelta(0)), stop)
    collecting.round()
    assert (collecting.stats.runs, collecting.stats.deleted_packs) == (1, 0)


def test_others_and_errors_do_not_end_the_round(
    store: tierstore.Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tierstore.agent")
    allow(store)
    agent = Agent(store)
    with HeldLease(store._parts.home.blobs, COLLECTOR):
        agent.round()
    assert counted(agent) == (0, 0, 0)
    assert "another garbage collection is at work" in caplog.text
    store.save("n", {"w": np.arange(9)}, base=None)
    digest = store.resolve("n@1").digest
    store._parts.home.blobs.delete([f"versions/{digest.hex}"])
    agent = Agent(store)
    agent.round()
    assert counted(agent) == (0, 0, 0)
    assert agent.counters()["gc_runs_failed"] == 1
    assert "no garbage was collected" in caplog.text
