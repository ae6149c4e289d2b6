"""Torch tensors to bytes and back: strides, views computed late, memory of the caller's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.test_modelstore_arrays import read
from tierstore.errors import UsageError
from tierstore.modelstore.loading.arrays import (
    array_bytes,
    as_array,
    as_torch,
    buffer_of_tensor,
    writable_bytes,
)

TORCH = [
    "bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16",
    "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2",
    "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz",
]  # fmt: skip


def torch_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("form", ["contiguous", "transposed", "strided", "scalar", "empty"])
def test_every_torch_dtype_round_trips(name: str, form: str) -> None:
    dtype = getattr(torch, name)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.arange(12 * 10 * size, dtype=torch.int64).remainder(2 if name == "bool" else 251)
    base = raw.to(torch.uint8).view(dtype).reshape(12, 10)
    tensor = {
        "contiguous": base, "transposed": base.T, "strided": base[1::3, ::2],
        "scalar": base[2, 3], "empty": base[:0],
    }[form]  # fmt: skip
    source = array_bytes("w", tensor)
    assert source.shape == tuple(tensor.shape)
    plain = read(source, tensor.numel() * size, 4 * size)
    assert plain == torch_bytes(tensor)
    back = as_torch(np.frombuffer(bytearray(plain), np.uint8), source.dtype, source.shape)
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert torch_bytes(back) == plain
    array = as_array(np.frombuffer(plain, np.uint8), source.dtype, source.shape)
    assert array.tobytes() == plain


def test_lazy_conjugates_and_negations_are_resolved() -> None:
    value = torch.tensor([[1 + 2j, 3 - 4j], [5j, 6 + 0j]], dtype=torch.complex64)
    for tensor in (value.conj(), value.conj().imag, value.mH, value.conj().T):
        source = array_bytes("w", tensor)
        expected = tensor.resolve_conj().resolve_neg().contiguous().numpy().tobytes()
        assert read(source, len(expected), 8) == expected


def test_parameters_and_gradients_are_only_data() -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0))
    assert read(array_bytes("w", parameter), 24, 8) == np.arange(6, dtype=np.float32).tobytes()
    assert array_bytes("w", parameter * 2).shape == (6,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, dtype=torch.complex128),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        lambda: torch.empty(3, device="meta"),
    ],
    ids=["complex128", "sparse", "quantized", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_torch_tensors_without_plain_bytes_are_refused(make: Any) -> None:
    with pytest.raises(UsageError, match="'w'"):
        array_bytes("w", make())


def test_sub_byte_dtypes_stay_packed_bytes() -> None:
    data = np.arange(6, dtype=np.uint8)
    assert as_torch(data, "F6_E2M3", (8,)).dtype == torch.uint8


TARGETS: dict[str, Any] = {
    "torch": lambda: torch.empty(2, 2),
    "torch bf16": lambda: torch.empty(8, dtype=torch.bfloat16),
    "parameter": lambda: torch.nn.Parameter(torch.empty(4)),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_memory_that_can_be_read_into(kind: str) -> None:
    target = TARGETS[kind]()
    view = writable_bytes("w", target, 16)
    view[:] = bytes(range(16))
    assert torch_bytes(target.detach()) == bytes(range(16))


REFUSED: dict[str, Any] = {
    "strided": lambda: torch.empty(4, 2)[:, 0],
    "conjugate": lambda: torch.empty(2, dtype=torch.complex64).conj(),
    "negated": lambda: torch.empty(2, dtype=torch.complex64).conj().imag,
    "sparse": lambda: torch.eye(4).to_sparse(),
    "meta": lambda: torch.empty(4, device="meta"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_memory_that_cannot_be_read_into_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match="'w'"):
        writable_bytes("w", REFUSED[kind](), 16)


def test_a_tensor_of_no_bytes_needs_no_memory() -> None:
    assert len(writable_bytes("w", torch.empty(0), 0)) == 0


def test_a_buffer_has_the_tensors_dtype_and_shape_or_is_raw_bytes() -> None:
    for target in (torch.zeros(2, 2, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.uint8)):
        buffer_of_tensor("w", target, "BF16", (2, 2))[:] = bytes(range(8))
        assert torch_bytes(target) == bytes(range(8))


@pytest.mark.parametrize(
    ("target", "has"),
    [
        (torch.zeros(2, 2, dtype=torch.float16), r"F16 \[2, 2\]"),
        (torch.zeros(4, dtype=torch.bfloat16), r"BF16 \[4\]"),
        (torch.zeros(2, 4, dtype=torch.uint8), r"U8 \[2, 4\]"),
        (torch.zeros(1, dtype=torch.complex64), r"C64 \[1\]"),
    ],
)
def test_a_buffer_of_another_dtype_or_shape_is_refused(target: torch.Tensor, has: str) -> None:
    with pytest.raises(UsageError, match=rf"'w' is {has}, the tensor is BF16 \[2, 2\]"):
        buffer_of_tensor("w", target, "BF16", (2, 2))
    assert not target.any(), "nothing was written"
