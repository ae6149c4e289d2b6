"""Reads a lossy variant as what it stands for: the original's names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tierstore.errors import NotFound, UsageError
from tierstore.lossy.methods import method_of
from tierstore.lossy.record import PATH, TensorRecord, VariantRecord, parse_record
from tierstore.modelstore.loading.arrays import array_bytes, as_torch
from tierstore.modelstore.loading.model import Model, checked_names
from tierstore.progress import Progress
from tierstore.shown import counted, html_table

if TYPE_CHECKING:
    import torch


def read_record(model: Model) -> VariantRecord:
    """Return the record stored in a variant; ``UsageError`` when the version is not a variant."""
    try:
        data = model.read_file(PATH)
    except NotFound:
        raise UsageError(
            f"{model.version} is not a lossy variant: load it without dequantize"
        ) from None
    return parse_record(data, f"{PATH} of {model.version}")


class Dequantized(Mapping[str, npt.NDArray[Any]]):
    """The tensors of a variant in the original's dtypes, each dequantized when it is asked for.

    Obtained from ``Store.load(ref, dequantize=True)``. ``stored`` is the variant as it is stored,
    ``record`` says how it was made and how far each tensor is from the original.
    """

    def __init__(self, stored: Model) -> None:
        self.stored = stored
        self.record = read_record(stored)
        self._method = method_of(self.record.parameters)
        parts = {name for one in self.record.tensors.values() for name in one.parts.values()}
        as_they_are = [name for name in stored if name not in parts]
        self._names = dict.fromkeys([*self.record.tensors, *as_they_are])

    def __reduce__(self) -> tuple[Any, ...]:
        return Dequantized, (self.stored,)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __repr__(self) -> str:
        return f"<Dequantized {self._title()}>"

    def _title(self) -> str:
        return f"{self.stored.version}, {counted(len(self), 'tensor')}"

    def _repr_html_(self) -> str:
        return html_table(
            self._title(),
            ("tensor", "dtype", "shape", "relative error"),
            map(self._row, self),
            len(self),
        )

    def _row(self, name: str) -> tuple[str, str, str, str]:
        record = self.record.tensors.get(name)
        if record is None:
            kept = self.stored.tensor(name)
            return name, kept.dtype, str(list(kept.shape)), "none"
        error = record.error.relative_l2
        told = "infinite" if error is None else f"{error:.3g}"
        return name, record.dtype, str(record.shape), told

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    # Mapping's own would read and compare all tensors
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.load([name])[name]

    def load(
        self, names: Iterable[str] | None = None, *, progress: Progress | bool | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Read tensors into new arrays, by name; all of them by default.

        Takes the same arguments and raises the same errors as ``Model.load``.
        """
        chosen = list(self._names if names is None else checked_names(names))
        wanted = [
            stored
            for name in chosen
            for stored in (
                self.record.tensors[name].parts.values() if name in self.record.tensors else [name]
            )
        ]
        read = self.stored.load(dict.fromkeys(wanted), progress=progress)
        return {
            name: self._decoded(self.record.tensors[name], read)
            if name in self.record.tensors
            else read[name]
            for name in chosen
        }

    def _decoded(
        self, record: TensorRecord, read: Mapping[str, npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        parts = {suffix: read[name] for suffix, name in record.parts.items()}
        return self._method.decode(parts, record.dtype, tuple(record.shape))

    def to_torch(
        self, names: Iterable[str] | None = None, *, progress: Progress | bool | None = None
    ) -> dict[str, torch.Tensor]:
        """Like ``load``, into torch tensors on the CPU; needs the extra ``tierstore[torch]``."""
        read = self.load(names, progress=progress)
        return {name: _as_torch(name, array) for name, array in read.items()}


def _as_torch(name: str, array: npt.NDArray[Any]) -> torch.Tensor:
    plain = np.ascontiguousarray(array)
    return as_torch(plain.reshape(-1).view(np.uint8), array_bytes(name, plain).dtype, array.shape)
