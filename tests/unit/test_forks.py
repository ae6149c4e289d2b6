"""What is registered begins anew in every child, as long as it lives, and nowhere else."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
import weakref
from pathlib import Path

import pytest

from tests.children import forked
from tierstore import forks


class Held:
    def __init__(self) -> None:
        self.begun: list[int] = []
        forks.begin(self._begin)

    def _begin(self) -> None:
        self.lock = threading.Lock()
        self.begun.append(os.getpid())


def test_it_begins_at_once_and_again_in_each_child() -> None:
    held = Held()
    parent = os.getpid()

    def look() -> tuple[bool, dict[str, str]]:
        below = forked({"grandchild": lambda: held.begun == [parent, os.getppid(), os.getpid()]})
        return held.begun == [parent, os.getpid()], below

    assert forked({"child": look}) == {"child": "(True, {'grandchild': 'True'})"}
    assert held.begun == [parent]


def test_a_lock_that_another_thread_holds_is_free_in_the_child() -> None:
    held = Held()
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with held.lock:
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        assert forked({"child": lambda: held.lock.acquire(timeout=5)}) == {"child": "True"}
    finally:
        done.set()
        thread.join()


def test_what_has_ended_is_forgotten() -> None:
    held = Held()
    owner = weakref.ref(held)
    assert any(known() is held for known, _ in forks._methods.values())
    gc.collect()
    before = len(forks._methods)
    del held
    assert owner() is None
    assert len(forks._methods) == before - 1


def test_what_a_child_drops_in_its_beginning_is_told_too() -> None:
    """A registry of stores is emptied in the child; the clients in it must not be freed there."""
    read, write = os.pipe()

    class Client:
        def __init__(self) -> None:
            self.left = False
            forks.begin(self._begin)

        def _begin(self) -> None:
            self.left = True

        def __del__(self) -> None:
            os.write(write, b"+" if self.left else b"-")

    class Registry:
        def __init__(self) -> None:
            self.clients: list[Client] = []
            forks.begin(self._begin)

        def _begin(self) -> None:
            self.clients = []

    registry = Registry()
    client = Client()
    registry.clients.append(client)
    client.left = False
    del client
    assert forked({"child": lambda: os.read(read, 1)}) == {"child": "b'+'"}
    registry.clients.clear()
    os.close(read)
    os.close(write)


def test_how_many_forks_lie_behind() -> None:
    here = forks.forks()
    found = forked({"child": lambda: (forks.forks(), forked({"below": forks.forks}))})
    assert found == {"child": f"({here + 1}, {{'below': '{here + 2}'}})"}


def test_what_is_left_to_the_parent_is_never_freed(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "db")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE t (x)")
    holder = [db]

    def drop() -> bool:
        forks.leave(*holder)
        holder.clear()
        nonlocal db
        del db
        gc.collect()
        return (tmp_path / "db-wal").exists()

    assert forked({"child": drop}) == {"child": "True"}
    db.close()


@pytest.mark.parametrize("count", [1, 3])
def test_a_hanging_child_is_named(count: int) -> None:
    stop = threading.Event()
    found = forked({str(n): stop.wait for n in range(count)}, timeout_s=0.2)
    assert found == {str(n): "hangs" for n in range(count)}
