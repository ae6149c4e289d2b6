"""What rules will remove is said by few requests, model by model, and is what is removed then."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created, opened
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.modelstore.home import readcache
from tierstore.modelstore.store import Store
from tierstore.serving.agent import Agent
from tierstore.testing.faulty import FaultyStore
from tierstore.variants.derive import derive

NOW = timedelta(0)


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just written counts as settled, as it does after some seconds."""
    monkeypatch.setattr(readcache, "SETTLED_S", -60)


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("outlooks")


@pytest.fixture
def store(blobs: MemoryStore, tmp_path: Path) -> Iterator[Store]:
    with created(blobs, tmp_path / "own") as store:
        store.reclaim.enable(wait_s=0)
        yield store


def saved(store: Store, model: str, count: int) -> None:
    for number in range(count):
        content = np.full((30, 10), number, np.float32)
        store.save(model, {"w": content}, base=None, message=f"run {number}")


def test_what_was_read_once_on_a_node_is_not_read_again(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """Neither entries nor manifests: of 25 versions 66 requests at first, then 14."""
    saved(store, "m", 25)
    saved(store, "n", 2)
    for number in (3, 5):
        store.alias("m", "prod", f"m@{number}")
    store.retention.set("m", keep_last=20, window=NOW)

    def asked() -> list[tuple[str, str]]:
        watched = FaultyStore(blobs)
        with opened(watched, tmp_path / "other") as other:
            begin = len(watched.calls)
            [outlook] = other.retention.outlooks()
            assert [version.number for version in outlook.going] == [4, 2, 1]
            return watched.calls[begin:]

    first, second = asked(), asked()
    assert len([key for op, key in first if key.startswith("versions/")]) == 25
    assert len(first) <= 70
    assert [key for op, key in second if op == "get" and "probes" not in key] == [
        "retention/models/m",
        "refs/m/versions/000000/000000001",  # are they releases?
        "refs/n/versions/000000/000000001",
    ]
    assert len(second) <= 15
    store.save("m", {"w": np.ones(9, np.float32)})
    watched = FaultyStore(blobs)
    with opened(watched, tmp_path / "other") as other:
        [outlook] = other.retention.outlooks()
    assert [version.number for version in outlook.going] == [6, 4, 2, 1]
    watched.calls.clear()
    with opened(watched, tmp_path / "other") as other:
        removed = other.forget("m", keep_last=20).removed
    assert [version.number for version in removed] == [6, 4, 2, 1]
    assert [key for _, key in watched.calls if key.startswith("versions/")] == []


def test_it_is_what_would_be_removed(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    saved(store, "m", 12)
    for number in (1, 2, 3):
        store.alias("m", "prod", f"m@{number}")
    store.alias("m", "of/a team", "m@8")
    derive(store, "m@5", {"cast": "bf16"})
    store.pins.add(store.resolve("m@5+bf16").digest, "m@5+bf16", ["hot"], None)
    store.releases.create("search", ["m@6"])
    patch = store.patch("m@7", {"w": Rows([1], np.ones((1, 10), np.float32))})
    store.remove("m@11")
    store.retention.set(None, keep_last=2, window=NOW)
    for again in range(2):
        with opened(blobs, tmp_path / "other") as other:
            outlook = next(one for one in other.retention.each_outlook() if one.model == "m")
            done = other.retention.apply("m", dry_run=True)
        assert done is not None
        assert outlook.going == done.removed, again
        assert [version.number for version in outlook.going] == [9, 4]
        assert outlook.versions == 12
    assert patch.number == 13


def test_it_is_said_model_by_model(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    """An agent that is to end looks at no further model."""
    for model in ("k", "m", "n"):
        saved(store, model, 3)
    store.retention.set(None, keep_last=1, window=NOW)
    watched = FaultyStore(blobs)
    with opened(watched, tmp_path / "other") as other:
        each = other.retention.each_outlook()
        assert next(each).model == "k"
        assert ("list", "refs/k/") in watched.calls
        assert ("list", "refs/m/") not in watched.calls
        assert [one.model for one in each] == ["m", "n"]
        agent = Agent(other)
        agent.stop.set()
        begin = len(watched.calls)
        agent._keep_rules()
        assert ("list", "refs/m/") not in watched.calls[begin:]


def test_a_model_that_is_gone_has_none(store: Store) -> None:
    saved(store, "m", 2)
    saved(store, "n", 2)
    store.retention.set(None, keep_last=2, window=NOW)
    store.remove_model("m")
    store._blobs.put("refs/stray/x", b"")
    assert [one.model for one in store.retention.outlooks()] == ["n"]


def test_what_is_no_model_is_told_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    saved(store, "m", 1)
    store._blobs.put("refs/stray/x", b"")
    for _ in range(3):
        assert store.models() == ["m"]
    assert caplog.text.count("refs/stray is not listed") == 1
