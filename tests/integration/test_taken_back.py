"""Whoever publishes something is promised it, or takes it back: every kind of writer.

==========  ======================  ========================  =====================================
writer      entry                   looks behind it at        and takes back
==========  ======================  ========================  =====================================
save        ``versions``            its manifest and packs    the version: removed, or purged
commit      ``versions``            the same                  the same; nothing if nothing changed
patch       ``versions``            the same, and what lies   the same
                                    below
release     ``versions``            its manifest, members     the same
derive      ``variant/NAME``        its manifest and packs    the variant, by an entry of its log
fold        ``folds/``              its manifest and packs    nothing: patches are read as before
==========  ======================  ========================  =====================================

A manifest that was condemned while it was published gets another name in the same call.
"""

from __future__ import annotations

import pickle
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import created, equal, opened
from tests.integration.test_collector_schedules import copied
from tests.integration.test_condemned_manifests import condemn_manifest, delete_manifest
from tierstore import Rows
from tierstore.admin.purges import purges_of
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, NotDurable, NotFound, Unreachable
from tierstore.format.keys import GC, REMOVED_LOG, VARIANTS, VERSIONS
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import fold_of
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.commits import CommitRequest, Committer
from tierstore.serving.hub.repos import Repos
from tierstore.serving.hub.rights import Caller
from tierstore.serving.hub.spool import UploadSpool
from tierstore.testing.faulty import Fault, FaultyStore

ROWS = {"w": Rows([1, 3], np.full((2, 8), 7, np.float32))}
ENTRY = re.compile(r"refs/[a-z]+/(versions|variant/bf16)/[0-9]{6}/[0-9]{9}\Z|folds/[0-9a-f]{64}\Z")


def content(number: int) -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(number).standard_normal((64, 8), np.float32)}


def commit(store: Store) -> object:
    caller = Caller("me", ("*",), ("*",))
    committer = Committer(store, UploadSpool(Path(store._parts.settings.cache_dir) / "spool"))
    asked = CommitRequest("more", inline={"README.md": b"more"})
    return committer.commit(Repos(store).writable("m", caller), "main", asked)


WRITERS: dict[str, Callable[[Store], object]] = {
    "save": lambda store: store.save("m", content(9), base=None),
    "commit": commit,
    "patch": lambda store: store.patch("m@2", ROWS, fold=False),
    "release": lambda store: store.releases.create("rel", ["m@1"]),
    "derive": lambda store: tierstore.derive(store, "m@1", {"cast": "bf16"}),
    "fold": lambda store: store.fold("p@2"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """A store with m@1 and m@2, and p@2, which is a patch on p@1."""
    blobs = MemoryStore("world")
    with created(blobs, tmp_path_factory.mktemp("world")) as store:
        enable(store._parts.home, wait_s=0)
        store.save("m", content(1), base=None)
        store.save("m", content(2), base=None)
        store.save("p", content(3), base=None)
        store.patch("p@1", ROWS, fold=False)
    return blobs


def in_force(blobs: MemoryStore, cache: Path) -> dict[str, str]:
    """All that can be loaded or named, with its manifest; what cannot be loaded fails."""
    with opened(blobs, cache / uuid.uuid4().hex) as store:
        found = [one for model in store.models() for one in store.versions(model)]
        found += [one for model in store.models() for one in store.all_variants(model)]
        for one in found:
            if not one.is_release:
                store.load(one).load()
        names = {str(one): one.digest.hex for one in found}
        assert len(names) == len(found)
        folded = fold_of(store._parts.home, store.resolve("p@2").digest)
        return names | ({"fold": folded.hex} if folded else {})


def collects(blobs: MemoryStore, cache: Path) -> None:
    with opened(blobs, cache / uuid.uuid4().hex) as store:
        Collector(store._parts.home).run(grace_s=0)
        Collector(store._parts.home).run(grace_s=0)
        purges_of(store).run()  # no order says of what the tests condemn whose it is
        assert not store.check(read_data=True).damaged


def manifests(blobs: MemoryStore) -> set[str]:
    return {info.key.removeprefix(VERSIONS) for info in blobs.list(VERSIONS)}


def manifest_of(world: MemoryStore, cache: Path, name: str) -> Digest:
    """The manifest that a writer makes."""
    blobs = copied(world)
    with opened(blobs, cache / uuid.uuid4().hex) as store:
        WRITERS[name](store)
    [made] = manifests(blobs) - manifests(world)
    return Digest.from_hex(made)


def is_entry(op: str, key: str) -> bool:
    return op == "put_if_absent" and ENTRY.match(key) is not None


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_who_cannot_look_takes_it_back(
    world: MemoryStore, cache: Path, name: str, interrupted: bool
) -> None:
    blobs, written = copied(world), list[str]()

    def plan(op: str, key: str, n: int) -> Unreachable | None:
        if is_entry(op, key):
            written.append(key)
        elif written and written != ["done"] and (op, key) == ("list", GC):
            written[:] = ["done"]
            if interrupted:
                raise KeyboardInterrupt
            return Unreachable("gone")
        return None

    before = in_force(blobs, cache)
    said = r"(is removed again|is taken back|is read by its patches as before)$"
    with opened(FaultyStore(blobs, plan), cache / "refused") as store:
        with pytest.raises(KeyboardInterrupt if interrupted else Unreachable) as caught:
            WRITERS[name](store)
        notes = getattr(caught.value, "__notes__", [])
        assert any(re.search(said, one) for one in [str(caught.value), *notes])
    after = in_force(blobs, cache)
    after.pop("fold", None)
    assert after == before
    collects(blobs, cache)
    with opened(blobs, cache / "again") as store:
        WRITERS[name](store)
    assert len(in_force(blobs, cache)) == len(before) + 1


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_purged_meanwhile_gets_another_name_in_the_same_call(
    world: MemoryStore, cache: Path, name: str, gone: bool
) -> None:
    blobs, condemned = copied(world), manifest_of(world, cache, name)
    done = list[str]()

    def plan(op: str, key: str, n: int) -> None:
        if is_entry(op, key) and not done:
            done.append(key)
            condemn_manifest(blobs, condemned)
            if gone:
                delete_manifest(blobs, condemned)

    before = in_force(blobs, cache)
    with opened(FaultyStore(blobs, plan), cache / "refused") as store:
        WRITERS[name](store)
    assert done
    [(ref, digest)] = in_force(blobs, cache).items() - before.items()
    assert digest != condemned.hex
    if name in ("save", "commit", "patch", "release"):
        model, _, number = ref.partition("@")
        with opened(blobs, cache / "new") as store:
            log = store._parts.home.log(model, REMOVED_LOG)
            [purged] = [one for one in log.entries() if one.action == "purge"]
            assert purged.versions == [int(number) - 1]
    collects(blobs, cache)
    assert ref in in_force(blobs, cache)


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"fold"}))
def test_what_is_purged_each_time_is_refused(world: MemoryStore, cache: Path, name: str) -> None:
    blobs = copied(world)

    def plan(op: str, key: str, n: int) -> None:
        if is_entry(op, key):
            condemn_manifest(blobs, *map(Digest.from_hex, manifests(blobs) - manifests(world)))

    before = in_force(blobs, cache)
    with (
        opened(FaultyStore(blobs, plan), cache / "refused") as store,
        pytest.raises(
            (Conflict, HubError),
            match=r"each of the 5 times.*'tierstore purge ls' .* is (removed again|taken back)",
        ) as refused,
    ):
        WRITERS[name](store)
    if isinstance(refused.value, Conflict):  # it may come from a process of a pool
        assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
    assert in_force(blobs, cache) == before
    collects(blobs, cache)


@pytest.mark.parametrize("purged", [False, True])
@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"fold"}))
def test_an_entry_whose_answer_was_lost_is_ones_own(
    world: MemoryStore, cache: Path, name: str, purged: bool
) -> None:
    """And what is refused behind it is taken back as any other, and published again."""
    blobs, made = copied(world), manifest_of(world, cache, name)
    done = list[str]()

    def plan(op: str, key: str, n: int) -> Fault:
        if is_entry(op, key) and not done:
            done.append(key)
            if purged:
                condemn_manifest(blobs, made)
            return "lose-response"
        if op == "get" and done == [key]:
            done.append("unread")
            return Unreachable("gone")
        return None

    before = in_force(blobs, cache)
    with opened(FaultyStore(blobs, plan), cache / "lost") as store:
        WRITERS[name](store)
    assert done[1:] == ["unread"]
    [(_, digest)] = in_force(blobs, cache).items() - before.items()
    assert (digest == made.hex) != purged
    collects(blobs, cache)


def test_what_may_be_taken_back_by_a_power_loss_is_refused_as_well(
    world: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and said not to be durable; if it stays that is what its writer is told."""
    blobs, made = copied(world), manifest_of(world, cache, "save")

    def undurable(key: str, data: bytes) -> bool:
        is_own = MemoryStore.put_if_absent(blobs, key, data)
        if ENTRY.match(key):
            if made.hex in manifests(blobs) and not condemned:
                condemned.append(made)
                condemn_manifest(blobs, made)
            raise NotDurable("the disk did not answer")
        return is_own

    condemned = list[Digest]()
    before = in_force(blobs, cache)
    with monkeypatch.context() as context, opened(blobs, cache / "lost") as store:
        context.setattr(blobs, "put_if_absent", undurable)
        with pytest.raises(NotDurable):
            WRITERS["save"](store)
    [(ref, digest)] = in_force(blobs, cache).items() - before.items()
    assert (ref, digest != made.hex) == ("m@4", True)


def test_what_is_named_meanwhile_stays_and_another_one_is_published(
    world: MemoryStore, cache: Path
) -> None:
    """Whoever named it looked before its manifest was condemned."""
    blobs, condemned = copied(world), manifest_of(world, cache, "save")
    written = list[str]()

    def plan(op: str, key: str, n: int) -> None:
        if is_entry(op, key):
            written.append(key)
        elif len(written) == 1 and (op, key) == ("list", GC):
            written.append("named")
            with opened(blobs, cache / "other") as other:
                other.alias("m", "prod", "m@3")
            condemn_manifest(blobs, condemned)

    with opened(FaultyStore(blobs, plan), cache / "refused") as store:
        version = store.save("m", content(9), base=None)
    assert version.number == 4
    collects(blobs, cache)
    with opened(blobs, cache / "new") as store:
        assert [one.number for one in store.versions("m")] == [4, 3, 2, 1]
        equal(store.load("m@prod").load(), content(9))


@pytest.mark.parametrize("gone", [False, True])
def test_who_is_killed_before_it_takes_it_back_leaves_it_whole_or_purged(
    world: MemoryStore, cache: Path, gone: bool
) -> None:
    blobs, condemned = copied(world), manifest_of(world, cache, "patch")
    condemn_manifest(blobs, condemned)
    killed = list[str]()

    def plan(op: str, key: str, n: int) -> None:
        if killed:
            raise SystemExit
        if is_entry(op, key):
            killed.append(key)

    with opened(FaultyStore(blobs, plan), cache / "killed") as store, pytest.raises(SystemExit):
        store.patch("m@2", ROWS)
    with opened(blobs, cache / "new") as store:
        number = store._parts.home.log("m").append(
            "publish", lambda last: (0, condemned.hex, None)
        ).seq  # fmt: skip
    if gone:
        delete_manifest(blobs, condemned)
    with opened(blobs, cache / "last") as store:
        Collector(store._parts.home).run(grace_s=0)
        if gone:
            with pytest.raises(NotFound, match=f"m@{number} was purged"):
                store.load(f"m@{number}")
        else:
            with pytest.raises(NotFound, match="is lost: exactly the content"):
                store.alias("m", "prod", f"m@{number}")
    collects(blobs, cache)
    assert (f"m@{number}" in in_force(blobs, cache)) != gone


def test_a_variant_that_is_taken_back_gives_way_to_the_one_before(
    world: MemoryStore, cache: Path
) -> None:
    blobs = copied(world)
    with opened(blobs, cache / "new") as store:
        first = tierstore.derive(store, "m@1", {"cast": "bf16"}, name="low")
        log = store._parts.home.log("m", VARIANTS + "low")
        second = tierstore.derive(store, "m@2", {"cast": "f16"}, name="other")
        log.append("derive", lambda _: (1, second.digest.hex, None))
        assert store.resolve("m@1+low").digest == second.digest
        log.append("derive", lambda last: (1, second.digest.hex, 2))
        delete_manifest(blobs, second.digest)
        store._parts.home.log("m", VARIANTS + "other").append(
            "derive", lambda last: (2, second.digest.hex, 1)
        )
        assert store.resolve("m@1+low").digest == first.digest
        assert store.all_variants("m") == [first]
        assert store.variants("m@2") == []
    collects(blobs, cache)


def test_a_store_of_which_nothing_is_removed_keeps_it(tmp_path: Path, cache: Path) -> None:
    blobs, written = MemoryStore("plain"), list[str]()

    def plan(op: str, key: str, n: int) -> Unreachable | None:
        if is_entry(op, key):
            written.append(key)
        return Unreachable("gone") if written and (op, key) == ("list", GC) else None

    created(blobs, tmp_path).close()
    with (
        opened(FaultyStore(blobs, plan), cache / "refused") as store,
        pytest.raises(Unreachable, match=r"^gone\. m@1 is published all the same: nothing is"),
    ):
        store.save("m", content(1), base=None)
    with opened(blobs, cache / "new") as store:
        equal(store.load("m@1").load(), content(1))
