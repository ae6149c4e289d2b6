"""What a collection keeps in home for the next one, which another process or machine may run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.kit import created, tensors
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import OutOfSpace
from tierstore.format.keys import COLLECTED
from tierstore.format.sealed import Kind, unseal
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.reclaim import kept as kept_module
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.reclaim.kept import Kept, read_kept, read_last, write_kept
from tierstore.modelstore.reclaim.report import Amount, Report, State
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore

PACK, OTHER = bytes(32), bytes([1]) * 32
NOW_S = 1_700_000_000.0


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("collected")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        for number in range(1, 4):
            store.save("m", tensors(number), base=None)
        yield store


def collect(blobs: MemoryStore | FaultyStore) -> Report:
    """Collect as a process of its own does."""
    return Collector(Home(blobs)).run(grace_s=0, window_s=0)


def state_of(report: Report, pack: bytes) -> State:
    return {one.pack: one.state for one in report.packs}[pack]


def own_pack(store: Store, ref: str) -> bytes:
    home = store._parts.home
    digest, first = store.resolve(ref).digest, store.resolve("m@1").digest
    [own] = {*home.layout(digest, home.manifest(digest)).pack_ids} - {
        *home.layout(first, home.manifest(first)).pack_ids
    }
    return own


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """How the machine answers when it is asked since when it runs."""
    said: dict[str, object] = {"boot": "this", "running_s": 1000.0}
    monkeypatch.setattr(kept_module, "boot", lambda: said["boot"])
    monkeypatch.setattr(kept_module, "running_s", lambda: said["running_s"])
    return said


@pytest.mark.parametrize(
    ("boot", "home_s", "machine_s", "waited_s"),
    [
        ("this", 3600, 3600, 3600),
        ("this", 3603, 3600, 3603),
        ("this", 7200, 3600, 3600),  # home's clock was set an hour ahead
        ("this", 1e9, 60, 60),
        ("this", -3600, 60, 0),  # and back
        ("other", 7200, 10, 7200),  # another machine, or this one was started anew
        ("", 7200, 10, 7200),
    ],
)
def test_a_grace_is_never_counted_too_long(
    blobs: MemoryStore,
    machine: dict[str, object],
    boot: str,
    home_s: float,
    machine_s: float,
    waited_s: float,
) -> None:
    write_kept(blobs, Kept({PACK: NOW_S, OTHER: NOW_S - 50}), NOW_S)
    machine.update(boot=boot, running_s=1000.0 + machine_s)
    seen = read_kept(blobs, NOW_S + home_s).seen
    assert NOW_S + home_s - seen[PACK] == waited_s
    assert NOW_S + home_s - seen[OTHER] == (waited_s + 50 if home_s > 0 else 0)


def test_times_are_rounded_to_later_ones(blobs: MemoryStore) -> None:
    write_kept(blobs, Kept({PACK: NOW_S + 0.25}), NOW_S + 1)
    assert read_kept(blobs, NOW_S + 1).seen == {PACK: NOW_S + 1}


def test_what_is_lost_or_damaged_only_makes_packs_wait(
    blobs: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_kept(blobs, NOW_S) == Kept()
    write_kept(blobs, Kept({PACK: NOW_S}, {"ab" * 16: frozenset()}), NOW_S)
    whole = bytes(blobs.get(COLLECTED))
    assert unseal(Kind.COLLECTED, whole, COLLECTED)
    blobs.put(COLLECTED, whole[:-1])
    assert read_kept(blobs, NOW_S) == Kept()
    assert read_last(blobs) is None
    assert "garbage waits as if no collection had been" in caplog.text


def test_the_saves_of_a_segment_are_those_of_its_time_in_every_process(
    store: Store, blobs: MemoryStore
) -> None:
    own = own_pack(store, "m@2")
    store.remove("m@2")
    with WriterLease(blobs):
        assert state_of(collect(blobs), own) == "writing"
        later = WriterLease(blobs)
        later.__enter__()
    with later:
        assert state_of(collect(blobs), own) == "deleted", "the later save looks at the list itself"


def test_where_the_saves_of_a_segment_are_not_known_all_are_waited_for(
    store: Store, blobs: MemoryStore
) -> None:
    own = own_pack(store, "m@2")
    store.remove("m@2")
    with WriterLease(blobs):
        assert state_of(collect(blobs), own) == "writing"
    blobs.delete([COLLECTED])
    with WriterLease(blobs) as later:
        assert state_of(collect(blobs), own) == "writing"
        [writers] = read_kept(blobs, time.time()).writers.values()
        assert writers == {later._lease.id}
    assert state_of(collect(blobs), own) == "deleted"


def test_what_the_last_collection_did_is_told_to_all(store: Store, blobs: MemoryStore) -> None:
    assert read_last(blobs) is None
    own = own_pack(store, "m@2")
    size = len(blobs.get(f"packs/{own.hex()[:2]}/{own.hex()}"))
    store.remove("m@2")
    before = datetime.now(UTC) - timedelta(seconds=2)
    with WriterLease(blobs):
        collect(blobs)
        last = read_last(blobs)
        assert last is not None
        assert last.freed == {}
        assert last.garbage == {"home": Amount(1, size)}
        assert last.removed == {"home": Amount(0, 0)}
    Collector(Home(blobs)).run(dry_run=True, window_s=0)
    assert read_last(blobs) == last, "a dry run did nothing"
    report = collect(blobs)
    last = read_last(blobs)
    assert last is not None
    assert before < last.time < datetime.now(UTC) + timedelta(seconds=2)
    assert last.who == whoami()
    assert last.freed == report.freed == {"home": size}
    assert last.garbage == {"home": Amount(0, 0)}
    store.remove("m@1")
    Collector(Home(blobs)).run(grace_s=0)
    last = read_last(blobs)
    assert last is not None
    assert last.removed["home"].packs == 0, "m@3 needs what m@1 has"


def test_a_full_disk_keeps_nothing_and_still_deletes(store: Store, blobs: MemoryStore) -> None:
    store.remove("m@2")

    def full(op: str, key: str, n: int) -> Fault:
        return OutOfSpace("the disk is full") if op == "put" and key == COLLECTED else None

    report = collect(FaultyStore(blobs, full))
    assert len(report.of("deleted")) == 1
    assert read_last(blobs) is None
