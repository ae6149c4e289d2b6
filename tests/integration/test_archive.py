"""Packs in an archive storage class: frozen once verified, never relied on, restored when asked."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tierstore
from tests.integration.kit import MIB, equal, tensors
from tests.servers.moto import Moto
from tierstore.blobs.objects.archive import S3Archive
from tierstore.blobs.objects.store import ObjectStore
from tierstore.cli.kit import app
from tierstore.cli.schemas import placing as schemas
from tierstore.errors import Archived, NotFound, Unreachable
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.store import Store

_names = itertools.count()


@pytest.fixture
def bucket(moto_server: Moto, monkeypatch: pytest.MonkeyPatch) -> str:
    for key, value in moto_server.environment.items():
        monkeypatch.setenv(key, value)
    name = f"archive-{next(_names)}"
    moto_server.client().create_bucket(Bucket=name)
    return name


@pytest.mark.parametrize(
    "prefix", ["cold", "my models", "my%20models", "p+q", "100%25", "a/./b", "ünï", "%C3%BC"]
)
def test_both_clients_mean_the_same_keys(bucket: str, prefix: str) -> None:
    url = f"s3://{bucket}/{prefix}"
    with ObjectStore(url, allow_http=True) as store:
        store.put("packs/aa/x", b"1234")
        archive = S3Archive(url, "GLACIER", region="us-east-1")
        archive.freeze("packs/aa/x")
        assert archive.state("packs/aa/x") == ("archived", "")
        with pytest.raises(Archived):
            store.get("packs/aa/x")


@pytest.fixture
def place(bucket: str, tmp_path: Path) -> Path:
    """A store with m@1 and m@2 in its warm tier, above an archive."""
    tiers = [
        TierSpec(name="warm", role="warm", url=(tmp_path / "warm").as_uri()),
        TierSpec(name="ice", role="cold", url=f"s3://{bucket}/ice",
                 options={"storage_class": "GLACIER"}),
    ]  # fmt: skip
    with tierstore.init(tmp_path / "store", chunk_size=MIB, tiers=tiers) as store:
        for seed in (1, 2):
            store.save("m", tensors(seed), base=None)
    return tmp_path


def packs_of(store: Store, ref: str) -> list[bytes]:
    return store.placement.packs_of(store.resolve(ref).digest)


def classes(moto: Moto, bucket: str) -> dict[str, str]:
    listed = moto.client().list_objects_v2(Bucket=bucket)["Contents"]
    return {one["Key"]: one["StorageClass"] for one in listed}


def test_a_version_goes_to_an_archive_and_comes_back(
    place: Path, bucket: str, moto_server: Moto
) -> None:
    with tierstore.open(place / "store") as store:
        [own] = set(packs_of(store, "m@2")) - set(packs_of(store, "m@1"))
        report = store.placement.move([own], "ice")
        assert [(one.move.kind, one.status, one.why) for one in report.moved] == [
            ("demote", "done", "")
        ]
        found = classes(moto_server, bucket)
        assert found[f"ice/packs/{own.hex()[:2]}/{own.hex()}"] == "GLACIER"
        assert found["ice/tier.json"] == "STANDARD", "what is no pack is never archived"
        assert len(found) == 2
        equal(store.load("m@1").load(), tensors(1))
    with tierstore.open(place / "store") as store:
        with pytest.raises(Archived, match="'tierstore restore' makes it readable"):
            store.load("m@2").load()
        with pytest.raises(Archived):  # the tier is not skipped for that
            store.load("m@2").load()
        checked = store.check(read_data=True)
        assert (checked.findings, checked.archived) == ([], 1)
        assert store.placement.readiness([own]) == {own: "archived"}
        moved = store.placement.move([own], "warm").moved
        assert [one.status for one in moved] == ["failed"]
        assert "'tierstore restore'" in moved[0].why
        assert store.placement.restore([own], days=2) in ({own: "restoring"}, {own: "restored"})
        assert store.placement.restore([own], days=2), "asking again is fine"
        _restored(store, own)
        equal(store.load("m@2").load(), tensors(2))
        assert store.placement.move([own], "warm").complete
        assert store.placement.readiness([own, bytes(32)]) == {
            own: "readable", bytes(32): "missing",
        }  # fmt: skip
        assert store.check(read_data=True).archived == 0
        equal(store.load("m@2").load(), tensors(2))


def _restored(store: Store, pack: bytes) -> None:
    deadline = time.monotonic() + 30
    while store.placement.readiness([pack]) != {pack: "restored"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_nothing_relies_on_an_archived_copy(place: Path, bucket: str) -> None:
    with tierstore.open(place / "store") as store:
        before = store.placement.plan().moves
        assert not [move for move in before if move.target == "ice"], "only when somebody asks"
        every = {*packs_of(store, "m@1"), *packs_of(store, "m@2")}
        store.placement.move(every, "ice")
        again = store.save("m", tensors(1), base=None)
        assert again.stats is not None
        assert again.stats.new_chunks == 4, "a duplicate in an archive is stored again"
        equal(store.load("m").load(), tensors(1))


def test_a_time_to_live_freezes_what_nobody_reads(
    bucket: str, moto_server: Moto, tmp_path: Path
) -> None:
    tiers = [
        TierSpec(name="cold", role="cold", url=(tmp_path / "cold").as_uri(),
                 options={"ttl_s": "1000"}),
        TierSpec(name="ice", role="cold", url=f"s3://{bucket}/ice",
                 options={"storage_class": "DEEP_ARCHIVE"}),
    ]  # fmt: skip
    with tierstore.init(tmp_path / "store", chunk_size=MIB, tiers=tiers) as store:
        store.save("m", tensors(1), base=None)
        assert not store.placement.rebalance().moved
        for path in (tmp_path / "cold").rglob("*"):
            os.utime(path, (time.time() - 2000,) * 2)
        [moved] = store.placement.rebalance().moved
        assert (moved.move.source, moved.move.target, moved.status) == ("cold", "ice", "done")
        assert "it was not read for" in moved.move.why
        assert "DEEP_ARCHIVE" in classes(moto_server, bucket).values()
        assert not list((tmp_path / "cold").rglob("packs/*/*"))


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("TIERSTORE_STORE", str(place / "store"))

    def go(*argv: str) -> tuple[int, str, str]:
        code = app.run(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


def test_the_command(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("restore", "m@1") == (0, "1 pack: 1 readable at once\n", "")
    assert run("mv", "m@1", "--to", "ice")[0] == 0
    code, out, _ = run("restore", "m@1", "--check")
    assert (code, out) == (3, "1 pack: 1 archived\n")
    assert run("load", "m@1", "--to", "/nowhere")[0] == 1
    code, out, _ = run("restore", "m@1", "--days", "1", "--speed", "expedited", "--wait", "--json")
    assert code == 0
    data = msgspec.json.decode(out.encode(), type=schemas.Restored)
    assert (data.packs, data.restored) == (1, 1)
    assert run("mv", "m@1", "--to", "warm")[0] == 0
    assert run("restore", "m@1", "--speed", "soon")[0] == 2


def test_what_the_storage_answers(
    bucket: str, moto_server: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = S3Archive(f"s3://{bucket}/a", "GLACIER", region="us-east-1")
    with pytest.raises(NotFound):
        archive.state("missing")
    with pytest.raises(NotFound):
        archive.freeze("missing")
    moto_server.client().put_object(Bucket=bucket, Key="a/k", Body=b"1")
    assert archive.state("k") == ("readable", "")
    archive.freeze("k")
    assert archive.state("k") == ("archived", "")
    gone = S3Archive(f"s3://{bucket}/a", "GLACIER", region="us-east-1", timeout_s=1,
                     endpoint="http://127.0.0.1:9")  # fmt: skip
    with pytest.raises(Unreachable, match="check the endpoint"):
        gone.state("k")
