"""Fills a hot tier behind the reader's back, with a bounded number of bytes in flight."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tierstore.deferred import np
from tierstore.ids import Buffer

_K = TypeVar("_K")
_log = logging.getLogger("tierstore.tiers")


class Filler(Generic[_K]):
    """One thread that hands copies of what was read to a tier; what does not fit in is dropped.

    Args:
        take: writes a batch to the tier; called from the filler's thread, counts its own failures.
        budget: bytes of copies that may wait, those being written included.
        batch: bytes that are handed over at once, unless one alone has more.
    """

    def __init__(
        self, take: Callable[[Sequence[tuple[_K, memoryview]]], None], budget: int, batch: int
    ) -> None:
        self._take, self._budget, self._batch = take, budget, batch
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[tuple[_K, memoryview]] = deque()
        self._bytes = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def offer(self, key: _K, data: Buffer, *, wait: bool = False) -> bool:
        """Copy ``data``, to be written later.

        Args:
            key: what the tier is told with it.
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
        copy = _copied(data)  # not under the lock: readers offer in parallel
        with self._changed:
            if self._closed:
                self._bytes -= size
                return False
            self._queue.append((key, copy))
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
            self._bytes -= sum(len(data) for _, data in self._queue)
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
                self._take(batch)
            except Exception:  # a hot tier never fails anything, and the thread must live on
                _log.exception("a hot tier could not be filled")
            size = sum(len(data) for _, data in batch)
            del batch
            with self._changed:
                self._bytes -= size
                self._changed.notify_all()

    def _next_batch(self) -> list[tuple[_K, memoryview]]:
        batch = [self._queue.popleft()]
        size = len(batch[0][1])
        while self._queue and size + len(self._queue[0][1]) <= self._batch:
            batch.append(self._queue.popleft())
            size += len(batch[-1][1])
        return batch


def _copied(data: Buffer) -> memoryview:
    """A copy, made without the interpreter: ``bytes`` would stop every thread for some ms."""
    copy = np.empty(len(data), np.uint8)
    np.copyto(copy, np.frombuffer(data, np.uint8))
    return copy.data
