"""Patches that lie on a tensor: what they replace, of all of it or of a part.

::

    base (a tensor in chunks, or the newest patch that replaced all of it)
      <- rows or elements of the oldest patch <- ... <- of the newest

Of a part, only those chunks of a patch are read that hold what is wanted of it: a patch's indices
rise, and its manifest says which range of them each chunk holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tierstore.deferred import np
from tierstore.format.checks import damaged
from tierstore.format.patch import PatchPart
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.chunks.reader import ChunkReader
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.loading.stored import StoredTensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from tierstore.deferred import Bytes, Indices

_WINDOW_BYTES = 64 << 20
"""Bytes of patches that are read at once."""


@dataclass(frozen=True, slots=True)
class Hits:
    """The units of some rows that a patch replaces.

    Attributes:
        rows: Positions, in the rows asked for, of the rows that are hit; once per unit.
        units: The units that are replaced, counted in the tensor.
        positions: Positions of the new values in the patch.
    """

    rows: npt.NDArray[np.int64]
    units: Indices
    positions: npt.NDArray[np.int64]


class Overlay:
    """The change that one patch makes to rows or elements of one tensor. Thread-safe.

    A *unit* is what one index stands for: a row, or an element.

    Args:
        part: Which tensor is changed, and whether by rows or by elements.
        indices: The stored indices of the changed units, ascending.
        values: The stored new values of these units.
        touched: The first and the last index in each chunk of ``indices``.
        title: Names the patch in messages.
    """

    def __init__(
        self,
        part: PatchPart,
        indices: StoredTensor,
        values: StoredTensor,
        touched: Sequence[tuple[int, int]],
        title: str,
    ) -> None:
        self.part, self.indices, self.values = part, indices, values
        self.unit_bytes = part.unit_bytes
        self._per_chunk = indices.content.chunk_size // 8
        self._firsts = np.array([first for first, _ in touched], np.int64)
        self._lasts = np.array([last for _, last in touched], np.int64)
        self._title = title
        self._chunks: dict[int, Indices] = {}

    @property
    def nbytes(self) -> int:
        """Plain bytes of indices and values together."""
        return self.indices.nbytes + self.values.nbytes

    @property
    def digests(self) -> bytes:
        """Digests of the chunks of indices and values, end to end."""
        return self.indices.digests + self.values.digests

    def places(self) -> list[ChunkPlace]:
        """Return the places of the chunks of indices and values."""
        return [piece.place for one in (self.indices, self.values) for piece in one.chunks()]

    def wants(self, indices: Bytes, values: Bytes) -> list[Want]:
        """Return the reads that fill these buffers with all indices and all values."""
        return [*self.indices.wants(indices.data), *self.values.wants(values.data)]

    def put(self, out: Bytes, indices: Bytes, values: Bytes) -> None:
        """Replace units of the whole tensor ``out`` by the indices and values that were read."""
        every = indices.view("<i8")
        for number in range(len(self._firsts)):
            start = number * self._per_chunk
            self._check(number, every[start : start + self._per_chunk])
        scatter(out, self.unit_bytes, every, values)

    def over(self, low: int, high: int, out: Bytes) -> None:
        """Replace the changed units in ``out``, which holds bytes ``[low, high)`` of the tensor."""
        if not self.unit_bytes:
            return
        step = max(1, _WINDOW_BYTES // self.unit_bytes)
        for start, units in self._within(low // self.unit_bytes, -(-high // self.unit_bytes)):
            for at in range(0, len(units), step):
                some = units[at : at + step]
                first = (start + at) * self.unit_bytes
                values = _read(self.values, first, first + len(some) * self.unit_bytes)
                self._put_some(low, high, out, some, values)

    def _put_some(self, low: int, high: int, out: Bytes, units: Indices, values: Bytes) -> None:
        whole = (units * self.unit_bytes >= low) & ((units + 1) * self.unit_bytes <= high)
        for at in np.flatnonzero(~whole).tolist():  # a row on the edge of the range
            begin = int(units[at]) * self.unit_bytes
            start, stop = max(begin, low), min(begin + self.unit_bytes, high)
            own = values[at * self.unit_bytes :]
            out[start - low : stop - low] = own[start - begin : stop - begin]
        inner = np.flatnonzero(whole)
        if len(inner):
            first, last = int(inner[0]), int(inner[-1]) + 1
            begin = -(-low // self.unit_bytes)
            room = out[begin * self.unit_bytes - low :]
            room = room[: len(room) // self.unit_bytes * self.unit_bytes]
            own = values[first * self.unit_bytes : last * self.unit_bytes]
            scatter(room, self.unit_bytes, units[first:last] - begin, own)

    def _within(self, low: int, high: int) -> Iterator[tuple[int, Indices]]:
        """Yield the changed units in ``[low, high)`` by chunk, with the position of the first."""
        for number in np.flatnonzero((self._firsts < high) & (self._lasts >= low)).tolist():
            units = self._chunk(number)
            first, last = np.searchsorted(units, [low, high]).tolist()
            if first < last:
                yield number * self._per_chunk + first, units[first:last]

    def hits(self, rows: npt.NDArray[np.int64], per_row: int) -> Hits:
        """Find what the patch replaces in ``rows`` (ascending, distinct) of ``per_row`` units."""
        none = np.empty(0, np.int64)
        found = [Hits(none, none, none)]
        for number, (first, last) in enumerate(zip(self._firsts, self._lasts, strict=True)):
            near = (rows * per_row <= last) & ((rows + 1) * per_row > first)
            if near.any():
                units = self._chunk(number)
                which, at = _matches(units, rows, np.flatnonzero(near), per_row)
                found.append(Hits(which, units[at], number * self._per_chunk + at))
        return Hits(
            np.concatenate([hit.rows for hit in found]),
            np.concatenate([hit.units for hit in found]),
            np.concatenate([hit.positions for hit in found]),
        )

    def _chunk(self, number: int) -> Indices:
        units = self._chunks.get(number)
        if units is None:
            start = number * self._per_chunk * 8
            stop = min(start + self._per_chunk * 8, self.indices.nbytes)
            data = _read(self.indices, start, stop)
            units = data.view("<i8")
            self._check(number, units)
            self._chunks[number] = units
        return units

    def _check(self, number: int, units: Indices) -> None:
        """Verify indices against the manifest's bounds, so that nothing is written out of place."""
        first, last = int(self._firsts[number]), int(self._lasts[number])
        if units[0] != first or units[-1] != last or not (np.diff(units) > 0).all():
            damaged(self._title, f"the indices for tensor {self.part.target!r} are out of order")


def _matches(
    units: Indices, rows: npt.NDArray[np.int64], some: npt.NDArray[np.int64], per_row: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each unit changed in ``rows`` the position of its row and that in ``units``."""
    lows = np.searchsorted(units, rows[some] * per_row)
    counts = np.searchsorted(units, (rows[some] + 1) * per_row) - lows
    before = np.cumsum(counts) - counts
    positions = np.repeat(lows - before, counts) + np.arange(counts.sum())
    return np.repeat(some, counts), positions


def _read(tensor: StoredTensor, low: int, high: int) -> Bytes:
    out = np.empty(high - low, np.uint8)
    tensor.read_span(low, high, out.data, own=True)
    return out


def scatter(out: Bytes, unit_bytes: int, indices: Indices, values: Bytes) -> None:
    """Copy units of ``unit_bytes`` from ``values`` to their ``indices`` in ``out``, bit for bit."""
    if unit_bytes in {1, 2, 4, 8}:
        out.view(f"<u{unit_bytes}")[indices] = values.view(f"<u{unit_bytes}")
    elif unit_bytes:
        out.reshape(-1, unit_bytes)[indices] = values.reshape(-1, unit_bytes)


def read_rows(
    base: StoredTensor, overlays: Sequence[Overlay], rows: npt.NDArray[np.int64]
) -> Bytes:
    """Return the plain bytes of rows with patches laid over them, as (rows, bytes of a row).

    Nothing is read that a newer patch replaces.

    Args:
        base: The tensor that the patches lie on.
        overlays: The patches, the oldest first.
        rows: Row numbers within range, in any order; repeats are allowed.
    """
    if not overlays:
        return base.read_rows(rows)
    unique, inverse = np.unique(rows, return_inverse=True)
    row_bytes = base.row_bytes
    out = np.empty((len(unique), row_bytes), np.uint8)
    left = np.arange(len(unique))  # rows that newer patches do not replace as a whole
    found: list[tuple[Overlay, Hits]] = []
    for overlay in reversed(overlays):
        if not overlay.unit_bytes or not len(left):
            continue
        hits = overlay.hits(unique[left], row_bytes // overlay.unit_bytes)
        if len(hits.rows):
            found.append((overlay, Hits(left[hits.rows], hits.units, hits.positions)))
        if overlay.part.kind == "rows":
            left = np.delete(left, hits.rows)
    out[left] = base.read_rows(unique[left])
    for overlay, hits in reversed(found):
        values = overlay.values.read_rows(hits.positions)
        per_row = row_bytes // overlay.unit_bytes
        units = hits.units + (hits.rows - unique[hits.rows]) * per_row
        scatter(out.reshape(-1), overlay.unit_bytes, units, values.reshape(-1))
    return out[inverse.reshape(-1)]


def lay_over(reader: ChunkReader, work: Sequence[tuple[Overlay, Bytes]]) -> None:
    """Lay patches over whole tensors, many in one read.

    Args:
        reader: The version's reader.
        work: Patches, each with the bytes of its tensor; of one tensor the oldest patch first.
    """
    for batch in batches(work, lambda pair: pair[0].nbytes, _WINDOW_BYTES):
        if batch[0][0].nbytes > _WINDOW_BYTES:
            overlay, out = batch[0]
            overlay.over(0, len(out), out)
            continue
        buffers = [
            (np.empty(o.indices.nbytes, np.uint8), np.empty(o.values.nbytes, np.uint8))
            for o, _ in batch
        ]
        pairs = list(zip(batch, buffers, strict=True))
        reader.read([want for (o, _), own in pairs for want in o.wants(*own)], own=True)
        for (overlay, out), own in pairs:
            overlay.put(out, *own)
