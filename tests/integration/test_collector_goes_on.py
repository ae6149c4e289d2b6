"""What is lost of versions that were removed keeps no collector from its work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.kit import created, equal, tensors
from tests.integration.test_collector import collect, packs, packs_of
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, NotFound, PermissionDenied
from tierstore.format.keys import LEASES, PACKS, REMOVED_LOG, layout_key, pack_key
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import new_lease
from tierstore.modelstore.home.refs import NOWHERE
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.heal import Healer
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("goes on")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """m@1 to m@4; m@1 is removed, and lost though its window has not ended."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(1, 5):
            store.save("m", tensors(number), base=None)
        store.remove("m@1")
        collect(store)
        yield store


def test_a_removed_version_that_is_lost_within_its_window_stops_nothing(
    store: Store, blobs: MemoryStore
) -> None:
    (own,) = packs_of(store, "m@2") - packs_of(store, "m@3")
    blobs.delete([pack_key(pack) for pack in packs_of(store, "m@3") - packs_of(store, "m@4")])
    store.remove("m@3")
    store.remove("m@2")
    report = collect(store, window_s=None)
    assert own in packs(blobs), "what can be undeleted stays"
    assert {one.state for one in report.packs} == {"live", "window"}
    with pytest.raises(NotFound, match="too late"):
        store.undelete("m@3")
    store.undelete("m@2")
    equal(store.load("m@2").load(), tensors(2))


def test_a_damaged_layout_is_told_with_its_version(store: Store, blobs: MemoryStore) -> None:
    key = layout_key(store.resolve("m@3").digest)
    blobs.put(key, bytes(blobs.get(key))[:-1])
    with pytest.raises(Damaged, match=rf"m@3 .*{key}.*'tierstore repair'"):
        collect(store)
    assert store.repair().is_whole
    collect(store)


def test_a_report_goes_on_where_a_removed_version_cannot_be_looked_at(
    store: Store, blobs: MemoryStore
) -> None:
    digest = store.resolve("m@2").digest
    store.remove("m@2")
    blobs.delete([layout_key(digest)])

    def refuse(op: str, key: str, n: int) -> Fault:
        is_read = op.startswith("get") and key.startswith(PACKS)
        return PermissionDenied("not for you") if is_read else None

    home = Home(FaultyStore(blobs, refuse))
    report = Collector(home).run(dry_run=True)
    assert [why.partition(" ")[0] for why in report.lacking] == ["m@2"]
    before = packs(blobs)
    with pytest.raises(PermissionDenied):
        Collector(home).run(grace_s=0)
    assert packs(blobs) == before
    store.undelete("m@2")
    equal(store.load("m@2").load(), tensors(2))


def test_what_is_in_force_and_lost_ends_the_run(store: Store, blobs: MemoryStore) -> None:
    store.remove("m@2")
    blobs.delete([pack_key(pack) for pack in packs_of(store, "m@3") - packs_of(store, "m@4")])
    before = packs(blobs)
    with pytest.raises(Damaged, match=r"m@3 .* has lost chunks"):
        collect(store)
    assert packs(blobs) == before


def test_a_reader_of_what_is_gone_stops_nothing(store: Store, blobs: MemoryStore) -> None:
    """Its lease came too late; while the reader lives it is renewed without end."""
    lease = new_lease("reader")
    lease.versions.append(store.resolve("m@3").digest.hex)
    store.remove("m@3")
    collect(store)
    blobs.put(LEASES + lease.id, seal_body(Kind.LEASE, lease))
    store.remove("m@2")
    before = packs(blobs)
    collect(store)
    assert len(before - packs(blobs)) == 1


def test_removals_are_read_again_before_a_run_ends(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody undeletes what is lost, finds that out, and removes it again meanwhile."""
    store.remove("m@2")
    assert collect(store).freed
    log = store._parts.home.log("m", REMOVED_LOG)
    log.append("undelete", lambda last: NOWHERE, versions=[2])
    heal, left = Healer.heal, ["forget"]

    def healing(self: Healer) -> int:
        try:
            return heal(self)
        except Damaged:
            if left:
                left.clear()
                log.append("forget", lambda last: NOWHERE, versions=[2])
            raise

    monkeypatch.setattr(Healer, "heal", healing)
    store.remove("m@3")
    assert collect(store).freed
    assert not left, "it was in force, and lost, when the run began"


def test_what_was_undeleted_and_lost_can_be_removed_again(store: Store) -> None:
    """Whoever undeleted it was killed before it looked: nobody was promised anything."""
    store.remove("m@2")
    assert collect(store).freed
    log = store._parts.home.log("m", REMOVED_LOG)
    log.append("undelete", lambda last: NOWHERE, versions=[2])
    with pytest.raises(Damaged, match=r"m@2 .* has lost chunks.*'tierstore rm' removes it"):
        collect(store)
    store.remove("m@2", "m@3")
    assert collect(store).freed
