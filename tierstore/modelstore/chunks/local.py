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
from tierstore.tiers.node.local import MIN_MAPPED_BYTES, Stored

if TYPE_CHECKING:
    import numpy.typing as npt

_PARALLEL_BYTES = 128 << 20
"""Less is handled in one thread: mapped before others have begun, or verified in 50 ms."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes in an open, immutable file of this node; nothing of it is read yet.

    Attributes:
        file: The open file; whoever receives it closes it.
        offset: Position of the first byte.
        plain_bytes: Number of bytes.
        failed: Called with the error when reading the file fails.
    """

    file: FileIO
    offset: int
    plain_bytes: int
    failed: Callable[[OSError], None]

    def __len__(self) -> int:
        return self.plain_bytes


class LocalChunks:
    """The part of a version that is hot on this node. Thread-safe.

    Args:
        hot: The hot tiers; only this node's own is used.
        pool: The version's threads and counters.
        table: The version's layout.
        usable: Whether they may be used as they lie, in files that may change while they are used.
    """

    def __init__(
        self, hot: HotTiers, pool: ReadPool, table: ChunkTable, *, usable: bool = True
    ) -> None:
        self._hot, self._pool, self._table, self._usable = hot, pool, table, usable

    @property
    def keeps_chunks(self) -> bool:
        """Whether whole chunks that are read are kept for other processes of this node."""
        return self._hot.local is not None

    def tensors(
        self, wanted: Sequence[Stored], chunk_size: int
    ) -> list[npt.NDArray[np.uint8] | None]:
        """Return the tensors whose chunks are all on this node, each as its own writable array.

        Large ones are mapped copy-on-write.

        Args:
            wanted: For each tensor the digests of its chunks in order, end to end, and its plain
                bytes.
            chunk_size: Chunk size of the version, in bytes.

        Returns:
            One entry per tensor, in order; ``None`` for those that have to be read.
        """
        local = self._hot.local
        if local is None or not self._usable:
            return [None] * len(wanted)
        found: dict[int, npt.NDArray[np.uint8] | None] = {}

        def take(numbers: range) -> None:
            arrays = local.tensors([wanted[at] for at in numbers], chunk_size)
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
        """Return a chunk on this node as an open file; ``None`` when it has to be read."""
        local = self._hot.local
        if local is None or not self._usable:
            return None
        file = local.open(place.digest, place.plain_bytes)
        if file is None:
            return None
        self._hot.record_later(lambda: self._reads_of([(place.digest, place.plain_bytes)]))
        self._pool.count_plain("reused", place.plain_bytes)
        self._pool.count_hot(local.name, place.plain_bytes)
        return FilePart(file, 0, place.plain_bytes, partial(local.failed, place.digest))

    def _count(self, tier: str, here: Sequence[Stored]) -> None:
        nbytes = sum(nbytes for _, nbytes in here)
        mapped = sum(nbytes for _, nbytes in here if nbytes >= MIN_MAPPED_BYTES)
        self._hot.record_later(lambda: self._reads_of(here))
        self._pool.count_plain("reused", nbytes)
        self._pool.count_mapped(mapped)
        if nbytes > mapped:
            self._pool.count_hot(tier, nbytes - mapped)

    def _reads_of(self, tensors: Sequence[Stored]) -> list[ChunkRead]:
        digests = split_digests(b"".join(digests for digests, _ in tensors))
        places = [place for place in map(self._table.find, digests) if place is not None]
        return [ChunkRead(p.digest, p.pack, p.plain_bytes, p.frame_bytes) for p in places]
