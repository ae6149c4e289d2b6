"""No feature of a store is lost, and nothing is removed before older saves were waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.kit import created, opened, tensors
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, NotFound, UsageError
from tierstore.format.keys import ALIASES, CONFIG, RESERVE, SWEEPS
from tierstore.format.storeconfig import RECLAIM_FEATURE, Features, reclaims
from tierstore.format.tiers import FEATURE, TierSpec
from tierstore.ids import Buffer, ByteRange
from tierstore.modelstore.home.features import add_features
from tierstore.modelstore.home.home import Home, create_config, read_config
from tierstore.modelstore.home.once import create_once
from tierstore.modelstore.home.tierlist import TierLog, added
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore

BOTH = Features([FEATURE], sorted([RECLAIM_FEATURE, FEATURE]), [RECLAIM_FEATURE])


@pytest.fixture
def blobs() -> MemoryStore:
    blobs = MemoryStore("features")
    create_config(blobs)
    return blobs


@pytest.fixture
def store(cache: Path) -> Iterator[Store]:
    with created(MemoryStore("waits"), cache) as store:
        for number in range(1, 4):
            store.save("m", tensors(number), base=None)
        yield store


def allow(blobs: BlobStore) -> None:
    enable(Home(blobs), wait_s=0)


def add_tier(blobs: BlobStore) -> None:
    spec = TierSpec(name="warm", role="warm", url="file:///warm")
    TierLog(blobs).change(lambda tiers: added(tiers, spec))


ACTS: dict[str, Callable[[BlobStore], None]] = {"allow": allow, "add a tier": add_tier}


def at_call(number: int, act: Callable[[], None]) -> Callable[[str, str, int], Fault]:
    left = [number]

    def plan(op: str, key: str, n: int) -> Fault:
        left[0] -= 1
        if left[0] == 0:
            act()
        return None

    return plan


class Stale(MemoryStore):
    """The same store for somebody who writes by what config.json was before anything happened."""

    def __init__(self, blobs: MemoryStore) -> None:
        super().__init__("at once")
        self._blobs = blobs._blobs
        self._read: memoryview | None = blobs.get(CONFIG)

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        if key == CONFIG and self._read is not None:
            return self._read
        return super().get(key, byte_range)

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        if key == CONFIG:
            self._read = None
        super().put(key, data)


@pytest.mark.parametrize("other", ["allow", "add a tier"])
@pytest.mark.parametrize("is_stale", [False, True])
def test_features_that_are_added_at_once_are_all_there(other: str, is_stale: bool) -> None:
    """One acts between any two calls of the other, or has read before the other began."""
    [one] = ACTS.keys() - {other}
    number, is_behind = 0, False
    while not is_behind:
        number += 1
        blobs = MemoryStore("at once")
        create_config(blobs)
        left = [Stale(blobs) if is_stale else blobs]

        def act(left: list[MemoryStore] = left) -> None:
            ACTS[other](left.pop())

        ACTS[one](FaultyStore(blobs, at_call(number, act)))
        if is_behind := bool(left):
            act()
        assert read_config(blobs).features == BOTH, number
    assert number > 5


def grow_old(blobs: MemoryStore, seconds: float) -> None:
    data, mtime = blobs._blobs[CONFIG]
    blobs._blobs[CONFIG] = data, mtime - seconds


def test_a_wait_in_which_the_feature_was_lost_begins_anew(blobs: MemoryStore) -> None:
    before, waits = bytes(blobs.get(CONFIG)), list[float]()

    def sleep(seconds: float) -> None:
        grow_old(blobs, seconds)
        waits.append(seconds)
        if len(waits) == 5:
            blobs.put(CONFIG, before)
        assert not reclaims(Home(blobs).config)

    enable(Home(blobs), 100, sleep)
    assert 149 < sum(waits) <= 151
    assert Home(blobs).reclaims


def test_a_wait_that_another_began_anew_is_waited_for(blobs: MemoryStore) -> None:
    """The feature was lost, and another has set it again: saves began in between."""
    before, waits = bytes(blobs.get(CONFIG)), list[float]()

    def sleep(seconds: float) -> None:
        grow_old(blobs, seconds)
        waits.append(seconds)
        if len(waits) == 5:
            blobs.put(CONFIG, before)
            add_features(blobs, write=[RECLAIM_FEATURE])
        assert not reclaims(Home(blobs).config)

    enable(Home(blobs), 100, sleep)
    assert 149 < sum(waits) <= 151


def test_a_feature_that_is_lost_as_the_wait_ends(blobs: MemoryStore) -> None:
    before, lost, waits = bytes(blobs.get(CONFIG)), list[str](), list[float]()

    def lose(op: str, key: str, n: int) -> Fault:
        if op == "info" and key == CONFIG and waits and not lost:
            lost.append(key)  # behind this the wait is measured; another puts what it read before
            mtime = blobs._blobs[CONFIG][1]
            blobs._blobs[CONFIG] = before, mtime
        return None

    def sleep(seconds: float) -> None:
        grow_old(blobs, seconds)
        waits.append(seconds)
        if lost:
            assert not reclaims(read_config(blobs))

    enable(Home(FaultyStore(blobs, lose)), 10, sleep)
    assert lost
    assert sum(waits) > 19, "whoever wrote after that is waited for"


@pytest.mark.parametrize("stray", ["gc/notes.txt", "gc/1", "sweeps/README", "condemned/.keep"])
def test_stray_objects_allow_nothing(blobs: MemoryStore, stray: str) -> None:
    blobs.put(stray, b"of somebody else")
    add_tier(blobs)
    assert read_config(blobs).features == Features([FEATURE], [FEATURE], [])


def test_the_first_collection_looks_behind_its_lease(blobs: MemoryStore) -> None:
    """Its lease is the first object that shows the feature, as there was no room for a reserve."""
    before = bytes(blobs.get(CONFIG))
    allow(blobs)
    blobs.delete([RESERVE])

    def lose(op: str, key: str, n: int) -> Fault:
        if op == "put_if_absent" and key.startswith(SWEEPS):
            blobs.put(CONFIG, before)
        return None

    Collector(Home(FaultyStore(blobs, lose))).run()
    assert reclaims(read_config(blobs))


def test_who_names_a_version_while_removal_begins_looks(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is on its way, with a config.json that was read before, when the wait is over."""
    home = store._parts.home
    add_features(home.blobs, write=[RECLAIM_FEATURE])
    removed = list[str]()

    def slowly(blobs: BlobStore, key: str, data: bytes) -> bool:
        if ALIASES in key and not removed:
            enable(home, 0)
            removed.extend(map(str, store.remove("m@1")))
        return create_once(blobs, key, data)

    with opened(home.blobs, cache / "other") as other:
        monkeypatch.setattr("tierstore.modelstore.home.refs.create_once", slowly)
        with pytest.raises(NotFound, match="m@1 was removed"):
            other.alias("m", "prod", "m@1")
        assert removed == ["m@1"]
        with pytest.raises(NotFound):
            other.resolve("m@prod")


def test_nothing_is_removed_or_collected_before_the_wait_is_over(store: Store, cache: Path) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    home = store._parts.home
    with pytest.raises(KeyboardInterrupt):
        enable(home, 100, interrupted)
    with opened(home.blobs, cache / "other") as other:
        for one in (store, other):
            assert not one.reclaim.is_enabled
            with pytest.raises(UsageError, match="gc --enable' waits for the rest"):
                one.remove("m@1")
            with pytest.raises(UsageError, match="gc --enable' waits for the rest"):
                one.reclaim.run()
        other.save("m", tensors(4), base=None)
        assert read_config(home.blobs).features.write == [RECLAIM_FEATURE], "old ones are out"
        enable(home, 0)
        other.remove("m@2")
    assert Collector(home).run(grace_s=0, window_s=0).condemned


def test_where_others_change_features_all_the_time_it_ends(blobs: MemoryStore) -> None:
    before = bytes(blobs.get(CONFIG))

    def plan(op: str, key: str, n: int) -> Fault:
        if op == "get" and key == CONFIG:
            blobs.put(CONFIG, before)
        return None

    with pytest.raises(Conflict, match="others change the features"):
        add_tier(FaultyStore(blobs, plan))
