"""Garbage in buckets that keep what is deleted, lock it, or refuse to delete some of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.kit import MIB, equal
from tests.servers.ceph import Ceph
from tests.servers.moto import Moto
from tierstore.errors import BackendError
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.reclaim.report import Report
from tierstore.store import Store, init_store, open_store

KEPT = "bucket keeps older versions"


def weights(seed: int) -> dict[str, np.ndarray]:
    """One tensor, of which others share nothing."""
    return {"w": np.random.default_rng(seed).standard_normal(50_000, np.float32)}


@pytest.fixture
def bucket(ceph: Ceph, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    return ceph.bucket()


def tiered(home: Path, bucket: str) -> Store:
    """Three versions of a model in a bucket, of which the first two are removed."""
    spec = TierSpec(name="warm", role="warm", url=f"s3://{bucket}/t")
    store = init_store(str(home), chunk_size=MIB, tiers=[spec])
    store.reclaim.enable(wait_s=0)
    for seed in range(3):
        store.save("m", weights(seed), base=None)
    store.remove("m@1", "m@2")
    return store


def collect(store: Store) -> Report:
    return store.reclaim.run(window=timedelta(0))


def printed(store: Store) -> tuple[int, str]:
    """The exit code of ``tierstore gc``, and what it prints."""
    command = [sys.executable, "-m", "tierstore", "gc", "--window", "0", "--store", store.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout


def stored_bytes(client: Any, bucket: str) -> int:
    """All versions of all packs."""
    found = client.list_object_versions(Bucket=bucket)
    return sum(one["Size"] for one in found.get("Versions", ()) if "/packs/" in one["Key"])


def with_versions(client: Any, bucket: str) -> None:
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def suspended(client: Any, bucket: str) -> None:
    with_versions(client, bucket)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})


def locked(client: Any, bucket: str) -> None:
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    client.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )


def is_told(store: Store, report: Report, before: int) -> None:
    """What a tier keeps is not said to be free, and ``doctor`` warns."""
    deleted = report.amounts()["deleted"]
    assert (deleted.packs, report.freed, report.kept) == (2, {}, {"warm": deleted.bytes})
    assert deleted.bytes < before
    [problem] = store.admin.doctor().problems
    assert problem.startswith("tier warm: ")
    assert KEPT in problem
    last = store.reclaim.last()
    assert last is not None
    assert last.freed == {}


@pytest.mark.parametrize("prepare", [with_versions, locked])
def test_what_a_bucket_keeps_is_not_free(
    ceph: Ceph, bucket: str, tmp_path: Path, prepare: Callable[[Any, str], None]
) -> None:
    client = ceph.client()
    bucket += "-kept"
    if prepare is not locked:
        client.create_bucket(Bucket=bucket)
    prepare(client, bucket)
    with tiered(tmp_path / "home", bucket) as store:
        before = stored_bytes(client, bucket)
        is_told(store, collect(store), before)
        assert stored_bytes(client, bucket) == before
        assert collect(store).kept == {}, "they are gone for us"
        equal(store.load("m@3").load(), weights(2))
        assert not store.check(read_data=True).damaged


def test_what_was_stored_before_a_bucket_kept_versions_is_kept_too(
    ceph: Ceph, bucket: str, tmp_path: Path
) -> None:
    client = ceph.client()
    with tiered(tmp_path / "home", bucket) as store:
        with_versions(client, bucket)
        before = stored_bytes(client, bucket)
        is_told(store, collect(store), before)
        assert stored_bytes(client, bucket) == before


def test_what_a_bucket_keeps_no_more_is_free(ceph: Ceph, bucket: str, tmp_path: Path) -> None:
    client = ceph.client()
    suspended(client, bucket)
    with tiered(tmp_path / "home", bucket) as store:
        before = stored_bytes(client, bucket)
        report = collect(store)
        assert (report.freed["warm"], report.kept) == (
            before - stored_bytes(client, bucket), {},
        )  # fmt: skip
        assert report.freed["warm"] > 0
        assert store.admin.doctor().problems == []


def test_what_may_not_be_deleted_stays_and_the_rest_goes(
    ceph: Ceph, bucket: str, tmp_path: Path
) -> None:
    client = ceph.client()
    with tiered(tmp_path / "home", bucket) as store:
        doomed = sorted(
            one.pack.hex()
            for one in store.reclaim.run(window=timedelta(0), dry_run=True).of("deleted")
        )
        refused, other = (f"t/packs/{name[:2]}/{name}" for name in doomed)
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(_denied(bucket, refused)))
        before, size = stored_bytes(client, bucket), _size(client, bucket, other)
        report = collect(store)
        assert report.freed == {"warm": size}
        assert stored_bytes(client, bucket) == before - size
        assert [one.pack.hex() for one in report.of("deleted")] == [other[-64:]]
        [left] = report.of("down")
        assert (left.pack.hex(), left.why) == (
            refused[-64:], "nothing needs it, but tier warm does not delete it",
        )  # fmt: skip
        assert report.garbage().bytes == _size(client, bucket, refused)
        assert "AccessDenied" in report.refused["warm"]
        assert report.down == {}
        code, text = printed(store)
        assert (code, "tier warm did not delete everything" in text) == (3, True)
        client.delete_bucket_policy(Bucket=bucket)
        report = collect(store)
        assert (len(report.of("deleted")), report.refused, report.garbage().packs) == (1, {}, 0)


def _denied(bucket: str, key: str) -> object:
    statement = {
        "Effect": "Deny", "Principal": "*", "Action": ["s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{bucket}/{key}"],
    }  # fmt: skip
    return {"Version": "2012-10-17", "Statement": [statement]}


def _size(client: Any, bucket: str, key: str) -> int:
    size: int = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
    return size


def test_a_home_that_no_longer_creates_is_not_collected(ceph: Ceph, bucket: str) -> None:
    """radosgw overwrites what should be created once a bucket keeps versions."""
    url = f"s3://{bucket}/home"
    with init_store(url, chunk_size=MIB) as store:
        store.reclaim.enable(wait_s=0)
        for seed in range(2):
            store.save("m", weights(seed), base=None)
        store.remove("m@1")
        with_versions(ceph.client(), bucket)
        before = stored_bytes(ceph.client(), bucket)
        with pytest.raises(BackendError, match="overwrites where it should create"):
            collect(store)
        assert stored_bytes(ceph.client(), bucket) == before
        problems = store.admin.doctor().problems
        assert [problem for problem in problems if "overwrites where it should create" in problem]
        assert [problem for problem in problems if KEPT in problem]


def test_a_home_that_keeps_versions(
    moto_server: Moto, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto_server.environment.items():
        monkeypatch.setenv(name, value)
    client, bucket = moto_server.client(), "keeps-versions"
    client.create_bucket(Bucket=bucket)
    with_versions(client, bucket)
    with init_store(f"s3://{bucket}/home", chunk_size=MIB) as store:
        store.reclaim.enable(wait_s=0)
        for seed in range(3):
            store.save("m", weights(seed), base=None)
        store.remove("m@1", "m@2")
        store.undelete("m@2")
        before = stored_bytes(client, bucket)
        report = collect(store)
        assert (report.freed, len(report.of("deleted"))) == ({}, 1)
        assert report.kept["home"] == report.amounts()["deleted"].bytes
        assert stored_bytes(client, bucket) == before
        [problem] = store.admin.doctor().problems
        assert problem.startswith(f"{store.url}: ")
        assert KEPT in problem
        for ref, seed in (("m@2", 1), ("m@3", 2)):
            equal(store.load(ref).load(), weights(seed))
        store.save("m", weights(0), base=None)
        store.remove("m@2")
        code, text = printed(store)
        assert (code, "tier home keeps what is deleted as older versions" in text) == (0, True)
    with open_store(f"s3://{bucket}/home") as store:
        equal(store.load("m").load(), weights(0))
        assert not store.check(read_data=True).damaged
