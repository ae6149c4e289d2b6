"""Several files as one contiguous array, without copying.

The address range is reserved first, and then each file is mapped over its part of it: private and
writable, so that the pages are shared with every other process until somebody writes to them, and a
page that is written to becomes the writer's own copy (mmap(2), MAP_PRIVATE and MAP_FIXED).

Every file is a mapping of its own, and the kernel allows a process ``vm.max_map_count`` of them,
for its heaps, libraries and threads as well: arrays use at most half.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tierstore.forks import begin

if TYPE_CHECKING:
    from tierstore.deferred import Bytes

SUPPORTED = sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"}
"""Whether the numbers below are the kernel's."""

PAGE = mmap.PAGESIZE

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_FAILED = ctypes.c_void_p(-1).value
_DEFAULT_LIMIT = 65530


class MappingFailed(Exception):
    """The kernel does not map files here, or ran out of memory."""


class _Budget:
    """The number of mappings of this process's arrays; a forked child starts with the same."""

    def __init__(self) -> None:
        self._taken = 0
        self._released: deque[int] = deque()
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        with self._lock:
            while self._released:
                self._taken -= self._released.popleft()
            if self._taken + count > map_limit() // 2:
                return False
            self._taken += count
            return True

    def release(self, count: int) -> None:
        # takes no lock: it is called by the garbage collector, wherever a thread may be
        self._released.append(count)


_budget = _Budget()
_torn: list[mmap.mmap] = []
"""Ranges where somebody else's mapping may lie by now; they are never unmapped."""


class _Range(mmap.mmap):
    """Reserved addresses; unmapped with the last array that views them."""

    __slots__ = ("mappings",)  # one for each tensor: without a dictionary each
    mappings: int
    _release = staticmethod(_budget.release)  # the module may be gone before the last array

    def __del__(self) -> None:
        self._release(getattr(self, "mappings", 0))


def reserve(chunk_size: int, nbytes: int) -> mmap.mmap | None:
    """Reserve addresses for files of ``chunk_size`` bytes each that have ``nbytes`` together.

    Returns:
        The addresses, or ``None`` when there are too many mappings already.

    Raises:
        MappingFailed: The kernel refuses.
    """
    count = -(-nbytes // chunk_size)
    if not _budget.take(count):
        return None
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    try:
        reserved = _Range(-1, nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, OverflowError) as error:
        _budget.release(count)
        raise MappingFailed(str(error)) from error
    reserved.mappings = count
    return reserved


def map_files(
    reserved: mmap.mmap, array: Bytes, chunk_size: int, open_file: Callable[[int, int], int | None]
) -> bool:
    """Map files end to end over reserved addresses.

    Args:
        reserved: The addresses, from ``reserve``.
        array: A view of all of them.
        chunk_size: Bytes of each file but the last, whole pages.
        open_file: Takes a file's number and its bytes; returns a descriptor of a file of exactly
            that size, or ``None``.

    Returns:
        ``False`` when a file is missing.

    Raises:
        MappingFailed: The kernel refuses.
    """
    address = array.__array_interface__["data"][0]
    for start in range(0, array.nbytes, chunk_size):
        length = min(chunk_size, array.nbytes - start)
        fd = open_file(start // chunk_size, length)
        if fd is None:
            return False
        try:
            _map(reserved, address + start, length, fd)
        finally:
            os.close(fd)
    return True


def _map(reserved: mmap.mmap, address: int, length: int, fd: int) -> None:
    call = _libc_mmap()
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    if call(address, length, prot, flags | _MAP_FIXED, fd, 0) == _FAILED:
        refused(reserved, ctypes.get_errno())


def refused(reserved: mmap.mmap, error: int) -> NoReturn:
    """Raise ``MappingFailed`` for an error of mmap(2) over reserved addresses."""
    # It may have unmapped what was there, and others may have got that hole: keep out of it.
    _torn.append(reserved)
    raise MappingFailed(f"mmap over {len(reserved)} bytes: {os.strerror(error)}")


@cache
def _libc_mmap() -> Callable[..., Any]:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    return function


@cache
def map_limit() -> int:
    """Return how many mappings the kernel allows a process."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return _DEFAULT_LIMIT
