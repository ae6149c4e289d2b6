"""The ref log: hints of any kind, racing writers, lost answers, and what rollback means."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    Conflict,
    Damaged,
    NotFound,
    OutOfSpace,
    Unreachable,
    UnsupportedFormat,
)
from tierstore.format.keys import REFS, entry_key, ref_prefix
from tierstore.format.reflog import Hint, RefEntry
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.storeconfig import Features, StoreConfig, encode_config
from tierstore.ids import Buffer
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.home.refs import RefLog
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore

PREFIX = ref_prefix("m", "versions")
DIGEST = "ab" * 32


def publish(_: RefEntry | None) -> tuple[int, str, None]:
    return 0, DIGEST, None


def log_of(count: int) -> tuple[MemoryStore, RefLog]:
    home = MemoryStore()
    log = RefLog(home, "m", "versions")
    for _ in range(count):
        log.append("publish", publish)
    return home, log


def hint(seq: int) -> bytes:
    return seal_body(Kind.HINT, Hint(seq=seq))


def newer(data: bytes) -> bytes:
    return data[:5] + b"\x02" + data[6:]


HINTS: dict[str, bytes | None] = {
    "missing": None,
    "stale": hint(3),
    "at the first": hint(1),
    "right": hint(17),
    "too high": hint(400),
    "far too high": hint(10**6),
    "empty": b"",
    "noise": b"not a hint at all",
    "cut short": hint(17)[:-1],
    "of a newer version": newer(hint(17)),
    "of another kind": seal_body(Kind.REF, Hint(seq=17)),
}


@pytest.mark.parametrize("kind", HINTS)
def test_a_hint_changes_no_result(kind: str) -> None:
    home, log = log_of(17)
    data = HINTS[kind]
    if data is None:
        home.delete([PREFIX + "HEAD"])
    else:
        home.put(PREFIX + "HEAD", data)
    last = log.last()
    assert last is not None
    assert last.seq == 17
    assert log.append("publish", publish).seq == 18
    assert [entry.seq for entry in log.entries(3)] == [18, 17, 16]


@given(st.integers(0, 70), st.integers(0, 90))
def test_the_last_entry_is_found_from_any_hint(count: int, at: int) -> None:
    home, log = log_of(count)
    if at:
        home.put(PREFIX + "HEAD", hint(at))
    last = log.last()
    assert (last.seq if last else 0) == count
    assert [entry.seq for entry in log.entries()] == list(range(count, 0, -1))


def test_a_good_hint_costs_three_reads() -> None:
    home, _ = log_of(50)
    counted = FaultyStore(home)
    RefLog(counted, "m", "versions").last()
    assert len(counted.calls) == 3, "hint, entry, and the one behind it"


def test_an_entry_goes_behind_what_came_since_the_end_was_seen() -> None:
    home, log = log_of(5)
    seen = log.last()
    for _ in range(3):
        log.append("publish", publish)
    counted = FaultyStore(home)
    entry = RefLog(counted, "m", "versions").append("publish", publish, seen=seen)
    assert entry.seq == 9
    read = [key.rpartition("/")[2] for op, key in counted.calls if op == "get"]
    assert read[:2] == ["000000005", "000000006"], "the search begins where the end was seen"
    assert "HEAD" not in read


def test_where_a_copy_of_home_was_put_back_no_number_is_left_out() -> None:
    home, log = log_of(7)
    seen = log.last()
    home.delete([log.key_of(6), log.key_of(7)])
    assert log.append("publish", publish, seen=seen).seq == 6


def test_what_a_client_takes_for_missing_is_looked_for_again() -> None:
    """A network file system may go on saying for a while that a file is not there."""
    home, log = log_of(5)
    seen = log.last()
    log.append("publish", publish)

    def forgetful(op: str, key: str, number: int) -> Fault:
        return NotFound(key) if number <= 2 and key == log.key_of(6) else None

    stale = FaultyStore(home, forgetful)
    assert RefLog(stale, "m", "versions").append("publish", publish, seen=seen).seq == 7


def test_racing_writers_each_get_their_own_place() -> None:
    home = MemoryStore()
    got: list[int] = []
    start = threading.Barrier(8)

    def write() -> None:
        log = RefLog(home, "m", "versions")
        start.wait()
        for _ in range(10):
            got.append(log.append("publish", publish).seq)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(1, 81))
    entries = list(RefLog(home, "m", "versions").entries())
    assert len({entry.write_id for entry in entries}) == 80


@pytest.mark.parametrize("error", [Unreachable("no answer"), OutOfSpace("full")])
def test_an_entry_that_was_not_written_is_an_error(error: Exception) -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return error if op == "put_if_absent" else None

    home = MemoryStore()
    with pytest.raises(type(error)):
        RefLog(FaultyStore(home, plan), "m", "versions").append("publish", publish)
    assert RefLog(home, "m", "versions").last() is None


def test_a_lost_answer_is_recognised_as_our_own() -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return "lose-response" if op == "put_if_absent" else None

    home = MemoryStore()
    log = RefLog(FaultyStore(home, plan), "m", "versions")
    assert [log.append("publish", publish).seq for _ in range(3)] == [1, 2, 3]
    assert len(list(RefLog(home, "m", "versions").entries())) == 3, "none was written twice"


def test_a_repeated_request_that_finds_its_own_entry_is_recognised() -> None:
    """A client that retries by itself is told that the key exists: by its own first try."""

    class Repeating(MemoryStore):
        def put_if_absent(self, key, data):
            super().put_if_absent(key, data)
            return super().put_if_absent(key, data)

    log = RefLog(Repeating(), "m", "versions")
    assert [log.append("publish", publish).seq for _ in range(3)] == [1, 2, 3]


def test_a_place_that_another_writer_took_is_not_ours() -> None:
    home = MemoryStore()
    other = RefLog(home, "m", "versions")
    taken: list[int] = []

    def plan(op: str, key: str, n: int) -> Fault:
        if op == "put_if_absent" and not taken:
            taken.append(other.append("publish", publish).seq)
            return Unreachable("no answer")  # the write was lost, and somebody else has the place
        return None

    with pytest.raises(Unreachable) as lost:
        RefLog(FaultyStore(home, plan), "m", "versions").append("publish", publish)
    assert other.own(lost.value) is None
    assert taken == [1]
    assert RefLog(home, "m", "versions").append("publish", publish).seq == 2


def test_a_failing_hint_does_not_fail_the_append() -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return OutOfSpace("full") if key.endswith("HEAD") and op == "put" else None

    log = RefLog(FaultyStore(MemoryStore(), plan), "m", "versions")
    assert [log.append("publish", publish).seq for _ in range(5)] == [1, 2, 3, 4, 5]


def test_the_target_is_asked_again_after_a_lost_race() -> None:
    home = MemoryStore()
    log = RefLog(home, "m", "versions")
    seen: list[int] = []

    def target(last: RefEntry | None) -> tuple[int, str, None]:
        seen.append(last.seq if last else 0)
        if len(seen) < 3:
            RefLog(home, "m", "versions").append("publish", publish)
        return 0, DIGEST, None

    assert log.append("publish", target).seq == 3
    assert seen == [0, 1, 2]


def test_a_damaged_entry_is_an_error_and_names_itself() -> None:
    home, log = log_of(3)
    key = entry_key(PREFIX, 3)
    data = bytearray(home.get(key))
    data[-1] ^= 1
    home.put(key, data)
    with pytest.raises(Damaged, match=key):
        log.last()
    with pytest.raises(Damaged, match=key):
        log.append("publish", publish)


# Aliases and rollback, through the store


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    blobs = MemoryStore("refs")
    create_config(blobs)
    cache = tmp_path_factory.mktemp("cache")
    store = Store(blobs, Settings(cache, threads=1, memory_limit_bytes=64 << 20))
    for value in range(1, 6):
        store.save("m", {"w": np.full(4, value, np.float32)})
    return store


def now(store: Store) -> int:
    return store.resolve("m@prod").number


def test_rollback_goes_back_one_step_each_time(store: Store) -> None:
    for number in (1, 2, 3):
        store.alias("m", "prod", f"m@{number}")
    assert store.rollback("m", "prod").version.number == 2
    assert now(store) == 2
    assert store.rollback("m", "prod").version.number == 1
    assert now(store) == 1
    with pytest.raises(NotFound, match="nothing to go back to"):
        store.rollback("m", "prod")
    assert now(store) == 1


def test_after_a_rollback_a_new_version_can_be_rolled_back_too(store: Store) -> None:
    for number in (1, 2):
        store.alias("m", "prod", f"m@{number}")
    store.rollback("m", "prod")
    store.alias("m", "prod", "m@4")
    assert store.rollback("m", "prod").version.number == 1
    with pytest.raises(NotFound):
        store.rollback("m", "prod")


def test_pointing_to_the_same_version_again_is_no_step(store: Store) -> None:
    for number in (1, 2, 2, 2):
        store.alias("m", "prod", f"m@{number}")
    assert store.rollback("m", "prod").version.number == 1


def test_rollback_brings_back_what_was_removed(store: Store) -> None:
    store.alias("m", "prod", "m@3")
    store.remove_alias("m", "prod")
    with pytest.raises(NotFound, match="m@prod does not exist; m has no alias"):
        store.load("m@prod")
    assert store.aliases("m") == []
    assert store.rollback("m", "prod").version.number == 3
    assert now(store) == 3


@pytest.mark.parametrize("prepare", ["never set", "set once"])
def test_nothing_before_is_an_error(store: Store, prepare: str) -> None:
    if prepare == "set once":
        store.alias("m", "prod", "m@1")
    with pytest.raises(NotFound, match="nothing to go back to"):
        store.rollback("m", "prod")


def test_removing_what_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(NotFound):
        store.remove_alias("m", "prod")
    store.alias("m", "prod", "m@1")
    store.remove_alias("m", "prod")
    with pytest.raises(NotFound):
        store.remove_alias("m", "prod")


def test_the_log_tells_who_pointed_what_where(store: Store) -> None:
    store.alias("m", "prod", "m@1", message="first")
    store.alias("m", "prod", "m@2", message="second")
    store.rollback("m", "prod", message="back")
    store.remove_alias("m", "prod", message="gone")
    told = [(e.action, e.version, e.message) for e in store.history("m", "prod")]
    assert told == [
        ("remove", None, "gone"),
        ("rollback", 1, "back"),
        ("set", 2, "second"),
        ("set", 1, "first"),
    ]


def test_names_that_differ_only_in_case_are_refused(store: Store) -> None:
    store.alias("m", "prod", "m@1")
    with pytest.raises(Conflict, match="only in case"):
        store.alias("m", "Prod", "m@2")
    with pytest.raises(Conflict, match="only in case"):
        store.save("M", {"w": np.zeros(1)})
    with pytest.raises(Conflict, match="only in case"):
        store.save("m", {"w": np.zeros(1)}, alias="PROD")
    assert len(store.versions("m")) == 5, "nothing was published"
    assert now(store) == 1


class CaseBlind(MemoryStore):
    """A home that takes keys which differ only in case for one, as some file systems do."""

    def _key(self, key: str) -> str:
        return next((one for one in self._blobs if one.lower() == key.lower()), key)

    def _find(self, key: str) -> tuple[bytes, float]:
        return super()._find(self._key(key))

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        super().put(self._key(key), data)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        return super().put_if_absent(self._key(key), data)


@pytest.mark.parametrize("home", [MemoryStore(), CaseBlind()])
def test_a_new_name_is_compared_with_all_others(home: MemoryStore, tmp_path: Path) -> None:
    """Also where it finds the log of another one."""
    create_config(home)
    with Store(home, Settings(tmp_path)) as store:
        store.save("Ranker", {"w": np.zeros(1)})
        with pytest.raises(Conflict, match="'ranker' differs from the existing 'Ranker' only in"):
            store.save("ranker", {"w": np.ones(1)})
        assert store.save("Ranker", {"w": np.ones(1)}).number == 2


def test_a_save_of_a_known_model_lists_no_models_and_looks_for_its_end_once(
    tmp_path: Path,
) -> None:
    home = FaultyStore(MemoryStore())
    create_config(home)
    with Store(home, Settings(tmp_path)) as store:
        store.save("m", {"w": np.zeros(1)})
        home.calls.clear()
        store.save("m", {"w": np.ones(1)})
    assert [call for call in home.calls if call == ("list_folders", REFS)] == []
    assert home.calls.count(("get", PREFIX + "HEAD")) == 1


WRITES: dict[str, Callable[[Store], object]] = {
    "save": lambda store: store.save("m", {"w": np.zeros(1)}),
    "alias": lambda store: store.alias("m", "prod", "m@1"),
    "rollback": lambda store: store.rollback("m", "prod"),
    "remove": lambda store: store.remove_alias("m", "prod"),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_store_with_an_unknown_write_feature_is_read_but_not_written(
    store: Store, write: str
) -> None:
    for number in (1, 2):
        store.alias("m", "prod", f"m@{number}")
    blobs = store._parts.home.blobs
    config = StoreConfig(store_id="0" * 32, features=Features(write=["later"]))
    blobs.put("config.json", encode_config(config))
    again = Store(blobs, store._parts.settings)
    before = [info.key for info in blobs.list("refs/")]
    with pytest.raises(UnsupportedFormat, match="'later'"):
        WRITES[write](again)
    assert [info.key for info in blobs.list("refs/")] == before
    assert again.load("m@prod")["w"][0] == 2
