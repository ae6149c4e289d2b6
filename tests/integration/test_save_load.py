"""What was saved comes back: every dtype, odd shapes, chunks, files, by every way to read."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import tierstore
from tests.integration.kit import MIB, created, equal, safetensors_bytes, tensors, tree
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import NotFound, SourceError, UsageError
from tierstore.format.dtypes import DTYPES
from tierstore.modelstore.store import Store


@pytest.fixture
def store(cache: Path) -> Store:
    return created(MemoryStore("save"), cache)


def part(
    name: str, dtype: str, shape: list[int], seed: int = 0
) -> tuple[str, str, list[int], bytes]:
    """One tensor; values that compress, since raw alone would test little."""
    size = math.prod(shape) * DTYPES[dtype].bits // 8
    words = np.random.default_rng(seed).normal(0, 300, size // 2 + 1).astype(np.int16)
    return name, dtype, shape, words.tobytes()[:size]


SHAPES = [[], [0], [8], [3, 8], [2, 0, 8], [1, 1, 8, 1], [40_008]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_in_odd_shapes(store: Store, tmp_path: Path, kernels: str, dtype: str) -> None:
    whole = DTYPES[dtype].bits % 8 == 0
    parts = [part(str(s), dtype, s) for s in SHAPES if whole or (math.prod(s) % 8 == 0 and s)]
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(parts))
    store.save("m", path)
    model = store.load("m")
    assert list(model) == [name for name, *_ in parts], "in the order of the file"
    loaded, as_torch = model.load(), model.to_torch()
    for name, _, shape, data in parts:
        tensor = model.tensor(name)
        assert (tensor.dtype, tensor.shape, tensor.nbytes) == (dtype, tuple(shape), len(data))
        assert loaded[name].tobytes() == model[name].tobytes() == data
        assert as_torch[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == data
        if DTYPES[dtype].numpy is not None:
            assert loaded[name].shape == tuple(as_torch[name].shape) == tuple(shape)
        buffer = bytearray(len(data))
        model.load_into({name: buffer})
        assert buffer == data
    assert model.read_file("model.safetensors") == path.read_bytes()
    model.export(tmp_path / "out")
    assert tree(tmp_path / "out") == {"model.safetensors": model.files[0].sha256}
    assert (tmp_path / "out/model.safetensors").read_bytes() == path.read_bytes()


SIZES = st.one_of(
    st.integers(0, 300),
    st.sampled_from([MIB - 1, MIB, MIB + 1, 2 * MIB - 3, 2 * MIB + 17]),
)


@given(
    st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), SIZES, st.integers(0, 3)), max_size=6),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.lists(st.text(max_size=9), min_size=6, max_size=6, unique=True),
    st.binary(max_size=50),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_file_comes_back_to_the_byte(
    cache: Path,
    tmp_path: Path,
    specs: list[tuple[str, int, int]],
    metadata: dict[str, str] | None,
    names: list[str],
    other: bytes,
) -> None:
    try:
        for name in [*names, *(metadata or {}), *(metadata or {}).values()]:
            name.encode()
    except UnicodeEncodeError:
        return
    parts = []
    for (dtype, size, seed), name in zip(specs, names, strict=False):
        count = size * 8 // DTYPES[dtype].bits // 8 * 8
        parts.append(part(name, dtype, [count // 2, 2] if seed else [count], seed))
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    (source / "a.safetensors").write_bytes(
        safetensors_bytes([p for p in parts if p[0] != "__metadata__"], metadata)
    )
    (source / "config.json").write_bytes(other)
    with created(MemoryStore("any"), cache) as store:
        version = store.save("m", source, allow_no_tensors=True)
        again = store.save("m", source, allow_no_tensors=True)
        assert again.digest == version.digest
        assert again.stats is not None
        assert again.stats.new_chunks == 0
        model = store.load("m")
        for name, _, _, data in parts:
            if name != "__metadata__":
                assert model[name].tobytes() == data
        assert model.metadata == (metadata or {})
        assert model.read_file("config.json") == other
        model.export(tmp_path / "out")
        assert tree(tmp_path / "out") == tree(source)
        report = store.check(read_data=True)
        assert report.findings == []


@pytest.mark.parametrize("chunk", [MIB, 2 * MIB, 16 * MIB])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.uint8])
def test_tensors_of_several_chunks(cache: Path, kernels: str, chunk: int, dtype: type) -> None:
    size = (2 * MIB + MIB // 2 + 4) // np.dtype(dtype).itemsize
    values: npt.NDArray[Any] = np.random.default_rng(3).normal(0, 1, size).astype(dtype)
    source = {"w": values, "w2": values[:-3], "tail": values[-5:]}
    with created(MemoryStore("chunks"), cache, chunk) as store:
        store.save("m", source)
        model = store.load("m")
        equal(model.load(), source)
        equal(model.load(["tail"]), {"tail": source["tail"]})
        rows = [0, size - 1, size // 2, MIB // values.itemsize]
        assert model.tensor("w")[rows].tobytes() == values[rows].tobytes()


def test_what_one_way_of_encoding_wrote_the_other_reads(cache: Path) -> None:
    from tierstore import codecs

    native = codecs.native_info().in_use
    source = tensors(1)
    try:
        for writer in (True, False):
            codecs.use_native(writer)
            with created(MemoryStore("cross"), cache / str(writer)) as store:
                store.save("m", source)
                codecs.use_native(not writer)
                equal(store.load("m").load(), source)
                assert store.load("m").tensor("emb")[7].tobytes() == source["emb"][7].tobytes()
    finally:
        codecs.use_native(native)


def test_duplicates_within_a_model_are_stored_once(store: Store) -> None:
    array = np.random.default_rng(0).integers(0, 256, 3 * MIB + 5, np.uint8)
    source = {
        "a": array,
        "b": array.copy(),
        "c": array[: 2 * MIB],
        "zeros": np.zeros(3 * MIB, "u1"),
    }
    version = store.save("m", source)
    assert version.stats is not None
    assert version.stats.chunks == 4 + 4 + 2 + 3
    assert version.stats.new_chunks == 4 + 1
    assert version.stats.new_bytes == 3 * MIB + 5 + MIB
    equal(store.load("m").load(), source)
    usage = store.usage()
    assert usage.chunks == 5
    assert usage.logical - usage.unique == usage.dedup_saved == 7 * MIB + 5


def test_versions_share_what_did_not_change(store: Store) -> None:
    first = tensors(1)
    store.save("m", first)
    second = first | {"bias": first["bias"] + 1}
    version = store.save("m", second)
    assert version.stats is not None
    assert version.stats.new_chunks == 1
    assert version.stats.new_bytes == 77
    assert [(d.name, d.change) for d in store.diff("m@1", "m@2").tensors] == [
        ("bias", "changed"), ("common", "same"), ("emb", "same"),
    ]  # fmt: skip
    equal(store.load("m@1").load(), first)
    equal(store.load("m@2").load(), second)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    root = tmp_path / "sharded"
    (root / "tokenizer").mkdir(parents=True)
    one: dict[str, npt.NDArray[Any]] = {
        "w": np.arange(10, dtype=np.float32),
        "both": np.zeros(3, np.int8),
    }
    two: dict[str, npt.NDArray[Any]] = {
        "v": np.arange(9, dtype=np.int64),
        "both": np.ones(3, np.int8),
    }
    save_file(one, root / "model-00001-of-00002.safetensors", {"format": "pt", "a": "1"})
    save_file(two, root / "model-00002-of-00002.safetensors", {"format": "np", "b": "2"})
    (root / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (root / "config.json").write_text('{"hidden": 3}')
    (root / "tokenizer/vocab.txt").write_bytes(os.urandom(2 * MIB + 1))
    (root / "empty").write_bytes(b"")
    return root


def test_a_sharded_directory(store: Store, sharded: Path, tmp_path: Path, kernels: str) -> None:
    store.save("org/m", sharded, alias="prod")
    model = store.load("org/m@prod")
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    assert sorted(model) == sorted([f"{first}::both", f"{second}::both", "v", "w"])
    assert model[f"{first}::both"].tolist() == [0, 0, 0]
    assert model[f"{second}::both"].tolist() == [1, 1, 1]
    assert model.tensor(f"{first}::both").name_in_file == "both"
    assert model.tensor("v").file == second
    assert model.metadata == {"format": "pt", "a": "1", "b": "2"}
    assert model.read_file("config.json") == b'{"hidden": 3}'
    assert model.read_file("empty") == b""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/own.txt").write_text("left alone")
    (tmp_path / "out/config.json").write_text("replaced")
    done: list[tuple[int, int]] = []
    files = model.export(
        tmp_path / "out", others="merge", progress=lambda at, total: done.append((at, total))
    )
    assert tree(tmp_path / "out") == tree(sharded) | {
        "own.txt": hashlib.sha256(b"left alone").hexdigest()
    }
    assert {file.path: file.sha256 for file in files} == tree(sharded)
    size = sum(path.stat().st_size for path in sharded.rglob("*") if path.is_file())
    assert done[-1] == (size, size)
    assert load_file(tmp_path / "out" / second)["v"].tolist() == list(range(9))


def test_reading_into_memory_of_the_callers(store: Store) -> None:
    source = tensors(5)
    store.save("m", source)
    model = store.load("m")
    targets: dict[str, Any] = {
        "emb": torch.empty(300, 1000),
        "bias": bytearray(77),
        "common": np.empty(5000, np.float64),
    }
    model.load_into(targets)
    assert targets["emb"].numpy().tobytes() == source["emb"].tobytes()
    assert bytes(targets["bias"]) == source["bias"].tobytes()
    assert targets["common"].tobytes() == source["common"].tobytes()
    with pytest.raises(UsageError, match=r"'bias' is U8 \[76\], the tensor is I8 \[77\]"):
        model.load_into({"bias": bytearray(76)})


def test_torch_tensors_of_every_kind(store: Store) -> None:
    source = {
        "bf16": torch.randn(1000, 700).to(torch.bfloat16),
        "fp8": torch.randn(100).to(torch.float8_e4m3fn),
        "transposed": torch.randn(30, 40).T,
        "conj": torch.randn(5, dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
    }
    store.save("m", source)
    back = store.load("m").to_torch()
    for name, tensor in source.items():
        assert back[name].dtype == tensor.dtype, name
        plain = tensor.detach().resolve_conj().contiguous()
        assert torch.equal(back[name].view(torch.uint8) if name == "fp8" else back[name],
                           plain.view(torch.uint8) if name == "fp8" else plain), name  # fmt: skip
    back["scalar"].add_(1)
    back["empty"].resize_(1)
    back["transposed"].mul_(0)
    assert torch.equal(store.load("m").to_torch()["transposed"], source["transposed"])


def test_a_model_of_nothing(store: Store, tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    store.save("m", tmp_path / "none.safetensors")
    model = store.load("m")
    assert len(model) == 0
    assert model.load() == {}
    model.load_into({})
    model.export(tmp_path / "out")
    assert load_file(tmp_path / "out/none.safetensors") == {}
    assert store.check(read_data=True).findings == []


def test_nothing_is_not_saved(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing: tuple[dict[str, np.ndarray] | Path, ...] = ({}, tmp_path / "empty")
    for source in nothing:
        with pytest.raises(SourceError, match="to save"):
            store.save("m", source)
    assert store.models() == []


def test_a_dict_is_saved_as_safetensors_itself_would(store: Store, tmp_path: Path) -> None:
    source = tensors(2)
    store.save("m", source)
    store.load("m").export(tmp_path / "out")
    save_file(source, tmp_path / "theirs.safetensors")
    theirs = (tmp_path / "theirs.safetensors").read_bytes()
    assert (tmp_path / "out/model.safetensors").read_bytes() == theirs


def test_a_model_is_a_mapping_that_reads_nothing_unasked(store: Store) -> None:
    store.save("m", tensors(1))
    one, two = store.load("m"), store.load("m")
    assert one != two
    assert one == one
    assert len({one, two}) == 2
    assert "emb" in one
    assert one.get("nothing") is None
    assert one.get("nothing", 7) == 7
    assert one.stats.requests == 0
    assert one.get("bias") is not None
    with pytest.raises(NotFound, match="has no tensor 'nothing'"):
        one["nothing"]
    with pytest.raises(NotFound, match="has no file"):
        one.read_file("nothing")


def test_a_store_by_its_url(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "a store"
    source = tensors(4)
    with tierstore.init(where) as store:
        version = store.save("m", source, message="nightly")
    monkeypatch.setenv("TIERSTORE_STORE", str(where))
    with tierstore.open() as again:
        equal(again.load(f"m@b3:{version.digest.hex[:12]}").load(), source)
        assert again.versions("m")[0].message == "nightly"
    assert not any(path.is_file() for path in (where / "leases").rglob("*"))
    with pytest.raises(tierstore.errors.Conflict, match="is a store already"):
        tierstore.init(where)


def test_a_manifest_that_no_reader_would_take_is_not_published(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tierstore.format import manifest

    monkeypatch.setattr(manifest, "_MAX_ITEMS", 2)
    with pytest.raises(tierstore.errors.UsageError, match="at most 2 files"):
        store.save("m", tensors(1))
    assert store.models() == []
