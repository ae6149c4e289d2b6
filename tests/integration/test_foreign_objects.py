"""Foreign objects in the folders of home: they end no check, no repair and no collection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.kit import condemn, created, equal, opened, tensors
from tests.integration.test_collector import collect, keys, packs
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged
from tierstore.format.keys import GC, list_key, pack_key
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store

FOLDERS = [
    "", "refs/", "refs/m/", "refs/m/versions/", "refs/m/versions/000000/", "refs/m/alias/",
    "refs/m/alias/prod/", "refs/m/removed/", "refs/m/variant/", "refs/zzz/versions/", "versions/",
    "layouts/", "folds/", "moves/", "index/", "packs/", "packs/00/", "leases/", "gc/",
    "condemned/", "probes/", "reports/", "reports/m/", "quarantine/", "retention/",
    "retention/models/", "sweeps/", "scrubs/", "growth/", "purges/", "purged/", "acks/", "acks/x/",
    "purgeparts/", "nodes/", "nodes/x/", "reserve/", "tiers/", "pins/", "heat/", "movers/", "keys/",
    "zzz/",
]  # fmt: skip


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("foreign")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in (1, 2, 3):
            store.save("m", tensors(number), base=None, alias="prod")
        store.pins.add(store.resolve("m@2").digest, "m@2", ["hot"])
        store.remove("m@1", force=True)
        yield store


@pytest.mark.parametrize("folder", FOLDERS)
def test_foreign_objects(store: Store, blobs: MemoryStore, cache: Path, folder: str) -> None:
    for name in ("notes.txt", "000000001-", "0"):
        blobs.put(folder + name, b"nothing of ours, but bytes of somebody else" * 3)
    with opened(blobs, cache / "other") as other:
        other.check()
        other.repair()
        collect(other)
        other.save("n", tensors(4))
        for model, number in (("m@2", 2), ("m", 3), ("n", 4)):
            equal(other.load(model).load(), tensors(number))


@pytest.mark.parametrize("data", [b"nothing of ours" * 9, b""])
def test_a_foreign_list_of_the_highest_number(
    store: Store, blobs: MemoryStore, data: bytes
) -> None:
    """No list can be written behind it."""
    condemn(blobs, pack_key(bytes(32)))
    blobs.put(list_key(999_999_999), data)
    before = packs(blobs)
    with pytest.raises(Damaged, match="gc/999999999"):
        collect(store)
    assert packs(blobs) == before
    store.save("m", tensors(5), base=None)
    assert store.check().damaged
    [one] = store.repair().objects
    assert (one.outcome, one.key) == ("repaired", "gc/999999999")
    assert keys(blobs, GC) == [list_key(1), list_key(2)]
    assert bytes(32) in store._parts.home.condemned.every().packs
    assert not store.check().damaged
    assert collect(store).freed is not None
    equal(store.load("m").load(), tensors(5))
