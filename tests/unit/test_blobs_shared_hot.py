"""How a Redis and a memcached are named, and what is refused before anything is connected."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tierstore.blobs.memcached.store import MemcachedStore
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.store import RedisStore
from tierstore.blobs.shared import batches, size_of
from tierstore.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "addresses", "db", "tls", "cluster"),
    [
        ("redis://h", (("h", 6379),), 0, False, False),
        ("redis://h:1/3", (("h", 1),), 3, False, False),
        ("rediss://h.example.org:1/", (("h.example.org", 1),), 0, True, False),
        ("redis://[::1]:7", (("::1", 7),), 0, False, False),
        ("redis+cluster://a:1,b,[::1]:3", (("a", 1), ("b", 6379), ("::1", 3)), 0, False, True),
        ("rediss+cluster://a:1", (("a", 1),), 0, True, True),
        ("unix:///run/redis/s.sock", (("/run/redis/s.sock", 0),), 0, False, False),
        ("unix:///run/a%20b?db=5", (("/run/a b", 0),), 5, False, False),
    ],
)
def test_endpoints(
    url: str, addresses: tuple[tuple[str, int], ...], db: int, tls: bool, cluster: bool
) -> None:
    endpoint = RedisEndpoint(url)
    found = (endpoint.addresses, endpoint.db, endpoint.tls, endpoint.cluster)
    assert found == (addresses, db, tls, cluster)


@pytest.mark.parametrize(
    "url",
    ["", "redis://", "redis://:1", "redis://h:x", "redis://h:99999", "redis://a,b", "redis://h/x",
     "redis://h/-1", "redis+cluster://h/1", "redis+cluster://a,,b", "unix://relative", "unix://",
     "unix:///s?x=1", "http://h", "h:6379", "redis://h/0/1"],
)  # fmt: skip
def test_no_endpoint(url: str) -> None:
    with pytest.raises(ConfigError):
        RedisEndpoint(url)


def test_credentials_stay_out_of_urls() -> None:
    for url in ("redis://user:s3cret@h", "redis://:s3cret@h:1/0", "unix://s3cret@/path"):
        with pytest.raises(ConfigError) as caught:
            RedisEndpoint(url)
        assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        MemcachedStore("memcached://u:s3cret@h")
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(RedisEndpoint("redis://h", username="u", password="s3cret"))


def test_other_values_are_checked() -> None:
    for values in (
        {"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"connections": 0},
        {"username": "u"}, {"ca": "/no/such/file"},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            RedisEndpoint("redis://h", **values)
    for prefix in ("", "a*", "a b", "a\n", "é", "[a]", "~"):
        with pytest.raises(ConfigError):
            RedisStore(RedisEndpoint("redis://h"), prefix=prefix)
        with pytest.raises(ConfigError):
            MemcachedStore("memcached://h", prefix=prefix)
    with pytest.raises(ConfigError):
        RedisStore(RedisEndpoint("redis://h"), ttl_s=0)


@pytest.mark.parametrize(
    "url",
    ["", "memcached://", "memcached://a,a", "memcached://a/x", "redis://h", "memcached://h:x"],
)
def test_no_memcached(url: str) -> None:
    with pytest.raises(ConfigError):
        MemcachedStore(url)


@pytest.mark.parametrize(
    ("missing", "call", "extra"),
    [
        ("redis", "redis_store.RedisStore(redis_endpoint.RedisEndpoint('redis://h'))", "redis"),
        ("hiredis", "redis_heat.RedisHeat(redis_endpoint.RedisEndpoint('redis://h'))", "redis"),
        ("pymemcache", "memcached_store.MemcachedStore('memcached://h')", "memcached"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(missing: str, call: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from tierstore.blobs.memcached import store as memcached_store
from tierstore.blobs.redis import endpoint as redis_endpoint
from tierstore.blobs.redis import heat as redis_heat
from tierstore.blobs.redis import store as redis_store
from tierstore.errors import ConfigError
try:
    {call}
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"tierstore[{extra}]" in done.stdout
    assert missing in done.stdout


def test_batches_keep_both_limits() -> None:
    sized = [("a", 4), ("b", 4), ("c", 3), ("d", 99), ("e", 0), ("f", 0), ("g", 0), ("h", 10)]
    assert list(batches(sized, 10, 3)) == [["a", "b"], ["c"], ["d"], ["e", "f", "g"], ["h"]]
    assert list(batches([], 10, 3)) == []


def test_size_of_buffers() -> None:
    words = memoryview(b"12345678").cast("I")
    assert size_of(b"abc") == 3
    assert size_of([b"abc", bytearray(4), words]) == 15
    assert size_of([]) == 0
