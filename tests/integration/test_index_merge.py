"""Index segments are merged by collections, and no duplicate is missed for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created, opened
from tests.integration.test_collector import age, collect, keys, packs
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Unreachable
from tierstore.format import segments
from tierstore.format.keys import INDEX, quarantine_key
from tierstore.format.layout import parse_segment
from tierstore.format.segments import parse_any_segment
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.placing.moverlease import COLLECTOR, HeldLease
from tierstore.modelstore.reclaim import indexmerge
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.holdings import Holdings, read_holdings
from tierstore.modelstore.reclaim.indexmerge import MERGED_AT, merge_index
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, FaultyStore


def model(number: int) -> dict[str, np.ndarray]:
    return {"w": np.full((40, 40), number, np.int32)}


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("merged")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A store of which a collection merges the index."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(MERGED_AT):
            store.save(f"m{number}", model(number), base=None)
        yield store


def chunks(blobs: MemoryStore) -> set[bytes]:
    """The chunks that any segment places in a pack that is there."""
    there = packs(blobs)
    tables = [parse_segment(blobs.get(key), key) for key in keys(blobs, INDEX)]
    return {place.digest for table in tables for place in table if place.pack in there}


def is_known(blobs: MemoryStore, cache: Path, numbers: range) -> None:
    """A node that has seen nothing yet finds everything."""
    with opened(blobs, cache) as store:
        for number in numbers:
            version = store.save(f"again{number}", model(number), base=None)
            assert version.stats is not None
            assert version.stats.new_bytes == 0, number


def merged(home: Home, holdings: Holdings | None = None) -> int:
    with HeldLease(home.blobs, COLLECTOR) as lease:
        return merge_index(
            home, home.condemned.every(), holdings or read_holdings(home.packs), lease,
            0, lambda: False,
        )  # fmt: skip


def test_a_collection_merges_them(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    before = chunks(blobs)
    assert len(keys(blobs, INDEX)) == MERGED_AT
    collect(store)
    (key,) = keys(blobs, INDEX)
    assert chunks(blobs) == before
    table = parse_segment(blobs.get(key), key)
    assert [place.digest for place in table] == sorted(before)
    is_known(blobs, tmp_path / "other", range(MERGED_AT))
    assert not store.check(read_data=True).findings


def test_few_are_left_as_they_are(store: Store, blobs: MemoryStore) -> None:
    blobs.delete(keys(blobs, INDEX)[:1])
    before = keys(blobs, INDEX)
    collect(store)
    assert keys(blobs, INDEX) == before


def test_a_collection_without_work_reads_none(store: Store, blobs: MemoryStore) -> None:
    collect(store)
    store.save("n", model(99))
    watched = FaultyStore(blobs)
    Collector(Home(watched)).run(grace_s=0, window_s=0)
    assert [call for call in watched.calls if call[1].startswith(INDEX)] == [("list", INDEX)]


def test_of_many_few_are_made(store: Store, blobs: MemoryStore, cache: Path) -> None:
    """Sixteen times sixteen are one at last, and none of the rows is lost."""
    for number in range(MERGED_AT, MERGED_AT**2):
        store.save(f"m{number}", model(number), base=None)
        if number % MERGED_AT == MERGED_AT - 1:
            merged(store._parts.home)
    assert len(keys(blobs, INDEX)) < 2 * MERGED_AT
    assert len(chunks(blobs)) == MERGED_AT**2
    is_known(blobs, cache.parent / "other", range(0, MERGED_AT**2, 7))


def test_rows_of_what_is_deleted_go(store: Store, blobs: MemoryStore) -> None:
    before = chunks(blobs)
    store.remove(*(f"m{number}" for number in range(5)), force=True)
    collect(store)
    (key,) = keys(blobs, INDEX)
    table = parse_segment(blobs.get(key), key)
    assert set(table.pack_ids) == packs(blobs)
    assert len(table) == len(before) - 5


def test_rows_of_packs_that_are_lost_go(store: Store, blobs: MemoryStore) -> None:
    lost = next(iter(packs(blobs)))
    blobs.delete([f"packs/{lost.hex()[:2]}/{lost.hex()}"])
    merged(store._parts.home)
    (key,) = keys(blobs, INDEX)
    assert set(parse_segment(blobs.get(key), key).pack_ids) == packs(blobs)


def test_rows_of_packs_in_a_tier_that_is_down_stay(store: Store, blobs: MemoryStore) -> None:
    before = chunks(blobs)

    def plan(op: str, key: str, _: int) -> Exception | None:
        return Unreachable(f"{key} cannot be asked for") if op == "info" else None

    home = store._parts.home
    down = Home(FaultyStore(blobs, plan))
    merged(home, Holdings(down.packs, {}, {"home": "it is down"}, frozenset(), {}))
    assert len(keys(blobs, INDEX)) == 1
    assert chunks(blobs) == before


def test_a_pack_that_was_written_since_the_tiers_were_listed_stays(
    store: Store, blobs: MemoryStore
) -> None:
    holdings = read_holdings(store._parts.home.packs)
    store.save("late", model(99), base=None)
    before = chunks(blobs)
    merged(store._parts.home, holdings)
    assert chunks(blobs) == before


def test_a_crash_anywhere_loses_nothing(
    store: Store, blobs: MemoryStore, cache: Path, tmp_path: Path
) -> None:
    before, kept = chunks(blobs), dict(blobs._blobs)
    watched = FaultyStore(blobs)
    merged(Home(watched))
    count = watched.mutations
    assert count > MERGED_AT
    for at in range(count):
        blobs._blobs = dict(kept)
        with pytest.raises(Crashed):
            merged(Home(FaultyStore(blobs, crash_after=at)))
        assert chunks(blobs) == before, at
        age(blobs, "sweeps/", 10_000)
        merged(store._parts.home)
        assert chunks(blobs) == before, at
    is_known(blobs, tmp_path / "other", range(MERGED_AT))


def test_two_at_once_lose_nothing(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one merges whenever the first one is about to change anything."""
    monkeypatch.setattr(HeldLease, "check", lambda lease: None)
    monkeypatch.setattr(HeldLease, "keep", lambda lease: None)
    before, kept = chunks(blobs), dict(blobs._blobs)
    home = store._parts.home
    condemned, holdings = home.condemned.every(), read_holdings(home.packs)
    with HeldLease(blobs, COLLECTOR) as lease:
        for at in range(3 * MERGED_AT):
            blobs._blobs = dict(kept)

            def plan(op: str, key: str, number: int, at: int = at) -> None:
                if number == at and key.startswith(INDEX):
                    merge_index(home, condemned, holdings, lease, 0, lambda: False)
                    assert chunks(blobs) == before, at

            first = Home(FaultyStore(blobs, plan))
            merge_index(first, condemned, holdings, lease, 0, lambda: False)
            assert chunks(blobs) == before, at


def test_one_that_cannot_be_read_is_left(store: Store, blobs: MemoryStore) -> None:
    bad = keys(blobs, INDEX)[3]
    blobs.put(bad, b"damaged")
    store.save("n", model(99), base=None)
    before = set(keys(blobs, INDEX))
    merged(store._parts.home)
    assert len(set(keys(blobs, INDEX)) - before) == 1
    assert bad in keys(blobs, INDEX)
    assert len(keys(blobs, INDEX)) == 2


def test_a_pack_with_a_mark_stands_back(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    """Of two places of a chunk the one that saves may use is kept, whichever was written first."""
    for pack in packs(blobs):
        blobs.put(quarantine_key(pack), b"a mark that nobody can read marks its pack as well")
    for number in range(MERGED_AT):
        store.save(f"again{number}", model(number), base=None)
    assert len(keys(blobs, INDEX)) == 2 * MERGED_AT
    merged(store._parts.home)
    is_known(blobs, tmp_path / "other", range(MERGED_AT))


@pytest.mark.parametrize("month", [31, 29])
def test_a_large_one_is_written_anew_a_month_later(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch, month: int
) -> None:
    merged(store._parts.home)
    (key,) = keys(blobs, INDEX)
    monkeypatch.setattr(indexmerge, "FULL_BYTES", 100)
    age(blobs, INDEX, month * 24 * 3600)
    collect(store)
    assert keys(blobs, INDEX) == [key], "nothing was condemned since"
    store.remove("m3", force=True)
    collect(store)
    (now,) = keys(blobs, INDEX)
    assert (now != key) == (month > 30)
    assert len(parse_segment(blobs.get(now), now)) == MERGED_AT - (month > 30)
    collect(store)
    assert keys(blobs, INDEX) == [now]


def test_time_that_is_over_ends_it(store: Store, blobs: MemoryStore) -> None:
    home, before = store._parts.home, keys(blobs, INDEX)
    with HeldLease(blobs, COLLECTOR) as lease:
        merge_index(
            home, home.condemned.every(), read_holdings(home.packs), lease,
            0, lambda: True,
        )  # fmt: skip
    assert keys(blobs, INDEX) == before


# Nodes


def test_a_node_that_has_the_rows_takes_in_none(
    store: Store, blobs: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    add: Callable[..., None] = ChunkIndex._add

    def counted(self: ChunkIndex, key: str, *more: object) -> None:
        taken.append(key)
        add(self, key, *more)

    monkeypatch.setattr(ChunkIndex, "_add", counted)
    index = ChunkIndex(blobs, tmp_path / "a.sqlite")
    lacks = ChunkIndex(blobs, tmp_path / "b.sqlite")
    index.sync()
    blobs_of_b = MemoryStore()
    for key in keys(blobs, INDEX)[1:]:
        blobs_of_b.put(key, blobs.get(key))
    lacks._home_blobs = blobs_of_b
    lacks.sync()
    lacks._home_blobs = blobs
    merged(store._parts.home)
    (key,) = keys(blobs, INDEX)
    taken.clear()
    index.sync()
    assert taken == []
    lacks.sync()
    assert taken == [key]
    for one in chunks(blobs):
        assert index.find(one) is not None
        assert lacks.find(one) is not None
    taken.clear()
    index.sync()
    lacks.sync()
    assert taken == []


def test_a_node_that_syncs_meanwhile_misses_nothing(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    home = store._parts.home

    def plan(op: str, key: str, number: int) -> None:
        if op == "get" and key.startswith(INDEX) and len(keys(blobs, INDEX)) > 1:
            merged(home)

    index = ChunkIndex(FaultyStore(blobs, plan), tmp_path / "c.sqlite")
    index.sync()
    assert all(index.find(one) is not None for one in chunks(blobs))
    assert len(keys(blobs, INDEX)) == 1


def test_what_is_merged_is_cut_at_a_million_rows(
    store: Store, blobs: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "MOST_ROWS", 10)
    before = chunks(blobs)
    old = set(keys(blobs, INDEX))
    merged(store._parts.home)
    found = [parse_any_segment(blobs.get(key), key) for key in keys(blobs, INDEX)]
    assert sorted(len(one.table) for one in found) == [6, 10]
    assert all(one.replaces == old for one in found)
    assert chunks(blobs) == before
    is_known(blobs, tmp_path / "other", range(MERGED_AT))
