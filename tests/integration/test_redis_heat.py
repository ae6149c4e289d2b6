"""Heat and news through a real Redis; and what ``health`` finds."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers.redis import PASSWORD, USER, RedisCluster, RedisServer, redis_running
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.heat import RedisHeat
from tierstore.blobs.redis.store import RedisStore
from tierstore.errors import Unreachable
from tierstore.tiers.base import ChunkRead
from tierstore.tiers.heat.recorder import HeatRecorder, SumsLedger


@pytest.fixture(params=["plain", "user", "cluster"])
def endpoint(
    request: pytest.FixtureRequest,
    redis_plain: RedisServer,
    redis_acl: RedisServer,
    redis_cluster: RedisCluster,
) -> RedisEndpoint:
    if request.param == "user":
        return RedisEndpoint(redis_acl.url, username=USER, password=PASSWORD)
    return RedisEndpoint(redis_cluster.url if request.param == "cluster" else redis_plain.url)


@pytest.fixture
def prefix() -> str:
    return f"tier:{uuid.uuid4().hex}:"


@pytest.fixture
def heat(endpoint: RedisEndpoint, prefix: str) -> Iterator[RedisHeat]:
    heat = RedisHeat(endpoint, prefix=prefix)
    yield heat
    heat.close()


def test_sums_of_many_writers(heat: RedisHeat) -> None:
    names = [f"{n:064x}" for n in range(2500)]

    def add(turn: int) -> None:
        heat.add({name: 0.1 * n for n, name in enumerate(names)}, 7)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    scores = heat.scores([*names, "never seen"], 7)
    assert scores == pytest.approx({name: 0.8 * n for n, name in enumerate(names)})
    top = heat.top(3, 7)
    assert [name for name, _ in top] == names[:-4:-1]
    assert top[0][1] == pytest.approx(0.8 * 2499)
    assert heat.top(0, 7) == []
    assert heat.trim(10, 7) == 2490
    assert [name for name, _ in heat.top(100, 7)] == names[:-11:-1]
    assert heat.trim(10, 7) == 0
    assert heat.top(100, 6) == heat.top(100, 8) == []
    heat.drop(6)
    assert len(heat.top(100, 7)) == 10
    heat.drop(7)
    assert heat.top(100, 7) == []


def test_scores_are_exact(heat: RedisHeat) -> None:
    values = {"a": 1e-300, "b": 1e300, "c": 0.1, "d": -1 / 3, "e": 2.0**53 + 2}
    heat.add(values, 0)
    assert heat.scores(list(values), 0) == values
    heat.add({}, 0)
    assert heat.scores([], 0) == {}
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="'a'"):
            heat.add({"a": bad}, 0)


def test_time_is_of_the_server(heat: RedisHeat) -> None:
    before = heat.time()
    assert before == pytest.approx(time.time(), abs=60)
    assert heat.time() >= before


def test_news(heat: RedisHeat, endpoint: RedisEndpoint, prefix: str) -> None:
    sender = RedisHeat(endpoint, prefix=prefix)
    with heat.listen("refs") as listener, heat.listen("other") as deaf:
        assert listener.get(0.01) is None
        for text in ("one", "zwei – ü"):
            sender.publish("refs", text)
            assert listener.get(60) == text
        assert deaf.get(0.01) is None
    sender.publish("refs", "nobody hears it")
    with heat.listen("refs") as listener:
        assert listener.get(0.01) is None
    sender.close()


def test_heat_is_no_blob_and_blobs_are_no_heat(
    heat: RedisHeat, endpoint: RedisEndpoint, prefix: str
) -> None:
    heat.add({"k": 1.0}, 3)
    with RedisStore(endpoint, prefix=prefix) as store:
        assert list(store.list()) == []
        store.put("heat", b"x")
        assert [info.key for info in store.list()] == ["heat"]
    assert heat.scores(["k", "heat"], 3) == {"k": 1.0}


def test_heat_stays_when_blobs_expire(redis_plain: RedisServer, prefix: str) -> None:
    heat = RedisHeat(RedisEndpoint(redis_plain.url), prefix=prefix)
    heat.add({"k": 1.0}, 3)
    assert redis_plain.admin().ttl(f"{prefix}~heat:3") == -1
    heat.close()


@pytest.mark.server
def test_a_listener_learns_that_the_server_is_gone(tmp_path: Path) -> None:
    with redis_running(tmp_path) as server:
        heat = RedisHeat(RedisEndpoint(server.url, timeout_s=1))

        def listen_on() -> None:
            with heat.listen("refs") as listener:
                server.kill()
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    listener.get(1)

        with pytest.raises(Unreachable):
            listen_on()
        with pytest.raises(Unreachable), heat.listen("refs"):
            pass
        heat.close()


@pytest.mark.server
def test_health_of_a_server_as_it_should_be(tmp_path: Path) -> None:
    options = ("--maxmemory", "64mb", "--maxmemory-policy", "volatile-lfu")
    with redis_running(tmp_path, *options) as server:
        with RedisStore(RedisEndpoint(server.url)) as store:
            [health] = store.health()
        assert health.findings == ()
        assert health.policy == "volatile-lfu"
        assert health.max_memory_bytes == 64 << 20
        assert health.version is not None
        assert int(health.version.partition(".")[0]) >= 6
        assert health.used_bytes
        assert health.used_bytes > 0
        assert (health.evicted, health.persistent, health.replica) == (0, False, False)
        assert health.node == f"127.0.0.1:{server.port}"


@pytest.mark.server
def test_health_of_a_server_as_it_comes(tmp_path: Path) -> None:
    with redis_running(tmp_path, "--appendonly", "yes") as server:
        with RedisStore(RedisEndpoint(server.url)) as store:
            [health] = store.health()
        found = " ".join(health.findings)
        assert "noeviction" in found
        assert "volatile-lfu" in found
        assert "no memory limit" in found
        assert "writes its data to disk" in found
        assert health.persistent is True


def test_health_for_a_user_who_may_not_ask(redis_acl: RedisServer) -> None:
    endpoint = RedisEndpoint(redis_acl.url, username=USER, password=PASSWORD)
    with RedisStore(endpoint, prefix="tier:h:") as store:
        [health] = store.health()
    assert health.policy is health.max_memory_bytes is health.version is health.persistent is None
    [finding] = health.findings
    assert "unknown" in finding
    assert "+info" in finding


def test_nodes_share_heat_through_it(endpoint: RedisEndpoint, prefix: str) -> None:
    """Two nodes an hour apart and home agree with each other; times are the server's."""
    clocks = (lambda: 5.0, lambda: 5.0 + 3600)
    nodes = [
        HeatRecorder(SumsLedger(RedisHeat(endpoint, prefix=prefix)), clock=clock)
        for clock in clocks
    ]
    for node in nodes:
        node.record([ChunkRead(bytes(32), bytes([7]) * 32, 10, 1000)] * 3)
        assert node.flush()
    for node in nodes:
        view = node.view()
        assert view.chunk(bytes(32)) == pytest.approx(6.0, rel=1e-3)
        assert view.pack(bytes([7]) * 32) == pytest.approx(6000.0, rel=1e-3)
        assert view.now == pytest.approx(time.time(), abs=60)
