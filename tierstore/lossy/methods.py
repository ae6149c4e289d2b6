"""Lossy methods: from a tensor to the parts that are stored, and back.

A method is pure and deterministic. Its parts are named by a suffix to the tensor's own name; the
empty suffix is the name itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tierstore.arguments import as_table, as_text, shown
from tierstore.errors import UsageError
from tierstore.shown import nearest

if TYPE_CHECKING:
    from tierstore.deferred import Array

Parts: TypeAlias = "Mapping[str, Array]"
_FLOATS: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
"""The dtypes that can be approximated, by their safetensors names."""

_CASTS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_SVD_BLOCK = 1 << 22
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, safetensors dtype and shape of a tensor that has not been read."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it has a dtype that can be approximated."""
        return self.dtype in _FLOATS

    @property
    def is_matrix(self) -> bool:
        """Whether it is a float matrix with rows and columns."""
        return self.dtype in _FLOATS and len(self.shape) == 2 and 0 not in self.shape


class Method(ABC):
    """A way to approximate tensors.

    Attributes:
        label: A short name such as ``int8-row``; also the default name of the variant.
    """

    label: str

    @abstractmethod
    def covers(self, tensor: TensorSpec) -> bool:
        """Return whether the method approximates this tensor; others are stored as they are."""

    @property
    def by_rows(self) -> bool:
        """Whether rows are encoded independently of each other.

        The parts of a tensor are then those of its blocks of rows, end to end, as long as each
        block has a multiple of eight rows.
        """
        return True

    @abstractmethod
    def encode_rows(self, array: Array) -> dict[str, Array]:
        """Return the parts of a block of rows by suffix, without those of ``whole``."""

    def whole(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return the parts that describe a whole tensor of this shape, by suffix."""
        return {}

    def encode(self, array: Array) -> dict[str, Array]:
        """Return all parts to store, by suffix."""
        return {**self.encode_rows(array), **self.whole(array.shape)}

    @abstractmethod
    def decode(self, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Array:
        """Return the approximation in the original's dtype and shape."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, str]:
        """The parameters from which ``method_of`` makes this method again."""


@dataclass(frozen=True)
class Cast(Method):
    """Rounding to a narrower float, to nearest, ties to even."""

    to: Literal["bf16", "f16", "f32"]

    @property
    def label(self) -> str:  # type: ignore[override]
        return self.to

    @property
    def parameters(self) -> dict[str, str]:
        return {"cast": self.to}

    def covers(self, tensor: TensorSpec) -> bool:
        wanted = _CASTS[self.to]
        if tensor.dtype not in _FLOATS or tensor.dtype == wanted:
            return False
        narrower = _BITS[tensor.dtype] > _BITS[wanted]
        return narrower or {tensor.dtype, wanted} == {"F16", "BF16"}

    def encode_rows(self, array: Array) -> dict[str, Array]:
        with np.errstate(over="ignore"):  # beyond the range: infinite, as the error then says
            return {"": array.astype(_FLOATS[_CASTS[self.to]])}

    def decode(self, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Array:
        return parts[""].astype(_FLOATS[dtype])


@dataclass(frozen=True)
class Int8Row(Method):
    """Eight bits a value with a scale and an offset for each row, in FBGEMM's fused layout.

    A row of D values becomes D + 8 bytes: D codes, then the scale and the offset as little-endian
    float32; ``value = code * scale + offset``, scale = (max - min) / 255, offset = min. This is
    what ``torch.ops.quantized.embedding_bag_byte_prepack`` gives and ``embedding_bag_byte`` reads.
    """

    label: str = "int8-row"

    @property
    def parameters(self) -> dict[str, str]:
        return {"int8": "row"}

    def covers(self, tensor: TensorSpec) -> bool:
        return tensor.is_matrix

    def encode_rows(self, array: Array) -> dict[str, Array]:
        rows = array.astype(np.float32)
        _refuse_infinite(rows)
        low = rows.min(axis=1, keepdims=True)
        width = rows.max(axis=1, keepdims=True) - low
        scale = (width / np.float32(255)).astype(np.float32)
        # a row of equal values has no width: its codes are 0 and its offset says all
        inverse = np.where(width > 0, np.float32(255) / (width + np.float32(1e-8)), np.float32(0))
        codes = np.rint((rows - low) * inverse.astype(np.float32)).clip(0, 255).astype(np.uint8)
        tail = np.concatenate([scale, low], axis=1).astype("<f4").view(np.uint8)
        return {"": np.concatenate([codes, tail], axis=1)}

    def decode(self, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Array:
        fused = np.ascontiguousarray(parts[""])
        tail = np.ascontiguousarray(fused[:, -8:]).view("<f4")
        rows = fused[:, :-8].astype(np.float32) * tail[:, :1] + tail[:, 1:]
        return np.asarray(rows.astype(_FLOATS[dtype]).reshape(shape))


@dataclass(frozen=True)
class Channel(Method):
    """Eight bits a value, symmetric, with one scale for each output channel (row of the weight).

    The parts have the names of ``compressed-tensors`` checkpoints: ``weight_scale`` (``[rows, 1]``,
    in the original's dtype), and ``weight`` (F8_E4M3) or, for int8, ``weight_packed`` (four codes,
    each plus 128, in an I32, the first in its lowest byte) with ``weight_shape`` (I64).
    """

    kind: Literal["int8", "fp8"]

    @property
    def label(self) -> str:  # type: ignore[override]
        return "int8-channel" if self.kind == "int8" else "fp8-e4m3"

    @property
    def parameters(self) -> dict[str, str]:
        return {"int8": "channel"} if self.kind == "int8" else {"fp8": "e4m3"}

    def covers(self, tensor: TensorSpec) -> bool:
        return tensor.is_matrix and tensor.name.endswith(".weight") and tensor.dtype != "F64"

    def encode_rows(self, array: Array) -> dict[str, Array]:
        rows = array.astype(np.float32)
        _refuse_infinite(rows)
        top = np.float32(127.0 if self.kind == "int8" else 448.0)
        peak = np.abs(rows).max(axis=1, keepdims=True)
        # the scale is rounded to the stored dtype first, so that codes fit what is read back
        scale = np.where(peak > 0, peak / top, np.float32(1)).astype(array.dtype)
        scale = np.maximum(scale, _least(array.dtype))
        scaled = np.clip(rows / scale.astype(np.float32), -top, top)
        if self.kind == "fp8":
            return {"": scaled.astype(ml_dtypes.float8_e4m3fn), "_scale": scale}
        codes = (np.rint(scaled).astype(np.int16) + 128).astype(np.uint8)
        padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 4)))
        return {"_packed": padded.view("<i4"), "_scale": scale}

    def whole(self, shape: tuple[int, ...]) -> dict[str, Array]:
        return {"_shape": np.array(shape, np.int64)} if self.kind == "int8" else {}

    def decode(self, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Array:
        if self.kind == "fp8":
            codes = parts[""].astype(np.float32)
        else:
            packed = np.ascontiguousarray(parts["_packed"]).view(np.uint8)
            codes = packed[:, : shape[1]].astype(np.float32) - 128
        rows = codes * parts["_scale"].astype(np.float32)
        return np.asarray(rows.astype(_FLOATS[dtype]).reshape(shape))


@dataclass(frozen=True)
class Prune(Method):
    """Zeros in place of the smallest values; the others are stored with a bit for every value.

    ``magnitude`` drops ``share`` of each tensor; ``2:4`` the two smallest of every four neighbours
    in a row. Parts: ``.values`` (what is left, in order) and ``.bitmask`` (little-endian bits).
    """

    pattern: Literal["magnitude", "2:4"]
    share: float = 0.5

    @property
    def label(self) -> str:  # type: ignore[override]
        return "sparse-2-4" if self.pattern == "2:4" else f"pruned-{self.share:g}"

    @property
    def parameters(self) -> dict[str, str]:
        return {"prune": "2:4" if self.pattern == "2:4" else f"magnitude:{self.share!r}"}

    def covers(self, tensor: TensorSpec) -> bool:
        return tensor.is_matrix and (self.pattern == "magnitude" or tensor.shape[1] % 4 == 0)

    @property
    def by_rows(self) -> bool:
        return self.pattern == "2:4"

    def encode_rows(self, array: Array) -> dict[str, Array]:
        size = _magnitudes(array)
        if self.pattern == "2:4":
            groups = size.reshape(-1, 4)
            order = np.argsort(groups, axis=1, kind="stable")
            kept = np.ones_like(groups, dtype=bool)
            np.put_along_axis(kept, order[:, :2], False, axis=1)
            kept = kept.reshape(-1)
        else:
            kept = _all_but_smallest(size.reshape(-1), int(array.size * self.share))
        bits = np.packbits(kept, bitorder="little")
        return {".values": np.ascontiguousarray(array.reshape(-1)[kept]), ".bitmask": bits}

    def decode(self, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Array:
        count = int(np.prod(shape))
        kept = np.unpackbits(parts[".bitmask"], count=count, bitorder="little").astype(bool)
        out = np.zeros(count, _FLOATS[dtype])
        out[kept] = parts[".values"]
        return out.reshape(shape)


@dataclass(frozen=True)
class LowRank(Method):
    """The product of two thin factors, by singular value decomposition.

    The rank is given, or is the least that keeps ``energy`` of the squared singular values. A
    tensor whose factors would not be smaller is kept. Parts: ``.left`` ``[rows, rank]`` and
    ``.right`` ``[rank, columns]``, both in the original's dtype; the singular values are in the
    longer one.
    """

    energy: float | None = None
    rank: int | None = None

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"rank-{self.rank}" if self.rank else f"low-rank-{self.energy:g}"

    @property
    def parameters(self) -> dict[str, str]:
        return {"low-rank": f"rank:{self.rank}" if self.rank else f"energy:{self.energy!r}"}

    def covers(self, tensor: TensorSpec) -> bool:
        return tensor.is_matrix

    @property
    def by_rows(self) -> bool:
        return False

    def encode_rows(self, array: Array) -> dict[str, Array]:
        rows: Array = array.astype(np.float32 if array.dtype.itemsize <= 4 else np.float64)
        _refuse_infinite(rows)
        squares, vectors = _spectrum(rows)
        rank = self.rank or self._least(squares)
        if rank * (array.shape[0] + array.shape[1]) >= array.size:
            return {"": array}
        thin = np.ascontiguousarray(vectors[:, :rank]).astype(rows.dtype)
        tall = rows.shape[0] >= rows.shape[1]
        left, right = (rows @ thin, thin.T) if tall else (thin, thin.T @ rows)
        return {".left": left.astype(array.dtype), ".right": right.astype(array.dtype)}

    def _least(self, squares: Array) -> int:
        assert self.energy is not None
        kept = np.cumsum(squares)
        return int(np.searchsorted(kept, self.energy * kept[-1])) + 1

    def decode(self, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Array:
        if "" in parts:
            return parts[""]
        wide = np.float64 if dtype == "F64" else np.float32
        product = parts[".left"].astype(wide) @ parts[".right"].astype(wide)
        return np.asarray(product.astype(_FLOATS[dtype]).reshape(shape))


def _magnitudes(array: Array) -> npt.NDArray[Any]:
    """Return the bits without the sign; they order like the absolute values, NaN last."""
    bits = np.ascontiguousarray(array).view(f"<u{array.dtype.itemsize}")
    found: npt.NDArray[Any] = bits & bits.dtype.type((1 << 8 * bits.dtype.itemsize - 1) - 1)
    return found


def _all_but_smallest(size: npt.NDArray[Any], drop: int) -> npt.NDArray[np.bool_]:
    """Return a mask of all but the ``drop`` smallest; of equal ones the first are dropped."""
    if not drop:
        return np.ones(size.size, dtype=bool)
    bound = np.partition(size, drop - 1)[drop - 1]
    kept: npt.NDArray[np.bool_] = size > bound
    ties = np.flatnonzero(size == bound)
    kept[ties[drop - (size.size - int(kept.sum()) - ties.size) :]] = True
    return kept


def _spectrum(rows: Array) -> tuple[Array, Array]:
    """Return the squared singular values, largest first, and the vectors of the shorter side.

    The vectors are columns. They come from the shorter side's Gram matrix in float64, so that
    beside a tall table only that is in memory. Values below 1e-8 of the largest are not exact;
    nobody keeps those.
    """
    long = rows if rows.shape[0] >= rows.shape[1] else rows.T
    gram = np.zeros((long.shape[1],) * 2)
    step = max(1, _SVD_BLOCK // long.shape[1])
    for at in range(0, long.shape[0], step):
        block = long[at : at + step].astype(np.float64)
        gram += block.T @ block
    squares, vectors = np.linalg.eigh(gram)
    return np.maximum(squares[::-1], 0), vectors[:, ::-1]


def _refuse_infinite(rows: Array) -> None:
    if not np.isfinite(rows).all():
        raise UsageError(
            "it holds NaN or infinite values, which have no scale; leave it out with keep (--keep)"
        )


_EXAMPLES = {
    "cast": "bf16",
    "int8": "row",
    "fp8": "e4m3",
    "prune": "magnitude:0.5",
    "low-rank": "energy:0.99",
}


def method_of(parameters: Mapping[str, str]) -> Method:
    """Return the method for parameters as ``Method.parameters`` and the command line give them.

    Raises:
        UsageError: There is no such method, or a number is out of its range.
    """
    if len(as_table("parameters", parameters, "{'int8': 'row'}")) != 1:
        raise UsageError("give exactly one of cast, int8, fp8, prune and low-rank")
    ((kind, value),) = parameters.items()
    example = _EXAMPLES.get(kind)
    if example is None:
        raise UsageError(f"{shown(kind)} is not a method: {nearest(kind, _EXAMPLES)}")
    as_text(kind, value, f"text, such as {example!r}")
    name, _, number = value.partition(":")
    if kind == "cast" and value in _CASTS:
        return Cast(cast("Literal['bf16', 'f16', 'f32']", value))
    if kind == "int8" and value == "row":
        return Int8Row()
    if kind == "int8" and value == "channel":
        return Channel("int8")
    if kind == "fp8" and value == "e4m3":
        return Channel("fp8")
    if kind == "prune" and value == "2:4":
        return Prune("2:4")
    if kind == "prune" and name == "magnitude":
        return Prune("magnitude", _number(kind, number, 0.0, 1.0))
    if kind == "low-rank" and name == "energy":
        return LowRank(energy=_number(kind, number, 0.0, 1.0))
    digits = number.isascii() and number.isdigit()
    if kind == "low-rank" and name == "rank" and digits and int(number) > 0:
        return LowRank(rank=int(number))
    raise UsageError(
        f"{kind}={value[:40]!r} is not a method; use one of cast=bf16|f16|f32, int8=row|channel, "
        "fp8=e4m3, prune=magnitude:SHARE|2:4, low-rank=energy:SHARE|rank:N"
    )


def _number(kind: str, text: str, above: float, below: float) -> float:
    try:
        value = float(text) if text.isascii() else above
    except ValueError:
        value = above
    if not above < value < below:
        raise UsageError(f"{kind}: {text[:40]!r} is not a number between {above:g} and {below:g}")
    return value


def _least(dtype: npt.DTypeLike) -> Any:
    """Return the smallest positive number of a float dtype."""
    return ml_dtypes.finfo(dtype).smallest_subnormal  # type: ignore[no-untyped-call]
