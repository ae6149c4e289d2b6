"""Sources: what is taken from a directory, what is refused, and what changes while it is read."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    InvalidName,
    InvalidSafetensors,
    NotFound,
    SourceChanged,
    SourceError,
    UnsafeSource,
    UsageError,
)
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.saving.pickles import is_pickle
from tierstore.modelstore.saving.source import ArrayFile, BytesFile, DiskFile, open_source
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    blobs = MemoryStore("source")
    create_config(blobs, MIB)
    return Store(blobs, Settings(tmp_path / "cache", threads=2, memory_limit_bytes=64 * MIB))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    root.mkdir()
    save_file({"w": np.arange(6, dtype=np.float32)}, root / "model.safetensors")
    (root / "config.json").write_text("{}")
    return root


def paths(root: Path, *exclude: str) -> list[str]:
    return [file.path for file in open_source(root, metadata=None, exclude=exclude)]


def test_a_directory_gives_its_files_by_path(model: Path) -> None:
    (model / "sub/deep").mkdir(parents=True)
    (model / "sub/deep/x.txt").write_text("x")
    (model / "a b").write_text("")
    (model / ".hidden").write_text("h")
    (model / ".envrc").write_text("e")
    (model / "empty").mkdir()
    others = ["a b", "config.json", "model.safetensors", "sub/deep/x.txt"]
    assert paths(model) == [".envrc", ".hidden", *others]


def test_what_systems_leave_and_secrets_are_left_out_and_said(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (model / "sub").mkdir()
    names = ["._model.safetensors", ".DS_Store", ".env", ".env.local", "sub/._x", "Thumbs.db"]
    for name in names:
        (model / name).write_bytes(b"\0\x05\x16\x07")
    (model / "sub/env").write_text("e")
    assert paths(model) == ["config.json", "model.safetensors", "sub/env"]
    (said,) = caplog.messages
    assert said.endswith(f"left out of {model}, as no part of a model: {', '.join(sorted(names))}")
    caplog.clear()
    assert paths(model, "*._*", ".DS_Store", ".env*", "Thumbs.db") == [
        "config.json", "model.safetensors", "sub/env",
    ]  # fmt: skip
    assert not caplog.messages, "what was asked for needs no word"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 90868376\n" % (
    b"4" * 64
)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "sub/model.gguf", "noname"]
)
def test_pointers_of_git_lfs_are_refused_by_any_name(model: Path, name: str) -> None:
    (model / "sub").mkdir()
    (model / name).write_bytes(POINTER)
    with pytest.raises(UnsafeSource, match=f"{name} is a pointer of git-lfs.*'git lfs pull'"):
        paths(model)
    with pytest.raises(UnsafeSource, match=f"{name} is a pointer of git-lfs"):
        open_source(model / name, metadata=None, exclude=())
    with pytest.raises(UnsafeSource, match=f"{name} is a pointer of git-lfs"):
        BytesFile(name, POINTER)
    (model / name).write_bytes(b"# about it\n" + POINTER)
    if not name.endswith(".safetensors"):
        assert name in paths(model), "a text that quotes one is a text"


def write_index(model: Path, shards: dict[str, str], folder: str = "") -> None:
    (model / folder).mkdir(exist_ok=True)
    data = json.dumps({"metadata": {"total_size": 24}, "weight_map": shards})
    (model / folder / "model.safetensors.index.json").write_text(data)


def test_an_index_names_files_that_are_there(model: Path) -> None:
    write_index(model, {"w": "model.safetensors"})
    write_index(model, {"w": "../model.safetensors"}, "sub")
    with pytest.raises(SourceError, match=r"sub/model.safetensors.index.json names ../model"):
        paths(model)
    write_index(model, {"w": "part.safetensors"}, "sub")
    save_file({"w": np.zeros(1, np.float32)}, model / "sub/part.safetensors")
    assert len(paths(model)) == 5
    write_index(model, {"w": "model.safetensors", "a": "model-2.safetensors", "b": "x"})
    with pytest.raises(
        SourceError, match=r"index.json names model-2.safetensors, which is missing, and 1 more"
    ):
        paths(model)
    assert len(paths(model, "*.index.json")) == 3
    write_index(model, {"w": "model.safetensors"})
    with pytest.raises(SourceError, match=r"names model.safetensors, which is missing"):
        paths(model, "model.safetensors")


@pytest.mark.parametrize("data", ['{"weight', "[]", "{}", '{"weight_map": {"w": 1}}', "\xff", ""])
def test_an_index_that_is_none_is_refused(model: Path, data: str) -> None:
    (model / "model.safetensors.index.json").write_text(data, "latin-1")
    with pytest.raises(SourceError, match=r"is no index of shards.*--exclude"):
        paths(model)


def cached(tmp_path: Path, name: str, branches: dict[str, str]) -> Path:
    root = tmp_path / f"models--org--{name}"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    for branch, revision in branches.items():
        snapshot = root / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (root / "refs" / branch).write_text(revision)
        save_file({"w": np.zeros(1, np.float32)}, root / "blobs" / revision)
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/{revision}")
    return root


def test_a_download_cache_asks_for_a_snapshot(tmp_path: Path) -> None:
    root = cached(tmp_path, "a", {"first": "1" * 40, "main": "5" * 40})
    snapshot = root / "snapshots" / ("5" * 40)
    with pytest.raises(SourceError, match=f"with 2 snapshots, .*save one, such as {snapshot}$"):
        paths(root)
    assert paths(snapshot) == ["model.safetensors"]
    hub = tmp_path
    with pytest.raises(SourceError, match=f"with 2 snapshots, .*such as {snapshot}$"):
        paths(hub)


def test_a_folder_called_snapshots_is_no_cache(model: Path) -> None:
    (model / "snapshots/7").mkdir(parents=True)
    (model / "snapshots/7/x").write_text("x")
    assert paths(model) == ["config.json", "model.safetensors", "snapshots/7/x"]


def test_a_directory_without_tensors_has_to_be_meant(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("n")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(SourceError, match=r"holds no tensors, only 2 other files.*--allow-no-tens"):
        paths(tmp_path)
    files = open_source(tmp_path, metadata=None, exclude=(), allow_no_tensors=True)
    assert [file.path for file in files] == ["empty.safetensors", "notes.txt"]
    assert open_source(tmp_path / "notes.txt", metadata=None, exclude=())


@pytest.mark.parametrize("name", ["MODEL.SAFETENSORS", "flux.sft", "weights", "model.bin"])
def test_a_safetensors_file_is_known_by_its_header(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    (file,) = (one for one in open_source(model, metadata=None, exclude=()) if one.path == name)
    assert file.header is not None
    assert [info.name for info in file.header.tensors] == ["w"]
    data = (model / name).read_bytes()
    for almost in (data[:-1], data + b"x", data.replace(b'"F32"', b'"G32"'), data[:8] + b"{"):
        (model / name).write_bytes(almost)
        plain = open_source(model / name, metadata=None, exclude=())
        assert plain[0].header is None, "whatever is not wholly one is a file like others"


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    save_file({"w": np.zeros(1, np.uint8)}, path)
    text = path.read_bytes()[8:-1].ljust(0x280)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\7")
    assert path.read_bytes()[:2] == b"\x80\2"
    (file,) = open_source(path, metadata=None, exclude=())
    assert file.header is not None


LENIENT = {
    "white space before it": b' {"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    "a key of its own": b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"note":1}}',
    "a name twice": b'{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
    b'"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    "a tensor as a list": b'{"w":["U8",[1],[0,1]]}',
}


@pytest.mark.parametrize("kind", LENIENT)
def test_what_only_the_library_opens_is_a_plain_file(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(LENIENT[kind]).to_bytes(8, "little") + LENIENT[kind] + b"\7")
    with safe_open(path, "np") as opened:
        assert list(opened.keys()) == ["w"]
    (file,) = open_source(path, metadata=None, exclude=())
    assert file.header is None
    (said,) = caplog.messages
    assert f"{path}: not a valid safetensors header" in said
    assert "stored as a plain file" in said
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidSafetensors, match="nothing was saved"):
        open_source(path, metadata=None, exclude=())


@pytest.mark.parametrize(
    ("begin", "looks"),
    [
        (b"<!DOCTYPE html><html>Sign in", "a web page"),
        (b"\n<html>", "a web page"),
        (b"PK\3\4", "a pickle"),
        (b"\x80\2cfoo\n", "a pickle"),
        (b"GGUF\3\0\0\0", "a GGUF file"),
    ],
)
def test_what_has_the_name_of_weights_is_said(tmp_path: Path, begin: bytes, looks: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(begin + bytes(100))
    with pytest.raises(InvalidSafetensors, match=f"{looks}.*nothing was saved"):
        open_source(path, metadata=None, exclude=())


def test_a_file_that_is_cut_short_is_no_pickle(tmp_path: Path) -> None:
    """Whatever byte its header's length begins with."""
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros(9, np.uint8)}, path)
    text = path.read_bytes()[8:-9].ljust(0x80)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InvalidSafetensors, match="it is cut short; nothing was saved"):
        open_source(path, metadata=None, exclude=())


def test_a_file_with_more_bytes_than_its_length_is_refused(model: Path) -> None:
    """Files of /proc have no length, whatever they hold."""
    (model / "status").symlink_to("/proc/self/status")
    with pytest.raises(SourceError, match=r"status goes on behind the 0 bytes .* save a copy"):
        open_source(model, metadata=None, exclude=())


def test_a_link_that_leads_in_a_circle_is_refused_by_name(model: Path) -> None:
    (model / "circle").symlink_to("circle")
    with pytest.raises(UnsafeSource, match="circle is a link to circle, which does not exist"):
        open_source(model, metadata=None, exclude=())
    assert open_source(model, metadata=None, exclude=("circle",))


def test_repositories_and_download_caches_are_left_out(model: Path) -> None:
    for folder in (".git/objects", ".cache/huggingface/download", "sub/.git"):
        (model / folder).mkdir(parents=True)
        (model / folder / "x").write_text("x")
    assert paths(model) == ["config.json", "model.safetensors", "sub/.git/x"]


def test_exclude_takes_globs_of_files_and_folders(model: Path) -> None:
    (model / "onnx").mkdir()
    (model / "onnx/model.onnx").write_text("x")
    assert paths(model, "*.json", "onnx/*") == ["model.safetensors"]
    assert paths(model, "onnx", "*.JSON") == ["config.json", "model.safetensors"]
    for folder in ("onnx/", "./onnx", "./onnx/", "on*/"):
        assert paths(model, folder) == ["config.json", "model.safetensors"]
    assert paths(model, "config.json/") == ["config.json", "model.safetensors", "onnx/model.onnx"]


@pytest.mark.parametrize("name", ["a[1].json", "b*.json", "c?.json", "[d]", "e[!f].json"])
def test_exclude_takes_names_that_look_like_globs(model: Path, name: str) -> None:
    (model / name).write_text("x")
    assert paths(model, name) == ["config.json", "model.safetensors"]
    (model / "folder").mkdir()
    (model / "folder" / name).mkdir()
    (model / "folder" / name / "x").write_text("x")
    assert paths(model, name, f"folder/{name}/") == ["config.json", "model.safetensors"]


def test_links_to_files_are_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("blob")
    (model / "linked.txt").symlink_to("../blob")
    assert "linked.txt" in paths(model)
    files = {f.path: f for f in open_source(model, metadata=None, exclude=())}
    assert files["linked.txt"].size == 4


def test_links_to_folders_are_refused_unless_excluded(model: Path) -> None:
    (model / "loop").symlink_to(".")
    with pytest.raises(UnsafeSource, match="link to a folder"):
        paths(model)
    assert paths(model, "loop") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("target", ["nowhere", "../blobs/nowhere", "/nowhere/at/all"])
def test_a_link_to_nothing_says_where_it_leads(model: Path, target: str) -> None:
    (model / "model-2.safetensors").symlink_to(target)
    with pytest.raises(
        UnsafeSource, match=f"model-2.safetensors is a link to {target}, which does not exist"
    ):
        paths(model)
    assert paths(model, "model-2.*") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("kind", ["pipe", "socket-like link to a device"])
def test_what_is_no_regular_file_is_refused_unless_excluded(model: Path, kind: str) -> None:
    odd = model / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero" if "device" in kind else "nowhere")
    with pytest.raises(UnsafeSource, match="not a regular file"):
        paths(model)
    assert paths(model, "odd") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["pipe", "pipe.safetensors", "pipe.bin"])
def test_a_pipe_by_its_own_name_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UnsafeSource, match="not a regular file"):
        open_source(tmp_path / name, metadata=None, exclude=())


@pytest.mark.parametrize("name", [b"caf\xe9.txt", "cafe\u0301.txt".encode(), b"a\\b"])
def test_names_that_cannot_be_kept_are_refused_unless_excluded(model: Path, name: bytes) -> None:
    with open(os.fsencode(model) + b"/" + name, "wb"):
        pass
    with pytest.raises(InvalidName, match="--exclude"):
        paths(model)


def test_a_missing_or_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        open_source(tmp_path / "no", metadata=None, exclude=())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no files"):
        open_source(tmp_path / "empty", metadata=None, exclude=())


def test_metadata_is_for_arrays_only(model: Path) -> None:
    with pytest.raises(UsageError, match="in memory only"):
        open_source(model, metadata={"a": "b"}, exclude=())


def test_names_and_metadata_are_text(store: Store) -> None:
    with pytest.raises(UsageError, match="'3'"):
        store.save("m", {"w": np.zeros(2)}, metadata={"epoch": 3})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="'1'"):
        store.save("m", {1: np.zeros(2)})  # type: ignore[dict-item]
    assert store.models() == []
    store.save("m", {"w": np.zeros(2)}, metadata={"epoch": "3"})
    assert store.load("m").metadata == {"epoch": "3"}


def torch_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))


PICKLES: dict[str, Callable[[Path], object]] = {
    "pytorch_model.bin": torch_zip,
    "model.pt": lambda path: path.write_bytes(pickle.dumps({"w": [1.0]}, protocol=2)),
    "MODEL.PTH": torch_zip,
    "model.ckpt": lambda path: path.write_bytes(pickle.dumps({}, protocol=5)),
    "model.pkl": lambda path: path.write_bytes(pickle.dumps({}, protocol=4)),
    # whatever they are called
    "weights.dat": torch_zip,
    "state.safe": lambda path: path.write_bytes(pickle.dumps(["x"], protocol=3)),
    "old.npy": lambda path: path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch before its archives
    ),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused_with_the_way_out(store: Store, model: Path, name: str) -> None:
    PICKLES[name](model / name)
    with pytest.raises(UnsafeSource, match=r"save_file.*--exclude") as caught:
        store.save("m", model)
    assert str(model / name) in str(caught.value)
    assert store.models() == []
    store.save("m", model, exclude=[f"*{Path(name).suffix}"])
    assert [file.path for file in store.load("m").files] == ["config.json", "model.safetensors"]


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text() | st.binary() | st.booleans(),
        lambda below: st.lists(below) | st.dictionaries(st.text(), below) | st.tuples(below),
        max_leaves=5,
    ),
    st.integers(2, pickle.HIGHEST_PROTOCOL),
)
def test_every_pickle_of_protocol_2_and_up_is_one(value: object, protocol: int) -> None:
    assert is_pickle("notes.txt", pickle.dumps(value, protocol)[:256])


@pytest.mark.parametrize(
    "begin", [b"", b"PK\x03\x04" + bytes(40), b"\x80\x01}.", b"(dp0\n.", b"\x80\x05\xff"]
)
def test_other_files_are_none(begin: bytes) -> None:
    assert not is_pickle("notes.txt", begin)


def test_a_binary_file_that_is_no_pickle_is_kept(store: Store, model: Path) -> None:
    (model / "tokenizer.bin").write_bytes(b"TOK1" + bytes(100))
    store.save("m", model)
    assert store.load("m").read_file("tokenizer.bin") == b"TOK1" + bytes(100)


HOSTILE = {
    "empty": b"",
    "seven bytes": b"1234567",
    "huge length": b"\xff" * 8,
    "length beyond the file": (100).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"abcd",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused_and_names_its_file(
    store: Store, model: Path, kind: str
) -> None:
    (model / "z.safetensors").write_bytes(HOSTILE[kind])
    with pytest.raises(InvalidSafetensors, match=r"z\.safetensors.*nothing was saved"):
        store.save("m", model)
    assert store.models() == []
    assert not list(store._parts.home.blobs.list("packs/"))


# Changes while a source is read: a hook runs before the n-th read


@pytest.fixture
def before_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    def install(number: int, hook: Callable[[], object]) -> None:
        count = 0
        for kind in (DiskFile, ArrayFile):
            real = kind.read_into

            def read_into(self, offset, out, real=real):
                nonlocal count
                count += 1
                if count == number:
                    hook()
                real(self, offset, out)

            monkeypatch.setattr(kind, "read_into", read_into)

    return install


def big(path: Path) -> np.ndarray:
    data = np.random.default_rng(1).integers(0, 256, 5 * MIB + 77, np.uint8)
    save_file({"w": data}, path)
    return data


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"changed")


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    new.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": grow,
    "is cut short": lambda path: os.truncate(path, 3 * MIB),
    "is emptied": lambda path: os.truncate(path, 0),
    "is written to": overwrite,
    "is touched": lambda path: os.utime(path, ns=(1, 1)),
    "is replaced": replace,
}


@pytest.mark.parametrize("number", [3, 6, 8])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_an_error(
    store: Store, tmp_path: Path, before_read: Callable, change: str, number: int
) -> None:
    """Reads 1 and 2 are the header's, 3 to 8 the data's."""
    path = tmp_path / "model.safetensors"
    big(path)
    before_read(number, lambda: CHANGES[change](path))
    with pytest.raises(SourceChanged, match=r"model\.safetensors changed"):
        store.save("m", path)
    assert store.models() == []
    assert not store.check(read_data=True).damaged


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_between_header_and_data_is_an_error(
    store: Store, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "model.safetensors"
    big(path)
    (file,) = open_source(path, metadata=None, exclude=())
    CHANGES[change](path)
    with pytest.raises(SourceChanged):
        file.read_into(0, memoryview(bytearray(8)))
    file.close()


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("number", [3, 5, 7])
def test_an_array_that_changes_is_an_error_and_no_wrong_byte_is_kept(
    store: Store, before_read: Callable, strided: bool, number: int
) -> None:
    # read 1 is of 'other', whose dtype is wider; from read 3 on a part of 'w' was taken
    whole = np.random.default_rng(2).integers(0, 256, (1100, 5000), np.uint8)
    array = whole.T if strided else whole

    def train() -> None:
        array[0, 0] ^= 1
        array[-1, -1] ^= 1

    before_read(number, train)
    with pytest.raises(SourceChanged, match="array 'w' changed"):
        store.save("m", {"w": array, "other": np.zeros(3)})
    assert store.models() == []
    store.save("m", {"w": array, "other": np.zeros(3)})
    assert np.array_equal(store.load("m")["w"], array)
    assert not store.check(read_data=True).damaged


def test_an_array_that_is_written_to_all_the_time(store: Store) -> None:
    import threading

    array = np.zeros(6 * MIB, np.uint8)
    stop = threading.Event()

    def train() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            array[:] = value

    thread = threading.Thread(target=train)
    thread.start()
    try:
        with pytest.raises(SourceChanged):
            store.save("m", {"w": array})
    finally:
        stop.set()
        thread.join()
    assert store.models() == []
    assert not store.check(read_data=True).damaged
