"""Lossy methods: what they store, what comes back, and that the errors are told truly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tierstore.errors import UsageError
from tierstore.lossy.errors import compare, total
from tierstore.lossy.methods import Channel, LowRank, Prune, TensorSpec, method_of

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
ALL: tuple[dict[str, str], ...] = (
    {"cast": "bf16"}, {"cast": "f16"}, {"int8": "row"}, {"int8": "channel"}, {"fp8": "e4m3"},
    {"prune": "2:4"}, {"prune": "magnitude:0.5"}, {"low-rank": "energy:0.9"},
    {"low-rank": "rank:2"},
)  # fmt: skip
MATRICES = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 12), st.integers(1, 6).map(lambda n: 4 * n)),
    elements=st.floats(-1e4, 1e4, width=32),
)  # fmt: skip


def normal(rows: int = 96, columns: int = 64, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, columns)).astype(dtype)


@pytest.mark.parametrize("parameters", ALL, ids=str)
@given(matrix=MATRICES)
def test_what_comes_back_has_the_original_form(
    parameters: Mapping[str, str], matrix: np.ndarray
) -> None:
    method = method_of(parameters)
    assert method_of(method.parameters) == method
    again = method.encode(matrix.copy())
    parts = method.encode(matrix)
    assert {k: v.tobytes() for k, v in parts.items()} == {k: v.tobytes() for k, v in again.items()}
    back = method.decode(parts, "F32", matrix.shape)
    assert (back.dtype, back.shape) == (matrix.dtype, matrix.shape)


@pytest.mark.parametrize(
    "parameters", [p for p in ALL if method_of(p).by_rows], ids=str
)  # fmt: skip
@given(matrix=MATRICES, at=st.integers(0, 3))
def test_blocks_of_rows_are_the_whole(
    parameters: Mapping[str, str], matrix: np.ndarray, at: int
) -> None:
    """As long as a block has a multiple of eight rows, what is stored does not depend on them."""
    method = method_of(parameters)
    matrix = np.concatenate([matrix] * 3)
    blocks = [method.encode_rows(block) for block in np.split(matrix, [8 * at]) if len(block)]
    joined = {k: np.concatenate([block[k] for block in blocks]) for k in blocks[0]}
    parts = {**joined, **method.whole(matrix.shape)}
    whole = method.encode(matrix)
    assert {k: v.tobytes() for k, v in parts.items()} == {k: v.tobytes() for k, v in whole.items()}


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from(
        [0.0, -0.0, 1.0, -1.0, 2.0, math.nan, math.inf])),
    st.floats(0.01, 0.99),
)  # fmt: skip
def test_of_equal_values_the_first_are_dropped(values: np.ndarray, share: float) -> None:
    size = np.abs(values.astype(np.float64))
    size[np.isnan(size)] = np.inf
    size[np.isinf(values)] = 1e300
    expected = np.ones(values.size, bool)
    expected[np.argsort(size, kind="stable")[: int(values.size * share)]] = False
    parts = Prune("magnitude", share).encode(values[None])
    kept = np.unpackbits(parts[".bitmask"], count=values.size, bitorder="little").astype(bool)
    assert (kept == expected).all()
    assert parts[".values"].tobytes() == values[expected].tobytes()


@pytest.mark.parametrize("shape", [(80, 60), (60, 80), (50, 50)])
@pytest.mark.parametrize("true_rank", [5, 50])
def test_low_rank_is_the_best_there_is(shape: tuple[int, int], true_rank: int) -> None:
    """Against the singular value decomposition of a library, in float64 (Eckart and Young)."""
    rng = np.random.default_rng(2)
    left, right = (rng.standard_normal(s) for s in ((shape[0], true_rank), (true_rank, shape[1])))
    array = (left @ right).astype(np.float32)
    u, values, v = np.linalg.svd(array.astype(np.float64), full_matrices=False)
    for rank in (1, 4, 12):
        best = (u[:, :rank] * values[:rank]) @ v[:rank]
        method = LowRank(rank=rank)
        back = method.decode(method.encode(array), "F32", shape)
        assert np.linalg.norm(back - best) <= 1e-5 * np.linalg.norm(array)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    ("parameters", "relative"),
    [
        ({"cast": "bf16"}, 2**-8), ({"int8": "row"}, 0.012), ({"int8": "channel"}, 0.012),
        ({"fp8": "e4m3"}, 0.05),
    ],
)  # fmt: skip
def test_errors_are_as_small_as_the_format_allows(
    dtype: str, parameters: Mapping[str, str], relative: float
) -> None:
    array = normal(dtype=FLOATS[dtype])
    method = method_of(parameters)
    back = method.decode(method.encode(array), dtype, array.shape)
    assert compare(array, back).relative_l2 <= relative


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_channel_scales_stand_beside_the_weight(kind: Any, dtype: str) -> None:
    array = normal(dtype=FLOATS[dtype])
    array[0] = 0
    array[1] = FLOATS[dtype](2**-24)  # its scale would round to nothing in F16
    parts = Channel(kind).encode(array)
    assert parts["_scale"].shape == (array.shape[0], 1)
    assert parts["_scale"].dtype == array.dtype
    assert (parts["_scale"].astype(np.float32) > 0).all()
    if kind == "fp8":
        codes = parts[""].astype(np.float32)
        assert np.abs(codes).max() == 448
        return
    assert (parts["_packed"].dtype, parts["_packed"].shape) == (np.int32, (96, 16))
    assert parts["_shape"].tolist() == [96, 64]
    codes = parts["_packed"].view(np.uint8).astype(int) - 128
    assert np.abs(codes).max() == 127


@given(MATRICES, st.floats(0.01, 0.99))
def test_pruning_drops_the_smallest(matrix: np.ndarray, share: float) -> None:
    method = Prune("magnitude", share)
    back = method.decode(method.encode(matrix), "F32", matrix.shape)
    kept = back != 0
    assert (back[kept] == matrix[kept]).all()
    assert np.count_nonzero(~kept) >= int(matrix.size * share)
    dropped = np.abs(matrix[~kept])
    if kept.any() and dropped.size:
        assert dropped.max() <= np.abs(matrix[kept]).min()


@given(MATRICES)
def test_two_of_four_stay(matrix: np.ndarray) -> None:
    method = Prune("2:4")
    parts = method.encode(matrix)
    assert parts[".values"].size == matrix.size // 2
    back = method.decode(parts, "F32", matrix.shape).reshape(-1, 4)
    for before, after in zip(np.abs(matrix).reshape(-1, 4), np.abs(back), strict=True):
        assert sorted(after)[2:] == sorted(before)[2:]
        assert sorted(after)[:2] == [0, 0]


def test_low_rank_finds_a_low_rank() -> None:
    rng = np.random.default_rng(1)
    array = (rng.standard_normal((80, 5)) @ rng.standard_normal((5, 60))).astype(np.float32)
    for method in (LowRank(energy=0.999999), LowRank(rank=5)):
        parts = method.encode(array)
        assert parts[".left"].shape == (80, 5)
        assert compare(array, method.decode(parts, "F32", array.shape)).relative_l2 < 1e-3
    full = LowRank(energy=0.9999).encode(normal(80, 60))
    assert list(full) == [""], "factors that are not smaller are not stored"


@pytest.mark.parametrize("parameters", ALL[2:5] + ALL[7:], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_has_no_scale_is_refused(parameters: Mapping[str, str], value: float) -> None:
    array = normal()
    array[5, 5] = value
    with pytest.raises(UsageError, match="--keep"):
        method_of(parameters).encode(array)


def test_pruning_keeps_nan() -> None:
    array = normal()
    array[5, 5] = math.nan
    for method in (Prune("magnitude", 0.9), Prune("2:4")):
        assert math.isnan(method.decode(method.encode(array), "F32", array.shape)[5, 5])


@pytest.mark.parametrize(
    "parameters",
    [
        {}, {"cast": "bf16", "fp8": "e4m3"}, {"cast": "f8"}, {"int8": "tensor"}, {"prune": "3:4"},
        {"prune": "magnitude:1.5"}, {"prune": "magnitude:x"}, {"low-rank": "rank:0"},
        {"low-rank": "energy:nan"}, {"zip": "9"},
    ],
    ids=str,
)  # fmt: skip
def test_methods_that_do_not_exist_are_refused(parameters: Mapping[str, str]) -> None:
    with pytest.raises(UsageError):
        method_of(parameters)


def test_what_is_covered() -> None:
    weight, bias = TensorSpec("a.weight", "F32", (8, 8)), TensorSpec("a.bias", "F32", (8,))
    codes = TensorSpec("a.weight", "I8", (8, 8))
    for parameters in ALL:
        method = method_of(parameters)
        assert method.covers(weight), parameters
        assert not method.covers(codes), parameters
        assert method.covers(bias) == ("cast" in parameters), parameters
    cast = method_of({"cast": "bf16"})
    assert not cast.covers(TensorSpec("w", "BF16", (2, 2)))
    assert cast.covers(TensorSpec("w", "F16", (2, 2)))
    assert not method_of({"cast": "f32"}).covers(TensorSpec("w", "BF16", (2, 2)))


@given(
    hnp.arrays(np.float64, st.integers(0, 40), elements=st.floats(-1e3, 1e3)),
    st.floats(-1, 1),
)
def test_errors_are_exact(original: np.ndarray, by: float) -> None:
    moved = original + by
    found = compare(original, moved)
    differences = [
        Fraction(float(a)) - Fraction(float(b)) for a, b in zip(original, moved, strict=True)
    ]
    assert found.elements == original.size
    assert found.max_abs == pytest.approx(float(max(map(abs, differences), default=0)), rel=1e-12)
    squared = float(sum(d * d for d in differences))
    assert found.squared_error == pytest.approx(squared, rel=1e-9, abs=1e-300)
    if squared > 1e-290 and found.squared_norm:  # below it, a double has lost most of its digits
        expected = 10 * math.log10(found.squared_norm / squared)
        assert found.snr_db == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_errors_of_special_values() -> None:
    a = np.array([math.nan, math.inf, -0.0, 1.0], np.float32)
    assert compare(a, a).max_abs == 0
    assert compare(a, a).snr_db == math.inf
    assert compare(a, np.array([math.nan, 3, 0, 1], np.float32)).max_abs == math.inf
    assert compare(a, np.array([0, math.inf, 0, 1], np.float32)).relative_l2 == math.inf
    assert compare(np.zeros(3), np.ones(3)).snr_db == -math.inf
    both = total([compare(np.zeros(3), np.ones(3)), compare(np.full(2, 3.0), np.full(2, 2.5))])
    assert (both.elements, both.max_abs, both.squared_error, both.squared_norm) == (5, 1, 3.5, 18)
