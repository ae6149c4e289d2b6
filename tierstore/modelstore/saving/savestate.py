"""The state of one save: its chunks, what was reused and where it came from."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tierstore.format.table import ChunkPlace
from tierstore.modelstore.saving.framing import Frame
from tierstore.modelstore.saving.source import SourceFile


@dataclass(frozen=True, slots=True)
class SourceChunk:
    """One chunk to be saved: ``plain_bytes`` bytes at ``offset`` of a file.

    ``begin`` is its offset in ``tensor``, if it belongs to one.
    """

    file: SourceFile
    offset: int
    plain_bytes: int
    dtype: str
    tensor: str = ""
    begin: int = 0


def chunks_of(file: SourceFile, chunk_size: int) -> Iterator[SourceChunk]:
    """Yield the chunks of a file in order, each of ``chunk_size`` bytes at most."""
    spans = [(0, file.size, "", "")]
    if file.header:
        start = file.data_start
        spans = [(start + t.begin, start + t.end, t.dtype, t.name) for t in file.header.tensors]
    for begin, end, dtype, name in spans:
        for at in range(begin, end, chunk_size):
            length = min(chunk_size, end - at)
            yield SourceChunk(file, at, length, dtype, name, at - begin)


@dataclass(slots=True)
class HashedChunk:
    """A chunk with its digest; ``frame`` is ``None`` when the chunk is stored already."""

    digest: bytes
    frame: Frame | None


class EncodedBatch(NamedTuple):
    """Encoded chunks that were read together.

    Attributes:
        chunks: The chunks in the order of the source.
        held: The buffers that their frames lie in.
    """

    chunks: list[HashedChunk]
    held: list[mmap.mmap]


@dataclass(slots=True)
class SaveState:
    """The state of one save, shared by its threads under ``lock``.

    Attributes:
        claimed: Digests that some thread has taken care of.
        reused: Places of chunks that the store has already, by digest.
        reused_packs: Sizes in bytes of the packs of ``reused``, by pack id.
        unfit: Ids of packs that nothing may be reused of: gone, condemned or quarantined.
        lost: Places of chunks that were found in an unfit pack, or as deltas on a base in one.
        alone: Digests of chunks that are stored standalone: a move may have to name their pack.
        sources: The first source of each chunk, by digest.
        order: Digests in load order, each once.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    claimed: set[bytes] = field(default_factory=set)
    reused: dict[bytes, ChunkPlace] = field(default_factory=dict)
    reused_packs: dict[bytes, int] = field(default_factory=dict)
    unfit: set[bytes] = field(default_factory=set)
    lost: set[ChunkPlace] = field(default_factory=set)
    alone: set[bytes] = field(default_factory=set)
    sources: dict[bytes, SourceChunk] = field(default_factory=dict)
    order: dict[bytes, None] = field(default_factory=dict)

    def claim(self, digest: bytes) -> bool:
        """Take care of a chunk from now on; return ``False`` if a thread does already."""
        with self.lock:
            is_new = digest not in self.claimed
            self.claimed.add(digest)
        return is_new

    def lose(self, place: ChunkPlace) -> None:
        """Note that a chunk cannot be relied on where it was found; called under ``lock``."""
        self.lost.add(place)
        self.alone.add(place.digest)

    def found_bytes(self) -> int:
        """Return the plain bytes of the chunks that were in the store; no thread may be at work."""
        found = self.reused.keys() & self.sources.keys()
        return sum(self.sources[digest].plain_bytes for digest in found)
