"""What a collector has read is kept in a local file, and counts only while it is still true."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created
from tierstore import Dense
from tierstore.blobs.base import BlobInfo
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged
from tierstore.format.keys import HEAD, PACKS, version_key
from tierstore.modelstore.home import readcache
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.report import Report
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("collected")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cached" / "id" / "gc.sqlite"


@pytest.fixture
def store(blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(readcache, "SETTLED_S", -60)
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        save(store, 1)
        save(store, 2)
        store.patch("m@2", {"w": Dense(np.full(1000, 9.0))})
        store.fold("m@3")
        yield store


def save(store: Store, number: int) -> None:
    store.save("m", {"w": np.full(1000, number, np.float64)}, base=None)


def collect(blobs: MemoryStore | FaultyStore, path: Path) -> Report:
    return Collector(Home(blobs), path).run(grace_s=0, window_s=0)


def read_by(blobs: MemoryStore, path: Path) -> list[str]:
    """What a new process reads of versions, layouts, folds and logs."""
    watched = FaultyStore(blobs)
    report = collect(watched, path)
    assert {one.state for one in report.packs} == {"live"}
    names = ("versions/", "layouts/", "folds/", "refs/")
    return [key for op, key in watched.calls if op.startswith("get") and key.startswith(names)]


def packs(blobs: MemoryStore) -> set[str]:
    return {info.key for info in blobs.list(PACKS)}


def test_the_next_process_reads_what_is_new(store: Store, blobs: MemoryStore, path: Path) -> None:
    assert read_by(blobs, path)
    assert read_by(blobs, path) == []
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
    save(store, 4)
    read = read_by(blobs, path)
    # the entry, and the hint of its log
    assert sorted(key.partition("/")[0] for key in read) == ["layouts", "refs", "refs", "versions"]


def test_what_was_just_written_is_not_kept(
    store: Store, blobs: MemoryStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readcache, "SETTLED_S", 10)
    first = read_by(blobs, path)
    assert read_by(blobs, path) == first


def test_of_a_manifest_that_was_lost_since_all_stays(
    store: Store, blobs: MemoryStore, path: Path
) -> None:
    """What it needs is known by its layout; who knows that not stops."""
    collect(blobs, path)
    before = packs(blobs)
    blobs.delete([version_key(store.resolve("m@1").digest)])
    assert {one.state for one in collect(blobs, path).packs} == {"live"}
    assert packs(blobs) == before
    with pytest.raises(Damaged, match=r"m@1 .*cannot be loaded"):
        Collector(Home(blobs)).run(grace_s=0, window_s=0)
    assert packs(blobs) == before
    assert store.check().damaged


def test_a_layout_that_was_written_over_is_read_again(
    store: Store, blobs: MemoryStore, path: Path
) -> None:
    tuned = np.full(1000, 1.0)
    tuned[7] = 5
    store.save("n", {"w": tuned}, base="m@1")
    collect(blobs, path)
    store.rebase("n@1", above=1)
    collect(blobs, path)
    np.testing.assert_array_equal(store.load("n@1")["w"], tuned)
    assert not store.check(read_data=True).damaged


def test_a_store_that_was_restored_and_went_on_is_read_again(
    store: Store, blobs: MemoryStore, path: Path
) -> None:
    backup = dict(blobs._blobs)
    save(store, 5)
    running = Collector(Home(blobs), path)
    running.run(grace_s=0, window_s=0)
    for key in [key for key in blobs._blobs if key not in backup or key.endswith(HEAD)]:
        del blobs._blobs[key]
    blobs._blobs |= backup
    save(store, 6)
    for collector in (running, Collector(Home(blobs), path)):
        collector.run(grace_s=0, window_s=0)
        assert not store.check(read_data=True).damaged
        np.testing.assert_array_equal(store.load("m")["w"], np.full(1000, 6.0))


@pytest.mark.parametrize("what", ["value", "stamp"])
def test_a_damaged_row_is_not_believed(
    store: Store, blobs: MemoryStore, path: Path, what: str
) -> None:
    before = packs(blobs)
    collect(blobs, path)
    with sqlite3.connect(path) as db:
        for key, old in db.execute(f"SELECT key, {what} FROM values_read").fetchall():
            new = bytes(len(old)) if what == "value" else "1 1.0"
            db.execute(f"UPDATE values_read SET {what} = ? WHERE key = ?", (new, key))
    db.close()
    assert read_by(blobs, path)
    assert packs(blobs) == before
    assert read_by(blobs, path) == [], "they are replaced"


@pytest.mark.parametrize("content", [b"no database" * 1000, b""])
def test_a_damaged_file_is_replaced(
    store: Store, blobs: MemoryStore, path: Path, content: bytes
) -> None:
    collect(blobs, path)
    path.write_bytes(content)
    assert read_by(blobs, path)
    read_by(blobs, path)
    assert read_by(blobs, path) == []


def test_a_folder_that_cannot_be_used_is_done_without(
    store: Store, blobs: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert read_by(blobs, tmp_path / "file" / "id" / "gc.sqlite")
    assert "is not kept in" in caplog.text


def test_values_are_of_one_state_of_an_object(path: Path) -> None:
    cache = ReadCache(path)
    then, now = BlobInfo("refs/m", 3, 1.5), BlobInfo("refs/m", 3, 2.5)
    cache.put([(then, b"then")], now_s=100)
    assert cache.get([then]) == {"refs/m": b"then"}
    assert cache.get([now]) == {}
    cache.put([(now, b"now")], now_s=100)
    assert ReadCache(path).get([then, now, BlobInfo("x", 0, 0)]) == {"refs/m": b"now"}
    assert cache.get([then]) == {}
    many = [BlobInfo(f"k{at}", at, at) for at in range(1234)]
    cache.put([(info, info.key.encode()) for info in many], now_s=1e9)
    assert len(ReadCache(path).get(many)) == 1234
