"""``tierstore://`` through fsspec, and through what reads by it."""

from __future__ import annotations

import importlib.metadata
import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests
from hypothesis import given, settings
from hypothesis import strategies as st

import tierstore
from tests.integration.kit import close_shared, safetensors_bytes, tree
from tierstore import errors
from tierstore.modelstore.store import Store
from tierstore.serving.filesystem import TierstoreFileSystem
from tierstore.serving.opened import open_model

MIB = 1 << 20
NOISE = np.random.default_rng(0).bytes(3 * MIB)


def frame() -> Any:
    import pandas  # here, as it and the others are large, and only one worker needs them

    return pandas.DataFrame({"a": range(1000), "b": [f"row {n}" for n in range(1000)]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests save as a model."""
    root = tmp_path_factory.mktemp("model")
    (root / "sub" / "deep").mkdir(parents=True)
    weights = [("w", "U8", [len(NOISE) - 99], NOISE[99:])]
    (root / "model.safetensors").write_bytes(safetensors_bytes(weights))
    (root / "config.json").write_text("{}")
    (root / "sub" / "noise.bin").write_bytes(NOISE)
    (root / "sub" / "deep" / "empty.txt").write_bytes(b"")
    frame().to_csv(root / "rows.csv", index=False)
    frame().to_parquet(root / "rows.parquet")
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Store]:
    url = tmp_path_factory.mktemp("fsspec") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERSTORE_STORE", str(url))
        with tierstore.init(chunk_size=MIB) as store:
            store.save("ranker", folder, alias="prod")
            store.save("org/one", {"w": np.zeros(3)})
            store.save("org/two", {"w": np.ones(3)})
            yield store
        close_shared()


@pytest.fixture
def fs(store: Store) -> TierstoreFileSystem:
    TierstoreFileSystem.clear_instance_cache()
    return fsspec.filesystem("tierstore")


def test_the_entry_point_is_what_fsspec_finds(store: Store) -> None:
    entries = importlib.metadata.entry_points(group="fsspec.specs")
    assert entries["tierstore"].load() is TierstoreFileSystem
    assert isinstance(fsspec.filesystem("tierstore"), TierstoreFileSystem)


# Listing


def test_folders(fs: TierstoreFileSystem, folder: Path) -> None:
    assert fs.ls("tierstore://", detail=False) == ["org", "ranker"]
    assert fs.ls("org", detail=False) == ["org/one", "org/two"]
    assert fs.ls("ranker@prod", detail=False) == [
        f"ranker@prod/{name}"
        for name in ("config.json", "model.safetensors", "rows.csv", "rows.parquet", "sub")
    ]
    assert fs.ls("tierstore://ranker/sub/", detail=False) == [
        "ranker/sub/deep", "ranker/sub/noise.bin"
    ]  # fmt: skip
    assert fs.ls("ranker/config.json", detail=False) == ["ranker/config.json"]
    every = [f"ranker@1/{path}" for path in tree(folder)]
    assert fs.find("tierstore://ranker@1") == sorted(every)
    assert fs.glob("tierstore://ranker@1/**/*.bin") == ["ranker@1/sub/noise.bin"]
    assert fs.glob("ranker/*.safetensors") == ["ranker/model.safetensors"]
    assert fs.glob("ranker/*.nothing") == []
    assert fs.du("ranker@prod") == sum(path.stat().st_size for path in folder.rglob("*.*"))


def test_info(fs: TierstoreFileSystem, folder: Path) -> None:
    info = fs.info("tierstore://ranker@prod/sub/noise.bin")
    assert (info["name"], info["size"]) == ("ranker@prod/sub/noise.bin", len(NOISE))
    assert info["sha256"] == tree(folder)["sub/noise.bin"] == fs.ukey(info["name"])
    assert (info["type"], info["version"]) == ("file", "ranker@1")
    assert fs.created(info["name"]) == info["created"] == fs.modified(info["name"])
    for path in ("", "org", "org/one", "ranker@prod", "ranker@1/sub/deep"):
        assert fs.info(path) == {"name": path, "size": 0, "type": "directory"}
        assert fs.isdir(path)
    assert fs.isfile("ranker/config.json")
    assert not fs.exists("ranker/nothing")
    assert not fs.exists("nobody")


MISSING = (
    "nobody", "nobody@prod/x", "ranker@nothing", "ranker@7/config.json", "ranker@prod/nothing",
    "ranker@prod/sub/nothing", "ranker@prod/config.json/x", "ranker@1+int8-row/config.json",
    "ranker@prod/%2e%2e/org", "ranker@prod/con%00fig.json", "or", "ranker@prod/su",
)  # fmt: skip
REFUSED = (
    "ranker@prod/../config.json", "../x", "ranker@prod/sub/../../x", "ranker@prod/./config.json",
    "ranker@prod/config.json\0", "ranker@prod//config.json", "ranker@prod\\x", "ranker@",
    "ranker@prod/..\\x", "ranker@prod/\ud800",
)  # fmt: skip
CALLS: list[Callable[[TierstoreFileSystem, str], Any]] = [
    lambda fs, path: fs.ls(path),
    lambda fs, path: fs.info(path),
    lambda fs, path: fs.open(path),
    lambda fs, path: fs.cat_file(path),
    lambda fs, path: fs.cat_ranges([path], [0], [9], on_error="raise"),
    lambda fs, path: fs.ukey(path),
]


@pytest.mark.parametrize("call", range(len(CALLS)))
def test_what_is_not_there_and_what_is_not_allowed(fs: TierstoreFileSystem, call: int) -> None:
    for path in MISSING:
        with pytest.raises(FileNotFoundError) as caught:
            print(path, CALLS[call](fs, path))
        assert isinstance(caught.value, errors.FileMissing)
        with pytest.raises(FileNotFoundError):
            CALLS[call](fs, f"tierstore://{path}")
    for path in REFUSED:
        with pytest.raises(errors.InvalidName):
            print(path, CALLS[call](fs, path))


def test_a_folder_is_no_file(fs: TierstoreFileSystem) -> None:
    for path in ("ranker@prod/sub", "ranker@prod", "org"):
        with pytest.raises(FileNotFoundError):
            fs.open(path)


# Reading


BOUND = st.one_of(st.none(), st.integers(-9, 9), st.integers(-len(NOISE) - 9, len(NOISE) + 9))


@given(ranges=st.lists(st.tuples(BOUND, BOUND), min_size=1, max_size=5))
@settings(max_examples=40)
def test_ranges(store: Store, ranges: list[tuple[int | None, int | None]]) -> None:
    fs = fsspec.filesystem("tierstore")
    path = "tierstore://ranker@prod/sub/noise.bin"
    assert fs.cat_file(path, *ranges[0]) == NOISE[slice(*ranges[0])]
    starts, ends = [list(one) for one in zip(*ranges, strict=True)]
    got = fs.cat_ranges([path] * len(ranges), starts, ends, max_gap=7)
    assert got == [NOISE[slice(*one)] for one in ranges]


def test_ranges_of_many_files(fs: TierstoreFileSystem, folder: Path) -> None:
    paths = ["ranker/sub/noise.bin", "ranker/rows.csv", "ranker/nothing", "ranker/sub/noise.bin"]
    got = fs.cat_ranges(paths, 5, [9, 20, 3, MIB])
    assert got[0] == NOISE[5:9]
    assert got[1] == (folder / "rows.csv").read_bytes()[5:20]
    assert isinstance(got[2], FileNotFoundError)
    assert got[3] == NOISE[5:MIB]
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(paths, 5, 9, on_error="raise")
    for bad in (("ranker/config.json", [0], [1]), (paths, [0], 3)):
        with pytest.raises((TypeError, ValueError)):
            fs.cat_ranges(*bad)


def test_a_range_costs_its_blocks(fs: TierstoreFileSystem) -> None:
    close_shared()
    model = open_model(None, "ranker@1")
    fs.info("ranker@1/model.safetensors")
    fs.cat_file("ranker@1/model.safetensors", 0, 40)
    assert model.stats.bytes_fetched == 0
    fs.cat_file("ranker@1/model.safetensors", 2 * MIB + 300_000, 2 * MIB + 300_100)
    assert 0 < model.stats.bytes_fetched < 300_000


def test_files_seek_and_read(fs: TierstoreFileSystem) -> None:
    with fs.open("tierstore://ranker@prod/sub/noise.bin", "rb", block_size=100_000) as file:
        assert file.size == len(NOISE)
        assert file.read(10) == NOISE[:10]
        file.seek(-10, 2)
        assert file.read() == NOISE[-10:]
        file.seek(MIB - 3)
        assert file.read(MIB) == NOISE[MIB - 3 : 2 * MIB - 3]
    with fsspec.open("tierstore://ranker@prod/config.json", "r") as text:
        assert text.read() == "{}"
    with fs.open("ranker/sub/deep/empty.txt") as file:
        assert file.read() == b""


def test_the_store_can_be_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIERSTORE_STORE")
    with fsspec.open(f"tierstore://ranker@prod/config.json?store={store.url}") as file:
        assert file.read() == b"{}"
    with fsspec.open("tierstore://ranker@prod/config.json", store=store.url) as file:
        assert file.read() == b"{}"
    with pytest.raises(errors.UsageError, match="TIERSTORE_STORE"):
        fsspec.open("tierstore://ranker@prod/config.json").open()
    there = fsspec.filesystem("tierstore", store=store.url)
    assert pickle.loads(pickle.dumps(there)).cat("ranker/config.json") == b"{}"


def test_an_alias_that_moves(store: Store, fs: TierstoreFileSystem, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    store.save("moving", tmp_path, alias="prod", allow_no_tensors=True)
    path = "moving@prod/a.txt"
    before = fs.open(path)
    assert fs.cat(path) == b"one"
    (tmp_path / "a.txt").write_text("two!")
    store.save("moving", tmp_path, alias="prod", allow_no_tensors=True)
    assert fs.cat(path) == b"one", "it keeps its meaning for a while"
    assert fsspec.filesystem("tierstore", refresh_s=0).cat(path) == b"two!"
    fs.invalidate_cache()
    assert fs.info(path)["size"] == 4
    assert fs.cat(path) == b"two!"
    assert before.read() == b"one"


# Saving


def test_put_of_a_directory_is_a_version(fs: TierstoreFileSystem, store: Store, folder: Path,
                                         tmp_path: Path) -> None:  # fmt: skip
    callback = Callback()
    fs.put(f"{folder}/", "tierstore://org/put@stage", recursive=True, callback=callback)
    assert callback.value == callback.size > 3 * MIB
    fs.put([str(folder)], "org/put", recursive=True)
    assert [alias.name for alias in store.aliases("org/put")] == ["stage"]
    assert len(store.versions("org/put")) == 2
    fs.get("org/put@stage", str(tmp_path / "got"), recursive=True)
    assert tree(tmp_path / "got") == tree(folder)


def test_nothing_else_can_be_written(fs: TierstoreFileSystem, folder: Path, store: Store) -> None:
    before = tree(Path(store.url.removeprefix("file://")) / "refs")
    calls: list[Callable[[], Any]] = [
        lambda: fs.open("ranker/new", "wb"),
        lambda: fs.open("ranker/config.json", "ab"),
        lambda: fs.pipe_file("ranker/new", b"x"),
        lambda: fs.pipe("ranker/new", b"x"),
        lambda: fs.touch("ranker/new"),
        lambda: fs.put(str(folder / "config.json"), "ranker", recursive=True),
        lambda: fs.put(str(folder), "ranker"),
        lambda: fs.put(str(folder), "ranker@1", recursive=True),
        lambda: fs.put(str(folder), "ranker@1+int8-row", recursive=True),
        lambda: fs.put(str(folder), "ranker@prod/sub/..", recursive=True),
        lambda: fs.put_file(str(folder / "config.json"), "ranker/new"),
        lambda: fs.cp_file("ranker/config.json", "ranker/new"),
        lambda: fs.copy("ranker/config.json", "ranker/new"),
        lambda: fs.mv("ranker/config.json", "ranker/new"),
        lambda: fs.rm("ranker/config.json"),
        lambda: fs.rm("ranker", recursive=True),
        lambda: fs.mkdir("ranker/new"),
        lambda: fs.makedirs("new"),
        lambda: fs.rmdir("ranker/sub"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises((errors.UsageError, NotImplementedError)):
            print(number, call())
    after = tree(Path(store.url.removeprefix("file://")) / "refs")
    assert after == before


# Others


def test_pandas(store: Store) -> None:
    import pandas

    pandas.testing.assert_frame_equal(pandas.read_csv("tierstore://ranker@prod/rows.csv"), frame())
    got = pandas.read_parquet("tierstore://ranker@prod/rows.parquet")
    pandas.testing.assert_frame_equal(got, frame())


def test_pyarrow(fs: TierstoreFileSystem, folder: Path) -> None:
    import pyarrow.fs
    import pyarrow.parquet

    there = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    table = pyarrow.parquet.read_table("ranker@prod/rows.parquet", filesystem=there, columns=["a"])
    assert table.column("a").to_pylist() == list(range(1000))
    infos = there.get_file_info(pyarrow.fs.FileSelector("ranker@prod", recursive=True))
    assert {info.path for info in infos if info.is_file} == {
        f"ranker@prod/{path}" for path in tree(folder)
    }
    with there.open_input_file("ranker@prod/sub/noise.bin") as file:
        assert file.size() == len(NOISE)
        assert file.read_at(100, MIB) == NOISE[MIB : MIB + 100]
    with there.open_input_stream("ranker@prod/sub/noise.bin") as stream:
        assert stream.read() == NOISE
    missing = there.get_file_info("ranker@prod/nothing")
    assert missing.type == pyarrow.fs.FileType.NotFound


def test_dask(store: Store) -> None:
    import dask.dataframe
    import pandas

    got = dask.dataframe.read_csv("tierstore://ranker@prod/*.csv").compute()
    pandas.testing.assert_frame_equal(got.reset_index(drop=True), frame(), check_dtype=False)


def test_get_with_progress_and_into_an_open_file(fs: TierstoreFileSystem, tmp_path: Path) -> None:
    callback = Callback()
    fs.get_file("ranker/sub/noise.bin", tmp_path / "new" / "noise.bin", callback=callback)
    assert (tmp_path / "new" / "noise.bin").read_bytes() == NOISE
    assert callback.size == callback.value == len(NOISE)
    out = io.BytesIO()
    fs.get_file("ranker/sub/noise.bin", out)
    assert out.getvalue() == NOISE


# fsspec's own suite for what is read; the others write, copy, move or remove single files


class Fixtures(AbstractFixtures):
    """The suite's scenarios, made on local disk and put as one version of a model of its own."""

    @pytest.fixture
    def fs(self, store: Store) -> TierstoreFileSystem:
        TierstoreFileSystem.clear_instance_cache()
        return fsspec.filesystem("tierstore")

    @pytest.fixture
    def fs_path(self) -> str:
        return "suite@now"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @pytest.fixture
    def saved(self, fs: Any, fs_path: str, tmp_path: Path) -> Iterator[Callable[[Any], str]]:
        def save(make: Callable[..., str]) -> str:
            root = tmp_path / "scenario"
            local = LocalFileSystem(auto_mkdir=True)
            source = make(local, lambda *parts: "/".join(map(str, parts)), str(root))
            fs.put(str(root), fs_path, recursive=True)
            shutil.rmtree(root)
            return f"{fs_path}/{Path(source).name}"

        return save  # type: ignore[return-value]

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, saved: Any) -> str:
        return saved(self._bulk_operations_scenario_0)

    @pytest.fixture
    def fs_glob_edge_cases_files(self, saved: Any) -> str:
        return saved(self._glob_edge_cases_files)

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, saved: Any) -> str:
        return saved(self._dir_and_file_with_same_name_prefix)

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, saved: Any) -> str:
        return saved(self._10_files_with_hashed_names)


class TestGet(Fixtures, AbstractGetTests):
    def test_get_directory_recursive(self, fs: Any, saved: Any, tmp_path: Path) -> None:
        """The suite's own makes its files one by one."""

        def make(local: Any, join: Callable[..., str], root: str) -> str:
            source = join(root, "src")
            local.mkdir(source)
            local.pipe_file(join(source, "file"), b"x")
            return source

        source, target = saved(make), tmp_path / "target"
        fs.get(source, str(target), recursive=True)
        assert list(tree(target)) == ["file"]
        fs.get(source, str(target), recursive=True)  # the target exists now
        assert list(tree(target)) == ["file", "src/file"]
        fs.get(f"{source}/", str(target), recursive=True)
        assert list(tree(target)) == ["file", "src/file"]
