"""Executes read plans: fetch, verify, decode straight into the destination.

Nothing is returned that does not match its digest or, for a part of a chunk, its blocks' checksums.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tierstore.codecs import decode, decode_block
from tierstore.errors import Damaged, NotFound
from tierstore.format.checks import damaged, digest_of, xxh3
from tierstore.format.frame import FrameHead, frame_payload, parse_frame_head
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.packs import Packs
from tierstore.modelstore.plan import Run, blocks_of_spans, plan_runs

_MIB = 1 << 20
_GAP = 256 << 10
_RUN = 8 * _MIB
_STAGING = 192 * _MIB  # beyond it more threads only wait for the memory bus
_REMOTE_THREADS = 8


@dataclass(frozen=True, slots=True)
class Want:
    """A whole chunk, and where its plain bytes go (``out`` has exactly their length)."""

    place: ChunkPlace
    out: memoryview


@dataclass(frozen=True, slots=True)
class Part:
    """A part of one chunk of a tensor: the spans to read, all in one chunk's range.

    Attributes:
        place: of the chunk.
        begin: where the chunk begins in the tensor, in bytes.
        length: plain bytes of the chunk.
        spans: byte ranges of the tensor that are wanted, ascending; those outside are ignored.
    """

    place: ChunkPlace
    begin: int
    length: int
    spans: Sequence[tuple[int, int]]


Sink = Callable[[int, memoryview], None]
"""Takes verified plain bytes and where in the tensor they begin; called from several threads."""


class ChunkReader:
    """Reads chunks of one version with a bounded pool of threads.

    Staging memory is one run of frames per thread, so ``memory_limit`` bounds the threads.

    Args:
        packs: where the frames lie.
        table: the version's layout, for the bases of deltas.
        threads: threads that decode.
        memory_limit: bytes of staging memory, of which 192 MiB are used at most.
    """

    def __init__(
        self,
        packs: Packs,
        table: ChunkTable,
        *,
        threads: int,
        memory_limit: int,
    ) -> None:
        self._packs, self._table = packs, table
        self.memory_limit = memory_limit
        if not packs.local:
            threads = max(threads, _REMOTE_THREADS)
        staging = min(memory_limit, _STAGING)
        self._max_run = max(min(_RUN, staging // threads), _MIB)
        self._threads = max(1, min(threads, staging // max(self._max_run, table.longest_frame)))
        self._local = threading.local()
        self._lock = threading.Lock()
        self.bytes_decoded = 0

    def read(self, wants: Sequence[Want], on_chunk: Callable[[int], None] | None = None) -> None:
        """Fill every ``out``.

        Args:
            wants: the chunks.
            on_chunk: told the plain bytes of each chunk when it is done, from several threads.
        """
        places = [self._packs.current(want.place) for want in wants]
        runs = plan_runs(places, max_gap=_GAP, max_run=self._max_run)
        self._each(runs, lambda run: self._read_run(run, places, wants, on_chunk))

    def _each(self, items: Sequence[object], work: Callable[..., None]) -> None:
        if len(items) == 1 or self._threads == 1:
            for item in items:
                work(item)
            return
        with ThreadPoolExecutor(min(self._threads, len(items) or 1), "tierstore-read") as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _staging(self, size: int) -> memoryview:
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._local.buffer = bytearray(max(size, self._max_run))
        return memoryview(buffer)[:size]

    def _read_run(
        self,
        run: Run,
        places: Sequence[ChunkPlace],
        wants: Sequence[Want],
        on_chunk: Callable[[int], None] | None,
    ) -> None:
        stage = self._staging(run.stop - run.start)
        try:
            self._packs.read(run.pack, [(run.start, stage)])
        except NotFound:
            self._packs.follow(run.pack)
            moved = [Want(places[i], wants[i].out) for i in run.items]
            for want in moved:
                self._read_moved(want)
            return
        done: dict[int, memoryview] = {}
        for index in run.items:
            place, out = places[index], wants[index].out
            if place.offset in done and done[place.offset] is not out:
                out[:] = done[place.offset]  # the same chunk twice in this model
            else:
                at = place.offset - run.start
                self._decode(place, stage[at : at + place.length], out)
                done[place.offset] = out
            if on_chunk:
                on_chunk(len(out))

    def _read_moved(self, want: Want) -> None:
        place = self._packs.current(want.place)
        self._decode(place, self._packs.read_frame(place, 0, place.length), want.out)

    def _decode(self, place: ChunkPlace, frame: memoryview | bytearray, out: memoryview) -> None:
        name = _frame_name(place)
        head = parse_frame_head(frame, name, place.digest)
        if head.plain_len != len(out):
            damaged(name, f"it holds {head.plain_len} plain bytes instead of {len(out)}")
        payload = frame_payload(head, frame, name)
        base = self._base(head)
        try:
            decode(
                head.codec, head.codec_head, head.ends, payload, out, head.dtype,
                block_size=head.block_size, base=base,
            )  # fmt: skip
        except Damaged as error:
            damaged(name, str(error))
        if digest_of(out).raw != head.digest:
            damaged(name, "its plain bytes do not match their digest")
        self._count(len(out))

    def _count(self, plain: int) -> None:
        with self._lock:
            self.bytes_decoded += plain

    def _base(self, head: FrameHead) -> memoryview | None:
        """The plain base of a delta: pieces of other chunks, laid end to end."""
        if not head.bases:
            return None
        base = memoryview(bytearray(head.plain_len))
        ends = itertools.accumulate(piece.length for piece in head.bases)
        placed = sorted(zip(head.bases, ends, strict=True), key=lambda row: row[0].digest)
        # one base chunk after the other: a frame may name a thousand of them
        for digest, rows in itertools.groupby(placed, key=lambda row: row[0].digest):
            source = self._base_chunk(digest)
            for piece, end in rows:
                if piece.offset + piece.length > len(source):
                    damaged(f"a frame on base b3:{digest.hex()}", "it reaches past its base")
                stop = piece.offset + piece.length
                base[end - piece.length : end] = source[piece.offset : stop]
        return base

    def _base_chunk(self, digest: bytes) -> memoryview:
        place = self._table.find(digest)
        if place is None or place.bases:
            damaged(f"the layout around b3:{digest.hex()}", "the base of a delta is not standalone")
        out = memoryview(bytearray(place.plain))
        self._decode(place, self._packs.read_frame(place, 0, place.length), out)
        return out

    def read_parts(self, parts: Sequence[Part], sink: Sink) -> None:
        """Read parts of chunks: their frames' heads first, then just the blocks that are wanted.

        Args:
            parts: what is wanted, of one tensor.
            sink: gets every decoded block that holds wanted bytes.
        """
        self._each(parts, lambda part: self._read_part(part, sink))

    def _read_part(self, part: Part, sink: Sink) -> None:
        place = self._packs.current(part.place)
        name = _frame_name(place)
        head = parse_frame_head(self._packs.read_frame(place, 0, place.head), name, place.digest)
        if head.plain_len != part.length or head.frame_len != place.length:
            damaged(name, f"it holds {head.plain_len} plain bytes instead of {part.length}")
        blocks = blocks_of_spans(part.spans, part.begin, part.length, head.block_size)
        base = self._base(head)
        for first, last in _neighbours(blocks):
            start, stop = head.block_payload(first).start, head.block_payload(last).stop
            payload = memoryview(self._packs.read_frame(place, start, stop))
            for index in range(first, last + 1):
                own = head.block_payload(index)
                block = payload[own.start - start : own.stop - start]
                plain = self._decode_block(head, index, block, base, name)
                sink(part.begin + head.block_plain(index).start, plain)

    def _decode_block(
        self, head: FrameHead, index: int, payload: memoryview, base: memoryview | None, name: str
    ) -> memoryview:
        span = head.block_plain(index)
        out = memoryview(bytearray(len(span)))
        try:
            decode_block(
                head.codec, head.codec_head, payload, out, head.dtype, index=index,
                block_size=head.block_size,
                base=None if base is None else base[span.start : span.stop],
            )  # fmt: skip
        except Damaged as error:
            damaged(name, str(error))
        if xxh3(out) != head.sums[index]:
            damaged(name, f"the checksum of its block {index} does not match")
        self._count(len(out))
        return out


def _frame_name(place: ChunkPlace) -> str:
    return f"chunk b3:{place.digest.hex()} in pack {place.pack.hex()} at {place.offset}"


def _neighbours(blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges ``(first, last)`` of neighbours."""
    first = last = None
    for block in blocks:
        if last is not None and block == last + 1:
            last = block
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = block
    if first is not None and last is not None:
        yield first, last
