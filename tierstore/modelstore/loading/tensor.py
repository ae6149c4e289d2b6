"""One tensor of a version, read when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from tierstore.deferred import np
from tierstore.errors import UsageError
from tierstore.format.dtypes import DTYPES, numpy_dtype
from tierstore.format.manifest import FileEntry, TensorEntry, pieces
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.decode import Part, Sink
from tierstore.modelstore.chunks.plan import spans_of_rows
from tierstore.modelstore.chunks.reader import ChunkReader
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.loading.arrays import as_array, as_torch, new_bytes

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch


@dataclass(frozen=True, slots=True)
class PlacedPiece:
    """One chunk: where it lies, and which bytes of the tensor or file it holds."""

    place: ChunkPlace
    begin: int
    length: int


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``[low, high)`` of a tensor or file, and where they go.

    Attributes:
        chunks: those of the tensor or file that overlap the span; others are ignored.
        low: counted as ``begin`` of the chunks is.
        high: likewise.
        out: as long as the span.
    """

    chunks: Sequence[PlacedPiece]
    low: int
    high: int
    out: memoryview

    def holds(self, chunk: PlacedPiece) -> bool:
        """Whether all of a chunk is wanted."""
        return chunk.begin >= self.low and chunk.begin + chunk.length <= self.high

    def take(self, begin: int, plain: memoryview) -> None:
        """Copy what belongs here of plain bytes that begin at ``begin``."""
        start, stop = max(begin, self.low), min(begin + len(plain), self.high)
        self.out[start - self.low : stop - self.low] = plain[start - begin : stop - begin]


@dataclass(frozen=True, slots=True)
class Content:
    """How the bytes of one version are reached: its layout and who reads it."""

    table: ChunkTable
    reader: ChunkReader
    chunk_size: int

    def placed(self, chunks: bytes, nbytes: int) -> Iterator[PlacedPiece]:
        """The chunks of a tensor or file of ``nbytes`` bytes, in order."""
        for piece in pieces(chunks, nbytes, self.chunk_size):
            place = self.table.find(piece.digest)
            assert place is not None  # Store.load checked that the layout holds every chunk
            yield PlacedPiece(place, piece.begin, piece.length)

    def file_pieces(self, file: FileEntry) -> list[PlacedPiece]:
        """The chunks of a file in order; ``begin`` counts from behind its header."""
        if not file.header:
            return list(self.placed(file.chunks, file.size))
        return [
            PlacedPiece(piece.place, entry.begin + piece.begin, piece.length)
            for entry in file.tensors
            for piece in self.placed(entry.chunks, entry_bytes(entry))
        ]

    def read_spans(self, spans: Sequence[Span], *, share: bool = False) -> None:
        """Fill every ``out``: whole chunks go straight to their place, of others just the blocks
        that hold wanted bytes are read. ``share`` is that of ``ChunkReader.read``.
        """
        wants: list[Want] = []
        parts: list[tuple[Part, Sink]] = []
        for span in spans:
            for p in span.chunks:
                end = p.begin + p.length
                if span.holds(p):
                    at = p.begin - span.low
                    wants.append(Want(p.place, span.out[at : at + p.length]))
                elif p.begin < span.high and end > span.low:
                    part = Part(p.place, p.begin, p.length, [(span.low, span.high)])
                    parts.append((part, span.take))
        self.reader.read(wants, share=share)
        self.reader.read_parts(parts)


class Tensor:
    """A tensor of a version: its dtype and shape are known, its bytes stay in the store.

    ``tensor[...]`` reads only the blocks (256 KiB of plain bytes) that hold the rows asked for, by
    the index of the first dimension; further dimensions are taken from those rows in memory.
    """

    __slots__ = ("_content", "_entry", "_file_path", "name")

    def __init__(self, content: Content, entry: TensorEntry, name: str, file_path: str) -> None:
        self._content, self._entry = content, entry
        self.name = name
        self._file_path = file_path

    @property
    def content(self) -> Content:
        """How the bytes of its version are reached."""
        return self._content

    @property
    def file(self) -> str:
        """Path of the file that holds it."""
        return self._file_path

    @property
    def name_in_file(self) -> str:
        """Its name in that file's header."""
        return self._entry.name

    @property
    def dtype(self) -> str:
        """The safetensors dtype, such as ``BF16``."""
        return self._entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; ``()`` for a scalar."""
        return self._entry.shape

    @property
    def ndim(self) -> int:
        """Count of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Plain bytes."""
        return entry_bytes(self._entry)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without dimensions")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, {list(self.shape)}, {self.nbytes} bytes)"

    @property
    def signature(self) -> bytes:
        """Where it is equal, so are the bytes: digests of what the tensor is read from."""
        return self._entry.chunks

    @property
    def base(self) -> Tensor:
        """The tensor that is stored in chunks of its own: itself, unless patches lie on it."""
        return self

    def chunks(self) -> list[PlacedPiece]:
        """Its chunks, in order; ``UsageError`` when patches lie on it (see ``base``)."""
        return list(self._content.placed(self._entry.chunks, self.nbytes))

    def places(self) -> list[ChunkPlace]:
        """Where all chunks lie that reading it needs, without the bases of deltas."""
        return [piece.place for piece in self.chunks()]

    def wants(self, out: memoryview) -> list[Want]:
        """The reads that fill ``out`` (``nbytes`` long) with the whole tensor."""
        return [Want(p.place, out[p.begin : p.begin + p.length]) for p in self.chunks()]

    def numpy(self) -> npt.NDArray[Any]:
        """Read it all into an array of its own (see ``Model`` for bf16, fp8, sub-byte dtypes).

        What is hot on this node is mapped instead of copied; writing to it stays private.
        """
        return self.view(self.read_bytes())

    def torch(self) -> torch.Tensor:
        """Read it all into a new torch tensor on the CPU."""
        return as_torch(self.read_bytes(), self.dtype, self.shape)

    def view(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Its plain bytes as an array of its dtype and shape."""
        return as_array(data, self.dtype, self.shape)

    def hot(self) -> npt.NDArray[np.uint8] | None:
        """Its plain bytes as an array of their own, mapped if they are many, if all are hot on this
        node.
        """
        return hot_bases([self])[0]

    def read_bytes(self) -> npt.NDArray[np.uint8]:
        """Its plain bytes, all of them, in one dimension."""
        data = self.hot()
        if data is None:
            data = new_bytes(self.nbytes)
            self._content.reader.read(self.wants(data.data))
        return data

    def read_span(self, low: int, high: int, out: memoryview) -> None:
        """Read its plain bytes ``[low, high)`` into ``out``, which is as long as that."""
        self._content.read_spans([Span(self.chunks(), low, high, out)])

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError(f"tensor {self.name!r} lies in the store: reading it makes a copy")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Read a part: the first dimension by int, slice, list or integer array.

        Raises:
            IndexError: a row is out of range.
            UsageError: the dtype has no numpy counterpart (sub-byte dtypes).
        """
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        everything = first is Ellipsis or first is None or (isinstance(key, tuple) and not key)
        if DTYPES[self.dtype].numpy is None and not everything:
            raise UsageError(f"tensor {self.name!r} is {self.dtype}: its packed rows have no index")
        if everything or not self.shape or _is_mask(first):
            return np.asarray(self.numpy()[key])
        if isinstance(first, slice):
            return np.asarray(self._read_slice(first)[(slice(None), *rest)])
        rows = _rows(first, self.shape[0], self.name)
        taken = self._read_rows(rows.reshape(-1))
        if not rest:
            return taken.reshape(rows.shape + self.shape[1:])
        # numpy's rules for the keys together, applied to the rows that were read
        own = np.arange(rows.size).reshape(rows.shape) if rows.ndim else 0
        return np.asarray(taken[(own, *rest)])

    def _read_slice(self, key: slice) -> npt.NDArray[Any]:
        start, stop, step = key.indices(self.shape[0])
        if abs(step) != 1:
            return self._read_rows(np.arange(start, stop, step))
        if step == 1:
            return self._read_span(start, max(start, stop))
        return self._read_span(min(start, stop) + 1, start + 1)[::-1]

    def _read_span(self, first: int, last: int) -> npt.NDArray[Any]:
        item = numpy_dtype(self.dtype)
        row_bytes = prod(self.shape[1:]) * item.itemsize
        out = np.empty((last - first) * row_bytes, np.uint8)
        self.read_span(first * row_bytes, last * row_bytes, out.data)
        return out.view(item).reshape(last - first, *self.shape[1:])

    def _read_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        out = self.read_rows(rows).reshape(-1)
        return out.view(numpy_dtype(self.dtype)).reshape(len(rows), *self.shape[1:])

    def read_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The plain bytes of rows of the first dimension, (rows, bytes of a row).

        Args:
            rows: their numbers, in range, in any order, repeats allowed. A row begins at a byte.
        """
        row_bytes = prod(self.shape[1:]) * DTYPES[self.dtype].bits // 8
        out = np.empty((len(rows), row_bytes), np.uint8)
        spans = spans_of_rows(rows, row_bytes)
        if spans:
            self._gather(spans, rows, out, row_bytes)
        return out

    def _gather(
        self,
        spans: list[tuple[int, int]],
        rows: npt.NDArray[np.int64],
        out: npt.NDArray[np.uint8],
        row_bytes: int,
    ) -> None:
        """Copy wanted bytes from decoded blocks into ``out`` through one buffer of the spans."""
        starts = np.array([start for start, _ in spans])
        stops = np.array([stop for _, stop in spans])
        offsets = np.concatenate(([0], np.cumsum(stops - starts)))
        packed = np.empty(offsets[-1], np.uint8)
        lock = threading.Lock()

        def sink(begin: int, plain: memoryview) -> None:
            block = np.frombuffer(plain, np.uint8)
            end = begin + len(block)
            low = int(np.searchsorted(stops, begin, "right"))
            high = int(np.searchsorted(starts, end, "left"))
            with lock:
                for at in range(low, high):
                    start, stop = max(int(starts[at]), begin), min(int(stops[at]), end)
                    to = int(offsets[at]) + start - int(starts[at])
                    packed[to : to + stop - start] = block[start - begin : stop - begin]

        self._content.reader.read_parts([(part, sink) for part in self._parts(spans)])
        which = np.searchsorted(stops, rows * row_bytes, "right")
        where = offsets[which] + rows * row_bytes - starts[which]
        out[:] = packed.reshape(-1, row_bytes)[where // row_bytes]

    def _parts(self, spans: list[tuple[int, int]]) -> list[Part]:
        size = self._content.chunk_size
        numbers: dict[int, list[tuple[int, int]]] = {}
        for start, stop in spans:
            for number in range(start // size, (stop - 1) // size + 1):
                numbers.setdefault(number, []).append((start, stop))
        chunks = self.chunks()
        return [
            Part(chunks[number].place, chunks[number].begin, chunks[number].length, own)
            for number, own in numbers.items()
        ]


def hot_bases(tensors: Sequence[Tensor]) -> list[npt.NDArray[np.uint8] | None]:
    """``Tensor.hot`` of the ``base`` of many of one version: patches are still to be laid over."""
    if not tensors:
        return []
    content, bases = tensors[0].content, [tensor.base for tensor in tensors]
    return content.reader.hot_tensors(
        [(one.signature, one.nbytes) for one in bases], content.chunk_size
    )


def entry_bytes(entry: TensorEntry) -> int:
    """Plain bytes of a tensor."""
    return prod(entry.shape) * DTYPES[entry.dtype].bits // 8


def _is_mask(key: Any) -> bool:
    array = np.asarray(key) if isinstance(key, list | np.ndarray) else None
    return array is not None and array.dtype == bool


def _rows(key: Any, count: int, name: str) -> npt.NDArray[np.int64]:
    rows = np.asarray(key)
    if rows.size == 0:
        rows = rows.astype(np.int64)
    if rows.dtype.kind not in "iu":
        raise IndexError(f"tensor {name!r} is indexed by ints, slices and arrays of ints")
    outside = (rows < -count) | (rows >= count)  # before the cast: it would wrap a uint64
    if outside.any():
        bad = int(rows[outside].flat[0])
        raise IndexError(f"row {bad} is out of range for tensor {name!r} with {count} rows")
    rows = rows.astype(np.int64)
    return np.where(rows < 0, rows + count, rows)
