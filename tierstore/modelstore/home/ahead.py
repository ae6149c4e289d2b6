"""Reads many small objects: some at a time, and a bounded number of them ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_THREADS = 16
_AHEAD = 64
_T = TypeVar("_T")
_R = TypeVar("_R")


def ahead(work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[tuple[_T, _R]]:
    """Yield every item with ``work(item)``, in order; up to 64 of them are begun before their turn.

    What ``work`` raises is raised at the item's turn.
    """
    pending: deque[tuple[_T, Future[_R]]] = deque()
    with ThreadPoolExecutor(_THREADS, "tierstore-ahead") as pool:
        try:
            for item in items:
                if len(pending) == _AHEAD:
                    first, future = pending.popleft()
                    yield first, future.result()
                pending.append((item, pool.submit(work, item)))
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def parallel(work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Return ``work(item)`` for every item; for small reads of home, eight at a time."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(8, "tierstore-few") as pool:
        return list(pool.map(work, items))
