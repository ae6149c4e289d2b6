"""Converts between arrays of numpy, ml_dtypes or torch and plain bytes with a safetensors dtype."""

from __future__ import annotations

import contextlib
import mmap
import sys
from abc import ABC, abstractmethod
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tierstore.deferred import np
from tierstore.errors import UsageError
from tierstore.format.dtypes import DTYPES, name_of, numpy_dtype

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from tierstore.deferred import Bytes

_TORCH_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16",
    "int32": "I32", "uint32": "U32", "int64": "I64", "uint64": "U64", "float16": "F16",
    "bfloat16": "BF16", "float32": "F32", "float64": "F64", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_TORCH_NAMES = {ours: torch for torch, ours in _TORCH_DTYPES.items()}


_OWN_MAPPING_BYTES = 32 << 20
"""Bytes from which malloc maps memory and never keeps it (glibc's DEFAULT_MMAP_THRESHOLD_MAX)."""


class ArrayBytes(ABC):
    """An array's plain bytes in C order, little-endian, read by range."""

    dtype: str
    shape: tuple[int, ...]

    @abstractmethod
    def read_into(self, start: int, out: memoryview) -> None:
        """Copy the bytes from offset ``start`` into ``out``; both begin and end with an element."""


class _Contiguous(ArrayBytes):
    def __init__(self, dtype: str, shape: tuple[int, ...], data: Bytes) -> None:
        self.dtype, self.shape, self._data = dtype, shape, data

    def read_into(self, start: int, out: memoryview) -> None:
        np.frombuffer(out, np.uint8)[:] = self._data[start : start + len(out)]


class _Strided(ArrayBytes):
    """Gathers bytes range by range, so that a big transposed view is never copied as a whole."""

    def __init__(self, dtype: str, array: npt.NDArray[Any]) -> None:
        self.dtype, self.shape, self._array = dtype, array.shape, array

    def read_into(self, start: int, out: memoryview) -> None:
        item = self._array.itemsize
        part = self._array.flat[start // item : (start + len(out)) // item]
        np.frombuffer(out, np.uint8)[:] = part.view(np.uint8)


class _Torch(ArrayBytes):
    """Copies a tensor from its device range by range.

    One that is not contiguous there is copied as a whole, but only while it is read.
    """

    def __init__(self, dtype: str, tensor: torch.Tensor) -> None:
        self.dtype, self.shape = dtype, tuple(tensor.shape)
        self._tensor = tensor
        self._copy: torch.Tensor | None = None

    def read_into(self, start: int, out: memoryview) -> None:

        if self._copy is None:
            self._copy = self._tensor.reshape(-1)  # mostly a view
        item = self._tensor.element_size()
        part = self._copy[start // item : (start + len(out)) // item]
        if start + len(out) == self._tensor.numel() * item:
            self._copy = None
        plain = part.resolve_conj().resolve_neg().cpu().contiguous()
        np.frombuffer(out, np.uint8)[:] = _bytes_of(plain).numpy()


def array_bytes(name: str, value: Any) -> ArrayBytes:
    """Return the bytes of a numpy array or torch tensor, uncopied where it is contiguous.

    A value that is an ``ArrayBytes`` already is returned as it is.

    Raises:
        UsageError: ``value`` is none of these, or its dtype has no safetensors name.
    """
    if isinstance(value, ArrayBytes):
        return value
    torch_module = sys.modules.get("torch")
    if torch_module is not None and isinstance(value, torch_module.Tensor):
        return _from_torch(name, value)
    if not isinstance(value, np.ndarray | np.generic):
        raise UsageError(
            f"tensor {name!r} is a {type(value).__name__}; give a numpy array or a torch tensor"
        )
    array = np.asarray(value)
    try:
        dtype = name_of(array.dtype)
    except UsageError as error:
        raise UsageError(f"tensor {name!r}: {error}") from None
    if not array.flags.c_contiguous:
        return _Strided(dtype, array)
    return _Contiguous(dtype, array.shape, array.reshape(-1).view(np.uint8))


def _from_torch(name: str, tensor: torch.Tensor) -> ArrayBytes:
    dtype = _TORCH_DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if why := not_plain(tensor):
        raise UsageError(f"tensor {name!r} is {why}")
    if dtype is None:
        raise UsageError(
            f"tensor {name!r}: safetensors has no form for {tensor.dtype}; convert it first"
        )
    return _Torch(dtype, _of_plain_class(tensor.detach()))


def not_plain(tensor: torch.Tensor) -> str | None:
    """Return what a torch tensor is, and what to give instead, if its values lie in no memory.

    ``None`` is for one whose elements lie in memory at its strides.
    """
    import torch

    kind = type(tensor).__name__
    why = None
    if callable(getattr(tensor, "full_tensor", None)):
        why = f"a {kind}, of which every rank has a part: give its .full_tensor()"
    elif tensor.is_nested:
        why = "a nested tensor: give the tensors in it, as from .unbind(), by a name each"
    elif kind == "FakeTensor":
        why = "a FakeTensor, which has no values: make it outside of FakeTensorMode"
    elif type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        why = f"a {kind}, whose values only its own class knows: give a plain tensor made of it"
    elif tensor.layout != torch.strided:
        why = f"of layout {tensor.layout}: give a dense tensor, as from .to_dense()"
    elif tensor.is_meta:
        why = "on the meta device and has no data"
    return why


def _of_plain_class(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor as one of torch's own class: others may compute what they like."""
    import torch

    if type(tensor) is torch.Tensor:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """View a contiguous tensor as bytes; one of a single element may have any stride."""
    import torch

    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def new_bytes(nbytes: int) -> Bytes:
    """Return uninitialized memory for ``nbytes`` plain bytes.

    Large sizes are mapped: numpy holds the interpreter lock while the kernel takes memory back,
    which stops every thread for 100 ms per GiB of small pages. Unmapping releases the lock.
    """
    if nbytes < _OWN_MAPPING_BYTES:
        return np.empty(nbytes, np.uint8)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def as_array(data: Bytes, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """View plain bytes as an array; sub-byte dtypes stay packed bytes in one dimension."""
    if DTYPES[dtype].numpy is None:
        return data
    return data.view(numpy_dtype(dtype)).reshape(shape)


def as_torch(data: Bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """View plain bytes as a torch tensor that owns them; sub-byte dtypes stay packed bytes.

    Raises:
        UsageError: Torch is not installed, or too old for the dtype.
    """
    try:
        import torch
    except ImportError:
        raise UsageError("torch is not installed: pip install 'tierstore[torch]'") from None
    if DTYPES[dtype].numpy is None or not data.nbytes:
        return typed_torch(torch.from_numpy(data), dtype, shape)
    # one view less than typed_torch makes, or two: of thousands of tensors that counts
    flat = torch.frombuffer(data, dtype=_torch_dtype(torch, dtype))
    return flat if len(shape) == 1 else flat.view(shape)


def _torch_dtype(library: ModuleType, dtype: str) -> torch.dtype:
    kind: torch.dtype | None = getattr(library, _TORCH_NAMES.get(dtype, ""), None)
    if kind is None:
        raise UsageError(f"this torch ({library.__version__}) has no dtype for {dtype}; upgrade it")
    return kind


def typed_torch(plain: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """View plain bytes (uint8, one dimension, on any device) as a tensor, like ``as_torch``."""
    import torch

    if DTYPES[dtype].numpy is None:
        return plain
    kind = _torch_dtype(torch, dtype)
    if not plain.numel():
        return torch.empty(shape, dtype=kind, device=plain.device)
    return plain.view(kind).reshape(shape)


def buffer_of_tensor(name: str, target: Any, dtype: str, shape: tuple[int, ...]) -> memoryview:
    """Return the memory of a caller's array, tensor or buffer that a tensor is read into.

    Its dtype and shape are those of the tensor, or it is raw bytes: ``uint8`` in one dimension.

    Args:
        name: The tensor's name, for messages.
        target: The array, tensor or buffer.
        dtype: The tensor's safetensors dtype.
        shape: The tensor's shape.

    Raises:
        UsageError: It has another dtype or shape, or cannot be written to as it lies.
    """
    nbytes = prod(shape) * DTYPES[dtype].bits // 8
    found = _dtype_and_shape(target)
    if found not in {None, (dtype, shape), ("U8", (nbytes,))}:
        assert found is not None
        raise UsageError(
            f"the buffer for {name!r} is {found[0]} {list(found[1])}, the tensor is {dtype} "
            f"{list(shape)}: give a buffer of that dtype and shape, or {nbytes} raw bytes (uint8 "
            "in one dimension)"
        )
    return writable_bytes(name, target, nbytes)


def _dtype_and_shape(target: Any) -> tuple[str, tuple[int, ...]] | None:
    """Return what elements a buffer holds; ``None`` for what is none."""
    torch_module = sys.modules.get("torch")
    if torch_module is not None and isinstance(target, torch_module.Tensor):
        name = str(target.dtype).removeprefix("torch.")
        return _TORCH_DTYPES.get(name, name), tuple(target.shape)
    try:
        array = target if isinstance(target, np.ndarray) else np.asarray(memoryview(target))
    except (TypeError, ValueError, BufferError):
        return None
    try:
        return name_of(array.dtype), array.shape
    except UsageError:
        return str(array.dtype), array.shape


def writable_bytes(name: str, target: Any, nbytes: int) -> memoryview:
    """Return the memory of a caller's array, tensor or buffer, to read into.

    Raises:
        UsageError: The memory is read-only, not contiguous, not on the CPU, or of another size.
    """
    torch_module = sys.modules.get("torch")
    if torch_module is not None and isinstance(target, torch_module.Tensor):
        if why := not_plain(target):
            kind = why.partition(":")[0]
            raise UsageError(
                f"the buffer for {name!r} is {kind}: give a contiguous tensor on the CPU"
            )
        target = _of_plain_class(target.detach())
        lazy = target.is_conj() or target.is_neg()
        if target.device.type != "cpu" or not target.is_contiguous() or lazy:
            raise UsageError(f"the buffer for {name!r} must be a contiguous tensor on the CPU")
        target = _bytes_of(target).numpy()
    try:
        if isinstance(target, np.ndarray) and target.flags.c_contiguous:
            target = target.reshape(-1).view(np.uint8)  # ml_dtypes have no buffer protocol
        view = memoryview(target)
    except (TypeError, ValueError, BufferError):
        raise UsageError(
            f"the buffer for {name!r} is a {type(target).__name__}, into which nothing can be "
            "read; give a contiguous numpy array, a torch tensor or a bytearray"
        ) from None
    if view.readonly or not view.c_contiguous:
        raise UsageError(f"the buffer for {name!r} must be writable and contiguous")
    if view.nbytes != nbytes:
        raise UsageError(f"the buffer for {name!r} has {view.nbytes} bytes; it needs {nbytes}")
    return view.cast("B") if view.nbytes else memoryview(bytearray())
