"""A manifest that is condemned never comes back: equal content gets another digest (SPEC.md 10)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created, equal, opened, tensors
from tests.integration.test_collector_schedules import copied
from tierstore import Dense, Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, NotFound
from tierstore.format.keys import (
    CONDEMNED,
    GC,
    LEASES,
    NOTICE,
    REMOVED_LOG,
    fold_key,
    layout_key,
    version_key,
)
from tierstore.format.reflog import Action
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import fold_of
from tierstore.modelstore.home.condemned import CondemnedPacks
from tierstore.modelstore.home.refs import NOWHERE
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.tidy import MOST_SEGMENTS
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore

ROWS = {"w": Rows([1, 200], np.full((2, 1000), 7, np.float32))}


NAME = b"\x07" * 32
"""The digest of a manifest."""


def content(number: int) -> dict[str, np.ndarray]:
    return {"w": tensors(number)["emb"]}


def condemn_manifest(blobs: MemoryStore, *digests: Digest) -> None:
    now_us = time.time_ns() // 1000
    lists = CondemnedPacks(blobs)
    lists.condemn([], [one.raw for one in digests], run=uuid.uuid4().hex, now_us=now_us)


def delete_manifest(blobs: MemoryStore, digest: Digest) -> None:
    blobs.delete([layout_key(digest), version_key(digest)])


def purge_entry(store: Store, model: str, number: int) -> None:
    store._parts.home.log(model, REMOVED_LOG).append("purge", lambda _: NOWHERE, "", [number])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """A store with m@1 to m@3, and a release and a patch of m@3."""
    blobs = MemoryStore("world")
    with created(blobs, tmp_path_factory.mktemp("world")) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(1, 4):
            store.save("m", content(number), base=None)
        store.releases.create("rel", ["m@3"])
    return blobs


@pytest.fixture
def blobs(world: MemoryStore) -> MemoryStore:
    return copied(world)


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with opened(blobs, cache) as store:
        yield store


def test_equal_content_is_saved_under_another_digest(store: Store, blobs: MemoryStore) -> None:
    digest = store.resolve("m@1").digest
    condemn_manifest(blobs, digest)
    version = store.save("x", content(1), base=None)
    assert version.digest != digest
    equal(store.load(version).load(), content(1))
    again = store.save("y", content(1), base=None)
    assert again.digest == version.digest  # and is one content again, whoever saves it
    assert store.save("z", content(2), base=None).digest == store.resolve("m@2").digest


def test_what_is_purged_again_and_again_gets_a_new_digest_each_time(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    digests = [store.resolve("m@1").digest]
    for number in range(3):
        condemn_manifest(blobs, digests[-1])
        with opened(blobs, tmp_path / str(number)) as other:
            version = other.save("x", content(1), base=None)
            equal(other.load(version).load(), content(1))
            digests.append(version.digest)
    assert len(set(digests)) == 4


def test_a_patch_a_fold_and_a_release_are_as_well(store: Store, blobs: MemoryStore) -> None:
    patch = store.patch("m@1", ROWS)
    full = store.fold(patch).full
    release = store.resolve("rel@1").digest
    purge_entry(store, "m", patch.number)
    condemn_manifest(blobs, patch.digest, full, release)
    store.save("y", content(2), base=None)  # it has read the list
    new = store.patch("m@1", ROWS)
    assert new.digest != patch.digest
    folded = store.fold(new).full
    assert folded not in (full, new.digest)
    assert fold_of(store._parts.home, new.digest) == folded
    made = store.releases.create("rel", ["m@3"]).version
    assert made.digest != release
    assert store.releases.get(made).members["m"].number == 3
    assert store.load(new)["w"][1, 0] == 7


def meanwhile(
    blobs: MemoryStore, cache: Path, when: Callable[[str, str], bool], do: Callable[[], object]
) -> Store:
    """Open a store, where something happens once, right before a call."""
    done: list[bool] = []

    def plan(op: str, key: str, number: int) -> None:
        if not done and when(op, key):
            done.append(True)
            do()

    return opened(FaultyStore(blobs, plan), cache)


def is_entry(op: str, key: str) -> bool:
    return op == "put_if_absent" and "refs/x/versions/" in key


def test_who_is_too_late_gets_another_name(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """Who condemned it kept the version, and nobody has named it since."""
    digest = store.resolve("m@1").digest

    with meanwhile(blobs, tmp_path / "c", is_entry, lambda: condemn_manifest(blobs, digest)) as x:
        assert x.save("x", content(1), base=None).digest != digest
    assert [one.number for one in store.versions("x")] == [2]


def test_what_nobody_can_read_is_removed_again(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    digest = store.resolve("m@1").digest

    def purged() -> None:
        condemn_manifest(blobs, digest)
        delete_manifest(blobs, digest)

    with meanwhile(blobs, tmp_path / "c", is_entry, purged) as x:
        assert x.save("x", content(1), base=None).number == 2
    assert [one.number for one in store.versions("x")] == [2]
    with pytest.raises(NotFound, match=r"was purged on .* and cannot be brought back"):
        store.load("x@1")


def test_a_release_is_looked_at_as_well(store: Store, blobs: MemoryStore, tmp_path: Path) -> None:
    digest = store.resolve("rel@1").digest

    def purged() -> None:
        purge_entry(store, "rel", 1)
        condemn_manifest(blobs, digest)
        blobs.delete([version_key(digest)])

    def when(op: str, key: str) -> bool:
        return op == "put_if_absent" and "refs/rel/versions/" in key

    with meanwhile(blobs, tmp_path / "c", when, purged) as x:
        made = x.releases.create("rel", ["m@3"]).version
        assert made.number == 3
        assert made.digest != digest
    store.remove("m@1")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("model", ["x", "rel"])
def test_what_a_dead_writer_left_stops_nobody(
    store: Store, blobs: MemoryStore, cached: bool, model: str
) -> None:
    """It died behind its entry: the next collection removes the version."""
    old = "m@1" if model == "x" else "rel@1"
    action: Action = "publish" if model == "x" else "release"
    digest = store.resolve(old).digest
    collector = Collector(store._parts.home)
    if cached:
        collector.run()
    purge_entry(store, *(("m", 1) if model == "x" else ("rel", 1)))
    condemn_manifest(blobs, digest)
    number = store._parts.home.log(model).append(action, lambda last: (0, digest.hex, None)).seq
    delete_manifest(blobs, digest)
    collector.run()
    with pytest.raises(NotFound, match="was purged"):
        store.resolve(f"{model}@{number}")
    store.remove("m@2")
    collector.run()
    equal(store.load("m@3").load(), content(3))


def test_what_was_purged_stays_so(store: Store) -> None:
    purge_entry(store, "m", 1)
    log = store._parts.home.log("m", REMOVED_LOG)
    for action in ("announce", "forget", "undelete"):
        log.append(action, lambda _: NOWHERE, "", [1])
        with pytest.raises(NotFound, match="m@1 was purged"):
            store.load("m@1")
    with pytest.raises(NotFound, match=r"m@1 was purged .* and cannot be brought back"):
        store.undelete("m@1")
    assert Collector(store._parts.home).run(grace_s=0).condemned == 1


def test_what_names_it_is_refused(store: Store, blobs: MemoryStore) -> None:
    """It may be deleted at any time, though its version is in force."""
    condemn_manifest(blobs, store.resolve("m@1").digest)
    with pytest.raises(NotFound, match=r"m@1 is lost: exactly the content .* was purged"):
        store.alias("m", "prod", "m@1")
    with pytest.raises(
        Conflict, match=r"was purged meanwhile\. m@4 was published, and is removed again"
    ):
        store.patch("m@1", ROWS)
    assert [one.number for one in store.versions("m")] == [3, 2, 1]
    assert store.aliases("m") == []


def test_it_is_kept_as_long_as_a_version_needs_it(store: Store, blobs: MemoryStore) -> None:
    condemn_manifest(blobs, store.resolve("m@1").digest)
    Collector(store._parts.home).run()
    equal(store.load("m@1").load(), content(1))


def test_who_slept_between_its_notice_and_its_list_looks_again(blobs: MemoryStore) -> None:
    """Somebody ended its notice meanwhile, and another one has published the manifest since."""
    other, run, looks = CondemnedPacks(blobs), uuid.uuid4().hex, list[set[bytes]]()

    def needed() -> Set[bytes]:
        looks.append(other.among((), {NAME}))
        if len(looks) > 1:
            return {NAME}
        other.end_notices(run=run, now_us=1)
        looks.append(other.among((), {NAME}))
        return frozenset()

    CondemnedPacks(blobs).condemn([], [NAME], run=run, now_us=1, needed=needed)
    assert looks == [{NAME}, set(), {NAME}]
    assert not other.every().manifests
    assert not list(blobs.list(CONDEMNED))


def test_a_notice_that_goes_while_it_is_read_leaves_its_list(blobs: MemoryStore) -> None:
    condemned = CondemnedPacks(blobs)
    condemned._notice({NAME})

    def plan(op: str, key: str, number: int) -> None:
        if op == "get" and key.startswith(NOTICE) and not condemned.every().manifests:
            condemned.condemn([], [NAME], run=uuid.uuid4().hex, now_us=1)
            condemned.end_notices(run=uuid.uuid4().hex, now_us=1)

    assert CondemnedPacks(FaultyStore(blobs, plan)).among((), {NAME}) == {NAME}


def test_what_a_notice_has_can_be_named_and_patched(store: Store, blobs: MemoryStore) -> None:
    """Whoever was about to condemn it died, and that holds up nobody else."""
    digest = store.resolve("m@1").digest
    CondemnedPacks(blobs)._notice({digest.raw})
    store.alias("m", "prod", "m@1")
    assert store.patch("m@1", ROWS).number == 4
    saved = store.save("x", content(1), base=None)
    assert saved.digest != digest
    Collector(store._parts.home).run()
    assert not [one for one in blobs.list(GC) if one.key.startswith(NOTICE)]
    assert store.save("y", content(1), base=None).digest == digest


def test_a_fold_of_a_condemned_manifest_does_not_count(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """What lies below stays, as somebody may be about to delete the fold's manifest."""
    below = store.patch("m@3", {"w": Dense(content(9)["w"])})
    rows = content(8)["w"][:299]  # so different that the fold has no deltas
    patch = store.patch(below, {"w": Rows(range(299), rows)})
    full = store.fold(patch).full
    purge_entry(store, "m", below.number)
    condemn_manifest(blobs, full)
    blobs.delete([info.key for info in blobs.list(LEASES)])
    collector = Collector(store._parts.home)
    collector.run(grace_s=0)
    collector.run(grace_s=0)
    blobs.delete([version_key(full), layout_key(full)])
    expected = content(9)["w"]
    expected[:299] = rows
    with opened(blobs, tmp_path / "new") as other:
        equal(other.load(str(patch)).load(), {"w": expected})
        again = other.fold(str(patch)).full
    assert again != full
    assert fold_of(store._parts.home, patch.digest) == again
    assert blobs.info(fold_key(patch.digest))


def test_many_segments_of_manifests_become_one(store: Store, blobs: MemoryStore) -> None:
    """One comes with each purge, and none ever leaves the lists."""
    digests = [Digest(bytes([at]) * 32) for at in range(1, MOST_SEGMENTS + 2)]
    for digest in digests:
        condemn_manifest(blobs, digest)
    Collector(store._parts.home).run()
    found = CondemnedPacks(blobs).every()
    assert len(found.of_manifests) == 1
    assert found.manifests == {one.raw for one in digests}
    assert CondemnedPacks(blobs).among([digests[3].raw]) == {digests[3].raw}


def test_a_process_that_has_read_no_list_makes_a_patch_of_what_was_purged(
    store: Store, blobs: MemoryStore, tmp_path: Path
) -> None:
    """As the next one has read none either, whoever tries again would fail again."""
    patch = store.patch("m@1", ROWS)
    purge_entry(store, "m", patch.number)
    condemn_manifest(blobs, patch.digest)
    delete_manifest(blobs, patch.digest)
    with opened(blobs, tmp_path / "new") as other:
        again = other.patch("m@1", ROWS)
        assert again.digest != patch.digest
        other.load(again).load()
