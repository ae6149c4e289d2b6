"""A sync that is killed at any moment goes on, and in the end both stores are the same."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import numpy as np

import tierstore
from tests.integration.kit import equal, python
from tierstore import Rows

KILLS = 8
_SYNC = """
import sys, tierstore
with tierstore.open(sys.argv[1]) as source, tierstore.open(sys.argv[2]) as target:
    print("ready", flush=True)
    report = source.sync(target, aliases=True)
    assert not report.failed, report.failed
"""


def _fill(store: tierstore.Store) -> None:
    rng = np.random.default_rng(0)
    state = {"emb": rng.standard_normal((4000, 1000), np.float32)}
    store.save("m", state)
    for number in range(3):
        state = {"emb": (state["emb"] * np.float32(1 + 1e-6 * number)) + np.float32(1e-4)}
        store.save("m", state, base=None if number == 1 else "auto")
    for number in range(3):
        store.patch("m", {"emb": Rows(np.array([number]), np.ones((1, 1000), np.float32))})
    store.alias("m", "prod", "m@6")
    store.derive("m@2", {"cast": "bf16"})


def _is_done(source: Path, target: Path, wait_s: float) -> bool:
    """Run a sync, and kill it so long after it has begun; tell whether it had ended."""
    process = python(_SYNC, source, target)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(wait_s)
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == 0


def test_a_sync_that_is_killed_again_and_again(tmp_path: Path, cache: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with tierstore.init(source, chunk_size=1 << 20) as store:
        _fill(store)
    tierstore.init(target).close()
    chance = random.Random(7)
    kills = 0
    for _ in range(KILLS):
        kills += not _is_done(source, target, chance.uniform(0, 0.6))
        with tierstore.open(target) as half:
            assert not half.check().damaged
    assert kills
    with tierstore.open(source) as store, tierstore.open(target) as half:
        assert not store.sync(half, aliases=True).failed
        names = ["m@1", "m@2", "m@3", "m@4", "m@5", "m@6", "m@7", "m@prod", "m@2+bf16"]
        for name in names:
            assert half.resolve(name).digest == store.resolve(name).digest
            equal(half.load(name).load(), store.load(name).load())
        assert len(half.versions("m")) == 7
        assert not half.check(read_data=True).damaged
