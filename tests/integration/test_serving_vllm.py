"""The vLLM plugin against vLLM's contract; see vllm_contract for what that is."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tierstore
from tests.integration.kit import close_shared, tree
from tests.integration.vllm_contract import LoadConfig, World
from tierstore import errors
from tierstore.modelstore.saving.source import BytesFile
from tierstore.modelstore.store import Store
from tierstore.serving import vllm as plugin

WIDTH = 8


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("q.weight", "k.weight", "v.weight", "out.weight")
    return {name: torch.randn(WIDTH, WIDTH, generator=generator) for name in names}


def make(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A sharded model with an index, and what such directories hold besides."""
    folder.mkdir()
    shards = {"model-00001-of-00002.safetensors": ["q.weight", "k.weight"],
              "model-00002-of-00002.safetensors": ["v.weight", "out.weight"]}  # fmt: skip
    for path, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / path)
    index = {name: path for path, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"hidden_size": WIDTH}))
    (folder / "tokenizer.json").write_text("{}")
    # the same weights once more, and those of something else
    save_file(tensors, folder / "consolidated.safetensors")
    (folder / "original").mkdir()
    save_file({"strange": torch.zeros(1)}, folder / "original" / "model.safetensors")
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("TIERSTORE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "cache"))
    with tierstore.init() as store:
        store.save("org/ranker", make(tmp_path / "one", weights(1)), alias="prod")
        yield store
    close_shared()


@pytest.fixture
def world() -> Iterator[World]:
    plugin._loader_class.cache_clear()
    with World().importable() as world:
        yield world
    plugin._loader_class.cache_clear()


def check(model: Any, seed: int) -> None:
    expected = weights(seed)
    fused = torch.cat([expected[name] for name in ("q.weight", "k.weight", "v.weight")])
    assert torch.equal(model.qkv.weight, fused)
    assert torch.equal(model.out.weight, expected["out.weight"])


def test_a_url_is_all_that_is_needed(world: World, store: Store, tmp_path: Path) -> None:
    args = world.AsyncEngineArgs("tierstore://org/ranker@prod")
    engine = pickle.loads(pickle.dumps(args.create_engine_config()))  # to the workers
    assert engine.load_config.load_format == "tierstore"
    assert engine.model_config.served_model_name == "tierstore://org/ranker@prod"
    assert engine.model_config.tokenizer == engine.model_config.model
    assert set(tree(Path(engine.model_config.model))) == {
        "config.json", "tokenizer.json", "model.safetensors.index.json",
    }  # fmt: skip
    world.get_model_loader(engine.load_config).download_model(engine.model_config)
    check(world.get_model(vllm_config=engine), 1)


def test_registering_again_changes_nothing(world: World) -> None:
    plugin.register()
    create = world.EngineArgs.create_engine_config
    plugin.register()
    world.load_general_plugins()
    assert world.EngineArgs.create_engine_config is create
    assert list(world.loaders) == ["tierstore"]


def test_other_models_are_left_alone(world: World, store: Store, tmp_path: Path) -> None:
    engine = world.EngineArgs(str(tmp_path / "one")).create_engine_config(None, headless=True)
    assert engine.load_config == LoadConfig()
    assert engine.model_config.model == str(tmp_path / "one")


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({"no.weight": "model-00001-of-00002.safetensors"}, "lists 'no.weight', which none"),
        (
            {"q.weight": "model-00001-of-00002.safetensors", "x": "consolidated.safetensors"},
            "has '[qk].weight' in consolidated.safetensors and in model-00001-of-00002.safetensors",
        ),
        (None, "has '.*weight' in consolidated.safetensors and in model-0000[12]-of-00002"),
    ],
)
def test_a_tensor_is_in_exactly_one_file(
    store: Store, tmp_path: Path, index: Any, why: str
) -> None:
    tensors = weights(1) | {"x": torch.zeros(1)}
    folder = make(tmp_path / "odd", tensors)
    path = folder / "model.safetensors.index.json"
    path.unlink()
    if index is not None:
        path.write_text(json.dumps({"weight_map": index}))
    store.save("odd", folder)
    with pytest.raises(errors.UsageError, match=why):
        list(plugin.weights_of("odd"))


def test_an_index_that_is_none_is_said(store: Store, tmp_path: Path) -> None:
    file = BytesFile("model.safetensors.index.json", b'{"weight')
    with store._parts.saving.begin() as writer:  # as an upload may have it
        writer.publish(store._names.publication("odd", None, ""), [file])
    with pytest.raises(errors.UsageError, match="is not JSON with a 'weight_map'"):
        list(plugin.weights_of("odd"))


def test_what_the_user_chose_stays(world: World, store: Store, tmp_path: Path) -> None:
    engine = world.EngineArgs(
        "tierstore://org/ranker@prod", tokenizer=str(tmp_path / "one"), served_model_name="me",
        load_format="tierstore",
    ).create_engine_config()  # fmt: skip
    assert engine.model_config.tokenizer == str(tmp_path / "one")
    assert engine.model_config.served_model_name == "me"
    with pytest.raises(errors.UsageError, match="--load-format tierstore, not dummy"):
        world.EngineArgs("tierstore://org/ranker", load_format="dummy").create_engine_config()


def test_every_worker_and_reload_has_the_version_of_the_start(
    world: World, store: Store, tmp_path: Path
) -> None:
    engine = world.EngineArgs("tierstore://org/ranker@prod").create_engine_config()
    store.save("org/ranker", make(tmp_path / "two", weights(2)), alias="prod")
    model = world.get_model(vllm_config=engine)
    check(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # what sleeping leaves
    world.reload_weights(model, engine)
    check(model, 1)
    world.reload_weights(model, engine, "tierstore://org/ranker@prod")
    check(model, 2)


def test_the_store_can_be_named(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"tierstore://org/ranker@prod?store={store.url}"
    monkeypatch.delenv("TIERSTORE_STORE")
    engine = world.EngineArgs(url).create_engine_config()
    check(world.get_model(vllm_config=engine), 1)


def test_a_local_directory_with_weights_from_the_store(
    world: World, store: Store, tmp_path: Path
) -> None:
    engine = world.EngineArgs(
        str(tmp_path / "one"), load_format="tierstore",
        model_loader_extra_config={"ref": "org/ranker@1"},
    ).create_engine_config()  # fmt: skip
    check(world.get_model(vllm_config=engine), 1)
    engine.load_config.model_loader_extra_config = {}
    with pytest.raises(errors.UsageError, match="needs a model such as"):
        world.get_model(vllm_config=engine)
    engine.load_config.model_loader_extra_config = {"reff": "org/ranker@1"}
    with pytest.raises(ValueError, match="'ref' and 'directory'"):
        world.get_model(vllm_config=engine)


def test_another_node_makes_the_directory_of_the_driver(world: World, store: Store) -> None:
    engine = world.EngineArgs("tierstore://org/ranker@prod").create_engine_config()
    folder = Path(engine.model_config.model)
    before = tree(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    world.get_model_loader(engine.load_config)
    assert tree(folder) == before


def test_one_file_without_an_index(world: World, store: Store, tmp_path: Path) -> None:
    folder = make(tmp_path / "flat", weights(3))
    for path in ("model.safetensors.index.json", "model-00001-of-00002.safetensors",
                 "model-00002-of-00002.safetensors"):  # fmt: skip
        (folder / path).unlink()
    store.save("flat", folder)
    check(world.get_model(vllm_config=world.EngineArgs("tierstore://flat").create_engine_config()),
          3)  # fmt: skip


def test_what_is_refused(world: World, store: Store, tmp_path: Path) -> None:
    for url, error in {
        "tierstore://org/ranker@nothing": errors.NotFound,
        "tierstore://nobody": errors.NotFound,
        "tierstore://org/ranker@prod/config.json": errors.UsageError,
        "tierstore://org/ranker@prod/../x": errors.InvalidName,
        "tierstore://": errors.InvalidName,
    }.items():
        with pytest.raises(error):
            world.EngineArgs(url).create_engine_config()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps({"hidden_size": WIDTH}))
    store.save("none", tmp_path / "none", allow_no_tensors=True)
    engine = world.EngineArgs("tierstore://none").create_engine_config()
    with pytest.raises(errors.UsageError, match="no safetensors file"):
        world.get_model(vllm_config=engine)

    class Two:
        class Source:
            model_or_path = "org/other"

        secondary_weights = (Source,)

    loader: Any = world.get_model_loader(engine.load_config)
    with pytest.raises(errors.UsageError, match="org/other"):
        loader.get_all_weights(engine.model_config, Two())


def test_the_storage_initializer_of_kserve(store: Store, tmp_path: Path) -> None:
    """KServe appends the URI and the target to the command of a ClusterStorageContainer."""
    command = ["sh", "-c", 'exec tierstore load "${0#tierstore://}" --to "$1"']
    done = subprocess.run(
        [*command, "tierstore://org/ranker@prod", str(tmp_path / "mnt")],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "mnt") == tree(tmp_path / "one")
