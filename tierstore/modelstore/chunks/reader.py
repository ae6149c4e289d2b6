"""Executes read plans: fetch, verify, decode straight into the destination.

Nothing is returned that does not match its digest or, for a part of a chunk, its blocks' checksums.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING

from tierstore.deferred import np
from tierstore.format.frame import FrameHead
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import split_digests
from tierstore.modelstore.chunks.decode import Came, FrameDecoder, Part, Sink
from tierstore.modelstore.chunks.fetch import Fetch, OnChunk, Source
from tierstore.modelstore.chunks.packs import Packs
from tierstore.modelstore.chunks.sharing import Want
from tierstore.tiers.base import ChunkRead
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import MIN_MAPPED, Stored

if TYPE_CHECKING:
    import numpy.typing as npt

_MIB = 1 << 20
_RUN = 8 * _MIB
_STAGING = 192 * _MIB  # beyond it more threads only wait for the memory bus
_REMOTE_THREADS = 8
_PARALLEL = 128 * _MIB  # fewer bytes are mapped before threads have begun, or verified in 50 ms


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes that lie in a file of this node, which is immutable and open: nothing of it is read.

    Attributes:
        file: closed by whoever got this.
        offset: of the first byte.
        count: of the bytes.
        failed: to be told when reading the file fails.
    """

    file: FileIO
    offset: int
    count: int
    failed: Callable[[OSError], None]

    def __len__(self) -> int:
        return self.count


class ChunkReader:
    """Reads chunks of one version with a bounded pool of threads.

    Staging memory is one run of frames per thread, and with deltas two chunks, so ``memory_limit``
    bounds the threads.

    Args:
        packs: where the frames lie.
        table: the version's layout, for the bases of deltas.
        threads: threads that decode.
        memory_limit: bytes of staging memory, of which 192 MiB are used at most.
        hot: the hot tiers.
    """

    def __init__(
        self,
        packs: Packs,
        table: ChunkTable,
        *,
        threads: int,
        memory_limit: int,
        hot: HotTiers | None = None,
    ) -> None:
        self._hot = hot if hot is not None else HotTiers()
        self._table = table
        self.memory_limit = memory_limit
        if not packs.local:
            threads = max(threads, _REMOTE_THREADS)
        staging = min(memory_limit, _STAGING)
        self._max_run = max(min(_RUN, staging // threads), _MIB)
        each = max(self._max_run, table.longest_frame)
        if table.bases:  # a delta's base as it is kept, and put together from its pieces
            each += 2 * table.longest_chunk
        self._threads = max(1, min(threads, staging // each))
        self._decoder = FrameDecoder(packs, table, keep=self._threads, hot=self._hot)
        self._local = threading.local()
        self._lock = threading.Lock()
        self.hot_bytes: dict[str, int] = {}
        """Bytes that came from hot tiers, by their names: plain ones of this node, else frames."""
        self.bytes_mapped = 0
        self.plain: dict[Came, int] = {"reused": 0, "delta": 0, "full": 0}
        """Plain bytes that were read, by how they came."""
        self._source = Source(
            packs, self._decoder, self._hot, self._max_run,
            0 if packs.local else self._threads,
            self._staging, self.each, self._count, self._tally,
        )  # fmt: skip

    @property
    def bytes_decoded(self) -> int:
        """Plain bytes decoded and verified so far."""
        return self._decoder.bytes_decoded

    def read(
        self,
        wants: Sequence[Want],
        on_chunk: OnChunk | None = None,
        *,
        keep: bool = False,
        share: bool = False,
    ) -> None:
        """Fill every ``out``.

        Args:
            wants: the chunks.
            on_chunk: told the plain bytes of each chunk when it is done, from several threads.
            keep: put all of them into hot tiers, whatever the policy thinks, and wait for room.
            share: other processes of this node want the same now: wait for room in its tier.
        """
        Fetch(self._source, wants, on_chunk, keep=keep, share=share).run()

    @property
    def keeps_chunks(self) -> bool:
        """Whether whole chunks that are read are kept for this node's other processes."""
        return self._hot.local is not None

    def hot_tensors(
        self, wanted: Sequence[Stored], chunk_size: int
    ) -> list[npt.NDArray[np.uint8] | None]:
        """Tensors whose chunks are all hot on this node, each as a writable array of its own,
        mapped where that pays.

        Args:
            wanted: of each the digests of its chunks in order, end to end, and its bytes.
            chunk_size: of their version.

        Returns:
            ``None`` for those that have to be read.
        """
        local = self._hot.local
        if local is None:
            return [None] * len(wanted)
        found: dict[int, npt.NDArray[np.uint8] | None] = {}

        def take(numbers: range) -> None:
            arrays = local.tensors([wanted[at] for at in numbers], chunk_size)
            found.update(zip(numbers, arrays, strict=True))

        # mixed, as what is verified first takes its time
        few = sum(nbytes for _, nbytes in wanted) < _PARALLEL
        slices = 1 if few else min(len(wanted), self._threads)
        self.each([range(first, len(wanted), slices) for first in range(slices)], take)
        here = [one for at, one in enumerate(wanted) if found[at] is not None]
        mapped = sum(nbytes for _, nbytes in here if nbytes >= MIN_MAPPED)
        nbytes = sum(nbytes for _, nbytes in here)
        if here:
            self._hot.record_later(lambda: self._reads_of(here))
            with self._lock:
                self.plain["reused"] += nbytes
                self.bytes_mapped += mapped
            if nbytes > mapped:
                self._count(local.name, nbytes - mapped)
        return [found[at] for at in range(len(wanted))]

    def open_chunk(self, place: ChunkPlace) -> FilePart | None:
        """A chunk that is hot on this node as an open file; ``None`` when it has to be read."""
        local = self._hot.local
        file = None if local is None else local.open(place.digest, place.plain)
        if local is None or file is None:
            return None
        self._hot.record_later(lambda: self._reads_of([(place.digest, place.plain)]))
        self._tally("reused", place.plain)
        self._count(local.name, place.plain)
        return FilePart(file, 0, place.plain, partial(local.failed, place.digest))

    def _reads_of(self, tensors: Sequence[Stored]) -> list[ChunkRead]:
        digests = split_digests(b"".join(digests for digests, _ in tensors))
        places = [place for place in map(self._table.find, digests) if place is not None]
        return [ChunkRead(p.digest, p.pack, p.plain, p.length) for p in places]

    def each(self, items: Sequence[object], work: Callable[..., None]) -> None:
        """Run ``work`` on every item, in as many threads as memory allows."""
        if not items:
            return
        if len(items) == 1 or self._threads == 1:
            for item in items:
                work(item)
            return
        with ThreadPoolExecutor(min(self._threads, len(items)), "tierstore-read") as pool:
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

    def _count(self, tier: str, nbytes: int) -> None:
        with self._lock:
            self.hot_bytes[tier] = self.hot_bytes.get(tier, 0) + nbytes

    def _tally(self, came: Came, nbytes: int) -> None:
        with self._lock:
            self.plain[came] += nbytes

    def read_head(self, place: ChunkPlace) -> FrameHead:
        """What the frame of a chunk says about itself."""
        return self._decoder.read_head(place)

    def read_parts(self, parts: Sequence[tuple[Part, Sink]]) -> None:
        """Read parts of chunks: their frames' heads first, then just the blocks that are wanted.

        Args:
            parts: what is wanted, and what gets every decoded block that holds wanted bytes.
        """
        self.each(parts, lambda one: self._read_part(*one))
        self._hot.record([
            ChunkRead(
                part.place.digest, part.place.pack, part.length,
                part.wanted * part.place.length // max(1, part.length),
            )
            for part, _ in parts
        ])  # fmt: skip

    def _read_part(self, part: Part, sink: Sink) -> None:
        came = self._decoder.read_part(part, sink)
        self._tally(came, part.wanted)
        if came == "reused" and self._hot.local is not None:
            self._count(self._hot.local.name, part.wanted)
