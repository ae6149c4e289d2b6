"""Condemned lists stay small: segments of the same days are merged where there are many."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.kit import created, tensors
from tests.integration.test_collector import DAY_S, collect, keys, packs, packs_of
from tierstore.blobs.memory import MemoryStore
from tierstore.format.keys import GC, LEASES
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.condemned import CondemnedPacks
from tierstore.modelstore.home.leases import new_lease
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("segments")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in (1, 2, 3):
            store.save("m", tensors(number), base=None)
        yield store


def of_many_runs(blobs: MemoryStore, days: Sequence[float]) -> list[bytes]:
    """Segments of a pack each that is there no more, of runs so many days ago; return the packs."""
    condemned = CondemnedPacks(blobs)
    gone = [hashlib.sha256(bytes([at])).digest() for at in range(len(days))]
    for pack, ago in zip(gone, days, strict=True):
        time_us = int((time.time() - ago * DAY_S) * 1e6)
        condemned.condemn([pack], run=uuid.uuid4().hex, now_us=time_us)
    return gone


def test_many_small_segments_are_merged(store: Store, blobs: MemoryStore) -> None:
    days = [29, 28.9, *[20 + at / 100 for at in range(9)], *[at / 100 for at in range(1, 9)]]
    gone = of_many_runs(blobs, days)
    before = CondemnedPacks(blobs).every()
    collect(store)
    after = CondemnedPacks(blobs).every()
    assert after.packs == before.packs == set(gone)
    assert len(after.segments) <= 5
    times = dict(zip(gone, days, strict=True))
    for time_us, segment in after.segments.values():
        ago = [times[pack] for pack in segment]
        assert (time.time() - time_us / 1e6) / DAY_S == pytest.approx(min(ago), abs=0.01)
        assert max(ago) - min(ago) < 4, "they stay listed little longer than they must"
    assert CondemnedPacks(blobs).among(gone) == set(gone)
    lists = keys(blobs, GC)
    collect(store)
    assert keys(blobs, GC) == lists, "once is enough"


def test_few_segments_and_large_ones_are_left_as_they_are(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_many_runs(blobs, [1.0] * 16)
    collect(store)
    assert len(CondemnedPacks(blobs).every().segments) == 16
    monkeypatch.setattr("tierstore.modelstore.reclaim.tidy.SMALL_PACKS", 1)
    of_many_runs(blobs, [1.0] * 16)
    collect(store)
    assert len(CondemnedPacks(blobs).every().segments) == 32


def test_a_merged_segment_waits_for_the_saves_that_it_waited_for(
    store: Store, blobs: MemoryStore
) -> None:
    of_many_runs(blobs, [0.1] * 20)
    early, late = new_lease("writer"), new_lease("writer")
    blobs.put(LEASES + early.id, seal_body(Kind.LEASE, early))
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@2")
    collect(store)
    assert len(CondemnedPacks(blobs).every().segments) < 20
    blobs.put(LEASES + late.id, seal_body(Kind.LEASE, late))
    assert own in packs(blobs)
    collect(store)
    assert own in packs(blobs)
    blobs.delete([LEASES + early.id])
    collect(store)
    assert own not in packs(blobs), "it never waited for the late one"
