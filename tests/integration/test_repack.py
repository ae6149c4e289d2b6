"""Packs with much waste are written anew: nothing is lost, and the bytes come back."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replace_struct

from tests.integration.kit import condemn, created, equal, opened
from tests.integration.test_collector import packs, packs_of, states
from tests.integration.test_collector_schedules import Paused, some
from tests.integration.test_full_disk import Quota
from tests.integration.test_tiers import Tiered
from tests.waiting import wait_until
from tierstore import Dense
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import BackendError, Conflict, Damaged, NotFound, TierstoreError
from tierstore.format.keys import CONDEMNED, INDEX, LAYOUTS, LEASES, MOVES, PACKS, SWEEPS, pack_key
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import new_lease
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.holdings import read_holdings
from tierstore.modelstore.reclaim.mark import Marker
from tierstore.modelstore.reclaim.repack import plan
from tierstore.modelstore.reclaim.report import Report
from tierstore.modelstore.reclaim.waste import PackWaste, find_waste, needed_frames
from tierstore.modelstore.reclaim.ways import Ways
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, Fault, FaultyStore

Model = dict[str, np.ndarray]
PARTS = 10


def model(*seeds: int) -> Model:
    """A tensor of 20 KB for each seed, which gives its content: a chunk of its own; a small one."""
    parts = {
        f"t{at}": np.random.default_rng(seed).standard_normal(5000, np.float32)
        for at, seed in enumerate(seeds)
    }
    return {**parts, "small": np.arange(200, dtype=np.float32)}


OLD = model(*range(PARTS))
NEW = model(0, 1, *range(100, 100 + PARTS - 2))
"""It shares the first two tensors with ``OLD``, in whose pack they lie."""


def tuned(of: Model, seed: int) -> Model:
    rng = np.random.default_rng(seed)
    return {
        name: array * (1 + np.float32(1e-4) * rng.standard_normal(array.shape, np.float32))
        for name, array in of.items()
    }


def collect(store: Store | Home, **how: object) -> Report:
    home = store if isinstance(store, Home) else store._parts.home
    all_now = {"grace_s": 0, "window_s": 0, "repack": True}
    return Collector(home).run(**{**all_now, **how})  # type: ignore[arg-type]


def waste_share(store: Store) -> float:
    """The share of waste in all packs, by a mark of its own."""
    home = store._parts.home
    marker = Marker(home, ReadCache(None))
    mark = marker.mark(time.time() + 3600, 0)
    found = find_waste(mark, marker.ways, needed_frames(mark, mark.holdings.every()))
    return sum(one.waste_bytes for one in found) / sum(one.bytes for one in found)


def stored_bytes(blobs: MemoryStore) -> int:
    return sum(len(blobs.get(pack_key(pack))) for pack in packs(blobs))


@contextlib.contextmanager
def with_shared_pack(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A store of m@1 and m@2; two chunks of m@2 lie in the pack of m@1."""
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        store.save("m", OLD, base=None)
        store.save("m", NEW, base=None)
        yield store


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("repacked")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    """A store of m@2 alone; two chunks of it lie in the pack of m@1, which was removed."""
    with with_shared_pack(blobs, cache) as store:
        store.remove("m@1")
        yield store


def sound(blobs: MemoryStore, cache: Path, expected: dict[str, Model]) -> None:
    with opened(blobs, cache / uuid.uuid4().hex) as store:
        for ref, content in expected.items():
            equal(store.load(ref).load(), content)
        report = store.check(read_data=True)
        assert not report.damaged, report.findings


def test_waste_is_given_back(store: Store, blobs: MemoryStore, cache: Path) -> None:
    [old] = packs(blobs) - own_packs(store)
    before = len(blobs.get(pack_key(old)))
    report = collect(store)
    assert report.repacked == 1
    assert report.waste_bytes == pytest.approx(0.8 * before, rel=0.02)
    assert states(report)[old] == ("deleted", "nothing needs it")
    [new] = packs_of(store, "m@2") - own_packs(store)
    assert packs(blobs) == packs_of(store, "m@2")
    after = len(blobs.get(pack_key(new)))
    assert report.rewritten_bytes == after
    assert after == pytest.approx(0.2 * before, rel=0.04), "two chunks of ten, and a small one"
    assert waste_share(store) < 0.01
    sound(blobs, cache, {"m@2": NEW})
    again = collect(store)
    assert again.repacked == again.rewritten_bytes == 0
    assert states(again).keys() == packs(blobs)
    assert {one.state for one in again.packs} == {"live"}


def own_packs(store: Store) -> set[bytes]:
    """The packs that have most of m@2."""
    home = store._parts.home
    digest = store.resolve("m@2").digest
    table = home.layout(digest, home.manifest(digest))
    places = [place.pack for place in table]
    return {pack for pack in places if places.count(pack) > 3}


# Whatever was saved and removed


CONTENTS = st.lists(st.integers(0, 14), min_size=3, max_size=PARTS)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("save"), CONTENTS),
        st.tuples(st.sampled_from(["tune", "tune one", "patch"]), st.integers(0, 5)),
        st.tuples(st.sampled_from(["fold", "rebase", "remove"]), st.integers(1, 8)),
        st.tuples(st.just("collect"), st.booleans()),
    ),
    min_size=3,
    max_size=14,
)


class Versions:
    """A store, and what each of its versions must be."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.content: dict[int, Model] = {}
        self.present: list[int] = []
        self.save(OLD, None)

    def save(self, content: Model, base: str | None) -> None:
        self.content[self.store.save("m", content, base=base).number] = content
        self.present = [version.number for version in self.store.versions("m")]

    def do(self, what: str, how: Any) -> None:
        newest = max(self.present)
        if isinstance(how, list):
            self.save(model(*how), None)
        elif what.startswith("tune"):
            content = self.content[newest]
            changed = tuned(content, how)
            if what == "tune one":  # the rest is what it was
                changed = {**content, "t0": changed["t0"]}
            self.save(changed, f"m@{newest}")
        elif what == "patch":
            small = np.full(200, how, np.float32)
            with contextlib.suppress(Conflict):  # there are too many already
                self.store.patch("m", {"small": Dense(small)}, fold=False)
                self.content[newest + 1] = {**self.content[newest], "small": small}
                self.present.append(newest + 1)
        elif what == "collect":
            collect(self.store, repack=how)
        elif how in self.present:
            self._with_one(what, how)

    def _with_one(self, what: str, number: int) -> None:
        if what == "fold":
            self.store.fold(f"m@{number}")
        elif what == "rebase":
            self.store.rebase(f"m@{number}", above=1)
        elif number < max(self.present):
            with contextlib.suppress(Conflict):  # a patch lies on it
                self.store.remove(f"m@{number}")
                self.present.remove(number)


@given(actions=ACTIONS, stay=st.sets(st.integers(1, 12), max_size=3))
def test_any_versions_are_whole_and_have_little_waste(
    actions: list[tuple[str, Any]], stay: set[int]
) -> None:
    blobs = MemoryStore("any")
    with tempfile.TemporaryDirectory() as name, created(blobs, Path(name) / "one") as store:
        enable(store._parts.home, wait_s=0)
        versions = Versions(store)
        for what, how in actions:
            versions.do(what, how)
        for number in sorted(set(versions.present) - stay):
            versions.do("remove", number)
        blobs.delete([info.key for info in blobs.list(LEASES)])  # what a fold holds for a while
        for _ in range(2):
            collect(store, repack=True)
        assert waste_share(store) <= 0.10
        before = packs(blobs)
        again = collect(store, repack=True)
        assert again.repacked == again.rewritten_bytes == 0
        assert packs(blobs) == before
        mark = Marker(store._parts.home, ReadCache(None)).mark(time.time() + 3600, 0)
        for digest in mark.kept:
            assert mark.needs.of(digest).named <= before, "a layout names a pack that is gone"
        with opened(blobs, Path(name) / "two") as other:
            for number in versions.present:
                equal(other.load(f"m@{number}").load(), versions.content[number])


# What else is seen and said


def test_who_has_a_version_open_goes_on_reading(store: Store, blobs: MemoryStore) -> None:
    with opened(blobs, Path(store._parts.settings.cache_dir) / "reader") as other:
        reading = other.load("m@2")
        wait_until(lambda: any(blobs.list(LEASES)), "the lease of the reader")
        held = collect(store)
        assert held.repacked == 0, "the copy would be there besides what the reader holds"
        blobs.delete([info.key for info in blobs.list(LEASES)])  # as one that was suspended
        assert collect(store).repacked == 1
        equal(reading.load(), NEW)


def test_saves_find_the_chunks_where_they_are_now(store: Store, blobs: MemoryStore) -> None:
    collect(store)
    before = packs(blobs)
    own = {"own": np.arange(3000, dtype=np.int32)}
    saved = store.save("again", {**NEW, **own}, base=None)
    assert saved.stats is not None
    assert saved.stats.new_bytes == own["own"].nbytes
    [new] = packs(blobs) - before
    assert packs_of(store, "again@1") == before | {new}


def test_a_dry_run_changes_nothing(store: Store, blobs: MemoryStore) -> None:
    before = dict(blobs._blobs)
    report = collect(store, dry_run=True)
    assert blobs._blobs == before
    assert (report.repacked, report.rewritten_bytes) == (1, 0)
    assert report.waste_bytes > 0


def test_little_waste_is_left_as_it_is() -> None:
    def chosen(*waste: float) -> list[float]:
        found = [PackWaste(bytes([at]), 1000, share) for at, share in enumerate(waste)]
        return [one.share for one in plan(found)]

    assert chosen(0.9, *[0.0] * 17) == [], "5 % of the store"
    assert chosen(0.9, *[0.0] * 16) == [0.9]
    assert chosen(0.6, 0.21, 0.2) == [0.6, 0.21]
    assert chosen(0.2, 0.2, 0.2) == [0.2, 0.2], "at most 10 % is left"
    assert chosen(0.09, 0.09) == []
    assert chosen() == []


def test_no_more_is_written_than_is_allowed(store: Store, blobs: MemoryStore, cache: Path) -> None:
    before = packs(blobs)
    report = collect(store, max_bytes=30_000)
    assert (report.repacked, report.rewritten_bytes) == (0, 0)
    assert report.stopped == "the limit of bytes is reached"
    assert packs(blobs) == before
    lease = new_lease("writer")
    blobs.put(LEASES + lease.id, seal_body(Kind.LEASE, lease))
    assert collect(store, max_bytes=40_000).repacked == 1
    assert len(packs(blobs)) > len(before), "the old pack waits for the save"
    store.save("m", model(100, 101), base=None)  # two chunks of the pack of m@2
    store.remove("m@2")
    assert collect(store, max_bytes=40_000).rewritten_bytes == 0, "what waits is counted"
    assert collect(store).repacked == 2  # that of m@2, and of what was copied for it
    blobs.delete([LEASES + lease.id])
    sound(blobs, cache, {"m@3": model(100, 101)})


def test_where_there_is_no_room_for_a_whole_pack_it_goes_on_one_by_one(cache: Path) -> None:
    """What is needed of all packs does not fit at once; each run makes room for the next."""
    blobs, kept = Quota("full"), dict[str, Model]()
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for name, stay in {"a": 6, "b": 3, "c": 6}.items():
            seeds = [ord(name) * 100 + at for at in range(PARTS)]
            kept[name] = model(*seeds[:stay])
            store.save(name, model(*seeds), base=None)
            store.save(name, kept[name], base=None)
            store.remove(f"{name}@1")
        before = stored_bytes(blobs)
        blobs.limit_bytes = blobs.used_bytes + 90_000
        report = collect(store)
        assert (report.repacked, report.stopped is None) == (1, False), "that of which least stays"
        runs = 1
        while report.stopped is not None:
            report, runs = collect(store), runs + 1
            assert runs < 5
        assert stored_bytes(blobs) < before * 0.6
        assert waste_share(store) < 0.01
        for name, tensors in kept.items():
            equal(store.load(f"{name}@2").load(), tensors)


def test_time_that_is_over_ends_it(store: Store, blobs: MemoryStore) -> None:
    report = collect(store, max_time_s=0)
    assert (report.repacked, report.stopped) == (0, "the time is over")


def test_a_damaged_pack_is_left_as_it_is(store: Store, blobs: MemoryStore) -> None:
    [old] = packs(blobs) - own_packs(store)
    home = store._parts.home
    digest = store.resolve("m@2").digest
    table = home.layout(digest, home.manifest(digest))
    place = next(place for place in table if place.pack == old and place.frame_bytes > 9000)
    spoiled = bytearray(blobs.get(pack_key(old)))
    spoiled[place.offset + 9000] ^= 1
    blobs.put(pack_key(old), bytes(spoiled))
    report = collect(store)
    assert (report.repacked, states(report)[old][0]) == (0, "live")
    assert [info.key for info in blobs.list(MOVES)] == []


def test_a_copy_that_differs_is_not_relied_on(store: Store, blobs: MemoryStore) -> None:
    [old] = packs(blobs) - own_packs(store)

    def plan(op: str, key: str, n: int) -> Fault:
        return "flip" if op == "put" and key.startswith(PACKS) else None

    report = collect(Home(FaultyStore(blobs, plan)))
    assert report.repacked == 0
    assert report.stopped is not None
    assert "is not what was written to it" in report.stopped
    assert old in packs(blobs)


def test_new_packs_that_are_condemned_at_once_are_not_relied_on(
    store: Store, blobs: MemoryStore
) -> None:
    [old] = packs(blobs) - own_packs(store)
    before = packs(blobs)

    def plan(op: str, key: str, n: int) -> Fault:
        if op == "put_if_absent" and key.startswith(MOVES):
            condemn(blobs, *map(pack_key, packs(blobs) - before))
        return None

    report = collect(Home(FaultyStore(blobs, plan)))
    assert (report.repacked, report.healed) == (0, 0)
    assert old in packs(blobs)


def test_bases_stay_reachable_though_deltas_on_them_were_rebased(cache: Path) -> None:
    blobs = MemoryStore("rebased")
    base = {f"t{at}": array for at, array in enumerate(list(OTHER.values())[:PARTS])}
    two = tuned({"t0": base["t0"], "t1": base["t1"]}, 3)
    one = {"t1": two["t1"], "own": np.arange(5000, dtype=np.float32)}
    with created(blobs, cache / "one") as store:
        enable(store._parts.home, wait_s=0)
        store.save("n", base, base=None)
        store.save("n", two, base="n@1")
        store.save("n", one, base="n@1")
        [of_bases] = packs_of(store, "n@1")
        store.remove("n@1")
        store.rebase("n@2", above=1)
        layouts = {info.key: blobs.get(info.key) for info in blobs.list(LAYOUTS)}
        for repacked in (2, 0, 0):  # both deltas and bases; nobody reads a base any more
            assert collect(store).repacked == repacked
            for key, layout in layouts.items():  # as of a collector that rewrites none
                blobs.put(key, layout)
        ways = Ways(store._parts.home)
        ways.look(read_holdings(store._parts.home.packs))
        assert ways.named(of_bases), "moves lead on from where the layout of n@3 has its base"
        assert ways.named(of_bases) <= packs(blobs)
    sound(blobs, cache, {"n@2": two, "n@3": one})


def test_deltas_of_one_chunk_on_different_bases_are_both_kept(cache: Path) -> None:
    blobs = MemoryStore("deltas")
    first, both = model(1, 2), tuned(model(1), 7)
    expected = {}
    for name in "mo":  # by processes that do not see each other's chunks
        blobs.delete([info.key for info in blobs.list(INDEX)])
        how = created if name == "m" else opened
        with how(blobs, cache / name) as store:
            enable(store._parts.home, wait_s=0)
            store.save(name, tuned(first, ord(name)), base=None)
            waste = dict(zip("abc", model(*range(ord(name), ord(name) + 3)).values(), strict=False))
            store.save(name, {**both, **waste}, base=f"{name}@1")
            expected[f"{name}@1"] = tuned(first, ord(name))
            expected[f"{name}@3"] = {**both, "own": np.full(9, ord(name), np.uint8)}
            store.save(name, expected[f"{name}@3"], base=f"{name}@1")
            store.remove(f"{name}@2")
    with opened(blobs, cache / "both") as store:
        bases = {delta_of(store, f"{name}@3").bases for name in "mo"}
        assert len(bases) == 2
        done = collect(store)
        assert (done.repacked, done.healed) == (2, 0)
        assert collect(store).repacked == 0
    sound(blobs, cache, expected)


def delta_of(store: Store, ref: str) -> ChunkPlace:
    home = store._parts.home
    digest = store.resolve(ref).digest
    [found] = [place for place in home.layout(digest, home.manifest(digest)) if place.bases]
    return found


def test_new_packs_lie_where_the_old_ones_did(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path)
    with tiered.open() as store:
        enable(store._parts.home, wait_s=0)
        store.save("m", OLD, base=None)
        tiered.copy("warm", "cold", drop=True)
        store.save("m", NEW, base=None)
        tiered.copy("warm", "home")
        [first], second = tiered.packs("cold"), tiered.packs("warm")
        store.remove("m@1")
        tiered.down("warm")
        assert collect(store).repacked == 0, "what is there is unknown"
        tiered.plans.clear()
        assert collect(store).repacked == 1
        [new] = tiered.packs("cold")
        assert new != first
        assert tiered.packs("warm") == tiered.packs("home") == second
        equal(store.load("m@2").load(), NEW)


def test_a_tier_that_is_being_drained_or_an_archive_is_left(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path)
    with tiered.open() as store:
        enable(store._parts.home, wait_s=0)
        store.save("m", OLD, base=None)
        tiered.copy("warm", "cold")
        store.save("m", NEW, base=None)
        store.remove("m@1")
        tiers = store._parts.home.packs
        warm, cold, home = tiers.tiers
        drained = replace(cold, spec=replace_struct(cold.spec, state="draining"))
        archived = replace(cold, archive=object())  # type: ignore[arg-type]
        for other in (drained, archived):
            tiers.tiers = (warm, other, home)
            assert collect(store, dry_run=True).repacked == 0
        tiers.tiers = (warm, cold, home)
        assert collect(store, dry_run=True).repacked == 1


# Whatever is stopped, and whoever comes in between


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """A store with waste: of m@1, and of n@1 on which n@2 is a delta; p@2 is a patch on p@1."""
    blobs = MemoryStore("waste")
    with created(blobs, tmp_path_factory.mktemp("waste")) as store:
        enable(store._parts.home, wait_s=0)
        store.save("m", OLD, base=None)
        store.save("m", NEW, base=None)
        store.save("n", OTHER, base=None)
        store.save("n", TUNED, base="n@1")
        store.save("n", LAST, base=None)
        store.save("p", BELOW, base=None)
        store.patch("p", {"small": Dense(PATCHED["small"])}, fold=False)
        store.remove("m@1", "n@1")
    return blobs


OTHER = model(*range(20, 30))
TUNED = {**tuned(model(20, 21), 3), "small": OTHER["small"]}
LAST = {**TUNED, **model(70)}
BELOW = model(2, 60)
PATCHED = {**BELOW, "small": np.full(200, 7, np.float32)}
EXPECTED = {"m@2": NEW, "n@2": TUNED, "n@3": LAST, "p@1": BELOW, "p@2": PATCHED}
ACTS: dict[str, tuple[Callable[[Store], object], str, Model]] = {
    "save of what is waste": (lambda s: s.save("new", OLD, base=None), "new", OLD),
    "save as a delta on what is waste": (
        lambda s: s.save("n", tuned(OTHER, 5), base=None), "n", tuned(OTHER, 5)
    ),
    "patch": (lambda s: s.patch("p", {"t0": Dense(OLD["t1"])}), "p", {**PATCHED, "t0": OLD["t1"]}),
    "fold": (lambda s: s.fold("p@2"), "p@2", PATCHED),
    "undelete": (lambda s: s.undelete("m@1"), "m@1", OLD),
    "rebase": (lambda s: s.rebase("n@2", above=1), "n@2", TUNED),
}  # fmt: skip

MAY_FAIL: dict[str, tuple[type[TierstoreError], ...]] = {
    **dict.fromkeys(ACTS, ()),
    "undelete": (NotFound,),
    "rebase": (BackendError,),
}
"""It is too late, or what a rebase has written was taken for garbage: then it changes nothing."""


def may_fail(name: str) -> contextlib.suppress:
    return contextlib.suppress(*MAY_FAIL[name])


def copied(blobs: MemoryStore) -> MemoryStore:
    copy = MemoryStore("copy")
    copy._blobs = dict(blobs._blobs)
    return copy


def lapse(blobs: MemoryStore) -> None:
    for prefix in (LEASES, SWEEPS):
        blobs.delete([info.key for info in blobs.list(prefix)])


def collect_meanwhile(blobs: MemoryStore) -> None:
    lapse(blobs)
    with contextlib.suppress(Conflict, Damaged):
        collect(Home(blobs))


def is_whole(blobs: MemoryStore, cache: Path, *more: tuple[str, Model]) -> None:
    """Nothing is lost, also after more collections, and these leave no waste and no garbage."""
    for _ in range(3):
        lapse(blobs)
        done = collect(Home(blobs))
    assert {one.state for one in done.packs} <= {"live", "chain", "base"}, done.reasons()
    assert done.repacked == 0
    with opened(blobs, cache / uuid.uuid4().hex) as store:
        assert waste_share(store) <= 0.10
    sound(blobs, cache, {**EXPECTED, **dict(more)})


def calls_of(blobs: MemoryStore) -> FaultyStore:
    watched = FaultyStore(copied(blobs))
    assert collect(Home(watched)).repacked >= 2
    return watched


def test_a_repack_that_dies_after_any_of_its_writes(world: MemoryStore, cache: Path) -> None:
    for writes in range(calls_of(world).mutations):
        blobs = copied(world)
        with pytest.raises(Crashed):
            collect(Home(FaultyStore(blobs, crash_after=writes)))
        is_whole(blobs, cache)


def test_what_was_copied_already_is_not_copied_again(world: MemoryStore) -> None:
    watched = calls_of(world)
    changes = [(op, key) for op, key in watched.calls if op in ("put", "put_if_absent", "delete")]
    listed = next(at for at, (_, key) in enumerate(changes) if key.startswith(CONDEMNED))
    blobs = copied(world)
    with pytest.raises(Crashed):
        collect(Home(FaultyStore(blobs, crash_after=listed)))
    lapse(blobs)
    there = packs(blobs)
    done = collect(Home(blobs))
    assert done.repacked >= 2
    assert done.rewritten_bytes == 0
    assert done.healed == 0
    assert packs(blobs) < there


def test_a_collection_between_any_two_calls_of_a_repack(world: MemoryStore, cache: Path) -> None:
    for stops in some(len(calls_of(world).calls), "repack"):
        blobs = copied(world)
        plan = Paused(stops, functools.partial(collect_meanwhile, blobs))
        with contextlib.suppress(Conflict):  # the other one has taken over
            collect(Home(FaultyStore(blobs, plan)))
        is_whole(blobs, cache)


@pytest.mark.parametrize("name", ACTS)
def test_a_writer_within_a_repack(name: str, world: MemoryStore, cache: Path) -> None:
    do, ref, content = ACTS[name]
    for stops in some(len(calls_of(world).calls), name):
        blobs, done = copied(world), list[bool]()

        def write(blobs: MemoryStore = blobs, done: list[bool] = done) -> None:
            with opened(blobs, cache / uuid.uuid4().hex) as store, may_fail(name):
                do(store)
                done.append(True)

        collect(Home(FaultyStore(blobs, Paused({min(stops)}, write))))
        is_whole(blobs, cache, *([(ref, content)] if done else []))


@pytest.mark.parametrize("name", ACTS)
def test_repacks_between_any_two_calls_of_a_writer(
    name: str, world: MemoryStore, cache: Path
) -> None:
    do, ref, content = ACTS[name]

    def run(blobs: MemoryStore, stops: set[int]) -> int:
        store, done = FaultyStore(blobs, Paused(stops, lambda: collect_meanwhile(blobs))), False
        with opened(store, cache / uuid.uuid4().hex) as other, may_fail(name):
            do(other)
            done = True
        is_whole(blobs, cache, *([(ref, content)] if done else []))
        assert done or MAY_FAIL[name]
        return len(store.calls)

    for stops in some(run(copied(world), set()), name):
        run(copied(world), stops)


def test_nothing_is_looked_for_again_while_nothing_changes(
    store: Store, blobs: MemoryStore
) -> None:
    collect(store)
    assert collect(store).waste_bytes > 0, "too little to do anything about"
    assert collect(store).waste_bytes == 0, "it was not looked for"
    store.save("m", model(100, 101), base=None)
    store.remove("m@2")
    assert collect(store, max_bytes=0).repacked == 0
    assert collect(store).repacked > 0, "a limit does not count as nothing to do"


def test_a_collector_forgets_packs_that_are_gone(store: Store, blobs: MemoryStore) -> None:
    """An agent's collects for years."""
    collector, repacked = Collector(store._parts.home), 0
    for number in range(4):  # each shares some chunks with the next, and is removed
        store.save("m", model(*range(100 + 8 * number, 110 + 8 * number)), base=None)
        store.remove(f"m@{number + 2}")
        repacked += collector.run(grace_s=0, window_s=0, repack=True).repacked
    assert repacked > 1
    assert collector.marker.ways._footers, "a move led to the new pack"
    collector.run(grace_s=0, window_s=0)
    assert collector.marker.ways._footers.keys() < packs(blobs), "waste is looked for once"
