"""Manifests that are lost: who collects says which versions that hits, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created, equal, tensors
from tests.integration.test_collector import collect, keys, packs, packs_of, states
from tests.waiting import wait_until
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged
from tierstore.format.keys import LEASES, version_key
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store

WINDOW_S = 7 * 24 * 3600


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("lost manifests")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """m@1 to m@5, each with a pack of its own; @1 and @3 are removed."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(1, 6):
            store.save("m", tensors(number), base=None)
        store.remove("m@1", "m@3")
        yield store


def lose(store: Store, blobs: MemoryStore, *refs: str, damaged: bool = False) -> None:
    for ref in refs:
        key = version_key(store.resolve(ref).digest)
        if damaged:
            data = bytearray(blobs.get(key))
            data[-1] ^= 1
            blobs.put(key, data)
        else:
            blobs.delete([key])


@pytest.mark.parametrize("damaged", [False, True])
def test_all_that_is_lost_is_named_and_once_removed_stops_nothing(
    store: Store, blobs: MemoryStore, damaged: bool
) -> None:
    [own] = packs_of(store, "m@2") - packs_of(store, "m@5")
    lose(store, blobs, "m@2", "m@4", damaged=damaged)
    before = packs(blobs)
    with pytest.raises(Damaged, match=r"m@2 .*cannot be loaded.*m@4 .*'tierstore rm' removes it"):
        collect(store)
    assert packs(blobs) == before
    store.remove("m@2", "m@4")
    assert states(collect(store, grace_s=60, window_s=WINDOW_S))[own][0] == "waiting"
    assert collect(store, grace_s=0, window_s=WINDOW_S).freed
    assert own not in packs(blobs)
    equal(store.load("m@5").load(), tensors(5))


def test_a_lost_version_that_an_alias_would_go_back_to_stops_nothing(
    store: Store, blobs: MemoryStore
) -> None:
    store.alias("m", "prod", "m@4")
    store.alias("m", "prod", "m@5")
    store.remove("m@4")
    [entry] = store._parts.home.log("m").numbered([4])
    blobs.delete([f"versions/{entry.manifest}"])
    assert collect(store).freed
    equal(store.load("m@prod").load(), tensors(5))


def test_other_versions_can_be_removed_while_one_is_lost(store: Store, blobs: MemoryStore) -> None:
    store.patch("m@5", {"emb": Rows([1], np.ones((1, 1000), np.float32))}, fold=False)
    before = packs(blobs)
    lose(store, blobs, "m@4", "m@6")
    store.remove("m@2")
    would_go = store.forget("m", keep_last=1, dry_run=True, most_percent=100).removed
    assert list(map(str, would_go)) == ["m@5", "m@4"]
    store.remove("m@5")  # the patch on it is lost
    with pytest.raises(Damaged, match=r"m@6 .*cannot be loaded"):
        collect(store)
    assert packs(blobs) == before


def test_a_patch_whose_base_is_lost_cannot_be_loaded(store: Store, blobs: MemoryStore) -> None:
    store.patch("m@5", {"emb": Rows([1], np.ones((1, 1000), np.float32))}, fold=False)
    for ref in ("m@5", "m@4"):  # which names m@5 once more
        store.alias("m", "prod", ref)
    lose(store, blobs, "m@5")
    with pytest.raises(Damaged, match=r"m@5 .*cannot be loaded.*m@6 .*cannot be loaded") as lost:
        collect(store)
    assert str(lost.value).count("cannot be loaded") == 2, "once for each version"
    store.remove("m@5", "m@6", force=True)
    assert collect(store).freed


def test_who_has_opened_a_version_goes_on_reading_it(store: Store, blobs: MemoryStore) -> None:
    [own] = packs_of(store, "m@4") - packs_of(store, "m@5")
    opened, digest = store.load("m@4"), store.resolve("m@4").digest
    wait_until(lambda: bool(keys(blobs, LEASES)), "a reader's lease")
    store.remove("m@4")
    blobs.delete([version_key(digest)])
    assert states(collect(store))[own][0] == "leased"
    equal(opened.load(), tensors(4))
    opened.close()


def test_a_lost_release_says_so_and_can_be_removed(store: Store, blobs: MemoryStore) -> None:
    store.releases.create("all", ["m@4"])
    lose(store, blobs, "all@1")
    with pytest.raises(Damaged, match=r"all@1 .*cannot be loaded"):
        collect(store)
    with pytest.raises(Damaged, match=r"first 'tierstore rm all@1'"):
        store.remove("m@2")
    store.remove_model("all")
    store.remove("m@2")
    assert collect(store).freed
