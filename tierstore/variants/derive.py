"""Deriving a lossy variant of a version, with its error on record.

The variant is a version of its own, in the log ``variant/<name>`` of the model, where only a
reference that names it finds it. Its lineage names the version that it was made from.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from typing import Any

import numpy.typing as npt

from tierstore.arguments import as_message, as_number, as_text
from tierstore.errors import Damaged, NotFound, SourceError, UnsupportedFormat, UsageError
from tierstore.format.keys import VARIANTS
from tierstore.format.manifest import FileEntry, LineageEntry
from tierstore.format.reflog import that_count
from tierstore.format.safetensors import parse_header
from tierstore.ids import FULL, check_variant
from tierstore.lossy.errors import TensorError, compare, total
from tierstore.lossy.methods import Cast, Channel, Method, TensorSpec, method_of
from tierstore.lossy.record import (
    PATH,
    TensorRecord,
    VariantRecord,
    encode_record,
    error_record,
)
from tierstore.modelstore.loading.arrays import ArrayBytes
from tierstore.modelstore.loading.dequantized import read_record
from tierstore.modelstore.loading.opener import VerifiedOpened
from tierstore.modelstore.loading.tensor import VerifiedTensor
from tierstore.modelstore.saving.source import (
    ArrayFile,
    BytesFile,
    SourceFile,
    summary_of_files,
)
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import DERIVED_FROM, Version, version_of
from tierstore.progress import Progress, reported
from tierstore.variants.compressed import with_dtype, with_quantization
from tierstore.variants.spool import ArraySpool, Spooled

CHANNEL_KEEPS = r"(^|\.)(\w*emb\w*|wte|wpe|shared|lm_head)(\.|$)"
"""Tensors that ``int8=channel`` and ``fp8`` leave as they are by default: those that are not in
linear layers, or that suffer most."""

_TOOL = f"tierstore {package_version('tierstore')}"
_log = logging.getLogger("tierstore.derive")

_BLOCK_ELEMENTS = 4 << 20
"""Elements that are approximated at once, by methods that treat rows one by one."""


@dataclass(slots=True)
class _Work:
    """The state of one derivation.

    ``errors`` holds the errors of all float tensors, also of those that stay as they are.
    """

    method: Method
    keep: re.Pattern[str] | None
    spool: ArraySpool
    progress: Progress | None
    total: int
    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    errors: list[TensorError] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    done: int = 0

    def covers(self, shape: TensorSpec) -> bool:
        """Return whether a tensor is approximated."""
        return self.method.covers(shape) and not (self.keep and self.keep.search(shape.name))

    def add(self, nbytes: int) -> None:
        """Report ``nbytes`` more of the model as done."""
        self.done += nbytes
        if self.progress:
            self.progress(self.done, self.total)


class _Kept(ArrayBytes):
    """A tensor that stays as it is; it is read from the store only while it is saved again."""

    def __init__(self, tensor: VerifiedTensor) -> None:
        self.dtype, self.shape = tensor.dtype, tensor.shape
        self._tensor = tensor

    def read_into(self, start: int, out: memoryview) -> None:
        self._tensor.read_span(start, start + len(out), out)


class _Derived(ArrayFile):
    """Arrays that nobody else can change while they are saved."""

    def finish(self) -> None:
        pass


def derive(
    store: Store,
    ref: str | Version,
    parameters: Mapping[str, str],
    *,
    keep: str | None = None,
    name: str | None = None,
    max_error: float | None = None,
    message: str | None = None,
    progress: Progress | bool | None = None,
) -> Version:
    """Make a lossy variant of a version and publish it beside that; see ``Store.derive``.

    A variant of this name that the same release of tierstore made in the same way is returned as it
    is, without ``stats``.

    Tensors are approximated in blocks of rows, and the variant waits in ``Settings.cache_dir``
    until it is saved; only the methods ``magnitude`` and ``low-rank`` hold a tensor as a whole.

    Args:
        store: The store that has the version, and gets the variant.
        ref: A reference to the version.
        parameters: The method and its parameter.
        keep: A regular expression of the names of tensors to leave as they are.
        name: The variant's name; by default the method's label.
        max_error: The largest relative L2 error that is published.
        message: Why; kept in the log. ``None`` for no message.
        progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that is
            called with the bytes done and the bytes in all.

    Returns:
        The variant; its reference is ``model@number+name``.

    Raises:
        UsageError: The method, ``keep`` or ``name`` make no sense, or no tensor is approximated.
        SourceError: The error is above ``max_error``; nothing is published.

    Examples:
        >>> store = tierstore.init("store")
        >>> _ = store.save("ranker", {"w": np.ones((8, 8), np.float32)})
        >>> print(tierstore.derive(store, "ranker", {"cast": "bf16"}))
        ranker@1+bf16
    """
    as_message(message)  # before anything is made
    method = method_of(parameters)
    label = check_variant(name if name is not None else method.label)
    if max_error is not None:
        max_error = as_number("max_error", max_error, "a number, 0 or more", 0)
    default = CHANNEL_KEEPS if isinstance(method, Channel) else ""
    kept = _pattern(default if keep is None else keep)
    version = store.resolve(ref)
    if version.variant is not None:
        raise UsageError(
            f"{version} is a variant already: derive from {version.model}@{version.number}"
        )
    made = _made_before(store, version, label, method, kept)
    if made is not None:
        found, error = made
        _check_error(label, version, error, max_error)
        return found
    full = store.load(f"{version.model}@{version.number}", profile=FULL)._opened.verified()
    total_bytes = sum(tensor.nbytes for tensor in full.tensors.values())
    with (
        ArraySpool(store._parts.settings.cache_dir) as spool,
        reported(progress, f"deriving {label} of {version}") as told,
    ):
        work = _Work(method, kept, spool, told, total_bytes)
        files = [_derived_file(full, file, work) for file in full.manifest.files]
        if not work.tensors:
            raise UsageError(f"{label} applies to no tensor of {version}; see 'tierstore tensors'")
        if isinstance(method, Channel):
            files = with_quantization(files, method.kind, work.kept)
        elif isinstance(method, Cast):
            files = with_dtype(files, method.to)
        files.append(BytesFile(PATH, encode_record(_record(label, version, work, max_error))))
        return _publish(store, version, label, files, message)


def _made_before(
    store: Store, version: Version, label: str, method: Method, keep: re.Pattern[str] | None
) -> tuple[Version, float] | None:
    """Return the variant that would be made, and its error, if the version has it already."""
    made = next((one for one in store.variants(version) if one.variant == label), None)
    if made is None:
        return None
    try:
        record = read_record(store.load(made))
    except (Damaged, NotFound, UnsupportedFormat) as error:
        _log.warning("%s cannot be read, and is made anew: %s", made, error)
        return None
    if (record.parameters, record.kept, record.tool) != (
        method.parameters, keep.pattern if keep else "", _TOOL,
    ):  # fmt: skip
        return None
    relative = record.error.relative_l2
    return made, math.inf if relative is None else relative


def _check_error(label: str, version: Version, error: float, max_error: float | None) -> None:
    if max_error is not None and not error <= max_error:
        raise SourceError(
            f"{label} of {version} has a relative error of {error:.6g}, above the bound of "
            f"{max_error:g}; nothing was published"
        )


def _record(label: str, version: Version, work: _Work, max_error: float | None) -> VariantRecord:
    error = total(work.errors)
    _check_error(label, version, error.relative_l2, max_error)
    return VariantRecord(
        name=label,
        base=version.digest.hex,
        parameters=work.method.parameters,
        kept=work.keep.pattern if work.keep else "",
        error=error_record(error),
        tensors=work.tensors,
        tool=_TOOL,
    )


def _publish(
    store: Store, version: Version, label: str, files: list[SourceFile], message: str | None
) -> Version:
    files = sorted(files, key=lambda file: file.path)
    lineage = [LineageEntry(relation=DERIVED_FROM, digest=version.digest.raw)]
    saving = store._parts.saving
    selection = saving.named_base(files, _newest_of(store, version.model, label))
    with saving.begin(selection) as writer:
        how = store._names.derivation(version, label, summary_of_files(files), message)
        entry = writer.publish(how, files, lineage)
    return version_of(version.model, entry, writer.stats(), label)


def _newest_of(store: Store, model: str, label: str) -> str | None:
    """Return the newest readable variant of this name that is not removed, as a base of deltas."""
    log, removed = store._parts.home.log(model, VARIANTS + label), store._names.removals.of(model)
    entries = that_count(log.entries())
    last = next((entry for entry in entries if entry.version not in removed), None)
    if last is None:
        return None
    try:
        return str(store.load(f"{model}@{last.version}+{label}").version)
    except (Damaged, NotFound, UnsupportedFormat) as error:
        _log.warning("the variant %s of %s cannot be a base of deltas: %s", label, model, error)
        return None


def _pattern(text: str) -> re.Pattern[str] | None:
    as_text("keep", text, r"one regular expression as text, such as r'\.(weight|bias)$'")
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise UsageError(f"invalid regular expression {text[:80]!r} for keep: {error}") from None


def _derived_file(full: VerifiedOpened, file: FileEntry, work: _Work) -> SourceFile:
    if not file.header:
        return BytesFile(file.path, full.view(file).read())
    own = {
        tensor.name_in_file: tensor for tensor in full.tensors.values() if tensor.file == file.path
    }
    arrays: dict[str, Any] = {}
    for name, tensor in own.items():
        shape = TensorSpec(name, tensor.dtype, tensor.shape)
        if work.covers(shape):
            parts: dict[str, Any] = _approximated(tensor, name, work)
        else:
            parts = {name: _Kept(tensor)}
            if shape.is_matrix:
                work.kept.add(name)
            if shape.is_float:
                work.errors += [compare(block, block) for block in _blocks(tensor)]
        if taken := sorted((arrays.keys() | own.keys() - {name}) & parts.keys()):
            raise UsageError(
                f"{tensor.name!r} would be stored as {taken[0]!r}, which is taken; "
                "leave it out with keep (--keep)"
            )
        arrays |= parts
        work.add(tensor.nbytes)
    return _Derived(arrays, parse_header(file.header, file.size).metadata, file.path)


def _approximated(tensor: VerifiedTensor, name: str, work: _Work) -> dict[str, Any]:
    """Approximate a tensor, record its error, and return the parts to store by name."""
    parts: dict[str, Any] = {}
    errors = []
    for block in _blocks(tensor) if work.method.by_rows else [tensor.numpy()]:
        try:
            encoded = work.method.encode_rows(block)
        except UsageError as why:
            raise UsageError(f"tensor {tensor.name!r} cannot be approximated: {why}") from None
        errors.append(compare(block, work.method.decode(encoded, tensor.dtype, block.shape)))
        for suffix, part in encoded.items():
            parts.setdefault(suffix, Spooled(work.spool, part)).append(part)
    parts |= work.method.whole(tensor.shape)
    work.errors += errors
    work.tensors[tensor.name] = TensorRecord(
        dtype=tensor.dtype,
        shape=list(tensor.shape),
        file=tensor.file,
        parts={suffix: tensor.name + suffix for suffix in parts},
        error=error_record(total(errors)),
    )
    return {name + suffix: part for suffix, part in parts.items()}


def _blocks(tensor: VerifiedTensor) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows of a tensor in order, in blocks of a multiple of eight rows."""
    if not tensor.shape or not tensor.nbytes:
        yield tensor.numpy()
        return
    rows = tensor.shape[0]
    step = max(8, _BLOCK_ELEMENTS * rows // math.prod(tensor.shape) // 8 * 8)
    for first in range(0, rows, step):
        yield tensor[first : min(rows, first + step)]
