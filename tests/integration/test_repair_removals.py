"""A damaged entry of a log of removals: nothing that was in force counts as removed after it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created, equal, opened
from tests.integration.test_collector import packs_of
from tests.integration.test_repair import spoil
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, Unreachable
from tierstore.format.keys import (
    REFS,
    REMOVED_LOG,
    entry_key,
    layout_key,
    move_key,
    pack_key,
)
from tierstore.format.reflog import MAX_REMOVED
from tierstore.modelstore.home.refs import NOWHERE
from tierstore.modelstore.names.removed import Removals
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.repair.report import RepairReport
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore

LOG = f"{REFS}m/{REMOVED_LOG}/"


def content(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full((400, 80), value, np.float32)}


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("removals")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A store with m@1 to m@4, in which windows end at once."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        store.retention.set(None, window=timedelta(0))
        for number in range(1, 5):
            store.save("m", content(number), base=None)
        yield store


def newest(blobs: MemoryStore) -> str:
    """The key of the last entry."""
    return max(info.key for info in blobs.list(LOG) if not info.key.endswith("HEAD"))


def damage(blobs: MemoryStore, key: str) -> None:
    spoil(blobs, key, lambda data: data[:-3])


def repaired(blobs: MemoryStore, cache: Path) -> RepairReport:
    """Repair by a process that has read none of it before."""
    with opened(blobs, cache) as store:
        return store.repair()


def numbers(store: Store) -> list[int]:
    return [version.number for version in store.versions("m")]


def removed(store: Store) -> list[int]:
    return [one.version.number for one in store.deleted("m")]


def test_a_version_that_was_brought_back_is_not_collected(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    store.remove("m@1")
    store.undelete("m@1")
    damage(blobs, newest(blobs))
    with opened(blobs, cache) as other, pytest.raises(Damaged):
        other.reclaim.run(grace=timedelta(0))
    [entry] = repaired(blobs, cache).of("lost")
    assert "m@1 and what it removed itself count as not removed" in entry.done
    with opened(blobs, cache) as other:
        assert numbers(other) == [4, 3, 2, 1]
        other.reclaim.run(grace=timedelta(0))
        equal(other.load("m@1").load(), content(1))


@pytest.mark.parametrize("is_missing", [False, True])
def test_what_was_removed_before_a_lost_removal_counts_as_not_removed(
    store: Store, blobs: MemoryStore, cache: Path, is_missing: bool
) -> None:
    store.remove("m@1")
    store.remove("m@2")
    key = newest(blobs)
    store.remove("m@3")
    if is_missing:
        blobs.delete([key])
    else:
        damage(blobs, key)
    assert len(repaired(blobs, cache).of("lost")) == 1
    with opened(blobs, cache) as other:
        assert numbers(other) == [4, 2, 1]
        assert removed(other) == [3], "a later entry says so"
        other.remove("m@1")
        assert sorted(removed(other)) == [1, 3]


def test_what_was_collected_stays_removed(store: Store, blobs: MemoryStore, cache: Path) -> None:
    """Brought back it would be lost, and stop every collection until it is removed again."""
    store.remove("m@1", "m@2")
    store.reclaim.run(grace=timedelta(0))
    store.remove("m@3")
    damage(blobs, newest(blobs))
    report = repaired(blobs, cache)
    [entry] = report.objects
    assert "m@3 and what it removed itself count as not removed" in entry.done
    assert "m@1, m@2 stay removed: packs of that are in no tier any more" in entry.done
    assert report.hit == []
    with opened(blobs, cache) as other:
        assert (numbers(other), sorted(removed(other))) == ([4, 3], [1, 2])
        other.reclaim.run(grace=timedelta(0))
        equal(other.load("m@3").load(), content(3))
        assert not other.check().damaged
    assert repaired(blobs, cache).is_whole


@pytest.mark.parametrize("what", ["move", "layout", "tier"])
def test_what_may_still_be_there_is_brought_back(
    store: Store, blobs: MemoryStore, cache: Path, what: str
) -> None:
    """Its move or layout can be made anew, or its tier comes back."""
    [pack] = packs_of(store, "m@1")
    digest = store.resolve("m@1").digest
    store.remove("m@1")
    store.remove("m@2")
    damage(blobs, newest(blobs))
    away = bytes(blobs.get(pack_key(pack)))
    blobs.delete([pack_key(pack)])
    if what == "move":
        blobs.put(move_key(pack), b"damaged")
    elif what == "layout":
        blobs.delete([layout_key(digest)])

    def down(op: str, key: str, n: int) -> Fault:
        return Unreachable("no") if what == "tier" and key == pack_key(pack) else None

    with opened(FaultyStore(blobs, down), cache) as other:
        [entry] = [one for one in other.repair().objects if REMOVED_LOG in one.key]
    assert "m@1, m@2 and what it removed itself count as not removed" in entry.done
    blobs.put(pack_key(pack), away)
    with opened(blobs, cache) as other:
        other.repair()
        equal(other.load("m@1").load(), content(1))


def test_a_removal_that_was_stopped_stays_stopped(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    store._parts.home.log("m", REMOVED_LOG).append("announce", lambda last: NOWHERE, "", [1])
    store.alias("m", "prod", "m@1")
    damage(blobs, newest(blobs))
    repaired(blobs, cache)
    with opened(blobs, cache) as other:
        assert other._parts.home.reclaims
        assert Removals(other._parts.home).both("m") == ({}, {})


def test_more_removals_than_one_entry_names_are_taken_back(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    log = store._parts.home.log("m", REMOVED_LOG)
    every = list(range(1, 2 * MAX_REMOVED + 3))
    for at in range(0, len(every), MAX_REMOVED):
        log.append("forget", lambda last: NOWHERE, "", every[at : at + MAX_REMOVED])
    log.append("undelete", lambda last: NOWHERE, "", [1])
    damage(blobs, newest(blobs))
    lost = repaired(blobs, cache).of("lost")  # versions as well: there were never so many
    [entry] = [one for one in lost if f"/{REMOVED_LOG}/" in one.key]
    assert f"{len(every)} versions from m@1 to m@{every[-1]}" in entry.done
    with opened(blobs, cache) as other:
        assert numbers(other) == [4, 3, 2, 1]
        assert Removals(other._parts.home).of("m") == {}


def test_a_log_of_which_nothing_was_removed_removes_nothing_to_come(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    store.remove("m@1")
    for number in (1, 2):
        damage(blobs, entry_key(LOG, number))
    repaired(blobs, cache)
    with opened(blobs, cache) as other:
        new = other.save("m", content(5)).number
        removals = Removals(other._parts.home)
        assert removals.of("m") == {}
        assert new not in removals.ever("m")
