"""Packs in an archive storage class: frozen once verified, never relied on, restored when asked."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, equal, tensors
from tests.integration.test_deltas import model, tuned_model
from tests.servers.moto import Moto
from tierstore.blobs.objects.archive import S3Archive
from tierstore.blobs.objects.store import ObjectStore
from tierstore.cli.kit import app
from tierstore.cli.schemas import placing as schemas
from tierstore.errors import Archived, NotFound, Unreachable
from tierstore.format.keys import pack_key
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


def stored_again(store: Store, seed: int) -> bytes:
    """Save what is archived once more; the one pack that holds it now."""
    before = {info.key for info in store._parts.home.packs.list("packs/")}
    layouts = {info.key: bytes(store._parts.home.blobs.get(info.key))
               for info in store._parts.home.blobs.list("layouts/")}  # fmt: skip
    version = store.save("m", tensors(seed), base=None)
    assert version.stats is not None
    assert version.stats.new_chunks == 4
    for key, data in layouts.items():
        assert bytes(store._parts.home.blobs.get(key)) == data, "a layout is never written over"
    (key,) = {info.key for info in store._parts.home.packs.list("packs/")} - before
    return bytes.fromhex(key.rpartition("/")[2])


def reads(store: Store, ref: str, seed: int) -> None:
    """Read a version in every way."""
    content = tensors(seed)
    equal(store.load(ref).load(), content)
    emb = store.load(ref).tensor("emb")
    assert emb[[7, 200]].tobytes() == content["emb"][[7, 200]].tobytes()
    assert store.load(ref).tensor("bias").numpy().tobytes() == content["bias"].tobytes()


def test_what_is_archived_is_healed_by_a_save(place: Path, bucket: str) -> None:
    """Older versions and those that share a part of it read what was stored anew."""
    with tierstore.open(place / "store") as store:
        store.save("part", {"emb": tensors(1)["emb"], "more": np.ones(3)}, base=None)
        store.placement.move(packs_of(store, "m@1"), "ice")
        before = store.load("m@1")
        with pytest.raises(Archived):
            before.load()
        with pytest.raises(Archived):
            before.tensor("emb")[[7]]
        stored_again(store, 1)
        equal(before.load(), tensors(1))
        for ref in ("m@1", "m@3"):
            reads(store, ref, 1)
        part = store.load("part").tensor("emb").numpy()
        assert part.tobytes() == tensors(1)["emb"].tobytes()
    with tierstore.open(place / "store") as store:
        reads(store, "m@1", 1)
        again = store.save("m", tensors(1), base=None)
        assert again.stats is not None
        assert again.stats.new_chunks == 0, "it is found where it was stored anew"
        report = store.check(read_data=True)
        assert (report.findings, report.archived, report.quarantined) == ([], 1, [])


def test_what_was_stored_anew_is_what_the_version_needs(
    place: Path, bucket: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Restoring, warming and moving are about the packs that are read now, and heat is theirs."""
    with tierstore.open(place / "store") as store:
        (old,) = packs_of(store, "m@1")
        other = packs_of(store, "m@2")
        store.placement.move([old], "ice")
        assert store.placement.not_warm(store.resolve("m@1").digest) == [old]
        new = stored_again(store, 1)
        assert packs_of(store, "m@1") == [new]
        assert packs_of(store, "m@2") == [new if pack == old else pack for pack in other]
        assert store.placement.not_warm(store.resolve("m@1").digest) == []
        assert store.placement.warm(store.resolve("m@1").digest).complete
        store.load("m@1").load()
        _ = store.load("m@1").tensor("emb")[[7]]
        assert set(store.heat().packs()) == {new}
    assert run("restore", "m@1", "--check") == (0, "1 pack: 1 readable at once\n", "")
    with tierstore.open(place / "store") as store:
        store.placement.move([new], "ice")
        assert packs_of(store, "m@1") == [old], "either one would have to be restored"
        store.placement.restore([old])
        _restored(store, old)
        reads(store, "m@1", 1)


def test_a_healed_part_that_rots_is_found(place: Path, bucket: str) -> None:
    """No layout names the pack that holds it: a check reads it by way of the move."""
    with tierstore.open(place / "store") as store:
        (old,) = packs_of(store, "m@1")
        store.placement.move([old], "ice")
        new = stored_again(store, 1)
        path = place / "warm" / pack_key(new)
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
        report = store.check(read_data=True)
        assert {one.key for one in report.findings} == {pack_key(old)}
        assert report.quarantined == [pack_key(new)]
        stored_again(store, 1)
        reads(store, "m@1", 1)
        assert store.check(read_data=True).findings == []


def test_what_was_stored_anew_is_archived_as_well(
    place: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moves go on from the second pack; and one that is readable for a while is not relied on."""
    with tierstore.open(place / "store") as store:
        old = packs_of(store, "m@1")
        store.placement.move(old, "ice")
        second = stored_again(store, 1)
        store.placement.move([second], "ice")
        with pytest.raises(Archived):
            store.load("m@1").load()
        assert store.check(read_data=True).findings == []
        store.placement.restore([second])
        _restored(store, second)
        reads(store, "m@1", 1)
        blobs = store._parts.home.blobs
        blobs.delete([info.key for info in blobs.list("index/")])  # nothing tells of it but moves
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "another cache"))
    with tierstore.open(place / "store") as store:
        stored_again(store, 1)
        assert second not in packs_of(store, "m@1")
        warm = list((place / "warm").rglob("packs/*/*"))
        assert len(warm) == 2, "what is restored for a while was not relied on"
    with tierstore.open(place / "store") as store:
        reads(store, "m@1", 1)
        # the collector may delete the first one: readers of any age follow the same moves
        store._parts.home.packs.delete([pack_key(pack) for pack in old])
        reads(store, "m@3", 1)
        assert store.check(read_data=True).findings == []


def test_a_pack_that_moved_into_an_archive_can_be_restored(place: Path, bucket: str) -> None:
    with tierstore.open(place / "store") as store:
        old = packs_of(store, "m@1")
        store.placement.move(old, "ice")
        new = stored_again(store, 1)
        store.placement.move([new], "ice")
        store._parts.home.packs.delete([pack_key(pack) for pack in old])
        with pytest.raises(Archived, match="'tierstore restore' makes it readable"):
            store.load("m@1").load()
        report = store.check(read_data=True)
        assert (report.findings, report.archived) == ([], 1)
        assert packs_of(store, "m@1") == [new]
        store.placement.restore([new])
        _restored(store, new)
        reads(store, "m@1", 1)


def test_a_delta_on_an_archived_base_is_healed(bucket: str, tmp_path: Path) -> None:
    tiers = [
        TierSpec(name="warm", role="warm", url=(tmp_path / "warm").as_uri()),
        TierSpec(name="ice", role="cold", url=f"s3://{bucket}/ice",
                 options={"storage_class": "GLACIER"}),
    ]  # fmt: skip
    first = model()
    second = tuned_model(first)
    with tierstore.init(tmp_path / "store", chunk_size=MIB, tiers=tiers) as store:
        store.save("d", first)
        version = store.save("d", second)
        assert version.stats is not None
        assert version.stats.delta_bytes
        below = packs_of(store, "d@1")
        (own,) = set(packs_of(store, "d@2")) - set(below)
        data = bytes(store._parts.home.packs.get(pack_key(own)))
        store.placement.move(below, "ice")
        store._parts.home.packs.put(pack_key(own), data)  # moves take along what rests on them
        with pytest.raises(Archived):
            store.load("d@2").load()
        with pytest.raises(Archived):
            store.load("d@2").tensor("emb")[[7]]
        store.save("e", second)
        equal(store.load("d@2").load(), second)
        assert store.load("d@2").tensor("emb")[[7]].tobytes() == second["emb"][[7]].tobytes()
        with pytest.raises(Archived):
            store.load("d@1").load()
        store.save("e", first)
        equal(store.load("d@1").load(), first)


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
