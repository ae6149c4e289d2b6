"""A directory or a link where an object should be: it is said, and nothing else is harmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tierstore.errors import BackendError
from tierstore.store import Store

NOW = timedelta(0)
IN_THE_WAY: dict[str, Callable[[Path], None]] = {
    "directory": Path.mkdir,
    "link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
    "link to itself": lambda path: path.symlink_to(path),
}


def tensors(seed: int) -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(seed).standard_normal(5000, np.float32)}


@pytest.fixture
def store(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(cache))
    with tierstore.init(tmp_path / "store") as store:
        store.reclaim.enable(wait_s=0)
        for number in range(1, 4):
            store.save("m", tensors(number), base=None)
        store.alias("m", "prod", "m@2")
        yield store


@pytest.fixture(params=IN_THE_WAY)
def put_there(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return IN_THE_WAY[request.param]


def the_file(tmp_path: Path, key: str) -> Path:
    path = tmp_path / "store" / key
    assert path.is_file()
    return path


def removed(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        path.rmdir()


def test_in_the_place_of_a_layout(
    store: Store, tmp_path: Path, put_there: Callable[[Path], None]
) -> None:
    path = the_file(tmp_path, f"layouts/{store.resolve('m@2').digest.hex}")
    data = path.read_bytes()
    path.unlink()
    put_there(path)
    for _ in range(2):
        [one] = store.repair().objects
        assert (one.outcome, one.key) == ("left", f"layouts/{path.name}")
        assert "is in its place; move that away, then try again" in one.done
    store.remove("m@1")
    with pytest.raises(BackendError, match=f"'layouts/{path.name}'.*is in its place; move"):
        store.reclaim.run(grace=NOW, window=NOW)
    assert store.check(read_data=True).damaged
    removed(path)
    assert [one.outcome for one in store.repair().objects] == ["repaired"]
    assert path.read_bytes() == data
    store.reclaim.run(grace=NOW, window=NOW)


def test_in_the_place_of_an_entry(
    store: Store, tmp_path: Path, put_there: Callable[[Path], None]
) -> None:
    path = the_file(tmp_path, "refs/m/versions/000000/000000002")
    path.unlink()
    put_there(path)
    for _ in range(2):
        [one] = store.repair().objects
        assert (one.outcome, one.key[-9:]) == ("left", path.name)
        assert "could not be written anew: blob" in one.done
    removed(path)
    assert [one.outcome for one in store.repair().objects] == ["repaired"]
    assert store.load("m@2").load()["w"].tobytes() == tensors(2)["w"].tobytes()


def test_in_the_place_of_the_next_condemned_list(
    store: Store, tmp_path: Path, put_there: Callable[[Path], None]
) -> None:
    folder = tmp_path / "store" / "gc"
    folder.mkdir()
    put_there(folder / "000000001")
    store.remove("m@1")
    with pytest.raises(BackendError, match=r"'gc/000000001'.*is in its place; move that away"):
        store.reclaim.run(grace=NOW, window=NOW)
    removed(folder / "000000001")
    assert store.reclaim.run(grace=NOW, window=NOW).freed


def test_in_the_place_of_a_manifest(
    store: Store, tmp_path: Path, put_there: Callable[[Path], None]
) -> None:
    path = the_file(tmp_path, f"versions/{store.resolve('m@2').digest.hex}")
    path.unlink()
    put_there(path)
    assert [one.outcome for one in store.repair().objects] == ["lost"]
    if path.is_symlink():
        store.save("again", tensors(2), base=None)
        assert path.is_file(), "a link is written over"
    else:
        with pytest.raises(BackendError, match=f"'versions/{path.name}'.*move that directory"):
            store.save("again", tensors(2), base=None)
