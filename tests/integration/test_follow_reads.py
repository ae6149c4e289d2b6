"""What a follower reads of a new version, with a hot tier and without; and what may go wrong."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, equal
from tierstore import Dense, Rows
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.chunks.reader import _Fetch
from tierstore.modelstore.loading.arrays import new_bytes
from tierstore.serving import follow, follower
from tierstore.serving.inplace import InPlace
from tierstore.serving.node import Following, Served
from tierstore.serving.update import Update
from tierstore.store import init_store

EMB = np.random.default_rng(0).standard_normal((40_000, 33), np.float32)
PLAIN = {"emb": EMB, "bias": EMB[0], "other": EMB[:5000]}


def after(number: int) -> dict[str, np.ndarray]:
    """The model after the patches up to a version."""
    emb = EMB.copy()
    for version in range(2, number + 1):
        emb[version * 10] = version
    return {**PLAIN, "emb": emb, "bias": EMB[number if number > 1 else 0]}


def patch(store: tierstore.Store, number: int) -> None:
    row = np.full((1, 33), number, np.float32)
    changes = {"emb": Rows([number * 10], row), "bias": Dense(EMB[number])}
    assert store.patch("m@prod", changes, alias="prod").number == number


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tierstore.Store]:
    with tierstore.init(tmp_path / "store", chunk_size=MIB) as one:
        one.save("m", PLAIN, alias="prod")
        yield one


@pytest.fixture
def hot(tmp_path: Path) -> Iterator[tierstore.Store]:
    spec = TierSpec(name="hot", role="hot", url=str(tmp_path / "hot"), size=64 * MIB)
    with tierstore.init(tmp_path / "store", chunk_size=MIB, tiers=[spec]) as one:
        one.save("m", PLAIN, alias="prod")
        yield one


def test_without_a_hot_tier_only_patches_are_read(store: tierstore.Store) -> None:
    seen: list[Update] = []
    with follow("m@prod", seen.append, store=store, poll_s=0.05) as following:
        assert following.wait(60)
        whole = seen[0].stats.bytes_fetched
        assert whole > EMB.nbytes / 2
        patch(store, 2)
        assert following.wait(60, number=2)
        store.fold("m@2")  # the next one lies on other chunks
        patch(store, 3)
        assert following.wait(60, number=3)
    for number, update in enumerate(seen, 1):
        equal(update.tensors, after(number))
        assert update.stats.bytes_fetched > 0
    assert all(update.stats.bytes_fetched < whole / 100 for update in seen[1:])
    assert [update.changed for update in seen[1:]] == [("bias", "emb")] * 2
    assert seen[2].tensors["other"] is seen[0].tensors["other"]


def test_several_patches_behind(store: tierstore.Store) -> None:
    seen: list[Update] = []
    gate = threading.Event()

    def on_ready(update: Update) -> None:
        seen.append(update)
        gate.wait(60)

    with follow("m@prod", on_ready, store=store, poll_s=0.05) as following:
        until(lambda: bool(seen), "the first version is ready")
        for number in range(2, 6):
            patch(store, number)
        gate.set()
        assert following.wait(60, number=5)
        store.alias("m", "prod", "m@2")  # backwards is no way for patches
        assert following.wait(60, number=2)
    equal(seen[1].tensors, after(5))
    equal(seen[2].tensors, after(2))


def test_what_the_hot_tier_is_brought_counts(hot: tierstore.Store) -> None:
    seen: list[Update] = []
    with follow("m@prod", seen.append, store=hot, poll_s=0.05) as following:
        assert following.wait(60)
        patch(hot, 2)
        assert following.wait(60, number=2)
    first, second = (update.stats for update in seen)
    assert first.bytes_fetched > EMB.nbytes / 2
    assert first.bytes_mapped > EMB.nbytes / 2
    assert 0 < second.bytes_fetched < first.bytes_fetched / 100
    equal(seen[1].tensors, after(2))


def test_a_hot_tier_that_is_too_small(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = TierSpec(name="hot", role="hot", url=str(tmp_path / "hot"), size=2 * MIB)
    seen: list[Update] = []
    with init_store(tmp_path / "store", chunk_size=MIB, tiers=[spec]) as store:
        store.save("m", PLAIN, alias="prod")
        with follow("m@prod", seen.append, store=store, poll_s=0.05) as following:
            assert following.wait(60)  # whoever serves does so all the same
        assert "without the hot tier" in caplog.text
        equal(seen[0].tensors, PLAIN)
        with Following(store, ["m@prod"], Served(tmp_path / "served"), poll_s=0.05) as warming:
            until(lambda: bool(warming.statuses), "it follows")
            until(lambda: bool(warming.statuses[0].failures), "whoever only warms is told")
            status = warming.statuses[0]
    assert (status.version, status.swaps) == (None, 0)
    assert "takes" in status.error
    assert "hot" in status.error


def test_a_hot_tier_that_keeps_nothing_is_no_success(
    hot: tierstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = hot._parts.hot.local
    assert local is not None
    monkeypatch.setattr(local, "resident", lambda digests: [False] * len(digests))
    with follower.Follower(hot, "m@prod", lambda _: None, poll_s=0.05, read=False) as following:
        until(lambda: bool(following.status.failures), "it fails")
        assert following.status.version is None
        assert "could not be kept in tier 'hot'" in following.status.error


def test_closing_gives_up_what_is_read(
    store: tierstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that is told to end does not first read a model of 100 GB."""
    seen: list[Update] = []
    done: list[object] = []
    there, begun = threading.Event(), threading.Event()
    tell = _Fetch._done

    def slow(self: _Fetch, *args: Any) -> None:
        assert there.wait(60)
        begun.set()
        following._stopped.wait(60)
        done.append(1)
        tell(self, *args)

    monkeypatch.setattr(_Fetch, "_done", slow)
    following = follow("m@prod", seen.append, store=store)
    there.set()
    assert begun.wait(60)
    following.close()
    assert following.closed
    assert not seen
    assert len(done) < EMB.nbytes // MIB
    monkeypatch.undo()
    equal(store.load("m@prod").load(), PLAIN)  # nobody waits for what was given up


def test_an_alias_that_goes_leaves_the_version(store: tierstore.Store) -> None:
    with follow("m@prod", lambda _: None, store=store, poll_s=0.05) as following:
        assert following.wait(60)
        store.remove_alias("m", "prod")
        until(lambda: bool(following.status.error), "it tells")
        assert "prod" in following.status.error
        assert following.status.version is not None
        store.alias("m", "prod", "m@1")
        until(lambda: not following.status.error, "it is well again")
        assert following.status.swaps == 1


def test_a_version_that_failed_waits_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    refused = None
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        refused = follower._Refused.again(refused, "m@2")
        assert refused.waits("m@2")
        assert not refused.waits("m@3")
        now[0] += pause
        assert not refused.waits("m@2")
    assert follower._Refused.again(refused, "m@3").pause_s == 1


def test_in_place_after_a_version_that_was_not_taken(store: tierstore.Store) -> None:
    """What a failed swap has written is undone by the next, although that changes less."""
    state = {name: np.zeros_like(array) for name, array in PLAIN.items()}
    applied = InPlace(state, threading.Lock())

    def on_ready(update: Update) -> None:
        applied(update)
        if update.version.number == 2:
            raise ValueError("the canary test failed")

    with follow("m@prod", on_ready, store=store, poll_s=0.05) as following:
        assert following.wait(60)
        store.save("m", {**PLAIN, "other": EMB[5000:10_000]}, alias="prod")
        until(lambda: bool(following.status.failures), "it fails")
        store.alias("m", "prod", "m@1", was=2)
        store.save("m", {**PLAIN, "bias": EMB[9]})
        store.alias("m", "prod", "m@3")
        assert following.wait(60, number=3)
    equal(state, {**PLAIN, "bias": EMB[9]})


def test_in_batches_no_row_is_of_two_versions(store: tierstore.Store) -> None:
    """Rows of 132 bytes lie across every border that is not a row's."""
    state = {"emb": EMB.copy()}
    torn = []
    holds = [0]

    class Guard:
        def __enter__(self) -> None:
            holds[0] += 1

        def __exit__(self, *_: object) -> None:
            rows = state["emb"]
            new = (rows == -EMB).all(axis=1)
            torn.append(int((~new & ~(rows == EMB).all(axis=1)).sum()))

    applied = InPlace(state, Guard(), batch_bytes=1 << 18)
    with follow("m@prod", applied, store=store, poll_s=0.05) as following:
        assert following.wait(60)
        store.save("m", {**PLAIN, "emb": -EMB}, alias="prod")
        assert following.wait(60, number=2)
    assert holds[0] >= EMB.nbytes >> 18
    assert not any(torn)
    np.testing.assert_array_equal(state["emb"], -EMB)


def test_much_memory_is_given_back_without_the_interpreter() -> None:
    large = new_bytes(32 << 20)
    assert isinstance(large.base, memoryview)
    assert isinstance(large.base.obj, mmap.mmap)
    assert large.flags.writeable
    assert new_bytes(1000).base is None
