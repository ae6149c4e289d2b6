"""What a repair asks home for: small objects some at a time, and what never changes once."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.kit import created, opened, tensors
from tests.integration.test_quarantine import places
from tests.integration.test_repair import flip_chunk
from tierstore.blobs.memory import MemoryStore
from tierstore.format.keys import LAYOUTS, PACKS, REFS, VERSIONS, move_key, pack_key
from tierstore.ids import ByteRange
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.holdings import read_holdings
from tierstore.modelstore.reclaim.repair.content import ContentRepair, MoveRepair
from tierstore.modelstore.reclaim.repair.objects import Objects
from tierstore.modelstore.reclaim.repair.report import RepairReport
from tierstore.modelstore.reclaim.repair.users import UserReader
from tierstore.modelstore.reclaim.repair.wanted import find_wanted
from tierstore.testing.faulty import FaultyStore


@pytest.fixture
def blobs(cache: Path) -> MemoryStore:
    """A store with m@1 to m@4; no copy of m@2's pack is good."""
    blobs = MemoryStore("asked")
    with created(blobs, cache) as store:
        for number in range(1, 5):
            store.save("m", tensors(number), base=None)
        flip_chunk(blobs, places(store, "m@2", "emb")[0])
    return blobs


class InPairs(MemoryStore):
    """A store that gives what lies below a prefix to two readers at once, and to no single one."""

    prefix = ""
    barrier = threading.Barrier(2, timeout=60)

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        if self.prefix and key.startswith(self.prefix):
            self.barrier.wait()
        return super().get(key, byte_range)


@pytest.mark.parametrize("what", ["users", "wanted", "layouts"])
def test_small_objects_are_read_some_at_a_time(blobs: MemoryStore, what: str) -> None:
    pairs = InPairs("pairs")
    for info in blobs.list():
        pairs.put(info.key, blobs.get(info.key))
    home = Home(pairs)
    users = UserReader(home).read()
    pairs.prefix = LAYOUTS if what == "wanted" else VERSIONS
    if what == "users":
        assert UserReader(home).read() == users
    elif what == "wanted":
        assert len(find_wanted(home, users, lambda pack: True).by_pack) == 4
    else:
        report = RepairReport()
        keys = [info.key for info in pairs.list(LAYOUTS)]
        ContentRepair(home, Objects(pairs, report), users).layouts(keys)
        assert report.objects == []


def test_what_never_changes_is_asked_for_once_more_at_most(blobs: MemoryStore, cache: Path) -> None:
    """An entry is checked, and read for what it says: who needs what is asked for three times."""
    asked = FaultyStore(blobs)
    with opened(asked, cache) as store:
        asked.calls.clear()
        assert [hit.version for hit in store.repair().hit] == ["m@2"]
    counts = Counter(key for op, key in asked.calls if op == "get")
    entries = {key: n for key, n in counts.items() if key.startswith(f"{REFS}m/versions/0")}
    assert len(entries) == 4
    assert sorted(entries.values()) == [2, 2, 2, 3], "the first says of what kind all are"
    manifests = {key: n for key, n in counts.items() if key.startswith(VERSIONS)}
    assert len(manifests) == 4
    assert sorted(manifests.values())[:3] == [3, 3, 3], "checked, for its users, for its layout"


def test_a_damaged_move_looks_into_each_pack_once(blobs: MemoryStore, cache: Path) -> None:
    """And once more for the bases of deltas, if it leads to any."""
    with opened(blobs, cache) as store:
        pack = places(store, "m@1", "emb")[0].pack
    blobs.put(move_key(pack), b"damaged")
    asked = FaultyStore(blobs)
    home, report = Home(asked), RepairReport()
    users = UserReader(home).read()
    holdings = read_holdings(home.packs)
    asked.calls.clear()
    MoveRepair(home, Objects(asked, report), holdings, users).run()
    assert [one.key for one in report.objects] == [move_key(pack)]
    packs = {info.key for info in blobs.list(PACKS)}
    counts = Counter(key for _, key in asked.calls if key in packs)
    assert counts == dict.fromkeys(packs, 1) | {pack_key(pack): 2}, "its own says what it held"
