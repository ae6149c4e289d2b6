"""Layouts name the packs where chunks are, once a collector has followed moves to them."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import condemn, created, equal, opened
from tests.integration.test_collector import packs, packs_of
from tests.integration.test_repack import (
    NEW,
    Model,
    collect,
    lapse,
    model,
    tuned,
    with_shared_pack,
)
from tests.waiting import wait_until
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, Unreachable
from tierstore.format.keys import LAYOUTS, LEASES, MOVES, PACKS, move_key, pack_key
from tierstore.format.layout import Move
from tierstore.format.sealed import Kind, unseal_body
from tierstore.modelstore.chunks.writemove import write_move
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.mark import Mark, Marker
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("rewritten")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A store of m@2 alone; two chunks of it lie in the pack of m@1, which was removed."""
    with with_shared_pack(blobs, cache) as store:
        store.remove("m@1")
        yield store


def marked(blobs: MemoryStore) -> Mark:
    return Marker(Home(blobs), ReadCache(None)).mark(time.time() + 3600, 0)


def followed(blobs: MemoryStore) -> list[str]:
    """The manifests for which a mark has to follow moves."""
    mark = marked(blobs)
    return [one.hex for one in mark.kept if mark.needs.of(one).moved is not None]


def requests(blobs: BlobStore, cache: Path, ref: str, content: Model) -> list[tuple[str, str]]:
    """The calls that a load in a new process makes, but for those of its lease."""
    watched = FaultyStore(blobs)
    with opened(watched, cache / uuid.uuid4().hex) as store:
        equal(store.load(ref).load(), content)
    return [(op, key) for op, key in watched.calls if not key.startswith(LEASES)]


def test_a_load_asks_for_nothing_that_is_gone(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    before = requests(blobs, cache, "m@2", NEW)
    assert collect(store).repacked == 1
    after = requests(blobs, cache, "m@2", NEW)
    assert [op for op, _ in after] == [op for op, _ in before]
    assert [key for _, key in after if key.startswith(MOVES)] == []
    assert packs_of(store, "m@2") == packs(blobs)
    assert followed(blobs) == []


def test_a_store_that_was_repacked_before_is_seen_to(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    key = LAYOUTS + store.resolve("m@2").digest.hex
    before = blobs.get(key)
    collect(store)
    blobs.put(key, before)
    assert followed(blobs) == [store.resolve("m@2").digest.hex]
    assert any(key.startswith(MOVES) for _, key in requests(blobs, cache, "m@2", NEW))
    collect(store)
    assert packs_of(store, "m@2") == packs(blobs)
    equal(store.load("m@2").load(), NEW)


def test_moves_lead_back_to_what_the_layout_named(store: Store, blobs: MemoryStore) -> None:
    before = packs_of(store, "m@2")
    collect(store)
    [new] = packs(blobs) - before
    [old] = before - packs(blobs)
    move = unseal_body(Kind.MOVE, blobs.get(move_key(new, 1)), Move, "the move back")
    assert move.into == [old.hex()]
    assert sorted(info.key for info in blobs.list(MOVES)) == sorted([move_key(new), move_key(old)])


def test_moves_are_written_behind_those_that_are_there(blobs: MemoryStore, cache: Path) -> None:
    created(blobs, cache).close()
    pack, one, two = b"\1" * 32, {b"\2" * 32}, {b"\3" * 32, b"\4" * 32}

    def taken(op: str, key: str, n: int) -> Fault:
        if op == "put_if_absent" and not list(blobs.list(MOVES)):
            write_move(Home(blobs), pack, one)  # somebody else is faster
        return None

    write_move(Home(FaultyStore(blobs, taken)), pack, two)
    write_move(Home(blobs), pack, one)
    written = [
        unseal_body(Kind.MOVE, blobs.get(move_key(pack, number)), Move, "x").into
        for number in range(1, len(list(blobs.list(MOVES))) + 1)
    ]
    assert written == [sorted(pack.hex() for pack in into) for into in (one, two)]


def test_a_move_is_written_though_nobody_can_look_into_a_pack(
    blobs: MemoryStore, cache: Path
) -> None:
    created(blobs, cache).close()
    pack, into = b"\1" * 32, {b"\2" * 32, b"\3" * 32}
    stumbles = FaultyStore(blobs, lambda op, key, n: Unreachable("no") if PACKS in key else None)
    write_move(Home(stumbles), pack, into)
    move = unseal_body(Kind.MOVE, blobs.get(move_key(pack)), Move, "x")
    assert move.into == sorted(one.hex() for one in into)


def test_one_that_sleeps_until_all_was_collected_loses_nothing(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """The version is removed, its packs go, and the same content is saved again."""
    done = list[str]()

    def plan(op: str, key: str, n: int) -> Fault:
        if op == "put" and key.startswith(LAYOUTS) and not done:
            done.append(key)
            store.remove("m@2", force=True)
            lapse(blobs)
            collect(Home(blobs))
            assert packs(blobs) == set()
            with opened(blobs, cache / "another") as other:
                other.save("m", NEW, base=None)
        return None

    with contextlib.suppress(Conflict):  # another one has collected
        collect(Home(FaultyStore(blobs, plan)))
    assert done
    with opened(blobs, cache / "reader") as reader:
        equal(reader.load("m@3").load(), NEW)
    lapse(blobs)
    assert collect(Home(blobs)).healed == 0
    assert followed(blobs) == []
    with opened(blobs, cache / "later") as reader:
        equal(reader.load("m@3").load(), NEW)


def test_what_a_reader_holds_is_named_until_it_ends(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    before = packs_of(store, "m@2")
    with opened(blobs, cache / "reader") as other:
        reading = other.load("m@2")
        wait_until(lambda: any(blobs.list(LEASES)), "the lease of the reader")
        condemn(blobs, *map(pack_key, before))
        assert collect(store).healed > 0
        assert packs_of(store, "m@2") == before < packs(blobs)
        blobs.delete([info.key for info in blobs.list(LEASES)])  # as one that was suspended
        collect(store)
        assert packs_of(store, "m@2") == packs(blobs)
        assert before.isdisjoint(packs(blobs))
        equal(reading.load(), NEW)


def test_what_is_left_when_the_time_is_over_is_done_later(store: Store, blobs: MemoryStore) -> None:
    before = packs_of(store, "m@2")
    condemn(blobs, *map(pack_key, before))
    collect(store, max_time_s=0)
    assert packs_of(store, "m@2") == before
    collect(store)
    assert packs_of(store, "m@2") == packs(blobs)


def test_a_home_that_takes_no_layout_does_not_stop_the_rest(
    store: Store, blobs: MemoryStore
) -> None:
    before = packs_of(store, "m@2")

    def plan(op: str, key: str, n: int) -> Fault:
        return Unreachable("no answer") if op == "put" and key.startswith(LAYOUTS) else None

    report = collect(Home(FaultyStore(blobs, plan)))
    assert report.repacked == 1
    assert len(before - packs(blobs)) == 1, "the old pack is deleted"
    assert packs_of(store, "m@2") == before
    equal(store.load("m@2").load(), NEW)


def test_deltas_and_their_bases_are_named_where_they_are(cache: Path) -> None:
    blobs = MemoryStore("deltas")
    base = {**model(*range(20, 30)), "other": np.arange(5000, dtype=np.int32)}
    content = {**tuned(model(20, 21), 3), "small": base["small"]}
    with created(blobs, cache / "one") as store:
        enable(store._parts.home, wait_s=0)
        store.save("n", base, base=None)
        store.save("n", content, base="n@1")
        store.remove("n@1")
        named = packs_of(store, "n@2")
        assert collect(store).repacked == 1, "that of the bases"
        assert packs_of(store, "n@2") == packs(blobs) != named
        condemn(blobs, *map(pack_key, packs(blobs)))  # that of the deltas, too
        assert collect(store).healed > 0
        assert packs_of(store, "n@2") == packs(blobs)
        assert followed(blobs) == []
    with opened(blobs, cache / "two") as store:
        equal(store.load("n@2").load(), content)
