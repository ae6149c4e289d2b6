"""Arrays to bytes and back: strides, byte orders, and memory of the caller's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tierstore.errors import UsageError
from tierstore.format.dtypes import DTYPES
from tierstore.modelstore.loading.arrays import (
    ArrayBytes,
    array_bytes,
    as_array,
    buffer_of_tensor,
    writable_bytes,
)


def read(source: ArrayBytes, nbytes: int, step: int) -> bytes:
    out = bytearray(nbytes)
    for at in range(0, nbytes, step):
        source.read_into(at, memoryview(out)[at : at + step])
    return bytes(out)


def arrays(dtype: Any) -> dict[str, np.ndarray]:
    base = np.arange(7 * 6 * 8).reshape(7, 6, 8).astype(dtype)
    return {
        "contiguous": base,
        "transposed": base.T,
        "Fortran": np.asfortranarray(base),
        "every second": base[::2, :, ::-3],
        "reversed": base[::-1],
        "broadcast": np.broadcast_to(base[:1], (7, 6, 8)),
        "column": base[:, 3, 2],
        "scalar": base[2, 3, 4],
        "0-d": np.array(base[2, 3, 4]),
        "empty": base[:0],
        "empty inside": base[:, :0],
        "read-only": np.frombuffer(base.tobytes(), base.dtype).reshape(base.shape),
    }


NUMPY = [np.bool_, np.uint8, np.int16, np.float16, np.float64, np.complex64, ml_dtypes.bfloat16]
FORMS = list(arrays(np.uint8))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", NUMPY)
def test_any_strides_give_the_bytes_in_c_order(dtype: Any, form: str) -> None:
    array = np.asarray(arrays(dtype)[form])
    source = array_bytes("w", arrays(dtype)[form])
    assert source.shape == array.shape
    assert DTYPES[source.dtype].bits == 8 * array.itemsize
    plain = array.tobytes()
    for step in (array.itemsize, 24 * array.itemsize, max(array.nbytes, 1)):
        assert read(source, array.nbytes, step) == plain


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.arange(100, dtype=np.float32)
    source = array_bytes("w", array)
    array[0] = 42
    assert read(source, 4, 4) == np.float32(42).tobytes()


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">u8", ">c8"])
def test_big_endian_is_refused_with_the_way_out(dtype: str) -> None:
    with pytest.raises(UsageError, match=r"'w'.*newbyteorder"):
        array_bytes("w", np.zeros(3, dtype))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3, object), np.array(["a"]), np.zeros(3, "M8[s]"), np.zeros(3, np.complex128),
        np.zeros(3, [("a", "f4")]), np.zeros(3, np.longdouble), [1.0, 2.0], "text", None, 3.5,
    ],
    ids=repr,
)  # fmt: skip
def test_what_has_no_safetensors_dtype_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="'w'"):
        array_bytes("w", value)


def test_sub_byte_dtypes_stay_packed_bytes() -> None:
    data = np.arange(6, dtype=np.uint8)
    assert as_array(data, "F4", (3, 4)).shape == (6,)


TARGETS: dict[str, Any] = {
    "numpy": lambda: np.empty(4, np.float32),
    "numpy of another shape": lambda: np.empty((2, 2), np.float32),
    "numpy bytes": lambda: np.empty(16, np.uint8),
    "bf16": lambda: np.empty(8, ml_dtypes.bfloat16),
    "part": lambda: np.empty((5, 4), np.float32)[2],
    "bytearray": lambda: bytearray(16),
    "memoryview": lambda: memoryview(bytearray(20))[2:18],
    "0-d": lambda: np.empty((), np.complex128),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_memory_that_can_be_read_into(kind: str) -> None:
    target = TARGETS[kind]()
    view = writable_bytes("w", target, 16)
    view[:] = bytes(range(16))
    data = target.tobytes() if isinstance(target, np.ndarray) else bytes(target)
    assert data == bytes(range(16))


def frozen() -> np.ndarray:
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    return array


REFUSED: dict[str, Any] = {
    "too small": lambda: np.empty(3, np.float32),
    "too large": lambda: bytearray(17),
    "strided": lambda: np.empty((4, 2), np.float32)[:, 0],
    "Fortran": lambda: np.empty((2, 2), np.float32, order="F"),
    "strided bf16": lambda: np.empty(16, ml_dtypes.bfloat16)[::2],
    "read-only": frozen,
    "bytes": lambda: bytes(16),
    "list": lambda: [0.0] * 4,
    "nothing": lambda: None,
    "objects": lambda: np.empty(2, object),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_memory_that_cannot_be_read_into_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match="'w'"):
        writable_bytes("w", REFUSED[kind](), 16)


@pytest.mark.parametrize("target", [np.empty(0, np.float32), bytearray()])
def test_a_tensor_of_no_bytes_needs_no_memory(target: Any) -> None:
    assert len(writable_bytes("w", target, 0)) == 0


FITTING: dict[str, Any] = {
    "numpy": lambda: np.zeros((2, 3), np.float32),
    "buffer": lambda: np.zeros((2, 3), np.float32).data,
    "raw numpy": lambda: np.zeros(24, np.uint8),
    "raw bytearray": lambda: bytearray(24),
    "raw memoryview": lambda: memoryview(bytearray(30))[6:],
}


@pytest.mark.parametrize("kind", FITTING)
def test_a_buffer_has_the_tensors_dtype_and_shape_or_is_raw_bytes(kind: str) -> None:
    target = FITTING[kind]()
    view = buffer_of_tensor("w", target, "F32", (2, 3))
    view[:] = bytes(range(24))
    assert memoryview(target).tobytes() == bytes(range(24))


OTHER: dict[str, tuple[Any, str]] = {
    "other dtype": (lambda: np.zeros((2, 3), np.int32), r"I32 \[2, 3\]"),
    "other size": (lambda: np.zeros((2, 3), np.float64), r"F64 \[2, 3\]"),
    "two for one": (lambda: np.zeros((2, 6), np.float16), r"F16 \[2, 6\]"),
    "bf16": (lambda: np.zeros((2, 6), ml_dtypes.bfloat16), r"BF16 \[2, 6\]"),
    "transposed": (lambda: np.zeros((3, 2), np.float32), r"F32 \[3, 2\]"),
    "flat": (lambda: np.zeros(6, np.float32), r"F32 \[6\]"),
    "big-endian": (lambda: np.zeros((2, 3), ">f4"), r">f4 \[2, 3\]"),
    "complex128": (lambda: np.zeros((1, 1), np.complex128), r"complex128 \[1, 1\]"),
    "raw in two dimensions": (lambda: np.zeros((2, 12), np.uint8), r"U8 \[2, 12\]"),
    "raw of signed bytes": (lambda: np.zeros(24, np.int8), r"I8 \[24\]"),
    "raw and too short": (lambda: bytearray(23), r"U8 \[23\]"),
    "a buffer of floats": (lambda: np.zeros(6, np.float32).data, r"F32 \[6\]"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_a_buffer_of_another_dtype_or_shape_is_refused(kind: str) -> None:
    make, has = OTHER[kind]
    target = make()
    wanted = rf"the buffer for 'w' is {has}, the tensor is F32 \[2, 3\]: .* 24 raw bytes"
    with pytest.raises(UsageError, match=wanted):
        buffer_of_tensor("w", target, "F32", (2, 3))
    assert not np.asarray(target).any(), "nothing was written"


@pytest.mark.parametrize(
    ("dtype", "shape", "target"),
    [
        ("BF16", (2, 2), np.zeros((2, 2), ml_dtypes.bfloat16)),
        ("F8_E4M3", (3,), np.zeros(3, ml_dtypes.float8_e4m3fn)),
        ("F4", (3, 4), np.zeros(6, np.uint8)),
        ("BOOL", (), np.zeros((), np.bool_)),
        ("F32", (0, 3), np.zeros((0, 3), np.float32)),
        ("F32", (0, 3), bytearray()),
    ],
)
def test_buffers_of_other_dtypes(dtype: str, shape: tuple[int, ...], target: Any) -> None:
    assert (
        len(buffer_of_tensor("w", target, dtype, shape))
        == memoryview(target if isinstance(target, bytearray) else target.tobytes()).nbytes
    )


@pytest.mark.parametrize("target", [[0.0] * 6, None, bytes(24), frozen()])
def test_what_cannot_be_written_to_is_no_buffer(target: Any) -> None:
    with pytest.raises(UsageError, match="'w'"):
        buffer_of_tensor("w", target, "F32", (2, 3) if not isinstance(target, np.ndarray) else (4,))
