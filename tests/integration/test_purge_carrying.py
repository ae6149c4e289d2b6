"""What a run of the collector does for purge orders (SPEC.md 10.3)."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.integration.kit import created, equal, opened
from tests.integration.test_collector_schedules import copied
from tierstore import Dense, Rows
from tierstore.admin.purges import purges_of
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, NotFound
from tierstore.format.condemned import parse_segment
from tierstore.format.keys import (
    CONDEMNED,
    GC,
    INDEX,
    LAYOUTS,
    LEASES,
    NOTICE,
    PACKS,
    PURGE_PARTS,
    PURGED,
    PURGES,
    SWEEPS,
    VERSIONS,
    pack_key,
    version_key,
)
from tierstore.format.purge import PurgedPack, PurgeOrder
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.format.tiers import PINS, MoverLease
from tierstore.ids import Digest
from tierstore.modelstore.home.footers import list_packs, read_chunks
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.names import removed
from tierstore.modelstore.names.removalprotocol import purge_lost
from tierstore.modelstore.patches.fold import fold_version
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.holdings import Holdings, read_holdings
from tierstore.modelstore.reclaim.purge import carrying, orders, purging
from tierstore.modelstore.reclaim.purge.carrying import Carrying
from tierstore.modelstore.reclaim.purge.content import FoundContent
from tierstore.modelstore.reclaim.purge.frames import Frames
from tierstore.modelstore.reclaim.purge.orders import Orders
from tierstore.modelstore.reclaim.purge.purging import Purges
from tierstore.modelstore.reclaim.purge.receipt import PurgeReceipt
from tierstore.modelstore.reclaim.removal import Removing
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.testing.faulty import Crashed, FaultyStore
from tierstore.tiers.durable.tiers import DurableTiers

SHARED = np.random.default_rng(99).standard_normal((300, 1000), np.float32)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((300, 1000), np.float32)


def content(number: int) -> dict[str, np.ndarray]:
    return {"own": noise(number), "shared": SHARED}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """A store with m@1 to m@3, which share a tensor."""
    blobs = MemoryStore("world")
    with created(blobs, tmp_path_factory.mktemp("world")) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(1, 4):
            store.save("m", content(number), base=None)
    return blobs


@pytest.fixture
def blobs(world: MemoryStore) -> MemoryStore:
    return copied(world)


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with opened(blobs, cache) as store:
        yield store


def give(store: Store, number: int, model: str = "m") -> PurgeOrder:
    """Give an order, and purge the version."""
    order = PurgeOrder(
        id=uuid.uuid4().hex,
        time_us=time.time_ns() // 1000,
        who="me",
        model=model,
        version=number,
        manifest=store.resolve(f"{model}@{number}").digest.hex,
    )
    Orders(store._parts.home.blobs).put(order)
    purge_lost(store._parts.home, model, number, "request 7")
    return order


def carrying_of(store: Store, *orders: PurgeOrder) -> Carrying:
    home = store._parts.home
    names = [one.id for one in orders]
    parts = store._parts
    open_alone = store._parts.opener.open_alone
    return Carrying(home, Orders(home.blobs), names, Frames(home), True, parts.rebasing, open_alone)


def carry(store: Store, *orders: PurgeOrder, passes: int = 3) -> list[PurgeOrder]:
    home = store._parts.home
    known = Orders(home.blobs)
    for _ in range(passes):
        Collector(home).run(errand=carrying_of(store, *orders))
    return [known.get(one.id) for one in orders]


def damaged(blobs: MemoryStore, key: str) -> None:
    data = bytearray(blobs.get(key))
    data[-1] ^= 1
    blobs.put(key, bytes(data))


def packs_with(store: Store, digests: set[bytes]) -> set[bytes]:
    home = store._parts.home
    found = set()
    for info in list_packs(home.packs).packs:
        table = read_chunks(home.packs, info.key, info.size)
        if not digests.isdisjoint(table.digests):
            found.add(bytes.fromhex(info.key.rpartition("/")[2]))
    return found


def chunks(store: Store, ref: str) -> set[bytes]:
    home = store._parts.home
    return set(home.manifest_chunks(store.resolve(ref).digest).digests)


def test_what_nothing_needs_is_gone_in_one_run(store: Store, blobs: MemoryStore) -> None:
    own = chunks(store, "m@1") - chunks(store, "m@2")
    digest = store.resolve("m@1").digest.hex
    [order] = carry(store, give(store, 1), passes=1)
    assert packs_with(store, own) == set()
    assert not [info.key for info in blobs.list() if digest in info.key]
    assert order.done
    assert order.manifests_left == {}
    assert [one.gone for one in order.packs] == [True]
    assert order.shared_chunks == 2
    assert {key.partition("/")[0] for key in order.objects} == {"layouts", "versions"}
    for number in (2, 3):
        equal(store.load(f"m@{number}").load(), content(number))


def test_several_orders_go_in_one_run(store: Store) -> None:
    own = (chunks(store, "m@1") | chunks(store, "m@2")) - chunks(store, "m@3")
    orders = carry(store, give(store, 1), give(store, 2), passes=1)
    assert [one.done for one in orders] == [True, True]
    assert packs_with(store, own) == set()
    equal(store.load("m@3").load(), content(3))


def test_a_pack_that_nobody_can_look_into_is_left(store: Store, blobs: MemoryStore) -> None:
    """However often the purge is gone on with, and whoever does."""
    home, digest = store._parts.home, store.resolve("m@1").digest
    [pack] = home.layout(digest, home.manifest(digest)).pack_ids
    data = bytearray(blobs.get(pack_key(bytes(pack))))
    data[-8:] = bytes(8)
    blobs.put(pack_key(bytes(pack)), bytes(data))
    order = give(store, 1)
    for _ in range(2):
        [after] = carry(store, order, passes=2)
        assert (after.done, after.unread) == (False, 0)  # index segments name all that it holds
        assert [one.gone for one in after.packs] == [False]


def test_a_pack_that_was_noted_is_not_gone_before_it_was_looked_into(
    store: Store, blobs: MemoryStore
) -> None:
    order = give(store, 1)
    with WriterLease(blobs):  # it is condemned, and waits
        [order] = carry(store, order, passes=1)
        [pack] = {one.pack for one in order.packs}
        blobs.delete([info.key for info in blobs.list(INDEX)])
        damaged(blobs, pack_key(bytes.fromhex(pack)))
        [after] = carry(store, order, passes=1)
    assert (after.done, after.unread) == (False, 1)
    assert [one.gone for one in after.packs] == [False]


def test_what_is_folded_or_derived_behind_the_order_goes_as_well(store: Store) -> None:
    patch = store.patch("m@3", {"own": Dense(noise(7))})
    order = give(store, patch.number)
    home = store._parts.home
    folded = fold_version(
        home, store._parts.opener, store._parts.saving, patch, at_least=1, progress=None
    ).full
    home.blobs.delete([info.key for info in home.blobs.list(LEASES)])
    [order] = carry(store, order)
    assert order.done
    assert not [info.key for info in home.blobs.list() if folded.hex in info.key]


def test_deltas_on_what_goes_are_stored_anew(store: Store) -> None:
    near = content(1) | {"own": noise(1) + np.float32(1e-3)}
    store.save("n", near, base="m@1")
    own = chunks(store, "m@1") - chunks(store, "n@1") - chunks(store, "m@2")
    [order] = carry(store, give(store, 1))
    assert order.done
    assert packs_with(store, own) == set()
    equal(store.load("n@1").load(), near)


def test_equal_content_can_be_saved_while_it_goes(store: Store, blobs: MemoryStore) -> None:
    order = give(store, 1)
    carry(store, order, passes=1)
    version = store.save("x", content(1), base=None)
    assert version.digest.hex != order.manifest
    [order] = carry(store, order)
    assert order.done
    equal(store.load(version).load(), content(1))


def test_a_manifest_that_is_written_late_goes_as_well(store: Store, blobs: MemoryStore) -> None:
    digest = store.resolve("m@1").digest
    key = f"versions/{digest.hex}"
    data = blobs.get(key)
    order = give(store, 1)
    [order] = carry(store, order)
    assert order.done
    blobs.put(key, data)
    [order] = carry(store, order)
    assert not [info.key for info in blobs.list() if digest.hex in info.key]


def test_two_that_go_on_at_once_keep_one_receipt(store: Store) -> None:
    """Who has the right reads the order then, and writes it before the right is given back."""
    order = give(store, 1)
    home = store._parts.home
    known = Orders(home.blobs)
    late = carrying_of(store, order)
    [done] = carry(store, order)
    Collector(home).run(errand=late)
    after = known.get(order.id)
    assert after.objects == done.objects != []
    assert after.packs == done.packs
    assert after.done


def test_it_waits_for_who_needs_it_for_a_while(store: Store, blobs: MemoryStore) -> None:
    store.save("x", content(1) | {"more": noise(5)}, base=None)
    store.save("x", {"w": noise(6)}, base=None)
    store.remove("x@1")
    order = give(store, 1)
    [order] = carry(store, order)
    assert not order.done
    assert any("x@1 was removed" in why for why in order.waits)
    assert Orders(blobs).content(order.id)


# whole purges


@pytest.fixture
def purges(store: Store) -> Purges:
    return purges_of(store)


def test_a_purge_is_one_order_a_version(store: Store, purges: Purges) -> None:
    own = (chunks(store, "m@1") | chunks(store, "m@2")) - chunks(store, "m@3")
    orders = purges.begin(["m@1", "m@2"], force=False, message="request 7")
    assert [(one.version, one.is_done, one.message) for one in orders] == [
        ("m@1", True, "request 7"),
        ("m@2", True, "request 7"),
    ]
    assert packs_with(store, own) == set()
    with pytest.raises(NotFound, match=r"m@1 was purged .* 'request 7', and cannot be"):
        store.load("m@1")
    [again] = purges.begin(["m@1"], force=False, message=None)
    assert (again.id, again.tiers) == (orders[0].id, orders[0].tiers)
    assert purges.run() == []


def test_what_came_back_with_a_tier_and_cannot_be_looked_at_is_not_done(
    store: Store, blobs: MemoryStore, purges: Purges
) -> None:
    own = chunks(store, "m@1") - chunks(store, "m@2")
    before = {info.key: blobs.get(info.key) for info in blobs.list(PACKS)}
    [done] = purges.begin(["m@1"], force=False, message=None)
    assert done.is_complete
    for key, data in before.items():  # a tier as it was before
        blobs.put(key, data)
    lost = version_key(store.resolve("m@3").digest)
    manifest = blobs.get(lost)
    blobs.delete([lost])
    [found] = purges.run()
    assert not found.is_complete
    assert "m@3" in found.waits[0]
    assert packs_with(store, own)
    blobs.put(lost, manifest)
    assert purges.run() == []
    assert packs_with(store, own) == set()


def test_what_is_needed_is_not_purged_and_leaves_no_order(store: Store, purges: Purges) -> None:
    store.alias("m", "prod", "m@2")
    with pytest.raises(Conflict, match="m@2 is needed by alias prod"):
        purges.begin(["m@1", "m@2"], force=False, message=None)
    assert purges.all() == []
    assert [one.number for one in store.versions("m")] == [3, 2, 1]


def test_what_is_removed_can_be_purged(store: Store, purges: Purges) -> None:
    own = chunks(store, "m@1") - chunks(store, "m@2")
    store.remove("m@1")
    [order] = purges.begin(["m@1"], force=False, message=None)
    assert order.is_done
    assert packs_with(store, own) == set()


def test_wherever_a_purge_ends_it_is_gone_on_with(world: MemoryStore, tmp_path: Path) -> None:
    """By whoever goes on with all purges, who does not know of this one."""
    at, ended = 0, False
    while not ended:
        blobs = copied(world)
        faulty = FaultyStore(blobs, crash_after=at)
        try:
            with opened(faulty, tmp_path / f"a{at}") as store:
                purges_of(store).begin(["m@1"], force=False, message=None)
                ended = True
        except Crashed:
            pass
        at += 1
        blobs.delete([info.key for info in [*blobs.list(LEASES), *blobs.list(SWEEPS)]])
        with opened(blobs, tmp_path / f"b{at}") as store:
            is_purged = "m@1" not in {str(one) for one in store.versions("m")}
            purges_of(store).run()
            receipts = purges_of(store).all()
            assert all("is not purged" in one.waits[-1] for one in receipts if not is_purged)
            if is_purged:
                [order] = Orders(blobs).all()
                assert order.done
                left = [info.key for info in blobs.list() if order.manifest in info.key]
                assert not left
            equal(store.load("m@2").load(), content(2))


def test_a_damaged_segment_of_manifests_is_made_anew(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """Or a name could come back that somebody is about to delete."""
    digest = store.resolve("m@1").digest
    purges_of(store).begin(["m@1"], force=False, message=None)
    [key] = [
        info.key
        for info in blobs.list(CONDEMNED)
        if parse_segment(blobs.get(info.key), info.key).manifests
    ]
    damaged(blobs, key)
    with opened(blobs, tmp_path / "repair") as other:
        [one] = other.repair().objects
        assert (one.key, one.outcome) == (key, "repaired")
        assert "1 manifest of purges" in one.done
        assert other._parts.home.condemned.every().manifests == {digest.raw}
        assert other.save("x", content(1), base=None).digest != digest


def test_damaged_records_of_a_purge(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    [receipt] = purges_of(store).begin(["m@1"], force=False, message=None)
    damaged(blobs, f"purged/{receipt.id}")
    [ack] = [info.key for info in blobs.list("acks/")]
    damaged(blobs, ack)
    with opened(blobs, tmp_path / "repair") as other:
        assert {one.key: one.outcome for one in other.repair().objects} == {
            f"purged/{receipt.id}": "lost",
            ack: "repaired",
        }
        [after] = purges_of(other).run()
    assert not after.is_done  # nobody knows any more what else to look for
    assert any("was damaged, and " in why for why in after.waits), after.waits
    damaged(blobs, f"purges/{receipt.id}")
    with opened(blobs, tmp_path / "again") as other:
        [one] = other.repair().objects
        assert (one.key, one.outcome) == (f"purges/{receipt.id}", "lost")
        [again] = purges_of(other).all()
        assert (again.id, again.version) == (receipt.id, "m@1")


@pytest.mark.parametrize("ended", [True, False])
def test_a_damaged_entry_takes_no_purge_back(
    store: Store, blobs: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Nor does a day that passes then lose the receipt; also where nobody has gone on with it."""
    if not ended:
        monkeypatch.setattr(Purges, "_go_on", lambda self, names: "it was killed")
    [receipt] = purges_of(store).begin(["m@1"], force=False, message="request 7")
    monkeypatch.undo()
    assert receipt.is_done == ended
    [*_, last] = sorted(info.key for info in blobs.list("refs/m/removed/000000/"))
    damaged(blobs, last)
    with opened(blobs, tmp_path / "repair") as other:
        [one] = other.repair().objects
        assert one.key == last
        assert "m@1 stays purged" in one.done
        monkeypatch.setattr(purging, "_DROPPED_S", 0.0)
        purges_of(other).run()
        assert purges_of(other).receipt("m@1").is_done
        with pytest.raises(NotFound, match="m@1 was purged"):
            other.load("m@1")
        equal(other.load("m@2").load(), content(2))


def test_what_others_say_of_a_pack_may_not_be_all(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """Of equal chunks in two packs an index that was made anew names one."""
    first, second, third = ({name: noise(at)} for at, name in enumerate("abc", 21))
    store.save("one", first | second, base=None)
    store.save("keep", first, base=None)
    digest = store.resolve("one@1").digest
    [pack] = store._parts.home.layout(digest, store._parts.home.manifest(digest)).pack_ids
    blobs.delete([info.key for info in blobs.list(INDEX)])
    with opened(blobs, tmp_path / "other") as other:
        other.save("two", second | third, base=None)
        other.save("two", content(1), base=None)
        other.reclaim.rebuild_index()
    damaged(blobs, pack_key(bytes(pack)))
    purges_of(store).begin(["one@1", "two@1"], force=True, message=None)
    with opened(blobs, tmp_path / "next") as other:  # no layout of it is left
        for receipt in purges_of(other).run():
            assert (receipt.is_done, receipt.unread_packs) == (False, 1)


def test_a_purge_whose_order_is_lost_is_gone_on_with(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = chunks(store, "m@1") - chunks(store, "m@2")
    monkeypatch.setattr(Purges, "_go_on", lambda self, names: "it was killed")
    [receipt] = purges_of(store).begin(["m@1"], force=False, message="request 7")
    monkeypatch.undo()
    damaged(blobs, f"purges/{receipt.id}")
    [after] = purges_of(store).run()
    assert (after.version, after.message, after.is_done) == ("m@1", "request 7", True)
    assert packs_with(store, own) == set()


def test_chunks_of_a_damaged_manifest_are_those_of_its_layout(
    store: Store, blobs: MemoryStore
) -> None:
    own = chunks(store, "m@1") - chunks(store, "m@2")
    digest = store.resolve("m@1").digest
    damaged(blobs, f"versions/{digest.hex}")
    [order] = carry(store, give(store, 1))
    assert order.done
    assert packs_with(store, own) == set()
    assert order.chunks == 4


def test_of_a_manifest_that_nobody_can_read_nothing_is_deleted(
    store: Store, blobs: MemoryStore
) -> None:
    digest = store.resolve("m@1").digest
    data = blobs.get(f"versions/{digest.hex}")
    damaged(blobs, f"versions/{digest.hex}")
    layout = blobs.get(f"layouts/{digest.hex}")
    damaged(blobs, f"layouts/{digest.hex}")
    order = give(store, 1)
    [after] = carry(store, order)
    assert not after.done
    assert any(digest.hex in why and "nor its layout" in why for why in after.waits)
    assert blobs.present([f"versions/{digest.hex}", f"layouts/{digest.hex}"])
    blobs.put(f"versions/{digest.hex}", data)
    blobs.put(f"layouts/{digest.hex}", layout)
    [after] = carry(store, order)
    assert after.done


def test_what_a_collection_deletes_in_between_is_in_the_receipt(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a version is purged its packs have no window, whoever collects."""
    monkeypatch.setattr(Purges, "_go_on", lambda self, names: "it was killed")
    store.save("n", {"own": noise(7)}, base=None)
    purges_of(store).begin(["n@1"], force=True, message=None)
    monkeypatch.undo()
    before = {info.key: info.size for info in blobs.list(PACKS)}
    Collector(store._parts.home).run()
    [(_, size)] = before.items() - {info.key: info.size for info in blobs.list(PACKS)}.items()
    [receipt] = purges_of(store).run()
    assert receipt.is_done
    [home] = receipt.tiers
    assert (home.packs, home.bytes, home.left_packs) == (1, size, 0)


def test_a_pack_without_purged_frames_is_not_said_to_be_deleted(store: Store) -> None:
    """As somebody has saved the content again, and reuses what was left of it."""
    [pack] = packs_with(store, chunks(store, "m@2") - chunks(store, "m@1"))
    order = give(store, 1)
    there = PurgedPack(pack=bytes(pack).hex(), tier="home", bytes=9)
    Orders(store._parts.home.blobs).put(msgspec.structs.replace(order, packs=[there]))
    [after] = carry(store, order)
    assert after.done
    assert there.pack not in {one.pack for one in after.packs}


def test_a_purge_is_not_the_collection_that_is_due(store: Store, purges: Purges) -> None:
    """Or agents would collect nothing else, nor repack, for as long as purges are looked at."""
    assert purges.begin(["m@1"], force=False, message=None)[0].is_done
    assert store.reclaim.last() is None
    store.reclaim.run()
    before = store.reclaim.last()
    assert before is not None
    purges.run()
    assert store.reclaim.last() == before


def test_an_agent_that_is_to_end_deletes_nothing_more(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = give(store, 1)
    stop = threading.Event()
    begin = Carrying.begin

    def asked_to_end(self: Carrying) -> None:
        stop.set()
        begin(self)

    monkeypatch.setattr(Carrying, "begin", asked_to_end)
    monkeypatch.setattr(purging, "_AGAIN_S", (0.0,))
    before = {info.key for info in blobs.list(PACKS)}
    purges_of(store).keep_up(stop)
    assert stop.is_set()
    assert before <= {info.key for info in blobs.list(PACKS)}
    monkeypatch.undo()
    [receipt] = purges_of(store).run()
    assert (receipt.id, receipt.is_done) == (order.id, True)


def costs(store: Store, monkeypatch: pytest.MonkeyPatch, *refs: str) -> dict[str, int]:
    """Purge versions; return how often all tiers, frames and logs of variants were gone over."""
    found: dict[str, int] = {"lists": 0, "frames": 0, "variants": 0}

    def counted(holder: object, attribute: str, what: str) -> None:
        real = getattr(holder, attribute)

        def count(*arguments: object) -> object:
            found[what] += 1
            return real(*arguments)

        monkeypatch.setattr(holder, attribute, count)

    with monkeypatch.context() as monkeypatch:
        counted(carrying, "read_holdings", "lists")
        counted(Frames, "every", "frames")
        counted(type(store._parts.home), "variants", "variants")
        assert all(one.is_done for one in purges_of(store).begin(refs, force=True, message=None))
    return found


def test_many_orders_cost_no_more_passes_than_one(
    world: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for refs in (["m@1"], ["m@1", "m@2", "m@3"]):
        with opened(copied(world), tmp_path / str(len(refs))) as store:
            found.append(costs(store, monkeypatch, *refs))
    assert found[0] == found[1]
    assert min(found[0].values()) > 0


def test_orders_with_more_chunks_than_memory_is_for_go_one_after_the_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (chunks(store, "m@1") | chunks(store, "m@2")) - chunks(store, "m@3")
    monkeypatch.setattr(orders, "_CHUNKS_AT_ONCE", 4)
    passes = costs(store, monkeypatch, "m@1", "m@2")["frames"]
    assert packs_with(store, own) == set()
    monkeypatch.undo()
    assert costs(store, monkeypatch, "m@3")["frames"] < passes


def test_what_was_looked_at_and_is_as_it_was_is_not_written_again(
    store: Store, blobs: MemoryStore
) -> None:
    [order] = carry(store, give(store, 1), passes=1)
    before = blobs.info(PURGED + order.id).mtime
    carry(store, order, passes=1)
    assert blobs.info(PURGED + order.id).mtime == before


# races


def test_an_order_is_there_with_its_content_before_its_version_is_purged(
    store: Store, purges: Purges, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any collection may delete its packs behind that, and they would be in no receipt."""
    real, before = Removing.purge, list[tuple[int, int, bool]]()

    def looked(removing: Removing, versions: Iterable[Version], *, force: bool, note: str) -> None:
        known = Orders(blobs)
        found = [(one, known.content(one.id)) for one in known.all()]
        before.extend((one.version, len(one.packs), own is not None) for one, own in found)
        real(removing, versions, force=force, note=note)

    monkeypatch.setattr(Removing, "purge", looked)
    purges.begin(["m@1"], force=False, message=None)
    assert before == [(1, 1, True)]


def test_who_gives_an_order_and_sleeps_takes_nothing_back(
    store: Store, blobs: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one purges the version meanwhile, and carries out both orders."""
    put = blobs.put
    carried: list[bytes] = []

    def slow(key: str, data: bytes) -> bool:
        is_own = MemoryStore.put_if_absent(blobs, key, data)
        if key.startswith(PURGES) and not carried:
            monkeypatch.undo()
            with opened(blobs, tmp_path / "other") as other:
                purges_of(other).begin(["m@1"], force=False, message=None)
                purges_of(other).run()
            name = key.removeprefix(PURGES)
            carried.extend(bytes(blobs.get(prefix + name)) for prefix in (PURGES, PURGED))
        return is_own

    monkeypatch.setattr(blobs, "put_if_absent", slow)
    monkeypatch.setattr(blobs, "put", lambda key, data: (put(key, data), slow(key, data)))
    [given] = purges_of(store)._give([store.resolve("m@1")], "request 7").values()
    now = [bytes(blobs.get(prefix + given.id)) for prefix in (PURGES, PURGED)]
    assert now == carried
    assert Orders(blobs).get(given.id).done


def test_an_order_that_was_restored_by_somebody_else_stays(store: Store) -> None:
    """Two find at once that it is lost, and the slower one is told by the other's."""
    order = give(store, 1)
    [done] = carry(store, order, passes=1)
    known = Orders(store._parts.home.blobs)
    known.restore(order)
    assert known.get(order.id) == done


def test_who_has_lost_the_right_writes_over_no_order(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, real = give(store, 1), read_holdings

    def slow(packs: DurableTiers) -> Holdings:
        """Sleep as a run looks what is left; another one takes over, and goes on with it."""
        monkeypatch.undo()
        blobs.delete([info.key for info in blobs.list(SWEEPS)])
        blobs.put(f"{SWEEPS}{99:09d}", b"another one's")
        after.append(Orders(blobs).get(order.id))
        return real(packs)

    after: list[PurgeOrder] = []
    monkeypatch.setattr(carrying, "read_holdings", slow)
    with pytest.raises(Conflict, match="taken over"):
        carry(store, order, passes=1)
    assert [Orders(blobs).get(order.id)] == after


def unfinished(blobs: MemoryStore, cache: Path) -> set[bytes]:
    """Leave what a save leaves that ended before its entry; return its chunks."""
    beside = copied(blobs)
    with opened(beside, cache) as other:
        version = other.save("x", {"w": noise(7)}, base=None)
        digests = set(other._parts.home.manifest_chunks(version.digest).digests)
    for prefix in (PACKS, VERSIONS, LAYOUTS):
        for info in beside.list(prefix):
            blobs.put_if_absent(info.key, beside.get(info.key))
    return digests


def end_collection(blobs: MemoryStore) -> None:
    """Let the right of whoever collects be over, as it is a minute after it was last renewed."""
    for info in list(blobs.list(SWEEPS)):
        held = unseal_body(Kind.MOVER, blobs.get(info.key), MoverLease, info.key)
        blobs.put(info.key, seal_body(Kind.MOVER, msgspec.structs.replace(held, done=True)))


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_sleeper_writes_over_is_put_together_again(
    store: Store,
    blobs: MemoryStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    """It had the right as it looked; another one finds more meanwhile, ends, and is answered."""
    order, put = give(store, 1), blobs.put
    said: list[PurgeReceipt] = []

    def slow(key: str, data: bytes) -> None:
        if key == PURGED + order.id:
            monkeypatch.undo()
            said.append(meanwhile())
            put(key, data)
            if killed:
                raise KeyboardInterrupt
        put(key, data)

    def meanwhile() -> PurgeReceipt:
        end_collection(blobs)
        more.update(unfinished(blobs, tmp_path / "x"))
        with opened(blobs, tmp_path / "other") as other:
            purges_of(other).run()
            return purges_of(other).receipt("m@1")

    more = set[bytes]()
    monkeypatch.setattr(blobs, "put", slow)
    with pytest.raises(KeyboardInterrupt if killed else Conflict):
        carry(store, order, passes=1)
    [before] = said
    assert before.is_complete
    assert before.deleted_objects
    with opened(blobs, tmp_path / "other") as other:
        now = purges_of(other).receipt("m@1")
        # the order says that all was answered that there was, and was not written over
        assert now.is_complete == killed
        assert killed or "a process that slept" in now.waits[-1]
        purges_of(other).run()
        after = purges_of(other).receipt("m@1")
    assert after.is_complete
    assert (after.chunks, after.tiers) == (before.chunks, before.tiers)
    assert after.deleted_objects == before.deleted_objects
    content = Orders(blobs).content(order.id)
    assert content is not None
    assert more <= FoundContent.read(content).gone


def test_what_runs_rewrote_is_counted_once_each(store: Store, blobs: MemoryStore) -> None:
    """Whoever wrote the order last, and also by one who knows no parts."""
    [order] = carry(store, give(store, 1), passes=1)
    names = Orders(blobs).part_names()[order.id]
    [part] = [one for one in Orders(blobs).parts(order.id, names).values() if one.rewritten_bytes]
    assert order.rewritten_bytes == part.rewritten_bytes > 0
    stale = msgspec.structs.replace(order, rewritten_bytes=0, objects=[], packs=[])
    for parts, counted in (([], 0), (None, 0), (None, part.rewritten_bytes)):
        Orders(blobs).put(
            msgspec.structs.replace(stale, parts=parts, rewritten_bytes=counted, done=False)
        )
        [after] = carry(store, order, passes=1)
        assert after.rewritten_bytes == part.rewritten_bytes
        assert after.objects == order.objects != []
        assert after.packs == order.packs != []


def test_a_damaged_part_of_what_runs_found(store: Store, blobs: MemoryStore) -> None:
    """What the order counts is not lost with it; else the purge is not done before a repair."""
    [order] = carry(store, give(store, 1), passes=1)
    keys = [info.key for info in blobs.list(PURGE_PARTS)]
    first, last = keys[0], keys[-1]
    damaged(blobs, first)
    assert [one.key for one in store.check().findings if one.severity == "damage"] == [first]
    found = {one.key: one.outcome for one in store.repair().objects}
    assert found == {first: "repaired"}
    Orders(blobs).put(msgspec.structs.replace(order, parts=[]))
    damaged(blobs, last)
    [after] = purges_of(store).run()
    assert not after.is_done
    assert any("1 part of what was found of it cannot be read" in why for why in after.waits)
    found = {one.key: one.outcome for one in store.repair().objects}
    assert found == {last: "lost"}
    [after] = purges_of(store).run()
    assert after.is_done


def test_no_two_runs_count_alike(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    """Who writes over what another one has found gives no number that nodes have acknowledged."""
    order = give(store, 1)
    beside = copied(blobs)
    [one] = carry(store, order, passes=1)
    with opened(beside, tmp_path / "beside") as other:
        [another] = carry(other, order, passes=1)
    assert one.sweep != another.sweep


def test_what_was_written_over_is_dropped_and_acknowledged_again(
    store: Store, blobs: MemoryStore
) -> None:
    """A process that slept writes what it knew: no node has acknowledged just that."""
    purges = purges_of(store)
    [receipt] = purges.begin(["m@1"], force=False, message=None)
    assert receipt.is_complete
    order = Orders(blobs).get(receipt.id)
    content = Orders(blobs).content(receipt.id)
    assert content is not None
    Orders(blobs).put_content(msgspec.structs.replace(content, sweep=1))
    Orders(blobs).put(msgspec.structs.replace(order, sweep=1))
    assert purges.receipt(receipt.id).outstanding == [store.node]
    purges.run()
    assert purges.receipt(receipt.id).is_complete


@pytest.mark.parametrize(("seed", "left"), [(8, []), (1, ["beside@1"])])
def test_what_is_saved_beside_a_purge_can_be_named_and_patched(
    blobs: MemoryStore, cache: Path, seed: int, left: list[str]
) -> None:
    """It began and ended between two looks of the purge; also where it has the purged content."""
    done = list[str]()

    def plan(op: str, key: str, n: int) -> None:
        if (op, key) == ("list", VERSIONS) and not done and list(blobs.list(SWEEPS)):
            done.append(key)
            with opened(blobs, cache / "other") as other:
                other.save("beside", content(seed), base=None)

    with opened(FaultyStore(blobs, plan), cache / "purging") as purging_store:
        [receipt] = purges_of(purging_store).begin(["m@1"], force=False, message=None)
    assert done
    assert (receipt.is_done, receipt.chunks) == (True, 4)
    assert [*receipt.manifests_left.values()] == left
    with opened(blobs, cache / "after") as store:
        assert str(store.alias("beside", "prod", "beside@1").version) == "beside@1"
        assert str(store.patch("beside@1", {"shared": Dense(noise(77))})) == "beside@2"


def test_what_is_saved_behind_the_last_look_of_a_purge_gets_another_name(
    blobs: MemoryStore, cache: Path
) -> None:
    """It has just the purged content, and ends before the list is there that condemns that."""
    done = list[str]()

    def plan(op: str, key: str, n: int) -> None:
        if op == "put_if_absent" and key.startswith(GC) and not done:
            done.append(key)
            with opened(blobs, cache / "other") as other:
                other.save("beside", content(1), base=None)

    with opened(FaultyStore(blobs, plan), cache / "purging") as purging_store:
        [receipt] = purges_of(purging_store).begin(["m@1"], force=False, message=None)
    assert done
    assert (receipt.is_done, receipt.manifests_left) == (True, {})
    assert not [one for one in blobs.list(GC) if one.key.startswith(NOTICE)]
    with opened(blobs, cache / "after") as store:
        assert [one.number for one in store.versions("beside")] == [2]
        assert str(store.alias("beside", "prod", "beside@2").version) == "beside@2"
        assert str(store.patch("beside@2", {"shared": Dense(noise(77))})) == "beside@3"


def test_the_pin_of_a_rollout_that_died_keeps_nothing_of_a_purged_version(
    blobs: MemoryStore, store: Store
) -> None:
    """Its name is that of an alias; a pin of the same content in force counts."""
    give(store, 1)
    digest = store.resolve("m@2").digest
    purged = Digest.from_hex(Orders(blobs).all()[0].manifest)
    Pins(blobs).hold("rollout of m@prod", [purged, digest])
    [receipt] = purges_of(store).run()
    assert (receipt.is_done, receipt.shared_chunks, receipt.manifests_left) == (True, 2, {})
    assert {one.why for one in receipt.shared} == {"m@2", "m@3"}
    assert not blobs.present([version_key(purged)])
    purges_of(store).begin(["m@2"], force=False, message=None)
    assert not list(blobs.list(PINS))


def test_a_plan_knows_versions_whatever_their_models_are_called(
    blobs: MemoryStore, cache: Path
) -> None:
    with opened(blobs, cache / "named") as store:
        for name in ("my model", "a+b"):
            store.save(name, {"own": noise(7)[:9]})
            store.save(name, {"own": noise(8)[:9]}, base=None)
            store.remove(f"{name}@1", force=True)
        for ref in ("my model@1", "a+b@1"):
            [other] = {"my model@1", "a+b@1"} - {ref}
            plan = purges_of(store).plan(ref, force=True)
            assert [one.why.partition(" was")[0] for one in plan.shared] == [other]


def test_a_window_that_ends_is_seen_by_a_store_that_stays_open(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.remove(store.patch("m@1", {"own": Rows([0], noise(7)[:1])}), force=True)
    said = purges_of(store).plan("m@1").refused
    assert said is not None
    assert "can be brought back" in said
    monkeypatch.setattr(removed, "certain_now_s", lambda blobs: time.time() + 1e9)
    assert purges_of(store).plan("m@1").refused is None
