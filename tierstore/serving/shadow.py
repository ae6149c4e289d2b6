"""A file in memory that consists of holes, for libraries that read files.

It has the size and the header of a stored safetensors file, but no weights: a hole takes no memory.
The safetensors library opens it and behaves as for the real file, with its names, metadata and
refusals; the bytes that it will read are filled in from the store first.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tierstore.unfinished import nameless_file

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
    with nameless_file() as (fd, path):
        os.ftruncate(fd, size)
        os.pwrite(fd, header, 0)
        if fill is not None and low < high:
            _filled(fd, low, high, fill)
        yield path


def _filled(fd: int, low: int, high: int, fill: Fill) -> None:
    page = low - low % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(fd, high - page, offset=page)  # unmapped with the last view of it
    fill(memoryview(mapped)[low - page :])
