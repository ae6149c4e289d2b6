"""Torch tensors to bytes and back: strides, views computed late, memory of the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.masked import masked_tensor

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
    fresh = tensor.reshape(-1).clone(memory_format=torch.contiguous_format)
    return fresh.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize(
    "form", ["contiguous", "transposed", "strided", "scalar", "one strided", "column", "empty"]
)
def test_every_torch_dtype_round_trips(name: str, form: str) -> None:
    dtype = getattr(torch, name)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.arange(12 * 10 * size, dtype=torch.int64).remainder(2 if name == "bool" else 251)
    base = raw.to(torch.uint8).view(dtype).reshape(12, 10)
    tensor = {
        "contiguous": base, "transposed": base.T, "strided": base[1::3, ::2],
        "scalar": base[2, 3], "one strided": base[1:2, ::10], "column": base[1::2, 4],
        "empty": base[:0],
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


@pytest.mark.parametrize("stride", [0, 1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.complex64])
def test_one_element_may_have_any_stride(stride: int, dtype: torch.dtype) -> None:
    tensor = torch.full((1, 1), 7).to(dtype).as_strided((1, 1), (stride, stride))
    size = tensor.element_size()
    assert (
        read(array_bytes("w", tensor), size, size)
        == torch.tensor([7]).to(dtype).view(torch.uint8).numpy().tobytes()
    )
    cut = torch.arange(6).to(dtype)[::6]
    buffer_of_tensor("w", cut, array_bytes("w", cut).dtype, (1,))[:] = torch_bytes(
        torch.tensor([7]).to(dtype)
    )
    assert cut.tolist() == [7]


class Named(torch.Tensor):
    """A subclass that has nothing of its own but answers to no function."""

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise AssertionError("values are taken as they lie in memory")


def test_a_subclass_that_lies_in_memory_is_saved_as_it_lies() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    with torch._C.DisableTorchFunctionSubclass():
        named = tensor.as_subclass(Named)
        source = array_bytes("w", named)
    assert read(source, 24, 4) == tensor.contiguous().numpy().tobytes()


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(3)


NO_PLAIN_BYTES: dict[str, tuple[Any, str]] = {
    "complex128": (lambda: torch.zeros(3, dtype=torch.complex128), "complex128.*convert"),
    "sparse": (lambda: torch.eye(3).to_sparse(), r"sparse_coo.*\.to_dense\(\)"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        "qint8.*convert",
    ),
    "meta": (lambda: torch.empty(3, device="meta"), "meta device"),
    "fake": (fake, "a FakeTensor, which has no values.*FakeTensorMode"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        r"a nested tensor.*\.unbind\(\)",
    ),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
        r"a nested tensor.*\.unbind\(\)",
    ),
    "masked": (
        lambda: masked_tensor(torch.ones(2), torch.tensor([True, False])),
        "a MaskedTensor.*plain tensor",
    ),
}


@pytest.mark.parametrize("kind", NO_PLAIN_BYTES)
@pytest.mark.filterwarnings("ignore")
def test_torch_tensors_without_plain_bytes_are_refused(kind: str) -> None:
    make, why = NO_PLAIN_BYTES[kind]
    with pytest.raises(UsageError, match=f"'w'.*{why}"):
        array_bytes("w", make())


@pytest.fixture
def distributed(tmp_path: Path) -> Iterator[torch.Tensor]:
    where = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        yield distribute_tensor(torch.arange(4.0), mesh, [Shard(0)])
    finally:
        torch.distributed.destroy_process_group()


def test_a_part_of_a_distributed_tensor_is_not_taken_for_the_whole(
    distributed: torch.Tensor,
) -> None:
    with pytest.raises(UsageError, match=r"tensor 'w' is a DTensor.*give its \.full_tensor\(\)"):
        array_bytes("w", torch.nn.Parameter(distributed))
    with pytest.raises(
        UsageError, match=r"'w' is a DTensor.*: give a contiguous tensor on the CPU"
    ):
        writable_bytes("w", distributed, 16)
    whole: Any = distributed
    assert read(array_bytes("w", whole.full_tensor()), 16, 4) == torch_bytes(torch.arange(4.0))


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
    "negated": lambda: torch._neg_view(torch.empty(4)),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "fake": fake,
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
