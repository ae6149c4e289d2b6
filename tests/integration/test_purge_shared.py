"""What is purged leaves Redis and Memcached, too: real ones, of which every value is looked at."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, equal
from tests.integration.test_purge import content, deltas_of, found_in, marks, noise, secrets
from tests.servers.memcached import MemcachedServer, memcached_running
from tests.servers.redis import RedisServer, redis_running
from tierstore.blobs.base import BlobInfo
from tierstore.format.tiers import TierSpec
from tierstore.store import Store, init_store, open_store

pytestmark = pytest.mark.server


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_running(tmp_path) as server:
        yield server


@pytest.fixture
def memcached(tmp_path: Path) -> Iterator[MemcachedServer]:
    with memcached_running(tmp_path, "-m", "256", "-I", "8m") as server:
        yield server


def in_redis(server: RedisServer, wanted: list[bytes]) -> int:
    with server.admin() as admin:
        strings = [key for key in admin.keys("*") if admin.type(key) == b"string"]
        return sum(found_in(admin.get(key), wanted) for key in strings)


def deltas_in(server: RedisServer) -> list[bytes]:
    with server.admin() as admin:
        return [key for key in admin.keys("*-*") if b"heat" not in key]


def in_memcached(server: MemcachedServer, wanted: list[bytes]) -> int:
    """Look at every item by the names that the server's own crawler tells."""
    names = _answer(server, b"lru_crawler metadump all\r\n", b"END\r\n").split(b"key=")[1:]
    every = [name.split(b" ")[0].replace(b"%3A", b":") for name in names]
    values = [_answer(server, b"get " + name + b"\r\n", b"END\r\n") for name in every]
    return sum(found_in(value, wanted) for value in values)


def _answer(server: MemcachedServer, command: bytes, end: bytes) -> bytes:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(command)
        got = bytearray()
        while not got.endswith(end):
            part = connection.recv(1 << 20)
            assert part, "the server has closed the connection"
            got += part
    return bytes(got)


def tiers(redis: RedisServer, memcached: MemcachedServer) -> list[TierSpec]:
    return [
        TierSpec(name="redis", role="shared", url=redis.url),
        TierSpec(name="memcached", role="shared", url=f"memcached://{memcached.address}"),
    ]


def filled(store: Store, *refs: str) -> None:
    for ref in refs:
        store.load(ref).load()
        for tier in ("redis", "memcached"):
            store.warmup(ref, tier=tier)
    assert store._parts.hot.flush(30)


def test_every_frame_leaves_both(
    tmp_path: Path, redis: RedisServer, memcached: MemcachedServer
) -> None:
    first = np.random.default_rng(1).standard_normal((300, 1000), np.float32)
    second = first * np.float32(1.0001)
    where = tmp_path / "store"
    with init_store(where, chunk_size=MIB, tiers=tiers(redis, memcached)) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2):
            store.save("m", content(seed), base=None)
        store.save("n", {"w": first, "own": noise(4)})
        assert deltas_of(store.save("n", {"w": second, "own": noise(5)}, base="n@1"))
        filled(store, "m@1", "m@2", "n@1", "n@2")
    secret = secrets(content(1)) + marks(noise(4))
    shared = marks(content(2)["shared"])
    assert in_redis(redis, secret) == in_memcached(memcached, secret) == len(secret)
    with open_store(where) as store:
        assert deltas_in(redis)
        receipts = store.purge("m@1", "n@1")
        assert all(receipt.is_complete for receipt in receipts)
        [[node], [other]] = [receipt.nodes for receipt in receipts]
        for tier in ("redis", "memcached"):
            assert node.dropped[tier] + other.dropped[tier] >= 6
    assert in_redis(redis, secret) == in_memcached(memcached, secret) == 0
    assert in_redis(redis, shared) == len(shared)  # others use it
    assert not deltas_in(redis)
    with open_store(where) as store:
        equal(store.load("m@2").load(), content(2))
        equal(store.load("n@2").load(), {"w": second, "own": noise(5)})


def test_a_cache_that_does_not_answer_leaves_the_node_outstanding(
    tmp_path: Path, redis: RedisServer, memcached: MemcachedServer
) -> None:
    where = tmp_path / "store"
    with init_store(where, chunk_size=MIB, tiers=tiers(redis, memcached)) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2):
            store.save("m", content(seed), base=None)
        filled(store, "m@1")
    secret = secrets(content(1))
    redis.pause()
    with open_store(where) as store:
        [receipt] = store.purge("m@1")
        assert receipt.is_done
        assert receipt.outstanding == [store.node]
        assert list(receipt.nodes[0].failed) == ["redis"]
        assert in_memcached(memcached, secret) == 0
    redis.resume()
    assert in_redis(redis, secret)
    with open_store(where) as store:
        store.purges.run()
        assert store.purges.receipt(receipt.id).is_complete
    assert in_redis(redis, secret) == 0


def test_redis_is_listed_once_for_all_orders(
    tmp_path: Path,
    redis: RedisServer,
    memcached: MemcachedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A listing goes over all keys of the server, whoever's they are."""
    with init_store(tmp_path / "store", chunk_size=MIB, tiers=tiers(redis, memcached)) as store:
        store.reclaim.enable(wait_s=0)
        for seed in (1, 2, 3):
            store.save("m", content(seed), base=None)
        filled(store, "m@1", "m@2", "m@3")
    with open_store(tmp_path / "store") as store:
        [shared] = [tier for tier in store._parts.hot.shared if tier.name == "redis"]
        real, listed = shared.blobs.list, list[str]()

        def listing(prefix: str = "") -> Iterator[BlobInfo]:
            listed.append(prefix)
            return real(prefix)

        monkeypatch.setattr(shared.blobs, "list", listing)
        receipts = store.purge("m@1", "m@2", "m@3", force=True)
    assert all(receipt.is_complete for receipt in receipts)
    assert listed == [""]
    assert in_redis(redis, secrets(content(1)) + secrets(content(2)) + secrets(content(3))) == 0
