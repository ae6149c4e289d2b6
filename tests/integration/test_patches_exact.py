"""Patched versions give every bit of every dtype: read, folded, streamed, from files."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.kit import MIB, created
from tierstore import Dense, Elements, Patch, Rows
from tierstore.blobs.memory import MemoryStore
from tierstore.format.dtypes import DTYPES, numpy_dtype
from tierstore.format.safetensors import build_header
from tierstore.ids import Digest
from tierstore.modelstore.loading.arrays import ArrayBytes
from tierstore.modelstore.loading.shards import StripRead, read_strips, shard_of
from tierstore.modelstore.loading.tensor import Tensor
from tierstore.modelstore.patches import patching
from tierstore.modelstore.store import Store

SPECIAL = np.frombuffer(
    np.array(
        [
            0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000,
            0xFF800000, 0x7FC07FC1, 0x80008000, 0x00010001, 0xFF80FF80, 0x7C017E01, 0xFFFFFFFF,
        ],
        "<u4",
    ).tobytes(),
    np.uint8,
)  # fmt: skip
"""NaNs with payloads, quiet and signalling, -0.0, denormals and infinities of F32, BF16 and F16."""


@dataclass(frozen=True)
class Spec:
    """A tensor of the model under test."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.dtype].bits // 8

    @property
    def row(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * DTYPES[self.dtype].bits // 8


SPECS = {
    **{f"every.{name}": Spec(name, (6, 4)) for name in DTYPES},
    "table": Spec("F32", (700, 777)),  # rows straddle chunks
    "wide": Spec("BF16", (3, 300_000)),  # a row is longer than a block, and not a chunk
    "flat": Spec("F64", (150_001,)),
    "scalar": Spec("F32", ()),
    "none": Spec("F32", (0, 7)),
    "no columns": Spec("I8", (5, 0)),
    "path::like": Spec("U16", (2, 3, 5)),
}


class Raw(ArrayBytes):
    """Plain bytes under any dtype, as a file would give them."""

    def __init__(self, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        self.dtype, self.shape, self._data = dtype, shape, data

    def read_into(self, start: int, out: memoryview) -> None:
        out[:] = self._data[start : start + len(out)]


def some_bytes(rng: np.random.Generator, size: int) -> bytes:
    """Random bytes, which hold odd floats of every dtype, with special ones among them."""
    data = rng.integers(0, 256, size, dtype=np.uint8)
    at = int(rng.integers(0, max(1, size // 2)))
    some = np.tile(SPECIAL, 2)[: max(0, size - at)]
    data[at : at + len(some)] = some
    return data.tobytes()


def one_change(
    rng: np.random.Generator, name: str, spec: Spec, state: dict[str, bytearray], most: int
) -> Rows | Elements | Dense:
    """A random change of a tensor, which is also made to ``state`` byte by byte."""
    bits = DTYPES[spec.dtype].bits
    packed = DTYPES[spec.dtype].numpy is None
    kinds = ["dense"]
    if spec.shape:
        kinds += ["rows"] * 3
    if bits >= 8:
        kinds += ["elements"] * 2
    kind = rng.choice(kinds)
    if kind == "dense":
        data = some_bytes(rng, spec.nbytes)
        state[name][:] = data
        return Dense(Raw("U8", (len(data),), data) if packed else Raw(spec.dtype, spec.shape, data))
    limit = spec.shape[0] if kind == "rows" else spec.nbytes * 8 // bits
    unit = spec.row if kind == "rows" else bits // 8
    count = int(rng.integers(0, most)) if limit else 0
    indices = rng.integers(0, max(1, limit), count)
    data = some_bytes(rng, count * unit)
    for number, index in enumerate(indices.tolist()):  # in order: the last one wins
        state[name][index * unit : index * unit + unit] = data[number * unit : number * unit + unit]
    inner = (unit,) if packed else spec.shape[1:]
    shape = (count, *inner) if kind == "rows" else (count,)
    values = Raw("U8" if packed else spec.dtype, shape, data)
    dtype = rng.choice(["<i8", "<u4", "<u8", "<i4"])
    made = Rows if kind == "rows" else Elements
    return made(indices.astype(dtype), values)


def file_bytes(state: dict[str, bytearray]) -> bytes:
    header = build_header([(name, spec.dtype, spec.shape) for name, spec in SPECS.items()], None)
    return header.raw + b"".join(state[info.name] for info in header.tensors)


def ranged(tensor: Tensor, low: int, high: int) -> bytes:
    out = bytearray(high - low)
    tensor.read_span(low, high, memoryview(out))
    return bytes(out)


def parts(tensor: Tensor, rank: int, dim: int) -> bytes:
    """What one of two ranks reads of a tensor."""
    shard = shard_of(tensor, rank, 2, dim)
    out = bytearray(shard.strip.nbytes)
    read_strips([StripRead(tensor, shard.strip, memoryview(out))])
    return bytes(out)


def is_exact(store: Store, ref: str, state: dict[str, bytearray], rng: np.random.Generator) -> None:
    """Every way to read gives the bytes of ``state``."""
    model = store.load(ref)
    for name, array in model.load().items():
        assert array.tobytes() == state[name], name
    buffers = {name: bytearray(spec.nbytes) for name, spec in SPECS.items()}
    model.load_into(buffers)
    assert buffers == state
    for name, spec in SPECS.items():
        tensor = model.tensor(name)
        assert (tensor.dtype, tensor.shape, tensor.nbytes) == (spec.dtype, spec.shape, spec.nbytes)
        low, high = sorted(rng.integers(0, spec.nbytes + 1, 2).tolist())
        assert ranged(tensor, low, high) == bytes(state[name][low:high]), name
        if not spec.shape or DTYPES[spec.dtype].numpy is None:
            continue
        whole = np.frombuffer(state[name], numpy_dtype(spec.dtype)).reshape(spec.shape)
        for dim in range(len(spec.shape)):
            halves = np.split(whole, [-(-spec.shape[dim] // 2)], dim)
            assert [parts(tensor, rank, dim) for rank in (0, 1)] == [h.tobytes() for h in halves]
        if spec.shape[0]:
            rows = rng.integers(0, spec.shape[0], 7)
            assert tensor[rows].tobytes() == whole[rows].tobytes(), name
        first, last = sorted(rng.integers(0, spec.shape[0] + 1, 2).tolist())
        assert tensor[first:last].tobytes() == whole[first:last].tobytes(), name
    plain = file_bytes(state)
    view = model.open_file("model.safetensors")
    assert view.read() == plain
    spans = [sorted(rng.integers(0, len(plain) + 1, 2).tolist()) for _ in range(5)]
    read = view.read_ranges([(low, high - low) for low, high in spans])
    assert read == [plain[low:high] for low, high in spans]


@pytest.fixture(autouse=True)
def _long_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches of any size stay on one another, so that all are applied by reads."""
    monkeypatch.setattr(patching, "FULL_PART", 1000)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 4), many=st.booleans())
def test_any_patches_of_any_dtype(seed: int, steps: int, many: bool, cache: Path) -> None:
    rng = np.random.default_rng(seed)
    state = {name: bytearray(some_bytes(rng, spec.nbytes)) for name, spec in SPECS.items()}
    with tempfile.TemporaryDirectory() as folder, created(MemoryStore("exact"), cache) as store:
        source = Path(folder) / "model.safetensors"
        source.write_bytes(file_bytes(state))
        store.save("m", source)
        first = {name: bytearray(data) for name, data in state.items()}
        for _ in range(steps):
            count = len(SPECS) if many else 2
            names = rng.choice(list(SPECS), count, replace=False).tolist()
            changes = {
                name: one_change(rng, name, SPECS[name], state, 40 if many else 4) for name in names
            }
            store.patch("m", changes, fold=False)
            if many and rng.integers(2):
                store.fold("m")  # some patches lie on a folded version
        newest = str(store.resolve("m"))
        is_exact(store, newest, state, rng)
        _is_streamed(store, first, state)
        _is_folded(store, newest, state, rng, Path(folder))


def _is_streamed(store: Store, state: dict[str, bytearray], after: dict[str, bytearray]) -> None:
    held = {
        name: np.frombuffer(data, np.uint8)
        if DTYPES[SPECS[name].dtype].numpy is None
        else np.frombuffer(data, numpy_dtype(SPECS[name].dtype)).reshape(SPECS[name].shape)
        for name, data in state.items()
    }
    for patch in store.patches(since="m@1"):
        patch.apply_to(held)
    assert {name: array.tobytes() for name, array in held.items()} == after


def _is_folded(
    store: Store, ref: str, state: dict[str, bytearray], rng: np.random.Generator, folder: Path
) -> None:
    digest = store.resolve(ref).digest
    store.load(ref).export(folder / "out")
    assert (folder / "out" / "model.safetensors").read_bytes() == file_bytes(state)
    model = store.load(ref)
    assert not model._opened.patches
    assert model.version.digest == digest
    assert model.files[0].sha256 == hashlib.sha256(file_bytes(state)).hexdigest()
    is_exact(store, ref, state, rng)
    # a fold is what a save of the same bytes would have been
    assert store.save("again", folder / "out").digest == store.fold(ref).full
    report = store.check(read_data=True)
    assert report.findings == []


def test_a_patch_file_may_be_in_any_order(tmp_path: Path, cache: Path) -> None:
    """What other tools write: other index dtypes, no order, repeats, tensors anywhere."""
    from safetensors.numpy import save_file

    base = np.arange(50, dtype=np.float32).reshape(10, 5)
    with created(MemoryStore("file"), cache) as store:
        digest = store.save("m", {"w": base, "b": np.zeros(4, np.int16)}).digest
        values = np.arange(15, dtype=np.float32).reshape(3, 5) + 100
        save_file(
            {
                "rows.indices/w": np.array([7, 2, 7], np.int32),
                "rows.values/w": values,
                "elements.indices/b": np.array([3, 0], np.uint8),
                "elements.values/b": np.array([-5, 9], np.int16),
            },
            tmp_path / "p.safetensors",
            {
                "format": "tierstore-patch/1", "base": digest.hex,
                "shapes": '{"w": [10, 5], "b": [4]}',
            },
        )  # fmt: skip
        store.patch("m", tmp_path / "p.safetensors")
        base[2], base[7] = values[1], values[2]
        assert store.load("m")["w"].tobytes() == base.tobytes()
        assert store.load("m")["b"].tolist() == [9, 0, 0, -5]
        assert Patch.open(tmp_path / "p.safetensors").parts["w"].count == 2


def test_a_patch_survives_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"e": (100, 3), "d": (2, 2), "w": (4, 4)}
    patch = Patch.of(
        Digest(bytes(range(32))),
        {
            "e": Rows([5, 1, 5], rng.standard_normal((3, 3))),
            "d": Dense(np.array([[1, -2], [3, -4]], np.int8)),
            "w": Elements([15, 0], np.array([-0.0, np.nan], np.float16)),
        },
        shapes,
    )
    patch.save(tmp_path / "p.safetensors")
    again = Patch.open(tmp_path / "p.safetensors")
    again.save(tmp_path / "q.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()
    assert again.base == patch.base == Digest(bytes(range(32)))
    for name, change in patch.changes().items():
        other = again.changes([name])[name]
        assert type(other) is type(change)
        assert np.asarray(other.values).tobytes() == np.asarray(change.values).tobytes()
    rows = again.changes()["e"]
    assert isinstance(rows, Rows)
    assert rows.indices.tolist() == [1, 5]


@pytest.mark.parametrize("width", [1, 3, 64, 300_000])
def test_ranges_that_cut_rows(width: int, cache: Path) -> None:
    """Windows of a fold begin and end anywhere: each byte range is as the whole has it."""
    rng = np.random.default_rng(width)
    rows = max(3, 2 * MIB // width)
    table = rng.integers(0, 256, (rows, width), dtype=np.uint8)
    with created(MemoryStore("ranges"), cache) as store:
        store.save("m", {"t": table})
        for _ in range(2):
            some = rng.integers(0, rows, min(rows, 200))
            values = rng.integers(0, 256, (len(some), width), dtype=np.uint8)
            store.patch("m", {"t": Rows(some, values)}, fold=False)
            for index, row in zip(some.tolist(), values, strict=True):
                table[index] = row
        tensor = store.load("m").tensor("t")
        plain = table.tobytes()
        for _ in range(30):
            low, high = sorted(rng.integers(0, len(plain) + 1, 2).tolist())
            assert ranged(tensor, low, high) == plain[low:high], (low, high)
