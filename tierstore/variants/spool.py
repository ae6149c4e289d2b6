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

from tierstore.errors import (
    BackendError,
    OutOfSpace,
    PermissionDenied,
    SourceChanged,
    TierstoreError,
)
from tierstore.folders import ALONE
from tierstore.format.checks import xxh3
from tierstore.format.dtypes import name_of
from tierstore.modelstore.loading.arrays import ArrayBytes

_PIECE_BYTES = 1 << 20
"""Bytes that have a checksum of their own."""


class ArraySpool:
    """A temporary file without a name, which is gone with the process; a context manager.

    What is read from it is compared with what was written: it is stored, with a digest of its own.

    Args:
        folder: Directory of the file, which is made if it is missing.

    Raises:
        PermissionDenied, OutOfSpace, BackendError: Nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._told():
            ALONE.make(folder)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self.size = 0
        self._begins: list[int] = []
        self._sums: list[int] = []

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
        for at in range(0, len(data), _PIECE_BYTES):
            piece = data[at : at + _PIECE_BYTES]
            self._begins.append(self.size)
            self._sums.append(xxh3(piece))
            while piece:
                with self._told():
                    written = self._file.write(piece)
                self.size += written
                piece = piece[written:]
        return start

    def read_into(self, start: int, out: memoryview) -> None:
        """Read bytes from an offset on, compared with what was appended.

        Raises:
            SourceChanged: The disk gave other bytes.
        """
        at = bisect.bisect_right(self._begins, start) - 1
        while out:
            piece = self._piece(at)[start - self._begins[at] :][: len(out)]
            out[: len(piece)] = piece
            out, start, at = out[len(piece) :], start + len(piece), at + 1

    def _piece(self, number: int) -> memoryview:
        begin, *after = self._begins[number : number + 2]
        piece = memoryview(bytearray((after[0] if after else self.size) - begin))
        done = 0
        while done < len(piece):
            count = os.preadv(self._file.fileno(), [piece[done:]], begin + done)
            if not count:
                break
            done += count
        if xxh3(piece) != self._sums[number]:
            raise SourceChanged(
                f"{self._folder}: the disk changed a variant that waits there until it is saved; "
                "nothing was published: derive again, or set TIERSTORE_CACHE_DIR to another place"
            )
        return piece


class Spooled(ArrayBytes):
    """An array whose blocks of rows are in a spool.

    Args:
        spool: Spool that gets the blocks.
        first: Array with the dtype and the other dimensions; its own rows are not added.
    """

    def __init__(self, spool: ArraySpool, first: npt.NDArray[Any]) -> None:
        self.dtype = name_of(first.dtype)
        self.shape = (0, *first.shape[1:]) if first.ndim else ()  # a scalar has no rows to add up
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
        if block.ndim:
            self.shape = (self.shape[0] + block.shape[0], *self.shape[1:])

    def read_into(self, start: int, out: memoryview) -> None:
        at = bisect.bisect_right(self._begins, start) - 1
        while out:
            end = self._begins[at + 1] if at + 1 < len(self._begins) else self._nbytes
            part = out[: end - start]
            self._spool.read_into(self._starts[at] + start - self._begins[at], part)
            out, start, at = out[len(part) :], start + len(part), at + 1
