"""Following a reference: the right version, never half of one, whatever happens on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import tierstore
from tests.integration.kit import equal
from tests.servers.redis import RedisServer, redis_running
from tests.waiting import wait_until
from tierstore.errors import UsageError
from tierstore.format.tiers import TierSpec
from tierstore.serving import follow
from tierstore.serving.follower import Follower
from tierstore.serving.inplace import InPlace
from tierstore.serving.update import Update
from tierstore.store import init_store, open_store

RNG = np.random.default_rng(3)
MODEL = {
    "emb": RNG.standard_normal((5000, 64)).astype("f4"),
    "head": RNG.standard_normal((64, 8)).astype(ml_dtypes.bfloat16),
    "count": np.array(7),
}


def changed(version: int) -> dict[str, np.ndarray]:
    """All rows of a version's first tensor that differ hold its number."""
    emb = MODEL["emb"].copy()
    emb[::10] = version
    return {**MODEL, "emb": emb, "count": np.array(version)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tierstore.Store]:
    with tierstore.init(tmp_path / "store") as one:
        one.save("m", changed(1), alias="prod")
        yield one


class Looks:
    """Counts how often followers have looked whether their references mean something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._round, self._count = Follower._round, 0
        monkeypatch.setattr(Follower, "_round", lambda follower: self._counted(follower))

    def _counted(self, follower: Follower) -> None:
        self._count += 1
        self._round(follower)

    def some_more(self) -> None:
        """Wait until it has looked a few more times."""
        enough = self._count + 4
        wait_until(lambda: self._count >= enough, "it looks again")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def test_it_serves_what_the_alias_means(store: tierstore.Store, looks: Looks) -> None:
    seen: list[Update] = []
    with follow("m@prod", seen.append, store=store, poll_s=0.05) as follower:
        assert follower.wait(30)
        equal(seen[0].tensors, changed(1))
        assert (seen[0].previous, set(seen[0].changed)) == (None, set(MODEL))
        store.save("m", changed(2))
        looks.some_more()
        assert len(seen) == 1  # it is not what the alias means
        store.alias("m", "prod", "m@2")
        assert follower.wait(30, number=2)
        equal(seen[1].tensors, changed(2))
        assert seen[1].changed == ("count", "emb")
        assert seen[1].previous == seen[0].version
        assert seen[1].tensors["head"] is seen[0].tensors["head"]
        equal(seen[0].tensors, changed(1))  # who holds the old one is not hurt
        store.rollback("m", "prod")
        assert follower.wait(30, number=1)
        status = follower.status
    assert (status.swaps, status.failures, status.error) == (3, 0, "")
    assert 0 <= status.staleness_s < 30


def test_the_profile_that_was_asked_for_is_read(
    store: tierstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the one that the node prefers otherwise."""
    tierstore.derive(store, "m@1", {"cast": "bf16"})
    monkeypatch.setenv("TIERSTORE_PROFILE", "bf16,full")
    with tierstore.open(store.url) as other:
        for profile, variant in (("full", None), (None, "bf16")):
            seen: list[Update] = []
            with follow("m@prod", seen.append, store=other, profile=profile) as follower:
                assert follower.wait(30)
            assert follower.status.version is not None
            assert (follower.status.version.variant, seen[0].version.variant) == (variant, variant)


def test_a_version_that_is_not_taken_leaves_the_old_one(store: tierstore.Store) -> None:
    refused = threading.Event()

    def on_ready(update: Update) -> None:
        if update.version.number == 2:
            refused.set()
            raise ValueError("the canary test failed")

    with follow("m@prod", on_ready, store=store, poll_s=0.05) as follower:
        assert follower.wait(30)
        store.save("m", changed(2), alias="prod")
        assert refused.wait(30)
        deadline = time.monotonic() + 30
        while not follower.status.failures and time.monotonic() < deadline:
            time.sleep(0.01)
        status = follower.status
        assert status.version is not None
        assert status.version.number == 1
        assert status.error == "the canary test failed"
        assert follower.update is not None
        equal(follower.update.tensors, changed(1))
        store.save("m", changed(3), alias="prod")
        assert follower.wait(30, number=3)
        assert follower.status.failures == 0


def test_damage_on_the_way_leaves_the_old_one(tmp_path: Path, store: tierstore.Store) -> None:
    packs = tmp_path / "store" / "packs"
    with follow("m@prod", lambda _: None, store=store, poll_s=0.05) as follower:
        assert follower.wait(30)
        before = set(packs.rglob("*"))
        store.save("m", {**MODEL, "emb": RNG.standard_normal((5000, 64))}, base=None)
        for path in set(packs.rglob("*")) - before:
            if path.is_file():
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
        store.alias("m", "prod", "m@2")
        deadline = time.monotonic() + 30
        while "damaged" not in follower.status.error and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "damaged" in follower.status.error
        assert follower.status.version is not None
        assert follower.status.version.number == 1


def test_a_rollout_reaches_a_node_in_its_turn(store: tierstore.Store, looks: Looks) -> None:
    seen: list[int] = []
    store.save("m", changed(2))
    with follow(
        "m@prod", lambda update: seen.append(update.version.number), store=store, poll_s=0.05
    ) as follower:
        assert follower.wait(30)
        store.rollouts.start("m", "prod", store.resolve("m@2"), stages=[1, 10_000])
        looks.some_more()
        first = list(seen)
        store.rollouts.step("m", "prod")
        assert follower.wait(30, number=2)
    assert first in ([1], [1, 2])
    assert seen == [1, 2]  # it never went back and forth


def test_closing_waits_for_a_swap_that_runs(store: tierstore.Store) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def on_ready(_: Update) -> None:
        begun.set()
        assert go_on.wait(60)
        ended.set()

    follower = follow("m@prod", on_ready, store=store)
    assert begun.wait(30)
    closing = threading.Thread(target=follower.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive(), "it did not wait for the swap"
    go_on.set()
    closing.join(60)
    assert not closing.is_alive()
    assert ended.is_set()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_running(folder) as server:
        yield server


@pytest.mark.server
def test_news_come_through_redis_and_are_not_needed(tmp_path: Path, redis: RedisServer) -> None:
    spec = TierSpec(name="redis", role="shared", url=redis.url, timeout_ms=1000)
    with (
        init_store(tmp_path / "store", tiers=[spec]) as writer,
        open_store(tmp_path / "store") as reader,
    ):
        writer.save("m", changed(1), alias="prod")
        with follow("m@prod", lambda _: None, store=reader, poll_s=3600) as follower:
            assert follower.wait(30)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:  # until it listens, nothing can be heard
                listening = redis.admin().execute_command("PUBSUB", "CHANNELS")
                if listening:
                    break
                time.sleep(0.02)
            writer.save("m", changed(2), alias="prod")
            assert follower.wait(30, number=2)
        with follow("m@prod", lambda _: None, store=reader, poll_s=0.2) as follower:
            assert follower.wait(30)
            redis.kill()
            writer.save("m", changed(3), alias="prod")
            assert follower.wait(60, number=3)
            redis.start()
            writer.save("m", changed(4), alias="prod")
            assert follower.wait(60, number=4)


def test_in_place_under_a_lock_no_request_sees_a_mix(store: tierstore.Store) -> None:
    state = {"emb": np.zeros((5000, 64), "f4"), "count": np.array(0)}
    lock = threading.Lock()
    applied = InPlace(state, lock)
    seen: set[tuple[float, ...]] = set()
    stop = threading.Event()

    def requests() -> None:
        while not stop.is_set():
            with lock:
                found = (*np.unique(state["emb"][::10]).tolist(), int(state["count"]))
            seen.add(found)

    with follow("m@prod", applied, store=store, poll_s=0.05) as follower:
        assert follower.wait(30)
        answering = threading.Thread(target=requests)
        answering.start()
        for number in (2, 3, 4):
            store.save("m", changed(number), alias="prod")
            assert follower.wait(30, number=number)
            assert applied.written_bytes == 500 * 256 + 8  # what changed, and no more
        stop.set()
        answering.join()
    equal(state, {name: changed(4)[name] for name in state})
    assert seen <= {(float(n), n) for n in (1, 2, 3, 4)}, seen


def test_in_place_into_torch_in_batches(store: tierstore.Store) -> None:
    import torch

    state = {"head": torch.zeros((64, 8), dtype=torch.bfloat16), "emb": torch.zeros((5000, 64))}
    holds = []

    class Guard:
        def __enter__(self) -> None:
            holds.append(1)

        def __exit__(self, *_: object) -> None:
            return None

    applied = InPlace(state, Guard(), batch_bytes=1 << 16)
    with follow("m@prod", applied, store=store, poll_s=0.05) as follower:
        assert follower.wait(30)
    assert len(holds) >= MODEL["emb"].nbytes >> 16
    np.testing.assert_array_equal(state["emb"].numpy(), changed(1)["emb"])
    assert torch.equal(
        state["head"].view(torch.int16), torch.from_numpy(MODEL["head"].view("i2").copy())
    )


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"emb": np.zeros((5000, 32), "f4")}, "is F32 \\[5000, 64\\]"),
        ({"emb": np.zeros((5000, 64), "i4")}, "and I32"),
        ({"other": np.zeros(3)}, "no tensor 'other'"),
    ],
)
def test_in_place_refuses_what_does_not_fit(
    store: tierstore.Store, state: dict[str, np.ndarray], why: str
) -> None:
    with follow("m@prod", InPlace(state, threading.Lock()), store=store, poll_s=60) as follower:
        deadline = time.monotonic() + 30
        while not follower.status.failures and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(UsageError, match=why):
            raise UsageError(follower.status.error)
    assert not any(array.any() for array in state.values())


@pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 257, 1000, 4096])
def test_in_place_every_size(tmp_path: Path, nbytes: int) -> None:
    rng = np.random.default_rng(nbytes)
    first = {"w": rng.integers(0, 255, nbytes, "u1"), "x": np.zeros(1)}
    second = {"w": first["w"].copy(), "x": np.ones(1)}
    second["w"][-1:] ^= 1
    state = {"w": np.zeros(nbytes, "u1")}
    applied = InPlace(state, threading.Lock())
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", first, alias="prod")
        with follow("m@prod", applied, store=store, poll_s=0.05) as follower:
            assert follower.wait(30)
            np.testing.assert_array_equal(state["w"], first["w"])
            store.save("m", second, alias="prod")
            assert follower.wait(30, number=2)
    np.testing.assert_array_equal(state["w"], second["w"])
