"""A real S3 server, radosgw, held to the contract of a blob store: by obstore, and by s3fs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.ceph import ACCESS_KEY, SECRET_KEY, Ceph
from tierstore.blobs.base import BlobStore
from tierstore.blobs.objects.store import ObjectStore
from tierstore.errors import Unreachable
from tierstore.testing.blob_contract import BlobStoreContract
from tierstore.wiring import open_blobs


class CephContract(BlobStoreContract):
    """Two clients of a bucket of their own."""

    scheme = ""

    @pytest.fixture(autouse=True)
    def _environment(self, ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ceph = ceph
        for name, value in ceph.environment.items():
            monkeypatch.setenv(name, value)

    @pytest.fixture
    def bucket(self) -> str:
        return self.ceph.bucket()

    @pytest.fixture
    def store(self, bucket: str) -> Iterator[BlobStore]:
        with open_blobs(f"{self.scheme}://{bucket}/some/prefix") as store:
            yield store

    @pytest.fixture
    def other(self, bucket: str) -> Iterator[BlobStore]:
        with open_blobs(f"{self.scheme}://{bucket}/some/prefix/") as store:
            yield store

    def raw_get(self, store: BlobStore, key: str) -> bytes:
        bucket, _, prefix = store.url.partition("://")[2].partition("/")
        answer = self.ceph.client().get_object(Bucket=bucket, Key=f"{prefix}/{key}")
        content: bytes = answer["Body"].read()
        return content


class TestRadosgw(CephContract):
    scheme = "s3"

    def test_no_message_holds_a_credential(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with (
            ObjectStore(f"s3://{bucket}/p", allow_http=True, timeout_s=0.3) as dead,
            pytest.raises(Unreachable) as caught,
        ):
            dead.get("k")
        for secret in (ACCESS_KEY, SECRET_KEY):
            assert secret not in f"{caught.value!r} {dead.url} {dead!r}"


class TestS3fs(CephContract):
    scheme = "fsspec+s3"
    many = 300  # it deletes one by one
