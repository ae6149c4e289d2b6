"""Patches as users hold them: made in memory, read from a file, or streamed from a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tierstore.arguments import as_path
from tierstore.deferred import np
from tierstore.errors import NotFound, UsageError
from tierstore.format.dtypes import DTYPES
from tierstore.format.patch import PatchPart, PatchSpec
from tierstore.format.safetensors import Header, TensorInfo
from tierstore.ids import Digest
from tierstore.modelstore.loading.arrays import array_bytes, as_array, writable_bytes
from tierstore.modelstore.loading.export import explained
from tierstore.modelstore.loading.overlay import scatter
from tierstore.modelstore.patches.changes import (
    INDEXED,
    Dense,
    EncodedPatch,
    TargetTensor,
    TensorChange,
    encode_changes,
    encode_file,
    rising,
)
from tierstore.modelstore.version import Version
from tierstore.unfinished import written_beside

if TYPE_CHECKING:
    from tierstore.deferred import Bytes
    from tierstore.modelstore.loading.model import LoadStats

    Read: TypeAlias = Callable[[Sequence[TensorInfo]], list[Bytes]]
    """Gives the plain bytes of tensors of a patch file."""


class Patch:
    """The changes from one version to the next: applied to the first, they give the second.

    Obtained from ``Store.patches``, ``Patch.of`` or ``Patch.open``. One of a store is read when it
    is used. Indices rise, and none comes twice.

    Attributes:
        base: Digest of the version that it is for.
        parts: The change to each tensor, by its name: ``kind``, ``dtype``, ``shape``, ``count``.
        version: The version that it gives; ``None`` unless it came from a store.
        stored_bytes: The bytes that it takes in the store; ``None`` unless it came from there.

    Examples:
        >>> store = tierstore.init("store")
        >>> weights = {"bias": np.zeros(2, np.float32)}
        >>> version = store.save("ranker", weights)
        >>> patch = tierstore.Patch.of(
        ...     version.digest, {"bias": tierstore.Dense(np.ones(2, np.float32))}, {"bias": (2,)}
        ... )
        >>> patch.save("patch.safetensors")
        >>> print(store.patch("ranker@1", "patch.safetensors"))
        ranker@2
        >>> patch.apply_to(weights)
        >>> weights["bias"]
        array([1., 1.], dtype=float32)
    """

    def __init__(
        self, header: Header, spec: PatchSpec, read: Read, version: Version | None = None,
        stored_bytes: int | None = None, stats: Callable[[], LoadStats] | None = None,
    ) -> None:  # fmt: skip
        self._header, self._spec, self._read = header, spec, read
        self.base: Digest = spec.base
        """Digest of the version that the patch is for."""
        self.parts: Mapping[str, PatchPart] = spec.parts
        """The change to each tensor, by its name: ``kind``, ``dtype``, ``shape``, ``count``."""
        self.version = version
        """The version that the patch leads to; ``None`` unless the patch came from a store."""
        self.stored_bytes = stored_bytes
        """Bytes that the patch takes in the store; ``None`` unless it came from there."""
        self._stats = stats

    @classmethod
    def of(
        cls,
        base: Digest | str,
        changes: Mapping[str, TensorChange],
        shapes: Mapping[str, Sequence[int]],
    ) -> Patch:
        """Make a patch without a store, in a trainer for example.

        Args:
            base: Digest of the version that the patch is for; as text, its 64 hex digits, with or
                without ``b3:`` before them.
            changes: ``Rows``, ``Elements`` or ``Dense`` by the tensor's name. They are copied.
            shapes: Shapes of the base's tensors by name; those that are changed are enough.

        Raises:
            TensorMissing: ``shapes`` lacks a tensor that is changed; also a ``NotFound``.
            UsageError: There is no change, a shape does not fit, or an index is out of range.
        """
        digest = base if isinstance(base, Digest) else Digest.from_hex(base.removeprefix("b3:"))
        targets = {name: TargetTensor(None, tuple(shape)) for name, shape in shapes.items()}
        return cls.in_memory(encode_changes(digest, changes, targets, digest.short))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Patch:
        """Read a patch file that ``save``, or anybody else by format/SPEC.md 7.1, wrote.

        Raises:
            NotFound: There is no such file.
            InvalidSafetensors: The file is no patch.
            UsageError: An index is out of range.
        """
        return cls.in_memory(encode_file(path))

    @classmethod
    def in_memory(cls, encoded: EncodedPatch) -> Patch:
        """Return a patch whose bytes are in memory already."""

        def read(infos: Sequence[TensorInfo]) -> list[Bytes]:
            return [encoded.body[info.begin : info.end] for info in infos]

        return cls(encoded.header, encoded.spec, read)

    def __repr__(self) -> str:
        what = f" -> {self.version}" if self.version else ""
        return f"<Patch {self.base.short}{what}, {len(self.parts)} tensors, {self.nbytes} bytes>"

    @property
    def stats(self) -> LoadStats | None:
        """The cost of reading the patch so far; ``None`` unless it came from a store."""
        return None if self._stats is None else self._stats()

    @property
    def nbytes(self) -> int:
        """Plain bytes of the indices and values."""
        return self._header.data_size

    def changes(self, names: Iterable[str] | None = None) -> dict[str, TensorChange]:
        """Read what happens to tensors, by their names; to all that it changes by default.

        The arrays of a patch in memory are the patch's own: do not write into them.
        """
        found: dict[str, TensorChange] = {}
        for part, indices, values in self._loaded(names):
            count = part.count
            if DTYPES[part.dtype].numpy is None:
                array = values if part.kind == "dense" else values.reshape(count, part.unit_bytes)
            else:
                array = as_array(values, part.dtype, part.values.shape)
            if indices is None:
                found[part.target] = Dense(array)
            else:
                found[part.target] = INDEXED[part.kind](indices, array)
        return found

    def apply_to(self, state: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
        """Change tensors in place, from the content of the base to that of the version.

        All is checked and read before the first byte is written.

        Args:
            state: Writable, contiguous numpy arrays or torch tensors on the CPU, by name, that
                hold the base. Tensors that do not change may be missing.
            names: Names of the tensors to change; all that the patch changes by default.

        Raises:
            NotFound: ``state`` lacks a tensor, or the patch does not change one of ``names``.
            UsageError: A dtype or shape differs, or a tensor cannot be written to.
        """
        targets = {name: _target(state, self._part(name)) for name in self._chosen(names)}
        loaded = self._loaded(targets)
        for part, indices, values in loaded:
            out = targets[part.target]
            if indices is None:
                out[:] = values
            else:
                scatter(out, part.unit_bytes, indices, values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the patch as a safetensors file, which ``Store.patch`` takes.

        A file that is there is replaced.
        """
        target = Path(as_path("path", path, "the path of a file"))
        data = self._read(self._header.tensors)
        with explained(target), written_beside(target) as fd, open(fd, "wb", closefd=False) as out:
            out.write(self._header.raw)
            for part in data:
                out.write(part.data)

    def encoded(self) -> EncodedPatch:
        """Read the whole patch into memory of its own and return it in its stored form.

        Raises:
            Damaged: Indices are out of order or range.
        """
        parts = self._read(self._header.tensors)
        body = np.concatenate([np.empty(0, np.uint8), *parts])
        for part in self.parts.values():
            if part.indices is not None:
                rising(part, body[part.indices.begin : part.indices.end])
        return EncodedPatch(self._header, self._spec, body)

    def _chosen(self, names: Iterable[str] | None) -> list[str]:
        return list(self.parts if names is None else dict.fromkeys(names))

    def _part(self, name: str) -> PatchPart:
        if name not in self.parts:
            raise NotFound(f"the patch does not change tensor {str(name)[:200]!r}")
        return self.parts[name]

    def _loaded(
        self, names: Iterable[str] | None
    ) -> list[tuple[PatchPart, np.ndarray[Any, Any] | None, Bytes]]:
        parts = [self._part(name) for name in self._chosen(names)]
        infos = [info for part in parts for info in (part.indices, part.values) if info]
        data = {info.name: own for info, own in zip(infos, self._read(infos), strict=True)}
        return [
            (
                part,
                rising(part, data[part.indices.name]) if part.indices else None,
                data[part.values.name],
            )
            for part in parts
        ]


def _target(state: Mapping[str, Any], part: PatchPart) -> Bytes:
    name = part.target
    if name not in state:
        raise NotFound(f"there is no tensor {name!r} to patch: give it, or leave it out of 'names'")
    nbytes = prod(part.shape) * DTYPES[part.dtype].bits // 8
    found = array_bytes(name, state[name])
    packed = DTYPES[part.dtype].numpy is None
    expected = ("U8", (nbytes,)) if packed else (part.dtype, part.shape)
    if (found.dtype, found.shape) != expected:
        raise UsageError(
            f"tensor {name!r} is {found.dtype} {list(found.shape)}, the patch is for "
            f"{expected[0]} {list(expected[1])}"
        )
    return np.frombuffer(writable_bytes(name, state[name], nbytes), np.uint8)
