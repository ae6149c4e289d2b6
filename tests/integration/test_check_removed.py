"""What can be undeleted is checked as any version is: else damage comes back, and nobody knew."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.kit import MIB, condemn, settings, tensors
from tests.integration.test_collector import CHANGES, collect, packs, packs_of
from tests.integration.test_quarantine import flip, places
from tests.integration.test_repair import flipped, spoil
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Unreachable
from tierstore.format.keys import COLLECTED, LAYOUTS, layout_key, move_key, pack_key, version_key
from tierstore.format.layout import Move
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("check-removed")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """Three versions; each has a pack of its own, and the first one another that all share."""
    create_config(blobs, MIB)
    with Store(blobs, settings(cache)) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(1, 4):
            store.save("m", tensors(number), base=None)
        yield store


def test_damaged_data_of_a_removed_version_is_found(store: Store, blobs: MemoryStore) -> None:
    [place, *_] = places(store, "m@2", "emb")
    key = pack_key(place.pack)
    store.remove("m@2")
    assert store.check(read_data=True).findings == [], "neither damage nor garbage"
    flip(blobs, place)
    report = store.check(read_data=True)
    assert [(one.key, one.needed_by) for one in report.findings] == [(key, ("m@2 (removed)",))]
    assert report.quarantined == [key]
    hit = [(one.version, [part.name for part in one.parts]) for one in store.repair().hit]
    assert hit == [("m@2 (removed)", ["emb"])]
    store.undelete("m@2")
    assert {one.needed_by for one in store.check(read_data=True).findings} == {("m@2",)}


def test_a_damaged_footer_of_a_removed_patch_is_found(store: Store, blobs: MemoryStore) -> None:
    store.patch("m@3", CHANGES, fold=False)
    [own] = packs_of(store, "m@4")
    store.remove("m@4", force=True)
    spoil(blobs, pack_key(own), flipped(-1))
    assert [(one.key, one.needed_by) for one in store.check().findings] == [
        (pack_key(own), ("m@4 (removed)",))
    ]


@pytest.mark.parametrize("key_of", [layout_key, version_key])
def test_damage_in_home_of_a_removed_version_is_found(
    store: Store, blobs: MemoryStore, key_of: object
) -> None:
    assert callable(key_of)
    key = key_of(store.resolve("m@2").digest)
    store.remove("m@2")
    spoil(blobs, key, flipped(-1))
    assert [(one.key, one.needed_by) for one in store.check().findings] == [
        (key, ("m@2 (removed)",))
    ]


def test_damage_of_what_is_shared_names_both(store: Store, blobs: MemoryStore) -> None:
    [place] = places(store, "m@2", "common")
    store.remove("m@1")
    flip(blobs, place)
    [finding] = store.check(read_data=True).findings
    assert finding.needed_by == ("m@1 (removed)", "m@2", "m@3")


def test_once_the_window_is_over_nothing_of_it_is_damage(store: Store, blobs: MemoryStore) -> None:
    [place, *_] = places(store, "m@2", "emb")
    manifest = version_key(store.resolve("m@2").digest)
    store.remove("m@2")
    store.retention.set("m", window=timedelta(0))
    assert store.check().versions == 2, "it is not looked at"
    flip(blobs, place)
    spoil(blobs, manifest, flipped(-1))
    report = store.check(read_data=True)
    assert (report.findings, report.quarantined) == ([], [])


def test_what_was_collected_with_a_shorter_window_is_not_lost(
    store: Store, blobs: MemoryStore
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.remove("m@2")
    collect(store)
    assert own not in packs(blobs)
    report = store.check(read_data=True)
    assert report.findings == []
    assert report.data.copies == len(packs(blobs)), "what is not there is not read again and again"
    assert store.repair().objects == []
    blobs.delete([COLLECTED])  # it says that, and may be lost at any time
    assert store.check(read_data=True).findings == []
    repaired = store.repair()
    assert (repaired.objects, repaired.hit) == ([], [])


def test_what_is_gone_of_versions_in_force_is_lost_all_the_same(
    store: Store, blobs: MemoryStore
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    store.save("n", tensors(2), base=None)
    store.remove("m@2")
    blobs.delete([pack_key(own)])
    assert [one.needed_by for one in store.check().findings] == [("n@1",)]
    assert [one.version for one in store.repair().hit] == ["m@2 (removed)", "n@1"]


@pytest.mark.parametrize("is_noted", [False, True])
def test_what_was_collected_is_not_lost_with_its_layout(
    store: Store, blobs: MemoryStore, is_noted: bool
) -> None:
    """Whether or not the note of the collection is there, which may be lost at any time."""
    layout = layout_key(store.resolve("m@2").digest)
    store.remove("m@2")
    collect(store)
    blobs.delete([info.key for info in blobs.list(LAYOUTS)])
    if not is_noted:
        blobs.delete([COLLECTED])
    assert store.reclaim.rebuild_layouts().lost == []
    assert layout not in {info.key for info in blobs.list(LAYOUTS)}, "its chunks are in no pack"
    assert store.check(read_data=True).findings == []
    repaired = store.repair()
    assert (repaired.objects, repaired.hit) == ([], [])


def test_packs_of_a_removed_version_whose_layout_is_lost_are_no_garbage(
    store: Store, blobs: MemoryStore
) -> None:
    layout = layout_key(store.resolve("m@2").digest)
    store.remove("m@2")
    blobs.delete([layout])
    assert store.check(read_data=True).findings == []
    assert [one.outcome for one in store.repair().objects] == ["repaired"]
    store.undelete("m@2")
    assert store.check(read_data=True).findings == []


def test_a_missing_manifest_of_a_removed_version_is_no_damage(
    store: Store, blobs: MemoryStore
) -> None:
    """Who has lost a version and removes it has done what there is to do."""
    key = version_key(store.resolve("m@2").digest)
    blobs.delete([key])
    assert [(one.key, one.needed_by) for one in store.check().findings] == [(key, ("m@2",))]
    assert [one.version for one in store.repair().hit] == ["m@2"]
    store.remove("m@2")
    assert not store.check(read_data=True).damaged
    assert store.repair().is_whole


def test_once_a_collection_took_a_window_for_over_nothing_of_it_is_damage(
    store: Store, blobs: MemoryStore
) -> None:
    key = version_key(store.resolve("m@2").digest)
    store.remove("m@2")
    spoil(blobs, key, flipped(-1))
    assert [one.needed_by for one in store.check().findings] == [("m@2 (removed)",)]
    store.reclaim.run(grace=timedelta(0), window=timedelta(0))
    assert not store.check(read_data=True).damaged
    assert store.repair().is_whole


def test_packs_that_nothing_needs_are_called_what_they_are(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    def said() -> dict[str, str]:
        return {one.key: one.what for one in store.check().findings}

    unfinished = "a pack of a save that was not finished; saving that content again goes on with it"
    [own] = packs_of(store, "m@2") - packs_of(store, "m@1")
    before = packs(blobs)

    def plan(op: str, key: str, n: int) -> None:
        if key.startswith("versions/") and op.startswith("put"):
            raise Unreachable("home is down")

    with (
        Store(FaultyStore(blobs, plan), settings(cache / "other")) as other,
        pytest.raises(Unreachable),
    ):
        other.save("n", tensors(9), base=None)
    [new] = packs(blobs) - before
    assert said() == {pack_key(new): unfinished}
    blobs.delete([info.key for info in blobs.list("index/")])
    blobs.put(move_key(new), seal_body(Kind.MOVE, Move(pack=new.hex(), into=[own.hex()])))
    assert said() == {pack_key(new): "a pack of which what is needed was stored anew"}
    condemn(blobs, pack_key(new))
    assert said() == {pack_key(new): "a condemned pack: 'tierstore gc' deletes it"}
    store.save("n", tensors(9), base=None)
    assert said() == {pack_key(new): "a condemned pack: 'tierstore gc' deletes it"}


def test_what_a_removed_release_needs_as_well_is_damage_of_the_other(
    store: Store, blobs: MemoryStore
) -> None:
    store.releases.create("all", ["m@1"])
    store.save("n", tensors(4), base=None)
    store.releases.create("all", ["m@1", "n@1"])
    store.remove("all@2", force=True)
    entry = store._parts.home.log("m").key_of(1)
    blobs.delete([entry])
    found = [one.needed_by for one in store.check().findings if one.key == entry]
    assert ("all@1", "all@2 (removed)") in found
    store.remove("all@1", force=True)
    assert ("all@1 (removed)", "all@2 (removed)") in [
        one.needed_by for one in store.check().findings if one.key == entry
    ], "no entry is ever collected"
