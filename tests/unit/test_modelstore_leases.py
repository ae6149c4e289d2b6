"""Leases: written before anything else, removed at the end, never in the way of reading."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tierstore.blobs.memory import MemoryStore
from tierstore.errors import OutOfSpace, PermissionDenied, Unreachable
from tierstore.format.reflog import Lease
from tierstore.format.sealed import Kind, unseal_body
from tierstore.modelstore.home import leases
from tierstore.modelstore.home.leases import ReaderLease, WriterLease
from tierstore.testing.faulty import Fault, FaultyStore


def held(home: MemoryStore) -> list[Lease]:
    keys = [info.key for info in home.list("leases/")]
    return [unseal_body(Kind.LEASE, home.get(key), Lease, key) for key in keys]


def wait_for(home: MemoryStore, versions: set[str]) -> None:
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
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
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


def test_a_reader_names_its_versions_in_one_lease() -> None:
    home = MemoryStore()
    lease = ReaderLease(home)
    for version in ("aa" * 32, "bb" * 32, "aa" * 32):
        lease.add(version)
    wait_for(home, {"aa" * 32, "bb" * 32})
    (found,) = held(home)
    assert found.role == "reader"
    lease.close()
    lease.close()
    assert held(home) == []


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
    with caplog.at_level("INFO"):
        for version in ("aa" * 32, "bb" * 32):
            lease.add(version)
            assert refused.acquire(timeout=20), "it gave up: a store may be writable again"
        lease.close()
    assert refused.acquire(timeout=0), "it did not try to take the lease back"
    assert caplog.messages == [
        "reading without a lease: read-only", "reading without a lease: read-only",
        "the reader's lease was not removed: read-only",
    ]  # fmt: skip
    assert held(home) == []


def test_a_forked_child_leaves_the_lease_of_its_parent() -> None:
    home = MemoryStore()
    lease = ReaderLease(home)
    lease.add("aa" * 32)
    wait_for(home, {"aa" * 32})
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        lease.close()
        os.write(write, bytes([len(held(home))]))
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"\x01"
    os.close(read)
    lease.close()
