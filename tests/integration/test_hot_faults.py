"""Hot tiers that fail in the middle of loads, through stores opened as users open them.

Whatever happens to a hot tier, every load gives the right bytes, and none waits long for it.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, equal, finished, python, small_disk
from tests.integration.test_deltas import Model, weights
from tests.servers.redis import RedisServer, redis_running
from tests.waiting import wait_until
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.store import Store
from tierstore.store import init_store, open_store
from tierstore.tiers.stats import TierStats

MODEL: Model = {f"w{n}": weights(1200, seed=n) for n in range(4)} | {"b": np.arange(1000.0)}
NBYTES = sum(array.nbytes for array in MODEL.values())
TIMEOUT_MS = 1000
SLACK_S = 20.0  # of a busy machine


def redis_spec(server: RedisServer) -> TierSpec:
    return TierSpec(name="redis", role="shared", url=server.url, timeout_ms=TIMEOUT_MS)


def hot_spec(path: Path, size: int = 64 * MIB) -> TierSpec:
    return TierSpec(name="hot", role="hot", url=str(path), size=size)


@contextmanager
def made(folder: Path, *tiers: TierSpec) -> Iterator[Store]:
    with init_store(folder / "store", chunk_size=MIB, tiers=tiers) as store:
        store.save("m", MODEL)
    with open_store(folder / "store") as store:
        yield store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with redis_running(tmp_path / "redis") as server:
        yield server


def load(store: Store) -> dict[str, int]:
    model = store.load("m")
    equal(model.load(), MODEL)
    return dict(model.stats.bytes_by_tier)


def stats_of(store: Store) -> TierStats:
    [tier] = store._parts.hot.shared
    return tier.stats


def while_loading(store: Store, trouble: Callable[[], None], threads: int = 3) -> int:
    """Load again and again in threads until ``trouble`` is over and once more; counts loads."""
    done, over = [0] * threads, threading.Event()
    failures: list[BaseException] = []

    def again(number: int) -> None:
        try:
            while not over.is_set() or not done[number]:
                load(store)
                done[number] += 1
        except BaseException as error:
            failures.append(error)
            raise

    workers = [threading.Thread(target=again, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    try:
        trouble()
    finally:
        over.set()
        for worker in workers:
            worker.join()
    assert not failures, failures
    return sum(done)


# Redis


@pytest.mark.server
def test_redis_is_flushed_while_versions_are_loaded(tmp_path: Path, server: RedisServer) -> None:
    with made(tmp_path, redis_spec(server)) as store, server.admin() as admin:

        def flush() -> None:
            for _ in range(20):
                admin.flushall()
                time.sleep(0.02)

        assert while_loading(store, flush) >= 3
        assert stats_of(store).misses > 0
        assert store._parts.hot.flush(30)
        load(store)  # of what the last flush took away
        assert store._parts.hot.flush(30)
        assert load(store).keys() == {"redis"}


@pytest.mark.server
def test_redis_is_killed_while_versions_are_loaded_and_comes_back(
    tmp_path: Path, server: RedisServer
) -> None:
    with made(tmp_path, redis_spec(server)) as store:
        load(store)
        store._parts.hot.flush(30)
        assert load(store).keys() == {"redis"}

        def kill() -> None:
            begun = stats_of(store).ops["get"].calls
            wait_until(lambda: stats_of(store).ops["get"].calls > begun, "it is read")
            server.kill()
            wait_until(lambda: stats_of(store).ops["get"].errors >= 2, "somebody notices")

        while_loading(store, kill)
        calls = stats_of(store).ops["get"].calls
        assert load(store).keys() == {"home"}
        assert stats_of(store).ops["get"].calls == calls  # it was not even asked
        server.start()

        def back() -> bool:
            load(store)
            store._parts.hot.flush(30)
            return "redis" in load(store)

        wait_until(back, "the server is used again")


@pytest.mark.server
def test_a_redis_that_hangs_costs_twice_its_timeout_once(
    tmp_path: Path, server: RedisServer
) -> None:
    with made(tmp_path, redis_spec(server)) as store:
        load(store)
        store._parts.hot.flush(30)
        server.pause()
        try:
            started = time.monotonic()
            load(store)
            first = time.monotonic() - started
            started = time.monotonic()
            for _ in range(5):
                load(store)
            others = time.monotonic() - started
        finally:
            server.resume()
        assert first < 2 * TIMEOUT_MS / 1000 + SLACK_S
        assert others < SLACK_S
        assert stats_of(store).ops["get"].errors <= 4  # two threads may ask at the same time
        assert stats_of(store).breaker_open


@pytest.mark.server
def test_a_redis_that_is_full_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with (
        redis_running(tmp_path / "redis", "--maxmemory", "8mb") as server,
        made(tmp_path, redis_spec(server)) as store,
    ):
        load(store)
        store._parts.hot.flush(30)
        assert stats_of(store).rejected > 0
        found = load(store)
        assert found["redis"] > 0
        assert found["home"] > 0


@pytest.mark.server
def test_a_redis_that_is_full_and_evicts_serves_what_it_kept(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    options = ("--maxmemory", "8mb", "--maxmemory-policy", "volatile-lfu")
    with (
        redis_running(tmp_path / "redis", *options) as server,
        made(tmp_path, redis_spec(server)) as store,
    ):
        for _ in range(3):
            load(store)
            store._parts.hot.flush(30)
        assert not stats_of(store).breaker_open
        assert stats_of(store).hits > 0
        chunk = next(iter(store.load("m")._opened.content.table)).digest
        assert store.heat().chunk(chunk) >= 2.9  # heat has no time to live


@pytest.mark.server
def test_a_redis_that_became_a_replica_is_still_read(tmp_path: Path, server: RedisServer) -> None:
    (tmp_path / "primary").mkdir()
    with redis_running(tmp_path / "primary") as primary, made(tmp_path, redis_spec(server)) as s:
        load(s)
        s._parts.hot.flush(30)
        with primary.admin() as admin:
            for key in server.admin().scan_iter(match="ts:*", count=1000):
                if server.admin().type(key) == b"string":
                    admin.restore(key, 0, server.admin().dump(key))
        with server.admin() as admin:
            admin.replicaof("127.0.0.1", str(primary.port))
            wait_until(
                lambda: admin.info("replication")["master_link_status"] == "up",
                "the replica is in step",
            )
        assert load(s).keys() == {"redis"}
        s.save("other", {"x": weights(600, seed=99)})
        equal(s.load("other").load(), {"x": weights(600, seed=99)})
        s._parts.hot.flush(30)
        assert stats_of(s).rejected > 0


@pytest.mark.server
def test_a_redis_with_the_wrong_password_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with redis_running(tmp_path / "redis") as server, made(tmp_path, redis_spec(server)) as store:
        with server.admin() as admin:
            admin.config_set("requirepass", "secret")
        assert load(store).keys() == {"home"}


@pytest.mark.server
def test_frames_that_were_spoilt_in_redis_are_replaced(tmp_path: Path, server: RedisServer) -> None:
    with made(tmp_path, redis_spec(server)) as store, server.admin() as admin:
        load(store)
        store._parts.hot.flush(30)
        keys = [k for k in admin.scan_iter(count=1000) if admin.type(k) == b"string"]
        for number, key in enumerate(keys):
            if number % 3 == 0:
                admin.setrange(key, 300, b"spoilt!")
            elif number % 3 == 1:
                admin.set(key, admin.get(key)[:-9])
        found = load(store)
        assert found["home"] > 0
        assert stats_of(store).damaged == len([n for n in range(len(keys)) if n % 3 < 2])
        store._parts.hot.flush(30)
        assert load(store).keys() == {"redis"}


# This node's tier


def test_the_disk_is_full_long_before_the_quota(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", "8m", 3 * MIB) as disk,
        made(tmp_path, hot_spec(disk / "hot", 1 << 30)) as store,
    ):
        for _ in range(3):
            load(store)
            assert store._parts.hot.flush(60)
        local = store._parts.hot.local
        assert local is not None
        assert local.usage().used_bytes <= 8 * MIB
        assert not local.stats.breaker_open  # a full disk is no broken one
        kept = [path for path in (disk / "hot").rglob("*") if len(path.name) == 64]
        assert sum(path.stat().st_size for path in kept) <= local.usage().used_bytes
        assert not local.scrub(1 << 30).damaged


def test_the_directory_is_removed_while_versions_are_loaded(tmp_path: Path) -> None:
    with made(tmp_path, hot_spec(tmp_path / "hot")) as store:
        load(store)
        store._parts.hot.flush(30)
        held = store.load("m").load()

        def remove() -> None:
            for _ in range(10):
                shutil.rmtree(tmp_path / "hot", ignore_errors=True)
                time.sleep(0.05)

        while_loading(store, remove)
        equal(held, MODEL)
        local = store._parts.hot.local
        assert local is not None
        local._dir.reading.reset()  # as after the half minute in which it is left alone
        local._dir.filling.reset()
        load(store)
        assert store._parts.hot.flush(30)
        assert load(store).keys() <= {"hot"}


def test_the_disk_is_unmounted_and_nothing_fills_the_one_below(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m", 1 << 30) as disk:
        with made(tmp_path, hot_spec(disk / "hot")) as store:
            load(store)
            store._parts.hot.flush(30)
            held = store.load("m").load()
            mounted = subprocess.run(["umount", "-l", str(disk)], capture_output=True).returncode
            if mounted:  # nothing could be mounted here: as if its disk had been taken out
                (disk / "hot").rename(tmp_path / "gone")
                (disk / "hot").write_bytes(b"")
            for _ in range(3):
                load(store)
                store._parts.hot.flush(30)
            equal(held, MODEL)
            assert [path.name for path in disk.iterdir()] in ([], ["hot"])
            assert not list(disk.rglob("*.db"))
        if not mounted:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)


def test_a_disk_that_changes_files_behind_our_back_is_found_by_the_scrub(tmp_path: Path) -> None:
    with made(tmp_path, hot_spec(tmp_path / "hot")) as store:
        load(store)
        store._parts.hot.flush(30)
        local = store._parts.hot.local
        assert local is not None
        files = [path for path in (tmp_path / "hot").rglob("*") if len(path.name) == 64]
        for path in files[:3]:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.unlink()
            path.write_bytes(data)
        assert len(local.scrub(1 << 30).damaged) == 3
        assert load(store)["home"] > 0


# Clocks

_NODE = """
import sys, time
off = float(sys.argv[2])
real = time.time
time.time = lambda: real() + off
import datetime
from tierstore.store import open_store
with open_store(sys.argv[1]) as store:
    for _ in range(4):
        store.load("m").load()
"""


@pytest.mark.server
@pytest.mark.parametrize("through", ["redis", "home"])
def test_nodes_whose_clocks_are_an_hour_apart_add_up(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    tier = redis_spec(server) if through == "redis" else hot_spec(tmp_path / "hot")
    with made(tmp_path, tier) as store:
        for node, off in (("fast", 3600.0), ("slow", -3600.0)):
            monkeypatch.setenv("TIERSTORE_NODE", node)
            finished(python(_NODE, tmp_path / "store", off))
        view = store.heat()
        chunks = [place.digest for place in store.load("m")._opened.content.table]
        # an hour's skew that counted would be 3 % of each node's part
        assert [view.chunk(digest) for digest in chunks] == pytest.approx(
            [8.0] * len(chunks), rel=5e-3
        )
