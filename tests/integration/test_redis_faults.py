"""Redis that is flushed, killed, hung, full, read-only: right bytes or an error, and in time."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers.process import free_port
from tests.servers.redis import PASSWORD, READER, READER_PASSWORD, USER, RedisServer, redis_running
from tests.servers.trickle import trickling
from tests.waiting import wait_until
from tierstore.blobs.base import RangeRead
from tierstore.blobs.redis import client as redis_client
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.store import RedisStore
from tierstore.errors import (
    BackendError,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)
from tierstore.ids import ByteRange

pytestmark = pytest.mark.server

_TIMEOUT_S = 0.5
_BOUND_S = 10 * _TIMEOUT_S
_BLOBS = {f"b/{n}": random.Random(n).randbytes(300_000 + n) for n in range(12)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of this test's own, which it may break."""
    with redis_running(tmp_path) as server:
        yield server


def _store(server: RedisServer, timeout_s: float = 30.0) -> RedisStore:
    return RedisStore(RedisEndpoint(server.url, timeout_s=timeout_s))


def _read_all_ways(store: RedisStore, key: str) -> None:
    """Read a blob in every way: what is there is right, whatever happens meanwhile."""
    data = _BLOBS[key]
    assert store.get(key) == data
    assert store.get(key, ByteRange(1000, 200_000)) == data[1000:200_000]
    outs = [bytearray(100), bytearray(5000)]
    first, second = (memoryview(out) for out in outs)
    store.get_ranges([RangeRead(key, 7, first), RangeRead(key, 99_000, second)])
    assert outs == [data[7:107], data[99_000:104_000]]


def _read_until(
    store: RedisStore, done: threading.Event, allowed: type[TierstoreError]
) -> tuple[int, int]:
    """Read until ``done``; how often it worked, and how often it raised what it may."""
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


def _while_reading(
    store: RedisStore, allowed: type[TierstoreError], fault: Callable[[], None]
) -> tuple[int, int]:
    done = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(_read_until, store, done, allowed) for _ in range(4)]
        try:
            fault()
        finally:
            done.set()
        counts = [reader.result() for reader in readers]
    return sum(good for good, _ in counts), sum(bad for _, bad in counts)


def test_flushed_while_reading(server: RedisServer) -> None:
    with _store(server) as store, server.admin() as admin:

        def flush_and_fill() -> None:
            for _ in range(30):
                store.put_many(_BLOBS)
                admin.flushall()
            store.put_many(_BLOBS)

        _, missed = _while_reading(store, NotFound, flush_and_fill)
        assert missed
        assert store.get_many(list(_BLOBS)) == _BLOBS


def test_killed_while_reading_and_started_again(server: RedisServer) -> None:
    with _store(server) as store:
        store.put_many(_BLOBS)

        def kill() -> None:
            deadline = time.monotonic() + 60
            with server.admin() as admin:
                while admin.info("stats")["total_commands_processed"] < 200:
                    assert time.monotonic() < deadline
            server.kill()
            with pytest.raises(Unreachable, match=server.url):
                store.get("b/0")

        good, _ = _while_reading(store, Unreachable, kill)
        assert good
        calls: list[Callable[[], object]] = [
            lambda: store.get("b/0"),
            lambda: store.get_many(["b/0", "b/1"]),
            lambda: store.put("b/0", b"x"),
            lambda: store.put_many({"b/0": b"x"}),
            lambda: store.put_if_absent("b/0", b"x"),
            lambda: store.delete(["b/0"]),
            lambda: store.info("b/0"),
            lambda: list(store.list()),
            lambda: store.health(),
        ]
        for call in calls:
            with pytest.raises(Unreachable):
                call()
        server.start()
        assert store.get_many(list(_BLOBS)) == {}  # the first call already, on any connection
        store.put_many(_BLOBS)
        assert store.get_many(list(_BLOBS)) == _BLOBS


def test_restarted_between_two_calls(server: RedisServer) -> None:
    """Connections that the server closed are noticed before they are used."""
    with _store(server) as store:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.put(f"k/{n}", b"x" * 500_000), range(32)))
        server.stop()
        server.start()
        for _ in range(10):
            with pytest.raises(NotFound):
                store.get("k/1")


def test_hung_is_unreachable_in_time(server: RedisServer) -> None:
    with _store(server, _TIMEOUT_S) as store:
        store.put_many(_BLOBS)
        server.pause()
        calls: list[Callable[[], object]] = [
            lambda: store.get("b/0"),
            lambda: store.get_many(list(_BLOBS)),
            lambda: store.put_many({"new": bytes(12 << 20), "other": bytes(12 << 20)}),
            lambda: store.info("b/0"),
            lambda: list(store.list()),
        ]
        # More callers than connections: those that wait for one wait no longer than the others.
        for call in [*calls, lambda: _all_at_once([calls[0]] * 24)]:
            started = time.monotonic()
            with pytest.raises(Unreachable):
                call()
            assert time.monotonic() - started < _BOUND_S
        server.resume()
        # The late answers to what was given up reach nobody.
        deadline = time.monotonic() + 60
        while True:
            try:
                for key in _BLOBS:
                    _read_all_ways(store, key)
                break
            except Unreachable:
                assert time.monotonic() < deadline


def _all_at_once(calls: list[Callable[[], object]]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        results = [pool.submit(call) for call in calls]
    errors = [result.exception() for result in results]
    assert all(isinstance(error, Unreachable) for error in errors), errors
    raise Unreachable("all of them")


def test_a_byte_now_and_then_is_unreachable_in_time() -> None:
    with trickling(b"$1000000\r\n") as port:
        endpoint = RedisEndpoint(f"redis://127.0.0.1:{port}", timeout_s=_TIMEOUT_S)
        with RedisStore(endpoint) as store:
            started = time.monotonic()
            with pytest.raises(Unreachable, match="too long"):
                store.get("k")
            assert time.monotonic() - started < _BOUND_S


def test_full_and_not_evicting(tmp_path: Path) -> None:
    with redis_running(tmp_path, "--maxmemory", "12mb") as server, _store(server) as store:
        written = {}

        def fill() -> None:
            for n in range(100):
                store.put(f"k/{n}", bytes([n]) * 500_000)
                written[f"k/{n}"] = bytes([n]) * 500_000

        with pytest.raises(OutOfSpace, match="maxmemory"):
            fill()
        assert len(written) > 3
        with pytest.raises(OutOfSpace):
            store.put_if_absent("new", b"x" * 500_000)
        with pytest.raises(OutOfSpace):
            store.put_many({"new/1": b"x" * 500_000, "new/2": b"y" * 500_000})
        assert store.get_many([*written, "new"]) == written
        store.delete(list(written)[:3])
        store.put("new", b"x" * 500_000)


def test_full_and_evicting(tmp_path: Path) -> None:
    options = ("--maxmemory", "12mb", "--maxmemory-policy", "volatile-lfu")
    with redis_running(tmp_path, *options) as server, _store(server) as store:
        server.admin().set("heat", b"h" * 1000)  # it has no time to live
        blobs = {f"k/{n}": bytes([n]) * 500_000 for n in range(100)}
        for key, data in blobs.items():
            store.put(key, data)
            assert store.get(key) == data
        found = store.get_many(list(blobs))
        assert 0 < len(found) < 30
        assert all(view == blobs[key] for key, view in found.items())
        assert server.admin().get("heat") == b"h" * 1000


def test_read_only(server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "replica").mkdir()
    options = ("--replicaof", "127.0.0.1", str(server.port), "--repl-diskless-load", "swapdb")
    with (
        redis_running(tmp_path / "replica", *options) as replica,
        _store(server) as primary,
        _store(replica) as store,
    ):
        primary.put("k", b"data")
        deadline = time.monotonic() + 60
        while not store.get_many(["k"]):
            assert time.monotonic() < deadline
        assert store.get("k") == b"data"
        calls: list[Callable[[], object]] = [
            lambda: store.put("k", b"x"),
            lambda: store.put_if_absent("n", b"x"),
            lambda: store.delete(["k"]),
        ]
        for call in calls:
            with pytest.raises(PermissionDenied, match="primary"):
                call()
        assert primary.get("k") == b"data"
        assert any("replica" in finding for finding in store.health()[0].findings)


def test_what_the_user_may_not_do(redis_acl: RedisServer) -> None:
    reader = RedisEndpoint(redis_acl.url, username=READER, password=READER_PASSWORD)
    writer = RedisEndpoint(redis_acl.url, username=USER, password=PASSWORD)
    denied: list[BackendError] = []

    def fails(endpoint: RedisEndpoint, call: Callable[[RedisStore], object], prefix: str) -> None:
        with RedisStore(endpoint, prefix=prefix) as store, pytest.raises(PermissionDenied) as error:
            call(store)
        denied.append(error.value)

    with RedisStore(writer, prefix="tier:acl:") as store:
        store.put("k", b"data")
    with RedisStore(reader, prefix="tier:acl:") as store:
        assert store.get("k") == b"data"
    fails(reader, lambda store: store.put("k", b"x"), "tier:acl:")
    fails(reader, lambda store: store.delete(["k"]), "tier:acl:")
    fails(writer, lambda store: store.get("k"), "elsewhere:")
    fails(
        RedisEndpoint(redis_acl.url, username=USER, password="wrong-Secret-1"),
        lambda store: store.get("k"), "tier:acl:",
    )  # fmt: skip
    fails(RedisEndpoint(redis_acl.url), lambda store: store.get("k"), "tier:acl:")
    for secret in (PASSWORD, READER_PASSWORD, "wrong-Secret-1"):
        assert all(secret not in f"{error!r} {error.__context__!r}" for error in denied)
        assert secret not in f"{reader!r} {writer!r} {RedisStore(writer)!r} {writer.url}"


def _cannot_get(endpoint: RedisEndpoint, match: str) -> None:
    with RedisStore(endpoint) as store, pytest.raises(Unreachable, match=match):
        store.get("k")


def test_certificates_are_checked(redis_tls: RedisServer) -> None:
    _cannot_get(RedisEndpoint(redis_tls.url, password=PASSWORD), "certificate")
    another = redis_tls.url.replace("127.0.0.1", "127.0.0.2")
    _cannot_get(RedisEndpoint(another, password=PASSWORD, ca=str(redis_tls.ca)), "certificate")


def test_nothing_listens() -> None:
    _cannot_get(RedisEndpoint(f"redis://127.0.0.1:{free_port()}"), "redis://127")
    _cannot_get(RedisEndpoint("unix:///nowhere/s.sock"), "nowhere")


def test_what_is_no_blob_is_not_found(redis_plain: RedisServer) -> None:
    redis_plain.admin().rpush("tier:list:k", b"x")
    with RedisStore(RedisEndpoint(redis_plain.url), prefix="tier:list:") as store:
        for part in (None, ByteRange(0, 1)):
            with pytest.raises(NotFound):
                store.get("k", part)


def test_every_blob_has_a_time_to_live(redis_plain: RedisServer) -> None:
    with RedisStore(RedisEndpoint(redis_plain.url), prefix="tier:ttl:", ttl_s=1000) as store:
        store.put("a", b"x")
        store.put_if_absent("b", b"x")
        store.put_many({"c": b"x", "d": b""})
        for key in "abcd":
            assert 0 < redis_plain.admin().ttl(f"tier:ttl:{key}") <= 1000
        redis_plain.admin().expire("tier:ttl:a", 400)
        assert store.info("a").mtime == pytest.approx(time.time() - 600, abs=60)
        redis_plain.admin().persist("tier:ttl:a")
        assert store.info("a").mtime == pytest.approx(time.time(), abs=60)


def test_connections_are_bounded_and_given_back(server: RedisServer) -> None:
    endpoint = RedisEndpoint(server.url, connections=3, timeout_s=60)
    wait_until(lambda: _tcp_clients(server) == [], "what asked whether it is up is gone")
    with RedisStore(endpoint) as store, ThreadPoolExecutor(16) as pool:
        store.put_many(_BLOBS)
        for _ in range(10):
            list(pool.map(lambda key: _read_all_ways(store, key), _BLOBS))
            clients = [client for client in _tcp_clients(server) if client["addr"] != ""]
            assert 0 < len(clients) <= 3, clients
    wait_until(lambda: _tcp_clients(server) == [], "its connections are closed")


def _tcp_clients(server: RedisServer) -> list[dict[str, str]]:
    with server.admin() as admin:
        return [client for client in admin.client_list() if not client["addr"].startswith("/")]


def test_a_fork_uses_connections_of_its_own(server: RedisServer) -> None:
    def connections() -> int:
        with server.admin() as admin:
            return int(admin.info("stats")["total_connections_received"])

    with _store(server) as store:
        store.put_many(_BLOBS)
        before = connections()
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
        assert connections() == before + 1 + 1  # the child's, and the one that asks


def test_an_answer_that_was_given_up_reaches_nobody(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _store(server) as store:
        store.put_many(_BLOBS)
        server.pause()
        checks = iter([None, None])

        def check_limit() -> None:
            next(checks)  # StopIteration after the first value was sent

        with monkeypatch.context() as patch:
            patch.setattr(redis_client, "_check_limit", check_limit)
            with pytest.raises(StopIteration):
                store.put_many({f"n/{n}": bytes(50_000) for n in range(9)})
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(store.get, "b/0")  # before the answers to the writes come
            while not reading.running():
                time.sleep(0.001)
            server.resume()
            assert reading.result() == _BLOBS["b/0"]


def test_batches_are_bounded(redis_plain: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = {f"k/{n}": bytes(3 << 20) for n in range(12)}
    with RedisStore(RedisEndpoint(redis_plain.url), prefix="tier:batch:") as store:
        run = store._client.run
        sizes: list[int] = []

        def measured(doing: str, commands: list[tuple[object, ...]]) -> list[object]:
            replies = run(doing, commands)  # type: ignore[arg-type]
            values = [*replies, *(part for command in commands for part in command)]
            sizes.append(sum(len(value) for value in values if isinstance(value, bytes)))
            return replies

        monkeypatch.setattr(store._client, "run", measured)
        store.put_many(blobs)
        assert sum(sizes) >= 36 << 20
        assert max(sizes) <= 16 << 20
        sizes.clear()
        assert store.get_many(list(blobs)) == blobs
        assert sum(sizes) >= 36 << 20
        assert max(sizes) <= 16 << 20
        sizes.clear()
        reads = [RangeRead(key, 1, memoryview(bytearray(2 << 20))) for key in blobs]
        store.get_ranges(reads)
        assert max(sizes) <= 16 << 20
        assert len(sizes) < len(blobs)
