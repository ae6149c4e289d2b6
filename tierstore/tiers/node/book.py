"""Keeps the policy of one process in step with the files and with the node's other processes.

Every process has a policy of its own. What one does to the cache, and what it reads, it notes in
the shared index; the others replay that, before they decide anything, as if they had seen it. So
all policies hear of nearly the same history, and the quota is one for all.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tierstore.placement.base import Access, PlacementPolicy
from tierstore.tiers.node.files import ChunkFiles, disk_size
from tierstore.tiers.node.index import Change, HotIndex, Kind, Row
from tierstore.tiers.stats import TierStats

_REPLAYED = 16  # reads of one chunk by another process that a policy is told of at once
_PENDING = 1 << 16
"""Reads that may wait to be noted; beyond it the oldest are forgotten."""


class HotBook:
    """Decides, under the node's lock, what comes in and what goes out.

    All methods but ``reset`` and ``close`` are for within ``opened``.

    Args:
        files: the chunks.
        index: shared with the other processes.
        policy: makes the policy for a capacity in bytes.
        high: bytes up to which the directory is filled.
        low: bytes down to which it is emptied when it is found above that.
        half_life_s: of the heat in the index.
        stats: told of evictions.
    """

    def __init__(
        self,
        files: ChunkFiles,
        index: HotIndex,
        policy: Callable[[int], PlacementPolicy],
        *,
        high: int,
        low: int,
        half_life_s: float,
        stats: TierStats,
    ) -> None:
        self._files, self._index, self._make_policy = files, index, policy
        self._high, self._low, self._half_life_s = high, low, half_life_s
        self._stats = stats
        self.reset()

    def reset(self) -> None:
        """Begin anew: for a child that was forked."""
        self.reads: deque[Access] = deque(maxlen=_PENDING)
        self.lost: deque[bytes] = deque()
        self.policy = self._make_policy(self._high)
        self.sizes: dict[bytes, int] = {}
        self.pinned: set[bytes] = set()
        self._lock = threading.Lock()
        self._who = secrets.randbits(62)
        self._in_step = False
        self._epoch = 0
        self._seen = 0
        self._changes: list[Change] = []

    @contextmanager
    def opened(self, wait_s: float) -> Iterator[None]:
        """The node's lock; what is decided within is known to all processes afterwards.

        Raises:
            IndexLost, OSError: as ``HotIndex.transaction``; nothing is kept but removed files.
        """
        with self._lock:
            try:
                with self._index.transaction(wait_s):
                    self._changes = []
                    self._files.refresh()
                    self._catch_up()
                    yield
                    self._index.apply(self._who, self._changes, self._half_life_s)
                    self._seen = self._index.last_change()
            except BaseException:
                self._in_step = False
                raise
            self._in_step = True

    def _catch_up(self) -> None:
        known = self._in_step and self._epoch == self._index.epoch
        changes = self._index.changes(self._seen, self._who) if known else None
        if changes is None:
            self._rebuild()
        else:
            for change in changes:
                self._replay(change)
        while self.lost:
            digest = self.lost.popleft()
            if digest in self.sizes and not self._is_there(digest):
                self._out(digest)
        self._note_reads()
        used = self.policy.used
        if used > self._high:
            self.make_room(used - self._low)

    def _rebuild(self) -> None:
        """Take what the index says, as far as the files agree."""
        rows = {row.digest: row for row in self._index.rows()}
        self._files.tidy()
        files = self._files.sizes()
        now = time.time()
        for digest, size in files.items():
            taken = disk_size(size)
            if digest not in rows or rows[digest].size != taken:
                rows[digest] = Row(digest, taken, None)
                self._changes.append(Change(Kind.IN, digest, taken, now, reads=0))
        for digest in [digest for digest in rows if digest not in files]:
            if not self._files.being_written(digest):
                del rows[digest]
                self._changes.append(Change(Kind.OUT, digest))
        self.sizes = {row.digest: row.size for row in rows.values()}
        self.pinned = set(self._index.pins())
        self.policy = self._make_policy(self._high)
        self.policy.seed([(r.digest, r.size, self._heat(r, now)) for r in rows.values()], now)
        for digest in self.pinned:
            self.policy.pin(digest)
        self._epoch = self._index.epoch

    def _heat(self, row: Row, now: float) -> float:
        return 0.0 if row.score is None else 2 ** min(row.score - now / self._half_life_s, 64.0)

    def _replay(self, change: Change) -> None:
        """Tell the policy what another process did."""
        digest = change.digest
        match change.kind:
            case Kind.READ:
                access = Access(digest, change.size, change.time, change.cost)
                for _ in range(min(round(change.reads), _REPLAYED)):
                    self.policy.record(access)
            case Kind.IN:
                if digest not in self.sizes:
                    self.sizes[digest] = change.size
                    self.policy.seed([(digest, change.size, change.reads)], change.time)
            case Kind.OUT:
                self.sizes.pop(digest, None)
                self.policy.forget(digest)
            case Kind.PIN:
                self.pinned.add(digest)
                self.policy.pin(digest)
            case Kind.UNPIN:
                self.pinned.discard(digest)
                self.policy.unpin(digest)

    def _note_reads(self) -> None:
        heat: dict[bytes, Change] = {}
        while self.reads:
            access = self.reads.popleft()
            size = disk_size(access.size)
            self.policy.record(Access(access.key, size, access.time, access.cost))
            seen = heat.get(access.key)
            reads = 1.0
            if seen is not None:
                reads += seen.reads * 2 ** ((seen.time - access.time) / self._half_life_s)
            heat[access.key] = Change(Kind.READ, access.key, size, access.time, access.cost, reads)
        self._changes += heat.values()

    def totals(self) -> tuple[int, int, int]:
        """Bytes, chunks, and bytes of pinned chunks."""
        pinned = sum(size for digest, size in self.sizes.items() if digest in self.pinned)
        return sum(self.sizes.values()), len(self.sizes), pinned

    def close(self) -> None:
        """Release the index."""
        with self._lock:
            self._index.close()

    def admit(self, access: Access, force: bool) -> tuple[bool, int | None]:
        """Decide about a chunk that is at hand, and make its unfinished file.

        Args:
            access: the read that brought it; the size in plain bytes.
            force: take it if it fits at all.

        Returns:
            Whether it is here already or on its way, and the file for ``ChunkFiles.write``.
        """
        digest, size = access.key, disk_size(access.size)
        if digest in self.sizes:
            if self._is_there(digest):
                return True, None
            self._out(digest)
        elif self._files.exists(digest):  # from a process that died before it could note it
            self._in(digest, size, access.time)
            self.policy.seed([(digest, size, 1.0)], access.time)
            return True, None
        asked = Access(digest, size, access.time, access.cost)
        if not (self._forced(asked) if force else self._admitted(asked)):
            return False, None
        self._in(digest, size, access.time)
        self._files.being_written(digest)  # removes what a dead writer left
        return True, self._files.begin(digest)

    def _admitted(self, access: Access) -> bool:
        decision = self.policy.admit(access)
        for victim in decision.victims:
            self._evicted(victim)
        return decision.admitted

    def _forced(self, access: Access) -> bool:
        lacking = self.policy.used + access.size - self._high
        if lacking > 0:
            self.make_room(lacking)
            if self.policy.used + access.size > self._high:
                return False
        self.policy.seed([(access.key, access.size, 1.0)], access.time)
        return True

    def make_room(self, nbytes: int) -> int:
        """Evict so many bytes, the least valuable chunks first; returns the bytes freed."""
        return sum(self._evicted(victim) for victim in self.policy.victims(nbytes, time.time()))

    def publish(self, digest: bytes, fd: int) -> bool:
        """Give a written file its name; ``False`` when it was evicted meanwhile."""
        return digest in self.sizes and self._files.publish(digest, fd)

    def discard(self, digest: bytes) -> None:
        """Forget a chunk that could not be written."""
        if digest in self.sizes:
            self._removed(digest)
            self.policy.forget(digest)

    def evict(self, digests: Iterable[bytes] | None) -> int:
        """Remove these chunks, or all, but for pinned ones; returns the bytes freed."""
        freed = 0
        for digest in list(self.sizes if digests is None else digests):
            if digest in self.sizes and digest not in self.pinned:
                self.policy.forget(digest)
                freed += self._evicted(digest)
        return freed

    def pin(self, digests: Iterable[bytes], pinned: bool) -> None:
        """Pin or unpin chunks."""
        for digest in digests:
            if (digest in self.pinned) != pinned:
                change = Change(Kind.PIN if pinned else Kind.UNPIN, digest)
                self._replay(change)
                self._changes.append(change)

    def _is_there(self, digest: bytes) -> bool:
        return self._files.exists(digest) or self._files.being_written(digest)

    def _evicted(self, digest: bytes) -> int:
        size = self._removed(digest)
        self._stats.count(evicted=1, evicted_bytes=size)
        return size

    def _removed(self, digest: bytes) -> int:
        self._files.remove(digest)
        self._changes.append(Change(Kind.OUT, digest))
        return self.sizes.pop(digest, 0)

    def _in(self, digest: bytes, size: int, when: float) -> None:
        self.sizes[digest] = size
        self._changes.append(Change(Kind.IN, digest, size, when))

    def _out(self, digest: bytes) -> None:
        self.sizes.pop(digest, None)
        self.policy.forget(digest)
        self._changes.append(Change(Kind.OUT, digest))
