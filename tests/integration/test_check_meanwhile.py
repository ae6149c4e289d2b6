"""What a check says of packs that go while it looks: others collect, rebase and move meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, settings, tensors
from tests.integration.test_collector import CHANGES, collect, packs, packs_of
from tests.integration.test_collector_schedules import tuned, weights
from tests.integration.test_quarantine import flip, places
from tierstore import Rows
from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.blobs.memory import MemoryStore
from tierstore.format.keys import LEASES, PACKS, fold_key, pack_key, version_key
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("meanwhile")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    create_config(blobs, MIB)
    with Store(blobs, settings(cache)) as store:
        yield store


def before_packs_are_read(blobs: BlobStore, act: Callable[[], object]) -> BlobStore:
    """The same blobs, where ``act`` runs right before a pack is read for the first time."""
    acts = [act]

    def plan(op: str, key: str, n: int) -> None:
        if acts and op in {"get", "get_ranges"} and key.startswith(PACKS):
            acts.pop()()

    return FaultyStore(blobs, plan)


def removed_and_collected(store: Store, *refs: str) -> None:
    store.remove(*refs)
    store._parts.home.blobs.delete([info.key for info in store._parts.home.blobs.list(LEASES)])
    collect(store)


@pytest.mark.parametrize("read_data", [False, True])
def test_what_is_collected_meanwhile_is_no_damage(
    store: Store, blobs: MemoryStore, cache: Path, read_data: bool
) -> None:
    enable(store._parts.home, wait_s=0)
    for number in range(1, 4):
        store.save("m", tensors(number), base=None)
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    looked = before_packs_are_read(blobs, lambda: removed_and_collected(store, "m@2"))
    with Store(looked, settings(cache)) as other:
        report = other.check(read_data=read_data)
    assert own not in packs(blobs), "the collector did not run while the check did"
    assert not report.damaged, report.findings
    assert report.quarantined == []


def test_what_may_be_gone_meanwhile_is_no_damage(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    enable(store._parts.home, wait_s=0)
    for number in range(1, 4):
        store.save("m", tensors(number), base=None)
    [place, *_] = places(store, "m@2", "emb")

    def act() -> None:
        store.remove("m@2")
        store.retention.set("m", window=timedelta(0))
        flip(blobs, place)

    with Store(before_packs_are_read(blobs, act), settings(cache)) as other:
        report = other.check(read_data=True)
    assert not report.damaged, report.findings


def test_a_store_that_begins_to_reclaim_meanwhile(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    for number in range(1, 4):
        store.save("m", tensors(number), base=None)

    def act() -> None:
        enable(store._parts.home, wait_s=0)
        removed_and_collected(store, "m@2")

    with Store(before_packs_are_read(blobs, act), settings(cache)) as other:
        assert not other._parts.home.reclaims
        report = other.check()
    assert len(packs(blobs)) == 2
    assert not report.damaged, report.findings


@pytest.mark.parametrize("read_data", [False, True])
def test_what_others_need_is_damage_and_names_them_alone(
    store: Store, blobs: MemoryStore, cache: Path, read_data: bool
) -> None:
    enable(store._parts.home, wait_s=0)
    for number in range(1, 4):
        store.save("m", tensors(number), base=None)
    [first] = packs_of(store, "m@1")
    key = pack_key(first)

    def act() -> None:
        removed_and_collected(store, "m@1")
        blobs.delete([key])

    with Store(before_packs_are_read(blobs, act), settings(cache)) as other:
        report = other.check(read_data=read_data)
    [finding, *more] = report.findings
    assert (finding.severity, finding.key) == ("damage", key)
    assert finding.needed_by == ("m@2", "m@3")
    assert {one.needed_by for one in more} <= {("m@2", "m@3")}


def test_a_layout_that_is_written_anew_meanwhile(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    enable(store._parts.home, wait_s=0)
    base = weights(1)
    store.save("n", base, base=None)
    store.save("n", tuned(base, 3), base="n@1")
    [deltas] = packs_of(store, "n@2") - packs_of(store, "n@1")

    def act() -> None:
        store.rebase("n@2", above=1)
        blobs.delete([info.key for info in blobs.list("moves/")])  # so that the layout alone tells
        blobs.delete([pack_key(deltas)])

    with Store(before_packs_are_read(blobs, act), settings(cache)) as other:
        report = other.check(read_data=True)
    assert deltas not in packs_of(store, "n@2")
    assert not report.damaged, report.findings


def test_what_lies_below_a_fold_is_needed_by_none_that_reads_the_fold(
    store: Store, blobs: MemoryStore
) -> None:
    """The patch that was folded is removed; its packs go, and its fold stays."""
    enable(store._parts.home, wait_s=0)
    store.save("m", tensors(1), base=None)
    store.patch("m@1", CHANGES, fold=False)
    store.fold("m@2")
    store.patch("m@2", {"emb": Rows([5], np.ones((1, 1000), np.float32))}, fold=False)
    folded = store.resolve("m@2").digest
    before = packs(blobs)
    removed_and_collected(store, "m@1", "m@2")
    assert packs(blobs) < before
    report = store.check(read_data=True)
    assert report.findings == [], "neither damage nor garbage"
    blobs.delete([fold_key(folded)])
    assert store.check().damaged
    assert version_key(folded) not in store.check().garbage_keys


def test_a_copy_that_a_mover_drops_meanwhile_is_not_a_bad_one(cache: Path) -> None:
    home, warm, cold = (MemoryStore(name) for name in ("home", "warm", "cold"))
    create_config(home, MIB)

    def opened(warm: BlobStore) -> Store:
        tiers = [
            DurableTier(TierSpec(name=name, role=name, url=f"memory://{name}"), blobs)  # type: ignore[arg-type]
            for name, blobs in (("warm", warm), ("cold", cold))
        ]
        return Store(home, settings(cache), packs=DurableTiers([*tiers, home_tier(home)]))

    def act() -> None:
        for info in list(warm.list(PACKS)):
            cold.put(info.key, warm.get(info.key))
            warm.delete([info.key])

    with opened(warm) as store:
        store.save("m", tensors(1))
    for read_data in (False, True):
        with opened(before_packs_are_read(warm, act)) as store:
            report = store.check(read_data=read_data)
        assert report.findings == []
        assert report.packs == 1
        for info in list(cold.list(PACKS)):
            warm.put(info.key, cold.get(info.key))
            cold.delete([info.key])


class Together(FaultyStore):
    """A store that answers reads of packs two at a time."""

    two = threading.Barrier(2)

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        if reads[0].key.startswith(PACKS):
            self.two.wait(timeout=60)  # for another read
        super().get_ranges(reads)


def test_footers_are_read_several_at_a_time(store: Store, blobs: MemoryStore, cache: Path) -> None:
    for number in range(1, 5):
        store.save("m", tensors(number), base=None)
    with Store(Together(blobs), settings(cache)) as other:
        report = other.check()
    assert (report.findings, report.packs) == ([], 4)
