"""Stores that earlier versions wrote are read in full, with the native kernels and without.

The stores are never written again once their format is released: ``tests/golden/make.py`` made
them, ``SHA256SUMS.json`` holds them to that.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import tierstore
from tests.golden import content, service
from tests.golden.make import (
    EXPECTED,
    FUTURE,
    HERE,
    MERGED,
    PATCHES,
    PROOFS,
    QUARANTINED,
    REMOVED,
    SERVICE,
    STORE,
    SUMS,
    sums,
)
from tierstore import Dense, codecs
from tierstore.errors import NotFound, OtherHome, UnsupportedFormat
from tierstore.format import proof
from tierstore.format.dtypes import numpy_dtype
from tierstore.format.heat import CHUNK, PACK, heat_entries, heat_key, parse_heat
from tierstore.format.keys import pack_key
from tierstore.format.reflog import Action, RefEntry
from tierstore.format.retention import Rules
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.segments import parse_any_segment
from tierstore.modelstore.store import Store

PACKED = {"F4", "F6_E2M3", "F6_E3M2"}
"""dtypes that numpy lacks: read as packed bytes."""


def native_or_not() -> list[bool]:
    return [True, False] if codecs.native_info().built else [False]


@pytest.fixture(params=native_or_not(), ids=lambda native: "native" if native else "numpy")
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A copy of the golden store: reading leaves a lease in the store that is read."""
    before = codecs.native_info().in_use
    shutil.copytree(STORE, tmp_path / "store")
    with tierstore.open(tmp_path / "store") as opened:
        assert codecs.use_native(request.param) is request.param
        yield opened
    codecs.use_native(before)


@pytest.fixture(params=native_or_not(), ids=lambda native: "native" if native else "numpy")
def patched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A copy of the golden store of patches: four on one another, the third one folded."""
    before = codecs.native_info().in_use
    shutil.copytree(PATCHES, tmp_path / "store")
    with tierstore.open(tmp_path / "store") as opened:
        assert codecs.use_native(request.param) is request.param
        yield opened
    codecs.use_native(before)


@pytest.mark.parametrize("native", [True, False], ids=["native", "without"])
def test_chunks_with_proofs(native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of both versions, one of which is a delta, bound to the digests of their chunks."""
    if not native:
        monkeypatch.setattr(proof, "_native", None)
    shutil.copytree(PROOFS, tmp_path / "store")
    versions = content.proven_tensors(), content.tuned_tensors()
    with tierstore.open(tmp_path / "store") as store:
        for number, tensors in enumerate(versions, 1):
            model = store.load(f"proven@{number}")
            for name, one in tensors.items():
                rows = [0, one.shape[0] // 2, one.shape[0] - 1]
                whole = np.frombuffer(one.data, numpy_dtype(one.dtype)).reshape(one.shape)
                assert model.tensor(name)[rows].tobytes() == whole[rows].tobytes()
                lengths = [piece.place.proof_bytes for piece in model.tensor(name)._base.chunks()]
                assert lengths == {"two": [164], "four": [228], "one": [0]}.get(name, [228, 164])
            for name, array in model.load().items():
                assert array.tobytes() == tensors[name].data
        [delta] = store.load("proven@2").tensor("two")._base.chunks()
        assert delta.place.bases
        assert store.check(read_data=True).findings == []


def test_every_patched_version(patched: Store, tmp_path: Path) -> None:
    recorded = json.loads(EXPECTED.read_text())
    for number, tensors in enumerate(content.patch_states(), 1):
        model = patched.load(f"patched@{number}")
        assert len(model._opened.patches) == [0, 1, 2, 0, 1][number - 1]
        for name, array in model.load().items():
            assert array.tobytes() == tensors[name].data, (number, name)
        rows = [699, 3, 4, 0, 262]
        whole = np.frombuffer(tensors["table"].data, "<f4").reshape(700, 1000)
        assert model.tensor("table")[rows].tobytes() == whole[rows].tobytes()
        sha256 = recorded[f"patched@{number}"]["model.safetensors"]
        data = model.read_file("model.safetensors")
        assert content.sha256(data) == sha256
        if not model._opened.patches:
            assert model.files[0].sha256 == sha256
    (written,) = patched.load("patched@5").export(tmp_path / "out")  # folds it first
    assert written.sha256 == recorded["patched@5"]["model.safetensors"]
    report = patched.check(read_data=True)
    assert report.findings == []


def test_the_patches_themselves(patched: Store) -> None:
    first, *_, last = content.patch_states()
    state = {
        name: np.frombuffer(bytearray(one.data), np.uint8)
        if one.dtype in PACKED
        else np.frombuffer(bytearray(one.data), numpy_dtype(one.dtype)).reshape(one.shape)
        for name, one in first.items()
    }
    found = list(patched.patches(since="patched@1"))
    assert [set(one.parts) for one in found] == [set(step) for step in content.patch_steps()]
    for one in found:
        one.apply_to(state)
    assert {name: array.tobytes() for name, array in state.items()} == {
        name: one.data for name, one in last.items()
    }


def test_a_patch_on_the_golden_store(patched: Store) -> None:
    version = patched.patch("patched@prod", {"layer.single": Dense(np.zeros((2, 3001), "f4"))})
    assert version.number == 6
    assert not patched.load("patched@6")["layer.single"].any()
    assert not patched.check(read_data=True).damaged


def test_a_damaged_pack_whose_chunks_were_stored_again(tmp_path: Path) -> None:
    shutil.copytree(QUARANTINED, tmp_path / "store")
    tensors = content.small_tensors("quarantined")
    with tierstore.open(tmp_path / "store") as store:
        model = store.load("quarantined@1")
        for name, array in model.load().items():
            assert array.tobytes() == tensors[name].data, name
        rows = np.frombuffer(tensors["w"].data, np.uint16).reshape(60, 100)[[59, 0]]
        assert model.tensor("w")[[59, 0]].tobytes() == rows.tobytes()
        recorded = json.loads(EXPECTED.read_text())["quarantined@1"]["model.safetensors"]
        assert content.sha256(model.read_file("model.safetensors")) == recorded
        report = store.check(read_data=True)
        assert report.findings == []
        (key,) = report.quarantined
        assert len(list(store._parts.home.blobs.list("moves/"))) == 3
        (tmp_path / "store" / key).unlink()
        for name, array in store.load("quarantined@1").load().items():
            assert array.tobytes() == tensors[name].data, name


def is_whole(store: Store, ref: str) -> bool:
    """Whether a version has the bytes that it was made with."""
    data = store.load(ref).read_file("model.safetensors")
    return content.sha256(data) == json.loads(EXPECTED.read_text())[ref]["model.safetensors"]


def test_removed_versions(tmp_path: Path) -> None:
    shutil.copytree(REMOVED, tmp_path / "store")
    with tierstore.open(tmp_path / "store") as store:
        assert store.models() == ["removed", "short"]
        assert [version.number for version in store.versions("removed")] == [3, 2]
        assert is_whole(store, "removed@2")
        for ref in ("removed@1", "gone"):
            with pytest.raises(NotFound, match=r"@1 was removed on 2026-.* by golden@example.org"):
                store.load(ref)
        assert [
            (str(one.version), one.message, one.until - one.removed) for one in store.deleted()
        ] == [("gone@1", "", timedelta(days=2)), ("removed@1", "both", timedelta(days=2))]
        for_all, short = store.retention.all()
        assert for_all.rules == Rules(keep_last=10, keep_tags=["v*"])
        assert (short.model, short.window, short.message) == ("short", timedelta(0), "large")
        assert store.check(read_data=True).findings == []
        store.undelete("removed@1")
        assert is_whole(store, "removed@1")


def test_a_merged_segment_of_the_index(tmp_path: Path) -> None:
    """A node that has nothing yet finds by it what is stored."""
    shutil.copytree(MERGED, tmp_path / "store")
    with tierstore.open(tmp_path / "store") as store:
        for number, tensors in enumerate((content.proven_tensors(), content.tuned_tensors()), 1):
            source = tmp_path / f"{number}.safetensors"
            source.write_bytes(content.file_of(tensors, None))
            assert store.load(f"proven@{number}").read_file("model.safetensors") == (
                source.read_bytes()
            )
            version = store.save("again", source, base=None)
            assert version.stats is not None
            assert version.stats.new_bytes == 0
        (info,) = store._parts.home.blobs.list("index/")
        segment = parse_any_segment(store._parts.home.blobs.get(info.key), info.key)
        assert len(segment.replaces) == 2
        assert any(place.bases for place in segment.table)
        assert store.check(read_data=True).findings == []


@pytest.fixture
def in_service(tmp_path: Path) -> Iterator[tierstore.Store]:
    """A copy of the golden store of a store in service, all of whose files are as old."""
    folder = shutil.copytree(SERVICE, tmp_path / "store")
    now_s = time.time()  # a checkout may have written them in any order
    for path in folder.rglob("*"):
        os.utime(path, (now_s, now_s))
    with service.opened(folder, tmp_path) as store:
        yield store


def test_what_tiers_nodes_and_rollouts_wrote(in_service: tierstore.Store) -> None:
    store = in_service
    [warm] = store.tiers()
    assert (warm.url, warm.size, warm.options) == (
        "file:///golden/warm", 1 << 30, {"min_heat": "0.5"}
    )  # fmt: skip
    heat = parse_heat(store._parts.home.blobs.get(heat_key("golden")), "heat of golden")
    assert Counter(kind for kind, _ in heat_entries(heat)) == {CHUNK: 3, PACK: 1}
    for ref in content.service_versions():
        assert is_whole(store, ref), ref
    assert store.load("kept@1+int8-row", dequantize=True)["w"].shape == (60, 100)
    assert [str(one) for one in store.releases.get("set@prod").members.values()] == [
        "first@2", "kept@1",
    ]  # fmt: skip
    assert store.load("kept@release:set").version.number == 1
    [rollout] = store.rollouts.running()
    assert (rollout.old.number, rollout.new.number, rollout.percent) == (1, 2, 50.0)
    assert [one.values for one in rollout.gates] == [("11.5", "11.5")]
    assert [one.action for one in store.history("kept", "prod")] == [
        "start", "rollback", "finish", "step", "start", "abort", "resume", "pause", "start", "set",
    ]  # fmt: skip
    assert {(pin.ref, pin.roles) for pin in store.pins.active()} == {
        ("kept@1", ("hot",)), ("rollout of kept@prod", ("hot", "warm")),
    }  # fmt: skip
    [finding] = store.check(read_data=True).findings
    assert (finding.severity, finding.what) == (
        "garbage", "a condemned pack: 'tierstore gc' deletes it"
    )  # fmt: skip


def test_what_was_purged_and_what_is_left_of_that(in_service: tierstore.Store) -> None:
    """A purge that is done, and one that goes on once this home may delete in the tier."""
    store = in_service
    assert [(str(one.version), one.message, one.is_purged) for one in store.deleted()] == [
        ("first@1", "request 7", True),
        ("gone@1", "not needed", False),
        ("secret@1", "while a save runs", True),
    ]
    for ref in ("first@1", "gone@1", "secret@1"):
        with pytest.raises(NotFound, match=rf"{ref} was .* by golden@example.org"):
            store.load(ref)
    with pytest.raises(NotFound):  # it was collected
        store.undelete("gone@1")
    done, waiting = store.purges.receipt("first@1"), store.purges.receipt("secret@1")
    assert (done.is_done, done.chunks, done.shared_chunks) == (True, 2, 1)
    assert not waiting.is_done
    [left] = waiting.left
    warm = Path(store.url.removeprefix("file://")).parent / "warm"
    pack = warm / pack_key(bytes.fromhex(left.pack))
    assert pack.exists()
    assert {one.node: one.gone_reason for one in waiting.nodes if one.gone} == {
        "retired": "its disk was shredded"
    }
    with pytest.raises(OtherHome, match=r"that golden@example.org had at file:///golden/home"):
        store.reclaim.run()
    assert store.reclaim.take_over() == ["warm"]
    store.purges.run()
    assert store.purges.receipt("secret@1").is_done
    assert not pack.exists()
    store.reclaim.run(window=timedelta(0), grace=timedelta(0))
    for ref in content.service_versions():
        assert is_whole(store, ref), ref
    assert store.check(read_data=True).findings == []


def test_every_kind_of_object_is_in_a_golden_store() -> None:
    """A kind, or an action of a log, that is new comes with a golden store that has it."""
    kinds, actions = set(), set()
    for name in sums():
        data = (HERE / name).read_bytes()
        if data.startswith(b"TSOB"):
            kinds.add(Kind(data[4]))
            if data[4] == Kind.REF:
                actions.add(unseal_body(Kind.REF, data, RefEntry, name).action)
    assert kinds == set(Kind)
    assert actions == set(get_args(Action))


def test_the_files_are_those_that_were_frozen() -> None:
    frozen = json.loads(SUMS.read_text())
    found = sums()
    assert found.keys() == frozen.keys()
    changed = [path for path, digest in found.items() if frozen[path] != digest]
    assert not changed, f"changed under {HERE}: {changed}; restore them, they are never rewritten"


def test_the_content_is_computed_as_it_was_then() -> None:
    assert content.expected() == json.loads(EXPECTED.read_text())


def test_check_finds_every_byte_intact(store: Store) -> None:
    report = store.check(read_data=True)
    assert [finding for finding in report.findings if finding.severity == "damage"] == []
    rewritten = "packs/52/5265f0ba22d0350246acd9a456b4d526cae239bd1f158ba82e4e6ac790aaff28"
    assert report.garbage_keys == [rewritten], "as long as the one that it was made of is there"
    assert (report.refs, report.versions) == (12, 5)
    assert report.data_bytes > 3_000_000


@pytest.mark.parametrize("ref", sorted(content.versions()))
def test_every_file_of_every_version(store: Store, ref: str, tmp_path: Path) -> None:
    files = content.versions()[ref]
    recorded = json.loads(EXPECTED.read_text())[ref]
    model = store.load(ref)
    assert {info.path: (info.size, info.sha256) for info in model.files} == {
        path: (len(data), recorded[path]) for path, data in files.items()
    }
    for path, data in files.items():
        assert model.read_file(path) == data, path
    model.export(tmp_path / "out")
    for path, data in files.items():
        assert (tmp_path / "out" / path).read_bytes() == data, path
    assert len(list(tmp_path.glob("out/**/*.*"))) == len(files) + 1, "the list of the export"


@pytest.mark.parametrize(
    ("ref", "tensors", "renamed"),
    [
        ("org/model@1", content.first_tensors(), "layer.half"),
        ("org/model@2", content.second_tensors(), "layer.half"),
        ("by hand@1", content.delta_tensors(), None),
        ("moved@1", content.small_tensors("moved"), None),
        ("numpy@1", content.small_tensors("numpy"), None),
    ],
)
def test_every_tensor(
    store: Store, ref: str, tensors: dict[str, content.Tensor], renamed: str | None
) -> None:
    if renamed:  # another file has a tensor of this name too
        tensors = dict(tensors)
        tensors[f"model.safetensors::{renamed}"] = tensors.pop(renamed)
        tensors[f"deeper/twin.safetensors::{renamed}"] = content.Tensor("U8", (3,), b"xyz")
    model = store.load(ref)
    assert set(model) == set(tensors)
    for name, array in model.load().items():
        one = tensors[name]
        assert (model.tensor(name).dtype, model.tensor(name).shape) == (one.dtype, one.shape)
        assert array.tobytes() == one.data, name
        if one.dtype in PACKED:
            assert array.dtype == np.uint8
        else:
            assert (array.dtype, array.shape) == (numpy_dtype(one.dtype), one.shape), name


def test_some_rows(store: Store) -> None:
    """Read by block, across chunks, out of a delta, out of small blocks, and out of moved packs."""
    for ref, name, rows in (
        ("org/model@2", "table", [699, 0, 262, 263, 524, 525]),
        ("by hand@1", "fine-tuned", [0, 58_949, 58_950, 58_999]),
        ("by hand@1", "blocks", [65_535, 65_536, 199_999]),
        ("moved@1", "w", [59, 1]),
        ("numpy@1", "w", [0, 30]),
    ):
        model = store.load(ref)
        whole = model[name]
        assert model.tensor(name)[rows].tobytes() == whole[rows].tobytes(), (ref, name)


def test_names_and_history(store: Store) -> None:
    assert store.models() == ["by hand", "moved", "numpy", "org/model"]
    found = store.versions("org/model")
    assert [version.number for version in found] == [3, 2, 1]
    assert found[0].digest == found[2].digest != found[1].digest
    assert [version.message for version in found][::-1] == [
        f"saved as org/model@{number}" for number in (1, 2, 3)
    ]
    assert {alias.name: alias.version.number for alias in store.aliases("org/model")} == {
        "prod": 1,
        "a/é": 3,
    }
    assert [(e.action, e.version, e.previous) for e in store.history("org/model", "prod")] == [
        ("rollback", 1, None),
        ("set", 2, 1),
        ("set", 1, None),
    ]
    assert [e.action for e in store.history("org/model", "gone")] == ["remove", "set"]
    with pytest.raises(NotFound, match="gone"):
        store.resolve("org/model@gone")
    assert store.resolve(f"org/model@b3:{found[1].digest.hex[:8]}").number == 2
    assert store.load("org/model@prod").metadata == {"format": "pt", "é": "\n"}


def test_it_can_still_be_written_to(store: Store) -> None:
    """Saving the same content finds every chunk, and gives the digest that it had then."""
    path = Path(store.url.removeprefix("file://")).parent / "again"
    for name, data in content.versions()["org/model@1"].items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    version = store.save("org/model", path)
    assert version.stats is not None
    assert (version.number, version.stats.new_chunks) == (4, 0)
    assert version.digest == store.resolve("org/model@1").digest
    assert not store.check(read_data=True).damaged


@pytest.fixture
def future(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FUTURE, tmp_path / "future"))


def test_a_store_of_format_2_is_refused(future: Path) -> None:
    with pytest.raises(UnsupportedFormat, match=r"store format 2.*upgrade"):
        tierstore.open(future / "config")


def test_a_manifest_that_requires_more_is_refused(future: Path) -> None:
    with tierstore.open(future / "manifest") as store:
        with pytest.raises(UnsupportedFormat, match=r"feature 'sparse'.*upgrade"):
            store.load("model")
        assert set(store.load("model@1").load()) == {"w", "b", "text"}


def test_a_frame_with_an_unknown_flag_is_refused(future: Path) -> None:
    with tierstore.open(future / "frame") as store:
        model = store.load("model")
        with pytest.raises(UnsupportedFormat, match=r"frame flags 0x20.*upgrade"):
            model.load()


def test_a_store_that_may_only_be_read(future: Path) -> None:
    with tierstore.open(future / "write-feature") as store:
        assert set(store.load("model").load()) == {"w", "b", "text"}
        with pytest.raises(UnsupportedFormat, match=r"feature 'encrypt'.*upgrade"):
            store.save("model", {"w": np.zeros(3, np.float32)})
