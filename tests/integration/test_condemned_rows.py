"""What is condemned leaves each node's dedup cache, and what a save must store again is encoded by
all of its threads.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.kit import condemn, equal, opened
from tests.integration.test_collector import collect, keys, packs, packs_of
from tests.integration.test_repack import NEW, with_shared_pack
from tierstore.blobs.memory import MemoryStore
from tierstore.format.keys import CONDEMNED, pack_key
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.saving.writer import Writer
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import SaveStats, Version
from tierstore.testing.faulty import FaultyStore

OTHER = {"other": np.arange(100, dtype=np.uint8)}


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("rows")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with with_shared_pack(blobs, cache) as store:
        yield store


def stats_of(saved: Version) -> SaveStats:
    assert saved.stats is not None
    return saved.stats


def rows(cache: Path) -> dict[bytes, int]:
    """How many places a cache has by the pack."""
    [path] = cache.rglob("index.sqlite")
    with sqlite3.connect(path) as db:
        found = dict(db.execute("SELECT pack, count(*) FROM chunks GROUP BY pack"))
        assert found.keys() == {pack for (pack,) in db.execute("SELECT id FROM packs")}
    return found


def test_rows_of_condemned_packs_leave_every_cache(
    store: Store, blobs: MemoryStore, cache: Path, tmp_path: Path
) -> None:
    node = tmp_path / "node"
    with opened(blobs, node) as other:
        other.save("n", OTHER)
        before = packs_of(store, "m@1") | packs_of(store, "m@2")
        assert rows(node).keys() >= before
        store.remove("m@1")
        assert collect(store, repack=True).repacked == 1
        gone = before - packs(blobs)
        other.save("n", {"more": np.arange(7, dtype=np.uint8)})
        assert gone
        assert gone.isdisjoint(rows(node))
        saved = other.save("again", {**NEW, **OTHER}, base=None)
        assert stats_of(saved).new_bytes == 0, "other rows stay, and those of new packs came"
        assert packs_of(other, "again@1").isdisjoint(gone)
    with opened(blobs, tmp_path / "fresh") as fresh:  # segments that name them are still there
        assert stats_of(fresh.save("fresh", {**NEW, **OTHER}, base=None)).new_bytes == 0
        assert gone.isdisjoint(rows(tmp_path / "fresh"))


def test_segments_of_condemned_packs_are_read_once(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    def read_by_save() -> list[str]:
        watched = FaultyStore(blobs)
        with opened(watched, tmp_path / "node") as other:
            other.save("n", OTHER)
        return [key for op, key in watched.calls if op == "get" and key.startswith(CONDEMNED)]

    assert read_by_save() == []
    condemn(blobs, pack_key(bytes(32)))
    assert read_by_save() == keys(blobs, CONDEMNED)
    assert read_by_save() == []
    condemn(blobs, pack_key(bytes([1] * 32)))
    assert len(read_by_save()) == 1


def test_a_segment_that_cannot_be_read_stops_no_save(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    condemn(blobs, pack_key(bytes(32)))
    blobs.delete(keys(blobs, CONDEMNED))
    with opened(blobs, tmp_path / "node") as other:
        other.save("n", OTHER)
        equal(other.load("n").load(), OTHER)


def test_what_must_be_stored_again_is_encoded_by_several_threads(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    content = {name: rng.integers(0, 9, 700_000).astype(np.uint8) for name in "ab"}
    store.save("big", content, base=None)
    condemn(blobs, *map(pack_key, packs_of(store, "big@1")))
    # the cache does not know yet that they are condemned
    monkeypatch.setattr(ChunkIndex, "forget_condemned", lambda self, named, condemned: None)
    encode, meeting, met = Writer._encode_alone, threading.Barrier(2), set[int]()

    def together(self: Writer, *batch: Any) -> Any:
        meeting.wait(timeout=60)  # nobody passes it alone
        met.add(threading.get_ident())
        return encode(self, *batch)

    monkeypatch.setattr(Writer, "_encode_alone", together)
    before = packs(blobs)
    saved = store.save("again", {**content, **OTHER}, base=None)
    assert len(met) == 2
    assert stats_of(saved).new_bytes == 2 * 700_000 + 100
    assert packs_of(store, "again@1").isdisjoint(before)
    equal(store.load("again").load(), {**content, **OTHER})
    equal(store.load("big").load(), content)
