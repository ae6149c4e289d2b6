"""Writers and readers at the same time, from threads and from processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, created, equal, finished, opened, python, tensors
from tierstore.blobs.memory import MemoryStore

WRITER = """
import sys, time, tierstore
from tests.integration.kit import tensors
store = tierstore.open(sys.argv[1])
me, count = int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for n in range(count):
    seed = 100 * me + n
    version = store.save("m", tensors(seed), message=str(seed), alias=f"w{me}")
    print(version.number)
store.close()
"""


@pytest.mark.parametrize(("writers", "saves"), [(2, 1), (4, 5)])
def test_processes_publish_the_same_model(
    tmp_path: Path, cache: Path, writers: int, saves: int
) -> None:
    where = tmp_path / "store"
    tierstore.init(where, chunk_size=MIB).close()
    processes = [python(WRITER, where, me, saves, stdin=-1) for me in range(writers)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:  # all at once
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    got = [[int(line) for line in finished(process).split()] for process in processes]
    assert sorted(n for own in got for n in own) == list(range(1, writers * saves + 1))
    assert all(own == sorted(own) for own in got), "each writer's own stay in order"
    with tierstore.open(where) as store:
        versions = store.versions("m")
        assert [version.number for version in versions] == list(range(writers * saves, 0, -1))
        for version in versions:
            equal(store.load(str(version)).load(), tensors(int(version.message)))
        for me in range(writers):
            assert store.resolve(f"m@w{me}").number == got[me][-1]
        assert store.check(read_data=True).findings == []
        usage = store.usage()
    assert usage.versions == writers * saves


def test_threads_share_one_store(cache: Path) -> None:
    with created(MemoryStore("threads"), cache) as store:
        store.save("m", tensors(0), message="0")

        def work(me: int) -> None:
            for n in range(3):
                seed = 10 * me + n
                version = store.save("m", tensors(seed), message=str(seed))
                equal(store.load(str(version)).load(), tensors(seed))
                last = store.load("m")
                equal(last.load(), tensors(int(last.version.message)))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(1, 5)))
        assert len(store.versions("m")) == 13
        assert store.check(read_data=True).findings == []


def test_one_model_is_read_by_many_threads(cache: Path) -> None:
    source = {f"w{n}": tensors(n)["emb"] for n in range(5)}
    with created(MemoryStore("readers"), cache) as store:
        store.save("m", source)
        model = store.load("m")
        start = threading.Barrier(6)

        def read(me: int) -> None:
            start.wait()
            for n in range(5):
                name = f"w{(me + n) % 5}"
                assert np.array_equal(model[name], source[name])
                rows = [me, 299 - me, 150]
                assert np.array_equal(model.tensor(name)[rows], source[name][rows])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(read, range(6)))


def test_the_same_content_saved_twice_at_once_is_one_version_of_two_numbers(cache: Path) -> None:
    blobs = MemoryStore("same")
    created(blobs, cache).close()
    stores = [opened(blobs, cache / str(n)) for n in range(2)]
    start = threading.Barrier(2)

    def save(store: tierstore.Store) -> tierstore.Version:
        start.wait()
        return store.save("m", tensors(1))

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(save, stores)
    assert {one.number, two.number} == {1, 2}
    assert one.digest == two.digest
    for store in stores:
        equal(store.load("m@1").load(), tensors(1))
        assert not store.check(read_data=True).damaged
        store.close()


def test_a_reader_keeps_reading_what_it_opened(cache: Path) -> None:
    with created(MemoryStore("reader"), cache) as store:
        store.save("m", tensors(1), alias="prod")
        model = store.load("m@prod")
        store.save("m", tensors(2), alias="prod")
        equal(model.load(), tensors(1))
        equal(store.load("m@prod").load(), tensors(2))


def test_check_while_others_save(cache: Path) -> None:
    """What is published while check runs is never called damage."""
    blobs = MemoryStore("checking")
    created(blobs, cache).close()
    stop = threading.Event()
    failures: list[BaseException] = []

    def save() -> None:
        try:
            with opened(blobs, cache) as store:
                seed = 0
                while not stop.is_set():
                    seed += 1
                    store.save("m", {"w": np.full(50, seed)}, alias="prod")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    try:
        with opened(blobs, cache / "own") as store:
            for _ in range(20):
                report = store.check(read_data=True)
                assert not report.damaged, report.findings
    finally:
        stop.set()
        thread.join()
    assert failures == []


FORKED = """
import os, sys, tierstore
from tests.integration.kit import equal, tensors
store = tierstore.open(sys.argv[1])
store.save("m", tensors(1))
model = store.load("m")
child = os.fork()
if child == 0:
    ok = model["bias"].tobytes() == tensors(1)["bias"].tobytes()
    version = store.save("m", tensors(2))
    ok = ok and store.load("m@2")["bias"].tobytes() == tensors(2)["bias"].tobytes()
    store.close()
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
equal(model.load(), tensors(1))
store.save("m", tensors(3))
equal(store.load("m@3").load(), tensors(3))
print(store.check(read_data=True).damaged)
store.close()
"""


def test_a_store_works_on_both_sides_of_a_fork(tmp_path: Path, cache: Path) -> None:
    where = tmp_path / "store"
    tierstore.init(where, chunk_size=MIB).close()
    assert finished(python(FORKED, where)) == "0\nFalse\n"
