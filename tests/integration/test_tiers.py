"""A store over several tiers: the same bytes whoever has them, and whoever fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.kit import MIB, created, equal, settings, tensors
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, NotFound, Unreachable
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.tiers.base import ChunkRead
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier
from tierstore.tiers.hot.shared import SharedHot
from tierstore.tiers.hot.tiers import HotTiers

DOWN = Unreachable("no answer")


class Heat:
    def __init__(self) -> None:
        self.reads: list[ChunkRead] = []

    def record(self, reads: Sequence[ChunkRead], /) -> None:
        self.reads += reads


class Tiered:
    """A store with warm and cold tiers and a shared hot one, all in memory, all able to fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plans: dict[str, Callable[[str, str, int], Fault]] = {}
        self.stores = {name: self._store(name) for name in ("home", "warm", "cold", "shared")}
        created(self.stores["home"], folder).close()
        self.opened: list[Store] = []
        self.heat = Heat()

    def _store(self, name: str) -> FaultyStore:
        def plan(op: str, key: str, n: int) -> Fault:
            return self.plans[name](op, key, n) if name in self.plans else None

        return FaultyStore(MemoryStore(name), plan)

    def down(self, *names: str) -> None:
        self.plans = {name: lambda op, key, n: DOWN for name in names}

    def open(self, *, hot: bool = False, budget: int = 64 * MIB) -> Store:
        durable = [
            DurableTier(TierSpec(name=name, role="warm", url=f"memory://{name}"), self.stores[name])
            for name in ("warm", "cold")
        ]
        spec = TierSpec(name="shared", role="shared", url="memory://shared")
        shared = [SharedHot(spec, self.stores["shared"])] if hot else []
        store = Store(
            self.stores["home"], settings(self.folder),
            packs=DurableTiers([*durable, home_tier(self.stores["home"])]),
            hot=HotTiers(shared=shared, heat=self.heat, budget_bytes=budget),
        )  # fmt: skip
        self.opened.append(store)
        return store

    def packs(self, name: str) -> list[str]:
        return [info.key for info in self.stores[name].inner.list("packs/")]

    def copy(self, source: str, target: str, *, drop: bool = False) -> None:
        a, b = self.stores[source].inner, self.stores[target].inner
        for key in self.packs(source):
            b.put(key, bytes(a.get(key)))
            if drop:
                a.delete([key])

    def spoil(self, name: str, *, at: int) -> None:
        """Turn a bit over in every pack of a tier."""
        store = self.stores[name].inner
        for key in self.packs(name):
            data = bytearray(store.get(key))
            data[at] ^= 1
            store.put(key, data)

    def reads(self, name: str) -> int:
        found = [op for op, key in self.stores[name].calls if "packs/" in key and "get" in op]
        self.stores[name].calls.clear()
        return len(found)


@pytest.fixture
def tiered(tmp_path: Path) -> Iterator[Tiered]:
    made = Tiered(tmp_path)
    yield made
    made.plans.clear()
    for store in made.opened:
        store.close()


def loaded(store: Store) -> dict[str, np.ndarray]:
    return store.load("m").load()


MODEL = tensors(1)


def test_packs_go_to_the_first_tier_and_metadata_stays_in_home(tiered: Tiered) -> None:
    store = tiered.open()
    store.save("m", MODEL)
    assert tiered.packs("warm")
    assert not tiered.packs("cold")
    assert not tiered.packs("home")
    assert not [i.key for i in tiered.stores["warm"].inner.list() if not i.key.startswith("packs/")]
    equal(loaded(store), MODEL)
    assert store.check(read_data=True).findings == []
    model = store.load("m")
    model.load()
    assert set(model.stats.bytes_by_tier) == {"warm"}
    assert model.stats.bytes_by_tier["warm"] == model.stats.bytes_fetched > 0


@pytest.mark.parametrize("down", ["warm", "cold"])
def test_a_save_goes_on_while_a_tier_is_down(tiered: Tiered, down: str) -> None:
    tiered.down(down)
    store = tiered.open()
    store.save("m", MODEL)
    equal(loaded(store), MODEL)
    assert tiered.packs("cold" if down == "warm" else "warm")


def test_packs_are_read_wherever_they_went(tiered: Tiered) -> None:
    store = tiered.open()
    store.save("m", MODEL)
    for source, target in (("warm", "cold"), ("cold", "home"), ("home", "warm")):
        tiered.copy(source, target, drop=True)
        equal(loaded(store), MODEL)
        equal(loaded(tiered.open()), MODEL)
        stats = store.save("m", MODEL).stats
        assert stats is not None
        assert stats.new_chunks == 0, "a moved pack is still found"
        assert store.check(read_data=True).findings == []


def test_a_tier_that_is_down_is_passed_over(tiered: Tiered) -> None:
    store = tiered.open()
    store.save("m", MODEL)
    tiered.copy("warm", "cold")
    tiered.down("warm")
    equal(loaded(store), MODEL)
    tiered.stores["cold"].inner.delete(tiered.packs("cold"))
    with pytest.raises(Unreachable, match="tier warm could not be asked"):
        loaded(tiered.open())
    report = store.check()
    assert list(report.down) == ["warm"]
    assert report.findings == [], "nothing that it may have is called lost"


def test_a_pack_that_is_nowhere_is_missing(tiered: Tiered) -> None:
    store = tiered.open()
    store.save("m", MODEL)
    tiered.stores["warm"].inner.delete(tiered.packs("warm"))
    with pytest.raises(NotFound, match="tiers warm, cold, home"):
        loaded(store)
    assert store.check().damaged


@pytest.mark.parametrize("at", [300, 1000, -100])
def test_a_damaged_copy_is_read_from_another_tier_and_reported(
    tiered: Tiered, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In the first head, in a payload, in the index: the last one no load reads."""
    store = tiered.open()
    store.save("m", MODEL)
    tiered.copy("warm", "cold")
    tiered.spoil("warm", at=at)
    model = store.load("m")
    equal(model.load(), MODEL)
    equal({"emb": model.tensor("emb")[:]}, {"emb": MODEL["emb"]})
    rows = model.tensor("emb")[[0, 299]]
    assert rows.tobytes() == MODEL["emb"][[0, 299]].tobytes()
    if at > 0:
        assert "in tier warm is damaged, another one was read" in caplog.text
        assert set(model.stats.bytes_by_tier) == {"warm", "cold"}
    report = store.check(read_data=True)
    assert report.damaged
    assert all("its copy in tier warm is bad" in finding.what for finding in report.findings)
    assert all(not finding.needed_by for finding in report.findings)
    tiered.spoil("cold", at=at)
    if at > 0:
        with pytest.raises(Damaged):
            loaded(tiered.open())
    needed = [finding for finding in store.check(read_data=True).findings if finding.needed_by]
    assert needed


def test_a_copy_that_is_cut_short(tiered: Tiered) -> None:
    store = tiered.open()
    store.save("m", MODEL)
    tiered.copy("warm", "cold")
    for key in tiered.packs("warm"):
        tiered.stores["warm"].inner.put(key, b"cut")
    equal(loaded(store), MODEL)
    assert store.check().damaged


def test_a_save_does_not_rely_on_a_tier_that_it_cannot_ask(tiered: Tiered) -> None:
    store = tiered.open()
    store.save("m", MODEL)
    tiered.copy("warm", "cold", drop=True)
    tiered.down("cold")
    with pytest.raises(Unreachable, match="tier cold could not be asked"):
        store.save("m", MODEL)
    assert len(store.versions("m")) == 1


# Shared hot tiers


def test_what_was_read_is_hot_and_then_no_durable_tier_is_read(tiered: Tiered) -> None:
    store = tiered.open(hot=True)
    store.save("m", MODEL)
    equal(loaded(store), MODEL)
    assert store._parts.hot.flush(60)
    assert len(list(tiered.stores["shared"].inner.list())) == 4
    tiered.down("warm", "cold")
    model = tiered.open(hot=True).load("m")
    equal(model.load(), MODEL)
    assert set(model.stats.bytes_by_tier) == {"shared"}
    assert (model.stats.bytes_fetched, model.stats.requests) == (0, 0)


def test_one_question_for_many_chunks(tiered: Tiered, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"t{n}": np.full(50, n, np.int32) for n in range(300)}
    store = tiered.open(hot=True)
    store.save("m", many)
    asked: list[int] = []
    shared = store._parts.hot.shared[0].blobs
    assert isinstance(shared, FaultyStore)
    get_many = shared.get_many

    def counted(keys: Sequence[str]) -> dict[str, memoryview]:
        asked.append(len(keys))
        return get_many(keys)

    monkeypatch.setattr(shared, "get_many", counted)
    equal(loaded(store), many)
    assert asked == [300]


@pytest.mark.parametrize("fault", ["flip", "truncate", DOWN, Damaged("cut short")], ids=str)
def test_a_shared_tier_never_fails_a_read(tiered: Tiered, fault: Fault) -> None:
    store = tiered.open(hot=True)
    store.save("m", MODEL)
    loaded(store)
    assert store._parts.hot.flush(60)
    tiered.plans["shared"] = lambda op, key, n: fault if op.startswith("get") else None
    model = store.load("m")
    equal(model.load(), MODEL)
    assert set(model.stats.bytes_by_tier) == {"warm"}
    stats = store._parts.hot.shared[0].stats
    assert stats.misses == 8
    assert (stats.hits, stats.damaged) == (0, 4 if fault in ("flip", "truncate") else 0)


def test_a_bad_frame_is_removed_and_replaced(tiered: Tiered) -> None:
    store = tiered.open(hot=True)
    store.save("m", MODEL)
    loaded(store)
    assert store._parts.hot.flush(60)
    inner = tiered.stores["shared"].inner
    before = {info.key: bytes(inner.get(info.key)) for info in inner.list()}
    other = iter(list(before.values())[::-1])
    for key in before:
        inner.put(key, next(other))  # sound frames, of another chunk
    equal(loaded(store), MODEL)
    assert store._parts.hot.shared[0].stats.damaged == 4
    assert store._parts.hot.flush(60)
    assert {info.key: bytes(inner.get(info.key)) for info in inner.list()} == before


def test_a_full_shared_tier_is_counted(tiered: Tiered) -> None:
    tiered.plans["shared"] = lambda op, key, n: DOWN if "put" in op else None
    store = tiered.open(hot=True)
    store.save("m", MODEL)
    equal(loaded(store), MODEL)
    assert store._parts.hot.flush(60)
    assert store._parts.hot.shared[0].stats.rejected == 4


def test_the_filler_drops_what_it_has_no_room_for(tiered: Tiered) -> None:
    gate = threading.Event()

    def slow(op: str, key: str, n: int) -> Fault:
        if "put" in op:
            assert gate.wait(60)
        return None

    tiered.plans["shared"] = slow
    store = tiered.open(hot=True, budget=100_000)
    store.save("m", MODEL)
    equal(loaded(store), MODEL)
    gate.set()
    assert store._parts.hot.flush(60)
    stats = store._parts.hot.shared[0].stats
    assert stats.admitted + stats.rejected == 4
    assert stats.rejected >= 2
    assert stats.admitted_bytes <= 100_000


# Flights


def test_many_threads_read_each_chunk_once(tiered: Tiered) -> None:
    """The first reader is held until all others wait for what it fetches."""
    store = tiered.open()
    one = {"w": MODEL["emb"][:200]}  # a single chunk, so a single flight
    store.save("m", one)
    threads, gate = 8, threading.Event()
    tiered.reads("warm")

    def hold(op: str, key: str, n: int) -> Fault:
        if op == "get_ranges":
            assert gate.wait(60)
        return None

    tiered.plans["warm"] = hold
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(lambda: store.load("m").load()) for _ in range(threads)]
        flights = store._parts.hot.flights._flights
        deadline = threading.Event()
        for _ in range(6000):
            if sum(len(flight.seats) for flight in list(flights.values())) == threads - 1:
                break
            deadline.wait(0.01)
        gate.set()
        for future in futures:
            equal(future.result(60), one)
    assert tiered.reads("warm") == 1


def test_a_leader_that_fails_lets_the_others_try_themselves(tiered: Tiered) -> None:
    store = tiered.open()
    one = {"w": MODEL["emb"][:200]}
    store.save("m", one)
    gate = threading.Event()
    failures = iter([DOWN])

    def hold(op: str, key: str, n: int) -> Fault:
        if op != "get_ranges":
            return None
        fault = next(failures, None)
        if fault is not None:
            assert gate.wait(60)
        return fault

    tiered.plans["warm"] = hold
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(lambda: store.load("m").load()) for _ in range(4)]
        flights = store._parts.hot.flights._flights
        pause = threading.Event()
        for _ in range(6000):
            if sum(len(flight.seats) for flight in list(flights.values())) == 3:
                break
            pause.wait(0.01)
        gate.set()
        results: list[Any] = []
        for future in futures:
            try:
                results.append(future.result(60))
            except Unreachable:
                results.append(None)
    assert results.count(None) == 1
    for result in results:
        if result is not None:
            equal(result, one)
    assert store._parts.hot.flights._flights == {}


def test_the_same_chunk_many_times_in_a_model(tiered: Tiered) -> None:
    store = tiered.open(hot=True)
    same = {f"w{n}": np.arange(300_000, dtype=np.float32) for n in range(5)}
    store.save("m", same)
    seen: list[tuple[int, int]] = []
    got = store.load("m").load(progress=lambda done, total: seen.append((done, total)))
    equal(got, same)
    assert seen[-1][0] == seen[-1][1] == sum(array.nbytes for array in same.values())
    got["w0"][:] = 0
    equal({"w1": got["w1"]}, {"w1": same["w1"]})


# Heat


def test_every_read_is_recorded(tiered: Tiered) -> None:
    store = tiered.open(hot=True)
    store.save("m", MODEL)
    model = store.load("m")
    places = {place.digest: place for place in model._opened.content.table}
    for _ in range(2):  # from durable tiers, then from the shared one
        tiered.heat.reads.clear()
        model.load()
        assert store._parts.hot.flush(60)
        assert {read.digest for read in tiered.heat.reads} == set(places)
        assert len(tiered.heat.reads) == len(places)
        for read in tiered.heat.reads:
            place = places[read.digest]
            assert read == (place.digest, place.pack, place.plain_bytes, place.frame_bytes)
    tiered.heat.reads.clear()
    model.tensor("emb")[[0]]
    assert [(read.plain_bytes, 0 < read.read_bytes < 4100) for read in tiered.heat.reads] == [
        (MIB, True)
    ]


def test_a_store_without_tiers_is_as_it_was(tmp_path: Path) -> None:
    blobs: BlobStore = MemoryStore("plain")
    with created(blobs, tmp_path) as store:
        assert not store._parts.hot
        store.save("m", MODEL)
        equal(loaded(store), MODEL)
        model = store.load("m")
        model.load()
        assert set(model.stats.bytes_by_tier) == {"home"}
        assert store.check(read_data=True).findings == []
