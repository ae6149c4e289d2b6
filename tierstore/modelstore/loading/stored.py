"""Bytes of a version as they lie in chunks: pieces, spans, stored tensors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tierstore.deferred import np
from tierstore.format.dtypes import DTYPES
from tierstore.format.manifest import FileEntry, TensorEntry, pieces
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.decode import Part, Sink
from tierstore.modelstore.chunks.plan import spans_of_rows
from tierstore.modelstore.chunks.reader import ChunkReader, VerifiedReader
from tierstore.modelstore.chunks.sharing import Want

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class PlacedPiece:
    """One chunk of a tensor or file.

    Attributes:
        place: Place of the chunk's frame.
        begin: Offset of the chunk in the tensor or file, in bytes.
        plain_bytes: Plain bytes of the chunk.
    """

    place: ChunkPlace
    begin: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class SpanRead:
    """Bytes ``[low, high)`` of a tensor or file, and the buffer that they go to.

    Attributes:
        chunks: Chunks of the tensor or file; those that do not overlap the span are ignored.
        low: First byte, an offset like ``begin`` of the chunks.
        high: End, likewise.
        out: The buffer, exactly as long as the span.
    """

    chunks: Sequence[PlacedPiece]
    low: int
    high: int
    out: memoryview

    def holds(self, chunk: PlacedPiece) -> bool:
        """Return whether all of a chunk is wanted."""
        return chunk.begin >= self.low and chunk.begin + chunk.plain_bytes <= self.high

    def take(self, begin: int, plain: memoryview) -> None:
        """Copy the span's part of plain bytes that begin at offset ``begin``."""
        start, stop = max(begin, self.low), min(begin + len(plain), self.high)
        self.out[start - self.low : stop - self.low] = plain[start - begin : stop - begin]


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one version: its layout and the reader of its chunks."""

    table: ChunkTable
    reader: ChunkReader
    chunk_size: int

    def verified(self) -> VerifiedContent:
        """Return the same bytes as what may be stored again."""
        return VerifiedContent(self.table, self.reader.verified(), self.chunk_size)

    def placed(self, chunks: bytes, nbytes: int) -> Iterator[PlacedPiece]:
        """Yield the chunks of a tensor or file of ``nbytes`` bytes, in order."""
        for piece in pieces(chunks, nbytes, self.chunk_size):
            place = self.table.find(piece.digest)
            assert place is not None  # Store.load checked that the layout holds every chunk
            yield PlacedPiece(place, piece.begin, piece.plain_bytes)

    def file_pieces(self, file: FileEntry) -> list[PlacedPiece]:
        """Return the chunks of a file in order; ``begin`` counts from behind its header."""
        if not file.header:
            return list(self.placed(file.chunks, file.size))
        return [
            PlacedPiece(piece.place, entry.begin + piece.begin, piece.plain_bytes)
            for entry in file.tensors
            for piece in self.placed(entry.chunks, entry_bytes(entry))
        ]

    def read_spans(
        self, spans: Sequence[SpanRead], *, share: bool = False, own: bool = False
    ) -> None:
        """Fill every ``out``.

        Of chunks that are not wanted whole, just the blocks that hold wanted bytes are read.
        ``share`` and ``own`` are those of ``ChunkReader.read``.
        """
        wants: list[Want] = []
        parts: list[tuple[Part, Sink]] = []
        for span in spans:
            for p in span.chunks:
                end = p.begin + p.plain_bytes
                if span.holds(p):
                    at = p.begin - span.low
                    wants.append(Want(p.place, span.out[at : at + p.plain_bytes]))
                elif p.begin < span.high and end > span.low:
                    part = Part(p.place, p.begin, p.plain_bytes, [(span.low, span.high)])
                    parts.append((part, span.take))
        self.reader.read(wants, share=share, own=own)
        self.reader.read_parts(parts)


@dataclass(frozen=True, slots=True)
class VerifiedContent(Content):
    """The bytes of one version as what may be stored again; made by ``Content.verified``."""

    reader: VerifiedReader


class StoredTensor:
    """A tensor's bytes in chunks of its own, as one manifest has them, without any patches.

    Args:
        content: The version's layout and reader.
        entry: The tensor's entry in the manifest.
    """

    __slots__ = ("content", "entry")

    def __init__(self, content: Content, entry: TensorEntry) -> None:
        self.content, self.entry = content, entry

    @property
    def nbytes(self) -> int:
        """Plain bytes of the tensor."""
        return entry_bytes(self.entry)

    @property
    def digests(self) -> bytes:
        """Digests of the tensor's chunks in order, end to end."""
        return self.entry.chunks

    def chunks(self) -> list[PlacedPiece]:
        """Return the tensor's chunks, in order."""
        return list(self.content.placed(self.entry.chunks, self.nbytes))

    def wants(self, out: memoryview) -> list[Want]:
        """Return the reads that fill ``out`` (``nbytes`` long) with the whole tensor."""
        return [Want(p.place, out[p.begin : p.begin + p.plain_bytes]) for p in self.chunks()]

    def read_span(self, low: int, high: int, out: memoryview, *, own: bool = False) -> None:
        """Read plain bytes ``[low, high)`` into ``out``, which is as long as that.

        ``own`` is that of ``ChunkReader.read``.
        """
        self.content.read_spans([SpanRead(self.chunks(), low, high, out)], own=own)

    @property
    def row_bytes(self) -> int:
        """Plain bytes of one row of the first dimension, which begins at a whole byte."""
        return prod(self.entry.shape[1:]) * DTYPES[self.entry.dtype].bits // 8

    def read_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the plain bytes of rows of the first dimension, as (rows, bytes of a row).

        Args:
            rows: Row numbers within range, in any order; repeats are allowed.
        """
        row_bytes = self.row_bytes
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
        """Copy wanted bytes from decoded blocks into ``out``, through one buffer of all spans."""
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

        self.content.reader.read_parts([(part, sink) for part in self._parts(spans)])
        which = np.searchsorted(stops, rows * row_bytes, "right")
        where = offsets[which] + rows * row_bytes - starts[which]
        out[:] = packed.reshape(-1, row_bytes)[where // row_bytes]

    def _parts(self, spans: list[tuple[int, int]]) -> list[Part]:
        size = self.content.chunk_size
        numbers: dict[int, list[tuple[int, int]]] = {}
        for start, stop in spans:
            for number in range(start // size, (stop - 1) // size + 1):
                numbers.setdefault(number, []).append((start, stop))
        chunks = self.chunks()
        return [
            Part(chunks[number].place, chunks[number].begin, chunks[number].plain_bytes, own)
            for number, own in numbers.items()
        ]


def entry_bytes(entry: TensorEntry) -> int:
    """Return the plain bytes of a tensor."""
    return prod(entry.shape) * DTYPES[entry.dtype].bits // 8
