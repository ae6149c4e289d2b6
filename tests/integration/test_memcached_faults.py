"""memcached that is flushed, killed, hung, full: right bytes or an error, and in time."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pymemcache.client.base import Client

from tests.servers.memcached import MemcachedServer, memcached_running
from tests.servers.process import free_port
from tests.servers.trickle import trickling
from tierstore.blobs.base import RangeRead
from tierstore.blobs.memcached.store import MemcachedStore
from tierstore.errors import BackendError, NotFound, OutOfSpace, TierstoreError, Unreachable
from tierstore.ids import ByteRange

pytestmark = pytest.mark.server

_TIMEOUT_S = 0.5
_BOUND_S = 10 * _TIMEOUT_S
_BLOBS = {f"b/{n}": random.Random(n).randbytes(300_000 + n) for n in range(12)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MemcachedServer]:
    """A server of this test's own, which it may break."""
    with memcached_running(tmp_path) as server:
        yield server


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[MemcachedServer, MemcachedServer]]:
    with memcached_running(tmp_path) as first, memcached_running(tmp_path) as second:
        yield first, second


def _store(*servers: MemcachedServer, timeout_s: float = 30.0) -> MemcachedStore:
    url = "memcached://" + ",".join(server.address for server in servers)
    return MemcachedStore(url, timeout_s=timeout_s)


def _read_all_ways(store: MemcachedStore, key: str) -> None:
    """Read a blob in every way: what is there is right, whatever happens meanwhile."""
    data = _BLOBS[key]
    assert store.get(key) == data
    assert store.get(key, ByteRange(1000, 200_000)) == data[1000:200_000]
    out = bytearray(5000)
    store.get_ranges([RangeRead(key, 99_000, memoryview(out))])
    assert out == data[99_000:104_000]


def _while_reading(
    store: MemcachedStore, allowed: type[TierstoreError], fault: Callable[[], None]
) -> tuple[int, int]:
    """Read with four threads during ``fault``; how often it worked, and raised what it may."""
    done = threading.Event()

    def read() -> tuple[int, int]:
        good = bad = 0
        rng = random.Random()
        while not done.is_set():
            try:
                _read_all_ways(store, rng.choice(list(_BLOBS)))
                for key, view in store.get_many(list(_BLOBS)).items():
                    assert view == _BLOBS[key]
                good += 1
            except allowed:
                bad += 1
        return good, bad

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        try:
            fault()
        finally:
            done.set()
        counts = [reader.result() for reader in readers]
    return sum(good for good, _ in counts), sum(bad for _, bad in counts)


def test_flushed_while_reading(server: MemcachedServer) -> None:
    with _store(server) as store:
        admin = server.admin()

        def flush_and_fill() -> None:
            for _ in range(30):
                store.put_many(_BLOBS)
                admin.flush_all()
            store.put_many(_BLOBS)

        _, missed = _while_reading(store, NotFound, flush_and_fill)
        assert missed
        assert store.get_many(list(_BLOBS)) == _BLOBS


def test_killed_while_reading_and_started_again(server: MemcachedServer) -> None:
    with _store(server) as store:
        store.put_many(_BLOBS)

        def kill() -> None:
            deadline = time.monotonic() + 60
            while int(server.admin().stats()[b"cmd_get"]) < 200:
                assert time.monotonic() < deadline
            server.kill()
            with pytest.raises(Unreachable, match=server.address):
                store.get("b/0")

        good, _ = _while_reading(store, Unreachable, kill)
        assert good
        for _ in range(3):  # it stays an error: no answer in the server's name
            calls: list[Callable[[], object]] = [
                lambda: store.get("b/0"),
                lambda: store.get_many(["b/0", "b/1"]),
                lambda: store.put("b/0", b"x"),
                lambda: store.put_many({"b/0": b"x"}),
                lambda: store.put_if_absent("b/0", b"x"),
                lambda: store.delete(["b/0"]),
                lambda: store.info("b/0"),
            ]
            for call in calls:
                with pytest.raises(Unreachable):
                    call()
        server.start()
        assert store.get_many(list(_BLOBS)) == {}  # the first call already, on any connection
        store.put_many(_BLOBS)
        assert store.get_many(list(_BLOBS)) == _BLOBS


def test_restarted_between_two_calls(server: MemcachedServer) -> None:
    """Connections that the server closed are noticed before they are used."""
    with _store(server) as store:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.put(f"k/{n}", b"x" * 500_000), range(32)))
        server.stop()
        server.start()
        for _ in range(10):
            with pytest.raises(NotFound):
                store.get("k/1")


def test_hung_is_unreachable_in_time(server: MemcachedServer) -> None:
    with _store(server, timeout_s=_TIMEOUT_S) as store:
        store.put_many(_BLOBS)
        server.pause()
        calls: list[Callable[[], object]] = [
            lambda: store.get("b/0"),
            lambda: store.get_many(list(_BLOBS)),
            lambda: store.put_many({f"n/{n}": bytes(1_000_000) for n in range(20)}),
            lambda: store.delete(["n/0"]),  # may still be done after it was given up
        ]

        def all_at_once() -> None:
            with ThreadPoolExecutor(24) as pool:
                results = [pool.submit(calls[0]) for _ in range(24)]
            errors = [result.exception() for result in results]
            assert all(isinstance(error, Unreachable) for error in errors), errors
            raise Unreachable("all of them")

        # More callers than connections: those that wait for one wait no longer than the others.
        for call in [*calls, all_at_once]:
            started = time.monotonic()
            with pytest.raises(Unreachable):
                call()
            assert time.monotonic() - started < _BOUND_S
        server.resume()
        # The late answers to what was given up reach nobody.
        deadline = time.monotonic() + 60
        while True:
            try:
                store.put_many(_BLOBS)
                for key in _BLOBS:
                    _read_all_ways(store, key)
                break
            except Unreachable:
                assert time.monotonic() < deadline


@pytest.mark.parametrize("beginning", [b"VALUE tier:k 0 1000000\r\n", b""])
def test_a_byte_now_and_then_is_unreachable_in_time(beginning: bytes) -> None:
    with trickling(beginning) as port:
        url = f"memcached://127.0.0.1:{port}"
        with MemcachedStore(url, timeout_s=_TIMEOUT_S) as store:
            started = time.monotonic()
            with pytest.raises(Unreachable):
                store.get("k")
            with pytest.raises(BackendError):
                store.put("k", b"x")
            assert time.monotonic() - started < 2 * _BOUND_S


def test_full_evicts(tmp_path: Path) -> None:
    with memcached_running(tmp_path, "-m", "8") as server, _store(server) as store:
        blobs = {f"k/{n}": bytes([n]) * 500_000 for n in range(100)}
        stored = 0
        for key, data in blobs.items():
            try:
                store.put(key, data)
                stored += 1
            except OutOfSpace:
                continue
        assert stored
        found = store.get_many(list(blobs))
        assert 0 < len(found) < 30
        assert all(view == blobs[key] for key, view in found.items())


def test_full_and_not_evicting(tmp_path: Path) -> None:
    with memcached_running(tmp_path, "-m", "8", "-M") as server, _store(server) as store:
        written: dict[str, bytes] = {}

        def fill() -> None:
            for n in range(100):
                store.put(f"k/{n}", bytes([n]) * 500_000)
                written[f"k/{n}"] = bytes([n]) * 500_000

        with pytest.raises(OutOfSpace):
            fill()
        assert written
        assert store.get_many(list(written)) == written


def test_one_of_two_is_down(pair: tuple[MemcachedServer, MemcachedServer]) -> None:
    """Its keys are unreachable, never missing and never on the other one; it may come back."""
    first, second = pair
    keys = [f"k/{n}" for n in range(40)]
    with _store(first, second) as store:
        store.put_many({key: key.encode() for key in keys})
        held = {key for key in keys if second.admin().get(f"tier:{key}") is not None}
        assert 0 < len(held) < len(keys)
        first.kill()
        for _ in range(3):
            for key in keys:
                if key in held:
                    assert store.get(key) == key.encode()
                    assert store.put_if_absent(key, b"x") is False
                else:
                    with pytest.raises(Unreachable):
                        store.get(key)
                    with pytest.raises(Unreachable):
                        store.put(key, b"x")
                    with pytest.raises(Unreachable):
                        store.delete([key])
        with pytest.raises(Unreachable):
            store.get_many(keys)
        assert store.capabilities.max_blob_bytes is not None
        assert {key for key in keys if second.admin().get(f"tier:{key}") is not None} == held
        first.start()
        assert set(store.get_many(keys)) == held
        store.put_many(dict.fromkeys(keys, b"again"))
        assert set(store.get_many(keys)) == set(keys)


def test_the_order_of_the_servers_does_not_matter(
    pair: tuple[MemcachedServer, MemcachedServer],
) -> None:
    blobs = {f"k/{n}": str(n).encode() for n in range(50)}
    with _store(*pair) as store, _store(*pair[::-1]) as other:
        store.put_many(blobs)
        assert other.get_many(list(blobs)) == blobs


def test_an_item_limit_that_shrinks(tmp_path: Path) -> None:
    with memcached_running(tmp_path, "-I", "4m") as server, _store(server) as store:
        store.put("k", bytes(3 << 20))
        server.stop()
        server.options = ("-I", "1m")
        server.start()
        for _ in range(2):  # once as the server refuses it, and once without sending it
            with pytest.raises(OutOfSpace):
                store.put("k", bytes(3 << 20))
        assert store.capabilities.max_blob_bytes is not None
        assert store.capabilities.max_blob_bytes < 1 << 20
        store.put("k", bytes(store.capabilities.max_blob_bytes))


@pytest.mark.parametrize("ttl_s", [1000, 40 * 24 * 3600])
def test_time_to_live(server: MemcachedServer, ttl_s: int) -> None:
    url = f"memcached://{server.address}"
    with MemcachedStore(url, ttl_s=ttl_s) as store:
        store.put("a", b"x")
        store.put_if_absent("b", b"x")
        for key in "ab":
            answer = server.admin().raw_command(f"mg tier:{key} t", b"\r\n")
            left = int(answer.split()[1].removeprefix(b"t"))
            # beyond 30 days the end is a time of day, and its clock may be seconds behind ours
            assert ttl_s - 600 < left <= ttl_s + 5


def test_long_keys_do_not_meet(server: MemcachedServer) -> None:
    names = [f"{'x' * 200}/{'y' * 200}/{n}" for n in range(20)]
    with _store(server) as store:
        store.put_many({name: name.encode() for name in names})
        assert store.get_many(names) == {name: name.encode() for name in names}
        store.delete(names[:10])
        assert sorted(store.get_many(names)) == sorted(names[10:])


def test_connections_are_bounded_and_given_back(server: MemcachedServer) -> None:
    url = f"memcached://{server.address}"
    admin = server.admin()
    with MemcachedStore(url, connections=3, timeout_s=60) as store:
        with ThreadPoolExecutor(16) as pool:
            store.put_many(_BLOBS)
            list(pool.map(lambda key: _read_all_ways(store, key), list(_BLOBS) * 4))
        assert 1 < int(admin.stats()[b"curr_connections"]) <= 3 + 2  # its own, and this one
    deadline = time.monotonic() + 60
    while int(admin.stats()[b"curr_connections"]) > 2:
        assert time.monotonic() < deadline


def test_a_fork_uses_connections_of_its_own(server: MemcachedServer) -> None:
    admin = server.admin()
    with _store(server) as store:
        store.put_many(_BLOBS)
        before = int(admin.stats()[b"total_connections"])
        pid = os.fork()
        if not pid:
            failed = 1
            try:
                for key in list(_BLOBS) * 5:
                    _read_all_ways(store, key)
                failed = 0
            finally:
                os._exit(failed)
        for key in list(_BLOBS) * 5:
            _read_all_ways(store, key)
        assert os.waitpid(pid, 0)[1] == 0
        assert int(admin.stats()[b"total_connections"]) == before + 1


def test_an_answer_that_was_given_up_reaches_nobody(server: MemcachedServer) -> None:
    def interrupted(client: Client) -> None:
        client.sock.sendall(b"get tier:b/0 tier:b/1\r\n")
        raise KeyboardInterrupt

    with _store(server) as store:
        store.put_many(_BLOBS)
        server.pause()
        with pytest.raises(KeyboardInterrupt):
            store._client.call(store._client.addresses[0], "reading", interrupted)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(store.get, "b/2")  # before the answer to the other one comes
            while not reading.running():
                time.sleep(0.001)
            server.resume()
            assert reading.result() == _BLOBS["b/2"]


def test_nothing_listens() -> None:
    with MemcachedStore(f"memcached://127.0.0.1:{free_port()}") as store:
        with pytest.raises(Unreachable):
            store.get("k")
        assert store.capabilities.max_blob_bytes is None
