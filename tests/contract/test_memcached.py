"""Memcached held to the contract of a blob store, with one server and with two."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import pytest

from tests.servers.memcached import MemcachedServer
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memcached.store import MemcachedStore
from tierstore.errors import OutOfSpace
from tierstore.testing.blob_contract import BlobStoreContract


class MemcachedContract(BlobStoreContract):
    """Two stores of the same servers with a prefix of their own."""

    many_at_once = 2100

    @pytest.fixture
    def servers(self) -> Sequence[MemcachedServer]:
        raise NotImplementedError("give a fixture that returns the servers")

    @pytest.fixture(autouse=True)
    def _names(self, servers: Sequence[MemcachedServer]) -> None:
        self.servers_used = servers
        self.prefix = f"tier:{uuid.uuid4().hex}:"
        self.address = "memcached://" + ",".join(server.address for server in servers)

    @pytest.fixture
    def store(self) -> Iterator[BlobStore]:
        with MemcachedStore(self.address, prefix=self.prefix) as store:
            yield store

    @pytest.fixture
    def other(self) -> Iterator[BlobStore]:
        with MemcachedStore(self.address, prefix=self.prefix) as store:
            yield store

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        name = self.prefix + key
        if len(name) > 250:
            return bytes(store.get(key))
        held = [server.admin().get(name) for server in self.servers_used]
        [value] = [value for value in held if value is not None]
        assert isinstance(value, bytes)
        return value


class TestMemcached(MemcachedContract):
    @pytest.fixture
    def servers(
        self, memcached_pair: tuple[MemcachedServer, MemcachedServer]
    ) -> Sequence[MemcachedServer]:
        return memcached_pair[:1]


class TestMemcachedLargeItems(MemcachedContract):
    @pytest.fixture
    def servers(
        self, memcached_pair: tuple[MemcachedServer, MemcachedServer]
    ) -> Sequence[MemcachedServer]:
        return memcached_pair[1:]


class TestTwoMemcached(MemcachedContract):
    @pytest.fixture
    def servers(
        self, memcached_pair: tuple[MemcachedServer, MemcachedServer]
    ) -> Sequence[MemcachedServer]:
        return memcached_pair

    def test_the_least_limit_holds_whichever_server_a_key_falls_to(self, store: BlobStore) -> None:
        most = store.capabilities.max_blob_bytes
        assert most is not None
        for n in range(10):
            with pytest.raises(OutOfSpace, match=str(most)):
                store.put(f"k/{n}", bytes(most + 1))
