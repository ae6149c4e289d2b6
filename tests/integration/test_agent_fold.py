"""The agent folds versions that lie on many patches, before their chains are full."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tierstore
from tierstore import Rows
from tierstore.serving.agent import Agent


def test_long_chains_are_folded_once_and_say_the_same(tmp_path: Path) -> None:
    table = np.arange(64_000, dtype="f4").reshape(1000, 64)
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"emb": table})
        store.save("plain", {"w": np.ones(3)})
        agent = Agent(store)
        for turn in range(1, 11):
            table[turn] = -turn
            store.patch("m", {"emb": Rows([turn], table[turn : turn + 1])}, fold=False)
            before = store.load("m").version.digest
            agent.round()
            assert agent.stats.folded == (turn >= 8), turn
            np.testing.assert_array_equal(store.load("m")["emb"], table)
            assert store.load("m").version.digest == before
        agent.round()
        assert agent.stats.folded == 1  # nothing is new
        assert store.check().damaged == 0


def test_one_that_is_damaged_does_not_stop_the_others(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        for value, name in enumerate(("a", "b")):
            table = np.random.default_rng(value).standard_normal((1000, 64))
            store.save(name, {"emb": table})
            for _ in range(8):
                store.patch(name, {"emb": Rows([0], np.full((1, 64), 7.0))}, fold=False)
        broken = store.resolve("a@8").digest.hex
        [path] = (tmp_path / "store" / "versions").glob(broken)
        path.write_bytes(b"TSOB")
        agent = Agent(store)
        agent.round()
        assert (agent.stats.folded, agent.stats.failed_rounds) == (1, 0)
