"""Pickling: what opens the same again, or one clear error."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tierstore import errors
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import TierstoreError, UsageError
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.serving.filesystem import TierstoreFileSystem

WEIGHTS = {"w": np.arange(12, dtype=np.float32).reshape(4, 3)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tierstore.Store:
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TIERSTORE_CONFIG", "")
    monkeypatch.chdir(tmp_path)
    made = tierstore.init("store")
    made.save("m", WEIGHTS, alias="prod")
    return made


def again(thing: object) -> object:
    return pickle.loads(pickle.dumps(thing))


def test_a_store_opens_again_wherever_the_process_runs(
    store: tierstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = pickle.loads(data)
    assert type(found) is tierstore.Store
    assert found is not store
    assert (found.url, found.models()) == (store.url, ["m"])
    assert pickle.loads(data) is found, "one for all that is unpickled"


def test_what_reads_a_version_reads_the_same_one(store: tierstore.Store) -> None:
    model = store.load("m@prod")
    view = model.open_file("model.safetensors")
    thawed = [pickle.dumps(one) for one in (model, model.tensor("w"), view)]
    store.save("m", {"w": WEIGHTS["w"] + 1}, alias="prod")
    again_model, again_tensor, again_view = map(pickle.loads, thawed)
    assert again_model.version == model.version
    np.testing.assert_array_equal(again_model["w"], WEIGHTS["w"])
    np.testing.assert_array_equal(again_tensor[1:3], WEIGHTS["w"][1:3])
    assert again_view.read() == view.read()
    np.testing.assert_array_equal(copy.deepcopy(model)["w"], WEIGHTS["w"])


def test_what_is_pickled_together_opens_a_version_once(store: tierstore.Store) -> None:
    model = store.load("m")
    first, second = pickle.loads(pickle.dumps((model, model.tensor("w"))))
    assert second is first.tensor("w")


def test_a_folded_model_is_pickled_as_its_version(store: tierstore.Store) -> None:
    store.patch("m", {"w": tierstore.Rows([2], np.ones((1, 3), np.float32))})
    model = store.load("m")
    model.fold()
    thawed = pickle.loads(pickle.dumps(model))
    assert (thawed.version, thawed["w"][2].tolist()) == (model.version, [1.0, 1.0, 1.0])


def test_a_variant_is_read_as_its_original(store: tierstore.Store) -> None:
    store.derive("m", {"cast": "bf16"})
    read = store.load("m@1+bf16", dequantize=True)
    thawed = pickle.loads(pickle.dumps(read))
    np.testing.assert_array_equal(thawed["w"], WEIGHTS["w"])


def test_a_file_system_is_of_the_same_store(store: tierstore.Store) -> None:
    fs = pickle.loads(pickle.dumps(TierstoreFileSystem(store.url)))
    assert isinstance(fs, TierstoreFileSystem)
    assert fs.store.url == store.url
    assert [entry["name"] for entry in fs.ls("m@1")] == ["m@1/model.safetensors"]


def test_what_only_this_process_has_says_so(tmp_path: Path) -> None:
    blobs = MemoryStore("here")
    create_config(blobs, 1 << 20)
    own = Store(blobs, Settings(tmp_path / "cache"))
    own.save("m", WEIGHTS)
    for thing in (own, own.load("m"), own.load("m").tensor("w")):
        with pytest.raises(UsageError) as caught:
            pickle.dumps(thing)
        assert str(caught.value) == (
            "the store memory://here cannot be pickled: it is in the memory of this process, or "
            "was made from objects; open a store by its URL in each process"
        )


@pytest.mark.parametrize("url", ["memory://pickled", "fsspec+memory://too"])
def test_a_store_in_memory_says_so(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TIERSTORE_CONFIG", "")
    with pytest.raises(UsageError, match="memory of this process"):
        pickle.dumps(tierstore.init(url))


def test_a_base_of_deltas_has_no_origin(store: tierstore.Store) -> None:
    opened = store._parts.saving._opener.open(store.resolve("m"))
    with pytest.raises(UsageError, match=r"Tensor\('w'.*cannot be pickled: Store.load did not"):
        pickle.dumps(opened.tensors["w"])


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TierstoreError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_come_back_from_workers(kind: type[TierstoreError]) -> None:
    found = again(kind("what happened"))
    assert type(found) is kind
    assert str(found) == str(kind("what happened"))
