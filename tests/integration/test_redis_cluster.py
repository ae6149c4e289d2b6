"""A Redis cluster whose slots move and whose nodes fail, under a store that uses it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from tests.servers.redis import RedisCluster, RedisServer, cluster_running, redis_cli
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.store import RedisStore
from tierstore.errors import BackendError, Unreachable

pytestmark = pytest.mark.server

_TIMEOUT_S = 0.5
_BOUND_S = 10 * _TIMEOUT_S
_PREFIX = "tier:c:"
_BLOBS = {f"k/{n}": str(n).encode() * 1000 for n in range(60)}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A cluster of this test's own, which it may break."""
    with cluster_running(tmp_path) as cluster:
        yield cluster


def _store(cluster: RedisCluster, timeout_s: float = 30.0) -> RedisStore:
    return RedisStore(RedisEndpoint(cluster.url, timeout_s=timeout_s), prefix=_PREFIX)


def _call(node: RedisServer, *words: Any) -> Any:
    """One command to one node, past every cluster client."""
    with node.admin() as admin:
        connection = admin.connection_pool.get_connection()
        connection.send_command(*words)
        answer = connection.read_response()
        admin.connection_pool.release(connection)
        return answer


def _id(node: RedisServer) -> str:
    return str(_call(node, "CLUSTER", "MYID"), "ascii")


def _keys_of(node: RedisServer) -> set[str]:
    return {name.decode().removeprefix(_PREFIX) for name in _call(node, "KEYS", f"{_PREFIX}*")}


def test_every_node_has_some_of_the_keys(cluster: RedisCluster) -> None:
    with _store(cluster) as store:
        store.put_many(_BLOBS)
        parts = [_keys_of(node) for node in cluster.nodes]
        assert all(parts)
        assert sorted(key for part in parts for key in part) == sorted(_BLOBS)
        assert store.get_many(list(_BLOBS)) == _BLOBS
        assert [info.key for info in store.list()] == sorted(_BLOBS)
        assert len(store.health()) == 3


def test_slots_move_while_a_store_is_open(cluster: RedisCluster) -> None:
    first, second, _ = cluster.nodes
    with _store(cluster) as store:
        store.put_many(_BLOBS)
        assert store.get_many(list(_BLOBS)) == _BLOBS
        redis_cli(
            "--cluster", "reshard", f"127.0.0.1:{first.port}", "--cluster-from", _id(first),
            "--cluster-to", _id(second), "--cluster-slots", "5461", "--cluster-yes",
        )  # fmt: skip
        assert not _keys_of(first)
        assert store.get_many(list(_BLOBS)) == _BLOBS
        assert store.put_if_absent("k/0", b"x") is False
        store.put_many({key: data[::-1] for key, data in _BLOBS.items()})
        for key, data in _BLOBS.items():
            assert store.get(key) == data[::-1]
        store.delete(_BLOBS)
        assert list(store.list()) == []


def test_a_slot_in_the_middle_of_its_move(cluster: RedisCluster) -> None:
    """The old node has some of the slot's keys; for the others it says to ask the new one."""
    name = f"{_PREFIX}k/0"
    slot = key_slot(name.encode())
    with _store(cluster) as store:
        store.put("k/0", b"data")
        [old] = [node for node in cluster.nodes if "k/0" in _keys_of(node)]
        new = next(node for node in cluster.nodes if node is not old)
        _call(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", _id(old))
        _call(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", _id(new))
        _call(old, "MIGRATE", "127.0.0.1", new.port, name, 0, 5000)
        assert "k/0" in _keys_of(new)
        assert store.get("k/0") == b"data"
        assert store.get_many(["k/0", "k/1"]) == {"k/0": b"data"}
        store.put("k/0", b"other")
        assert store.put_if_absent("k/0", b"x") is False
        assert store.get("k/0") == b"other"


def test_a_node_that_is_gone_or_hangs(cluster: RedisCluster) -> None:
    broken = cluster.nodes[0]  # the one that the URL names
    with _store(cluster, _TIMEOUT_S) as store:
        store.put_many(_BLOBS)
        lost = _keys_of(broken)
        held = [key for key in _BLOBS if key not in lost]
        for fault in (broken.pause, broken.kill):
            fault()
            for key in sorted(lost)[:2]:
                started = time.monotonic()
                with pytest.raises(Unreachable):
                    store.get(key)
                assert time.monotonic() - started < _BOUND_S
            _until_reachable(store, held)
            started = time.monotonic()
            with pytest.raises(Unreachable):
                store.get_many(list(_BLOBS))
            assert time.monotonic() - started < _BOUND_S


def _until_reachable(store: RedisStore, keys: list[str]) -> None:
    """The other nodes' keys are served; asking for the slots may take a try or two."""
    deadline = time.monotonic() + 60
    while True:
        try:
            assert store.get_many(keys) == {key: _BLOBS[key] for key in keys}
            return
        except Unreachable:
            assert time.monotonic() < deadline


def test_a_url_that_does_not_say_cluster(cluster: RedisCluster) -> None:
    slot = key_slot(f"{_PREFIX}k/0".encode())
    ranges = _call(cluster.nodes[0], "CLUSTER", "SLOTS")
    [holder] = [port for first, last, (_, port, *_), *_ in ranges if first <= slot <= last]
    node = next(node for node in cluster.nodes if node.port != holder)
    endpoint = RedisEndpoint(node.url)
    with RedisStore(endpoint, prefix=_PREFIX) as store:
        expected = pytest.raises(BackendError, match=r"redis\+cluster://")
        with expected:
            store.get("k/0")


def test_a_url_that_says_cluster_of_a_single_server(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    try:
        endpoint = RedisEndpoint(f"redis+cluster://127.0.0.1:{server.port}")
        with RedisStore(endpoint) as store, pytest.raises(BackendError, match="cluster support"):
            store.get("k")
    finally:
        server.stop()
