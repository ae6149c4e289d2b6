"""Repair: what is damaged or gone is put back from what is left, or said to be lost, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.kit import condemn, created, equal, opened, settings, tensors
from tests.integration.test_crash import copy_of
from tests.integration.test_deltas import model, tuned_model
from tests.integration.test_quarantine import loads, moves, pack_of, places, stats
from tests.integration.test_tiers import Tiered
from tests.unit.format_by_hand import msgpack, read_msgpack, read_sealed, sealed
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, Unreachable
from tierstore.format.checks import xxh3
from tierstore.format.keys import (
    COLLECTED,
    GC,
    INDEX,
    LEASES,
    PACKS,
    QUARANTINE,
    layout_key,
    move_key,
    pack_key,
    quarantine_key,
)
from tierstore.format.keys import pack_of as pack_of_key
from tierstore.format.pack import TRAILER_BYTES, parse_trailer
from tierstore.format.table import ChunkPlace
from tierstore.format.tiers import MOVERS
from tierstore.ids import ByteRange
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.repair.report import RepairReport
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, Fault, FaultyStore
from tierstore.tiers.durable.packcheck import places_in

FIRST = tensors(1)
PASSING = (LEASES, MOVERS, "probes/", "sweeps/")
"""Prefixes of what every command writes and removes."""


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("repaired")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as store:
        store.save("m", FIRST)
        yield store


@pytest.fixture
def tiered(tmp_path: Path) -> Iterator[Tiered]:
    """A store whose packs are in warm and in cold."""
    made = Tiered(tmp_path)
    made.open().save("m", FIRST)
    made.copy("warm", "cold")
    yield made
    made.plans.clear()
    for store in made.opened:
        store.close()


def every(*stores: BlobStore) -> dict[tuple[str, str], bytes]:
    """All objects of some places that do not come and go, by place and key."""
    return {
        (store.url, info.key): bytes(store.get(info.key))
        for store in stores
        for info in store.list()
        if not info.key.startswith(PASSING)
    }


def changed(before: dict[tuple[str, str], bytes], after: dict[tuple[str, str], bytes]) -> set[str]:
    """The keys of objects that are not what they were; new ones do not count."""
    return {key for (place, key), data in before.items() if after.get((place, key)) != data}


def spoil(blobs: BlobStore, key: str, change: Callable[[bytearray], bytes | bytearray]) -> None:
    blobs.put(key, change(bytearray(blobs.get(key))))


def flipped(at: int) -> Callable[[bytearray], bytearray]:
    def flip(data: bytearray) -> bytearray:
        data[at] ^= 1
        return data

    return flip


def flip_chunk(blobs: BlobStore, place: ChunkPlace) -> None:
    spoil(blobs, pack_key(place.pack), flipped(place.offset + place.frame_bytes - 1))


def flip_proof(data: bytearray) -> bytearray:
    pack = parse_trailer(data[-TRAILER_BYTES:], len(data), "a pack").pack_id
    proven = [one for one in places_in(pack_key(pack), memoryview(data)) if one.proof_bytes]
    return flipped(proven[0].offset - 1)(data)


DAMAGE: dict[str, Callable[[bytearray], bytes | bytearray]] = {
    "header": flipped(20),
    "version of the header": flipped(4),
    "proof": flip_proof,
    "head of a frame": flipped(64 + 90),
    "frame": flipped(5000),
    "index": flipped(-TRAILER_BYTES - 10),
    "trailer": flipped(-1),
    "cut short": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
}


def outcomes(report: RepairReport) -> list[tuple[str, str, str]]:
    return [(one.outcome, one.key, one.tier) for one in report.objects]


def is_sound(store: Store, *, quarantined: int = 0) -> None:
    report = store.check(read_data=True)
    assert not report.damaged, report.findings
    assert len(report.quarantined) == quarantined


# A bad copy, and a good one in another tier


@pytest.mark.parametrize("bad", ["warm", "cold"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_copy_is_put_back_from_another_tier(tiered: Tiered, damage: str, bad: str) -> None:
    store = tiered.open()
    places = [tiered.stores[name].inner for name in ("home", "warm", "cold")]
    [key] = tiered.packs("warm")
    whole = every(*places)
    spoil(tiered.stores[bad].inner, key, DAMAGE[damage])
    dry = store.repair(dry_run=True)
    assert changed(whole, every(*places)) == {key}, "a dry run changes nothing"
    report = store.repair()
    assert outcomes(report) == outcomes(dry) == [("repaired", key, bad)]
    done = f"put back from tier {'cold' if bad == 'warm' else 'warm'}"
    assert (report.objects[0].done, dry.objects[0].done) == (done, f"would be {done}")
    assert report.is_whole
    assert every(*places) == whole, "every object is what it was, and there are no others"
    assert store.repair().objects == [], "nothing is left to do"
    is_sound(store)


def test_a_pack_is_put_together_from_two_bad_copies(tiered: Tiered) -> None:
    store = tiered.open()
    stores = [tiered.stores[name].inner for name in ("home", "warm", "cold")]
    whole = every(*stores)
    flip_chunk(stores[1], places(store, "m", "emb")[0])
    flip_chunk(stores[2], places(store, "m", "bias")[0])
    report = store.repair()
    assert [one.tier for one in report.objects] == ["warm", "cold"]
    assert every(*stores) == whole
    is_sound(store)


def test_the_mark_of_a_pack_that_is_whole_again_is_deleted(tiered: Tiered) -> None:
    store = tiered.open()
    [key] = tiered.packs("warm")
    good = bytes(tiered.stores["cold"].inner.get(key))
    for name in ("warm", "cold"):
        flip_chunk(tiered.stores[name].inner, places(store, "m", "emb")[0])
    assert store.check(read_data=True).quarantined == [key]
    tiered.stores["cold"].inner.put(key, good)
    assert store.repair().is_whole
    assert store.repair().of("left") == []
    assert store._parts.home.quarantine.packs() == set()
    assert bytes(tiered.stores["warm"].inner.get(key)) == good


def test_what_another_process_moves_now_is_left_to_it(tiered: Tiered) -> None:
    store = tiered.open()
    [key] = tiered.packs("warm")
    spoil(tiered.stores["warm"].inner, key, flipped(5000))
    before = bytes(tiered.stores["warm"].inner.get(key))
    with HeldLease(tiered.stores["home"]), pytest.raises(Conflict, match="another mover"):
        store.repair()
    assert bytes(tiered.stores["warm"].inner.get(key)) == before


def test_condemned_packs_are_left_to_garbage_collection(tiered: Tiered) -> None:
    store = tiered.open()
    [key] = tiered.packs("warm")
    spoil(tiered.stores["warm"].inner, key, flipped(5000))
    before = bytes(tiered.stores["warm"].inner.get(key))
    condemn(tiered.stores["home"].inner, key)
    store.repair()
    assert bytes(tiered.stores["warm"].inner.get(key)) == before


def test_a_pack_that_is_condemned_meanwhile_is_left_alone(tiered: Tiered) -> None:
    store = tiered.open()
    [key] = tiered.packs("warm")
    warm = tiered.stores["warm"].inner
    spoil(warm, key, flipped(5000))
    before = bytes(warm.get(key))

    def plan(op: str, of: str, n: int) -> None:
        if (op, of) == ("get", key) and not any(tiered.stores["home"].inner.list(GC)):
            condemn(tiered.stores["home"].inner, key)

    tiered.plans["cold"] = plan
    report = store.repair()
    assert outcomes(report) == [("left", key, "warm")]
    assert "garbage collection deletes" in report.objects[0].done
    assert bytes(warm.get(key)) == before


def test_a_tier_that_does_not_take_it_is_said(tiered: Tiered) -> None:
    store = tiered.open()
    [key] = tiered.packs("warm")
    spoil(tiered.stores["warm"].inner, key, flipped(5000))
    tiered.plans["warm"] = lambda op, key, n: Unreachable("no") if op == "put" else None
    report = store.repair()
    assert outcomes(report) == [("left", key, "warm")]
    assert not report.is_whole
    tiered.plans.clear()
    assert store.repair().is_whole


def test_a_tier_that_stores_something_else_is_found_out(tiered: Tiered) -> None:
    store = tiered.open()
    [key] = tiered.packs("warm")
    spoil(tiered.stores["warm"].inner, key, flipped(5000))
    tiered.plans["warm"] = lambda op, key, n: "flip" if op == "put" else None
    report = store.repair()
    assert outcomes(report) == [("left", key, "warm")]
    assert "does not keep what is written to it" in report.objects[0].done


# No good copy: what is good in it, other packs, hot tiers


@pytest.mark.parametrize("damage", [name for name in DAMAGE if "version" not in name])
def test_what_is_good_in_a_damaged_pack_is_rescued(
    store: Store, blobs: MemoryStore, damage: str
) -> None:
    """All chunks but those that are damaged are read once the pack is gone."""
    by_digest = {p.digest: p for p in store.load("m")._opened.content.table}
    [key] = [info.key for info in blobs.list(PACKS)]
    before = every(blobs)
    spoil(blobs, key, DAMAGE[damage])
    broken = every(blobs)
    data = DAMAGE[damage](bytearray(before[blobs.url, key]))
    lost = {
        p.digest
        for p in by_digest.values()
        if data[(begin := p.offset - p.proof_bytes) : (end := p.offset + p.frame_bytes)]
        != before[blobs.url, key][begin:end]
        and damage != "proof"
    }
    report = store.repair()
    assert changed(broken, every(blobs)) == set(), "nothing that was there is touched"
    assert blobs.get(quarantine_key(pack_of(key)))
    lost_bytes = sum(by_digest[one].plain_bytes for one in lost)
    assert sum(hit.lost_bytes for hit in report.hit) == lost_bytes
    assert report.is_whole == (not lost)
    again = every(blobs)
    assert store.repair().of("repaired") == []
    assert every(blobs) == again, "a second run has nothing to do"
    blobs.delete([key])
    for name, array in FIRST.items():
        chunks = {one.place.digest for one in store.load("m").tensor(name)._base.chunks()}
        if not chunks & lost:
            assert store.load("m").tensor(name)[:].tobytes() == array.tobytes()
    store.save("again", FIRST)
    loads(store, "m", FIRST)


def test_the_versions_hit_are_listed_exactly(store: Store, blobs: MemoryStore) -> None:
    other = {**tensors(2), "emb": FIRST["emb"]}
    store.save("n", other)
    store.alias("n", "prod", "n@1")
    place = places(store, "m", "emb")[1]
    flip_chunk(blobs, place)
    report = store.repair()
    said = [(hit.version, hit.parts) for hit in report.hit]
    assert [version for version, _ in said] == ["m@1", "n@1"]
    for _, [part] in said:
        assert (part.name, part.lost_bytes) == ("emb", FIRST["emb"].nbytes - (1 << 20))
        assert part.plain_bytes == FIRST["emb"].nbytes
    [found] = report.objects
    assert found.outcome == "lost"
    assert "quarantined" in found.done
    assert f"1 chunk of {place.plain_bytes} bytes lost; saving that content again" in found.done
    assert stats(store.save("m", FIRST)).new_chunks == 1, "the others are found in the new pack"
    assert store.repair().hit == []
    loads(store, "m@1", FIRST)
    loads(store, "n", other)


def test_a_chunk_that_another_pack_has_is_led_to(
    store: Store, blobs: MemoryStore, cache: Path, tmp_path: Path
) -> None:
    """The other pack came from a save that did not know of the first one."""
    with Store(blobs, settings(tmp_path / "other")) as other:
        other._parts.index.sync = lambda marked=(): None  # type: ignore[method-assign,assignment]
        other.save("n", {"emb": FIRST["emb"]}, base=None)
    place = places(store, "m", "emb")[0]
    assert places(store, "n", "emb")[0].pack != place.pack
    flip_chunk(blobs, place)
    assert store.repair().is_whole
    blobs.delete([pack_key(place.pack)])
    loads(store, "m", FIRST)


def test_a_pack_that_is_gone_is_led_to_what_others_have(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    with Store(blobs, settings(tmp_path / "other")) as other:
        other._parts.index.sync = lambda marked=(): None  # type: ignore[method-assign,assignment]
        other.save("n", {"emb": FIRST["emb"]}, base=None)
    place = places(store, "m", "emb")[0]
    blobs.delete([pack_key(place.pack)])
    report = store.repair()
    assert outcomes(report) == [("lost", pack_key(place.pack), "")]
    assert "2 chunks found in other packs" in report.objects[0].done
    [hit] = report.hit
    assert {part.name: part.lost_bytes for part in hit.parts} == {
        name: FIRST[name].nbytes for name in ("bias", "common")
    }
    assert store.load("m").tensor("emb")[:].tobytes() == FIRST["emb"].tobytes()


def test_a_chunk_is_rescued_from_a_hot_tier(tiered: Tiered) -> None:
    hot = tiered.open(hot=True)
    loads(hot, "m", FIRST)
    assert hot._parts.hot.flush(30)
    place = places(hot, "m", "emb")[0]
    for name in ("warm", "cold"):
        flip_chunk(tiered.stores[name].inner, place)
    assert not tiered.open().repair(dry_run=True).is_whole, "a node without it has no such chunk"
    report = hot.repair()
    assert report.is_whole, report
    for name in ("warm", "cold", "shared"):
        blobs = tiered.stores[name].inner
        blobs.delete([pack_key(place.pack)])
    loads(tiered.open(), "m", FIRST)


def test_bad_frames_in_shared_tiers_are_dropped(tiered: Tiered) -> None:
    hot = tiered.open(hot=True)
    loads(hot, "m", FIRST)
    assert hot._parts.hot.flush(30)
    shared = tiered.stores["shared"].inner
    keys = [info.key for info in shared.list()]
    spoil(shared, keys[0], flipped(-1))
    spoil(shared, keys[1], lambda data: data[:-1])
    before = every(shared)
    dry = hot.repair(dry_run=True)
    assert every(shared) == before
    report = hot.repair()
    assert outcomes(report) == outcomes(dry)
    assert sorted(outcomes(report)) == sorted(("repaired", key, "shared") for key in keys[:2])
    assert changed(before, every(shared)) == set(keys[:2])
    assert {info.key for info in shared.list()} == set(keys[2:])


# Deltas


@pytest.fixture
def tuned(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A store with a version whose chunks are deltas on the one before, in a pack of its own."""
    with created(blobs, cache) as store:
        store.save("m", model())
        store.save("m", tuned_model(model()))
        assert all(place.bases for place in places(store, "m@2", "emb"))
        yield store


def test_deltas_are_rescued_as_they_are(tuned: Store, blobs: MemoryStore) -> None:
    bad = places(tuned, "m@2", "layer")[0]
    flip_chunk(blobs, bad)
    report = tuned.repair()
    [hit] = report.hit
    assert (hit.version, [part.name for part in hit.parts]) == ("m@2", ["layer"])
    [move] = moves(blobs)
    size = blobs.info(pack_key(bad.pack)).size
    blobs.delete([pack_key(bad.pack)])
    assert tuned.load("m@2").tensor("emb")[:].tobytes() == tuned_model(model())["emb"].tobytes()
    table = tuned.load("m@2")._opened.content.table
    kept = sum(one.frame_bytes for one in table if one.bases and one.digest != bad.digest)
    [new] = {info.key for info in blobs.list(PACKS)} - {pack_key(one) for one in table.pack_ids}
    assert kept < blobs.info(new).size < size, "they are still deltas"
    assert move == move_key(bad.pack)


def test_a_lost_base_takes_its_deltas_with_it(tuned: Store, blobs: MemoryStore) -> None:
    flip_chunk(blobs, places(tuned, "m@1", "layer")[0])
    report = tuned.repair()
    assert [(hit.version, [part.name for part in hit.parts]) for hit in report.hit] == [
        ("m@1", ["layer"]),
        ("m@2", ["layer"]),
    ]
    tuned.save("m", model(), base=None)
    assert tuned.repair().hit == []
    equal(tuned.load("m@2").load(), tuned_model(model()))


def test_a_delta_whose_base_is_lost_is_led_to_where_it_is_standalone(
    tuned: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    with Store(blobs, settings(tmp_path / "other")) as other:
        other._parts.index.sync = lambda marked=(): None  # type: ignore[method-assign,assignment]
        other.save("n", tuned_model(model()), base=None)
    flip_chunk(blobs, places(tuned, "m@1", "layer")[0])
    report = tuned.repair()
    assert [hit.version for hit in report.hit] == ["m@1"]
    equal(tuned.load("m@2").load(), tuned_model(model()))


def forge_delta(blobs: BlobStore, place: ChunkPlace) -> None:
    """Let a delta give another chunk, with checksums that are right."""
    key = pack_key(place.pack)
    data = bytearray(blobs.get(key))
    frame = memoryview(data)[place.offset : place.offset + place.frame_bytes]
    frame[-1] ^= 1
    frame[16:24] = xxh3(frame[place.head_bytes :]).to_bytes(8, "little")
    end = place.head_bytes - 8
    frame[end : end + 8] = xxh3(frame[:end]).to_bytes(8, "little")
    blobs.put(key, data)


def test_a_wrong_delta_of_a_marked_pack_is_not_taken_for_good(
    tuned: Store, blobs: MemoryStore
) -> None:
    """Its checksums are right, and ``check`` alone decodes what is not marked."""
    place = places(tuned, "m@2", "layer")[0]
    forge_delta(blobs, place)
    assert tuned.repair().is_whole, "not known to be wrong"
    assert tuned.check(read_data=True).quarantined == [pack_key(place.pack)]
    report = tuned.repair()
    assert [(hit.version, [part.name for part in hit.parts]) for hit in report.hit] == [
        ("m@2", ["layer"])
    ]
    assert tuned._parts.home.quarantine.packs() == {place.pack}
    tuned.save("m", tuned_model(model()))
    assert tuned.repair().hit == []


def test_a_mark_stays_where_a_delta_was_not_decoded(tuned: Store, blobs: MemoryStore) -> None:
    """A repair of one version does not look at what others have in the same pack."""
    extra = {"extra": FIRST["common"]}
    tuned.save("m", {**tuned_model(model(), seed=2), **extra})
    tuned.save("n", extra)
    place = places(tuned, "m@3", "layer")[0]
    assert places(tuned, "n", "extra")[0].pack == place.pack
    assert place.bases
    forge_delta(blobs, place)
    assert tuned.check(read_data=True).quarantined == [pack_key(place.pack)]
    tuned.repair("n")
    assert tuned._parts.home.quarantine.packs() == {place.pack}


def test_a_check_lifts_no_mark_of_deltas_that_nobody_decoded(
    tuned: Store, blobs: MemoryStore
) -> None:
    """The version that needs the delta is removed; a save of that content would reuse it."""
    place = places(tuned, "m@2", "layer")[0]
    home = tuned._parts.home
    enable(home, wait_s=0)
    forge_delta(blobs, place)
    assert tuned.check(read_data=True).quarantined == [pack_key(place.pack)]
    tuned.save("m", FIRST, base=None)
    tuned.remove("m@2")
    tuned.retention.set("m", window=timedelta(0))
    assert tuned.check(read_data=True).quarantined == [pack_key(place.pack)]
    assert home.quarantine.packs() == {place.pack}


def marked(store: Store, blobs: MemoryStore) -> str:
    """Damage the pack of m@1, and let a repair mark it; its key."""
    place = places(store, "m", "emb")[0]
    flip_chunk(blobs, place)
    store.repair()
    assert store._parts.home.quarantine.packs() == {place.pack}
    return pack_key(place.pack)


def mark_of(key: str) -> str:
    pack = pack_of_key(key)
    assert pack is not None
    return quarantine_key(pack)


def test_the_mark_of_a_pack_that_seems_newer_stays(store: Store, blobs: MemoryStore) -> None:
    """Nobody has read a good copy: one bit of its version may be wrong with the rest."""
    key = marked(store, blobs)
    spoil(blobs, key, flipped(4))
    assert outcomes(store.repair()) == [("left", key, "")]
    assert [info.key for info in blobs.list(QUARANTINE)] == [mark_of(key)]


class Hours(FaultyStore):
    """A store between whose first look at a pack and the second something happens."""

    meanwhile: Callable[[], object] | None = None
    key = ""
    gets = 0

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        self.gets += key == self.key
        if self.gets == 2 and self.meanwhile is not None:  # the second look
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return super().get(key, byte_range)


@pytest.mark.parametrize("is_needed", [False, True])
def test_the_mark_of_a_pack_that_nobody_could_read_again_stays(
    store: Store, blobs: MemoryStore, cache: Path, is_needed: bool
) -> None:
    key = marked(store, blobs)
    if not is_needed:
        blobs.delete([info.key for info in blobs.list("refs/")])
    slow = Hours(blobs)
    slow.key, slow.meanwhile = key, lambda: blobs.delete([key])
    with opened(slow, cache) as other:
        report = other.repair()
    assert [info.key for info in blobs.list(QUARANTINE)] == [mark_of(key)]
    assert [one.what for one in report.objects] == (
        ["the checksum of its payload does not match"] if is_needed else []
    )


@pytest.mark.parametrize("is_marked", [False, True])
def test_a_pack_that_is_whole_by_then_is_not_called_quarantined(
    store: Store, blobs: MemoryStore, cache: Path, is_marked: bool
) -> None:
    place = places(store, "m", "emb")[0]
    key = pack_key(place.pack)
    good = bytes(blobs.get(key))
    if is_marked:
        marked(store, blobs)
    else:
        flip_chunk(blobs, place)
    slow = Hours(blobs)
    slow.key, slow.meanwhile = key, lambda: blobs.put(key, good)
    with opened(slow, cache) as other:
        report = other.repair()
    assert outcomes(report) == [("repaired", quarantine_key(place.pack), "")] * is_marked
    assert not list(blobs.list(QUARANTINE))


def test_the_mark_of_good_deltas_is_deleted(tuned: Store) -> None:
    place = places(tuned, "m@2", "layer")[0]
    home = tuned._parts.home
    home.quarantine.mark(place.pack, [place.digest], tiers=["home"], why="a test")
    assert outcomes(tuned.repair()) == [("repaired", quarantine_key(place.pack), "")]
    assert home.quarantine.packs() == set()


def test_what_was_collected_is_not_stored_again_from_hot_tiers(tiered: Tiered) -> None:
    with tiered.open(hot=True) as reader:
        enable(reader._parts.home, wait_s=0)
        for seed in (2, 3):
            reader.save("n", tensors(seed), base=None)
        loads(reader, "n@1", tensors(2))
        assert reader._parts.hot.flush(30)
    hot = tiered.open(hot=True)
    hot.remove("n@1")
    assert hot.reclaim.run(grace=timedelta(0), window=timedelta(0)).of("deleted")
    tiered.stores["home"].inner.delete([COLLECTED])  # it says that, and may be lost at any time
    before = tiered.packs("warm")
    report = hot.repair()
    assert (report.objects, report.hit) == ([], [])
    assert tiered.packs("warm") == before


# Around it


def test_only_what_a_version_needs_is_looked_at(store: Store, blobs: MemoryStore) -> None:
    store.save("n", tensors(2), base=None)
    flip_chunk(blobs, places(store, "n", "emb")[0])
    report = store.repair("m")
    assert (report.packs, report.objects) == (1, [])
    report = store.repair("n")
    assert [hit.version for hit in report.hit] == ["n@1"]


def test_a_tier_that_is_down_may_have_what_seems_lost(tiered: Tiered) -> None:
    store = tiered.open()
    place = places(store, "m", "emb")[0]
    flip_chunk(tiered.stores["warm"].inner, place)
    tiered.down("cold")
    report = store.repair()
    assert [one.outcome for one in report.objects] == ["left"]
    assert "cold could not be asked and may have it" in report.objects[0].done
    assert list(report.down) == ["cold"]
    tiered.plans.clear()
    assert store.repair().is_whole
    loads(store, "m", FIRST)
    assert store._parts.home.quarantine.packs() == set()


def test_a_layout_is_left_while_a_tier_that_may_have_its_chunks_is_down(tiered: Tiered) -> None:
    store = tiered.open()
    home = tiered.stores["home"].inner
    key = layout_key(store.resolve("m").digest)
    whole = bytes(home.get(key))
    home.delete([key])
    tiered.stores["cold"].inner.delete(tiered.packs("cold"))
    tiered.down("warm")
    report = store.repair()
    assert outcomes(report) == [("left", key, "")]
    assert "warm could not be asked" in report.objects[0].done
    tiered.plans.clear()
    assert outcomes(store.repair()) == [("repaired", key, "")]
    assert bytes(home.get(key)) == whole
    loads(store, "m", FIRST)


def test_what_no_version_needs_is_marked_alone(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    other = MemoryStore("other")
    with created(other, cache / "other") as another:
        another.save("n", tensors(2))
        place = places(another, "n", "emb")[0]
    key = pack_key(place.pack)
    blobs.put(key, other.get(key))
    flip_chunk(blobs, place)
    report = store.repair()
    assert outcomes(report) == [("repaired", key, "")]
    assert report.objects[0].done == "quarantined"
    assert len(list(blobs.list(PACKS))) == 2


def test_killed_at_every_write_it_goes_on(store: Store, blobs: MemoryStore, cache: Path) -> None:
    place = places(store, "m", "emb")[0]
    flip_chunk(blobs, place)
    for writes in range(30):
        copy = copy_of(blobs)
        faulty = FaultyStore(copy)
        with opened(faulty, cache) as dying:
            faulty.crash_after = writes
            try:
                dying.repair()
                break
            except Crashed:
                pass
            finally:
                faulty.crash_after = None
        for key in [info.key for info in copy.list(MOVERS)]:  # its time is over
            copy.delete([key])
        with opened(copy, cache) as after:
            after.repair()
            assert [hit.version for hit in after.repair().hit] == ["m@1"]
            after.save("m", FIRST)
            assert after.repair().is_whole
            copy.delete([pack_key(place.pack)])
            loads(after, "m@1", FIRST)
    else:
        pytest.fail("it was never whole")
    assert writes > 5


def test_a_new_pack_that_is_condemned_meanwhile_is_written_again(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """A collector that saw the pack before the move condemns it; it is deleted afterwards."""
    place = places(store, "m", "emb")[0]
    flip_chunk(blobs, place)
    old = {info.key for info in blobs.list(PACKS)}

    def plan(op: str, key: str, n: int) -> None:
        if op == "put_if_absent" and key.startswith("moves/"):
            new = {info.key for info in blobs.list(PACKS)} - old
            if len(new) == 1:
                condemn(blobs, *new)

    with opened(FaultyStore(blobs, plan), cache) as watched:
        watched.repair()
    new = [info.key for info in blobs.list(PACKS) if info.key not in old]
    condemned = store._parts.home.condemned.among(set(map(pack_of, new)))
    assert (len(new), len(condemned)) == (2, 1)
    blobs.delete([pack_key(one) for one in condemned] + [pack_key(place.pack)])
    assert store.load("m").tensor("bias")[:].tobytes() == FIRST["bias"].tobytes()


def test_what_is_rescued_is_found_by_later_saves(store: Store, blobs: MemoryStore) -> None:
    before = {info.key for info in blobs.list(INDEX)}
    flip_chunk(blobs, places(store, "m", "emb")[0])
    store.repair()
    assert len({info.key for info in blobs.list(INDEX)} - before) == 1
    rest = {name: array for name, array in FIRST.items() if name != "emb"}
    assert stats(store.save("rest", rest)).new_chunks == 0


def test_what_is_rescued_is_rescued_though_no_index_says_it(cache: Path) -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return Unreachable("no answer") if op == "put" and key.startswith(INDEX) else None

    blobs = FaultyStore(MemoryStore("rescued"))
    with created(blobs, cache) as store:
        store.save("m", FIRST)
        flip_chunk(blobs.inner, places(store, "m", "emb")[0])
        blobs.plan = plan
        [one] = store.repair().objects
    assert "copied from it into a new pack" in one.done


def test_a_segment_that_cannot_be_taken_in_is_found_by_check_and_repair(
    store: Store, blobs: MemoryStore
) -> None:
    [key] = [info.key for info in blobs.list(INDEX)]
    body = read_msgpack(read_sealed(bytes(blobs.get(key)))[1])
    blobs.put(key, sealed(3, msgpack(body | {"replaces": bytes(17)})))
    assert store.check().garbage_keys == [key]
    assert outcomes(store.repair()) == [("repaired", key, "")]
