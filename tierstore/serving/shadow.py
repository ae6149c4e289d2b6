"""A file in memory that consists of holes, for libraries that read files.

It has the size and the header of a stored safetensors file, but no weights: a hole takes no memory.
The safetensors library opens it and behaves as for the real file, with its names, metadata and
refusals; the bytes that it will read are filled in from the store first.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Fill = Callable[[memoryview], None]
"""Function that fills its argument, which is writable."""


@contextmanager
def shadow(
    header: bytes, size: int, low: int = 0, high: int = 0, fill: Fill | None = None
) -> Iterator[str]:
    """Yield the path of a file that begins with ``header`` and has ``size`` bytes.

    The path can be opened until the block ends; what is open then stays readable.

    Args:
        header: First bytes of the file.
        size: Size of the file in bytes.
        low: First byte of the range that ``fill`` fills; bytes outside of it are zeros.
        high: End of that range.
        fill: Function that is called with the range to fill.
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
