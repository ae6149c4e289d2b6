"""Eight processes that create the same blobs of a shared hot tier: each has one winner."""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from threading import Barrier
from typing import TypeAlias

import pytest

from tests.servers.memcached import MemcachedServer
from tests.servers.redis import PASSWORD, USER, RedisCluster, RedisServer
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memcached.store import MemcachedStore
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.store import RedisStore

Processes: TypeAlias = tuple[Pool, Barrier]

_PROCESSES = 8
_KEYS = 40
_SIZE = 50_000


def _race(open_store: Callable[[], BlobStore], ready: Barrier, n: int) -> list[bool]:
    with open_store() as store:
        ready.wait()
        return [store.put_if_absent(f"race/{key}", bytes([n]) * _SIZE) for key in range(_KEYS)]


def _redis(endpoint: RedisEndpoint, prefix: str) -> BlobStore:
    return RedisStore(endpoint, prefix=prefix)


def _memcached(url: str, prefix: str) -> BlobStore:
    return MemcachedStore(url, prefix=prefix)


class _Opener:
    """Opens the same store in any process."""

    def __init__(self, open_store: Callable[..., BlobStore], target: object) -> None:
        self._open, self._target = open_store, target
        self._prefix = f"tier:{uuid.uuid4().hex}:"

    def __call__(self) -> BlobStore:
        return self._open(self._target, self._prefix)


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Eight processes that share no connection, and where they wait for each other."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(_PROCESSES) as pool:
        yield pool, manager.Barrier(_PROCESSES)


def _check(processes: Processes, opener: _Opener) -> None:
    pool, ready = processes
    jobs = [(opener, ready, n) for n in range(_PROCESSES)]
    won = pool.starmap_async(_race, jobs, chunksize=1).get(timeout=120)
    with opener() as store:
        for key in range(_KEYS):
            winners = [n for n in range(_PROCESSES) if won[n][key]]
            assert len(winners) == 1, f"key {key}: created by {winners}"
            assert store.get(f"race/{key}") == bytes([winners[0]]) * _SIZE


@pytest.mark.parametrize("kind", ["plain", "unix", "tls", "acl", "cluster"])
def test_redis(
    processes: Processes,
    kind: str,
    redis_plain: RedisServer,
    redis_tls: RedisServer,
    redis_acl: RedisServer,
    redis_cluster: RedisCluster,
) -> None:
    endpoints = {
        "plain": RedisEndpoint(redis_plain.url),
        "unix": RedisEndpoint(f"unix://{redis_plain.socket}"),
        "tls": RedisEndpoint(redis_tls.url, password=PASSWORD, ca=str(redis_tls.ca)),
        "acl": RedisEndpoint(redis_acl.url, username=USER, password=PASSWORD),
        "cluster": RedisEndpoint(redis_cluster.url),
    }
    _check(processes, _Opener(_redis, endpoints[kind]))


@pytest.mark.parametrize("count", [1, 2])
def test_memcached(
    processes: Processes, count: int, memcached_pair: tuple[MemcachedServer, MemcachedServer]
) -> None:
    addresses = ",".join(server.address for server in memcached_pair[:count])
    _check(processes, _Opener(_memcached, f"memcached://{addresses}"))
