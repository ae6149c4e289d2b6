"""A Redis that others write into: it costs misses, and nothing ends."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

import tierstore
from tests.servers.redis import RedisServer
from tests.waiting import wait_until
from tierstore.blobs.base import RangeRead
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.heat import RedisHeat
from tierstore.blobs.redis.store import RedisStore
from tierstore.errors import NotFound
from tierstore.format.heat import CHUNK
from tierstore.serving import follow
from tierstore.tiers.heat.recorder import SumsLedger

NAME = "c" + "ab" * 32


@pytest.fixture
def prefix() -> str:
    return f"tier:{uuid.uuid4().hex}:"


@pytest.fixture
def raw(redis_plain: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(redis_plain.url)


def test_values_of_another_kind_are_no_blobs(
    redis_plain: RedisServer, raw: redis.Redis, prefix: str
) -> None:
    store = RedisStore(RedisEndpoint(redis_plain.url), prefix=prefix)
    store.put("good", b"data")
    raw.rpush(f"{prefix}list", "x")
    raw.sadd(f"{prefix}set", "x")
    raw.set(prefix.encode() + b"\xff\xfe", "x")
    assert dict(store.get_many(["good", "list", "set", "none"])) == {"good": memoryview(b"data")}
    for key in ("list", "set"):
        for read in (
            lambda key=key: store.get(key),
            lambda key=key: store.get_ranges([RangeRead(key, 0, memoryview(bytearray(2)))]),
            lambda key=key: store.info(key),
        ):
            with pytest.raises(NotFound):
                read()
    assert [info.key for info in store.list()] == ["good"]
    store.put("list", b"ours")
    assert bytes(store.get("list")) == b"ours"
    store.close()


def test_heat_of_others_is_left_out(
    redis_plain: RedisServer, raw: redis.Redis, prefix: str
) -> None:
    heat = RedisHeat(RedisEndpoint(redis_plain.url), prefix=prefix)
    ledger = SumsLedger(heat)
    period = ledger._period()
    key = f"{prefix}~heat:{period}"
    heats: dict[Any, float] = {
        NAME: 4.0, b"\xff\xfe": 9.0, "c" + "cd" * 32: float("inf"), "c1234": 1.0,
        "x" + "ab" * 32: 2.0, "": 3.0, "c" + "zz" * 32: 2.0, "p" + "ef" * 32: float("-inf"),
    }  # fmt: skip
    raw.zadd(key, heats)
    names = [name for name, _ in heat.top(100, period)]
    assert names[0] == NAME
    assert len(names) == 5
    assert heat.scores([NAME, "c" + "cd" * 32], period) == {NAME: 4.0}
    found = ledger.load()
    assert set(found.scores(0.0)) == {bytes((CHUNK,)) + bytes.fromhex("ab" * 32)}
    raw.delete(key)
    raw.set(key, "a string where a sorted set should be")
    raw.rpush(f"{prefix}~heat:{period - 1}", "a list")
    assert heat.top(10, period) == []
    assert heat.scores([NAME], period) == {}
    assert heat.trim(10, period) == 0
    assert not ledger.load().scores(0.0)
    heat.close()


def test_a_listener_passes_over_what_is_no_news(
    redis_plain: RedisServer, raw: redis.Redis, prefix: str
) -> None:
    heat = RedisHeat(RedisEndpoint(redis_plain.url), prefix=prefix)
    with heat.listen("news") as listener:
        for text in (b"\xff\xfe", b"", b"m"):
            raw.publish(f"{prefix}~news", text)
        assert [listener.get(5.0) for _ in range(3)] == [None, "", "m"]
    heat.close()


def test_a_follower_goes_on_listening_behind_bad_news(
    redis_plain: RedisServer, raw: redis.Redis, prefix: str, tmp_path: Path
) -> None:
    tier = tierstore.TierSpec(
        name="r", role="shared", url=redis_plain.url, options={"prefix": prefix}
    )
    with tierstore.init(tmp_path / "store", tiers=[tier]) as store:
        store.save("m", {"w": np.zeros(10, np.float32)}, alias="prod")
        with follow("m@prod", lambda update: None, store=store, poll_s=3600) as follower:
            assert follower.wait(60)
            channel = f"{prefix}~news"
            wait_until(lambda: raw.pubsub_numsub(channel)[0][1] > 0, "it listens")
            raw.publish(channel, b"\xff\xfe")
            store.save("m", {"w": np.ones(10, np.float32)}, alias="prod")
            assert follower.wait(60, number=2), "it heard of it, as it does not poll"


def test_forged_and_odd_chunks_cost_a_miss(
    redis_plain: RedisServer, raw: redis.Redis, prefix: str, tmp_path: Path
) -> None:
    tier = tierstore.TierSpec(
        name="r", role="shared", url=redis_plain.url, options={"prefix": prefix}
    )
    weights = np.random.default_rng(1).standard_normal((512, 1024), np.float32)
    with tierstore.init(tmp_path / "store", tiers=[tier]) as store:
        store.save("m", {"w": weights})
        store.load("m").load()
        assert store._parts.hot.flush(60)
        keys = sorted(key for key in raw.scan_iter(f"{prefix}*") if b"~" not in key)
        assert keys
        for odd in (lambda key: raw.rpush(key, "x"), lambda key: raw.set(key, b"\0" * 100)):
            for key in keys:
                raw.delete(key)
                odd(key)
            got = store.load("m")["w"]
            assert got.tobytes() == weights.tobytes()
            store.placement.plan()
