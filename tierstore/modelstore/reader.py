"""Executes read plans: fetch, verify, decode straight into the destination.

Nothing is returned that does not match its digest or, for a part of a chunk, its blocks' checksums.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tierstore.errors import Damaged, NotFound
from tierstore.format.frame import FrameHead
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.decode import FrameDecoder, Part, Sink
from tierstore.modelstore.packs import Packs
from tierstore.modelstore.plan import Run, plan_runs

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


class ChunkReader:
    """Reads chunks of one version with a bounded pool of threads.

    Staging memory is one run of frames per thread, and with deltas two chunks, so ``memory_limit``
    bounds the threads.

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
        self._packs = packs
        self.memory_limit = memory_limit
        if not packs.local:
            threads = max(threads, _REMOTE_THREADS)
        staging = min(memory_limit, _STAGING)
        self._max_run = max(min(_RUN, staging // threads), _MIB)
        each = max(self._max_run, table.longest_frame)
        if table.bases:  # a delta's base as it is kept, and put together from its pieces
            each += 2 * table.longest_chunk
        self._threads = max(1, min(threads, staging // each))
        self._decoder = FrameDecoder(packs, table, keep=self._threads)
        self._local = threading.local()

    @property
    def bytes_decoded(self) -> int:
        """Plain bytes decoded and verified so far."""
        return self._decoder.bytes_decoded

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
            tier = self._packs.read(run.pack, [(run.start, stage)])
        except NotFound:
            self._packs.follow(run.pack)
            for index in run.items:
                self._decoder.read(places[index], wants[index].out)
                if on_chunk:
                    on_chunk(len(wants[index].out))
            return
        done: dict[int, memoryview] = {}
        for index in run.items:
            place, out = places[index], wants[index].out
            if place.offset in done and done[place.offset] is not out:
                out[:] = done[place.offset]  # the same chunk twice in this model
            else:
                at = place.offset - run.start
                self._decode(place, stage[at : at + place.length], out, tier)
                done[place.offset] = out
            if on_chunk:
                on_chunk(len(out))

    def _decode(self, place: ChunkPlace, frame: memoryview, out: memoryview, tier: str) -> None:
        try:
            self._decoder.decode(place, frame, out)
        except Damaged as error:
            self._decoder.read(place, out, frozenset([tier]), error)

    def read_head(self, place: ChunkPlace) -> FrameHead:
        """What the frame of a chunk says about itself."""
        return self._decoder.read_head(place)

    def read_parts(self, parts: Sequence[Part], sink: Sink) -> None:
        """Read parts of chunks: their frames' heads first, then just the blocks that are wanted.

        Args:
            parts: what is wanted, of one tensor.
            sink: gets every decoded block that holds wanted bytes.
        """
        self._each(parts, lambda part: self._decoder.read_part(part, sink))
