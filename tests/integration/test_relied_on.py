"""What is named, brought back or patched is whole and stays so, whatever is collected meanwhile.

Nobody returns and is wrong: either the packs are there afterwards, or the entry is taken back.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import condemn, created, equal, opened, tensors
from tests.integration.test_collector import collect, keys, packs, packs_of
from tests.integration.test_collector_schedules import Paused, copied, meanwhile
from tests.integration.test_removal import NAMINGS
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, Damaged, NotFound
from tierstore.format.keys import GC, MOVES, REMOVED_LOG, pack_key, version_key
from tierstore.modelstore.home import clock, confirm
from tierstore.modelstore.home.chain import find_chain
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.refs import NOWHERE
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.names import removalprotocol
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.holdings import read_holdings
from tierstore.modelstore.reclaim.ways import Ways
from tierstore.modelstore.saving.healing import Healing
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore

NAMES = {**NAMINGS, "step": lambda store: store.rollouts.step("m", "next", force=True)}
"""What lets something name m@1."""
ROWS = {"w": Rows([1, 200], np.full((2, 1000), 7, np.float32))}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """A store with m@1 to m@3, each of packs of its own; m@prod was m@1 and is m@3."""
    blobs = MemoryStore("world")
    with created(blobs, tmp_path_factory.mktemp("world")) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(1, 4):
            store.save("m", {"w": tensors(number)["emb"]}, base=None)
        store.alias("m", "prod", "m@1")
        store.alias("m", "prod", "m@3")
        store.alias("m", "next", "m@3")
    return blobs


@pytest.fixture
def blobs(world: MemoryStore) -> MemoryStore:
    return copied(world)


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with opened(blobs, cache) as store:
        yield store


def content(number: int) -> dict[str, np.ndarray]:
    return {"w": tensors(number)["emb"]}


def patched(number: int) -> dict[str, np.ndarray]:
    new = content(number)["w"].copy()
    new[[1, 200]] = 7
    return {"w": new}


def tuned() -> dict[str, np.ndarray]:
    """Values near those of m@1, which are stored as deltas on them."""
    noise = np.random.default_rng(5).standard_normal(content(1)["w"].shape, np.float32)
    return {"w": content(1)["w"] * (1 + np.float32(1e-4) * noise)}


def say(store: Store, action: str, number: int) -> None:
    """Append an entry to the log of removals, and do not look: whoever did it died."""
    log = store._parts.home.log("m", REMOVED_LOG)
    log.append(action, lambda last: NOWHERE, None, [number])  # type: ignore[arg-type]


def named(store: Store) -> dict[str, object]:
    """All that names say."""
    aliases = {one.name: store.history("m", one.name, 1)[0] for one in store.aliases("m")}
    return {
        "aliases": {name: (last.version, last.rollout) for name, last in aliases.items()},
        "releases": store.releases.names(),
        "pins": [str(pin.version) for pin in store.pins.active()],
    }


def begun(store: Store, name: str) -> None:
    if name == "step":
        store.rollouts.start("m", "next", "m@1")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["deleted", "deleted long ago"])
def test_what_is_lost_gets_no_name(
    name: str, how: str, store: Store, blobs: MemoryStore, cache: Path
) -> None:
    """An undelete that came too late, and died before it looked, left it in force."""
    begun(store, name)
    before = named(store)
    if name == "step":  # the rollout is over then
        before = {**before, "pins": [], "aliases": {"prod": (3, None), "next": (3, None)}}
    [own] = packs_of(store, "m@1")
    say(store, "forget", 1)
    condemn(blobs, pack_key(own))
    blobs.delete([pack_key(own)])
    if how == "deleted long ago":
        blobs.delete(keys(blobs, GC))
    say(store, "undelete", 1)
    with opened(blobs, cache / "other") as other:
        with pytest.raises(NotFound, match=r"m@1 is lost, in part at least: chunk b3:.*"):
            NAMES[name](other)
        assert named(other) == before
        with pytest.raises(Damaged, match=r"m@1 .*has lost chunks.*tierstore rm"):
            collect(other)
        other.remove("m@1")
        collect(other)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_condemned_is_copied_for_a_name(
    name: str, store: Store, blobs: MemoryStore, cache: Path
) -> None:
    begun(store, name)
    [own] = packs_of(store, "m@1")
    condemn(blobs, pack_key(own))
    NAMES[name](store)
    assert f"{MOVES}{own.hex()}" in keys(blobs, MOVES)
    blobs.delete([pack_key(own)])  # by a collector that had looked before the name was given
    with opened(blobs, cache / "other") as other:
        equal(other.load("m@1").load(), content(1))


def test_a_name_of_what_was_just_saved_costs_no_second_look(
    store: Store, blobs: MemoryStore
) -> None:
    [own] = packs_of(store, "m@2")
    condemn(blobs, pack_key(own))
    watched = FaultyStore(blobs)
    with opened(watched, Path(store._parts.settings.cache_dir) / "other") as other:
        other.save("m", content(9), base=None, alias="prod")
        looks = Counter(watched.calls)["list", GC]
        assert looks == 2, "as new segments come into the index, and after the entry"


# What it costs


def gate_calls(blobs: MemoryStore, cache: Path, act: Callable[[Store], object]) -> Counter[str]:
    """The calls that somebody makes, by their names and folders."""
    watched = FaultyStore(copied(blobs))
    with opened(watched, cache / uuid.uuid4().hex) as store:
        begin = len(watched.calls)
        act(store)
    return Counter(f"{op} {key.partition('/')[0]}" for op, key in watched.calls[begin:])


ACTS: dict[str, Callable[[Store], object]] = {
    **{name: act for name, act in NAMINGS.items() if name != "rollback"},
    "patch": lambda store: store.patch("m@1", ROWS),
    "patch and alias": lambda store: store.patch("m@1", ROWS, alias="new"),
}


@pytest.mark.parametrize("name", ACTS)
def test_a_look_is_one_list_more_and_none_without_the_feature(
    name: str, tmp_path: Path, cache: Path
) -> None:
    blobs = MemoryStore("plain")
    with created(blobs, tmp_path) as store:
        for number in range(1, 4):
            store.save("m", content(number), base=None)
        store.alias("m", "prod", "m@3")
        without = gate_calls(blobs, cache, ACTS[name])
        enable(store._parts.home, wait_s=0)
        looks = {"pin": 2, "release": 2}.get(name, 1)  # before it, too, and at its own manifest
        found = gate_calls(blobs, cache, ACTS[name])
        assert without["list gc"] == (1 if "patch" in name else 0)
        assert found["list gc"] == looks
        assert (found - without).keys() <= {"get refs", "list gc"}, "the log of removals"
        condemn(blobs, pack_key(b"\1" * 32))
        found = gate_calls(blobs, cache, ACTS[name])
        assert found["list gc"] == looks
        more = found - without
        more.pop("list gc", 0)
        assert more.pop("get gc") == 1
        assert more.pop("get layouts", 0) == (0 if "patch" in name else 1), "of what is relied on"
        assert more.keys() <= {"get refs", "get versions", "get folds", "list_folders refs"}


# Patches


@pytest.mark.parametrize("waits", [True, False])
def test_what_a_patch_lies_on_is_collected_between_any_two_of_its_calls(
    world: MemoryStore, cache: Path, waits: bool
) -> None:
    """Its base is removed; the collector waits for leases, and finds some, or does not."""

    def removed(blobs: MemoryStore) -> None:
        with opened(blobs, cache / uuid.uuid4().hex) as other, contextlib.suppress(Conflict):
            other.remove("m@2")
        meanwhile(blobs, lapse=not waits)

    outcomes = set()
    for stop in itertools.count(1):
        blobs = copied(world)
        plan = Paused({stop}, functools.partial(removed, blobs))
        with opened(FaultyStore(blobs, plan), cache / uuid.uuid4().hex) as store:
            said = ""
            try:
                store.patch("m@2", ROWS)
            except NotFound as error:
                said = str(error)
        if plan.stops:
            break
        with opened(blobs, cache / uuid.uuid4().hex) as store:
            collect(store)
            collect(store)
            if not said:
                equal(store.load("m@4").load(), patched(2))
            else:
                assert [one.number for one in store.versions("m")] == [3, 1]
            assert not store.check(read_data=True).damaged
        outcomes.add("was published, and is removed again" in said if said else None)
    assert outcomes >= ({None} if waits else {None, True})


def test_a_patch_on_what_is_gone_says_what_to_do(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    base = store.resolve("m@2")
    store.remove("m@2")
    collect(store)
    with pytest.raises(NotFound) as caught:
        store.patch(base, ROWS, alias="prod")
    said = str(caught.value)
    assert said.startswith("m@2 is lost, in part at least: chunk b3:")
    assert said.endswith(
        "Patch another version, or save the whole model. m@4 was published, and is removed again"
    )
    assert store.resolve("m@prod").number == 3
    with pytest.raises(NotFound, match="m@4 was removed"):
        store.load("m@4")
    collect(store)


def test_a_patch_copies_what_is_condemned_below_it(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    store.patch("m@2", ROWS, fold=False)
    store.remove("m@4", force=True)
    store.undelete("m@4")
    [low], [high] = packs_of(store, "m@2"), packs_of(store, "m@4")
    condemn(blobs, pack_key(low), pack_key(high))
    store.patch("m@4", ROWS, fold=False)
    blobs.delete([pack_key(low), pack_key(high)])
    with opened(blobs, cache / "other") as other:
        equal(other.load("m@5").load(), patched(2))
        assert not other.check(read_data=True).damaged


def test_patches_read_no_layouts_below(store: Store, blobs: MemoryStore, cache: Path) -> None:
    """Each of them is the first one of its process, and large ones would cost it more."""
    condemn(blobs, pack_key(b"\1" * 32))
    for _ in range(4):
        watched = FaultyStore(blobs)
        with opened(watched, cache / uuid.uuid4().hex) as other:
            other.patch("m", ROWS, fold=False)
        assert [key for op, key in watched.calls if op == "get" and "layouts/" in key] == []
        looks = Counter(watched.calls)["list", GC]
        assert looks == 1, "after the entry"
        assert Counter(watched.calls)["get", f"{GC}000000001"] == 1


def test_what_was_brought_back_is_looked_at_once(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    condemn(blobs, pack_key(b"\1" * 32))
    store.remove("m@2")
    store.undelete("m@2")
    watched = FaultyStore(blobs)
    with opened(watched, cache / "other") as other:
        for _ in range(3):
            other.patch("m@2", ROWS, fold=False)
    read = [key for op, key in watched.calls if op == "get" and key.startswith("layouts/")]
    assert read.count(f"layouts/{store.resolve('m@2').digest.hex}") == 1


# What is brought back


def test_what_is_condemned_and_there_is_brought_back(
    store: Store, blobs: MemoryStore, cache: Path
) -> None:
    [own] = packs_of(store, "m@2")
    store.remove("m@2")
    with WriterLease(blobs):
        collect(store)
        assert own in packs(blobs), "it waits for the writer"
        store.undelete("m@2")
        blobs.delete([pack_key(own)])
    collect(store)
    with opened(blobs, cache / "other") as other:
        equal(other.load("m@2").load(), content(2))
        assert not other.check(read_data=True).damaged


def test_what_is_gone_stays_removed(store: Store, blobs: MemoryStore) -> None:
    store.remove("m@2")
    collect(store)
    with pytest.raises(
        NotFound, match=r"it is too late for m@2: m@2 is lost.*save the model again"
    ):
        store.undelete("m@2")
    log = store._parts.home.log("m", REMOVED_LOG)
    assert [one.action for one in log.entries()] == ["forget", "announce"], (
        "it was not even for a moment there"
    )
    store.save("m", content(2), base=None)
    store.undelete("m@2")
    equal(store.load("m@2").load(), content(2))


def test_an_undelete_that_is_too_late_looks_at_names_again(
    store: Store, blobs: MemoryStore
) -> None:
    """One that came in between is put back by who gave it; it is looked at anew until then."""
    digest = store.resolve("m@2").digest.hex
    [own] = packs_of(store, "m@2")
    store.remove("m@2")

    def plan(op: str, key: str, n: int) -> None:
        log = Home(blobs).log("m", "alias/next")
        actions = [one.action for one in Home(blobs).log("m", REMOVED_LOG).entries()]
        last = log.last()
        assert last is not None
        if len(actions) == 3 and last.version == 3:
            blobs.delete([pack_key(own)])  # by a collector, since it was looked at first
            log.append("set", lambda last: (2, digest, None))
        if len(actions) == 5 and last.version == 2 and key == GC:  # it begins anew
            log.append("rollback", lambda last: (3, store.resolve("m@3").digest.hex, None))

    cache = Path(store._parts.settings.cache_dir) / "other"
    with (
        opened(FaultyStore(blobs, plan), cache) as other,
        pytest.raises(NotFound, match="too late"),
    ):
        other.undelete("m@2")
    log = store._parts.home.log("m", REMOVED_LOG)
    actions = [one.action for one in log.entries()][::-1]
    refused = ["announce", "undelete"]
    assert actions == ["announce", "forget", "undelete", *refused, "announce", "forget"]


def test_a_removal_that_is_stopped_leaves_nothing_that_is_lost(
    world: MemoryStore, cache: Path
) -> None:
    """An alias comes while a version is removed, and a collector has seen that before."""
    outcomes = set()
    digest = Names(Home(world), "node", {}).resolve("m@2").digest.hex
    for stop in itertools.count(1):
        blobs = copied(world)

        def both(blobs: MemoryStore = blobs) -> None:
            meanwhile(blobs)
            log = Home(blobs).log("m", "alias/late")
            log.append("set", lambda last: (2, digest, None))  # it died before it looked

        plan = Paused({stop}, both)
        with opened(FaultyStore(blobs, plan), cache / uuid.uuid4().hex) as store:
            try:
                store.remove("m@2")
                said = "removed"
            except Conflict:
                said = "refused"
        if plan.stops:
            break
        with opened(blobs, cache / uuid.uuid4().hex) as store:
            left = [version.number for version in store.versions("m")]
            for number in left:
                equal(store.load(f"m@{number}").load(), content(number))
            outcomes.add((said, 2 in left))
            store.remove_alias("m", "late")
            if 2 in left:
                store.remove("m@2")
            collect(store)
    assert outcomes == {("removed", False), ("refused", True)}


def test_a_removal_that_is_undone_leaves_nothing_that_is_lost(
    store: Store, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took two entries, and a collector saw the first one."""
    monkeypatch.setattr(removalprotocol, "MAX_REMOVED", 1)
    store.save("m", content(7), base=None)

    def plan(op: str, key: str, n: int) -> None:
        is_second = op == "put_if_absent" and key.endswith("removed/000000/000000004")
        if is_second and not any(one.name == "late" for one in store.aliases("m")):
            meanwhile(blobs)
            store.alias("m", "late", "m@4")

    with (
        opened(FaultyStore(blobs, plan), cache / "other") as other,
        pytest.raises(Conflict, match="m@4 was named"),
    ):
        other.remove("m@2", "m@4", force=True)
    with opened(blobs, cache / "last") as last:
        assert [one.number for one in last.versions("m")] == [4, 3, 1]
        for number, expected in ((4, 7), (3, 3), (1, 1)):
            equal(last.load(f"m@{number}").load(), content(expected))


def test_a_pack_that_goes_once_the_tiers_were_listed_is_gone(
    store: Store, blobs: MemoryStore
) -> None:
    """A reader cannot look into it, but not because a tier is down: it hides nothing."""
    home = store._parts.home
    [own] = packs_of(store, "m@1")
    [other] = packs_of(store, "m@2")
    Healing(home, set()).move(own, {other})
    ways = Ways(home)
    ways.look(read_holdings(home.packs))
    blobs.delete([pack_key(other)])
    targets = ways.targets(own)
    assert not targets.tables
    assert not targets.hidden


def full_of(store: Store, ref: str) -> str:
    """The key of the manifest that a fold names."""
    return version_key(find_chain(store._parts.home, store.resolve(ref).digest).full)


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_version_whose_fold_has_lost_its_manifest_is_gone_on_from(
    how: str, store: Store, blobs: MemoryStore, cache: Path, folded: list[str]
) -> None:
    key = full_of(store, "m@4")
    before = blobs.get(key)
    blobs.delete([key])
    if how == "damaged":
        blobs.put(key, bytes(before[:-1]) + bytes([before[-1] ^ 1]))
    expected = patched(2)["w"]
    expected[[5]] = 9
    with opened(blobs, cache / "other") as other:
        version = other.patch(
            "m@4", {"w": Rows([5], np.full((1, 1000), 9, np.float32))}, fold=False
        )
        equal(other.load(version).load(), {"w": expected})
        tuned = other.save("n", {"w": expected + np.float32(1)}, base=version)
        equal(other.load(tuned).load(), {"w": expected + np.float32(1)})
        assert other.fold("m@4").patches == 1
        assert blobs.get(key) == before, "it is written again"
        collect(other)
    with opened(blobs, cache / "last") as last:
        equal(last.load(version).load(), {"w": expected})
        assert not last.check(read_data=True).damaged


def test_a_patch_says_what_is_lost_where_the_chain_is_too(
    store: Store, blobs: MemoryStore, cache: Path, folded: list[str]
) -> None:
    key = full_of(store, "m@4")
    blobs.delete([key, version_key(store.resolve("m@2").digest)])
    with opened(blobs, cache / "other") as other, pytest.raises(NotFound) as caught:
        other.patch("m@4", ROWS)
    assert key in str(caught.value)


# Processes that were suspended for longer than condemned packs are listed


def _save(store: Store) -> object:
    return store.save("m", content(7))


def _patch(store: Store) -> object:
    return store.patch("m@3", ROWS)


def _rebase(store: Store) -> object:
    return store.rebase("d@1", above=1)


SUSPENDED = {
    "save": (_save, "refs/m/versions/", "m@4", content(7)),
    "patch": (_patch, "refs/m/versions/", "m@4", patched(3)),
    "rebase": (_rebase, "layouts/", "d@1", tuned()),
}


@pytest.mark.parametrize("name", SUSPENDED)
def test_a_writer_that_slept_longer_than_packs_are_listed(
    name: str, blobs: MemoryStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had stored was collected, and no list names it any more when it goes on."""
    act, key, ref, expected = SUSPENDED[name]
    with opened(blobs, cache / "first") as store:
        store.save("d", tuned(), base="m@1")
    days_s, now, running = 31 * 24 * 3600, time.time, clock.running_s
    slept = Counter[str]()

    def plan(op: str, at: str, n: int) -> None:
        if slept["times"] or not op.startswith("put") or not at.startswith(key):
            return
        slept["times"] += 1
        before = packs(blobs)
        meanwhile(blobs)
        slept["deleted"] = len(before - packs(blobs))
        monkeypatch.setattr(time, "time", lambda: now() + days_s)
        monkeypatch.setattr(confirm, "running_s", lambda: running() + days_s)
        meanwhile(blobs)
        assert not Home(blobs).condemned.every().packs

    with opened(FaultyStore(blobs, plan), cache / "other") as other:
        act(other)
    assert slept["deleted"] > 0
    meanwhile(blobs)
    with opened(blobs, cache / "last") as store:
        equal(store.load(ref).load(), expected)


# Folds


@pytest.fixture
def folded(store: Store, blobs: MemoryStore) -> list[str]:
    """Let m@4 be m@2 with a patch, folded; return the keys of the packs that the fold has alone."""
    before = packs(blobs)
    store.patch("m@2", ROWS, fold=False)
    patch = packs(blobs) - before
    store.fold("m@4")
    return [pack_key(one) for one in packs(blobs) - before - patch]


@pytest.mark.parametrize("how", ["gone", "damaged", "manifest"])
def test_where_a_fold_is_lost_its_patches_are_read(
    store: Store, blobs: MemoryStore, cache: Path, folded: list[str], how: str
) -> None:
    full = find_chain(store._parts.home, store.resolve("m@4").digest).full
    [pack] = folded
    if how == "damaged":
        data = bytearray(blobs.get(pack))
        data[200] ^= 1
        blobs.put(pack, data)
    else:
        blobs.delete([pack if how == "gone" else version_key(full)])
    with opened(blobs, cache / "other") as other:
        model = other.load("m@4")
        new = patched(2)["w"]
        equal(model.load(), {"w": new})
        [file] = model.files
        assert np.array_equal(model["w"][199:203], new[199:203])
        assert model.open_file(file.path).read()[-4000:] == new[-1:].tobytes()
        if how != "manifest":
            more = {"w": Rows([5], np.ones((1, 1000), np.float32))}
            higher = other.patch("m@4", more, fold=False)
            new[5] = 1
            equal(other.load(higher).load(), {"w": new})
        if how == "gone":
            collect(other)
            assert other.fold("m@4").patches == 1, "it heals the fold"
            assert other.fold("m@4").patches == 0
            assert not other.check(read_data=True).damaged
    blobs.delete([pack_key(one) for one in packs_of(store, "m@2")])
    third = opened(blobs, cache / "third")
    with third, pytest.raises(NotFound, match="is missing from"):
        third.load("m@4").load()


def test_what_patches_give_is_compared_with_the_fold(
    store: Store, blobs: MemoryStore, folded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As chunks of the fold are handed on, it is the fold's digests that hold."""
    blobs.delete(folded)
    read = FileView.read

    def wrong(self: FileView, offset: int = 0, length: int | None = None) -> bytes:
        data = bytearray(read(self, offset, length))
        data[-1] ^= 1
        return bytes(data)

    monkeypatch.setattr(FileView, "read", wrong)
    with pytest.raises(NotFound, match="is missing from"):
        store.load("m@4").load()


def test_a_check_knows_the_folds_of_removed_versions(
    store: Store, blobs: MemoryStore, folded: list[str]
) -> None:
    store.save("m", content(3), base=None)
    store.remove("m@2", "m@4")
    assert store.check(read_data=True).findings == []
    store.undelete("m@4")
    collect(store)
    report = store.check(read_data=True)
    assert report.findings == []
    equal(store.load("m@4").load(), patched(2))
    store.remove("m@4")
    collect(store)
    assert store.check(read_data=True).findings == []
