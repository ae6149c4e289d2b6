"""A small LRU cache that computes each value once, also under concurrent callers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from tierstore.forks import begin

_V = TypeVar("_V")


class Recent(Generic[_V]):
    """Keeps the ``count`` values that were asked for last. Thread-safe.

    One thread makes a value while the others that want it wait; an error is raised in all of them
    and is not kept. What makes a value is given by whoever asks for it: kept here, a method of the
    cache's owner would be a cycle, and hold the values until Python's collector runs.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        begin(self._begin)

    def _begin(self) -> None:
        # values that a thread of the parent is making never come here
        self._lock = threading.Lock()
        self._values: OrderedDict[bytes, Future[_V]] = OrderedDict()

    def get(self, key: bytes, make: Callable[[bytes], _V]) -> _V:
        """Return the value of ``key``, made if necessary; raises what making it raises."""
        with self._lock:
            future = self._values.get(key)
            mine = future is None
            if future is None:
                future = self._values[key] = Future()
            self._values.move_to_end(key)
            while len(self._values) > self._count:
                self._values.popitem(last=False)
        if mine:
            try:
                future.set_result(make(key))
            except BaseException as error:
                future.set_exception(error)
                with self._lock:
                    if self._values.get(key) is future:
                        del self._values[key]
        return future.result()

    def forget(self, key: bytes) -> None:
        """Forget one value, so that it is made anew when it is asked for again."""
        with self._lock:
            self._values.pop(key, None)
