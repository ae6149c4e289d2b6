"""What a follower asks while nothing moves, and that it misses nothing which does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tests.integration.kit import created
from tests.waiting import wait_until
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Unreachable
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.serving.follower import Follower
from tierstore.testing.faulty import FaultyStore


def save(store: Store, value: float, alias: str | None = "prod") -> None:
    store.save("m", {"w": np.full(9, value, np.float32)}, alias=alias, base=None)


def derive(store: tierstore.Store) -> None:
    tierstore.derive(store, "m@1", {"cast": "bf16"})


def step(store: tierstore.Store) -> None:
    save(store, 2, None)
    store.rollouts.start("m", "prod", "m@2", stages=[1, 10_000])
    store.rollouts.step("m", "prod", force=True)


def release(store: tierstore.Store) -> None:
    save(store, 2, None)
    store.releases.create("r", ["m@2"], alias="prod")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tierstore.Store]:
    with tierstore.init(tmp_path / "store") as store:
        store.reclaim.enable(wait_s=0)
        save(store, 1)
        yield store


@pytest.mark.parametrize(
    ("ref", "profile", "change", "then"),
    [
        ("m@prod", None, lambda store: save(store, 2), "m@2"),
        ("m@prod", None, step, "m@2"),
        ("m@prod", "bf16,full", derive, "m@1+bf16"),
        ("m", None, lambda store: save(store, 2, None), "m@2"),
        ("m", "none,bf16,full", derive, "m@1+bf16"),
        ("m@release:r@prod", None, release, "m@2"),
    ],
)
def test_it_sees_what_a_writer_did_who_tells_nobody(
    store: tierstore.Store,
    ref: str,
    profile: str | None,
    change: Callable[[tierstore.Store], None],
    then: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even by the hint where a log ends."""
    store.releases.create("r", ["m@1"], alias="prod")
    with Follower(store, ref, lambda _: None, poll_s=3600, profile=profile, read=False) as one:
        wait_until(lambda: one.status.swaps == 1, "it serves the first one")
        one._round()
        put = LocalStore.put

        def without_hints(self: LocalStore, key: str, data: bytes) -> None:
            if not key.endswith("/HEAD"):
                put(self, key, data)

        monkeypatch.setattr(LocalStore, "put", without_hints)
        change(store)
        one._round()
        assert str(one.status.version) == then


def test_it_sees_a_removal(store: tierstore.Store) -> None:
    save(store, 2)
    with Follower(store, "m", lambda _: None, poll_s=3600, read=False) as one:
        wait_until(lambda: one.status.swaps == 1, "it serves the first one")
        store.alias("m", "prod", "m@1")
        store.remove("m@2", force=True)
        one._round()
        assert str(one.status.version) == "m@1"


def test_a_look_at_what_has_not_moved_is_one_request(cache: Path) -> None:
    asked = FaultyStore(MemoryStore("asked"))
    with created(asked, cache) as store:
        save(store, 1)
        with Follower(store, "m@prod", lambda _: None, poll_s=3600, read=False) as one:
            wait_until(lambda: one.status.swaps == 1, "it serves the first one")
            asked.calls.clear()
            one._round()
            assert asked.calls == [("info", "refs/m/alias/prod/000000/000000002")]
            asked.plan = lambda op, key, n: Unreachable("home is away")
            one.look()
            wait_until(lambda: one.status.failures > 0, "it says so")
            asked.plan = None
            wait_until(lambda: not one.status.failures, "and when it is back")
            assert one.status.swaps == 1


def test_a_mount_that_says_for_long_what_is_missing(
    store: tierstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a client of NFS may; it asks the server for a file that was replaced."""
    monkeypatch.setattr(LocalStore, "local", False)
    with (
        tierstore.open(store.url) as mounted,
        Follower(mounted, "m@prod", lambda _: None, poll_s=3600, read=False) as one,
    ):
        wait_until(lambda: one.status.swaps == 1, "it serves the first one")
        monkeypatch.setattr(LocalStore, "present", lambda self, keys: set())
        save(store, 2)
        one._round()
        assert str(one.status.version) == "m@2"


def test_it_sees_what_moved_while_it_looked(
    store: tierstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = store.choose

    def just_before(*args: Any, **kwargs: Any) -> Version:
        found = choose(*args, **kwargs)
        monkeypatch.undo()
        save(store, 3)
        return found

    with Follower(store, "m@prod", lambda _: None, poll_s=3600, read=False) as one:
        wait_until(lambda: one.status.swaps == 1, "it serves the first one")
        save(store, 2)
        monkeypatch.setattr(store, "choose", just_before)
        one._round()
        assert str(one.status.version) == "m@2"
        one._round()
        assert str(one.status.version) == "m@3"
