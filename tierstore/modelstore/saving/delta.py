"""One version's tensors as bases of deltas: finds the bytes that are nearest to a new chunk.

A base is always a standalone frame (depth 1): where the version itself has a delta, that delta's
base is taken. What cannot be read is no base, and the new chunk is stored standalone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from tierstore.codecs import DELTA, encode
from tierstore.codecs.base import WORD_TYPES
from tierstore.deferred import np
from tierstore.errors import TierstoreError
from tierstore.format.checks import Verified
from tierstore.format.frame import MAX_BASES, BasePiece
from tierstore.format.manifest import Manifest, TensorEntry
from tierstore.format.table import ChunkPlace
from tierstore.ids import split_digests
from tierstore.modelstore.chunks.decode import Part
from tierstore.modelstore.chunks.recent import Recent
from tierstore.modelstore.loading.stored import Content, entry_bytes
from tierstore.modelstore.saving.align import (
    BaseSpan,
    RowIndex,
    RowLayout,
    clamped,
    looks_moved,
    spans_of,
)
from tierstore.modelstore.saving.framing import ChunkBase

if TYPE_CHECKING:
    import numpy.typing as npt

_log = logging.getLogger("tierstore.delta")

LEAST_CHUNK_BYTES = 16 << 10
"""Chunks of fewer bytes are stored standalone: reading their base would be a request of its own."""
MAX_DELTA_SHARE = 0.8
"""The largest share of the standalone frame that a delta may have: a reader fetches the delta and
its base, and a standalone frame is a nearer base for later versions.
"""
_SPANS = 256
_SAMPLES, _SAMPLE_BYTES = 4, 16 << 10
_PATIENCE = 4

FindPlace = Callable[[bytes], tuple[ChunkPlace, int] | None]
"""Finds the place of a chunk and the size of its pack."""


class BaseVersion:
    """One version as a source of bases. Thread-safe.

    Args:
        label: Name of the version in reports.
        manifest: The version's full manifest.
        content: The version's layout and reader.
        find: The store's index, which may know a standalone frame that the layout does not.
        keep: How many plain chunks are kept in memory.
    """

    def __init__(
        self, label: str, manifest: Manifest, content: Content, find: FindPlace, keep: int
    ) -> None:
        self.label, self.manifest, self.content = label, manifest, content
        self._verified = content.verified().reader
        self._find = find
        table = content.table
        self._sizes = dict(zip(table.pack_ids, table.pack_sizes, strict=True))
        # all places: they must not change
        self._places: Recent[tuple[ChunkPlace, int]] = Recent(len(table))
        self._chunks: Recent[Verified] = Recent(keep)
        self._standalone: Recent[tuple[BasePiece, ...]] = Recent(4096)

    def stored(self, digest: bytes) -> list[tuple[ChunkPlace, int]]:
        """Return the places of a chunk and of its bases; empty if the version has no such chunk."""
        if digest not in self.content.table.digests:
            return []
        place, size = self.place(digest)
        return [(place, size), *(self.place(base) for base in place.bases)]

    def place(self, digest: bytes) -> tuple[ChunkPlace, int]:
        """Return the place of a chunk, standalone if there is any, and the size of its pack."""
        return self._places.get(digest, self._place)

    def _place(self, digest: bytes) -> tuple[ChunkPlace, int]:
        place = self.content.table.find(digest)
        assert place is not None  # a layout holds every chunk and every base
        found = self._find(digest) if place.bases else None
        return found if found and not found[0].bases else (place, self._sizes[place.pack])

    def chunk(self, digest: bytes) -> Verified:
        """Return the plain bytes of a chunk."""
        return self._chunks.get(digest, self._read)

    def _read(self, digest: bytes) -> Verified:
        place, _ = self.place(digest)
        return self._verified.chunk(place)

    def _pieces_of(self, digest: bytes) -> tuple[BasePiece, ...]:
        place, _ = self.place(digest)
        if not place.bases:
            return (BasePiece(digest, 0, place.plain_bytes),)
        return self.content.reader.read_head(place).bases

    def standalone(self, digest: bytes) -> tuple[BasePiece, ...]:
        """Return the pieces of standalone chunks that a chunk is read from: itself, or its base."""
        return self._standalone.get(digest, self._pieces_of)

    def assemble(self, pieces: tuple[BasePiece, ...]) -> memoryview:
        """Return the plain bytes of ``pieces``, verified."""
        first = self.chunk(pieces[0].digest)
        if len(pieces) == 1:
            return first[pieces[0].offset : pieces[0].offset + pieces[0].plain_bytes]
        data = memoryview(bytearray(sum(piece.plain_bytes for piece in pieces)))
        at = 0
        for piece in pieces:
            chunk = self.chunk(piece.digest)
            data[at : at + piece.plain_bytes] = chunk[
                piece.offset : piece.offset + piece.plain_bytes
            ]
            at += piece.plain_bytes
        return data


class BaseTensor:
    """One tensor of a version as the base of its successor in the next version. Thread-safe.

    Args:
        version: The version that holds the tensor.
        entry: The tensor's entry there.
        shape: Shape of the new tensor, which has the same dtype.
    """

    def __init__(self, version: BaseVersion, entry: TensorEntry, shape: tuple[int, ...]) -> None:
        self._version, self._entry = version, entry
        self._nbytes = entry_bytes(entry)
        self._chunks = split_digests(entry.chunks)
        self._rows = _rows_of(entry, shape)
        self.has_other_rows = self._rows is not None and shape != entry.shape
        self._lock = threading.Lock()
        self._index: RowIndex | None = None
        self._misses = self._asked = 0
        self._broken = False

    def nearest(self, begin: int, plain: memoryview) -> ChunkBase | None:
        """Return a base for the chunk ``plain`` at ``begin``, or ``None`` if none pays."""
        if self._broken:
            return None
        self._asked += 1
        if self._misses >= _PATIENCE and self._asked % _PATIENCE:
            return None
        try:
            found = self._nearest(begin, plain)
        except TierstoreError as error:
            self._broken = True
            _log.warning(
                "tensor %r of %s is no base, its new chunks are stored standalone: %s",
                self._entry.name,
                self._version.label,
                error,
            )
            return None
        self._misses = 0 if found else self._misses + 1
        return found

    def _nearest(self, begin: int, plain: memoryview) -> ChunkBase | None:
        base = None
        if begin < self._nbytes:
            base = self._base(clamped(begin, len(plain), self._nbytes))
        rows = self._rows
        if rows is not None and (
            base is None or self._index is not None or looks_moved(rows, plain, base.data)
        ):
            base = self._base(self._aligned(rows, begin, plain)) or base
        if base is None or not _pays(plain, base.data, self._entry.dtype):
            return None
        return base

    def _base(self, spans: Iterable[BaseSpan]) -> ChunkBase | None:
        pieces = tuple(_joined(self._pieces(spans)))
        if not 0 < len(pieces) <= MAX_BASES:
            return None
        return ChunkBase(pieces, self._version.assemble(pieces))

    def _pieces(self, spans: Iterable[BaseSpan]) -> Iterator[BasePiece]:
        for span in spans:
            for number, low, high in self._cut(span.start, span.start + span.plain_bytes):
                at = 0
                for piece in self._version.standalone(self._chunks[number]):
                    first, last = max(low, at), min(high, at + piece.plain_bytes)
                    if first < last:
                        yield replace(
                            piece, offset=piece.offset + first - at, plain_bytes=last - first
                        )
                    at += piece.plain_bytes

    def _cut(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the numbers of the chunks that hold ``[start, stop)``, with the range in each."""
        size = self._version.content.chunk_size
        for number in range(start // size, -(-stop // size)):
            begin = number * size
            yield number, max(start - begin, 0), min(stop - begin, size)

    def _aligned(self, rows: RowLayout, begin: int, plain: memoryview) -> list[BaseSpan]:
        """Return the spans of the base that hold a chunk's rows; none if no row is found."""
        width = rows.row_bytes
        first, last = -(-begin // width), (begin + len(plain)) // width
        if last - first < rows.window:
            return []
        with self._lock:
            if self._index is None:
                self._index = RowIndex(self._keys(rows), self._nbytes // width)
        whole = plain[first * width - begin : last * width - begin]
        anchors = self._index.anchors(rows.keys(whole), first)
        if not len(anchors[0]):
            return []
        return spans_of(anchors, rows, begin, len(plain), self._nbytes, _SPANS)

    def _keys(self, rows: RowLayout) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
        """Yield the keys of all rows, read in steps of about a chunk."""
        count = self._nbytes // rows.row_bytes
        step = max(1, self._version.content.chunk_size // rows.row_bytes)
        for first in range(0, count, step):
            last = min(count, first + step + rows.window - 1)
            yield first, rows.keys(self._copied(first * rows.row_bytes, last * rows.row_bytes))

    def _copied(self, start: int, stop: int) -> memoryview:
        data = memoryview(bytearray(stop - start))
        at = 0
        for number, low, high in self._cut(start, stop):
            data[at : at + high - low] = self._version.chunk(self._chunks[number])[low:high]
            at += high - low
        return data

    def similarity(self, begin: int, window: memoryview, at: int, sample_bytes: int) -> float:
        """Return the share of a standalone frame that a delta saves, estimated by a sample: 0 to 1.

        Reads only the blocks of the base that hold the sample. A sample whose rows are found
        elsewhere in ``window`` counts half.

        Args:
            begin: Offset of ``window`` in the new tensor, in bytes.
            window: Bytes of the new tensor around the sample.
            at: Offset of the sample, in both tensors.
            sample_bytes: Bytes of the sample.
        """
        if at + sample_bytes > self._nbytes:
            return 0.0
        base = self._sampled(at, sample_bytes)
        plain = window[at - begin : at - begin + sample_bytes]
        saved = 1 - _delta_part(plain, base, self._entry.dtype)
        rows = self._rows
        if saved < 1 - MAX_DELTA_SHARE and rows is not None:
            skip, first = -at % rows.row_bytes, -begin % rows.row_bytes
            old = rows.keys(_whole(base[skip:], rows.row_bytes))
            new = rows.keys(_whole(window[first:], rows.row_bytes))
            found, _ = RowIndex([(0, new)], len(new)).anchors(old, 0)
            if len(found) >= 2:
                return 0.5
        return saved

    def _sampled(self, at: int, sample_bytes: int) -> memoryview:
        out = memoryview(bytearray(sample_bytes))
        content = self._version.content
        spans = [(at, at + sample_bytes)]
        parts = []
        for number, _, _ in self._cut(at, at + sample_bytes):
            place, _ = self._version.place(self._chunks[number])
            parts.append(Part(place, number * content.chunk_size, place.plain_bytes, spans))

        def sink(begin: int, plain: memoryview) -> None:
            start, stop = max(begin, at), min(begin + len(plain), at + sample_bytes)
            out[start - at : stop - at] = plain[start - begin : stop - begin]

        content.reader.read_parts([(part, sink) for part in parts])
        return out


def _rows_of(entry: TensorEntry, shape: tuple[int, ...]) -> RowLayout | None:
    """Return the row layout of both tensors, if their content can move by rows."""
    word_type = WORD_TYPES.get(entry.dtype)
    if word_type is None or not shape or shape[1:] != entry.shape[1:] or not entry.shape[0]:
        return None
    width = entry_bytes(entry) // entry.shape[0]
    return RowLayout(width, word_type.word_bytes, entry.dtype) if width else None


def _whole(data: memoryview, row_bytes: int) -> memoryview:
    return data[: len(data) // row_bytes * row_bytes]


def _joined(pieces: Iterable[BasePiece]) -> Iterator[BasePiece]:
    """Yield the same pieces, with neighbours in one base chunk joined."""
    last: BasePiece | None = None
    for piece in pieces:
        if last and piece.digest == last.digest and piece.offset == last.offset + last.plain_bytes:
            last = replace(last, plain_bytes=last.plain_bytes + piece.plain_bytes)
            continue
        if last:
            yield last
        last = piece
    if last:
        yield last


def _pays(plain: memoryview, base: memoryview, dtype: str) -> bool:
    """Return whether a delta is small enough, by samples spread over the chunk."""
    if len(plain) > _SAMPLES * _SAMPLE_BYTES:
        starts = np.linspace(0, len(plain) - _SAMPLE_BYTES, _SAMPLES).astype(np.int64) & -8
        parts = [slice(at, at + _SAMPLE_BYTES) for at in starts.tolist()]
        plain = memoryview(b"".join(plain[part] for part in parts))
        base = memoryview(b"".join(base[part] for part in parts))
    return _delta_part(plain, base, dtype) < MAX_DELTA_SHARE


def _delta_part(plain: memoryview, base: memoryview, dtype: str) -> float:
    """Return the size of the delta per byte of the standalone payload; 1 if it is no smaller."""
    delta = encode(plain, dtype, base=base)
    if delta.codec != DELTA:
        return 1.0
    alone = encode(plain, dtype)
    return (len(delta.head) + len(delta.payload)) / max(1, len(alone.head) + len(alone.payload))
