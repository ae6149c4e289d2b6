"""Whole collections while somebody else is paused between two of its calls: nothing is lost.

Each schedule is one writer, reader or collector that is stopped before one of its calls of the
storage. Then its leases end, as those of a machine that was suspended, whole collections without
grace and window run, and it goes on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, condemn, created, equal, opened
from tierstore import Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, Damaged, NotFound, TierstoreError, Unreachable
from tierstore.format.keys import LEASES, REMOVED_LOG, SWEEPS, VERSIONS, layout_key, pack_key
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import new_lease
from tierstore.modelstore.home.refs import NOWHERE, RefLog
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.report import Report
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed, Fault, FaultPlan, FaultyStore

Model = dict[str, np.ndarray]

SCHEDULES = int(os.environ.get("TIERSTORE_SCHEDULES", "12"))
"""How many schedules each test tries; more than there are calls: every one, and pairs."""


def weights(seed: int) -> Model:
    rng = np.random.default_rng(seed)
    return {
        "emb": rng.standard_normal((70, 1000), np.float32),
        "head": rng.standard_normal((20, 1000), np.float32),
        "common": np.arange(30_000, dtype=np.float32),
    }


def tuned(model: Model, seed: int) -> Model:
    rng = np.random.default_rng(seed)
    return {
        name: array * (1 + np.float32(1e-4) * rng.standard_normal(array.shape, np.float32))
        for name, array in model.items()
    }


FIRST, OTHER = weights(1), weights(2)
TUNED = tuned(FIRST, 3)
PATCHED = {**OTHER, "head": OTHER["head"] + np.float32(1)}
LEFT, CUT = weights(5), Unreachable("no answer")
ROWS = {"head": Rows(list(range(20)), PATCHED["head"])}


def meanwhile(blobs: MemoryStore, *, lapse: bool = True) -> None:
    """A collection by another process, which finds perhaps that it cannot be done now.

    So it is where another one has the right, or where a version was published whose writer is
    still to store again what was collected before.
    """
    with contextlib.suppress(Damaged):
        collect(blobs, lapse=lapse)


def collect(blobs: MemoryStore, *, lapse: bool = True) -> Report | None:
    """A whole collection by another process; ``None`` when another one has the right."""
    if lapse:
        for prefix in (LEASES, SWEEPS):
            blobs.delete([info.key for info in blobs.list(prefix)])
    with contextlib.suppress(Conflict):
        return Collector(Home(blobs)).run(grace_s=0, window_s=0)
    return None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """A store whose versions m@1 and n@2 are removed: n@2 is a delta on n@1, n@4 a patch on n@3.

    A save was cut off before its manifest.
    """
    blobs = MemoryStore("world")
    with created(blobs, tmp_path_factory.mktemp("world"), MIB) as store:
        enable(store._parts.home, wait_s=0)
        store.save("m", FIRST, base=None)
        store.save("m", weights(4), base=None)
        store.save("n", FIRST, base=None)
        store.save("n", TUNED, base="n@1")
        store.save("n", OTHER, base=None)
        store.patch("n", ROWS)
        store.remove("m@1", "n@1", "n@2")
    cut = FaultyStore(blobs, lambda op, key, n: CUT if key.startswith(VERSIONS) else None)
    with opened(cut, tmp_path_factory.mktemp("cut")) as store, pytest.raises(Unreachable):
        store.save("cut", LEFT)
    return blobs


def copied(blobs: MemoryStore) -> MemoryStore:
    copy = MemoryStore("copy")
    copy._blobs = dict(blobs._blobs)
    return copy


@dataclass(frozen=True)
class Act:
    """What somebody does: the version and content that must be there once it returned."""

    do: Callable[[Store], object]
    ref: str
    content: Model
    may_fail: tuple[type[TierstoreError], ...] = ()


ACTS = {
    "save of what was removed": Act(lambda s: s.save("new", FIRST), "new", FIRST),
    "save of what was removed, as a delta": Act(
        lambda s: s.save("n", TUNED, base="n@3"), "n", TUNED
    ),
    "save of something new": Act(lambda s: s.save("m", weights(9)), "m", weights(9)),
    "save of what one that was cut off has stored": Act(lambda s: s.save("cut", LEFT), "cut", LEFT),
    "patch": Act(lambda s: s.patch("n@3", ROWS), "n", PATCHED),
    "fold": Act(lambda s: s.fold("n@4"), "n@4", PATCHED),
    "undelete": Act(lambda s: s.undelete("n@2"), "n@2", TUNED, (NotFound,)),
    "undelete and rebase": Act(
        lambda s: (s.undelete("n@2"), s.rebase("n@2", above=1)), "n@2", TUNED, (TierstoreError,)
    ),
}


class Paused:
    """A plan that runs ``meanwhile`` before the calls with some numbers."""

    def __init__(self, stops: Collection[int], meanwhile: Callable[[], object]) -> None:
        self.stops, self.meanwhile = set(stops), meanwhile

    def __call__(self, op: str, key: str, n: int) -> Fault:
        if n in self.stops:
            self.stops.discard(n)
            self.meanwhile()
        return None


def is_sound(blobs: MemoryStore, cache: Path, act: Act | None = None) -> None:
    """All that was promised is there, also after two more collections, and garbage is gone."""
    collect(blobs)
    done = collect(blobs)
    assert done is not None
    assert {one.state for one in done.packs} <= {"live", "chain", "base"}, done.reasons()
    with opened(blobs, cache / uuid.uuid4().hex) as store:
        equal(store.load("m@2").load(), weights(4))
        equal(store.load("n@3").load(), OTHER)
        equal(store.load("n@4").load(), PATCHED)
        if act is not None:
            equal(store.load(act.ref).load(), act.content)
        report = store.check(read_data=True)
        assert not report.damaged, report.findings


def run(act: Act, plan: FaultPlan | None, blobs: MemoryStore, cache: Path) -> int:
    """Do it; return how many calls that took, after looking that nothing was lost."""
    done = True
    store = FaultyStore(blobs, plan)
    with opened(store, cache / uuid.uuid4().hex) as opened_store:
        try:
            act.do(opened_store)
        except act.may_fail:
            done = False
    is_sound(blobs, cache, act if done else None)
    return len(store.calls)


def some(calls: int, seed: str) -> list[set[int]]:
    """Where to stop: mostly once, sometimes twice or three times; as many as are asked for."""
    rng = random.Random(seed)
    every = range(1, calls + 1)
    if calls <= SCHEDULES:
        return [{one} for one in every] + [set(rng.sample(every, 2)) for _ in every]
    return [set(rng.sample(every, rng.choice((1, 1, 2, 3)))) for _ in range(SCHEDULES)]


@pytest.mark.parametrize("name", ACTS)
def test_collections_between_any_two_calls_of_a_writer(
    name: str, world: MemoryStore, cache: Path
) -> None:
    act = ACTS[name]
    calls = run(act, None, copied(world), cache)
    for number, stops in enumerate(some(calls, name)):
        blobs = copied(world)
        lapse = number % 4 > 0  # its leases hold as well

        run(act, Paused(stops, functools.partial(meanwhile, blobs, lapse=lapse)), blobs, cache)


@pytest.fixture(scope="module")
def broken(world: MemoryStore) -> MemoryStore:
    """The same store, where packs that stay are condemned, and a layout is missing."""
    blobs = copied(world)
    home = Home(blobs)
    for ref in ("m@2", "n@3"):
        digest = Names(home, "node", {}).resolve(ref).digest
        table = home.layout(digest, home.manifest(digest))
        condemn(blobs, *map(pack_key, table.pack_ids))
    blobs.delete([layout_key(digest)])
    return blobs


def collector_calls(blobs: MemoryStore) -> int:
    watched = FaultyStore(copied(blobs))
    Collector(Home(watched)).run(grace_s=0, window_s=0)
    return len(watched.calls)


@pytest.mark.parametrize("which", ["world", "broken"])
def test_a_collection_between_any_two_calls_of_a_collector(
    which: str, request: pytest.FixtureRequest, cache: Path
) -> None:
    before: MemoryStore = request.getfixturevalue(which)
    for stops in some(collector_calls(before), which):
        blobs = copied(before)
        plan = Paused(stops, functools.partial(meanwhile, blobs))
        with contextlib.suppress(Conflict):  # the other one has taken over
            Collector(Home(FaultyStore(blobs, plan))).run(grace_s=0, window_s=0)
        is_sound(blobs, cache)


@pytest.mark.parametrize("name", [name for name in ACTS if "rebase" not in name])
def test_a_writer_within_a_collection(name: str, world: MemoryStore, cache: Path) -> None:
    act = ACTS[name]
    for stops in some(collector_calls(world), name):
        blobs, done = copied(world), list[bool]()

        def write(blobs: MemoryStore = blobs, done: list[bool] = done) -> None:
            with opened(blobs, cache / uuid.uuid4().hex) as store:
                try:
                    act.do(store)
                    done.append(True)
                except act.may_fail:
                    done.append(False)

        Collector(Home(FaultyStore(blobs, Paused({min(stops)}, write)))).run(grace_s=0, window_s=0)
        is_sound(blobs, cache, act if done == [True] else None)


@pytest.mark.parametrize("which", ["world", "broken"])
def test_a_collector_that_dies_after_any_of_its_writes(
    which: str, request: pytest.FixtureRequest, cache: Path
) -> None:
    before: MemoryStore = request.getfixturevalue(which)
    watched = FaultyStore(copied(before))
    Collector(Home(watched)).run(grace_s=0, window_s=0)
    for writes in range(watched.mutations):
        blobs = copied(before)
        with pytest.raises(Crashed):
            Collector(Home(FaultyStore(blobs, crash_after=writes))).run(grace_s=0, window_s=0)
        is_sound(blobs, cache)


@pytest.fixture(scope="module")
def settled(world: MemoryStore) -> MemoryStore:
    """The same store without garbage, but that the packs which m@2 has alone are condemned."""
    blobs = copied(world)
    collect(blobs)
    home = Home(blobs)
    names = Names(home, "node", {})
    own, others = (
        set(home.layout(digest, home.manifest(digest)).pack_ids)
        for digest in (names.resolve("m@2").digest, names.resolve("n@3").digest)
    )
    condemn(blobs, *map(pack_key, own - others))
    return blobs


@pytest.mark.parametrize("which", ["world", "settled"])
def test_a_reader_that_begins_within_a_collection_before_the_removal(
    which: str, request: pytest.FixtureRequest, cache: Path
) -> None:
    """Removals are read before leases: so either the version is seen in force, or the reader is."""
    before: MemoryStore = request.getfixturevalue(which)
    digest = Names(Home(before), "node", {}).resolve("m@2").digest
    for stop in range(1, collector_calls(before) + 1):
        blobs = copied(before)
        log = Home(blobs).log("m", REMOVED_LOG)

        def read_and_remove(blobs: MemoryStore = blobs, log: RefLog = log) -> None:
            lease = new_lease("reader")
            lease.versions.append(digest.hex)
            blobs.put(LEASES + lease.id, seal_body(Kind.LEASE, lease))
            log.append("forget", lambda last: NOWHERE, None, [2])

        plan = Paused({stop}, read_and_remove)
        # as where the clock of who removes it is a minute behind
        Collector(Home(FaultyStore(blobs, plan))).run(grace_s=0, window_s=-60)
        log.append("undelete", lambda last: NOWHERE, None, [2])
        with opened(blobs, cache / uuid.uuid4().hex) as store:
            equal(store.load("m@2").load(), weights(4))


def test_two_removals_of_one_version(world: MemoryStore, cache: Path) -> None:
    """Whatever one of them sees of the other: it says so, and the version is removed."""
    watched = FaultyStore(copied(world))
    with opened(watched, cache / "watched") as store:
        store.remove("n@4", force=True)
    for stop in range(1, len(watched.calls) + 1):
        blobs = copied(world)

        def remove(blobs: MemoryStore = blobs) -> None:
            folder = cache / uuid.uuid4().hex
            with opened(blobs, folder) as store, contextlib.suppress(Conflict, NotFound):
                store.remove("n@4", force=True)

        with opened(FaultyStore(blobs, Paused({stop}, remove)), cache / uuid.uuid4().hex) as store:
            with contextlib.suppress(Conflict, NotFound):
                store.remove("n@4", force=True)
            assert "n@4" not in [str(version) for version in store.versions("n")]
