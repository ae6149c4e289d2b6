"""Arrays that are made block by block and wait on the local disk until they are saved."""

from __future__ import annotations

import bisect
import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tierstore.errors import BackendError, OutOfSpace, PermissionDenied, TierstoreError
from tierstore.format.dtypes import name_of
from tierstore.modelstore.loading.arrays import ArrayBytes


class ArraySpool:
    """A temporary file without a name, which is gone with the process; a context manager.

    Args:
        folder: Directory of the file, which is made if it is missing.

    Raises:
        PermissionDenied, OutOfSpace, BackendError: Nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self.size = 0

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except TierstoreError:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            denied = isinstance(error, PermissionError) or error.errno == errno.EROFS
            kind = OutOfSpace if full else PermissionDenied if denied else BackendError
            raise kind(
                f"{self._folder}: {error.strerror}; a variant waits there until it is saved: make "
                "room, or set TIERSTORE_CACHE_DIR to another place"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, data: memoryview) -> int:
        """Append bytes and return the offset at which they begin."""
        start = self.size
        while data:
            with self._told():
                written = self._file.write(data)
            self.size += written
            data = data[written:]
        return start

    def read_into(self, start: int, out: memoryview) -> None:
        """Read bytes from an offset on."""
        while out:
            count = os.preadv(self._file.fileno(), [out], start)
            if not count:
                raise EOFError(f"the temporary file ends at {start}")
            out, start = out[count:], start + count


class Spooled(ArrayBytes):
    """An array whose blocks of rows are in a spool.

    Args:
        spool: Spool that gets the blocks.
        first: Array with the dtype and the other dimensions; its own rows are not added.
    """

    def __init__(self, spool: ArraySpool, first: npt.NDArray[Any]) -> None:
        self.dtype, self.shape = name_of(first.dtype), (0, *first.shape[1:])
        self._spool = spool
        self._starts: list[int] = []
        self._begins: list[int] = []
        self._nbytes = 0

    def append(self, block: npt.NDArray[Any]) -> None:
        """Append a block of rows."""
        plain = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
        self._starts.append(self._spool.append(plain.data))
        self._begins.append(self._nbytes)
        self._nbytes += plain.nbytes
        self.shape = (self.shape[0] + block.shape[0], *self.shape[1:])

    def read_into(self, start: int, out: memoryview) -> None:
        at = bisect.bisect_right(self._begins, start) - 1
        while out:
            end = self._begins[at + 1] if at + 1 < len(self._begins) else self._nbytes
            part = out[: end - start]
            self._spool.read_into(self._starts[at] + start - self._begins[at], part)
            out, start, at = out[len(part) :], start + len(part), at + 1
