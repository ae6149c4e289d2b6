"""A lost record of a purge: what an order and the log of removals say takes each other's place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created, equal, opened
from tests.integration.test_purge import SHARED, found, marks, noise, purges
from tierstore import Elements
from tierstore.admin import doctor
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import NotFound
from tierstore.format.keys import LEASES, PURGED, PURGES, REFS, REMOVED_LOG
from tierstore.modelstore.home.refs import RefTarget
from tierstore.modelstore.home.settling import Purged
from tierstore.modelstore.names.removalprotocol import purge_lost
from tierstore.modelstore.reclaim import tidy
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.purge import purging
from tierstore.modelstore.reclaim.purge.purging import Purges
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore

LOG = f"{REFS}m/{REMOVED_LOG}/"
PATCH = {"own": Elements([1], np.full(1, 7, np.uint8))}
ENDED = "the process that purged ended here"


def content(seed: int) -> dict[str, np.ndarray]:
    return {"own": noise(seed), "shared": SHARED}


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("records")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A store with m@1 to m@3, which share a tensor."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for seed in (1, 2, 3):
            store.save("m", content(seed), base=None)
        yield store


def begin(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Purge m@1 by a process that ends right behind its `purge` entry."""

    def end(self: Purges, names: object, stop: object = None) -> None:
        raise KeyboardInterrupt(ENDED)

    with monkeypatch.context() as context:
        context.setattr(Purges, "_go_on", end)
        with pytest.raises(KeyboardInterrupt, match=ENDED):
            purges(store).begin(["m@1"], force=False, message="request 7")


def entries(blobs: MemoryStore) -> list[str]:
    return sorted(info.key for info in blobs.list(LOG) if not info.key.endswith("HEAD"))


def flip(blobs: MemoryStore, key: str) -> None:
    data = bytearray(blobs.get(key))
    data[len(data) // 2] ^= 0x55
    data[-1] ^= 1
    blobs.put(key, bytes(data))


def damage(store: Store) -> list[str]:
    return [one.key for one in store.check().findings if one.severity == "damage"]


def is_purged(blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that m@1 is purged for good, bytes and all, and has one receipt; also days later."""
    with opened(blobs, cache) as store:
        purges(store).run()
        with monkeypatch.context() as context:
            context.setattr(purging, "_DROPPED_S", -1.0)
            purges(store).run()
        [receipt] = purges(store).all()
        assert (receipt.version, receipt.message) == ("m@1", "request 7")
        assert receipt.is_done, receipt.waits
        with pytest.raises(NotFound, match="was purged"):
            store.load("m@1")
        assert found(blobs, marks(noise(1))) == {}
        equal(store.load("m@2").load(), content(2))
        assert damage(store) == []
        assert store.repair().is_whole


@pytest.mark.parametrize("ended", ["begun", "done"])
def test_a_repair_of_its_entry_brings_no_purged_version_back(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    begin(store, monkeypatch)
    if ended == "done":
        [receipt] = purges(store).run()
        assert receipt.is_done
    flip(blobs, entries(blobs)[-1])
    with opened(blobs, cache) as other:
        [one] = other.repair().objects
        assert "replaced by an entry that purges what was purged" in one.done
        assert "m@1 stays purged" in one.done
        assert [version.number for version in other.versions("m")] == [3, 2]
    is_purged(blobs, cache, monkeypatch)


@pytest.mark.parametrize("mended_by", ["run", "repair"])
def test_what_was_begun_is_purged_again_when_its_log_lost_that(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch, mended_by: str
) -> None:
    """The order says it, where the entry is gone and no hint knows of it; it is never dropped."""
    begin(store, monkeypatch)
    [receipt] = purges(store).run()
    assert receipt.is_done
    blobs.delete([entries(blobs)[-1], f"{LOG}HEAD"])
    with opened(blobs, cache) as other:
        assert PURGES + receipt.id in damage(other)
        if mended_by == "repair":
            assert any(one.key.startswith(LOG) for one in other.repair().objects)
    is_purged(blobs, cache, monkeypatch)


def test_an_order_that_was_gone_on_with_is_kept(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for the same purge again looks at its order before the log has it again."""
    [receipt] = purges(store).begin(["m@1"], force=False, message="request 7")
    blobs.delete([entries(blobs)[-1], f"{LOG}HEAD"])
    monkeypatch.setattr(purging, "_DROPPED_S", -1.0)
    with opened(blobs, cache) as other:
        purges(other)._go_on([receipt.id])
        assert PURGES + receipt.id in [info.key for info in blobs.list(PURGES)]


def test_what_was_removed_beside_it_is_brought_back(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.remove("m@2")
    begin(store, monkeypatch)
    flip(blobs, entries(blobs)[-1])
    with opened(blobs, cache) as other:
        [one] = other.repair().objects
        assert "m@2 and what it removed itself count as not removed" in one.done
        assert "m@1 stays purged" in one.done
        assert [version.number for version in other.versions("m")] == [3, 2]
    is_purged(blobs, cache, monkeypatch)


def test_nothing_is_said_of_what_was_purged_before(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """It is purged by an entry that can be read, whatever another one said."""
    purges(store).begin(["m@1"], force=False, message=None)
    store.remove("m@2")
    flip(blobs, entries(blobs)[-1])
    with opened(blobs, cache) as other:
        [one] = other.repair().objects
        assert "m@1" not in one.done
        assert [version.number for version in other.versions("m")] == [3, 2]


@pytest.mark.parametrize("mended_by", ["run", "repair", "agent"])
@pytest.mark.parametrize("lost", ["damaged", "gone"])
def test_a_purge_whose_order_is_lost_goes_on(
    store: Store,
    blobs: MemoryStore,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
    mended_by: str,
) -> None:
    """What the logs say is enough to go on with it, and `check` says that it is lost."""
    begin(store, monkeypatch)
    [order] = [info.key for info in blobs.list(PURGES)]
    if lost == "damaged":
        flip(blobs, order)
    else:
        blobs.delete([order])
    with opened(blobs, cache) as other:
        assert (order in damage(other)) == (lost == "damaged")
        assert LOG in damage(other)
        if mended_by == "repair":
            assert not other.repair().is_whole
        elif mended_by == "agent":
            purges(other).keep_up()
        [receipt] = purges(other).run()
        assert receipt.is_done
        other.repair()  # removes what is left of a damaged one
    is_purged(blobs, cache, monkeypatch)


def test_an_order_that_is_lost_keeps_what_nodes_are_to_drop(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content that was found still lists it, when the manifest is gone: it has its order."""
    begin(store, monkeypatch)
    [receipt] = purges(store).run()
    flip(blobs, PURGES + receipt.id)
    with opened(blobs, cache) as other:
        [one] = other.repair().objects
        assert (one.key, one.outcome) == (PURGES + receipt.id, "lost")
        [again] = purges(other).all()
        assert (again.id, again.version) == (receipt.id, "m@1")
        [again] = purges(other).run()
        assert again.is_done
        assert again.chunks == receipt.chunks
    is_purged(blobs, cache, monkeypatch)


def test_content_whose_order_was_never_written_goes(
    store: Store,
    blobs: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its giver ended between both; another may be about to write the order, for a day."""

    def ends(key: str, data: bytes) -> bool:
        if key.startswith(PURGES):
            raise KeyboardInterrupt
        return MemoryStore.put_if_absent(blobs, key, data)

    with monkeypatch.context() as context:
        context.setattr(blobs, "put_if_absent", ends)
        with pytest.raises(KeyboardInterrupt):
            purges(store).begin(["m@1"], force=False, message=None)
    [left] = [info.key for info in blobs.list(PURGED)]
    found = next(one for one in store.check().findings if one.key == left)
    assert found.severity == "garbage"
    assert "'tierstore purge run' deletes this" in found.what
    assert diagnosed(store) == ()
    purges(store).run()
    assert [info.key for info in blobs.list(PURGED)] == [left]
    monkeypatch.setattr(doctor, "_UNORDERED_S", -1.0)
    assert diagnosed(store) == (PURGED,)
    assert any("'tierstore purge run' makes" in one for one in doctor.diagnose(store).problems)
    store.reclaim.run()
    assert "is recorded in part" not in caplog.text
    monkeypatch.setattr(tidy, "DAY_S", -1)
    store.reclaim.run()
    assert f"is recorded in part by {left}" in caplog.text
    monkeypatch.setattr(purging, "_DROPPED_S", -1.0)
    purges(store).run()
    assert not list(blobs.list(PURGED))
    assert diagnosed(store) == ()
    equal(store.load("m@1").load(), content(1))


def diagnosed(store: Store) -> tuple[str, ...] | None:
    """What doctor says is gone."""
    health = doctor.diagnose(store).store
    return None if health is None else health.lost


def test_content_of_an_order_that_was_lost_stays(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version is purged, whether anybody has carried that out or not."""
    begin(store, monkeypatch)
    monkeypatch.setattr(purging, "_DROPPED_S", -1.0)
    for _ in range(2):
        blobs.delete([info.key for info in blobs.list(PURGES)])
        [left] = [info.key for info in blobs.list(PURGED)]
        assert left not in [one.key for one in store.check().findings]
        with opened(blobs, cache) as other:
            purges(other).run()
        assert [info.key for info in blobs.list(PURGED)] == [left]
    is_purged(blobs, cache, monkeypatch)


@pytest.mark.parametrize("killed", [False, True])
def test_a_patch_on_what_was_purged_meanwhile_has_an_order(
    store: Store, blobs: MemoryStore, cache: Path, killed: bool
) -> None:
    """Whoever ends it: its writer, or if that is killed who collects behind it."""
    done = list[str]()

    def plan(op: str, key: str, n: int) -> None:
        if done and killed:
            raise SystemExit
        if op == "put_if_absent" and f"{REFS}m/versions/" in key and not done:
            purges(store).begin(["m@2"], force=False, message=None)
            done.append(key)

    with (
        opened(FaultyStore(blobs, plan), cache / "late") as late,
        pytest.raises(SystemExit if killed else NotFound, match=None if killed else "was purged"),
    ):
        late.patch("m@2", PATCH)
    if killed:
        blobs.delete([info.key for info in blobs.list(LEASES)])
        Collector(store._parts.home).run()
    assert entries(blobs)
    assert damage(store) == []
    with opened(blobs, cache / "other") as other:
        purges(other).run()
        found = {one.version: one for one in purges(other).all()}
        assert found.keys() == {"m@2", "m@4"}
        assert all(one.is_done for one in found.values())
        assert "purged" in found["m@4"].message
        assert damage(other) == []


def test_a_refused_patch_that_somebody_needs_has_no_order(store: Store, blobs: MemoryStore) -> None:
    version = store.patch("m@2", PATCH)
    store.alias("m", "prod", version)
    why = Purged(store.resolve("m@2").digest)
    assert "stays" in store._names.named.unpublish(version, why)
    assert not list(blobs.list(PURGES))


def test_purged_content_that_is_damaged_is_found(store: Store, blobs: MemoryStore) -> None:
    [receipt] = purges(store).begin(["m@1"], force=False, message=None)
    assert damage(store) == []
    flip(blobs, PURGED + receipt.id)
    assert damage(store) == [PURGED + receipt.id]


def test_a_save_of_purged_content_that_was_taken_back_needs_no_order(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """It was purged because its content was: that one's order has it."""
    purges(store).begin(["m@1"], force=False, message=None)
    digest = store.deleted("m")[0].version.digest
    home = store._parts.home
    home.log("m").append("publish", lambda last: RefTarget(0, digest.hex, None))
    purge_lost(home, "m", 4, "undone")
    with opened(blobs, cache) as other:
        assert damage(other) == []
        purges(other).run()
        assert [one.version for one in purges(other).all()] == ["m@1"]
