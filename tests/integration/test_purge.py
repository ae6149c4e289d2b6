"""What is purged is gone for good, wherever it lay, and the receipt says so; nothing else is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import blake3
import msgspec
import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, created, equal, opened
from tests.integration.test_tiers import Tiered
from tests.waiting import wait_until
from tierstore import Dense, Rows
from tierstore.admin.purges import purges_of
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, NotFound, TierstoreError, UsageError
from tierstore.format.checks import Verified
from tierstore.format.keys import (
    LEASES,
    PACKS,
    PURGES,
    REMOVED_LOG,
    VERSIONS,
    fold_key,
    layout_key,
    version_key,
)
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.leases import WriterLease, new_lease
from tierstore.modelstore.home.refs import NOWHERE
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.purge import dropping, purging
from tierstore.modelstore.reclaim.purge.purging import Purges
from tierstore.modelstore.reclaim.purge.receipt import PurgeReceipt
from tierstore.modelstore.store import Store
from tierstore.serving.agent import Agent
from tierstore.store import init_store, open_store
from tierstore.testing.faulty import Crashed, FaultyStore
from tierstore.variants.derive import derive

Content = dict[str, np.ndarray]
SHARED = np.random.default_rng(99).integers(0, 256, 50_000, np.uint8)


def noise(seed: int, nbytes: int = 300_000) -> np.ndarray:
    """Bytes that no codec makes smaller: they are stored as they are, and found by a search."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def content(seed: int) -> Content:
    """A model of which ``shared`` is in all others, too."""
    return {"own": noise(seed), "big": noise(seed + 50, 3 * MIB), "shared": SHARED}


def marks(array: np.ndarray) -> list[bytes]:
    """Pieces of an array, of each of its 64 KiB one: whatever block is left has one of them."""
    data = array.tobytes()
    return [data[at : at + 32] for at in range(0, len(data) - 32, 1 << 16)]


def secrets(model: Content) -> list[bytes]:
    """What of a model is in no other."""
    return [mark for name, array in model.items() if name != "shared" for mark in marks(array)]


def found_in(data: bytes, wanted: list[bytes]) -> int:
    return sum(mark in data for mark in wanted)


def found(blobs: BlobStore, wanted: list[bytes]) -> dict[str, int]:
    """Return how many of these pieces each object has."""
    hits = {info.key: found_in(bytes(blobs.get(info.key)), wanted) for info in blobs.list()}
    return {key: count for key, count in hits.items() if count}


def found_below(folder: Path, wanted: list[bytes]) -> dict[str, int]:
    """Return how many of these pieces each file below a folder has, whatever it is called."""
    hits = {
        f"{at}/{name}": found_in(Path(at, name).read_bytes(), wanted)
        for at, _, names in os.walk(folder)
        for name in names
    }
    return {path: count for path, count in hits.items() if count}


def purges(store: Store) -> Purges:
    """Return the purges of a store, as ``Store.purges`` of users does."""
    return store._parts.once("purges", lambda: purges_of(store))


def purge(
    store: Store, *refs: object, force: bool = False, message: str | None = None
) -> PurgeReceipt:
    """Purge versions; return the receipt of the first one."""
    return purges(store).begin(map(str, refs), force=force, message=message)[0]


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("purged")


@pytest.fixture
def store(blobs: MemoryStore, tmp_path: Path) -> Iterator[Store]:
    """A store with m@1 to m@3, which share one tensor."""
    with created(blobs, tmp_path) as store:
        enable(store._parts.home, wait_s=0)
        for seed in (1, 2, 3):
            store.save("m", content(seed), base=None)
        yield store


def test_no_byte_of_it_is_left_and_everything_else_is(store: Store, blobs: MemoryStore) -> None:
    digest = store.resolve("m@1").digest
    assert found(blobs, secrets(content(1)))
    before = {info.key: info.size for info in blobs.list(PACKS)}
    receipt = purge(store, "m@1", message="request 7")
    assert found(blobs, secrets(content(1))) == {}
    for number in (2, 3):
        equal(store.load(f"m@{number}").load(), content(number))
    assert not store.check(read_data=True).damaged
    assert (receipt.is_done, receipt.left, receipt.waits, receipt.message) == (
        True, [], [], "request 7",
    )  # fmt: skip
    assert receipt.version == "m@1"
    assert (receipt.chunks, receipt.plain_bytes) == (5, 300_000 + 3 * MIB + 50_000)
    assert (receipt.shared_chunks, receipt.shared_plain_bytes) == (1, 50_000)
    assert {one.why: (one.chunks, one.plain_bytes) for one in receipt.shared} == {
        "m@2": (1, 50_000), "m@3": (1, 50_000),
    }  # fmt: skip
    gone = before.keys() - {info.key for info in blobs.list(PACKS)}
    [home] = receipt.tiers
    assert (home.name, home.packs, home.bytes) == (
        "home", len(gone), sum(before[key] for key in gone),
    )  # fmt: skip
    assert receipt.rewritten_bytes > 50_000  # what m@2 and m@3 need lay in the same pack
    assert receipt.deleted_objects == [layout_key(digest), version_key(digest)]
    assert not {info.key for info in blobs.list()} & {*receipt.deleted_objects}
    assert [one.node for one in receipt.nodes if one.acknowledged] == [store.node]
    assert receipt.is_complete
    with opened(blobs, Path("unused")) as other:
        assert purges(other).receipt(receipt.id[:6]).version == "m@1"


def test_nobody_brings_it_back(store: Store) -> None:
    purge(store, "m@1", message="why")
    for act in (store.undelete, store.load, store.resolve):
        with pytest.raises(NotFound, match=r"m@1 was purged on 20.* 'why', and cannot be brought"):
            act("m@1")
    store.remove("m@2")
    assert str(store.undelete("m")) == "m@2"  # it is the only one that can be meant
    [gone] = store.deleted("m")
    assert (str(gone.version), gone.is_purged, gone.until) == ("m@1", True, gone.removed)
    home = store._parts.home
    home.log("m", REMOVED_LOG).append("forget", lambda last: NOWHERE, "", [1])
    with pytest.raises(NotFound, match="m@1 was purged on"):  # not even when it was removed since
        store.undelete("m@1")


def test_what_was_removed_is_purged_without_its_window_and_no_other(
    store: Store, blobs: MemoryStore
) -> None:
    store.remove("m@1", "m@2")
    receipt = purge(store, "m@1")
    assert found(blobs, secrets(content(1))) == {}
    assert receipt.left == []
    assert not receipt.is_done  # what both have stays for the window of m@2, and goes with it
    assert any("m@2 was removed, and can be undeleted until" in why for why in receipt.waits)
    store.undelete("m@2")
    equal(store.load("m@2").load(), content(2))


def test_what_aliases_meant_and_removed_releases_have_keeps_nothing(
    store: Store, blobs: MemoryStore
) -> None:
    store.alias("m", "prod", "m@1")
    store.alias("m", "prod", "m@2")
    store.releases.create("both", ["m@1"])
    store.remove("both@1", force=True)
    assert purge(store, "m@1").is_done
    assert found(blobs, secrets(content(1))) == {}
    with pytest.raises(NotFound, match="m@1 was purged"):
        store.rollback("m", "prod")


def read(blobs: BlobStore, ref: str, cache: Path) -> Content:
    """Load a version in a store that is closed again: nothing is held afterwards."""
    with opened(blobs, cache) as other:
        return other.load(ref).load()


def leased(store: Store, blobs: BlobStore, ref: str) -> str:
    """Hold a version by the lease of another process."""
    lease = msgspec.structs.replace(
        new_lease("reader"),
        pid=1,
        host="elsewhere",
        who="ada@elsewhere",
        versions=[store.resolve(ref).digest.hex],
    )
    blobs.put(LEASES + lease.id, seal_body(Kind.LEASE, lease))
    return LEASES + lease.id


def test_what_is_needed_is_refused_with_the_reason(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    def refused(ref: str, says: str) -> None:
        before = {info.key for info in blobs.list(PACKS)}
        with pytest.raises(Conflict, match=says):
            purge(store, ref)
        assert before == {info.key for info in blobs.list(PACKS)}
        assert not list(blobs.list(PURGES))
        equal(read(blobs, ref, tmp_path / "read"), content(int(ref[2:])))

    refused("m@3", "m@3 is the newest version")
    store.alias("m", "prod", "m@1")
    refused("m@1", "m@1 is needed by alias prod")
    store.remove_alias("m", "prod")
    lease = leased(store, blobs, "m@1")
    refused("m@1", r"m@1 is needed by lease of ada@elsewhere")
    blobs.delete([lease])
    store.pins.add(store.resolve("m@1").digest, "m@1", ["warm"])
    refused("m@1", "m@1 is needed by pin of")
    store.pins.remove(store.resolve("m@1").digest)
    patch = store.patch("m@1", {"own": Rows([0], noise(7, 1))})
    refused("m@1", f"m@1 is needed by patch {patch}")
    store.remove(patch, force=True)
    refused("m@1", rf"m@1 is needed by patch {patch}, which is removed and can be brought back")
    with pytest.raises(UsageError, match="no version was named"):
        purge(store)
    receipts = purges(store).begin(["m@1", patch], force=False, message="")
    assert [one.version for one in receipts] == ["m@1", str(patch)]
    assert found(blobs, secrets(content(1))) == {}


def test_an_alias_that_comes_in_between_is_seen(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    def plan(op: str, key: str, n: int) -> None:
        if op == "put_if_absent" and f"/{REMOVED_LOG}/" in key and not done:
            done.append(key)
            store.alias("m", "prod", "m@1")

    done: list[str] = []
    with (
        opened(FaultyStore(blobs, plan), tmp_path / "other") as other,
        pytest.raises(Conflict, match="needed by alias prod"),
    ):
        purge(other, "m@1")
    assert done
    equal(store.load("m@prod").load(), content(1))


def test_variants_patches_and_folds_go_with_it(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    before = {info.key for info in blobs.list(PACKS)}
    with opened(blobs, tmp_path / "other") as other:
        other.save("n", {"w": weights(5), "own": noise(5)})
        made = derive(other, "n@1", {"cast": "bf16"})
        changed = noise(6)
        patch = other.patch("n@1", {"own": Dense(changed)})
        full = other.fold(patch).full
    assert found(blobs, marks(changed))
    first, second = purges(store).begin(["n@1", "n@2"], force=True, message=None)
    assert first.is_done
    assert second.is_done
    assert first.variants == [str(made)]
    assert {info.key for info in blobs.list(PACKS)} == before
    assert found(blobs, marks(changed) + marks(noise(5))) == {}
    assert version_key(full) in second.deleted_objects
    assert len(first.deleted_objects) == 2 * 2
    assert len(second.deleted_objects) == 2 * 2 + 1  # and the fold
    gone = {*first.deleted_objects, *second.deleted_objects}
    assert not {info.key for info in blobs.list()} & gone


def weights(seed: int, of: np.ndarray | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if of is None:
        return rng.standard_normal((300, 1000), np.float32)
    return of * (1 + np.float32(1e-4) * rng.standard_normal(of.shape, np.float32))


def deltas_of(version: tierstore.Version) -> int:
    assert version.stats is not None
    return version.stats.delta_bytes


def test_deltas_on_it_are_stored_without_it(store: Store, blobs: MemoryStore) -> None:
    first = weights(1)
    tuned = weights(2, first)
    store.save("n", {"w": first})
    assert deltas_of(store.save("n", {"w": tuned}, base="n@1"))
    third = weights(3, first)
    assert deltas_of(store.save("o", {"w": third}, base="n@1"))
    store.remove("o@1", force=True)
    own = {pack for ref in ("n@1", "n@2") for pack in store.placement.packs_of(
        store.resolve(ref).digest)}  # fmt: skip
    receipt = purge(store, "n@1")
    assert receipt.is_done
    there = {bytes.fromhex(info.key[-64:]) for info in blobs.list(PACKS)}
    assert not own & there  # the deltas would give it away
    equal(store.load("n@2").load(), {"w": tuned})
    store.undelete("o@1")
    equal(store.load("o@1").load(), {"w": third})
    store.close()


def test_what_unfinished_saves_and_dead_copies_left_goes_too(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    secret = secrets(content(1))

    def plan(op: str, key: str, n: int) -> TierstoreError | None:
        return Conflict("no") if key.startswith(VERSIONS) else None

    blobs.delete([info.key for info in blobs.list("index/")])  # it finds nothing that is there
    with opened(FaultyStore(blobs, plan), tmp_path / "other") as other, pytest.raises(Conflict):
        other.save("x", content(1) | {"more": noise(8)}, base=None)
    assert len(found(blobs, secret)) > 1
    assert purge(store, "m@1").is_done
    assert found(blobs, secret) == {}
    kept = [key for key in found(blobs, marks(noise(8))) if key.startswith(PACKS)]
    assert kept == []  # it lay in packs with what was purged


def test_only_packs_with_purged_chunks_go_at_once(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    def plan(op: str, key: str, n: int) -> TierstoreError | None:
        return Conflict("no") if key.startswith(VERSIONS) else None

    with opened(FaultyStore(blobs, plan), tmp_path / "other") as other, pytest.raises(Conflict):
        other.save("x", {"more": noise(8)}, base=None)
    assert purge(store, "m@1").is_done
    assert found(blobs, marks(noise(8)))  # the next save goes on from it


def test_what_others_share_stays_and_is_named(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    store.save("same", content(1), base=None)
    digest = store.resolve("same").digest
    receipt = purge(store, "m@1")
    assert receipt.is_done
    assert receipt.manifests_left == {digest.hex: "same@1"}
    assert receipt.deleted_objects == []
    assert (receipt.shared_chunks, receipt.chunks) == (5, 5)
    assert receipt.shared[0].why == "same@1"
    equal(read(blobs, "same", tmp_path / "read"), content(1))
    second = purge(store, "same@1", force=True)
    assert second.is_done
    assert second.deleted_objects == [layout_key(digest), version_key(digest)]
    assert found(blobs, secrets(content(1))) == {}


def test_a_reader_of_another_version_reads_on(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    lease = leased(store, blobs, "m@2")  # it holds the pack in which both lie
    with opened(blobs, tmp_path / "reader") as other:
        model = other.load("m@2")
        receipt = purge(store, "m@1")
        assert receipt.is_done
        assert found(blobs, secrets(content(1))) == {}
        equal(model.load(), content(2))
    blobs.delete([lease])


def test_it_waits_for_saves_that_run_and_goes_on_when_asked(
    store: Store, blobs: MemoryStore
) -> None:
    with WriterLease(blobs):
        receipt = purge(store, "m@1")
        assert not receipt.is_done
        assert [why for why in receipt.waits if "it goes once these saves have ended: " in why]
        assert {"it goes once these saves have ended: " in one.why for one in receipt.left} == {
            True
        }
        assert found(blobs, secrets(content(1)))
        assert receipt.manifests_left == {}  # its name never comes back, whoever is about to use it
    again = purge(store, "m@1")  # asked again it goes on with the same
    assert (again.id, again.is_done, again.left) == (receipt.id, True, [])
    assert found(blobs, secrets(content(1))) == {}
    assert purges(store).run() == []


def test_an_alias_that_is_not_there_purges_nothing(store: Store) -> None:
    store.remove("m@1")
    for ref in ("m@stagign", "m@release:nosuch"):
        with pytest.raises(NotFound):
            purges(store).plan(ref)
        with pytest.raises(NotFound):
            purge(store, ref)
    assert not store.deleted("m")[0].is_purged


def test_it_waits_for_what_this_process_reads(store: Store, blobs: MemoryStore) -> None:
    """Others that read it are a reason to refuse; who purges can end what it reads itself."""
    model = store.load("m@1")
    wait_until(lambda: bool(list(blobs.list(LEASES))), "the lease is there")
    receipt = purge(store, "m@1")
    assert not receipt.is_done
    assert "lease of" in receipt.waits[0]
    assert receipt.waits[0].endswith("needs it for a while")
    equal(model.load(), content(1))
    store._parts.lease.close()
    [receipt] = purges(store).run()
    assert receipt.is_done
    assert found(blobs, secrets(content(1))) == {}


def test_it_waits_for_a_mover(store: Store, blobs: MemoryStore) -> None:
    with HeldLease(blobs):  # it may be about to write what it has read
        receipt = purge(store, "m@1")
        assert not receipt.is_done
        assert "another mover is at work" in " ".join(receipt.waits)
    [receipt] = purges(store).run()
    assert receipt.is_done


def test_another_collection_is_waited_for(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tierstore.modelstore.placing.moverlease import COLLECTOR

    with HeldLease(blobs, COLLECTOR):
        receipt = purge(store, "m@1")
        assert not receipt.is_done
        assert "another garbage collection is at work" in " ".join(receipt.waits)
    with pytest.raises(NotFound, match="was purged"):
        store.load("m@1")
    assert [one.is_done for one in purges(store).run()] == [True]
    assert found(blobs, secrets(content(1))) == {}


def test_a_tier_that_is_down_is_told_and_asked_again(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path)
    store = tiered.open()
    enable(store._parts.home, wait_s=0)
    for seed in (1, 2):
        store.save("m", content(seed), base=None)
    tiered.copy("warm", "cold")
    tiered.copy("warm", "home")
    tiered.down("cold")
    receipt = purge(store, "m@1")
    assert not receipt.is_done
    by_tier = {one.name: one for one in receipt.tiers}
    assert by_tier["cold"].error
    assert "DOWN" not in str(by_tier["warm"])
    for name in ("warm", "home"):
        assert found(tiered.stores[name].inner, secrets(content(1))) == {}
        assert by_tier[name].packs
    assert found(tiered.stores["cold"].inner, secrets(content(1)))
    tiered.plans.clear()
    [receipt] = purges(store).run()
    assert receipt.is_done
    assert {one.name: one.packs for one in receipt.tiers}["cold"]
    for name in ("warm", "home", "cold"):
        assert found(tiered.stores[name].inner, secrets(content(1))) == {}
    equal(store.load("m@2").load(), content(2))
    for one in tiered.opened:
        one.close()


def test_the_same_content_can_be_saved_again_and_purged_again(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    gone = store.resolve("m@1").digest
    purge(store, "m@1")
    made = store.save("m", content(1), base=None)
    assert made.digest != gone
    equal(read(blobs, str(made), tmp_path / "read"), content(1))
    assert not store.check(read_data=True).damaged
    assert purge(store, made, force=True).is_done
    assert found(blobs, secrets(content(1))) == {}


def test_a_save_of_the_same_that_ran_meanwhile_gets_another_digest(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """Of the two one sees the other: what is published was not purged, or is not left in force."""
    purged = store.resolve("m@1").digest

    def plan(op: str, key: str, n: int) -> None:
        if op == "put_if_absent" and "refs/x/versions/" in key and not done:
            done.append(True)
            for info in list(blobs.list(LEASES)):  # it was paused for so long
                blobs.delete([info.key])
            assert purge(store, "m@1").is_done

    done: list[bool] = []
    with opened(FaultyStore(blobs, plan), tmp_path / "other") as other:
        saved = other.save("x", content(1), base=None)
    assert done
    assert saved.digest != purged
    assert [(one.number, one.digest) for one in store.versions("x")] == [(2, saved.digest)]
    Collector(store._parts.home).run(grace_s=0, window_s=0)  # nothing in force is lost
    equal(store.load("x").load(), content(1))
    assert not store.check(read_data=True).damaged


def test_a_save_that_shares_its_chunks_meanwhile_is_whole(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """It was paused for longer than its lease, between its manifest and its entry."""
    other_content = content(1) | {"new": noise(77)}

    def plan(op: str, key: str, n: int) -> None:
        if op == "put_if_absent" and "refs/x/versions/" in key and not done:
            done.append(True)
            for info in list(blobs.list(LEASES)):
                blobs.delete([info.key])
            assert purge(store, "m@1").is_done

    done: list[bool] = []
    with opened(FaultyStore(blobs, plan), tmp_path / "other") as other:
        saved = other.save("x", other_content, base=None)
        equal(other.load(saved).load(), other_content)
    assert done
    Collector(store._parts.home).run(grace_s=0, window_s=0)
    equal(store.load("x").load(), other_content)
    assert not store.check(read_data=True).damaged


def test_who_brings_back_the_same_content_is_refused(store: Store, blobs: MemoryStore) -> None:
    """x@1 has the manifest of m@1; its window is over when that is purged."""
    store.save("x", content(1), base=None)
    store.retention.set("x", window=timedelta(0))
    store.remove("x@1", force=True)
    assert purge(store, "m@1").is_done
    with pytest.raises(NotFound, match="it is too late for x@1"):
        store.undelete("x@1")


def test_two_purges_at_once(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    receipts = []

    def begin(folder: str) -> None:
        with opened(blobs, tmp_path / folder) as other:
            for _ in range(10):
                with suppress(Conflict):  # the other one has announced it, and is about to do it
                    receipts.append(purge(other, "m@1"))
                    return

    threads = [threading.Thread(target=begin, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receipts) == 2
    purges(store).run()
    assert {one.is_done for one in purges(store).all()} == {True}
    assert found(blobs, secrets(content(1))) == {}
    for number in (2, 3):
        equal(store.load(f"m@{number}").load(), content(number))


def crash_points(make: Callable[[Path], MemoryStore], tmp_path: Path) -> int:
    watched = FaultyStore(make(tmp_path / "counted"))
    with opened(watched, tmp_path / "counted-cache") as store:
        before = watched.mutations
        purge(store, "m@1")
        return watched.mutations - before


def small(folder: Path) -> MemoryStore:
    blobs = MemoryStore(str(folder))
    with created(blobs, folder) as store:
        enable(store._parts.home, wait_s=0)
        store.save("m", {"own": noise(1), "shared": SHARED}, base=None)
        store.save("m", {"own": noise(2), "shared": SHARED}, base=None)
    return blobs


def test_killed_anywhere_it_goes_on_when_it_is_asked_again(tmp_path: Path) -> None:
    """Each mutation of the storage is the last one of a process that dies there."""
    points = crash_points(small, tmp_path)
    assert points > 10
    for last in range(points):
        blobs = small(tmp_path / str(last))
        faulty = FaultyStore(blobs)
        with opened(faulty, tmp_path / f"{last}-dying") as store:
            faulty.crash_after = faulty.mutations + last
            with pytest.raises(Crashed):
                purge(store, "m@1")
            faulty.crash_after = None
        for prefix in (LEASES, "sweeps/", "movers/"):
            blobs.delete([info.key for info in blobs.list(prefix)])
        with opened(blobs, tmp_path / f"{last}-next") as store:
            equal(store.load("m@2").load(), {"own": noise(2), "shared": SHARED})
            receipt = purge(store, "m@1")
            assert receipt.is_done, (last, receipt)
            [home] = [one for one in receipt.tiers if one.name == "home"]
            assert home.packs >= 1, last
            assert version_key(store.deleted("m")[0].version.digest) in receipt.deleted_objects
            assert found(blobs, marks(noise(1))) == {}, last
            equal(store.load("m@2").load(), {"own": noise(2), "shared": SHARED})
            assert not store.check(read_data=True).damaged


def test_a_patch_behind_a_fold_keeps_what_leads_to_it(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    with opened(blobs, tmp_path / "other") as other:
        below = other.patch("m@1", {"own": Dense(noise(6))})
        other.fold(below)
        above = other.patch(below, {"own": Rows([0], noise(7, 1))})
    receipt = purge(store, below)
    assert receipt.is_done
    assert below.digest.hex in receipt.manifests_left
    changed = noise(6)
    changed[0] = noise(7, 1)[0]
    equal(read(blobs, str(above), tmp_path / "read"), content(1) | {"own": changed})
    assert f"below the patch {above}" in {one.why for one in receipt.shared}
    Collector(store._parts.home).run(grace_s=0, window_s=0)


def test_who_died_after_publishing_what_is_purged_stops_no_collection(
    store: Store, blobs: MemoryStore
) -> None:
    digest = store.resolve("m@1").digest
    assert purge(store, "m@1").is_done
    store._parts.home.log("x").append("publish", lambda last: (0, digest.hex, None))
    report = Collector(store._parts.home).run(grace_s=0, window_s=0)
    assert not report.lacking
    with pytest.raises(NotFound, match=r"x@1 was purged .* 'its content was purged while it was"):
        store.load("x@1")


# Nodes


def settled(store: Store) -> None:
    assert store._parts.hot.flush(30)


def test_the_caches_of_a_node_are_emptied_pinned_or_from_another_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = tierstore.format.tiers.TierSpec(
        name="hot", role="hot", url=str(tmp_path / "hot"), size=64 * MIB
    )
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "cache"))
    with init_store(tmp_path / "store", chunk_size=MIB, tiers=[hot]) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2):
            store.save("m", content(seed), base=None)
            store.load(f"m@{seed}").load()
            settled(store)
        secret = secrets(content(1))
        local = store._parts.hot.local
        assert local is not None
        digests = _digests(store, "m@1")
        (tmp_path / "cache" / store._parts.home.config.store_id / "files").mkdir(parents=True)
        files = tmp_path / "cache" / store._parts.home.config.store_id / "files"
        folder = files / store.resolve("m@1").digest.hex
        folder.mkdir()
        (folder / "config.json").write_bytes(secret[0])
    folders = [path for path in (tmp_path / "hot").glob("*/*") if path.is_dir()]
    [here] = [path for path in folders if len(list(path.iterdir())) > 3]
    here.rename(here.with_name("before"))  # as after a start of the machine
    (here.parent / digests[1].hex()).write_bytes(b"")  # not a chunk's place: it is left alone
    assert len(found_below(tmp_path, secret)) > 3
    with open_store(tmp_path / "store") as store:
        local = store._parts.hot.local
        assert local is not None
        with store._parts.hot_pins.holding(local, digests[:1]):  # as while somebody warms it up
            receipt = purge(store, "m@1")
        assert receipt.is_complete
        [node] = receipt.nodes
        assert node.dropped == {"hot": 4, "files": 1}
        assert found_below(tmp_path, secret) == {}
        stats = store.load("m@2").stats
        equal(store.load("m@2").load(), content(2))
        assert stats.bytes_fetched == 0


def _digests(store: Store, ref: str) -> list[bytes]:
    home = store._parts.home
    digest = store.resolve(ref).digest
    table = home.layout(digest, home.manifest(digest))
    return [place.digest for place in table if place.plain_bytes != len(SHARED)]


def test_nodes_are_outstanding_until_their_agents_have_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropping, "_LOOK_EVERY_S", 0.0)

    def node(name: str) -> tierstore.Store:
        monkeypatch.setenv("TIERSTORE_NODE", name)
        monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / f"cache-{name}"))
        config = tmp_path / f"{name}.toml"
        config.write_text(f'[hot]\nurl = "{tmp_path}/hot-{name}"\nsize = "64MiB"\n')
        monkeypatch.setenv("TIERSTORE_CONFIG", str(config))
        return open_store(tmp_path / "store")

    init_store(tmp_path / "store", chunk_size=MIB).close()
    stores = {name: node(name) for name in ("a", "b")}
    stores["a"].reclaim.enable(wait_s=0)
    for seed in (1, 2):
        stores["a"].save("m", content(seed), base=None)
    agents = {name: Agent(store, scrub_s=None) for name, store in stores.items()}
    for name, store in stores.items():
        agents[name].round()  # from then on the store knows the node
        store.load("m@1").load()
        settled(store)
        store._parts.lease.close()
    secret = secrets(content(1))
    assert found_below(tmp_path / "hot-b", secret)
    receipt = purge(stores["a"], "m@1")
    assert receipt.is_done
    assert not receipt.is_complete
    assert receipt.outstanding == ["b"]
    with pytest.raises(NotFound, match="knows no node 'c', but a, b"):
        purges(stores["a"]).say_gone("b", "c", reason="shredded")
    purges(stores["a"]).say_gone("b", reason="its disk was shredded")
    gone = purges(stores["a"]).receipt(receipt.id)
    assert gone.is_complete
    assert [one.node for one in gone.nodes if one.gone] == ["b"]
    [note] = (tmp_path / "store" / "nodes" / "b").glob("?*?????????")  # it comes back after all
    later = time.time() + 10
    os.utime(note, (later, later))
    assert purges(stores["a"]).receipt(receipt.id).outstanding == ["b"]
    assert found_below(tmp_path / "hot-a", secret) == {}
    agents["b"].round()
    after = purges(stores["a"]).receipt(receipt.id)
    assert after.outstanding == []
    assert after.is_complete
    assert {one.node: one.dropped["hot"] for one in after.nodes} == {"a": 4, "b": 4}
    assert found_below(tmp_path, secret) == {}
    [place] = [one for one in after.nodes if one.node == "b"]
    agents["b"].round()  # what it drops again is nothing, and it says nothing new
    again = [one for one in purges(stores["a"]).receipt(receipt.id).nodes if one.node == "b"]
    assert again == [replace(place, seen=again[0].seen)]
    for store in stores.values():
        store.close()


def test_a_node_that_uses_other_caches_now_is_not_waited_for_with_its_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there all the time; nobody will ever speak for its old disk."""
    monkeypatch.setenv("TIERSTORE_NODE", "n")
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "old"))
    with init_store(tmp_path / "store", chunk_size=MIB) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2):
            store.save("m", {"own": noise(seed)}, base=None)
        purges(store).keep_up()
    [old] = (tmp_path / "store" / "nodes" / "n").iterdir()
    before = time.time() - 3 * 3600
    os.utime(old, (before, before))
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "new"))
    with open_store(tmp_path / "store") as store:
        purges(store).keep_up()
        receipt = purge(store, "m@1")
        assert (receipt.is_done, receipt.outstanding) == (True, ["n"])
        purges(store).say_gone("n", reason="shredded")
        [gone] = (tmp_path / "store" / "nodes" / "n").glob("gone")
        for note in (tmp_path / "store" / "nodes" / "n").iterdir():
            if note not in (gone, old):  # as its agent does every hour
                later = time.time() + 10
                os.utime(note, (later, later))
        after = purges(store).receipt(receipt.id)
        assert after.is_complete
        assert [one.place for one in after.nodes if one.gone] == [old.name]
        before = gone.stat().st_mtime - 3600
        os.utime(old, (before, before))  # an agent may still use that one
        assert purges(store).receipt(receipt.id).outstanding == ["n"]


def test_a_node_whose_cache_cannot_be_written_stays_outstanding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = tierstore.format.tiers.TierSpec(
        name="hot", role="hot", url=str(tmp_path / "hot"), size=64 * MIB
    )
    with init_store(tmp_path / "store", chunk_size=MIB, tiers=[hot]) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2):
            store.save("m", content(seed), base=None)

        def fails(digests: object) -> int:
            raise OSError("it is read-only")

        local = store._parts.hot.local
        assert local is not None
        monkeypatch.setattr(local, "drop", fails)
        receipt = purge(store, "m@1")
        assert receipt.is_done
        assert receipt.outstanding == [store.node]
        assert receipt.nodes[0].failed == {"hot": "it is read-only"}
        monkeypatch.undo()
        purges(store).keep_up()
        assert purges(store).receipt(receipt.id).is_complete


def test_an_agent_goes_on_with_a_purge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropping, "_LOOK_EVERY_S", 0.0)
    with init_store(tmp_path / "store", chunk_size=MIB) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2):
            store.save("m", content(seed), base=None)
        with WriterLease(store._parts.home.blobs):
            assert not purge(store, "m@1").is_done
        agent = Agent(store, scrub_s=None)
        agent.round()
        assert not purges(store).all()[0].is_done  # it was tried just now
        monkeypatch.setattr(purging, "_AGAIN_S", (0.0,))
        agent.round()
        assert purges(store).all()[0].is_complete
        assert found_below(tmp_path / "store", secrets(content(1))) == {}


def test_what_a_slow_process_writes_behind_it_is_dropped_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue, and what it holds open, nobody else knows of."""
    monkeypatch.setattr(dropping, "_LOOK_EVERY_S", 0.0)
    hot = tierstore.format.tiers.TierSpec(
        name="hot", role="hot", url=str(tmp_path / "hot"), size=64 * MIB
    )
    with init_store(tmp_path / "store", chunk_size=MIB, tiers=[hot]) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2):
            store.save("m", content(seed), base=None)
        agent = Agent(store, scrub_s=None)
        agent.round()
        digest = next(iter(_digests(store, "m@1")))
        chunk = content(1)["own"].tobytes()
        assert blake3.blake3(chunk).digest() in _digests(store, "m@1")
        digest = blake3.blake3(chunk).digest()
        receipt = purge(store, "m@1")
        assert receipt.is_complete
        store._parts.hot.offer_plain(digest, Verified(memoryview(chunk)), keep=True)
        settled(store)
        assert found_below(tmp_path / "hot", marks(content(1)["own"]))
        agent.round()
        assert found_below(tmp_path / "hot", marks(content(1)["own"])) == {}
        [node] = purges(store).receipt(receipt.id).nodes
        assert node.dropped["hot"] == receipt.nodes[0].dropped["hot"] + 1
        assert node.acknowledged is not None
        assert receipt.nodes[0].acknowledged is not None
        assert node.acknowledged > receipt.nodes[0].acknowledged


def test_who_uses_other_caches_does_not_speak_for_an_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator's cache, without a hot tier, on the node where an agent has one."""
    monkeypatch.setattr(dropping, "_LOOK_EVERY_S", 0.0)
    config = tmp_path / "agent.toml"
    config.write_text(f'[hot]\nurl = "{tmp_path}/hot"\nsize = "64MiB"\n')
    init_store(tmp_path / "store", chunk_size=MIB).close()
    with open_store(tmp_path / "store") as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2):
            store.save("m", content(seed), base=None)
        monkeypatch.setenv("TIERSTORE_CONFIG", str(config))
        with open_store(tmp_path / "store") as serving:
            agent = Agent(serving, scrub_s=None)
            agent.round()
            serving.load("m@1").load()
            settled(serving)
            serving._parts.lease.close()
            receipt = purge(store, "m@1")
            assert receipt.is_done
            assert receipt.outstanding == [store.node]
            assert found_below(tmp_path / "hot", secrets(content(1)))
            agent.round()
            assert purges(store).receipt(receipt.id).is_complete
            assert found_below(tmp_path, secrets(content(1))) == {}


def test_a_cache_that_fails_ends_no_purge_and_no_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropping, "_LOOK_EVERY_S", 0.0)
    with init_store(tmp_path / "store", chunk_size=MIB) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2, 3):
            store.save("m", content(seed), base=None)
        home = store._parts.home
        name = store._parts.settings.cache_dir / home.config.store_id / "place"
        name.mkdir(parents=True)
        receipt = purge(store, "m@1")
        assert receipt.is_done
        agent = Agent(store, scrub_s=None)
        agent.round()
        assert agent.stats.failed_rounds == 0
        assert purges(store).receipt(receipt.id).nodes == receipt.nodes
        name.rmdir()
        home.blobs.put(f"purged/{receipt.id}", b"damaged")
        other = purge(store, "m@2")  # what is damaged of one hinders no other
        assert other.is_complete
        agent.round()
        assert agent.stats.failed_rounds == 0


def test_what_a_fold_left_that_never_ended_goes_as_well(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """Nothing names its manifest; while a writer's lease stands it may be of a save that runs."""
    changed = noise(6)
    with opened(blobs, tmp_path / "other") as other:
        patch = other.patch("m@3", {"own": Dense(changed)})
        full = other.fold(patch).full
    blobs.delete([fold_key(patch.digest)])
    with WriterLease(blobs):
        receipt = purge(store, patch, force=True)
        assert not receipt.is_done
        assert any("1 manifest that nothing names yet" in why for why in receipt.waits)
    assert purge(store, patch).is_done
    assert found(blobs, marks(changed)) == {}
    assert not [info.key for info in blobs.list() if full.hex in info.key]
    equal(store.load("m@3").load(), content(3))


def test_who_does_not_use_a_cache_of_the_store_does_not_speak_for_it(tmp_path: Path) -> None:
    """It was opened before the tier was added, and others of its node fill that."""
    hot = tierstore.format.tiers.TierSpec(
        name="ssd", role="hot", url=str(tmp_path / "hot"), size=64 * MIB
    )
    with init_store(tmp_path / "store", chunk_size=MIB) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2):
            store.save("m", content(seed), base=None)
        store.admin.tiers.add(hot)
        with open_store(tmp_path / "store") as serving:
            serving.load("m@1").load()
            settled(serving)
        secret = secrets(content(1))
        assert found_below(tmp_path / "hot", secret)
        receipt = purge(store, "m@1")
        assert receipt.is_done
        assert receipt.outstanding == [store.node]
        assert "was added since" in receipt.nodes[0].failed["ssd"]
    with open_store(tmp_path / "store") as store:
        purges(store).run()
        assert found_below(tmp_path / "hot", secret) == {}
        assert purges(store).receipt(receipt.id).is_complete
