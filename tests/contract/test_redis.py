"""Redis held to the contract of a blob store, however it is reached."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.redis import PASSWORD, USER, RedisCluster, RedisServer
from tierstore.blobs.base import BlobStore
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.store import RedisStore
from tierstore.testing.blob_contract import BlobStoreContract


class RedisContract(BlobStoreContract):
    """Two stores of one endpoint with a prefix of their own."""

    many_at_once = 2100

    @pytest.fixture
    def endpoint(self) -> RedisEndpoint:
        raise NotImplementedError("give a fixture that returns the endpoint")

    @pytest.fixture
    def admin(self) -> Any:
        """A client of redis-py for ``raw_get``."""
        raise NotImplementedError("give a fixture that returns a client")

    @pytest.fixture(autouse=True)
    def _prefix(self, admin: Any) -> None:
        self.client = admin
        self.prefix = f"tier:{uuid.uuid4().hex}:"

    @pytest.fixture
    def store(self, endpoint: RedisEndpoint) -> Iterator[BlobStore]:
        with RedisStore(endpoint, prefix=self.prefix) as store:
            yield store

    @pytest.fixture
    def other(self, endpoint: RedisEndpoint) -> Iterator[BlobStore]:
        with RedisStore(endpoint, prefix=self.prefix) as store:
            yield store

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        value: bytes = self.client.get(self.prefix + key)
        return value


class TestRedis(RedisContract):
    @pytest.fixture
    def endpoint(self, redis_plain: RedisServer) -> RedisEndpoint:
        return RedisEndpoint(redis_plain.url)

    @pytest.fixture
    def admin(self, redis_plain: RedisServer) -> Any:
        return redis_plain.admin()


class TestRedisUnixSocket(RedisContract):
    @pytest.fixture
    def endpoint(self, redis_plain: RedisServer) -> RedisEndpoint:
        return RedisEndpoint(f"unix://{redis_plain.socket}")

    @pytest.fixture
    def admin(self, redis_plain: RedisServer) -> Any:
        return redis_plain.admin()


class TestRedisTls(RedisContract):
    @pytest.fixture
    def endpoint(self, redis_tls: RedisServer) -> RedisEndpoint:
        return RedisEndpoint(redis_tls.url, password=PASSWORD, ca=str(redis_tls.ca))

    @pytest.fixture
    def admin(self, redis_tls: RedisServer) -> Any:
        return redis_tls.admin()


class TestRedisRestrictedUser(RedisContract):
    @pytest.fixture
    def endpoint(self, redis_acl: RedisServer) -> RedisEndpoint:
        return RedisEndpoint(redis_acl.url, username=USER, password=PASSWORD)

    @pytest.fixture
    def admin(self, redis_acl: RedisServer) -> Any:
        return redis_acl.admin()


class TestRedisCluster(RedisContract):
    @pytest.fixture
    def endpoint(self, redis_cluster: RedisCluster) -> RedisEndpoint:
        return RedisEndpoint(redis_cluster.url)

    @pytest.fixture
    def admin(self, redis_cluster: RedisCluster) -> Any:
        return redis_cluster.admin()
