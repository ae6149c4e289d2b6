"""A commit of the gateway moves no bytes of the files that it keeps."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tierstore
from tierstore.blobs.base import RangeRead
from tierstore.errors import InvalidName, InvalidSafetensors, UnsafeSource
from tierstore.modelstore.store import Store
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.commits import Committer, parse_commit
from tierstore.serving.hub.repos import Repos, WritableRepo
from tierstore.serving.hub.rights import Caller
from tierstore.serving.hub.spool import UploadSpool

MIB = 1 << 20


class Watched:
    """Counts what is read of packs and written at all."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = self.written = 0
        blobs = store._parts.home.blobs
        get, ranges, put = blobs.get, blobs.get_ranges, blobs.put

        def counted_get(key: str, *args: object, **more: object) -> object:
            data = get(key, *args, **more)  # type: ignore[arg-type]
            self.read += len(data) if key.startswith("packs/") else 0
            return data

        def counted_ranges(reads: Sequence[RangeRead]) -> None:
            self.read += sum(len(read.out) for read in reads)
            ranges(reads)

        def counted_put(key: str, data: bytes, *args: object, **more: object) -> object:
            self.written += len(data)
            return put(key, data, *args, **more)

        for name, counted in {
            "get": counted_get, "get_ranges": counted_ranges, "put": counted_put,
        }.items():  # fmt: skip
            monkeypatch.setattr(blobs, name, counted)


def commit_of(files: dict[str, bytes]) -> bytes:
    lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": "s"}}]
    for path, data in files.items():
        content = base64.b64encode(data).decode()
        lines.append({"key": "file", "value": {"path": path, "content": content}})
    return "\n".join(map(json.dumps, lines)).encode()


def uploaded(path: str, oid: str, size: int) -> bytes:
    value = {"path": path, "algo": "sha256", "oid": oid, "size": size}
    return json.dumps({"key": "lfsFile", "value": value}).encode()


def writable(store: Store) -> WritableRepo:
    return Repos(store).writable("m", Caller(None, (), ("m",)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return tierstore.init(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(2):
        tensors = {"w": rng.standard_normal(2 * MIB).astype("f4"), "b": np.ones(3)}
        save_file(tensors, folder / f"model-{number}.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "data.txt").write_bytes(rng.bytes(3 * MIB))
    return folder


def test_an_incremental_commit(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("m", source)
    committer = Committer(store, UploadSpool(tmp_path / "spool"))
    watched = Watched(store, monkeypatch)
    version = committer.commit(
        writable(store), "main", parse_commit(commit_of({"config.json": b"[1]"}))
    )
    assert version.number == 2
    assert watched.read == 0, "files that are kept were read"
    assert watched.written < 20_000
    monkeypatch.undo()
    (source / "config.json").write_bytes(b"[1]")
    assert version.digest == store.save("other", source).digest  # as if all had been sent
    store.load("m").export(tmp_path / "out")
    for path in source.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert store.check(read_data=True).findings == []


def test_a_commit_keeps_the_version_and_not_a_variant_that_its_node_prefers(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("m", source)
    tierstore.derive(store, "m", {"cast": "bf16"})
    monkeypatch.setenv("TIERSTORE_PROFILE", "bf16,full")
    with tierstore.open(store.url) as other:
        committer = Committer(other, UploadSpool(tmp_path / "spool"))
        asked = parse_commit(commit_of({"config.json": b"[1]"}))
        version = committer.commit(writable(other), "main", asked)
    (source / "config.json").write_bytes(b"[1]")
    assert version.digest == store.save("other", source).digest


def test_a_file_is_renamed_without_being_sent(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("m", source)
    entry = store.load("m")._file_entry("model-0.safetensors")
    committer = Committer(store, UploadSpool(tmp_path / "spool"))
    watched = Watched(store, monkeypatch)
    body = uploaded("renamed.safetensors", entry.sha256.hex(), entry.size)
    committer.commit(writable(store), "main", parse_commit(body))
    assert watched.read == 0
    monkeypatch.undo()
    model = store.load("m@2")
    wanted = (source / "model-0.safetensors").read_bytes()
    assert model.open_file("renamed.safetensors").read() == wanted
    assert model.tensor("renamed.safetensors::w").shape == (2 * MIB,)
    # by any other name it is a safetensors file, too
    body = uploaded("weights.safetensors", entry.sha256.hex(), entry.size)
    committer.commit(writable(store), "main", parse_commit(body.replace(b".safetensors", b".dat")))
    entry = store.load("m@3")._file_entry("weights.dat")
    assert entry.header
    assert store.load("m@3").read_file("weights.dat") == wanted
    body = uploaded("x.safetensors", entry.sha256.hex(), entry.size)
    committer.commit(writable(store), "main", parse_commit(body))
    assert store.load("m@4")._file_entry("x.safetensors").header
    assert store.check(read_data=True).findings == []


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("model.pt", pickle.dumps({"w": [1.0]}, protocol=2)),
        ("notes.txt", pickle.dumps({"w": [1.0]}, protocol=4)),
        ("model.bin", b"PK\x03\x04" + bytes(60)),
        (".git/hooks/pre-commit", b"#!/bin/sh"),
        ("sub/.GIT/config", b"[core]"),
        (".git. /config", b"[core]"),
        ("GIT~1/config", b"[core]"),
    ],
)
def test_an_inline_file_that_could_run_is_refused(
    store: Store, source: Path, tmp_path: Path, path: str, data: bytes
) -> None:
    store.save("m", source)
    committer = Committer(store, UploadSpool(tmp_path / "spool"))
    with pytest.raises((UnsafeSource, HubError)):
        committer.commit(writable(store), "main", parse_commit(commit_of({path: data})))
    assert len(store.versions("m")) == 1
    with pytest.raises(HubError, match=r"lies in a \.git folder"):
        parse_commit(uploaded(".git/config", "a" * 64, 5))
    plain = {".gitattributes": b"* text", "a.git/x.txt": b"x"}
    committer.commit(writable(store), "main", parse_commit(commit_of(plain)))
    assert store.load("m").read_file("a.git/x.txt") == b"x"


def test_patches_are_folded_and_the_rest_kept(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("m", source)
    name = "model-0.safetensors::b"
    store.patch("m", {name: tierstore.Dense(np.zeros(3))})
    committer = Committer(store, UploadSpool(tmp_path / "spool"))
    version = committer.commit(
        writable(store), "main", parse_commit(commit_of({"config.json": b"[1]"}))
    )
    model = store.load(str(version))
    np.testing.assert_array_equal(model[name], np.zeros(3))
    assert (
        model.open_file("model-1.safetensors").read()
        == (source / "model-1.safetensors").read_bytes()
    )
    assert store.check(read_data=True).findings == []


def test_a_new_file_finds_its_base_while_others_are_kept(
    store: Store, source: Path, tmp_path: Path
) -> None:
    store.save("m", source)
    spool = UploadSpool(tmp_path / "spool")
    committer = Committer(store, spool)
    w = np.random.default_rng(1).standard_normal(2 * MIB).astype("f4")
    w[::7] *= np.float32(1.0001)
    save_file({"w": w, "b": np.ones(3)}, tmp_path / "new.safetensors")
    data = (tmp_path / "new.safetensors").read_bytes()
    oid = spool.keep("m", [data]).name
    body = uploaded("model-0.safetensors", oid, len(data))
    committer.commit(writable(store), "main", parse_commit(body))
    assert store.load("m").open_file("model-0.safetensors").read() == data
    assert any(place.bases for place in store.load("m").tensor("model-0.safetensors::w")._places())
    # the new version's own deltas are kept in turn, with their bases
    committer.commit(writable(store), "main", parse_commit(commit_of({"a.txt": b"a"})))
    assert store.load("m@3").open_file("model-0.safetensors").read() == data
    assert store.check(read_data=True).findings == []


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["big.dat", "model.safetensors"])
@pytest.mark.parametrize("at", [0, 20, MIB], ids=["length field", "header", "data"])
def test_an_upload_that_changed_in_the_spool_is_not_published(
    store: Store, tmp_path: Path, name: str, at: int
) -> None:
    save_file({"w": np.arange(MIB, dtype="f4")}, tmp_path / "sent")
    data = (tmp_path / "sent").read_bytes()
    oid = hashlib.sha256(data).hexdigest()
    spool = UploadSpool(tmp_path / "spool")
    committer = Committer(store, spool)
    asked = parse_commit(uploaded(name, oid, len(data)))
    path = spool.keep("m", [data])
    assert path.name == oid
    flip(path, at)
    with pytest.raises(HubError, match=r"changed on the gateway's disk; .* upload it again") as why:
        committer.commit(writable(store), "main", asked)
    assert why.value.status == 500
    assert store.models() == []
    assert spool.find("m", oid, len(data)) is None, "so that the client sends it again"
    spool.keep("m", [data])
    committer.commit(writable(store), "main", asked)
    assert store.load("m").read_file(name) == data
    assert store.load("m").files[0].sha256 == oid


def copied(store: Store, source: str, path: str) -> bytes:
    """Return a line of a commit that copies a file, as clients send it: by its SHA-256."""
    file = next(file for file in store.load("m").files if file.path == source)
    return uploaded(path, file.sha256, file.size)


@pytest.mark.parametrize(
    "lines",
    [
        lambda _: commit_of({"q": b"2"}),
        lambda _: commit_of({"config.json/r": b"2"}),
        lambda _: commit_of({"new": b"1", "new/r": b"2"}),
        lambda store: copied(store, "config.json", "q"),
    ],
    ids=["over a folder", "below a file", "both are new", "a copy"],
)
def test_a_file_and_a_folder_of_one_name(
    store: Store, tmp_path: Path, lines: Callable[[Store], bytes]
) -> None:
    """No reader would take such a version: it is refused before anything is stored of it."""
    (tmp_path / "in" / "q").mkdir(parents=True)
    (tmp_path / "in" / "q" / "r.json").write_text("1")
    (tmp_path / "in" / "config.json").write_text("{}")
    version = store.save("m", tmp_path / "in", allow_no_tensors=True)
    before = [info.key for info in store._parts.home.blobs.list("packs/")]
    committer = Committer(store, UploadSpool(tmp_path / "spool"))
    with pytest.raises(InvalidName, match=r"is a file, and a folder of .* rename one"):
        committer.commit(writable(store), "main", parse_commit(lines(store)))
    assert store.resolve("m") == version
    assert [info.key for info in store._parts.home.blobs.list("packs/")] == before
    swap = commit_of({"q": b"2"}) + b'\n{"key":"deletedFile","value":{"path":"q/r.json"}}'
    committer.commit(writable(store), "main", parse_commit(swap))
    assert store.load("m").read_file("q") == b"2"


def test_an_empty_safetensors_file_is_not_published(store: Store, tmp_path: Path) -> None:
    """Clients send an empty file within the commit, since git-lfs holds none."""
    committer = Committer(store, UploadSpool(tmp_path / "spool"))
    asked = parse_commit(commit_of({"x.safetensors": b""}))
    with pytest.raises(InvalidSafetensors, match="the file has 0 bytes"):
        committer.commit(writable(store), "main", asked)
    assert store.models() == []
    committer.commit(writable(store), "main", parse_commit(commit_of({"x.txt": b""})))
    assert store.load("m").read_file("x.txt") == b""


def test_a_malformed_upload_is_told_from_one_that_changed(store: Store, tmp_path: Path) -> None:
    spool = UploadSpool(tmp_path / "spool")
    path = spool.keep("m", [b"no header at all"])
    asked = parse_commit(uploaded("model.safetensors", path.name, 16))
    with pytest.raises(InvalidSafetensors, match=r"^model\.safetensors: ") as caught:
        Committer(store, spool).commit(writable(store), "main", asked)
    assert str(spool.root) not in str(caught.value), "clients are told no folder of the gateway"
    assert path.exists()


def test_a_file_that_is_cut_anew_is_what_was_saved(store: Store, tmp_path: Path) -> None:
    """The gateway's hot tier holds a bit that flipped: the file is kept under another kind."""
    spec = tierstore.TierSpec(name="hot", role="hot", url=str(tmp_path / "hot"), size=64 * MIB)
    with tierstore.init(tmp_path / "warm", tiers=[spec]) as first:
        save_file({"w": np.arange(MIB, dtype="f4")}, tmp_path / "model.safetensors")
        first.save("m", tmp_path / "model.safetensors")
        first.warmup("m")
        assert first._parts.hot.flush(60)
        for chunk in (tmp_path / "hot").rglob("?" * 64):
            data = bytearray(chunk.read_bytes())
            chunk.unlink()
            data[-1] ^= 1
            chunk.write_bytes(data)
        [file] = first.load("m").files
        asked = parse_commit(uploaded("weights.dat", file.sha256, file.size))
        Committer(first, UploadSpool(tmp_path / "spool")).commit(writable(first), "main", asked)
        wanted = (tmp_path / "model.safetensors").read_bytes()
        assert first.load("m").read_file("weights.dat") == wanted
