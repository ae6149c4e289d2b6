"""Changes to a model as a user gives them, and their encoding as a patch file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierstore.deferred import np
from tierstore.errors import InvalidSafetensors, TensorMissing, UsageError
from tierstore.format.checks import damaged
from tierstore.format.dtypes import DTYPES
from tierstore.format.patch import (
    PATCH_PATH,
    PatchKind,
    PatchPart,
    PatchSpec,
    build_patch_header,
    has_no_units,
    index_limit,
    parse_patch,
    unit_shape,
    values_shape,
)
from tierstore.format.safetensors import Header
from tierstore.ids import Digest
from tierstore.modelstore.loading.arrays import array_bytes, as_array
from tierstore.modelstore.saving.source import DiskFile

if TYPE_CHECKING:
    import numpy.typing as npt

    from tierstore.deferred import Bytes, Indices


class TensorChange:
    """What happens to one tensor: ``Rows``, ``Elements`` or ``Dense``.

    The values of F4 and F6 tensors are packed ``uint8``: (n, bytes of a row) for rows, one
    dimension for all of it.
    """

    __slots__ = ()
    values: Any


class IndexedChange(TensorChange):
    """New values of a part of a tensor: of what its indices stand for."""

    __slots__ = ()
    indices: Any


@dataclass(frozen=True, slots=True, eq=False)
class Rows(IndexedChange):
    r"""New rows of a tensor's first dimension.

    Attributes:
        indices: (n,) integers from 0 in any order; where one comes twice, the last wins.
        values: (n, \*shape[1:]), a numpy array or torch tensor of the tensor's own dtype.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"emb": np.zeros((3, 2), np.float32)})
        >>> _ = store.patch("ranker", {"emb": tierstore.Rows([1], np.ones((1, 2), np.float32))})
        >>> store.load("ranker")["emb"]
        array([[0., 0.],
               [1., 1.],
               [0., 0.]], dtype=float32)
    """

    indices: Any
    values: Any


@dataclass(frozen=True, slots=True, eq=False)
class Elements(IndexedChange):
    """New elements anywhere in a tensor.

    Attributes:
        indices: (n,) integers from 0 in any order, which count through the flat tensor in C order;
            where one comes twice, the last wins.
        values: (n,), a numpy array or torch tensor of the tensor's own dtype.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"emb": np.zeros((2, 2), np.float32)})
        >>> _ = store.patch("ranker", {"emb": tierstore.Elements([3], np.ones(1, np.float32))})
        >>> store.load("ranker")["emb"]
        array([[0., 0.],
               [0., 1.]], dtype=float32)
    """

    indices: Any
    values: Any


@dataclass(frozen=True, slots=True, eq=False)
class Dense(TensorChange):
    """All of a tensor anew.

    Attributes:
        values: A numpy array or torch tensor of the tensor's own dtype and shape.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"bias": np.zeros(2, np.float32)})
        >>> _ = store.patch("ranker", {"bias": tierstore.Dense(np.ones(2, np.float32))})
        >>> store.load("ranker")["bias"]
        array([1., 1.], dtype=float32)
    """

    values: Any


INDEXED: dict[PatchKind, type[Rows | Elements]] = {"rows": Rows, "elements": Elements}
"""The classes of changes that have indices."""
_KINDS: dict[type[TensorChange], PatchKind] = {
    **{change: kind for kind, change in INDEXED.items()},
    Dense: "dense",
}


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """A tensor that can be changed: its shape and, where that is known, its dtype."""

    dtype: str | None
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedPatch:
    """A patch file in memory: its header, what that means, and the bytes behind it."""

    header: Header
    spec: PatchSpec
    body: Bytes


@dataclass(frozen=True, slots=True)
class _Piece:
    """The new values of one tensor as they were given, ``unit`` bytes for each index."""

    kind: PatchKind
    dtype: str
    shape: tuple[int, ...]
    indices: Indices | None
    values: Bytes


def encode_changes(
    base: Digest,
    changes: Mapping[str, TensorChange],
    targets: Mapping[str, TargetTensor],
    title: str,
) -> EncodedPatch:
    """Bring changes into the stored form: indices rise, none comes twice. Everything is copied.

    Args:
        base: Digest of the version that the changes are for.
        changes: The change to each tensor, by the tensor's name.
        targets: The tensors that the base has, by name.
        title: Name of the base in messages.

    Raises:
        TensorMissing: The base has no such tensor.
        UsageError: There is no change, a dtype or shape differs, or an index is out of range.
    """
    if not changes:
        raise UsageError("a patch changes at least one tensor; none was given")
    pieces = {}
    for name, change in changes.items():
        if name not in targets:
            raise _no_tensor(name, title)
        pieces[name] = _piece(name, change, targets[name])
    return _encode(base, pieces)


def encode_file(path: str | os.PathLike[str]) -> EncodedPatch:
    """Read a patch file; its indices may come in any order and twice, the last one wins.

    Raises:
        InvalidSafetensors: The file is no patch.
        UsageError: An index is out of range.
    """
    file = DiskFile(PATCH_PATH, Path(path))
    if file.header is None:
        raise InvalidSafetensors(f"{path} is no patch: its header breaks the format's rules")
    try:
        try:
            spec = parse_patch(file.header)
        except InvalidSafetensors as error:
            raise InvalidSafetensors(f"{path}: {error}") from None
        pieces = {}
        for name, part in spec.parts.items():
            infos = [info for info in (part.indices, part.values) if info is not None]
            read = []
            for info in infos:
                data = np.empty(info.end - info.begin, np.uint8)
                file.read_into(file.data_start + info.begin, data.data)
                read.append(data)
            indices = None
            if part.indices is not None:
                given = as_array(read[0], part.indices.dtype, part.indices.shape)
                indices = _checked(name, part.kind, given, part.limit)
            pieces[name] = _Piece(part.kind, part.dtype, part.shape, indices, read[-1])
        file.finish()
    finally:
        file.close()
    return _encode(spec.base, pieces)


def check_targets(spec: PatchSpec, targets: Mapping[str, TargetTensor], title: str) -> None:
    """Refuse a patch whose tensors are not those of its base, as ``encode_changes`` does."""
    for name, part in spec.parts.items():
        if name not in targets:
            raise _no_tensor(name, title)
        target = targets[name]
        if (part.dtype, part.shape) != (target.dtype, target.shape):
            raise UsageError(
                f"tensor {name!r} of {title} is {target.dtype} {list(target.shape)}, the patch is "
                f"for {part.dtype} {list(part.shape)}"
            )


def _no_tensor(name: object, title: str) -> TensorMissing:
    return TensorMissing(
        f"{title} has no tensor {str(name)[:200]!r}; 'tierstore tensors {title}' lists what it has"
    )


def _piece(name: str, change: TensorChange, target: TargetTensor) -> _Piece:
    kind = _KINDS.get(type(change))
    if kind is None:
        *most, last = [each.__name__ for each in _KINDS]
        raise UsageError(
            f"the change of tensor {name!r} is a {type(change).__name__}; give "
            f"tierstore.{', '.join(most)} or {last}"
        )
    values = array_bytes(name, change.values)
    dtype = target.dtype or values.dtype
    count = 1
    indices = None
    if isinstance(change, IndexedChange):
        if has_no_units(kind, target.shape):
            raise UsageError(
                f"tensor {name!r} has the shape {list(target.shape)} and so no {kind}; give Dense "
                "or Elements"
            )
        limit = index_limit(kind, target.shape)
        indices = _checked(name, kind, _array(change.indices), limit)
        count = len(indices)
    given, expected = (values.dtype, values.shape), (dtype, values_shape(kind, target.shape, count))
    if DTYPES[dtype].numpy is None and kind != "elements":  # packed; no element begins at a byte
        unit_bytes = prod(unit_shape(kind, target.shape)) * DTYPES[dtype].bits // 8
        expected = ("U8", (unit_bytes,) if kind == "dense" else (count, unit_bytes))
    if given != expected:
        raise UsageError(
            f"the {kind} for tensor {name!r} are {given[0]} {list(given[1])}; its dtype and shape "
            f"ask for {expected[0]} {list(expected[1])}"
        )
    data = np.empty(prod(given[1]) * DTYPES[given[0]].bits // 8, np.uint8)
    if data.nbytes:
        values.read_into(0, data.data)
    return _Piece(kind, dtype, target.shape, indices, data)


def _array(indices: Any) -> npt.NDArray[Any]:
    """Return a copy of indices as they were given: what is checked is what is stored."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(indices, torch.Tensor):
        indices = indices.detach().cpu().numpy()
    found = np.array(indices)
    return found.astype(np.int64) if found.size == 0 else found


def _checked(name: str, kind: PatchKind, indices: npt.NDArray[Any], limit: int) -> Indices:
    """Return the indices as int64.

    Raises ``UsageError`` unless they are integers from 0 up to, but not including, ``limit``.
    """
    if indices.dtype.kind not in "iu" or indices.ndim != 1:
        raise UsageError(
            f"the indices of {kind} for tensor {name!r} are {indices.dtype} in {indices.ndim} "
            "dimensions; give integers in one"
        )
    outside = (indices < 0) | (indices >= limit)  # before the cast, which would wrap a uint64
    if outside.any():
        raise UsageError(
            f"{kind.removesuffix('s')} {int(indices[outside][0])} is out of range for tensor "
            f"{name!r} with {limit} {kind}"
        )
    return indices.astype(np.int64)


def _last_of_each(indices: Indices) -> npt.NDArray[np.int64] | None:
    """Return the positions to keep, in order, so that indices rise and the last of equals stays.

    ``None`` when the indices rise already.
    """
    if (np.diff(indices) > 0).all():
        return None
    order: npt.NDArray[np.int64] = np.argsort(indices, kind="stable")
    ordered = indices[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    return np.asarray(order[last])


def _encode(base: Digest, pieces: Mapping[str, _Piece]) -> EncodedPatch:
    orders = {n: _last_of_each(p.indices) for n, p in pieces.items() if p.indices is not None}
    counts = {
        name: len(piece.indices) if order is None else len(order)
        for name, order in orders.items()
        if (piece := pieces[name]).indices is not None
    }
    header = build_patch_header(
        base, [(n, p.kind, p.dtype, p.shape, counts.get(n, 1)) for n, p in pieces.items()]
    )
    try:
        spec = parse_patch(header)
    except InvalidSafetensors as error:  # rows that do not begin at a byte
        raise UsageError(str(error)) from None
    body = np.empty(header.data_size, np.uint8)
    for name, piece in pieces.items():
        _place(body, spec.parts[name], piece, orders.get(name))
    return EncodedPatch(header, spec, body)


def rising(part: PatchPart, data: Bytes) -> Indices:
    """Return the indices in ``data``; ``Damaged`` where they would write out of place."""
    indices = data.view("<i8")
    if len(indices) and not (
        indices[0] >= 0 and indices[-1] < part.limit and (np.diff(indices) > 0).all()
    ):
        damaged("a patch", f"the indices for tensor {part.target!r} are out of order")
    return indices


def _place(
    body: Bytes, part: PatchPart, piece: _Piece, order: npt.NDArray[np.int64] | None
) -> None:
    values = body[part.values.begin : part.values.end]
    if part.indices is None or piece.indices is None:
        values[:] = piece.values
        return
    indices = body[part.indices.begin : part.indices.end].view("<i8")
    indices[:] = piece.indices if order is None else piece.indices[order]
    if part.unit_bytes:
        given = piece.values.reshape(-1, part.unit_bytes)
        values.reshape(-1, part.unit_bytes)[:] = given if order is None else given[order]
