"""Real file servers held to the contract of a blob store: HDFS, SFTP, CephFS behind a mount."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from tests.servers.ceph import CephFs
from tests.servers.hdfs import Hdfs
from tests.servers.sftp import Sftp
from tierstore.blobs.base import BlobStore
from tierstore.blobs.fsspec.store import FsspecStore
from tierstore.testing.blob_contract import BlobStoreContract
from tierstore.wiring import open_blobs


class TestWebHdfs(BlobStoreContract):
    many, many_at_once, turns = 60, 20, 5  # each write is five requests to a server in Java

    @pytest.fixture(autouse=True)
    def _url(self, hdfs: Hdfs) -> None:
        self.hdfs = hdfs
        self.url = f"{hdfs.url}/{uuid.uuid4().hex}/store"

    @pytest.fixture
    def store(self) -> Iterator[BlobStore]:
        with open_blobs(self.url) as store:
            yield store

    @pytest.fixture
    def other(self) -> Iterator[BlobStore]:
        with open_blobs(self.url) as store:
            yield store

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        path = quote(f"{self.url.removeprefix(self.hdfs.url)}/{key}")
        path = path.replace("%25", "=")
        url = f"http://127.0.0.1:{self.hdfs.port}/webhdfs/v1{path}"
        answer = requests.get(url, params={"op": "OPEN"}, timeout=30)
        answer.raise_for_status()
        return answer.content


class TestSftp(BlobStoreContract):
    many = 300

    @pytest.fixture(autouse=True)
    def _url(self, sftp: Sftp) -> None:
        self.sftp, self.name = sftp, uuid.uuid4().hex

    def _open(self) -> BlobStore:
        return FsspecStore(f"{self.sftp.url}/{self.name}", self.sftp.options)

    @pytest.fixture
    def store(self) -> Iterator[BlobStore]:
        with self._open() as store:
            yield store

    @pytest.fixture
    def other(self) -> Iterator[BlobStore]:
        with self._open() as store:
            yield store

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        return Path(self.sftp.data / self.name / key).read_bytes()


class TestCephFs(BlobStoreContract):
    """What a node sees of a distributed file system that is mounted: a directory."""

    many, turns = 300, 10

    @pytest.fixture(autouse=True)
    def _url(self, cephfs: CephFs) -> None:
        self.root = cephfs.path / uuid.uuid4().hex

    @pytest.fixture
    def store(self) -> Iterator[BlobStore]:
        with open_blobs(f"file://{self.root}", create=True) as store:
            yield store

    @pytest.fixture
    def other(self, store: BlobStore) -> Iterator[BlobStore]:
        with open_blobs(f"file://{self.root}") as store:
            yield store

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def test_reads_cost_network(self, store: BlobStore) -> None:
        assert not store.local
