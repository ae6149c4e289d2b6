"""The hot tiers of one process: chunks of this node, shared frames, and what fills them.

Nothing here can fail a read: what a hot tier cannot give is a counted miss.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tierstore.tiers.hot.flight import Flights
from tierstore.tiers.hot.offers import Filler
from tierstore.tiers.hot.shared import BATCH_BYTES, SharedHot, frame_key

if TYPE_CHECKING:
    from tierstore.format.checks import Verified
    from tierstore.format.table import ChunkPlace
    from tierstore.ids import Buffer
    from tierstore.tiers.activity import Activity
    from tierstore.tiers.base import ChunkRead, HeatSink
    from tierstore.tiers.node.local import LocalHot

_BUDGET_BYTES = 64 << 20
_CLOSE_S = 30.0
_LATER = 4096


class HotTiers:
    """The caches that a reader asks before it asks the durable tiers. Thread-safe.

    Args:
        local: The tier of chunks on this node.
        shared: The tiers of frames that nodes share, the fastest first.
        heat: Told of every read, for all nodes.
        budget_bytes: The most bytes of copies that may wait to be written, to all hot tiers
            together.
    """

    def __init__(
        self,
        local: LocalHot | None = None,
        shared: Sequence[SharedHot] = (),
        *,
        heat: HeatSink | None = None,
        budget_bytes: int = _BUDGET_BYTES,
    ) -> None:
        self.local, self.shared = local, tuple(shared)
        self.flights = Flights()
        self.activity: Activity | None = None
        """Publishes this process's counters to the others of the node, if it is set."""
        self._heat = heat
        self._later: deque[tuple[float, Callable[[], Sequence[ChunkRead]]]] = deque()
        share = budget_bytes // max(1, len(self.shared) + (local is not None))
        self._plain = None if local is None else Filler(self._take_plain, share, BATCH_BYTES)
        self._frames = [Filler(tier.take, share, BATCH_BYTES) for tier in self.shared]

    def __bool__(self) -> bool:
        """Return whether there is a hot tier at all."""
        return self.local is not None or bool(self.shared)

    def record(self, reads: Sequence[ChunkRead]) -> None:
        """Count reads as happening now, wherever their bytes came from."""
        self._record(reads, time.time())

    def record_later(self, reads: Callable[[], Sequence[ChunkRead]]) -> None:
        """Count reads as ``record`` does, but later: for reads that cost less than counting."""
        self._later.append((time.time(), reads))
        if len(self._later) > _LATER:
            self.drain()

    def drain(self) -> None:
        """Count the reads that ``record_later`` was given."""
        while self._later:
            try:
                when, reads = self._later.popleft()
            except IndexError:  # another thread was faster
                return
            self._record(reads(), when)

    def _record(self, reads: Sequence[ChunkRead], when: float) -> None:
        if self.local is not None:
            from tierstore.placement.base import Access

            self.local.record([Access(read.digest, read.plain_bytes, when) for read in reads])
        if self._heat is not None:
            self._heat.record(reads)

    def offer_plain(
        self, digest: bytes, plain: Verified, *, keep: bool = False, wait: bool = False
    ) -> None:
        """Offer a chunk to this node's tier; this process's claim on it is given back.

        Args:
            digest: The digest of the chunk.
            plain: The bytes of the chunk; they are copied.
            keep: Whether to keep it whatever the policy says, and to wait for room instead of
                dropping it.
            wait: Whether to wait for room in memory.
        """
        if self.local is None or self._plain is None:
            return
        if not self._plain.offer((digest, keep), plain, wait=keep or wait):
            self.local.unclaim([digest])
            self.local.stats.count(rejected=1)

    def offer_frame(self, place: ChunkPlace, frame: Buffer, *, keep: bool = False) -> None:
        """Offer a verified frame to the tiers that nodes share."""
        for tier, filler in zip(self.shared, self._frames, strict=True):
            if not filler.offer(frame_key(place), frame, wait=keep):
                tier.stats.count(rejected=1)

    def _take_plain(self, batch: Sequence[tuple[tuple[bytes, bool], memoryview]]) -> None:
        from tierstore.placement.base import Access

        assert self.local is not None
        self.drain()  # the policy is told of a read before what it brought is offered
        now = time.time()
        for force in (False, True):
            chunks = {digest: data for (digest, keep), data in batch if keep == force}
            offers = [(Access(key, len(data), now), data) for key, data in chunks.items()]
            if offers:
                self.local.offer(offers, force=force)
                self.local.unclaim(chunks)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all that was offered is written or dropped; ``False`` at the timeout."""
        self.drain()
        done = [filler.flush(timeout_s) for filler in self._frames]
        return all(done) and (self._plain is None or self._plain.flush(timeout_s))

    def stop(self) -> None:
        """Write what waits, for a limited time, and take no more; the tiers stay open."""
        self.drain()
        for filler in self._frames:
            filler.close(_CLOSE_S)
        if self._plain is not None:
            self._plain.close(_CLOSE_S)

    def close(self) -> None:
        """Stop, and release connections."""
        self.stop()
        if self.activity is not None:
            self.activity.publish(ended=True)
        for tier in self.shared:
            tier.close()
        if self.local is not None:
            self.local.close()
