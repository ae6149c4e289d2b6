"""Derive: a lossy child of a version, with its error on record.

The child is a version of its own, in the log ``variant/<name>`` of the model, where only a
reference that names it finds it. Its lineage names the version that it was made from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from typing import Any

import numpy as np
import numpy.typing as npt

from tierstore.errors import SourceError, UsageError
from tierstore.format.keys import VARIANTS
from tierstore.format.manifest import FileEntry, LineageEntry
from tierstore.format.safetensors import parse_header
from tierstore.ids import FULL, Digest, check_variant
from tierstore.lossy.errors import TensorError, compare, total
from tierstore.lossy.methods import Channel, Method, Shape, method_of
from tierstore.lossy.record import (
    PATH,
    TensorRecord,
    VariantRecord,
    encode_record,
    error_record,
)
from tierstore.modelstore.arrays import ArrayBytes, array_bytes
from tierstore.modelstore.model import Model
from tierstore.modelstore.source import ArrayFile, BytesFile, SourceFile
from tierstore.modelstore.store import Store
from tierstore.modelstore.tensor import Tensor
from tierstore.modelstore.version import DERIVED_FROM, Version, version_of
from tierstore.variants.compressed import with_quantization

CHANNEL_KEEPS = r"(^|\.)(\w*emb\w*|wte|wpe|shared|lm_head)(\.|$)"
"""What ``int8=channel`` and ``fp8`` leave as it is by default: these are no linear layers, or ones
that suffer most."""

Progress = Callable[[int, int], None]
"""Called with tensor bytes done and in all."""


@dataclass(slots=True)
class _Work:
    """What has been approximated so far."""

    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    errors: list[TensorError] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    done: int = 0


class _Kept(ArrayBytes):
    """A tensor that stays as it is, read from the store only while it is saved again."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self.shape = tensor.dtype, tensor.shape
        self._tensor = tensor
        self._bytes: npt.NDArray[np.uint8] | None = None

    def read_into(self, start: int, out: memoryview) -> None:
        if self._bytes is None:
            self._bytes = self._tensor.read_bytes()
        np.frombuffer(out, np.uint8)[:] = self._bytes[start : start + len(out)]
        if start + len(out) == self._tensor.nbytes:
            self._bytes = None


def derive(
    store: Store,
    ref: str,
    parameters: Mapping[str, str],
    *,
    keep: str | None = None,
    name: str | None = None,
    max_error: float | None = None,
    message: str = "",
    progress: Progress | None = None,
) -> Version:
    """Make a lossy variant of a version and publish it beside that.

    Args:
        store: which has the version, and gets the variant.
        ref: of the version.
        parameters: the method: one of ``cast`` (``bf16``, ``f16``, ``f32``), ``int8`` (``row``,
            ``channel``), ``fp8`` (``e4m3``), ``prune`` (``magnitude:0.5``, ``2:4``) and
            ``low-rank`` (``energy:0.99``, ``rank:64``).
        keep: a regular expression; tensors whose names it finds are left as they are. By default
            nothing, or what ``CHANNEL_KEEPS`` finds for the methods of linear layers.
        name: of the variant; by default the method's label, such as ``int8-row``.
        max_error: largest relative L2 error of the whole model that is published.
        message: why; kept in the log.
        progress: called with tensor bytes done and in all.

    Returns:
        The variant; its reference is ``model@number+name``.

    Raises:
        UsageError: the method, ``keep`` or ``name`` make no sense, or no tensor is approximated.
        SourceError: the error is above ``max_error``; nothing is published.
    """
    method = method_of(parameters)
    label = check_variant(name if name is not None else method.label)
    default = CHANNEL_KEEPS if isinstance(method, Channel) else ""
    kept = _pattern(default if keep is None else keep)
    version = store.resolve(ref)
    if version.variant is not None:
        raise UsageError(f"{version} is a variant already: derive from {version.model}@"
                         f"{version.number}")  # fmt: skip
    model = store.load(f"{version.model}@{version.number}", profile=FULL)
    work = _Work()
    files = [
        _derived_file(model, file, method, kept, work, progress)
        for file in model.manifest.files
        if file.path != PATH
    ]
    if not work.tensors:
        raise UsageError(f"{label} approximates no tensor of {version}: see 'tierstore tensors'")
    if isinstance(method, Channel):
        files = with_quantization(files, method.kind, work.kept)
    record = _record(label, version, method, kept, work, max_error)
    files.append(BytesFile(PATH, encode_record(record)))
    return _publish(store, version, label, files, message)


def _record(
    label: str,
    version: Version,
    method: Method,
    kept: re.Pattern[str] | None,
    work: _Work,
    max_error: float | None,
) -> VariantRecord:
    error = total(work.errors)
    if max_error is not None and not error.relative_l2 <= max_error:
        raise SourceError(
            f"{label} of {version} has a relative error of {error.relative_l2:.6g}, above the gate "
            f"of {max_error:g}; nothing was published"
        )
    return VariantRecord(
        name=label, base=version.digest.hex, parameters=method.parameters,
        kept=kept.pattern if kept else "", error=error_record(error), tensors=work.tensors,
        tool=f"tierstore {package_version('tierstore')}",
    )  # fmt: skip


def _publish(
    store: Store, version: Version, label: str, files: list[SourceFile], message: str
) -> Version:
    def append(digest: Digest) -> Any:
        log = store.home.log(version.model, VARIANTS + label)
        return log.append("derive", lambda _: (version.number, digest.hex, None), message)

    entry, stats = store.publish(
        sorted(files, key=lambda file: file.path),
        append,
        model=version.model,
        base=None,
        lineage=[LineageEntry(relation=DERIVED_FROM, digest=version.digest.raw)],
    )
    return version_of(version.model, entry, stats, label)


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise UsageError(f"keep {text[:80]!r} is no regular expression: {error}") from None


def _derived_file(
    model: Model,
    file: FileEntry,
    method: Method,
    kept: re.Pattern[str] | None,
    work: _Work,
    progress: Progress | None,
) -> SourceFile:
    if not file.header:
        return BytesFile(file.path, model.read_file(file.path))
    own = {
        tensor.name_in_file: tensor
        for tensor in map(model.tensor, model)
        if tensor.file == file.path
    }
    arrays: dict[str, Any] = {}
    for name, tensor in own.items():
        shape = Shape(name, tensor.dtype, tensor.shape)
        if method.covers(shape) and not (kept and kept.search(name)):
            parts: dict[str, Any] = _approximated(tensor, name, method, work)
        else:
            parts = {name: _Kept(tensor)}
            if shape.is_matrix:
                work.kept.add(name)
        if taken := sorted((arrays.keys() | own.keys() - {name}) & parts.keys()):
            raise UsageError(f"{tensor.name!r} would be stored as {taken[0]!r}, which is taken; "
                             "leave it out with --keep")  # fmt: skip
        arrays |= parts
        work.done += tensor.nbytes
        if progress:
            progress(work.done, model.nbytes)
    metadata = parse_header(file.header, file.size).metadata
    return ArrayFile(arrays, metadata, file.path)


def _approximated(
    tensor: Tensor, name: str, method: Method, work: _Work
) -> dict[str, npt.NDArray[Any]]:
    original = tensor.numpy()
    try:
        encoded = method.encode(original)
    except UsageError as why:
        raise UsageError(f"tensor {tensor.name!r} cannot be approximated: {why}") from None
    parts = {suffix: np.ascontiguousarray(part) for suffix, part in encoded.items()}
    error = compare(original, method.decode(parts, tensor.dtype, tensor.shape))
    work.errors.append(error)
    work.tensors[tensor.name] = TensorRecord(
        dtype=tensor.dtype, shape=list(tensor.shape), file=tensor.file,
        parts={suffix: tensor.name + suffix for suffix in parts}, error=error_record(error),
    )  # fmt: skip
    for suffix, part in parts.items():
        array_bytes(name + suffix, part)  # a dtype without a name in safetensors is refused here
    return {name + suffix: part for suffix, part in parts.items()}
