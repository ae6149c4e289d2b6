"""A stored file as a range of bytes, read where it is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from tierstore.format.manifest import FileEntry
from tierstore.modelstore.chunks.local import FilePart
from tierstore.modelstore.chunks.origin import pickled
from tierstore.modelstore.loading.stored import Content, PlacedPiece, SpanRead

_SENT_BYTES = 64 << 10
"""Fewer bytes are read rather than sent from their file: that costs less than opening it."""


def _view_of(model: Any, path: str) -> FileView:
    view: FileView = model.open_file(path)
    return view


class FileView:
    """One file of a version, byte for byte as it was saved; nothing is read until it is asked for.

    A read fetches the chunks that lie in its range, and of those at its ends the blocks (256 KiB of
    plain bytes) that hold wanted bytes; the header of a safetensors file costs nothing. Every byte
    is verified. Thread-safe. Obtained from ``Model.open_file``.
    """

    def __init__(self, content: Content, entry: FileEntry) -> None:
        self.content, self.entry = content, entry

    @cached_property
    def _pieces(self) -> list[PlacedPiece]:
        # an empty tensor has no chunks, so they leave no gap
        return self.content.file_pieces(self.entry)

    @cached_property
    def _begins(self) -> list[int]:
        return [piece.begin for piece in self._pieces]

    @property
    def path(self) -> str:
        """Path of the file in the version."""
        return self.entry.path

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.entry.size

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole file, as 64 hex digits."""
        return self.entry.sha256.hex()

    @property
    def header(self) -> bytes:
        """The length field and header of a safetensors file; empty for any other."""
        return self.entry.header

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<FileView {self.path!r}, {self.size} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _view_of, (pickled(repr(self), self.content.reader.pool.origin), self.path)

    def spans(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
        """Cut a range into parts of about ``most`` bytes that end where chunks end.

        Reading a file part by part along these fetches no chunk twice.

        Args:
            start: First byte of the range.
            stop: End of the range, at most the file's size.
            most: Bytes of a part; a chunk that is larger is a part of its own.
        """
        head = len(self.entry.header)
        while start < stop:
            end = min(stop, start + most)
            if end < stop:
                before = bisect_right(self._begins, end - head) - 1
                edge = self._begins[before] + head if before >= 0 else 0
                if edge <= start:  # one chunk alone is larger
                    after = bisect_right(self._begins, start - head)
                    edge = self._begins[after] + head if after < len(self._begins) else stop
                end = min(stop, edge)
            yield start, end
            start = end

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return ``length`` bytes from ``offset`` on, or fewer where the file ends; by default all.

        Raises:
            ValueError: ``offset`` or ``length`` is negative.
        """
        return self.read_ranges([(offset, self.size if length is None else length)])[0]

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read many ranges, given as (offset, length), in parallel; see ``read``."""
        outs: list[bytearray] = []
        for offset, length in ranges:
            if length < 0:
                raise ValueError(f"length {length} must not be negative")
            outs.append(bytearray(min(length, max(0, self.size - offset))))
        self._fill(
            [(offset, memoryview(out)) for (offset, _), out in zip(ranges, outs, strict=True)],
            own=True,
        )
        return [bytes(out) for out in outs]

    def parts(self, start: int, stop: int) -> list[bytes | FilePart]:
        """Return bytes ``[start, stop)`` in order, to be sent.

        Chunks that are hot on this node come as open files, which the caller closes; the others are
        read.
        """
        found: list[bytes | FilePart] = []
        head = len(self.entry.header)
        at = start
        first = max(0, bisect_right(self._begins, start - head) - 1)
        for piece in self._pieces[first : bisect_right(self._begins, stop - head - 1)]:
            begin = piece.begin + head
            low, high = max(at, begin), min(stop, begin + piece.plain_bytes)
            part = (
                self.content.reader.local.open(piece.place) if high - low >= _SENT_BYTES else None
            )
            if part is None:
                continue
            if at < low:
                found.append(self.read(at, low - at))
            found.append(replace(part, offset=low - begin, plain_bytes=high - low))
            at = high
        if at < stop:
            found.append(self.read(at, stop - at))
        return found

    def read_into(self, offset: int, out: memoryview) -> int:
        """Read from ``offset`` on into ``out`` (writable bytes) until it is full or the file ends.

        Returns:
            The number of bytes read; after an error the content of ``out`` is undefined.
        """
        count = min(len(out), max(0, self.size - offset))
        self._fill([(offset, out[:count])], own=False)
        return count

    def _fill(self, targets: Sequence[tuple[int, memoryview]], *, own: bool) -> None:
        """Fill buffers that do not reach past the file's end.

        ``own`` is that of ``ChunkReader.read``.
        """
        data: list[tuple[int, memoryview]] = []
        header = self.entry.header
        for offset, out in targets:
            if offset < 0:
                raise ValueError(f"offset {offset} must not be negative")
            head = header[offset : offset + len(out)]
            out[: len(head)] = head
            if len(head) < len(out):
                data.append((offset + len(head) - len(header), out[len(head) :]))
        self._fill_data(data, own=own)

    def _fill_data(self, targets: Sequence[tuple[int, memoryview]], *, own: bool) -> None:
        """Fill buffers from what lies behind the header, at offsets counted from there."""
        spans = []
        for low, out in targets:
            first = bisect_right(self._begins, low) - 1
            pieces = self._pieces[first : bisect_right(self._begins, low + len(out) - 1)]
            spans.append(SpanRead(pieces, low, low + len(out), out))
        self.content.read_spans(spans, own=own)
