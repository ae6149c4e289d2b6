"""Claims: which process of this node fetches which chunk, by one locked byte of a file for each.

The locks belong to the open file and not to the process (fcntl(2), F_OFD_SETLK), so threads need no
care, and the kernel releases them when the process ends, however it ends. The file stays empty: a
byte may be locked without being there.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from tierstore.folders import Owners
from tierstore.forks import begin

try:
    import fcntl
except ImportError:  # Windows
    _SET = None
else:
    _SET = getattr(fcntl, "F_OFD_SETLK", None)
_SUPPORTED = _SET is not None and sys.platform == "linux" and struct.calcsize("P") == 8
_FLOCK = struct.Struct("@hhqqi4x")  # of Linux: type, whence, start, length, pid


class Claims:
    """The claims of one process on the chunks of one folder. Thread-safe.

    Where there are no such locks, or the file cannot be made, everybody gets every claim.
    """

    def __init__(self, folder: Path, owners: Owners) -> None:
        self._owners = owners
        self._path = folder / "claims"
        self._fd: int | None = None
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self.close()

    def take(self, digests: Sequence[bytes]) -> list[bool]:
        """Claim those chunks that nobody else has claimed, until ``release``; return which."""
        fd = self._opened()
        return [fd is None or self._set(fd, fcntl.F_WRLCK, digest) for digest in digests]

    def release(self, digests: Iterable[bytes]) -> None:
        """Give claims back; those of other processes are left alone."""
        fd = self._fd
        if fd is not None:
            for digest in digests:
                self._set(fd, fcntl.F_UNLCK, digest)

    def _opened(self) -> int | None:
        if not _SUPPORTED:
            return None
        with self._lock:
            if self._fd is None:
                with contextlib.suppress(OSError):  # then all who ask read for themselves
                    self._fd = self._owners.open(self._path)
            return self._fd

    @staticmethod
    def _set(fd: int, kind: int, digest: bytes) -> bool:
        assert _SET is not None
        at = int.from_bytes(digest[:8], "little") >> 2  # a file has no more than 63 bits of bytes
        try:
            fcntl.fcntl(fd, _SET, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # no locks in this file system
            return True
        return True

    def close(self) -> None:
        """Give all claims back; a forked child's end keeps its parent's, whose file stays open."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)
