"""Between tests, and between the examples of one: stores are closed, memory is given back."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import weakref
from collections.abc import Iterator
from typing import Any

from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Crashed

_LIBC = ctypes.CDLL(None)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GROWN_BYTES = 64 << 20
_kept_bytes = 0
_opened: list[weakref.ref[Store]] = []


@contextlib.contextmanager
def stores_noted() -> Iterator[None]:
    """Note every store that is opened in this process, for ``close_stores``."""
    init = Store.__init__

    @functools.wraps(init)
    def noted(self: Store, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _opened.append(weakref.ref(self))

    Store.__init__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Store.__init__ = init  # type: ignore[method-assign]


def close_stores(first: int = 0) -> None:
    """Close the stores that were left open: their threads would hold all that is in memory.

    Args:
        first: How many of those opened before stay open.
    """
    for store in [ref() for ref in _opened[first:]]:
        if store is not None:
            with contextlib.suppress(Exception, Crashed):
                store.close()
    del _opened[first:]


def open_stores() -> int:
    """How many stores were opened and not closed by ``close_stores``."""
    return len(_opened)


def give_back() -> None:
    """Give freed memory back to the system, once this process has grown by 64 MiB.

    It lies in cycles that nobody has collected and in the arenas of threads that have ended: a
    process that runs many tests, or a test that tries many examples, would grow to several GiB.
    """
    global _kept_bytes
    if _resident_bytes() > _kept_bytes + _GROWN_BYTES:
        gc.collect()
        _LIBC.malloc_trim(0)
        _kept_bytes = _resident_bytes()


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * _PAGE_BYTES
