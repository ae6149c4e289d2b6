"""A file in memory that is made of holes, for libraries that read files.

It has the size and the header of a stored safetensors file, but no weights: a hole takes no memory.
The safetensors library opens it and says what it says of the real file, names, metadata, refusals
and all; the bytes that it is asked for are filled in first, from the store.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Fill = Callable[[memoryview], None]
"""Writes into its argument, which is writable."""


@contextmanager
def shadow(
    header: bytes, size: int, low: int = 0, high: int = 0, fill: Fill | None = None
) -> Iterator[str]:
    """Yield the path of a file that begins with ``header`` and has ``size`` bytes.

    It can be opened until the block ends; what has it open then keeps it.

    Args:
        header: its first bytes.
        size: bytes of the file.
        low: ``[low, high)`` of the file is what ``fill`` fills; all other bytes are zeros.
        high: likewise.
        fill: called with that range.
    """
    with _file() as (fd, path):
        os.ftruncate(fd, size)
        os.pwrite(fd, header, 0)
        if fill is not None and low < high:
            _filled(fd, low, high, fill)
        yield path


def _filled(fd: int, low: int, high: int, fill: Fill) -> None:
    page = low - low % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(fd, high - page, offset=page)  # unmapped with the last view of it
    fill(memoryview(mapped)[low - page :])


@contextmanager
def _file() -> Iterator[tuple[int, str]]:
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").exists():
        fd = os.memfd_create("tierstore", os.MFD_CLOEXEC)
        try:
            yield fd, f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    with tempfile.NamedTemporaryFile(prefix="tierstore-") as file:
        yield file.fileno(), file.name
