"""Parts of tensors for tensor parallelism: every rank reads its own bytes and no others.

A part along the first dimension is one contiguous range. One along another dimension is a strip:
the same columns of many rows. Frames hold blocks of 256 KiB, so a strip of shorter rows needs every
block; with rows of a MiB and more it needs about its share.

Where the processes of a node share a hot tier, chunks are read whole, each by one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tierstore.errors import UsageError
from tierstore.format.dtypes import DTYPES
from tierstore.modelstore.chunks.decode import Part, Sink
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.loading.stored import Content, PlacedPiece, SpanRead
from tierstore.modelstore.loading.tensor import Tensor

_WIDE_ROW_BYTES = 1 << 20
"""Rows of at least this many bytes are read by blocks; shorter ones need nearly all of them."""
_SMALL_TENSOR_BYTES = 1 << 20
_WINDOW_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Strip:
    """Bytes ``[low, high)`` of each row from ``first`` up to, but not including, ``last``.

    A row has ``row_bytes`` bytes.
    """

    row_bytes: int
    low: int
    high: int
    first: int = 0
    last: int = 1

    @property
    def width_bytes(self) -> int:
        """Bytes taken from each row."""
        return self.high - self.low

    @property
    def nbytes(self) -> int:
        """Bytes of all rows together."""
        return self.width_bytes * (self.last - self.first)

    @property
    def is_range(self) -> bool:
        """Whether the strip is one contiguous range of the tensor."""
        return self.width_bytes == self.row_bytes or self.last - self.first == 1

    def split(self, limit: int) -> Iterator[Strip]:
        """Yield strips of at most ``limit`` bytes that end to end give the same bytes."""
        if self.last - self.first == 1:
            for low in range(self.low, self.high, limit):
                high = min(low + limit, self.high)
                yield Strip(self.row_bytes, low, high, self.first, self.last)
        elif self.width_bytes > limit:
            for first in range(self.first, self.last):
                yield from Strip(self.row_bytes, self.low, self.high, first, first + 1).split(limit)
        elif self.width_bytes:
            rows = limit // self.width_bytes
            for first in range(self.first, self.last, rows):
                last = min(first + rows, self.last)
                yield Strip(self.row_bytes, self.low, self.high, first, last)


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a tensor that one rank holds."""

    strip: Strip
    shape: tuple[int, ...]


def whole(tensor: Tensor) -> Shard:
    """Return the shard that is the whole tensor."""
    return Shard(Strip(tensor.nbytes, 0, tensor.nbytes), tensor.shape)


def shard_of(tensor: Tensor, rank: int, world: int, dim: int) -> Shard:
    """Return the part of rank ``rank`` of ``world`` along ``dim``, which may count from the end.

    Parts are those of ``torch.chunk`` and DTensor: ``ceil(extent / world)`` each, the last ones
    shorter or empty.

    Raises:
        UsageError: There is no such dimension, or packed elements would have to be split.
    """
    if not -tensor.ndim <= dim < tensor.ndim:
        raise UsageError(f"tensor {tensor.name!r} of shape {list(tensor.shape)} has no dim {dim}")
    dim %= tensor.ndim
    extent = tensor.shape[dim]
    each = -(-extent // world)
    start, stop = min(rank * each, extent), min((rank + 1) * each, extent)
    inner = DTYPES[tensor.dtype].bits
    for size in tensor.shape[dim + 1 :]:
        inner *= size
    rows = 1
    for size in tensor.shape[:dim]:
        rows *= size
    if any(at * inner % 8 for at in (start, stop, extent)):
        raise UsageError(
            f"tensor {tensor.name!r} is {tensor.dtype}: part {rank} of {world} along dim {dim} "
            "does not begin and end with a byte"
        )
    strip = Strip(extent * inner // 8, start * inner // 8, stop * inner // 8, 0, rows)
    return Shard(strip, (*tensor.shape[:dim], stop - start, *tensor.shape[dim + 1 :]))


@dataclass(frozen=True, slots=True)
class StripRead:
    """A strip of a tensor, and the buffer of the same length that its bytes go to."""

    tensor: Tensor
    strip: Strip
    out: memoryview

    def chunks(self) -> list[PlacedPiece]:
        """Return the chunks that hold bytes of the strip."""
        strip, size = self.strip, self.tensor._content.chunk_size
        low = strip.first * strip.row_bytes + strip.low
        high = (strip.last - 1) * strip.row_bytes + strip.high
        return (
            self.tensor._base.chunks()[low // size : -(-high // size)] if self.strip.nbytes else []
        )

    def spans(self, piece: PlacedPiece) -> list[tuple[int, int]]:
        """Return the byte ranges of the tensor that are wanted from one chunk."""
        strip, end = self.strip, piece.begin + piece.plain_bytes
        first = max(strip.first, piece.begin // strip.row_bytes)
        last = min(strip.last, -(-end // strip.row_bytes))
        every = [
            (row * strip.row_bytes + strip.low, row * strip.row_bytes + strip.high)
            for row in range(first, last)
        ]
        return [(low, high) for low, high in every if low < end and high > piece.begin]

    def take(self, begin: int, plain: memoryview) -> None:
        """Copy the strip's part of plain bytes that begin at offset ``begin`` of the tensor."""
        strip, row, end = self.strip, self.strip.row_bytes, begin + len(plain)
        out = np.frombuffer(self.out, np.uint8).reshape(-1, strip.width_bytes)
        data = np.frombuffer(plain, np.uint8)
        first, last = max(strip.first, begin // row), min(strip.last, -(-end // row))
        full, beyond = max(first, -(-begin // row)), min(last, end // row)
        if full < beyond:
            rows = data[full * row - begin : beyond * row - begin].reshape(-1, row)
            out[full - strip.first : beyond - strip.first] = rows[:, strip.low : strip.high]
        for at in {first, last - 1}:
            if full <= at < beyond:
                continue
            low = max(begin, at * row + strip.low)
            high = min(end, at * row + strip.high)
            if low < high:
                to = low - at * row - strip.low
                out[at - strip.first, to : to + high - low] = data[low - begin : high - begin]


def read_strips(reads: Sequence[StripRead]) -> None:
    """Fill every ``out``; all tensors belong to one version, and nobody else writes to ``out``."""
    reads = [read for read in reads if read.strip.nbytes]
    if not reads:
        return
    for read in [read for read in reads if read.tensor._overlays]:
        _read_patched(read)
    reads = [read for read in reads if not read.tensor._overlays]
    if not reads:
        return
    content = reads[0].tensor._content
    spans: list[SpanRead] = []
    wide: list[StripRead] = []
    entire: list[tuple[StripRead, PlacedPiece]] = []
    # who reads whole tensors alone is no rank, and shares with nobody
    ranks = any(read.strip.nbytes < read.tensor.nbytes for read in reads)
    for read in reads:
        if read.strip.is_range and not (ranks and _is_small(read)):
            span, cut = _span(read), []
            if content.reader.local.keeps_chunks:
                cut = [p for p in span.chunks if not span.holds(p)]
            spans.append(replace(span, chunks=[p for p in span.chunks if p not in cut]))
            entire += [(read, piece) for piece in cut]
        elif read.strip.row_bytes >= _WIDE_ROW_BYTES and not content.reader.local.keeps_chunks:
            wide.append(read)
        else:
            entire += [(read, piece) for piece in read.chunks()]
    content.read_spans(spans, share=ranks, own=True)
    _read_wide(content, wide)
    _read_whole(content, entire)


def _is_small(read: StripRead) -> bool:
    """Return whether a tensor is read together with the larger tensors around it.

    Alone, all that lies between small ones would be read too, or another rank's part of it again.
    """
    tensor = read.tensor
    entire = read.strip.nbytes == tensor.nbytes or tensor._content.reader.local.keeps_chunks
    return entire and tensor.nbytes <= _SMALL_TENSOR_BYTES


def _read_patched(read: StripRead) -> None:
    """Read a strip of a tensor with patches, window by window: no chunk holds it as it is."""
    strip = read.strip
    if strip.is_range:
        low = strip.first * strip.row_bytes + strip.low
        read.tensor._fill(low, low + strip.nbytes, read.out, own=True)
        return
    step = max(1, _WINDOW_BYTES // strip.row_bytes)
    for first in range(strip.first, strip.last, step):
        begin = first * strip.row_bytes
        window = memoryview(bytearray(min(step, strip.last - first) * strip.row_bytes))
        read.tensor._fill(begin, begin + len(window), window, own=True)
        read.take(begin, window)


def _span(read: StripRead) -> SpanRead:
    strip = read.strip
    low = strip.first * strip.row_bytes + strip.low
    return SpanRead(read.chunks(), low, low + strip.nbytes, read.out)


def _read_wide(content: Content, reads: Sequence[StripRead]) -> None:
    parts: list[tuple[Part, Sink]] = []
    for read in reads:
        for piece in read.chunks():
            spans = read.spans(piece)
            if spans:
                parts.append((Part(piece.place, piece.begin, piece.plain_bytes, spans), read.take))
    content.reader.read_parts(parts)


def _read_whole(content: Content, every: Sequence[tuple[StripRead, PlacedPiece]]) -> None:
    """Read whole chunks, one window at a time, and copy what is wanted.

    Ranks on one node need the same chunks. Each begins at another place, as far into the model as
    its part lies in a tensor, and finds in the node's hot tier what the others have read.
    """
    window = min(_WINDOW_BYTES, content.reader.pool.memory_limit_bytes // 8)
    begin = len(every) * _part(every[0][0].strip) // 1000 if every else 0
    for group in batches([*every[begin:], *every[:begin]], lambda one: one[1].plain_bytes, window):
        buffer = memoryview(bytearray(sum(piece.plain_bytes for _, piece in group)))
        at = 0
        wants: list[Want] = []
        for _, piece in group:
            wants.append(Want(piece.place, buffer[at : at + piece.plain_bytes]))
            at += piece.plain_bytes
        content.reader.read(wants, share=True, own=True)
        for (read, piece), want in zip(group, wants, strict=True):
            read.take(piece.begin, want.out)


def _part(strip: Strip) -> int:
    """Return where a strip begins, in thousandths of its row."""
    return 1000 * strip.low // strip.row_bytes
