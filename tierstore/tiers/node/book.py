"""The book of the node's hot tier keeps one process's policy in step with files and processes.

Every process has a policy of its own. It notes in the shared index what it does to the cache and
what it reads; the others replay that, before they decide anything, as if they had seen it. So all
policies hear of nearly the same history, and the quota holds for all processes together.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from tierstore.forks import begin
from tierstore.placement.base import Access, PlacementPolicy
from tierstore.tiers.node.files import ChunkFiles, disk_size
from tierstore.tiers.node.index import ChangeKind, HotIndex, IndexChange, IndexRow
from tierstore.tiers.stats import TierStats

_REPLAYED = 16  # reads of one chunk by another process that a policy is told of at once
_PENDING = 1 << 16
"""The most reads that may wait to be noted; beyond it the oldest are forgotten."""


class HotBook:
    """Decides, under the node's lock, what comes in and what goes out.

    All methods but ``close`` are for use within ``opened``.

    Args:
        files: The chunk files.
        index: The index that the node's processes share.
        policy: Makes the policy for a capacity in bytes.
        high_bytes: Bytes up to which the directory is filled.
        low_bytes: Bytes down to which it is emptied when it is found above ``high_bytes``.
        half_life_s: The half-life of the heat in the index.
        stats: Receives the counts of evictions.
    """

    def __init__(
        self,
        files: ChunkFiles,
        index: HotIndex,
        policy: Callable[[int], PlacementPolicy],
        *,
        high_bytes: int,
        low_bytes: int,
        half_life_s: float,
        stats: TierStats,
    ) -> None:
        self._files, self._index, self._make_policy = files, index, policy
        self._high_bytes, self._low_bytes = high_bytes, low_bytes
        self._half_life_s = half_life_s
        self._stats = stats
        begin(self._begin)

    def _begin(self) -> None:
        self.reads: deque[Access] = deque(maxlen=_PENDING)
        self.lost: deque[bytes] = deque()
        self.policy = self._make_policy(self._high_bytes)
        self.sizes: dict[bytes, int] = {}
        self.pinned: set[bytes] = set()
        self._lock = threading.Lock()
        self._who = secrets.randbits(62)
        self._in_step = False
        self._epoch = 0
        self._seen = 0
        self._changes: list[IndexChange] = []

    @contextmanager
    def opened(self, wait_s: float) -> Iterator[None]:
        """Hold the node's lock; what is decided within is known to all processes afterwards.

        Raises:
            IndexLost, OSError: The same as for ``HotIndex.transaction``; only removed files stay
                removed.
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
        used_bytes = self.policy.used_bytes
        if used_bytes > self._high_bytes:
            self.make_room(used_bytes - self._low_bytes)

    def _rebuild(self) -> None:
        """Take over what the index says, as far as the files agree."""
        rows = {row.digest: row for row in self._index.rows()}
        self._files.tidy()
        files = self._files.sizes()
        now = time.time()
        for digest, size in files.items():
            taken = disk_size(size)
            if digest not in rows or rows[digest].size != taken:
                rows[digest] = IndexRow(digest, taken, None)
                self._changes.append(IndexChange(ChangeKind.IN, digest, taken, now, reads=0))
        for digest in [digest for digest in rows if digest not in files]:
            if not self._files.being_written(digest):
                del rows[digest]
                self._changes.append(IndexChange(ChangeKind.OUT, digest))
        self.sizes = {row.digest: row.size for row in rows.values()}
        self.pinned = set(self._index.pins())
        self.policy = self._make_policy(self._high_bytes)
        self.policy.seed([(r.digest, r.size, self._heat(r, now)) for r in rows.values()], now)
        for digest in self.pinned:
            self.policy.pin(digest)
        self._epoch = self._index.epoch

    def _heat(self, row: IndexRow, now: float) -> float:
        return 0.0 if row.score is None else 2 ** min(row.score - now / self._half_life_s, 64.0)

    def _replay(self, change: IndexChange) -> None:
        """Tell the policy what another process did."""
        digest = change.digest
        match change.kind:
            case ChangeKind.READ:
                access = Access(digest, change.size, change.time, change.cost)
                for _ in range(min(round(change.reads), _REPLAYED)):
                    self.policy.record(access)
            case ChangeKind.IN:
                if digest not in self.sizes:
                    self.sizes[digest] = change.size
                    self.policy.seed([(digest, change.size, change.reads)], change.time)
            case ChangeKind.OUT:
                self.sizes.pop(digest, None)
                self.policy.forget(digest)
            case ChangeKind.PIN:
                self.pinned.add(digest)
                self.policy.pin(digest)
            case ChangeKind.UNPIN:
                self.pinned.discard(digest)
                self.policy.unpin(digest)

    def _note_reads(self) -> None:
        heat: dict[bytes, IndexChange] = {}
        while self.reads:
            access = self.reads.popleft()
            size = disk_size(access.size_bytes)
            self.policy.record(Access(access.key, size, access.time_s, access.cost))
            seen = heat.get(access.key)
            reads = 1.0
            if seen is not None:
                reads += seen.reads * 2 ** ((seen.time - access.time_s) / self._half_life_s)
            heat[access.key] = IndexChange(
                ChangeKind.READ, access.key, size, access.time_s, access.cost, reads
            )
        self._changes += heat.values()

    def totals(self) -> tuple[int, int, int]:
        """Return the bytes, the number of chunks, and the bytes of pinned chunks."""
        pinned = sum(size for digest, size in self.sizes.items() if digest in self.pinned)
        return sum(self.sizes.values()), len(self.sizes), pinned

    def close(self) -> None:
        """Release the index."""
        with self._lock:
            self._index.close()

    def admit(self, access: Access, force: bool) -> tuple[bool, int | None]:
        """Decide about a chunk that is at hand, and make its unfinished file.

        Args:
            access: The read that brought it; its size is in plain bytes.
            force: Whether to take it if it fits at all.

        Returns:
            Whether it is here already or on its way, and the file for ``ChunkFiles.write``.
        """
        digest, size = access.key, disk_size(access.size_bytes)
        if digest in self.sizes:
            if self._is_there(digest):
                return True, None
            self._out(digest)
        elif self._files.exists(digest):  # from a process that died before it could note it
            self._in(digest, size, access.time_s)
            self.policy.seed([(digest, size, 1.0)], access.time_s)
            return True, None
        asked = Access(digest, size, access.time_s, access.cost)
        if not (self._forced(asked) if force else self._admitted(asked)):
            return False, None
        self._in(digest, size, access.time_s)
        self._files.being_written(digest)  # removes what a dead writer left
        return True, self._files.begin(digest)

    def _admitted(self, access: Access) -> bool:
        decision = self.policy.admit(access)
        for victim in decision.victims:
            self._evicted(victim)
        return decision.admitted

    def _forced(self, access: Access) -> bool:
        lacking = self.policy.used_bytes + access.size_bytes - self._high_bytes
        if lacking > 0:
            self.make_room(lacking)
            if self.policy.used_bytes + access.size_bytes > self._high_bytes:
                return False
        self.policy.seed([(access.key, access.size_bytes, 1.0)], access.time_s)
        return True

    def make_room(self, nbytes: int) -> int:
        """Evict ``nbytes`` of the least valuable chunks and return the bytes that were freed."""
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
        """Remove these chunks, or all of them, except pinned ones; return the bytes freed."""
        freed = 0
        for digest in list(self.sizes if digests is None else digests):
            if digest in self.sizes and digest not in self.pinned:
                self.policy.forget(digest)
                freed += self._evicted(digest)
        return freed

    def drop(self, digests: Sequence[bytes]) -> int:
        """Remove every file of these chunks, known or not; return how many chunks had one."""
        self.pin(digests, False)
        there = 0
        for digest in digests:
            there += self._files.exists(digest)
            if digest in self.sizes:
                self.policy.forget(digest)
                self._evicted(digest)
            else:
                self._files.remove(digest)
        return there

    def pin(self, digests: Iterable[bytes], pinned: bool) -> None:
        """Pin or unpin chunks."""
        for digest in digests:
            if (digest in self.pinned) != pinned:
                change = IndexChange(ChangeKind.PIN if pinned else ChangeKind.UNPIN, digest)
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
        self._changes.append(IndexChange(ChangeKind.OUT, digest))
        return self.sizes.pop(digest, 0)

    def _in(self, digest: bytes, size: int, when: float) -> None:
        self.sizes[digest] = size
        self._changes.append(IndexChange(ChangeKind.IN, digest, size, when))

    def _out(self, digest: bytes) -> None:
        self.sizes.pop(digest, None)
        self.policy.forget(digest)
        self._changes.append(IndexChange(ChangeKind.OUT, digest))
