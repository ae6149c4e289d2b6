"""Reads ranges of packs: bounded threads, a staging buffer for each, and counters of the cost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.errors import Damaged
from tierstore.forks import begin
from tierstore.format.keys import pack_key
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.chunks.origin import Origin
from tierstore.modelstore.home.readerlease import Hold
from tierstore.tiers.durable.tiers import DurableTiers

_log = logging.getLogger("tierstore.packs")
_T = TypeVar("_T")

_MIB = 1 << 20
_RUN_BYTES = 8 * _MIB
_STAGING_BYTES = 192 * _MIB  # beyond it more threads only wait for the memory bus
_REMOTE_THREADS = 8

Came: TypeAlias = Literal["reused", "delta", "full"]
"""How plain bytes came: ``reused`` from a hot tier or another reader of this process, or from a
durable tier, as a ``delta`` or standalone (``full``).
"""


@dataclass(frozen=True, slots=True)
class BadCopy:
    """A copy of a frame that was damaged while the chunk could be read elsewhere.

    Attributes:
        place: Place of the frame.
        tiers: Names of the tiers whose copy is bad.
        why: What is wrong with it.
        moved: Whether no tier had a good copy, and the chunk was read from another pack.
    """

    place: ChunkPlace
    tiers: tuple[str, ...]
    why: str
    moved: bool


class ReadPool:
    """The threads, buffers and counters of one version's reads. Thread-safe.

    It reads byte ranges of packs from the tiers that have them. Each thread stages one run of
    frames and a chunk, and two more chunks where there are deltas, so the memory limit bounds the
    number of threads.

    Args:
        home_blobs: The blobs of the store's home, where moves lie.
        tiers: The durable tiers, where packs lie.
        table: The version's layout, which says how long its frames and chunks are.
        threads: How many threads decode; at least 8 are used over a network.
        memory_limit_bytes: Bytes of staging memory, of which at most 192 MiB are used.
        look_again: Returns the version's layout as it is now, for packs that are gone.
    """

    def __init__(
        self,
        home_blobs: BlobStore,
        tiers: DurableTiers,
        table: ChunkTable,
        *,
        threads: int,
        memory_limit_bytes: int,
        look_again: Callable[[], ChunkTable] | None = None,
    ) -> None:
        self._tiers = tiers
        self.memory_limit_bytes = memory_limit_bytes
        if not tiers.local:
            threads = max(threads, _REMOTE_THREADS)
        staging = min(memory_limit_bytes, _STAGING_BYTES)
        self.max_run_bytes = max(min(_RUN_BYTES, staging // threads), _MIB)
        self._staged_bytes = min(self.max_run_bytes, table.frame_bytes)
        per_thread = max(self.max_run_bytes, table.longest_frame_bytes)
        per_thread += table.longest_chunk_bytes
        if table.bases:  # a delta's base as it is kept, and put together from its pieces
            per_thread += 2 * table.longest_chunk_bytes
        self.threads = max(1, min(threads, staging // per_thread))
        begin(self._begin)
        self.origin: Origin | None = None
        """Where the version came from; ``None`` for what only the code of tierstore reads."""
        self.hold: Hold | None = None
        """Keeps the version in this process's lease while anything reads through the pool."""
        self.compute: Callable[[bytes, memoryview], bool] | None = None
        """Fills memory with the plain bytes of a chunk that is lost, by its digest, if it can."""
        self.moves = Moves(home_blobs, tiers, table, look_again)
        self.requests = 0
        self.bytes_by_tier: dict[str, int] = {}
        """Bytes read from durable tiers, by the tiers' names."""
        self.hot_bytes: dict[str, int] = {}
        """Bytes that came from hot tiers, by name: plain bytes of this node's tier, else frames."""
        self.bytes_mapped = 0
        self.bytes_decoded = 0
        """Plain bytes decoded and verified."""
        self.plain_bytes: dict[Came, int] = {"reused": 0, "delta": 0, "full": 0}
        """Plain bytes that were read, by how they came."""
        self.bad_copies: list[BadCopy] = []

    def _begin(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()

    @property
    def bytes_fetched(self) -> int:
        """Bytes read from all durable tiers."""
        return sum(self.bytes_by_tier.values())

    @property
    def shares_link(self) -> bool:
        """Whether the threads share a network link."""
        return not self._tiers.local

    # Threads and buffers

    def each(self, items: Sequence[_T], work: Callable[[_T], None]) -> None:
        """Run ``work`` on every item, in as many threads as memory allows."""
        if len(items) <= 1 or self.threads == 1:
            for item in items:
                work(item)
            return
        with ThreadPoolExecutor(min(self.threads, len(items)), "tierstore-read") as executor:
            futures = [executor.submit(work, item) for item in items]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise

    def staging(self, nbytes: int) -> memoryview:
        """Return a buffer of ``nbytes`` bytes, valid until the calling thread's next call."""
        return self._buffer("frames", max(nbytes, self._staged_bytes))[:nbytes]

    def chunk_room(self, nbytes: int) -> memoryview:
        """Return room for a chunk of ``nbytes`` bytes, valid until the calling thread's next call.

        Nobody else writes there, unlike in memory of a caller's.
        """
        return self._buffer("chunk", nbytes)[:nbytes]

    def _buffer(self, name: str, nbytes: int) -> memoryview:
        buffer: bytearray | None = getattr(self._local, name, None)
        if buffer is None or len(buffer) < nbytes:
            buffer = bytearray(nbytes)
            setattr(self._local, name, buffer)
        return memoryview(buffer)

    # Counters

    def count_hot(self, tier: str, nbytes: int) -> None:
        """Count bytes that came from a hot tier."""
        with self._lock:
            self.hot_bytes[tier] = self.hot_bytes.get(tier, 0) + nbytes

    def count_mapped(self, nbytes: int) -> None:
        """Count plain bytes that were mapped from this node's tier."""
        with self._lock:
            self.bytes_mapped += nbytes

    def count_plain(self, came: Came, nbytes: int) -> None:
        """Count plain bytes by how they came."""
        with self._lock:
            self.plain_bytes[came] += nbytes

    def count_decoded(self, nbytes: int) -> None:
        """Count plain bytes that were decoded and verified."""
        with self._lock:
            self.bytes_decoded += nbytes

    def note_bad_copy(
        self, place: ChunkPlace, tiers: Iterable[str], error: Damaged, *, moved: bool
    ) -> None:
        """Report a frame that was read elsewhere because its copy in ``tiers`` is damaged.

        Args:
            place: Place of the frame.
            tiers: Names of the tiers whose copy is damaged.
            error: What is wrong with it.
            moved: Whether the chunk was read from another pack, and not from another copy.
        """
        bad = BadCopy(place, tuple(sorted(tiers)), str(error), moved)
        _log.log(
            logging.INFO if moved else logging.ERROR,  # a check has told that, and a save healed it
            "the copy of pack %s in tier %s is damaged, another %s was read: %s",
            place.pack.hex(),
            ", ".join(bad.tiers),
            "pack" if moved else "one",
            error,
        )
        with self._lock:
            self.bad_copies.append(bad)

    # Ranges of packs

    def read(
        self,
        pack: bytes,
        parts: Sequence[tuple[int, memoryview]],
        avoid: frozenset[str] = frozenset(),
    ) -> str:
        """Fill every buffer from its offset in the pack; return the name of the tier that was read.

        Raises:
            NotFound: The pack is gone, or only in tiers to ``avoid``.
        """
        key = pack_key(pack)
        if self.hold is not None:
            self.hold.go_on()
        tier = self._tiers.read([RangeRead(key, start, out) for start, out in parts], avoid)
        nbytes = sum(len(out) for _, out in parts)
        with self._lock:
            self.requests += len(parts)
            self.bytes_by_tier[tier] = self.bytes_by_tier.get(tier, 0) + nbytes
        return tier

    def read_head(
        self, place: ChunkPlace, avoid: frozenset[str] = frozenset()
    ) -> tuple[memoryview, str]:
        """Read what comes before a frame's payload.

        Returns:
            The proof, where the place has one, and the head of the frame, end to end; the name of
            the tier that was read.
        """
        out = memoryview(bytearray(place.proof_bytes + place.head_bytes))
        tier = self.read(place.pack, [(place.offset - place.proof_bytes, out)], avoid)
        return out, tier

    def read_frame(
        self, place: ChunkPlace, start: int, stop: int, avoid: frozenset[str] = frozenset()
    ) -> tuple[bytearray, str]:
        """Read bytes ``[start, stop)`` of the frame at ``place``; return them and the tier."""
        out = bytearray(stop - start)
        tier = self.read(place.pack, [(place.offset + start, memoryview(out))], avoid)
        return out, tier
