"""Chunks of a version that are hot on this node: tensors as arrays, chunks as open files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING

from tierstore.deferred import np
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import split_digests
from tierstore.modelstore.chunks.pool import ReadPool
from tierstore.tiers.base import ChunkRead
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import MIN_MAPPED, Stored

if TYPE_CHECKING:
    import numpy.typing as npt

_PARALLEL_BYTES = 128 << 20
"""Fewer are mapped before threads have begun, or verified in 50 ms."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes that lie in a file of this node, which is immutable and open: nothing of it is read.

    Attributes:
        file: The open file; whoever got this closes it.
        offset: Position of the first byte.
        count: How many bytes there are.
        failed: Is told when reading the file fails.
    """

    file: FileIO
    offset: int
    count: int
    failed: Callable[[OSError], None]

    def __len__(self) -> int:
        return self.count


class LocalChunks:
    """The part of a version that is hot on this node. Thread-safe.

    Args:
        hot: The hot tiers, of which this node's own is looked at.
        pool: The version's threads and counters.
        table: The version's layout.
    """

    def __init__(self, hot: HotTiers, pool: ReadPool, table: ChunkTable) -> None:
        self._hot, self._pool, self._table = hot, pool, table

    @property
    def keeps_chunks(self) -> bool:
        """Whether whole chunks that are read are kept for this node's other processes."""
        return self._hot.local is not None

    def tensors(
        self, wanted: Sequence[Stored], chunk_bytes: int
    ) -> list[npt.NDArray[np.uint8] | None]:
        """Return tensors whose chunks are all here, each as a writable array of its own.

        They are mapped where that pays.

        Args:
            wanted: For each tensor the digests of its chunks in order, end to end, and its bytes.
            chunk_bytes: The chunk size of their version.

        Returns:
            ``None`` for those that have to be read.
        """
        local = self._hot.local
        if local is None:
            return [None] * len(wanted)
        found: dict[int, npt.NDArray[np.uint8] | None] = {}

        def take(numbers: range) -> None:
            arrays = local.tensors([wanted[at] for at in numbers], chunk_bytes)
            found.update(zip(numbers, arrays, strict=True))

        # mixed, as what is verified first takes its time
        few = sum(nbytes for _, nbytes in wanted) < _PARALLEL_BYTES
        slices = 1 if few else min(len(wanted), self._pool.threads)
        self._pool.each([range(first, len(wanted), slices) for first in range(slices)], take)
        here = [one for at, one in enumerate(wanted) if found[at] is not None]
        if here:
            self._count(local.name, here)
        return [found[at] for at in range(len(wanted))]

    def open(self, place: ChunkPlace) -> FilePart | None:
        """Return a chunk that is here as an open file; ``None`` when it has to be read."""
        local = self._hot.local
        file = None if local is None else local.open(place.digest, place.plain_bytes)
        if local is None or file is None:
            return None
        self._hot.record_later(lambda: self._reads_of([(place.digest, place.plain_bytes)]))
        self._pool.count_plain("reused", place.plain_bytes)
        self._pool.count_hot(local.name, place.plain_bytes)
        return FilePart(file, 0, place.plain_bytes, partial(local.failed, place.digest))

    def _count(self, tier: str, here: Sequence[Stored]) -> None:
        nbytes = sum(nbytes for _, nbytes in here)
        mapped = sum(nbytes for _, nbytes in here if nbytes >= MIN_MAPPED)
        self._hot.record_later(lambda: self._reads_of(here))
        self._pool.count_plain("reused", nbytes)
        self._pool.count_mapped(mapped)
        if nbytes > mapped:
            self._pool.count_hot(tier, nbytes - mapped)

    def _reads_of(self, tensors: Sequence[Stored]) -> list[ChunkRead]:
        digests = split_digests(b"".join(digests for digests, _ in tensors))
        places = [place for place in map(self._table.find, digests) if place is not None]
        return [ChunkRead(p.digest, p.pack, p.plain_bytes, p.frame_bytes) for p in places]
