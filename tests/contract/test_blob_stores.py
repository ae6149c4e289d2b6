"""Every blob store of the package, held to the one contract."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.moto import ACCESS_KEY, SECRET_KEY, Moto
from tierstore.blobs.base import BlobStore
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.blobs.objects.store import ObjectStore
from tierstore.errors import Unreachable
from tierstore.testing.blob_contract import BlobStoreContract
from tierstore.wiring import open_blobs


class TestMemoryStore(BlobStoreContract):
    @pytest.fixture
    def store(self) -> BlobStore:
        return MemoryStore()


class TestLocalStore(BlobStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        return LocalStore(tmp_path / "store", create=True)

    @pytest.fixture
    def other(self, store: BlobStore, tmp_path: Path) -> BlobStore:
        return LocalStore(tmp_path / "store")

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        assert isinstance(store, LocalStore)
        return (store.root / key).read_bytes()


class TestFsspecFile(BlobStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        return open_blobs(f"fsspec+file://{tmp_path}/store")

    @pytest.fixture
    def other(self, tmp_path: Path, store: BlobStore) -> BlobStore:
        return open_blobs(f"fsspec+file://{tmp_path}/store")

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        return (Path(store.url.removeprefix("fsspec+file://")) / key).read_bytes()


class TestFsspecMemory(BlobStoreContract):
    @pytest.fixture
    def name(self) -> str:
        return uuid.uuid4().hex

    @pytest.fixture
    def store(self, name: str) -> BlobStore:
        return open_blobs(f"memory://{name}")

    @pytest.fixture
    def other(self, name: str) -> BlobStore:
        return open_blobs(f"memory://{name}")


class TestS3(BlobStoreContract):
    @pytest.fixture(autouse=True)
    def _environment(self, moto_server: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moto = moto_server
        for name, value in moto_server.environment.items():
            monkeypatch.setenv(name, value)

    @pytest.fixture
    def bucket(self) -> str:
        bucket = f"b-{uuid.uuid4().hex}"
        self.moto.client().create_bucket(Bucket=bucket)
        return bucket

    @pytest.fixture
    def store(self, bucket: str) -> Iterator[BlobStore]:
        with open_blobs(f"s3://{bucket}/some/prefix") as store:
            yield store

    @pytest.fixture
    def other(self, bucket: str) -> Iterator[BlobStore]:
        with open_blobs(f"s3://{bucket}/some/prefix/") as store:
            yield store

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
        answer = self.moto.client().get_object(Bucket=bucket, Key=f"{prefix}/{key}")
        content: bytes = answer["Body"].read()
        return content

    def test_no_message_holds_a_credential(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        dead = ObjectStore(f"s3://{bucket}/p", allow_http=True, retry_s=0.1)
        with pytest.raises(Unreachable) as caught:
            dead.get("k")
        for secret in (ACCESS_KEY, SECRET_KEY):
            assert secret not in f"{caught.value!r} {dead.url} {dead!r}"
