"""Duplicates are found by an index that may be wrong; nothing is published on its word alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, condemn, created, equal, opened, tensors
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import BackendError, Damaged, NotFound, SourceChanged
from tierstore.format.keys import move_key, pack_key
from tierstore.format.layout import Move
from tierstore.format.pack import PackBuilder
from tierstore.format.sealed import Kind, seal_body
from tierstore.ids import ByteRange
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.home import leases
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.tiers.durable.tiers import DurableTiers, home_tier


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("dedup")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Store:
    store = created(blobs, cache)
    store.save("m", tensors(1))
    return store


def packs(blobs: MemoryStore) -> list[str]:
    return [info.key for info in blobs.list("packs/")]


def packs_of(store: Store, ref: str) -> set[str]:
    model = store.load(ref)
    return {pack_key(p.place.pack) for name in model for p in model.tensor(name)._base.chunks()}


def at(key_start: str, hook: Callable[[], object], op: str = "put") -> Callable[..., Fault]:
    """A plan that calls ``hook`` once, just before the first write of such a key."""
    done: list[str] = []

    def plan(call: str, key: str, n: int) -> Fault:
        if not done and call == op and key.startswith(key_start):
            done.append(key)
            hook()
        return None

    return plan


@pytest.mark.parametrize("how", ["deleted", "cut short"])
@pytest.mark.parametrize("moment", ["before the save", "before the manifest"])
def test_a_pack_that_vanished_is_stored_again(
    store: Store, blobs: MemoryStore, cache: Path, moment: str, how: str
) -> None:
    (old,) = packs(blobs)

    def lose() -> None:
        if how == "deleted":
            blobs.delete([old])
        else:
            blobs.put(old, bytes(blobs.get(old))[:-1])

    if moment == "before the save":
        lose()
        plan = None
    else:
        plan = at("versions/", lose)
    with opened(FaultyStore(blobs, plan), cache) as again:
        version = again.save("m", tensors(1) | {"more": np.ones(3)})
    assert version.stats is not None
    assert version.stats.new_chunks == 5, "two of emb, bias, common, more"
    assert old not in packs_of(store, "m@2")
    equal(store.load("m@2").load(), tensors(1) | {"more": np.ones(3)})
    equal(store.load("m@1").load(), tensors(1))
    report = store.check(read_data=True)
    assert not report.damaged, "a move heals what lay in the pack"
    assert report.quarantined == ([] if how == "deleted" else [old])


def test_saving_the_same_again_heals_a_lost_pack(store: Store, blobs: MemoryStore) -> None:
    blobs.delete(packs(blobs))
    with pytest.raises(NotFound, match=r"pack .* is missing.*tierstore repair"):
        store.load("m@1").load()
    store.save("m", tensors(1))
    equal(store.load("m@1").load(), tensors(1))
    assert not store.check(read_data=True).damaged


def test_a_condemned_pack_is_not_reused(store: Store, blobs: MemoryStore) -> None:
    (old,) = packs(blobs)
    condemn(blobs, "ab" * 32)
    condemn(blobs, old)
    store.save("other", {**tensors(1), "more": np.ones(3)})
    assert old not in packs_of(store, "other")
    store.save("m", tensors(1))
    blobs.delete([old])
    equal(store.load("m@2").load(), tensors(1))
    equal(store.load("other").load(), {**tensors(1), "more": np.ones(3)})


def test_a_pack_condemned_while_the_save_runs_is_not_reused(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    (old,) = packs(blobs)
    with opened(FaultyStore(blobs, at("versions/", lambda: condemn(blobs, old))), cache) as again:
        again.save("m", tensors(1) | {"more": np.ones(3)})
    assert old not in packs_of(store, "m@2")
    blobs.delete([old])
    equal(store.load("m@2").load(), tensors(1) | {"more": np.ones(3)})


def test_packs_that_keep_vanishing_are_an_error(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every look finds the lease ended: own packs too
    renew = leases.WriterLease.renew
    monkeypatch.setattr(leases.WriterLease, "renew", lambda lease: renew(lease) and False)
    monkeypatch.setattr(leases.WriterLease, "is_young", False)

    class Losing(FaultyStore):
        def put(self, key, data):
            if not key.startswith("packs/"):
                super().put(key, data)

    with (
        opened(Losing(blobs), cache) as again,
        pytest.raises(BackendError, match=r"keep disappearing.*nothing was published"),
    ):
        again.save("m", tensors(2))
    assert len(store.versions("m")) == 1


def test_after_the_lease_ended_own_packs_are_confirmed_too(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [running_s()]
    monkeypatch.setattr(leases, "running_s", lambda: clock[0])

    def a_long_pause_and_a_collection() -> None:
        clock[0] += leases.TTL_S + 1
        blobs.delete(packs(blobs))

    with opened(FaultyStore(blobs, at("versions/", a_long_pause_and_a_collection)), cache) as again:
        again.save("m", tensors(2))
    equal(store.load("m@2").load(), tensors(2))


def test_a_source_that_changed_before_it_is_read_again_is_an_error(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    source = tensors(1)

    def lose_and_train() -> None:
        blobs.delete(packs(blobs))
        source["emb"] += 1

    with (
        opened(FaultyStore(blobs, at("versions/", lose_and_train)), cache) as again,
        pytest.raises(SourceChanged),
    ):
        again.save("m", source)
    assert len(store.versions("m")) == 1


def test_an_index_of_another_life_is_only_a_hint(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """The store was restored from a copy of its first day, under its old id."""
    restored = MemoryStore("restored")
    restored.put("config.json", blobs.get("config.json"))
    with opened(restored, cache) as again:
        version = again.save("m", tensors(1))
        assert version.stats is not None
        assert version.stats.new_chunks == 4
        equal(again.load("m").load(), tensors(1))
        assert again.check(read_data=True).findings == []


def test_another_machine_finds_duplicates_through_the_segments(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    with opened(blobs, tmp_path / "another cache") as again:
        version = again.save("n", tensors(1))
    assert version.stats is not None
    assert version.stats.new_chunks == 0
    assert version.stats.objects == 1, "a manifest: the layout of equal content is kept"
    assert len(packs(blobs)) == 1


def test_without_segments_only_space_is_lost(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    blobs.delete([info.key for info in blobs.list("index/")])
    with opened(blobs, tmp_path / "another cache") as again:
        again.save("n", tensors(1))
        equal(again.load("n").load(), tensors(1))
        assert not again.check(read_data=True).damaged


# Layouts and moves


def use(store: Store, ref: str, target: Path) -> None:
    """Read a version in every way."""
    model = store.load(ref)
    assert model.tensor("emb")[[299, 3]].tobytes() == tensors(1)["emb"][[299, 3]].tobytes()
    assert model.tensor("emb")[250:280].tobytes() == tensors(1)["emb"][250:280].tobytes()
    equal(store.load(ref).load(), tensors(1))
    store.load(ref).export(target)


def test_a_missing_layout_is_rebuilt(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    store.save("other", {"x": np.arange(9)})
    damaged = packs(blobs)
    (own,) = packs_of(store, "m")
    damaged.remove(own)
    blobs.delete([info.key for info in blobs.list("layouts/")])
    use(store, "m", tmp_path / "out")
    for key in damaged:
        blobs.put(key, b"what is damaged elsewhere is no matter")
    use(store, "m", tmp_path / "out")
    report = store.check()
    assert any("'tierstore layout rebuild --all'" in finding.what for finding in report.findings)
    assert report.garbage_keys == [], "a pack of a version without a layout is no garbage"


def test_a_missing_layout_and_pack_name_what_is_lost(store: Store, blobs: MemoryStore) -> None:
    blobs.delete([info.key for info in blobs.list("layouts/")])
    blobs.delete(packs(blobs))
    with pytest.raises(NotFound, match=r"chunk b3:.* of version b3:.* is in no pack"):
        store.load("m")


def repack(blobs: MemoryStore, key: str, keep: int | None = None, pieces: int = 1) -> list[str]:
    """Rewrite a pack into ``pieces`` new ones, leave a move, and delete it."""
    trailer, places = read_footer(blobs, key, blobs.info(key).size)
    builders = [PackBuilder() for _ in range(pieces)]
    for number, place in enumerate(places[:keep]):
        frame = blobs.get(key, ByteRange(place.offset, place.offset + place.frame_bytes))
        builders[number % pieces].add(
            place.digest, frame, place.head_bytes, place.plain_bytes, place.codec
        )
    into = []
    for builder in builders:
        pack, buffers, _ = builder.close()
        blobs.put(pack_key(pack), buffers)
        into.append(pack.hex())
    move = Move(pack=trailer.pack_id.hex(), into=into)
    blobs.put(move_key(trailer.pack_id), seal_body(Kind.MOVE, move))
    blobs.delete([key])
    return [pack_key(bytes.fromhex(one)) for one in into]


def test_a_moved_pack_is_followed(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    opened_before = store.load("m")
    repack(blobs, packs(blobs)[0], pieces=2)
    equal(opened_before.load(), tensors(1))
    use(store, "m", tmp_path / "out")
    assert not store.check(read_data=True).damaged


def test_a_pack_moved_twice_is_followed(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    for key in repack(blobs, packs(blobs)[0], pieces=2):
        repack(blobs, key)
    use(store, "m", tmp_path / "out")
    assert not store.check(read_data=True).damaged


def test_a_move_that_lost_a_chunk_is_damage(store: Store, blobs: MemoryStore) -> None:
    repack(blobs, packs(blobs)[0], keep=2)
    with pytest.raises(Damaged, match=r"chunk b3:.* is lost"):
        store.load("m").load()
    assert store.check().damaged


def test_moves_in_a_circle_lead_nowhere(store: Store, blobs: MemoryStore) -> None:
    old = packs(blobs)[0]
    (new,) = repack(blobs, old)
    back = Move(pack=new[-64:], into=[old[-64:]])
    blobs.put(move_key(bytes.fromhex(new[-64:])), seal_body(Kind.MOVE, back))
    blobs.delete([new])
    with pytest.raises(Damaged, match="was rewritten without it"):
        store.load("m").load()
    with pytest.raises(Damaged, match="was rewritten without it"):
        store.load("m").tensor("emb")[0]
    store.save("m", tensors(1), base=None)
    equal(store.load("m@1").load(), tensors(1))


def test_each_pack_that_moves_lead_to_is_looked_into_once(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The move of each pack leads to the next two packs: a thousand ways to the last one."""
    ladder = [bytes([rung]) * 32 for rung in range(18)]
    for pack, *into in zip(ladder, ladder[1:], ladder[2:], strict=False):
        move = Move(pack=pack.hex(), into=[one.hex() for one in into])
        blobs.put(move_key(pack), seal_body(Kind.MOVE, move))
    (last,) = repack(blobs, packs(blobs)[0])
    end = Move(pack=ladder[-2].hex(), into=[last[-64:]])
    blobs.put(move_key(ladder[-2]), seal_body(Kind.MOVE, end))
    asked: list[str] = []

    def get(key: str, byte_range: ByteRange | None = None) -> memoryview:
        asked.append(key)
        return MemoryStore.get(blobs, key, byte_range)

    monkeypatch.setattr(blobs, "get", get)
    moves = Moves(blobs, DurableTiers([home_tier(blobs)]))
    moves.learn(ladder[0])
    first = [move_key(pack) for pack in ladder]
    second = [move_key(pack, 2) for pack in ladder[:-1]]
    assert sorted(key for key in asked if key.startswith("moves/")) == sorted(first + second)
    for place in read_footer(blobs, last, blobs.info(last).size)[1]:
        found = moves.target(ladder[0], place.digest)
        assert found is not None
        assert found.pack.hex() == last[-64:]


def test_a_save_after_a_move_stores_again_what_the_index_calls_moved(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    repack(blobs, packs(blobs)[0])
    store.save("m", tensors(1))
    use(store, "m@2", tmp_path / "out")
    assert not store.check(read_data=True).damaged


def test_small_chunk_sizes_of_a_version_are_its_own(cache: Path) -> None:
    source = {"w": np.random.default_rng(0).integers(0, 256, 5 * MIB, np.uint8)}
    for chunk in (MIB, 4 * MIB):
        with created(MemoryStore(str(chunk)), cache, chunk) as one:
            version = one.save("m", source)
            assert version.stats is not None
            assert version.stats.chunks == -(-5 * MIB // chunk)
            equal(one.load("m").load(), source)
