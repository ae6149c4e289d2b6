"""Tensors with patches on them: read from the chunks below, then from what the patches replace.

::

    base (a tensor in chunks, or the newest patch that replaced all of it)
      <- rows or elements of the oldest patch <- ... <- of the newest

Of a part, only those chunks of a patch are read that hold what is wanted of it: a patch's indices
rise, and its manifest says which range of them each chunk holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tierstore.deferred import np
from tierstore.errors import UsageError
from tierstore.format.checks import damaged
from tierstore.format.manifest import Manifest, TensorEntry, named_tensors, patch_info
from tierstore.format.patch import PatchPart, parse_patch, touched_ranges
from tierstore.format.safetensors import parse_header
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.chunks.fetch import OnChunk
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.chunks.reader import ChunkReader
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.loading.tensor import Content, PlacedPiece, Tensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from tierstore.modelstore.loading.arrays import Bytes, Indices

_WINDOW = 64 << 20
"""Bytes of patches that are read at once."""


@dataclass(frozen=True, slots=True)
class Hits:
    """What a patch replaces in some rows: which of these rows, and for each where its new values
    are and which unit they replace.
    """

    rows: npt.NDArray[np.int64]
    units: Indices
    positions: npt.NDArray[np.int64]


class Overlay:
    """What one patch does to some rows or elements of one tensor. Thread-safe.

    A *unit* is what one index stands for: a row, or an element.

    Args:
        part: which rows or elements of what.
        indices: of the units, in the store.
        values: of the units, in the store.
        touched: the first and the last index in each chunk of ``indices``.
        chunk_size: of the version.
        title: names the patch in messages.
    """

    def __init__(
        self,
        part: PatchPart,
        indices: Tensor,
        values: Tensor,
        touched: Sequence[tuple[int, int]],
        chunk_size: int,
        title: str,
    ) -> None:
        self.part, self.indices, self.values = part, indices, values
        self.unit = part.unit_bytes
        self._per_chunk = chunk_size // 8
        self._firsts = np.array([first for first, _ in touched], np.int64)
        self._lasts = np.array([last for _, last in touched], np.int64)
        self._title = title
        self._chunks: dict[int, Indices] = {}

    @property
    def nbytes(self) -> int:
        """Plain bytes of indices and values."""
        return self.indices.nbytes + self.values.nbytes

    def wants(self, indices: Bytes, values: Bytes) -> list[Want]:
        """The reads that fill these buffers with all of it."""
        return [*self.indices.wants(indices.data), *self.values.wants(values.data)]

    def put(self, out: Bytes, indices: Bytes, values: Bytes) -> None:
        """Replace units of a whole tensor ``out`` by what ``wants`` has read."""
        every = indices.view("<i8")
        for number in range(len(self._firsts)):
            start = number * self._per_chunk
            self._check(number, every[start : start + self._per_chunk])
        scatter(out, self.unit, every, values)

    def over(self, low: int, high: int, out: Bytes) -> None:
        """Replace what it has of the tensor's bytes ``[low, high)``, which ``out`` holds."""
        if not self.unit:
            return
        step = max(1, _WINDOW // self.unit)
        for start, units in self._within(low // self.unit, -(-high // self.unit)):
            for at in range(0, len(units), step):
                some = units[at : at + step]
                first = (start + at) * self.unit
                values = _read(self.values, first, first + len(some) * self.unit)
                self._put_some(low, high, out, some, values)

    def _put_some(self, low: int, high: int, out: Bytes, units: Indices, values: Bytes) -> None:
        whole = (units * self.unit >= low) & ((units + 1) * self.unit <= high)
        for at in np.flatnonzero(~whole).tolist():  # a row on the edge of the range
            begin = int(units[at]) * self.unit
            start, stop = max(begin, low), min(begin + self.unit, high)
            own = values[at * self.unit :]
            out[start - low : stop - low] = own[start - begin : stop - begin]
        inner = np.flatnonzero(whole)
        if len(inner):
            first, last = int(inner[0]), int(inner[-1]) + 1
            begin = -(-low // self.unit)
            room = out[begin * self.unit - low :]
            room = room[: len(room) // self.unit * self.unit]
            own = values[first * self.unit : last * self.unit]
            scatter(room, self.unit, units[first:last] - begin, own)

    def _within(self, low: int, high: int) -> Iterator[tuple[int, Indices]]:
        """The units in ``[low, high)`` by chunk, and at which position each chunk's begin."""
        for number in np.flatnonzero((self._firsts < high) & (self._lasts >= low)).tolist():
            units = self._chunk(number)
            first, last = np.searchsorted(units, [low, high]).tolist()
            if first < last:
                yield number * self._per_chunk + first, units[first:last]

    def hits(self, rows: npt.NDArray[np.int64], per_row: int) -> Hits:
        """What it replaces in ``rows`` (ascending, each once) of ``per_row`` units each."""
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
        """What the manifest says bounds the indices, so nothing is written out of place."""
        first, last = int(self._firsts[number]), int(self._lasts[number])
        if units[0] != first or units[-1] != last or not (np.diff(units) > 0).all():
            damaged(self._title, f"the indices for tensor {self.part.target!r} are out of order")


def _matches(
    units: Indices, rows: npt.NDArray[np.int64], some: npt.NDArray[np.int64], per_row: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which of ``rows`` each match is in, and where in ``units`` it is."""
    lows = np.searchsorted(units, rows[some] * per_row)
    counts = np.searchsorted(units, (rows[some] + 1) * per_row) - lows
    before = np.cumsum(counts) - counts
    positions = np.repeat(lows - before, counts) + np.arange(counts.sum())
    return np.repeat(some, counts), positions


def _read(tensor: Tensor, low: int, high: int) -> Bytes:
    out = np.empty(high - low, np.uint8)
    tensor.read_span(low, high, out.data)
    return out


def scatter(out: Bytes, unit: int, indices: Indices, values: Bytes) -> None:
    """Copy units of ``unit`` bytes from ``values`` to their ``indices`` in ``out``, bit for bit."""
    if unit in {1, 2, 4, 8}:
        out.view(f"<u{unit}")[indices] = values.view(f"<u{unit}")
    elif unit:
        out.reshape(-1, unit)[indices] = values.reshape(-1, unit)


class PatchedTensor(Tensor):
    """A tensor with patches on it; it reads like any other, but lies in no chunks of its own.

    Args:
        content: of the version, its patches included.
        entry: of the tensor in the full manifest below.
        name: of the tensor.
        file_path: of its file.
        base: what the patches lie on.
        overlays: the patches, the oldest first.
    """

    __slots__ = ("_base", "overlays")

    def __init__(
        self,
        content: Content,
        entry: TensorEntry,
        name: str,
        file_path: str,
        base: Tensor,
        overlays: Sequence[Overlay],
    ) -> None:
        super().__init__(content, entry, name, file_path)
        self._base = base
        self.overlays = tuple(overlays)

    @property
    def base(self) -> Tensor:
        """The tensor that the patches lie on."""
        return self._base

    @property
    def signature(self) -> bytes:
        parts = [(one.indices.signature, one.values.signature) for one in self.overlays]
        return b"".join([self._base.signature, *(own for pair in parts for own in pair)])

    def chunks(self) -> list[PlacedPiece]:
        raise UsageError(
            f"tensor {self.name!r} has patches on it, its bytes are in no chunks as they are: read "
            "it as a tensor, or run 'tierstore fold' first"
        )

    def places(self) -> list[ChunkPlace]:
        places = self._base.places()
        for overlay in self.overlays:
            places += [*overlay.indices.places(), *overlay.values.places()]
        return places

    def hot(self) -> Bytes | None:
        data = self._base.hot()
        if data is not None:
            lay_over(self._content.reader, [(self, data)])
        return data

    def read_bytes(self) -> Bytes:
        data = self._base.read_bytes()
        lay_over(self._content.reader, [(self, data)])
        return data

    def read_span(self, low: int, high: int, out: memoryview) -> None:
        self._base.read_span(low, high, out)
        for overlay in self.overlays:
            overlay.over(low, high, np.frombuffer(out, np.uint8))

    def read_rows(self, rows: npt.NDArray[np.int64]) -> Bytes:
        unique, inverse = np.unique(rows, return_inverse=True)
        row_bytes = self._base.read_rows(rows[:0]).shape[1]
        out = np.empty((len(unique), row_bytes), np.uint8)
        left = np.arange(len(unique))  # rows that newer patches do not replace as a whole
        found: list[tuple[Overlay, Hits]] = []
        for overlay in reversed(self.overlays):
            if not overlay.unit or not len(left):
                continue
            hits = overlay.hits(unique[left], row_bytes // overlay.unit)
            if len(hits.rows):
                found.append((overlay, Hits(left[hits.rows], hits.units, hits.positions)))
            if overlay.part.kind == "rows":
                left = np.delete(left, hits.rows)
        out[left] = self._base.read_rows(unique[left])
        for overlay, hits in reversed(found):
            values = overlay.values.read_rows(hits.positions)
            per_row = row_bytes // overlay.unit
            units = hits.units + (hits.rows - unique[hits.rows]) * per_row
            scatter(out.reshape(-1), overlay.unit, units, values.reshape(-1))
        return out[inverse.reshape(-1)]


def lay_over(reader: ChunkReader, items: Iterable[tuple[Tensor, Bytes]]) -> None:
    """Bring the patches of whole tensors over the bytes of what is below, many in one read.

    Args:
        reader: of the version.
        items: tensors, and the bytes that their ``base`` gave.
    """
    work = [
        (overlay, out)
        for tensor, out in items
        if isinstance(tensor, PatchedTensor)
        for overlay in tensor.overlays
    ]
    for batch in batches(work, lambda pair: pair[0].nbytes, _WINDOW):
        if batch[0][0].nbytes > _WINDOW:
            overlay, out = batch[0]
            overlay.over(0, len(out), out)
            continue
        buffers = [
            (np.empty(o.indices.nbytes, np.uint8), np.empty(o.values.nbytes, np.uint8))
            for o, _ in batch
        ]
        pairs = list(zip(batch, buffers, strict=True))
        reader.read([want for (o, _), own in pairs for want in o.wants(*own)])
        for (overlay, out), own in pairs:
            overlay.put(out, *own)


def read_whole(
    reader: ChunkReader, items: Sequence[tuple[Tensor, Bytes]], on_chunk: OnChunk | None = None
) -> None:
    """Read whole tensors into the given bytes, patches included.

    Args:
        reader: of the version.
        items: each as long as its tensor.
        on_chunk: told the plain bytes of each chunk of the tensors below the patches.
    """
    reader.read([w for tensor, out in items for w in tensor.base.wants(out.data)], on_chunk)
    lay_over(reader, items)


def tensors_of(
    content: Content, full: Manifest, patches: Sequence[tuple[str, Manifest]]
) -> dict[str, Tensor]:
    """The tensors of a version by the names that tell them apart.

    Args:
        content: of the version.
        full: the full manifest that it lies on.
        patches: manifests of the patches, the oldest first, each with its name in messages.

    Raises:
        Damaged: a patch is not one of the tensors below.
    """
    bases = {name: Tensor(content, e, name, file.path) for name, file, e in named_tensors(full)}
    if not patches:
        return bases
    entries = {name: entry for name, _, entry in named_tensors(full)}
    overlays: dict[str, list[Overlay]] = {}
    for one in fitting_parts(full, patches):
        name, part = one.part.target, one.part
        values = Tensor(content, one.entries[part.values.name], name, bases[name].file)
        if part.indices is None:
            bases[name], overlays[name] = values, []
            continue
        indices = Tensor(content, one.entries[part.indices.name], name, bases[name].file)
        ranges = touched_ranges(one.touched)
        overlay = Overlay(part, indices, values, ranges, content.chunk_size, one.title)
        overlays.setdefault(name, []).append(overlay)
    for name, own in overlays.items():
        base = bases[name]
        bases[name] = PatchedTensor(content, entries[name], name, base.file, base, own)
    return bases


@dataclass(frozen=True, slots=True)
class StoredPart:
    """What a stored patch does to one tensor.

    Attributes:
        title: names the patch in messages.
        part: what it does.
        entries: tensors of its file by their names in it.
        touched: what the manifest says of the indices.
    """

    title: str
    part: PatchPart
    entries: Mapping[str, TensorEntry]
    touched: bytes


def fitting_parts(full: Manifest, patches: Sequence[tuple[str, Manifest]]) -> Iterator[StoredPart]:
    """What patches do, in order; ``Damaged`` when the full manifest has no such tensor."""
    entries = {name: (entry.dtype, entry.shape) for name, _, entry in named_tensors(full)}
    for title, manifest in patches:
        for one in parts_of(manifest, title):
            name, part = one.part.target, one.part
            if entries.get(name) != (part.dtype, part.shape):
                damaged(title, f"it is for another tensor than {name!r} of its base")
            yield one


def parts_of(manifest: Manifest, title: str) -> Iterator[StoredPart]:
    """What one patch does to each tensor."""
    info = patch_info(manifest)
    assert info is not None
    (file,) = manifest.files
    own = {tensor.name: tensor for tensor in file.tensors}
    touched = dict(zip(own, info.touched, strict=True))
    for part in parse_patch(parse_header(file.header, file.size)).parts.values():
        yield StoredPart(title, part, own, touched[part.indices.name] if part.indices else b"")


def touched_files(manifests: Sequence[Manifest], full: Manifest) -> set[str]:
    """Paths of the files of a full manifest that patches change."""
    names = {one.part.target for manifest in manifests for one in parts_of(manifest, "")}
    return {file.path for name, file, _ in named_tensors(full) if name in names} if names else set()
