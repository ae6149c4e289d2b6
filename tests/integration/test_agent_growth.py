"""What an agent writes to make reads cheaper stays below a limit, until garbage is collected."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created, equal, opened
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.format.collected import Growth as GrowthBody
from tierstore.format.keys import FOLDS, GROWTH, LAYOUTS, PACKS, VERSIONS
from tierstore.format.sealed import Kind, unseal_body
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.growth import Growth
from tierstore.modelstore.store import Store
from tierstore.serving.agent import Agent
from tierstore.serving.collecting import CollectingPlan
from tierstore.testing.faulty import FaultyStore

Model = dict[str, np.ndarray]
ROWS, WIDTH = 1000, 256


def weights(seed: int) -> Model:
    rng = np.random.default_rng(seed)
    return {f"w{n}": rng.standard_normal((ROWS, WIDTH), np.float32) for n in range(4)}


def far(model: Model) -> Model:
    """Near enough to be stored as deltas, and so far that these cost much to read."""
    rng = np.random.default_rng(9)
    return {
        name: array * (1 + np.float32(0.02) * rng.standard_normal(array.shape, np.float32))
        for name, array in model.items()
    }


FIRST = weights(1)
NEVER = CollectingPlan(every=None)
DEAR = far(FIRST)


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("growth")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Store:
    return created(blobs, cache)


def stored(blobs: MemoryStore) -> int:
    return sum(info.size for info in blobs.list(PACKS))


def agent(store: Store, percent: float, **options: float) -> Agent:
    room = Growth(store._parts.home, store.node, percent=percent, **options)
    return Agent(store, growth=room, collecting=NEVER)


def dear(store: Store) -> int:
    """Save a version that an agent rebases; return how many of its chunks are deltas."""
    store.save("m", FIRST)
    version = store.save("m", DEAR)
    assert version.stats is not None
    assert version.stats.delta_bytes == sum(array.nbytes for array in DEAR.values())
    return len(DEAR)


def deltas(store: Store) -> int:
    table = store._parts.home.layout(
        store.resolve("m").digest, store._parts.home.manifest(store.resolve("m").digest)
    )
    return sum(bool(place.bases) for place in table)


def written(blobs: MemoryStore) -> int:
    bodies = [
        unseal_body(Kind.GROWTH, blobs.get(info.key), GrowthBody, info.key)
        for info in blobs.list(GROWTH)
    ]
    return sum(body.bytes for body in bodies)


@pytest.mark.parametrize("percent", [0, 5, 20, 35])
def test_a_rebase_never_takes_more_than_it_may(
    store: Store, blobs: MemoryStore, percent: float
) -> None:
    count = dear(store)
    before = stored(blobs)
    one = agent(store, percent)
    for _ in range(3):
        one.round()
    grown = stored(blobs) - before
    assert grown <= before * percent / 100
    left = deltas(store)
    assert left == count - int(before * percent / 100 / (FIRST["w0"].nbytes * 257 / 256 + 1024))
    assert one.stats.failed_rounds == 0
    assert (one.stats.rewritten_bytes >= grown) == (written(blobs) >= grown)
    equal(store.load("m").load(), DEAR)
    assert not store.check(read_data=True).damaged


def test_what_is_left_goes_on_after_a_collection(
    store: Store, blobs: MemoryStore, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart of the agent, or an agent on another node, does not begin to count anew."""
    caplog.set_level(logging.INFO, "tierstore.agent")
    dear(store)
    enable(store._parts.home, wait_s=0)
    agent(store, 25).round()
    rest = deltas(store)
    assert 0 < rest < len(DEAR)
    with opened(blobs, cache / "again") as again:
        other = Growth(again._parts.home, "another-node", percent=25)
        Agent(again, growth=other, collecting=NEVER).round()
        assert deltas(again) == rest
        assert other.left_bytes() < 2 * FIRST["w0"].nbytes
        Collector(again._parts.home).run(grace_s=0)
        Collector(again._parts.home).run(grace_s=0)
        assert other.left_bytes() > FIRST["w0"].nbytes
        Agent(again, growth=other, collecting=NEVER).round()
        assert deltas(again) < rest
        equal(again.load("m").load(), DEAR)


def test_garbage_that_waits_counts(
    store: Store, blobs: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tierstore.agent")
    dear(store)
    enable(store._parts.home, wait_s=0)
    store.save("old", weights(3), base=None)
    store.save("old", {"w": np.zeros(3, np.float32)})
    store.remove("old@1", force=False)
    Collector(store._parts.home).run(window_s=0, grace_s=3600, dry_run=False)
    growth = Growth(store._parts.home, store.node, percent=100)
    free = growth.left_bytes()
    store.save("other", weights(4), base=None)
    blobs.delete([info.key for info in blobs.list("refs/other/")])
    Collector(store._parts.home).run(window_s=0, grace_s=3600)
    assert growth.left_bytes() <= free - sum(array.nbytes for array in FIRST.values()) * 0.8
    small = Growth(store._parts.home, store.node, percent=5)
    assert small.left_bytes() == 0
    assert small.left_bytes() == 0
    assert caplog.text.count("nothing is rebased or folded until garbage is collected") == 1


def test_a_round_writes_no_more_than_its_part(store: Store) -> None:
    """It goes on in the next one, until the version costs little enough as a whole."""
    left = [dear(store)]
    one = agent(store, 1000, round_bytes=int(FIRST["w0"].nbytes * 1.5))
    for _ in range(len(DEAR)):
        one.round()
        left.append(deltas(store))
    assert all(before - after in {0, 1} for before, after in pairwise(left)), left
    assert one.stats.rebased == left[0] - left[-1] > 1
    assert left[-1] == left[-2]
    equal(store.load("m").load(), DEAR)


def test_a_fold_that_takes_more_than_it_may_is_left(store: Store, blobs: MemoryStore) -> None:
    table = np.random.default_rng(1).standard_normal((ROWS, 64), np.float32)
    store.save("m", {"emb": table})
    for turn in range(8):
        table[turn * 100] = turn
        store.patch("m", {"emb": Rows([turn * 100], table[turn * 100][None])}, fold=False)
    before = stored(blobs)
    none = agent(store, 0)
    none.round()
    assert (none.stats.folded, stored(blobs)) == (0, before)
    tight = agent(store, 100 * 8 * (64 * 4 + 8) / before + 0.01)  # as many bytes as the patches
    tight.round()
    assert (tight.stats.folded, tight.stats.failed_rounds) == (0, 0)
    assert stored(blobs) <= before + tight._growth.left_bytes() + 8 * 264
    assert tight._growth.left_bytes() == 0, "it is not tried again and again"
    wide = agent(store, 50)
    wide.round()
    assert wide.stats.folded == 1
    np.testing.assert_array_equal(store.load("m")["emb"], table)


def test_switches(store: Store) -> None:
    dear(store)
    table = np.zeros((ROWS, 64), np.float32)
    store.save("p", {"emb": table})
    for turn in range(8):
        store.patch("p", {"emb": Rows([turn], np.ones((1, 64), np.float32))}, fold=False)
    growth = Growth(store._parts.home, store.node, percent=1000)
    neither = Agent(store, rebase=False, fold=False, growth=growth)
    neither.round()
    assert (neither.stats.rebased, neither.stats.folded) == (0, 0)
    folds = Agent(store, rebase=False, growth=growth)
    folds.round()
    assert (folds.stats.rebased, folds.stats.folded) == (0, 1)
    both = Agent(store, fold=False, growth=growth)
    both.round()
    assert (both.stats.rebased, both.stats.folded) == (1, 0)


def test_a_damaged_count_is_none(
    store: Store, blobs: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    dear(store)
    growth = Growth(store._parts.home, store.node, percent=50)
    free = growth.left_bytes()
    growth.add(1000)
    assert growth.left_bytes() == free - 1000
    growth.add(500)
    assert growth.left_bytes() == free - 1500
    (key,) = (info.key for info in blobs.list(GROWTH))
    blobs.put(key, b"damaged")
    assert growth.left_bytes() == free
    assert "what it counted is not counted" in caplog.text


def test_a_fold_that_may_not_be_made_is_told_once_and_read_once(
    store: Store, blobs: MemoryStore, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tierstore.agent")
    store.save("m", {"w": np.zeros((100, 64), np.float32)})
    for turn in range(9):
        store.patch("m", {"w": Rows([turn], np.full((1, 64), 7.0, np.float32))}, fold=False)
    asked = FaultyStore(blobs)
    one = agent(opened(asked, cache), 1000, round_bytes=9 * 264 - 1)
    one.round()
    asked.calls.clear()
    for _ in range(2):
        one.round()
    assert not any(key.startswith((VERSIONS, LAYOUTS, FOLDS)) for _, key in asked.calls)
    [said] = [text for text in caplog.messages if text.startswith("m@10 lies on 9 patches and")]
    assert said.endswith("that may take 2.3 KiB, and 2.3 KiB may be written (--growth, --rewrite)")
    agent(store, 1000).round()
    assert "m@10 was folded: it lay on 9 patches" in caplog.text
