"""Packs that no tier has a good copy of: saves do not reuse them, and heal what rests on them."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.integration.kit import MIB, created, equal, opened, settings, tensors
from tests.integration.test_crash import copy_of, failing
from tests.integration.test_deltas import model, tuned_model
from tests.integration.test_save_load_dedup import at, packs
from tierstore.admin.doctor import diagnose
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.codecs import encode
from tierstore.errors import (
    BackendError,
    Damaged,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    Unreachable,
)
from tierstore.format.frame import build_head
from tierstore.format.keys import layout_key, move_key, pack_key, quarantine_key
from tierstore.format.layout import Mark, Move, parse_mark
from tierstore.format.sealed import Kind, seal, seal_body, unseal_body
from tierstore.format.table import ChunkPlace
from tierstore.format.tiers import TierSpec
from tierstore.ids import split_digests
from tierstore.modelstore.care.check_report import CheckReport
from tierstore.modelstore.chunks.examine import quarantine
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import SaveStats, Version
from tierstore.testing.faulty import Crashed, FaultyStore
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier

FIRST = tensors(1)
SMALL = tensors(1, rows=20)


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("quarantine")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Store:
    store = created(blobs, cache)
    store.save("m", FIRST)
    return store


def stats(version: Version) -> SaveStats:
    assert version.stats is not None
    return version.stats


def places(store: Store, ref: str, tensor: str) -> list[ChunkPlace]:
    return [piece.place for piece in store.load(ref).tensor(tensor)._base.chunks()]


def flip(blobs: BlobStore, place: ChunkPlace) -> None:
    """Damage the payload of one frame."""
    key = pack_key(place.pack)
    data = bytearray(blobs.get(key))
    data[place.offset + (place.head_bytes + place.frame_bytes) // 2] ^= 1
    blobs.put(key, data)


def rot(store: Store, blobs: BlobStore, ref: str, tensor: str = "emb", number: int = 0) -> str:
    """Damage one chunk; the key of its pack."""
    place = places(store, ref, tensor)[number]
    flip(blobs, place)
    return pack_key(place.pack)


def pack_of(key: str) -> bytes:
    return bytes.fromhex(key.rpartition("/")[2])


def moves(blobs: BlobStore) -> list[str]:
    return [info.key for info in blobs.list("moves/")]


def whole(store: Store, *, quarantined: int) -> CheckReport:
    report = store.check(read_data=True)
    assert not report.damaged, report.findings
    assert len(report.quarantined) == quarantined
    return report


def loads(store: Store, ref: str, content: dict[str, np.ndarray]) -> None:
    """Read a version in every way."""
    equal(store.load(ref).load(), content)
    for name, array in content.items():
        tensor = store.load(ref).tensor(name)
        middle = len(array) // 2
        assert tensor[[middle, 0]].tobytes() == array[[middle, 0]].tobytes()
        assert tensor[middle:].tobytes() == array[middle:].tobytes()


# What a check marks


def test_a_damaged_proof_is_quarantined_and_healed(store: Store, blobs: MemoryStore) -> None:
    """The chunk itself is whole, and its rows cannot be told from forged ones."""
    big = {"w": np.random.default_rng(8).integers(0, 256, (1024, 1024), np.uint8)}
    store.save("big", big)
    place = places(store, "big", "w")[0]
    assert place.proof_bytes > 0
    key = pack_key(place.pack)
    data = bytearray(blobs.get(key))
    data[place.offset - 1] ^= 1  # the last of the chaining values, which lie before the frame
    blobs.put(key, data)
    equal(store.load("big").load(), big)
    with pytest.raises(Damaged):
        store.load("big").tensor("w")[1023:]
    assert store.check().quarantined == [], "footers are good"
    report = store.check(read_data=True)
    assert [one.key for one in report.findings if one.severity == "damage"] == [key]
    assert report.quarantined == [key]
    again = store.save("again", big)
    assert stats(again).new_chunks >= 1, "nothing of the pack is reused"
    assert moves(blobs) == [move_key(place.pack)]
    loads(store, "big", big)
    loads(store, "again", big)
    whole(store, quarantined=1)


def test_check_marks_a_pack_that_is_damaged(store: Store, blobs: MemoryStore) -> None:
    key = rot(store, blobs, "m")
    assert not store.check().quarantined, "footers are good, and nothing else was read"
    report = store.check(read_data=True)
    assert report.damaged
    assert report.quarantined == [key]
    mark = parse_mark(blobs.get(quarantine_key(pack_of(key))), pack_of(key), "mark")
    every = {place.digest for place in store.load("m")._opened.content.table}
    assert every <= set(split_digests(mark.chunks)), "its index has these, and the proofs"
    assert mark.tiers == ["home"]
    assert "is damaged" in mark.why
    assert not store.check(read_data=False).damaged, "its footer is still good"


@pytest.mark.parametrize("where", ["trailer", "index", "header"])
def test_a_damaged_footer_is_found_without_reading_data(
    store: Store, blobs: MemoryStore, where: str
) -> None:
    (key,) = packs(blobs)
    data = bytearray(blobs.get(key))
    data[{"trailer": -1, "index": -80, "header": 20}[where]] ^= 1
    blobs.put(key, data)
    assert store.check().quarantined == [key]
    mark = parse_mark(blobs.get(quarantine_key(pack_of(key))), pack_of(key), "mark")
    every = {place.digest for place in store.load("m")._opened.content.table}
    assert mark.chunks == b"".join(sorted(every)), "as the layouts have them"


def test_a_read_that_fails_once_marks_nothing(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """A bit that flips on the way, or in this machine's memory, is not the pack's."""
    reads: list[str] = []

    def plan(op: str, key: str, n: int) -> str | None:
        if op == "get_ranges" and key.startswith("packs/"):
            reads.append(key)
            return "flip" if len(reads) > 1 else None  # the footer comes as it is
        return None

    with opened(FaultyStore(blobs, plan), cache) as bad:  # type: ignore[arg-type]
        report = bad.check(read_data=True)
    assert len(reads) > 1
    assert report.damaged
    assert report.quarantined == []
    assert not list(blobs.list("quarantine/"))


def forged(blobs: MemoryStore, place: ChunkPlace, plain: bytes) -> None:
    """Put a frame there that is right in everything but its content: its plain bytes differ."""
    key = pack_key(place.pack)
    data = bytearray(blobs.get(key))
    wrong = bytearray(plain)
    wrong[5] ^= 1
    view = memoryview(wrong)
    encoded = encode(view, "U8")
    head = build_head(
        digest=place.digest, codec=encoded.codec, dtype="U8", plain=view, codec_head=encoded.head,
        ends=encoded.ends, payload=encoded.payload,
    )  # fmt: skip
    frame = head + bytes(encoded.payload)
    assert len(frame) == place.frame_bytes
    data[place.offset : place.offset + place.frame_bytes] = frame
    blobs.put(key, data)


def test_a_frame_of_other_content_is_damage_although_its_checksums_are_right(
    store: Store, blobs: MemoryStore
) -> None:
    """What a bit that flips between hashing and encoding leaves behind."""
    noise = {"x": np.random.default_rng(0).integers(0, 256, 50_000, np.uint8)}
    store.save("noise", noise)
    (place,) = places(store, "noise", "x")
    forged(blobs, place, noise["x"].tobytes())
    assert store.check(read_data=True).quarantined == [pack_key(place.pack)]
    store.save("noise", noise)
    loads(store, "noise@1", noise)


class Tiers:
    """A store with a warm and a cold tier, each with a copy of every pack."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.stores = {name: MemoryStore(name) for name in ("home", "warm", "cold")}
        self.down: set[str] = set()
        create_config(self.stores["home"], MIB)
        with self.open() as store:
            store.save("m", FIRST)
        for info in list(self.stores["warm"].list("packs/")):
            self.stores["cold"].put(info.key, self.stores["warm"].get(info.key))

    def open(self) -> Store:
        def store(name: str) -> BlobStore:
            down = Unreachable(f"{name} is down")
            return FaultyStore(self.stores[name], lambda *_: down if name in self.down else None)

        tiers = [
            DurableTier(TierSpec(name=name, role=name, url=f"memory://{name}"), store(name))
            for name in ("warm", "cold")
        ]
        home = self.stores["home"]
        return Store(home, settings(self.cache), packs=DurableTiers([*tiers, home_tier(home)]))


def test_one_good_copy_is_enough(cache: Path) -> None:
    tiers = Tiers(cache)
    with tiers.open() as store:
        key = rot(store, tiers.stores["warm"], "m")
        report = store.check(read_data=True)
        assert [finding.key for finding in report.findings] == [key]
        assert "its copy in tier warm is bad" in report.findings[0].what
        assert report.quarantined == []
        rot(store, tiers.stores["cold"], "m", "bias")
        loads(store, "m", FIRST)
        assert store.check(read_data=True).quarantined == [], "all can be read, from one or other"


@pytest.mark.parametrize("down", [{"warm"}, {"warm", "cold"}])
def test_a_tier_that_cannot_be_asked_says_nothing(cache: Path, down: set[str]) -> None:
    tiers = Tiers(cache)
    with tiers.open() as store:
        key = rot(store, tiers.stores["warm"], "m")
        rot(store, tiers.stores["cold"], "m")
        tiers.down = down
        home = store._parts.home
        found = quarantine(home, pack_of(key))
        assert list(found.bad) == sorted({"warm", "cold"} - down)
        assert home.quarantine.packs() == (set() if len(down) == 2 else {pack_of(key)})


def test_the_mover_marks_what_no_tier_has_a_good_copy_of(cache: Path) -> None:
    tiers = Tiers(cache)
    with tiers.open() as store:
        key = rot(store, tiers.stores["warm"], "m")
        rot(store, tiers.stores["cold"], "m")
        report = store.placement.move([pack_of(key)], "cold")
        assert [one.status for one in report.moved] == ["failed"]
        assert store._parts.home.quarantine.packs() == {pack_of(key)}


def test_a_mark_is_lifted_once_a_copy_is_good(store: Store, blobs: MemoryStore) -> None:
    (key,) = packs(blobs)
    good = bytes(blobs.get(key))
    rot(store, blobs, "m")
    assert store.check(read_data=True).quarantined == [key]
    blobs.put(key, good)
    assert store.check().quarantined == [key], "nobody has read it"
    assert store.check(read_data=True).quarantined == []
    assert stats(store.save("m", FIRST)).new_chunks == 0


def test_the_mark_of_a_pack_that_was_collected_is_told_no_more(
    store: Store, blobs: MemoryStore
) -> None:
    key = rot(store, blobs, "m")
    assert store.check(read_data=True).damaged
    store.save("m", FIRST)
    whole(store, quarantined=1)
    blobs.delete([key])  # as a collection does, once nobody reads it
    assert [info.key for info in blobs.list("quarantine/")], "writers still look at it"
    whole(store, quarantined=0)
    assert (health := diagnose(store).store) is not None
    assert health.quarantined_packs == 0


def test_the_mark_of_a_pack_that_no_version_uses_is_lifted_by_a_good_copy_alone(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """Nothing that is checked leads to it, and a save would reuse what is in it."""
    other = MemoryStore("other")
    with created(other, cache / "other") as another:
        another.save("n", tensors(2))
        place = places(another, "n", "emb")[0]
    key = pack_key(place.pack)
    good = bytes(other.get(key))
    blobs.put(key, good)
    flip(blobs, place)
    assert quarantine(store._parts.home, place.pack).bad
    assert store.check(read_data=True).quarantined == [key]
    blobs.put(key, good)
    assert store.check(read_data=True).quarantined == []


def test_where_nothing_may_be_written_a_check_says_so(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    key = rot(store, blobs, "m")

    def plan(op: str, key: str, n: int) -> Exception | None:
        return PermissionDenied("read-only") if op in {"put", "put_if_absent", "delete"} else None

    with opened(FaultyStore(blobs, plan), cache) as reading:
        report = reading.check(read_data=True)
    assert report.quarantined == []
    assert [f.what for f in report.findings if "could not be quarantined" in f.what] == [
        "it could not be quarantined, so saves may reuse it: read-only"
    ]
    assert {f.key for f in report.findings} == {key}


def test_a_mark_that_cannot_be_read_marks_its_pack_and_is_written_anew(
    store: Store, blobs: MemoryStore
) -> None:
    key = rot(store, blobs, "m")
    mark = quarantine_key(pack_of(key))
    blobs.put(mark, b"no mark")
    assert stats(store.save("m", FIRST)).new_chunks == 4
    loads(store, "m@1", FIRST)
    store._parts.home.quarantine.mark(pack_of(key), [bytes(32)], tiers=["home"], why="x")
    assert parse_mark(blobs.get(mark), pack_of(key), "mark").chunks == bytes(32)


def test_only_marks_are_marks(store: Store, blobs: MemoryStore) -> None:
    """Copies of damaged packs may lie below the same prefix, by the name of their tier."""
    (key,) = packs(blobs)
    blobs.put("quarantine/home/" + key.rpartition("/")[2], b"bytes")
    assert store._parts.home.quarantine.packs() == set()
    assert stats(store.save("m", FIRST)).new_chunks == 0


# Saving what lies in a marked pack


def test_the_next_save_stores_it_anew_and_heals_older_versions(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    other = {**FIRST, "more": np.ones(3, np.float32)}
    store.save("other", other)
    key = rot(store, blobs, "m")
    with pytest.raises(Damaged):
        store.load("m").load()
    store.check(read_data=True)
    layouts = {info.key: bytes(blobs.get(info.key)) for info in blobs.list("layouts/")}
    version = store.save("m", FIRST)
    assert stats(version).new_chunks == 4
    for ref, content in (("m@1", FIRST), ("m@2", FIRST), ("other", other)):
        loads(store, ref, content)
    assert layouts == {info.key: bytes(blobs.get(info.key)) for info in blobs.list("layouts/")}
    report = whole(store, quarantined=1)
    assert report.quarantined == [key]
    assert report.garbage_keys == []
    assert stats(store.save("third", other)).new_chunks == 0, "now it is found in the new pack"
    # once the old pack is collected, readers of any age follow the same move
    blobs.delete([key])
    for ref, content in (("m@1", FIRST), ("m@2", FIRST), ("other", other), ("third", other)):
        if "more" not in content:
            loads(store, ref, content)


def test_a_model_that_is_open_reads_on_once_it_is_healed(store: Store, blobs: MemoryStore) -> None:
    before = store.load("m")
    rot(store, blobs, "m")
    with pytest.raises(Damaged):
        before.load()
    store.check(read_data=True)
    store.save("m", FIRST)
    equal(before.load(), FIRST)
    assert before.tensor("emb")[[7]].tobytes() == FIRST["emb"][[7]].tobytes()


def test_what_is_healed_in_parts_is_healed(store: Store, blobs: MemoryStore) -> None:
    """Two saves have one damaged chunk each: the second one adds a move of its own."""
    emb = rot(store, blobs, "m", "emb", 1)
    assert rot(store, blobs, "m", "bias") == emb
    store.check(read_data=True)
    store.save("a", {"emb": FIRST["emb"]})
    equal({"emb": store.load("m").tensor("emb").numpy()}, {"emb": FIRST["emb"]})
    with pytest.raises(Damaged):
        store.load("m").load()
    store.save("b", {"bias": FIRST["bias"]})
    loads(store, "m", FIRST)
    pack = pack_of(emb)
    assert moves(blobs) == [move_key(pack), move_key(pack, 2)]
    whole(store, quarantined=1)


def test_chunks_that_lie_elsewhere_too_heal_without_being_stored(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """Two saves at once stored the same: one of the packs is good."""
    kept = {info.key: bytes(blobs.get(info.key)) for info in blobs.list("index/")}
    blobs.delete(list(kept))
    with opened(blobs, cache / "b") as second:
        assert stats(second.save("n", {"bias": FIRST["bias"]})).new_chunks == 1
    for key, data in kept.items():
        blobs.put(key, data)
    rot(store, blobs, "m", "bias")
    store.check(read_data=True)
    with opened(blobs, cache / "c") as third:
        assert stats(third.save("n", {"bias": FIRST["bias"]})).new_chunks == 0
    loads(store, "m", FIRST)


def test_a_place_in_a_marked_pack_stands_back_in_a_fresh_index(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """Segments are read in the order of their random names."""
    (old,) = (info.key for info in blobs.list("index/"))
    rot(store, blobs, "m")
    store.check(read_data=True)
    store.save("m", FIRST)
    (new,) = {info.key for info in blobs.list("index/")} - {old}
    data = {key: bytes(blobs.get(key)) for key in (old, new)}
    for first, last in ((old, new), (new, old)):
        blobs.delete([info.key for info in blobs.list("index/")])
        blobs.put("index/" + "0" * 32, data[first])
        blobs.put("index/" + "f" * 32, data[last])
        with opened(blobs, cache / f"fresh {first}") as fresh:
            assert stats(fresh.save("m", FIRST)).new_chunks == 0


def test_a_delta_on_a_base_in_a_marked_pack_is_healed(store: Store, blobs: MemoryStore) -> None:
    first = model()
    second = tuned_model(first)
    store.save("d", first)
    assert stats(store.save("d", second)).delta_bytes
    deltas = [place for place in store.load("d@2")._opened.content.table if place.bases]
    below = {pack_key(p.pack) for p in store.load("d@2")._opened.content.table if not p.bases}
    base = next(p for p in store.load("d@1")._opened.content.table if p.digest in deltas[0].bases)
    flip(blobs, base)
    assert pack_key(base.pack) in below
    assert store.check(read_data=True).quarantined == [pack_key(base.pack)]
    before = bytes(blobs.get(layout_key(store.resolve("d@2").digest)))
    store.save("d", second)
    loads(store, "d@2", second)
    loads(store, "d@3", second)
    assert bytes(blobs.get(layout_key(store.resolve("d@2").digest))) == before
    with pytest.raises(Damaged):
        store.load("d@1").load()
    store.save("d", first)
    loads(store, "d@1", first)
    whole(store, quarantined=1)


def test_a_delta_on_a_base_that_is_gone_is_healed(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    first = model()
    second = tuned_model(first)
    store.save("d", first)
    assert stats(store.save("d", second)).delta_bytes
    blobs.delete([pack_key(place.pack) for place in places(store, "d@1", "emb")])
    with pytest.raises(NotFound):
        store.load("d@2").load()
    with opened(blobs, cache / "another") as again:
        again.save("d", second)
        loads(again, "d@2", second)
        loads(again, "d@3", second)


def test_what_is_cut_short_is_healed(store: Store, blobs: MemoryStore) -> None:
    (key,) = packs(blobs)
    blobs.put(key, bytes(blobs.get(key))[:1000])
    assert store.check().quarantined == [key]
    store.save("m", FIRST)
    loads(store, "m@1", FIRST)
    whole(store, quarantined=1)


def test_a_version_that_holds_the_same_delta_is_healed_as_well(
    store: Store, blobs: MemoryStore
) -> None:
    first = model()
    second = tuned_model(first)
    store.save("d", first)
    store.save("d", second)
    third = {**second, "more": np.ones(3, np.float32)}
    store.save("d", third)
    base = places(store, "d@1", next(iter(first)))[0]
    flip(blobs, base)
    store.check(read_data=True)
    store.save("e", {**second, "else": np.zeros(5)})
    loads(store, "d@2", second)
    loads(store, "d@3", third)


def test_a_delta_that_stands_in_for_a_chunk_is_none(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """A move is for every layout that names the pack: those have no place for the delta's base."""
    first = model()
    second = tuned_model(first)
    store.save("x", second, base=None)
    (standalone,) = {pack_key(place.pack) for place in store.load("x")._opened.content.table}
    blobs.delete([info.key for info in blobs.list("index/")])
    with opened(blobs, cache / "other") as other:
        other.save("d", first, base=None)
        assert stats(other.save("d", {**second, "z": np.ones(3)}, base="d@1")).delta_bytes
        blobs.delete([standalone])
        other.save("x", second)
        loads(other, "x@1", second)
        loads(other, "x@2", second)


@pytest.mark.parametrize("base", ["auto", "m@1"])
def test_nothing_is_stored_as_a_delta_on_itself_or_on_what_is_marked(
    store: Store, blobs: MemoryStore, base: str
) -> None:
    rot(store, blobs, "m")
    store.check(read_data=True)
    tuned = {**FIRST, "emb": FIRST["emb"] + np.float32(1e-6)}
    for content in (FIRST, tuned):
        assert stats(store.save("m", content, base=base)).delta_bytes == 0
    loads(store, "m@2", FIRST)
    loads(store, "m@3", tuned)


def test_patches_and_folds_do_not_rely_on_a_marked_pack(store: Store, blobs: MemoryStore) -> None:
    from tierstore import Rows

    rows = np.full((2, 1000), 3, np.float32)
    store.patch("m", {"emb": Rows([1, 2], rows)}, fold=False)
    content = {**FIRST, "emb": FIRST["emb"].copy()}
    content["emb"][[1, 2]] = rows
    key = rot(store, blobs, "m@1", "emb", 1)
    store.check(read_data=True)
    with pytest.raises(Damaged):
        store.fold("m")
    store.save("m", FIRST)
    loads(store, "m@2", content)
    folded = store.fold("m@2")
    table = store._parts.home.layout(folded.full, store._parts.home.manifest(folded.full))
    assert pack_of(key) not in table.pack_ids
    loads(store, "m@2", content)


def test_what_a_patch_holds_is_healed_by_the_same_patch(store: Store, blobs: MemoryStore) -> None:
    from tierstore import Rows

    change = {"emb": Rows([4], np.full((1, 1000), 2, np.float32))}
    patched = store.patch("m@1", change, fold=False)
    place = next(iter(store._parts.home.layout(
        patched.digest, store._parts.home.manifest(patched.digest)
    )))  # fmt: skip
    flip(blobs, place)
    assert store.check(read_data=True).quarantined == [pack_key(place.pack)]
    again = store.patch("m@1", change, fold=False)
    assert again.digest == patched.digest, "equal content has one layout, which is kept"
    content = {**FIRST, "emb": FIRST["emb"].copy()}
    content["emb"][4] = 2
    for number in (2, 3):
        loads(store, f"m@{number}", content)


def test_a_move_that_is_lost_again_is_moved_on(store: Store, blobs: MemoryStore) -> None:
    """The new pack rots as well; and then the old one's first move names what is damaged."""
    for _ in range(3):
        table = store.load("m")._opened.content.table
        moved = store.load("m")
        moved.load()
        place = table.find(places(store, "m", "emb")[0].digest)
        assert place is not None
        now = moved._opened.content.reader.pool.moves.current(place)
        flip(blobs, now)
        store.check(read_data=True)
        with pytest.raises(Damaged):
            store.load("m").load()
        store.save("m", FIRST)
        loads(store, "m@1", FIRST)
    whole(store, quarantined=3)


@pytest.mark.timeout(60)
def test_moves_that_lead_back_to_a_pack_end(store: Store, blobs: MemoryStore) -> None:
    """What no store writes: two packs, each of which is said to have what the other lost."""
    old = rot(store, blobs, "m")
    store.check(read_data=True)
    store.save("m", FIRST)
    (new,) = set(packs(blobs)) - {old}
    back = Move(pack=new.rpartition("/")[2], into=[old.rpartition("/")[2]])
    blobs.put(move_key(bytes.fromhex(back.pack)), seal_body(Kind.MOVE, back))
    loads(store, "m@1", FIRST)
    data = bytearray(blobs.get(new))
    data[len(data) // 3] ^= 1
    blobs.put(new, data)
    with pytest.raises(Damaged):
        store.load("m@1").load()


def test_moves_are_followed_while_tiers_are_down(cache: Path) -> None:
    tiers = Tiers(cache)
    warm, home = tiers.stores["warm"], tiers.stores["home"]
    with tiers.open() as store:
        key = rot(store, warm, "m")
        tiers.stores["cold"].put(key, warm.get(key))
        assert store.check(read_data=True).quarantined == [key]
        store.save("m", FIRST)
        (new,) = set(packs(warm)) - {key}
        home.put(new, warm.get(new))
        tiers.down = {"warm", "cold"}
        loads(store, "m@1", FIRST)
        home.delete([new])
        with pytest.raises(Unreachable, match=key):
            store.load("m@1").load()


# Layouts are kept


def test_the_layout_of_equal_content_is_kept(store: Store, blobs: MemoryStore, cache: Path) -> None:
    """Where the index was lost the same content is stored once more, and nothing leads to it."""
    key = layout_key(store.resolve("m").digest)
    before, segments = bytes(blobs.get(key)), list(blobs.list("index/"))
    blobs.delete([info.key for info in segments])
    old = packs(blobs)
    with opened(blobs, cache / "another") as again:
        assert stats(again.save("m", FIRST, base=None)).new_chunks == 4
    assert bytes(blobs.get(key)) == before
    assert not list(blobs.list("index/")), "a segment would lead saves to what will be collected"
    report = store.check(read_data=True)
    assert report.garbage_keys == sorted(set(packs(blobs)) - set(old))
    loads(store, "m@2", FIRST)


def test_a_damaged_layout_is_written_anew(store: Store, blobs: MemoryStore) -> None:
    key = layout_key(store.resolve("m").digest)
    before = bytes(blobs.get(key))
    blobs.put(key, before[:-1])
    with pytest.raises(Damaged):
        store.load("m")
    store.save("m", FIRST)
    assert bytes(blobs.get(key)) == before
    loads(store, "m@1", FIRST)


def test_a_layout_whose_packs_are_gone_is_kept_and_healed(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    key = layout_key(store.resolve("m").digest)
    before = bytes(blobs.get(key))
    blobs.delete(packs(blobs))
    with opened(blobs, cache / "another") as again:
        again.save("m", FIRST)
    assert bytes(blobs.get(key)) == before
    loads(store, "m@1", FIRST)
    assert not store.check(read_data=True).damaged


def test_a_rebase_writes_no_layout_of_packs_that_are_gone(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    first = model()
    store.save("d", first)
    store.save("d", tuned_model(first))
    key = layout_key(store.resolve("d@2").digest)
    before = bytes(blobs.get(key))
    old = set(packs(blobs))

    def plan(op: str, name: str, n: int) -> None:
        if (op, name) == ("list", "gc/"):  # right before the look
            blobs.delete(set(packs(blobs)) - old)

    with (
        opened(FaultyStore(blobs, plan), cache) as again,
        pytest.raises(BackendError, match="disappeared while it was rebased; nothing was changed"),
    ):
        again.rebase("d@2", above=1)
    assert bytes(blobs.get(key)) == before
    loads(store, "d@2", tuned_model(first))


# Several at once, and ends at any moment


def damaged_store(cache: Path) -> MemoryStore:
    """A store whose two versions share a damaged and marked pack."""
    blobs = MemoryStore("damaged")
    with created(blobs, cache) as store:
        store.save("m", SMALL)
        store.save("m", {**SMALL, "more": np.ones(3, np.float32)})
        rot(store, blobs, "m@1")
        rot(store, blobs, "m@1", "bias")
        assert len(store.check(read_data=True).quarantined) == 1
    return blobs


def healed(blobs: MemoryStore, cache: Path) -> None:
    """One more save, and everything is readable."""
    with opened(blobs, cache) as store:
        store.save("m", SMALL)
        loads(store, "m@1", SMALL)
        loads(store, "m@2", {**SMALL, "more": np.ones(3, np.float32)})
        for version in store.versions("m"):
            store.load(version).load()
        whole(store, quarantined=1)


def healing_writes(before: MemoryStore, cache: Path) -> int:
    counted = FaultyStore(copy_of(before))
    with opened(counted, cache / "counting") as store:
        store.save("m", SMALL)
    assert any(key.startswith("moves/") for _, key in counted.calls)
    return sum(op in {"put", "put_if_absent", "delete"} for op, _ in counted.calls)


def test_a_save_that_heals_may_die_at_any_write(cache: Path) -> None:
    before = damaged_store(cache / "made")
    total = healing_writes(before, cache)
    for n in range(total + 1):
        blobs = copy_of(before)
        with contextlib.suppress(Crashed):
            opened(FaultyStore(blobs, crash_after=n), cache / f"dying {n}").save("m", SMALL)
        with opened(blobs, cache / f"look {n}") as store:
            if len(store.versions("m")) == 3:
                for version in store.versions("m"):
                    store.load(version).load()
        healed(blobs, cache / f"healing {n}")


@pytest.mark.parametrize("fault", [OutOfSpace("full"), "lose-response"], ids=["full", "lost"])
def test_a_save_that_heals_and_fails_at_any_write(cache: Path, fault: object) -> None:
    made = damaged_store(cache / "made")
    total = healing_writes(made, cache)
    for n in range(1, total + 1):
        blobs = copy_of(made)
        store = opened(FaultyStore(blobs, failing(n, fault, once=True)), cache / f"f {n}")  # type: ignore[arg-type]
        before = len(store.versions("m"))
        try:
            store.save("m", SMALL)
        except (OutOfSpace, Unreachable):
            pass
        else:
            assert len(store.versions("m")) == before + 1
            with opened(blobs, cache / f"look {n}") as look:
                loads(look, "m@3", SMALL)
                loads(look, "m@1", SMALL)
        healed(blobs, cache / f"healing {n}")


def test_a_check_that_marks_may_die_at_any_write(cache: Path) -> None:
    for n in range(2):
        blobs = MemoryStore("check")
        with created(blobs, cache / str(n)) as store:
            store.save("m", SMALL)
            rot(store, blobs, "m")
        with contextlib.suppress(Crashed):
            opened(FaultyStore(blobs, crash_after=n), cache / f"d{n}").check(read_data=True)
        assert len(list(blobs.list("quarantine/"))) == n
        with opened(blobs, cache / f"again {n}") as again:
            assert len(again.check(read_data=True).quarantined) == 1
            again.save("m", SMALL)
            loads(again, "m@1", SMALL)


@pytest.mark.parametrize("before", ["moves/", "layouts/", "refs/", "versions/", "index/"])
@pytest.mark.parametrize("other", ["the same", "a part"])
def test_a_save_that_is_overtaken_by_another_one(cache: Path, before: str, other: str) -> None:
    blobs = copy_of(damaged_store(cache / "before"))
    content = SMALL if other == "the same" else {"bias": SMALL["bias"]}

    def overtake() -> None:
        with opened(blobs, cache / "other") as store:
            store.save("other", content)
            loads(store, "other", content)

    op = "put" if before in {"versions/", "index/"} else "put_if_absent"
    with opened(FaultyStore(blobs, at(before, overtake, op)), cache / "mine") as store:
        store.save("m", SMALL)
    with opened(blobs, cache / "look") as store:
        assert store.models() == ["m", "other"]
        loads(store, "m@3", SMALL)
        loads(store, "other", content)
    healed(blobs, cache / "healing")


@pytest.mark.parametrize("before", ["versions/", "layouts/", "refs/"])
def test_a_pack_that_is_marked_while_a_save_runs(
    store: Store, blobs: MemoryStore, cache: Path, before: str
) -> None:
    """Until the look it is stored anew; afterwards the version is damaged as the older ones are."""
    more = {**FIRST, "more": np.ones(3, np.float32)}

    def rot_and_mark() -> None:
        rot(store, blobs, "m")
        assert store.check(read_data=True).quarantined

    op = "put" if before == "versions/" else "put_if_absent"
    with opened(FaultyStore(blobs, at(before, rot_and_mark, op)), cache / "saving") as saving:
        saving.save("m", more)
    if before == "versions/":
        loads(store, "m@2", more)
        loads(store, "m@1", FIRST)
    else:
        with pytest.raises(Damaged):
            store.load("m@2").load()
    store.save("m", more)
    loads(store, "m@1", FIRST)
    loads(store, "m@2", more)
    whole(store, quarantined=1)


def test_savers_and_checkers_at_once(cache: Path) -> None:
    blobs = copy_of(damaged_store(cache / "before"))
    errors: list[BaseException] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    def saver(number: int) -> None:
        with opened(blobs, cache / f"saver {number}") as store:
            for turn in range(3):
                content = {**SMALL, "own": np.full(9, 10 * number + turn)}
                store.save(f"s{number}", content if turn else SMALL)

    def checker(number: int) -> None:
        with opened(blobs, cache / f"checker {number}") as store:
            for _ in range(3):
                assert store.check(read_data=True).quarantined

    workers = [threading.Thread(target=attempt, args=(lambda n=n: saver(n),)) for n in range(3)]
    workers += [threading.Thread(target=attempt, args=(lambda n=n: checker(n),)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors, errors
    healed(blobs, cache / "healing")


# Moves


def test_numbered_moves_are_followed_to_the_end(store: Store, blobs: MemoryStore) -> None:
    """By hand: the second move of a pack holds what the first one lacks, and the last one holds."""
    (key,) = packs(blobs)
    old = pack_of(key)
    store.save("a", {"emb": FIRST["emb"]})
    for name in ("emb", "bias", "common"):
        with opened(blobs, Path(store._parts.settings.cache_dir) / name) as again:
            again._parts.home.quarantine.mark(old, (), tiers=["home"], why="by hand")
            again.save(name, {name: FIRST[name]})
    assert moves(blobs) == [move_key(old), move_key(old, 2), move_key(old, 3)]
    blobs.delete([key])
    loads(store, "m", FIRST)
    blobs.delete([move_key(old, 2)])
    with pytest.raises((Damaged, NotFound)):
        store.load("m").load()


def test_a_move_of_another_pack_is_damage(store: Store, blobs: MemoryStore) -> None:
    (key,) = packs(blobs)
    wrong = Move(pack="ab" * 32, into=["cd" * 32])
    blobs.put(move_key(pack_of(key)), seal_body(Kind.MOVE, wrong))
    blobs.delete([key])
    with pytest.raises(Damaged, match="it is a move of pack abab"):
        store.load("m").load()


def test_a_move_into_a_pack_that_is_damaged_leaves_the_others(
    store: Store, blobs: MemoryStore
) -> None:
    (key,) = packs(blobs)
    rot(store, blobs, "m")
    store.check(read_data=True)
    store.save("m", FIRST)
    first = unseal_body(Kind.MOVE, blobs.get(move_key(pack_of(key))), Move, "move")
    blobs.put("packs/ab/" + "ab" * 32, b"no pack")
    second = Move(pack=first.pack, into=["ab" * 32])
    blobs.put(move_key(pack_of(key), 2), seal_body(Kind.MOVE, second))
    loads(store, "m@1", FIRST)


def test_a_mark_of_another_pack_is_damaged() -> None:
    body = Mark(pack=bytes(32), chunks=b"", tiers=[], why="", who="", time_us=0)
    with pytest.raises(Damaged, match="mark of another pack"):
        parse_mark(seal_body(Kind.QUARANTINE, body), b"1" * 32, "mark")
    odd = Mark(pack=bytes(32), chunks=b"odd", tiers=[], why="", who="", time_us=0)
    with pytest.raises(Damaged, match="no list of digests"):
        parse_mark(seal(Kind.QUARANTINE, msgspec.msgpack.encode(odd)), bytes(32), "mark")


def test_flips_anywhere_in_marks_and_moves(store: Store, blobs: MemoryStore, cache: Path) -> None:
    """Whatever is damaged of what heals: nothing wrong is returned, and saving heals again."""
    rot(store, blobs, "m")
    store.check(read_data=True)
    store.save("m", FIRST)
    rng = random.Random(3)
    healing = [*moves(blobs), *(info.key for info in blobs.list("quarantine/"))]
    for key in healing:
        good = bytes(blobs.get(key))
        for _ in range(40):
            bad = bytearray(good)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            blobs.put(key, bad)
            with contextlib.suppress(Damaged):
                equal(store.load("m").load(), FIRST)
        blobs.put(key, good)
    loads(store, "m", FIRST)
