"""Fills hot tiers behind the reader's back, with a bounded number of bytes in flight."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tierstore.ids import Buffer

Take = Callable[[list[tuple[str, bytes]]], None]
"""Writes blobs by key to a tier; called from the filler's thread, counts its own failures."""

_log = logging.getLogger("tierstore.tiers")


@dataclass(frozen=True, slots=True)
class _Offer:
    take: Take
    key: str
    data: bytes


class Filler:
    """One thread that writes copies of what was read; what does not fit in is dropped.

    Args:
        budget: bytes of copies that may wait, the one being written included.
        batch: a tier is given up to this many bytes at once.
    """

    def __init__(self, budget: int, batch: int) -> None:
        self._budget, self._batch = budget, batch
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[_Offer] = deque()
        self._bytes = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def offer(self, take: Take, key: str, data: Buffer, *, wait: bool = False) -> bool:
        """Copy ``data`` and write it to a tier later.

        Args:
            take: of the tier.
            key: of the blob there.
            data: its bytes; not referred to once this returns.
            wait: until there is room, instead of dropping it.

        Returns:
            Whether it will be written; a dropped one is for the caller to count.
        """
        if self._pid != os.getpid():  # forked: the thread is in the parent
            self._reset()
        size = len(data)
        with self._changed:
            if wait and size <= self._budget:
                self._changed.wait_for(lambda: self._closed or self._bytes + size <= self._budget)
            if self._closed or self._bytes + size > self._budget:
                return False
            self._bytes += size
        copy = bytes(data)  # not under the lock: readers offer in parallel
        with self._changed:
            self._queue.append(_Offer(take, key, copy))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="tierstore-fill", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        return True

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all that was offered is written or has failed; ``False`` when time is up."""
        if self._pid != os.getpid():
            return True
        with self._changed:
            return self._changed.wait_for(lambda: not self._bytes, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write what waits, for so long at most, and stop."""
        self.flush(timeout_s)
        if self._pid != os.getpid():
            return
        with self._changed:
            self._closed = True
            for offer in self._queue:
                self._bytes -= len(offer.data)
            self._queue.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                batch = self._next_batch()
            try:
                batch[0].take([(offer.key, offer.data) for offer in batch])
            except Exception:  # a hot tier never fails anything; the thread must live on
                _log.exception("a hot tier could not be filled")
            size = sum(len(offer.data) for offer in batch)
            del batch
            with self._changed:
                self._bytes -= size
                self._changed.notify_all()

    def _next_batch(self) -> list[_Offer]:
        """Neighbours for one tier, up to ``batch`` bytes, or one alone."""
        batch = [self._queue.popleft()]
        size = len(batch[0].data)
        while self._queue and self._queue[0].take == batch[0].take:
            size += len(self._queue[0].data)
            if size > self._batch:
                break
            batch.append(self._queue.popleft())
        return batch
