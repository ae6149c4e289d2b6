"""The dtypes of safetensors 0.8: sizes, numpy names, and the byte that names them in a frame.

The table has one row per variant of the ``Dtype`` enum of the safetensors library, in the enum's
order: ``serialize`` sorts tensors by it (descending), so the order is part of the format.
``DTYPE_CODES`` is part of our own format: a code is never changed nor used again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tierstore.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One safetensors dtype.

    Attributes:
        bits: Bits of one element.
        is_float: Whether it is a real or complex floating-point type.
        numpy: The name of its numpy or ml_dtypes dtype; ``None`` when there is none.
    """

    name: str
    bits: int
    is_float: bool
    numpy: str | None


_ROWS = (
    DType("BOOL", 8, False, "bool"),
    DType("F4", 4, True, None),
    DType("F6_E2M3", 6, True, None),
    DType("F6_E3M2", 6, True, None),
    DType("U8", 8, False, "uint8"),
    DType("I8", 8, False, "int8"),
    DType("F8_E5M2", 8, True, "float8_e5m2"),
    DType("F8_E4M3", 8, True, "float8_e4m3fn"),
    DType("F8_E8M0", 8, True, "float8_e8m0fnu"),
    DType("F8_E4M3FNUZ", 8, True, "float8_e4m3fnuz"),
    DType("F8_E5M2FNUZ", 8, True, "float8_e5m2fnuz"),
    DType("I16", 16, False, "int16"),
    DType("U16", 16, False, "uint16"),
    DType("F16", 16, True, "float16"),
    DType("BF16", 16, True, "bfloat16"),
    DType("I32", 32, False, "int32"),
    DType("U32", 32, False, "uint32"),
    DType("F32", 32, True, "float32"),
    DType("C64", 64, True, "complex64"),
    DType("F64", 64, True, "float64"),
    DType("I64", 64, False, "int64"),
    DType("U64", 64, False, "uint64"),
)

DTYPES: dict[str, DType] = {row.name: row for row in _ROWS}
"""Every dtype by its safetensors name, in the order of the library's enum."""

DTYPE_CODES: dict[str, int] = {
    "": 0,
    "BOOL": 1,
    "U8": 2,
    "I8": 3,
    "I16": 4,
    "U16": 5,
    "I32": 6,
    "U32": 7,
    "I64": 8,
    "U64": 9,
    "F16": 16,
    "BF16": 17,
    "F32": 18,
    "F64": 19,
    "C64": 20,
    "F8_E5M2": 32,
    "F8_E4M3": 33,
    "F8_E8M0": 34,
    "F8_E4M3FNUZ": 35,
    "F8_E5M2FNUZ": 36,
    "F6_E2M3": 48,
    "F6_E3M2": 49,
    "F4": 50,
}
"""The byte that stands for a dtype in a frame's head, fixed for ever; 0 for bytes of no tensor."""

DTYPE_OF_CODE: dict[int, str] = {code: name for name, code in DTYPE_CODES.items()}
"""The reverse of ``DTYPE_CODES``."""

_BY_NUMPY_NAME = {row.numpy: row.name for row in _ROWS if row.numpy is not None}


def _row(name: str) -> DType:
    row = DTYPES.get(name)
    if row is None:
        raise UsageError(
            f"dtype {name[:40]!r} is not one of safetensors: use one of {', '.join(DTYPES)}"
        )
    return row


def dtype_bits(name: str) -> int:
    """Return the bits of one element; ``UsageError`` when safetensors has no such dtype."""
    return _row(name).bits


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the little-endian numpy dtype of a safetensors dtype.

    Raises ``UsageError`` when safetensors has no such dtype, or numpy has none (F4, F6_*).
    """
    import numpy as np

    row = _row(name)
    if row.numpy is None:
        raise UsageError(
            f"dtype {name} has no numpy counterpart ({row.bits}-bit elements are packed): "
            "read the tensor's bytes instead"
        )
    if hasattr(np, row.numpy):
        return np.dtype(row.numpy).newbyteorder("<")
    import ml_dtypes

    scalar: type[np.generic] = getattr(ml_dtypes, row.numpy)
    return np.dtype(scalar)


def name_of(dtype: np.dtype[Any]) -> str:
    """Return the safetensors name of a numpy (or ml_dtypes) dtype.

    Raises ``UsageError`` for a dtype that safetensors does not have, and for big-endian ones: the
    format is little-endian and nothing here swaps bytes unasked.
    """
    name = _BY_NUMPY_NAME.get(dtype.name)
    if name is None:
        raise UsageError(f"numpy dtype {str(dtype)[:80]!r} has no safetensors counterpart: cast it")
    order = dtype.byteorder
    if order == ">" or (order == "=" and sys.byteorder == "big" and dtype.itemsize > 1):
        raise UsageError(
            f"numpy dtype {str(dtype)!r} is big-endian: use .astype(dtype.newbyteorder('<'))"
        )
    return name
