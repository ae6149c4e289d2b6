"""What a check and a repair say of chunks to which moves lead: readers must find them there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.kit import MIB, created, equal, opened
from tests.integration.test_collector import packs, packs_of
from tests.integration.test_collector_schedules import tuned, weights
from tests.integration.test_quarantine import flip
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, NotFound
from tierstore.format.keys import MOVES, PACKS, layout_key, move_key, pack_key
from tierstore.format.layout import Move
from tierstore.format.pack import PackBuilder
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.table import ChunkTable
from tierstore.ids import ByteRange
from tierstore.modelstore.chunks.frameways import FrameWays
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.chunks.pool import ReadPool
from tierstore.modelstore.chunks.reader import ChunkReader
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store

BASE, TUNED = weights(1), tuned(weights(1), 2)


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("ways")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A version whose layout names a pack that is gone; a move leads to deltas of its chunks."""
    alone = MemoryStore("alone")
    with created(alone, cache / "alone") as other:
        digest = other.save("m", TUNED, base=None).digest
        [gone] = packs_of(other, "m")
    with created(blobs, cache) as store:
        store.save("m", BASE, base=None)
        assert store.save("m", TUNED, base="m@1").digest == digest
        [deltas] = packs_of(store, "m@2") - packs_of(store, "m@1")
        blobs.put(layout_key(digest), alone.get(layout_key(digest)))
        lead(blobs, gone, deltas)
        yield store


def lead(blobs: MemoryStore, pack: bytes, *into: bytes, number: int = 1) -> None:
    move = Move(pack=pack.hex(), into=[one.hex() for one in into])
    blobs.put(move_key(pack, number), seal_body(Kind.MOVE, move))


@pytest.mark.parametrize("read_data", [False, True])
def test_a_way_that_ends_in_a_delta_without_its_base_is_damage(
    store: Store, read_data: bool
) -> None:
    with pytest.raises(Damaged, match="the base of a delta is not standalone"):
        store.load("m@2").load()
    [gone] = packs_of(store, "m@2")
    [finding] = store.check(read_data=read_data).findings
    assert (finding.severity, finding.key) == ("damage", pack_key(gone))
    assert "a delta without a base that can be read" in finding.what
    assert finding.needed_by == ("m@2",)


def test_a_repair_heals_it_from_another_pack(store: Store, blobs: MemoryStore) -> None:
    [gone] = packs_of(store, "m@2")
    before = {info.key: bytes(blobs.get(info.key)) for info in blobs.list(MOVES)}
    assert [one.outcome for one in store.repair(dry_run=True).objects] == ["repaired"]
    report = store.repair()
    assert [(one.outcome, one.key) for one in report.objects] == [("repaired", pack_key(gone))]
    assert report.is_whole
    equal(store.load("m@2").load(), TUNED)
    assert not store.check(read_data=True).damaged
    assert all(blobs.get(key) == data for key, data in before.items()), "moves never change"
    assert store.repair().objects == []


BOTH = {**TUNED, **{f"base.{name}": array for name, array in BASE.items()}}


def with_another_layout(blobs: MemoryStore, cache: Path, beside: str) -> bytes:
    """Make such a store, in which a model ``beside`` has the bases as well; return the lost pack.

    Its layout names that pack too.
    """
    alone = MemoryStore("alone")
    with created(alone, cache / "alone") as other:
        digest = other.save("m", TUNED, base=None).digest
        [gone] = packs_of(other, "m")
        digests = [digest, other.save(beside, BOTH, base=None).digest]
        bases = packs_of(other, beside) - {gone}
    with created(blobs, cache) as store:
        store.save("m", BASE, base=None)
        assert store.save("m", TUNED, base="m@1").digest == digest
        [deltas] = packs_of(store, "m@2") - packs_of(store, "m@1")
        store.save(beside, BOTH, base=None)
        keys = [*map(pack_key, bases), *map(layout_key, digests)]
        for key in keys:
            blobs.put(key, alone.get(key))
        lead(blobs, gone, deltas)
    return gone


@pytest.mark.parametrize("beside", ["a", "z"])
def test_a_repair_heals_it_whatever_other_layouts_lead_there(
    blobs: MemoryStore, cache: Path, beside: str
) -> None:
    """The layout of the version beside it has the base, and is read before or after it."""
    gone = with_another_layout(blobs, cache, beside)
    with opened(blobs, cache / "again") as store:
        equal(store.load(beside).load(), BOTH)
        [done] = store.repair().objects
        assert (done.outcome, done.key) == ("repaired", pack_key(gone))
        equal(store.load("m@2").load(), TUNED)
        assert not store.check().damaged


def test_a_save_stores_nothing_again_that_its_layout_leads_to(
    blobs: MemoryStore, cache: Path
) -> None:
    """The move leads to deltas whose bases are where the layout places them."""
    with_another_layout(blobs, cache, "z")
    with opened(blobs, cache / "again") as store:
        before = {info.key for prefix in (MOVES, PACKS) for info in blobs.list(prefix)}
        store.save("z", BOTH, base=None)
        assert {info.key for prefix in (MOVES, PACKS) for info in blobs.list(prefix)} == before
        equal(store.load("z").load(), BOTH)


def test_a_repair_says_what_is_lost_of_it(store: Store, blobs: MemoryStore) -> None:
    [gone] = packs_of(store, "m@2")
    blobs.delete([pack_key(pack) for pack in packs_of(store, "m@1")])
    assert {one.needed_by for one in store.check().findings} == {("m@1",), ("m@2",)}
    report = store.repair("m@2")
    assert [(one.outcome, one.key) for one in report.objects] == [("lost", pack_key(gone))]
    assert [one.version for one in report.hit] == ["m@2"]


def test_a_save_of_that_content_heals_it(store: Store, blobs: MemoryStore) -> None:
    before = bytes(blobs.get(layout_key(store.resolve("m@2").digest)))
    assert store.save("m", TUNED, base="m@1").digest == store.resolve("m@2").digest
    equal(store.load("m@2").load(), TUNED)
    assert blobs.get(layout_key(store.resolve("m@2").digest)) == before
    assert not store.check(read_data=True).damaged


@pytest.mark.parametrize("read_data", [False, True])
@pytest.mark.parametrize("from_deltas", [False, True])
def test_a_base_to_which_moves_lead_is_found(
    store: Store, blobs: MemoryStore, read_data: bool, from_deltas: bool
) -> None:
    """By the moves that led to the delta, or those of the delta's own pack."""
    [gone], [base] = packs_of(store, "m@2"), packs_of(store, "m@1")
    [deltas] = [pack for pack in packs(blobs) if pack != base]
    if from_deltas:
        lead(blobs, deltas, base)
    else:
        lead(blobs, gone, base, deltas)
    equal(store.load("m@2").load(), TUNED)
    assert store.check(read_data=read_data).findings == []


@pytest.mark.parametrize("read_data", [False, True])
@pytest.mark.parametrize("and_deltas", [False, True])
def test_a_base_that_nothing_needs_since_a_rebase_is_no_damage(
    blobs: MemoryStore, cache: Path, read_data: bool, and_deltas: bool
) -> None:
    """Another layout, such as that of a version that was brought back, may name its pack still."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        store.save("m", BASE, base=None)
        digest = store.save("m", TUNED, base="m@1").digest
        [base] = packs_of(store, "m@1")
        [deltas] = packs_of(store, "m@2") - {base}
        before = bytes(blobs.get(layout_key(digest)))
        store.rebase("m@2", above=1)
        blobs.put(layout_key(digest), before)
        store.remove("m@1")
        store.retention.set("m", window=timedelta(0))
        blobs.delete([pack_key(base), *([pack_key(deltas)] if and_deltas else [])])
    with opened(blobs, cache) as store:
        equal(store.load("m@2").load(), TUNED)
        report = store.check(read_data=read_data)
        assert not report.damaged, report.findings
        assert store.repair().is_whole


def test_a_damaged_base_that_nothing_needs_is_no_damage(blobs: MemoryStore, cache: Path) -> None:
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        store.save("m", BASE, base=None)
        digest = store.save("m", TUNED, base="m@1").digest
        [base] = packs_of(store, "m@1")
        table = store.load("m@2")._opened.content.table
        place = next(
            one for one in table.places_in(base) if any(one.digest in o.bases for o in table)
        )
        before = bytes(blobs.get(layout_key(digest)))
        store.rebase("m@2", above=1)
        blobs.put(layout_key(digest), before)
        store.remove("m@1")
        store.retention.set("m", window=timedelta(0))
        flip(blobs, place)
    with opened(blobs, cache) as store:
        equal(store.load("m@2").load(), TUNED)
        report = store.check(read_data=True)
        assert not report.damaged, report.findings
        assert report.quarantined == [pack_key(base)], "a save may reuse it"
        assert store.repair().is_whole
        assert not store.check(read_data=True).damaged


# What a check says against what a reader does


@pytest.fixture
def graph(cache: Path) -> tuple[MemoryStore, dict[str, bytes], dict[str, ChunkTable]]:
    """Packs of the same chunks, standalone and as deltas on a base, and two layouts of these."""
    blobs, tables = MemoryStore("graph"), {}
    with created(blobs, cache / "deltas") as store:
        store.save("m", BASE, base=None)
        store.save("m", TUNED, base="m@1")
        tables["deltas"] = store.load("m@2")._opened.content.table
        [base] = packs_of(store, "m@1")
        [deltas] = packs_of(store, "m@2") - {base}
    with created(MemoryStore("alone"), cache / "alone") as other:
        other.save("m", TUNED, base=None)
        tables["alone"] = other.load("m@1")._opened.content.table
        [alone] = packs_of(other, "m@1")
        blobs.put(pack_key(alone), other._parts.home.blobs.get(pack_key(alone)))
    builder = PackBuilder()
    for place in tables["deltas"].places_in(base):
        span = ByteRange(place.offset - place.proof_bytes, place.offset + place.frame_bytes)
        builder.copy(place, blobs.get(pack_key(base), span))
    again, buffers, _ = builder.close()
    blobs.put(pack_key(again), b"".join(buffers))
    return blobs, {"base": base, "deltas": deltas, "alone": alone, "again": again}, tables


NAMES = st.sampled_from(["base", "deltas", "alone", "again"])


@given(
    moves=st.dictionaries(NAMES, st.lists(st.lists(NAMES, max_size=3), min_size=1, max_size=2)),
    gone=st.sets(NAMES),
    layout=st.sampled_from(["deltas", "alone"]),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_not_lost_can_be_read_and_nothing_else(
    graph: tuple[MemoryStore, dict[str, bytes], dict[str, ChunkTable]],
    moves: dict[str, list[list[str]]],
    gone: set[str],
    layout: str,
) -> None:
    every, packs, tables = graph
    blobs = MemoryStore("there")
    for info in every.list():
        if info.key not in {pack_key(packs[one]) for one in gone}:
            blobs.put(info.key, every.get(info.key))
    for pack, numbered in moves.items():
        for number, names in enumerate(numbered, 1):
            lead(blobs, packs[pack], *(packs[one] for one in names), number=number)
    home, table = Home(blobs), tables[layout]
    unfit = {packs[one] for one in gone}
    ways = FrameWays(Moves(blobs, home.packs), lambda place: place.pack not in unfit)
    for place in table.places_relying_on({packs[layout]}):
        pool = ReadPool(blobs, home.packs, table, threads=1, memory_limit_bytes=MIB)
        out = memoryview(bytearray(place.plain_bytes))
        try:
            ChunkReader(pool, table).read([Want(place, out)])
            is_read = True
        except (Damaged, NotFound):
            is_read = False
        assert (ways.end(place, table) is None) == is_read
