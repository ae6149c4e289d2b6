"""Indexing a stored tensor gives what numpy gives for the array, and reads only what it must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tierstore.blobs.memory import MemoryStore
from tierstore.errors import UsageError
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store

MIB = 1 << 20
RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray] = {
    "three": RNG.integers(0, 9999, (11, 5, 3)).astype(np.float32),
    "two": RNG.integers(0, 9999, (7, 4)).astype(np.int16),
    "one": np.arange(23, dtype=np.uint8),
    "bf16": RNG.integers(0, 99, (6, 5)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3.5, np.float64),
    "empty": np.zeros((0, 4), np.float32),
    "thin": np.zeros((5, 0, 2), np.float32),
    # rows of 1000 bytes: neither blocks of 256 KiB nor chunks of 1 MiB hold whole rows
    "big": RNG.integers(0, 256, (3000, 1000), np.uint8),
    "long": RNG.integers(0, 99, 900_001).astype(np.float32),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    blobs = MemoryStore("tensor")
    create_config(blobs, MIB)
    cache = tmp_path_factory.mktemp("cache")
    store = Store(blobs, Settings(cache, threads=2, memory_limit_bytes=64 * MIB))
    store.save("m", ARRAYS)
    return store.load("m")


NUMPY_LOOKS_AT_NO_ROW = np.lib.NumpyVersion(np.__version__) < "2.3.0"
"""Before, it gave any row of an array that has no elements."""


def same(model: Model, name: str, key: Any) -> None:
    """What numpy says for ``key``: the same array, or an error of the same family."""
    array = ARRAYS[name]
    try:
        expected = np.asarray(array[key])
    except (IndexError, TypeError, ValueError) as error:
        with pytest.raises((IndexError, TypeError, ValueError)):
            print(f"{name}[{key!r}]: numpy raises {error!r}, ours gave", model.tensor(name)[key])
        return
    if not array.size and NUMPY_LOOKS_AT_NO_ROW:
        return
    got = model.tensor(name)[key]
    assert isinstance(got, np.ndarray)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape, f"{name}[{key!r}]"
    assert got.tobytes() == expected.tobytes(), f"{name}[{key!r}]"


KEYS: list[Any] = [
    0, -1, 4, np.int64(2), np.uint8(3), np.array(1), (0,), (), ..., None, slice(None),
    slice(1, 3), slice(3, 1), slice(-3, None), slice(None, None, -1), slice(4, None, -1),
    slice(10, 2, -1), slice(None, None, 2), slice(None, None, -3), slice(1, 100),
    slice(-100, 100, 7), [0], [1, 2], [2, 2, -1], [], np.array([1, 3]), np.array([], np.int64),
    np.array([[0, 1], [2, 3]]), [[0], [1]], np.array([1, 2], np.uint64), np.array([2], np.int8),
    (0, 0), (0, slice(1, 3)), (slice(1, 3), 0), (slice(1, 3), slice(None, None, -1)), (0, ...),
    (..., 0), (slice(None), ..., 1), ([0, 1], [1, 2]), ([0, 1], 2), ([0, 1], slice(0, 2)),
    ([[0], [1]], [0, 1]), (slice(0, 2), [0, 1]), (0, [0, 1]), (np.array(0), [1]), (1, None),
    (slice(1, 3), None, 0), ([1, 2], ..., 0), (0, 0, 0), ([0, 1], slice(None), [0, 1]),
    (1, slice(None), [0, 1]),
    # errors of numpy's are errors here
    1000, -1000, [0, 1000], 2**70, 1.5, "a", [0.5], (0, 1000),
    (0, 0, 0, 0, 0), ([0, 1], [0, 1, 2]),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_keys_of_every_kind(model: Model, key: Any) -> None:
    for name in ("three", "two", "one", "bf16", "empty", "thin", "scalar"):
        same(model, name, key)


def test_an_unsigned_row_is_never_taken_for_a_negative_one(model: Model) -> None:
    with pytest.raises(IndexError, match="row 18446744073709551615 is out of range"):
        model.tensor("two")[np.array([2**64 - 1], np.uint64)]


@pytest.mark.parametrize("name", ["three", "two", "one"])
def test_masks(model: Model, name: str) -> None:
    array = ARRAYS[name]
    same(model, name, np.arange(len(array)) % 3 == 1)
    same(model, name, (np.arange(len(array)) % 2 == 1).tolist())
    same(model, name, np.zeros(len(array), bool))
    same(model, name, array > 5)
    same(model, name, np.ones(len(array) + 1, bool))


@given(
    st.data(),
    st.sampled_from(["three", "two", "one", "bf16", "empty", "thin"]),
)
@settings(max_examples=7 * settings().max_examples)
def test_any_basic_or_integer_key(model: Model, data: st.DataObject, name: str) -> None:
    shape = ARRAYS[name].shape
    keys: list[st.SearchStrategy[Any]] = [npst.basic_indices(shape, allow_newaxis=False)]
    if 0 not in shape:
        keys.append(npst.integer_array_indices(shape[:1]))
        keys.append(npst.integer_array_indices(shape))
    same(model, name, data.draw(st.one_of(keys)))


BIG = st.integers(-3000, 2999)


@given(
    st.one_of(
        BIG,
        st.builds(slice, BIG, BIG, st.sampled_from([None, 1, -1, 2, -7, 300])),
        st.lists(BIG, max_size=40),
        st.tuples(st.lists(BIG, max_size=5), st.slices(1000)),
    )
)
@settings(max_examples=80, deadline=None)
def test_rows_that_span_blocks_and_chunks(model: Model, key: Any) -> None:
    same(model, "big", key)


@given(st.integers(0, 900_001), st.integers(0, 900_001), st.sampled_from([1, -1]))
@settings(max_examples=30, deadline=None)
def test_long_slices_of_short_rows(model: Model, start: int, stop: int, step: int) -> None:
    same(model, "long", slice(start, stop, step))


def test_all_of_it_reads_each_chunk_whole(model: Model) -> None:
    tensor = model.tensor("big")
    before = model.stats
    assert np.array_equal(tensor[:], ARRAYS["big"])
    assert model.stats.bytes_decoded - before.bytes_decoded == tensor.nbytes


def test_a_row_costs_about_a_block(model: Model) -> None:
    before = model.stats
    model.tensor("big")[1500]
    after = model.stats
    assert after.bytes_decoded - before.bytes_decoded <= 2 * (256 << 10)
    assert after.requests - before.requests <= 4


def test_a_slice_needs_no_memory_a_row(model: Model) -> None:
    """A flat parameter has millions of rows of four bytes: a number a row would weigh more."""
    import tracemalloc

    tensor = model.tensor("long")
    tracemalloc.start()
    try:
        tensor[10:-10]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < tensor.nbytes + 5 * MIB


def test_what_is_returned_belongs_to_the_caller(model: Model) -> None:
    for key in (0, slice(1, 3), [1, 2], slice(None, None, -1), ...):
        part = model.tensor("two")[key]
        part[...] = 0
        same(model, "two", key)


def test_length_iteration_and_conversion(model: Model) -> None:
    tensor = model.tensor("two")
    assert len(tensor) == 7
    assert [row.tolist() for row in iter(tensor)] == ARRAYS["two"].tolist()
    assert np.array_equal(np.asarray(tensor), ARRAYS["two"])
    assert np.asarray(tensor, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="makes a copy"):
        np.array(tensor, copy=False)
    with pytest.raises(TypeError):
        len(model.tensor("scalar"))


def test_rows_of_packed_dtypes_are_refused(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F4","shape":[4,4],"data_offsets":[0,8]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(8)))
    blobs = MemoryStore("packed")
    create_config(blobs, MIB)
    store = Store(blobs, Settings(tmp_path / "cache", threads=1, memory_limit_bytes=64 * MIB))
    store.save("m", path)
    tensor = store.load("m").tensor("w")
    assert tensor[...].tolist() == list(range(8)) == tensor[()].tolist()
    for key in (0, slice(0, 1), [0], [True, False, True, False], np.zeros(8, bool), (0, 0)):
        with pytest.raises(UsageError, match="F4"):
            tensor[key]
