"""A filler that writes to a hot tier in the background, with bounded memory."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tierstore.deferred import np
from tierstore.forks import begin
from tierstore.ids import Buffer

_K = TypeVar("_K")
_log = logging.getLogger("tierstore.tiers")


class Filler(Generic[_K]):
    """A thread that hands copies of what was read to a tier; it drops what does not fit in.

    Args:
        take: Writes a batch to the tier; called in the filler's thread, and counts its own
            failures.
        budget_bytes: The most bytes of copies that may wait, including those that are being
            written.
        batch_bytes: The most bytes that are handed over at once, unless a single one has more.
    """

    def __init__(
        self,
        take: Callable[[Sequence[tuple[_K, memoryview]]], None],
        budget_bytes: int,
        batch_bytes: int,
    ) -> None:
        self._take, self._budget_bytes, self._batch_bytes = take, budget_bytes, batch_bytes
        begin(self._begin)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[tuple[_K, memoryview]] = deque()
        self._waiting_bytes = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def offer(self, key: _K, data: Buffer, *, wait: bool = False) -> bool:
        """Copy ``data``, to be written later.

        Args:
            key: The key that the tier is given with the data.
            data: The bytes; not referred to once this returns.
            wait: Whether to wait until there is room, instead of dropping it.

        Returns:
            Whether it will be written; a dropped one is for the caller to count.
        """
        size = len(data)
        with self._changed:
            if wait and size <= self._budget_bytes:
                self._changed.wait_for(
                    lambda: self._closed or self._waiting_bytes + size <= self._budget_bytes
                )
            if self._closed or self._waiting_bytes + size > self._budget_bytes:
                return False
            self._waiting_bytes += size
        copy = _copied(data)  # not under the lock: readers offer in parallel
        with self._changed:
            if self._closed:
                self._waiting_bytes -= size
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
        """Wait until all that was offered is written or has failed; ``False`` at the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting_bytes, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s`` seconds, and stop."""
        self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._waiting_bytes -= sum(len(data) for _, data in self._queue)
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
                self._waiting_bytes -= size
                self._changed.notify_all()

    def _next_batch(self) -> list[tuple[_K, memoryview]]:
        batch = [self._queue.popleft()]
        size = len(batch[0][1])
        while self._queue and size + len(self._queue[0][1]) <= self._batch_bytes:
            batch.append(self._queue.popleft())
            size += len(batch[-1][1])
        return batch


def _copied(data: Buffer) -> memoryview:
    """Return a copy made outside of the interpreter: ``bytes`` would stop all threads for ms."""
    copy = np.empty(len(data), np.uint8)
    np.copyto(copy, np.frombuffer(data, np.uint8))
    return copy.data
