"""Leases: written before anything else, removed at the end, never in the way of reading."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.children import forked
from tests.waiting import wait_until
from tierstore.blobs.base import BlobInfo, BlobStore
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import OutOfSpace, PermissionDenied, Unreachable
from tierstore.format.reflog import Lease
from tierstore.format.sealed import Kind, unseal_body
from tierstore.ids import Buffer
from tierstore.modelstore.home import leases, readerlease
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.readerlease import ReaderLease
from tierstore.testing.faulty import Fault, FaultyStore


def held(home: BlobStore) -> list[Lease]:
    keys = [info.key for info in home.list("leases/")]
    return [unseal_body(Kind.LEASE, home.get(key), Lease, key) for key in keys]


def wait_for(home: BlobStore, versions: set[str]) -> None:
    deadline = time.monotonic() + 20
    while {v for lease in held(home) for v in lease.versions} != versions:
        assert time.monotonic() < deadline, f"the lease never named {versions}: {held(home)}"
        time.sleep(0.005)


def test_a_writer_holds_one_lease_until_it_is_done() -> None:
    home = MemoryStore()
    with WriterLease(home) as lease:
        (found,) = held(home)
        assert (found.role, found.pid, found.versions) == ("writer", os.getpid(), [])
        assert found.ttl_s == leases.TTL_S
        assert lease.renew()
        lease.keep()
        assert len(held(home)) == 1
    assert held(home) == []


def test_a_lease_that_ended_in_between_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    home = MemoryStore()
    clock = [1000.0]
    monkeypatch.setattr(leases, "running_s", lambda: clock[0])
    with WriterLease(home) as lease:
        first = home.info(f"leases/{held(home)[0].id}").mtime
        clock[0] += leases.TTL_S / 4
        lease.keep()
        assert home.info(f"leases/{held(home)[0].id}").mtime == first, "it had time left"
        clock[0] += leases.TTL_S / 4
        lease.keep()
        assert home.info(f"leases/{held(home)[0].id}").mtime > first
        clock[0] += leases.TTL_S + 1
        assert not lease.renew(), "garbage collection may have run meanwhile"
        assert lease.renew()


def test_a_lease_is_as_old_as_the_request_that_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(leases, "running_s", lambda: clock[0])

    class Slow(MemoryStore):
        takes_s = 0.0

        def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
            super().put(key, data)
            clock[0] += self.takes_s

    home = Slow()
    with WriterLease(home) as lease:
        home.takes_s = leases.TTL_S / 2
        assert lease.renew()
        assert not lease.is_young, "a third of its time has passed since it was written"
        clock[0] += leases.TTL_S / 4
        assert not lease.renew(), "it ended before the storage answered"


def test_no_lease_no_save() -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return OutOfSpace("full") if op == "put" else None

    with pytest.raises(OutOfSpace), WriterLease(FaultyStore(MemoryStore(), plan)):
        pytest.fail("a save began without a lease")


def test_a_lease_that_cannot_be_removed_ends_by_itself() -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return Unreachable("no answer") if op == "delete" else None

    home = MemoryStore()
    with WriterLease(FaultyStore(home, plan)):
        pass
    assert len(held(home)) == 1


def ids(count: int) -> list[str]:
    return [f"{n:064x}" for n in range(count)]


def test_a_reader_names_its_versions_in_one_lease() -> None:
    home = MemoryStore()
    lease = ReaderLease(home)
    holds = [lease.hold(version) for version in ("aa" * 32, "bb" * 32, "aa" * 32)]
    wait_for(home, {"aa" * 32, "bb" * 32})
    (found,) = held(home)
    assert (found.role, found.pid) == ("reader", os.getpid())
    lease.close()
    lease.close()
    assert held(home) == []
    del holds


def test_a_version_is_released_with_its_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readerlease, "RELEASE_S", 0.0)
    home = MemoryStore()
    lease = ReaderLease(home)
    first, second, other = (lease.hold(version * 32) for version in ("aa", "aa", "bb"))
    wait_for(home, {"aa" * 32, "bb" * 32})
    first.release()
    first.release()
    del other  # as the garbage collector does
    wait_for(home, {"aa" * 32})
    second.release()
    wait_until(lambda: not held(home), "a lease of nothing is removed")
    wait_until(lambda: lease._thread is None, "its thread ends")
    again = lease.hold("cc" * 32)
    wait_for(home, {"cc" * 32})
    again.release()
    lease.close()


def test_many_versions_are_in_several_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is written when one of its own versions changes, and stays far from the largest size."""
    monkeypatch.setattr(readerlease, "RELEASE_S", 0.0)
    monkeypatch.setattr(readerlease, "MAX_VERSIONS", 10)
    home = MemoryStore()
    lease = ReaderLease(home)
    holds = [lease.hold(version) for version in ids(25)]
    wait_for(home, set(ids(25)))
    assert sorted(len(one.versions) for one in held(home)) == [5, 10, 10]
    first = next(one for one in held(home) if ids(1)[0] in one.versions)
    for hold in holds[:10]:
        hold.release()
    wait_for(home, set(ids(25)[10:]))
    assert first.id not in {one.id for one in held(home)}
    lease.close()
    assert held(home) == []


def test_a_lease_that_cannot_be_written_is_loud_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readerlease, "RETRY_S", 0.001)
    down = [Unreachable("no answer")] * 3

    def plan(op: str, key: str, n: int) -> Fault:
        return down.pop() if op == "put" and down else None

    home = MemoryStore("home")
    lease = ReaderLease(FaultyStore(home, plan))
    with caplog.at_level("WARNING"):
        hold = lease.hold("aa" * 32)
        wait_for(home, {"aa" * 32})
        wait_until(lambda: len(caplog.messages) == 2, "it says that it is back")
    assert caplog.messages == [
        "the lease of this reader in memory://home cannot be written, and is tried again every few "
        "seconds: no answer. Versions that are removed while it is read may be deleted under it at "
        "any time",
        "the lease of this reader in memory://home is written again",
    ]
    hold.release()
    lease.close()


def test_a_renewal_that_fails_says_how_long_the_lease_lasts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readerlease, "TTL_S", 600)
    down = threading.Event()

    def plan(op: str, key: str, n: int) -> Fault:
        return PermissionDenied("not any more") if op == "put" and down.is_set() else None

    home = MemoryStore("home")
    lease = ReaderLease(FaultyStore(home, plan))
    first = lease.hold("aa" * 32)
    wait_for(home, {"aa" * 32})
    down.set()
    with caplog.at_level("WARNING"):
        second = lease.hold("bb" * 32)
        wait_until(lambda: bool(caplog.messages), "it says so")
    assert caplog.messages[0].endswith(
        "not any more. Versions that are removed while it is read may be deleted under it in 10 min"
    )
    lease.close()
    del first, second


def test_a_store_that_cannot_be_written_is_read_without_a_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused = threading.Semaphore(0)

    def plan(op: str, key: str, n: int) -> Fault:
        if op not in {"put", "delete"}:
            return None
        refused.release()
        return PermissionDenied("read-only")

    home = MemoryStore()
    lease = ReaderLease(FaultyStore(home, plan))
    holds = []
    with caplog.at_level("INFO"):
        for version in ("aa" * 32, "bb" * 32):
            holds.append(lease.hold(version))
            assert refused.acquire(timeout=20), "it gave up: a store may be writable again"
        lease.close()
    assert refused.acquire(timeout=0), "it did not try to take the lease back"
    assert caplog.messages == [
        "reading without a lease: read-only", "reading without a lease: read-only",
        "the reader's lease was not removed: read-only",
    ]  # fmt: skip
    assert held(home) == []


def test_a_forked_child_has_a_lease_of_its_own_once_it_reads(tmp_path: Path) -> None:
    home = LocalStore(tmp_path, create=True)
    lease = ReaderLease(home)
    hold = lease.hold("aa" * 32)
    wait_for(home, {"aa" * 32})
    (parents,) = held(home)

    def reads() -> str:
        hold.go_on()
        wait_until(lambda: len(held(home)) == 2, "the child has a lease")
        own = next(one for one in held(home) if one.id != parents.id)
        assert (own.pid, own.versions) == (os.getpid(), parents.versions)
        lease.close()
        return str(held(home) == [parents])

    def only_ends() -> bool:
        lease.close()
        return held(home) == [parents]

    assert forked({"ends": only_ends}) == {"ends": "True"}
    assert forked({"reads": reads}) == {"reads": "True"}
    lease.close()
    assert held(home) == []


ENDS = """
import sys, tierstore
store = tierstore.open(sys.argv[1])
model = store.load("m")
while not any(store._blobs.list("leases/")): pass
"""


def test_a_process_that_closes_nothing_leaves_no_lease(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"w": np.ones(3, np.float32)})
    subprocess.run([sys.executable, "-c", ENDS, str(tmp_path / "store")], check=True, timeout=120)
    assert list((tmp_path / "store" / "leases").iterdir()) == []


CHILDREN = """
import multiprocessing, os, sys, tierstore
from pathlib import Path

def read(tensor):
    tensor[1]
    leases = Path(sys.argv[1], "leases")
    while not any(f'"pid":{os.getpid()},'.encode() in one.read_bytes() for one in leases.iterdir()):
        pass

if __name__ == "__main__":
    store = tierstore.open(sys.argv[1])
    tensor = store.load("m").tensor("w")
    for how in ("fork", "spawn", "forkserver"):
        child = multiprocessing.get_context(how).Process(target=read, args=(tensor,))
        child.start()
        child.join()
        print(how, child.exitcode)
"""


def test_processes_of_multiprocessing_leave_no_lease(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"w": np.ones(3, np.float32)})
    program = tmp_path / "program.py"  # what spawn runs again
    program.write_text(CHILDREN)
    said = subprocess.check_output(
        [sys.executable, program, tmp_path / "store"], text=True, timeout=240
    )
    assert said.splitlines() == ["fork 0", "spawn 0", "forkserver 0"]
    assert list((tmp_path / "store" / "leases").iterdir()) == []


def test_a_forked_child_does_not_hold_what_its_parent_gave_back(tmp_path: Path) -> None:
    home = LocalStore(tmp_path, create=True)
    lease = ReaderLease(home)
    given_back, kept = lease.hold("aa" * 32), lease.hold("bb" * 32)
    wait_for(home, {"aa" * 32, "bb" * 32})
    (parents,) = held(home)
    given_back.release()

    def reads() -> list[str]:
        kept.go_on()
        wait_until(lambda: len(held(home)) == 2, "the child has a lease")
        (own,) = [one.versions for one in held(home) if one.id != parents.id]
        lease.close()
        return own

    assert forked({"child": reads}) == {"child": str(["bb" * 32])}
    lease.close()


def test_a_model_that_nobody_has_any_more_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readerlease, "RELEASE_S", 0.0)
    store = tierstore.init(tmp_path / "store")
    first = store.save("m", {"w": np.ones(3, np.float32)})
    second = store.save("m", {"w": np.zeros(3, np.float32)})
    kept, tensor = store.load(first), store.load(second).tensor("w")
    home = LocalStore(tmp_path / "store")
    wait_for(home, {first.digest.hex, second.digest.hex})
    kept.close()
    wait_for(home, {second.digest.hex})
    assert tensor.numpy().tolist() == [0.0, 0.0, 0.0]
    del tensor
    wait_until(lambda: not held(home), "nothing is read")
    assert kept["w"].tolist() == [1.0, 1.0, 1.0]
    store.close()


def test_leases_of_killed_processes_are_removed_by_saves() -> None:
    home = MemoryStore()
    for _ in range(3):
        WriterLease(home).renew()
    keys = [info.key for info in home.list("leases/")]
    home.put(f"leases/{0:032x}", b"?")
    ages = {keys[0]: 2 * leases.TTL_S + 60, keys[1]: 2 * leases.TTL_S - 60, f"leases/{0:032x}": 1e6}
    for key, age in ages.items():
        data, mtime = home._blobs[key]
        home._blobs[key] = data, mtime - age
    with WriterLease(home) as lease:
        lease.remove_ended()
        left = {info.key for info in home.list("leases/")}
        assert left == {keys[1], keys[2], lease._key}


@pytest.mark.parametrize("ahead_s", [-5 * 3600.0, 5 * 3600.0])
def test_saves_are_running_by_homes_clock(ahead_s: float) -> None:
    """And not by that of the machine that looks, which here differs by more than a lease's time."""

    class Elsewhere(MemoryStore):
        def info(self, key: str) -> BlobInfo:
            found = super().info(key)
            return replace(found, mtime=found.mtime + ahead_s)

        def list(self, prefix: str = "") -> Iterator[BlobInfo]:
            return (replace(one, mtime=one.mtime + ahead_s) for one in super().list(prefix))

    home = Elsewhere()
    ended, running = WriterLease(home), WriterLease(home)
    for lease, age_s in ((ended, leases.TTL_S + 60), (running, leases.TTL_S - 60)):
        lease.renew()
        data, written = home._blobs[lease._key]
        home._blobs[lease._key] = data, written - age_s
    assert set(leases.writers(home)) == {running._lease.id}
    assert leases.is_saving(home)


def test_without_the_right_to_write_no_save_has_ended() -> None:
    home = MemoryStore()
    lease = WriterLease(home)
    lease.renew()
    data, _ = home._blobs[lease._key]
    home._blobs[lease._key] = data, 0.0

    def plan(op: str, key: str, n: int) -> Fault:
        return PermissionDenied("no") if op == "put_if_absent" else None

    assert set(leases.writers(FaultyStore(home, plan))) == {lease._lease.id}
    assert leases.writers(home) == {}


def test_the_clock_of_leases_counts_the_time_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux has a clock for that; one that stands still would keep a lease that others have."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= running_s() <= time.clock_gettime(time.CLOCK_BOOTTIME)
    slept = {time.CLOCK_BOOTTIME: 7200.0, time.CLOCK_MONOTONIC: 10.0}
    monkeypatch.setattr(time, "clock_gettime", slept.__getitem__)
    assert running_s() == 7200.0


@pytest.mark.parametrize("left", [{"CLOCK_MONOTONIC"}, set()])
def test_without_that_clock_another_one_does(left: set[str]) -> None:
    code = (
        "import time, sys\n"
        "gone = {'CLOCK_BOOTTIME', 'CLOCK_MONOTONIC'} - set(sys.argv[1:])\n"
        "for name in gone: delattr(time, name)\n"
        "from tierstore.modelstore.home.clock import running_s\n"
        "before = time.monotonic()\n"
        "assert before <= running_s() <= time.monotonic()\n"
    )
    subprocess.run([sys.executable, "-c", code, *left], check=True)
