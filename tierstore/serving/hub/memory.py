"""Memory of a process that serves for long: few arenas, and a collector that looks at less.

glibc gives the threads of a process eight arenas for each core. What a thread frees stays in its
arena, up to 64 MiB each, so a gateway of many threads would hold some hundred MiB that nobody uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

_M_ARENA_MAX = -8  # of <malloc.h>
_ARENAS = 2


def few_arenas() -> None:
    """Let all threads of this process share two arenas; of no effect without glibc."""
    with contextlib.suppress(OSError, AttributeError):  # an allocator without arenas
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def rest_collector() -> None:
    """Leave all objects of now, which stay for good, out of later searches for garbage.

    Many connections make many objects, and with each quarter that they add to those that are there
    Python searches through all of them, while everybody waits.
    """
    gc.collect()
    gc.freeze()
