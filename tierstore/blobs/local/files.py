"""System calls of the local store, retried, checked and safe against symbolic links."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tierstore.blobs.local.direct import MIN_BYTES, write_direct
from tierstore.blobs.shared import IOV_MAX, drop_front
from tierstore.errors import BackendError, OutOfSpace, PermissionDenied
from tierstore.folders import sync_entries

DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that someone put in a blob's place must not hang.
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# O_NOFOLLOW says ELOOP to a symbolic link, and ENOTDIR to one where a directory should be.
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_GET_VERSION = 2 << 30 | struct.calcsize("l") << 16 | ord("v") << 8 | 1
"""FS_IOC_GETVERSION of linux/fs.h."""

_MAX_READ_BYTES = 1 << 30  # one read(2) returns at most 0x7ffff000 bytes


@dataclass(frozen=True, slots=True)
class DirEntry:
    """One name in a directory; ``info`` is ``None`` for a directory."""

    name: str
    info: os.stat_result | None

    @property
    def order(self) -> str:
        """The key that sorts directories so that whole paths are sorted as strings."""
        return self.name if self.info else f"{self.name}/"


def make_root(path: str) -> None:
    """Make a directory and its missing parents, each durable in its own parent."""
    if os.path.isdir(path):  # noqa: PTH112 - a plain string is what the rest of this file takes
        return
    parent = os.path.dirname(path)  # noqa: PTH120
    make_root(parent)
    fd = os.open(parent, DIR_FLAGS)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)  # noqa: PTH102
        sync_entries(fd)
    finally:
        os.close(fd)


def open_dir(name: str, parent: int, *, create: bool) -> int:
    """Open the directory ``name`` in ``parent``; with ``create``, make it if it is missing."""
    flags = DIR_FLAGS | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        if not create:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
    return os.open(name, flags, dir_fd=parent)


def look(name: str, folder: int) -> os.stat_result | None:
    """Return what ``folder`` has under a name, of any kind; ``None`` if there is nothing."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def generation(fd: int) -> int | None:
    """Return the number that a file's inode got when it was made; ``None`` where it has none.

    Two file systems may give one inode number to two files, but not with the same generation.
    """
    try:
        found = fcntl.ioctl(fd, _GET_VERSION, bytes(struct.calcsize("l")))
    except OSError:  # a file system that keeps none, as NFS and tmpfs
        return None
    (number,) = struct.unpack("=I", found[:4])  # that much of it is written, whatever its type says
    return int(number)


def unlink_file(name: str, folder: int) -> bool:
    """Remove a file; return ``False`` when it is missing or a directory, which no blob is."""
    try:
        os.unlink(name, dir_fd=folder)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def entries(folder: int) -> list[DirEntry]:
    """Return the regular files and directories in ``folder``, in the order of their paths."""
    found = []
    with os.scandir(folder) as scan:
        for entry in scan:
            if entry.is_dir(follow_symlinks=False):
                found.append(DirEntry(entry.name, None))
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # deleted just now
                    found.append(DirEntry(entry.name, entry.stat(follow_symlinks=False)))
    found.sort(key=lambda entry: entry.order)
    return found


def has_file(folder: int) -> bool:
    """Return whether a regular file lies in ``folder`` or below it; stops at the first one."""
    below = []
    with os.scandir(folder) as scan:
        for entry in scan:
            if entry.is_file(follow_symlinks=False):
                return True
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
    for name in below:
        with contextlib.suppress(FileNotFoundError):  # removed just now
            fd = open_dir(name, folder, create=False)
            try:
                if has_file(fd):
                    return True
            finally:
                os.close(fd)
    return False


def is_regular(found: os.stat_result) -> bool:
    """Return whether this is a regular file."""
    return stat.S_ISREG(found.st_mode)


def is_link(found: os.stat_result) -> bool:
    """Return whether this is a symbolic link."""
    return stat.S_ISLNK(found.st_mode)


def write_all(fd: int, views: Sequence[memoryview]) -> None:
    """Write every byte of ``views`` into an empty file, in as many calls as it takes."""
    if sum(len(view) for view in views) >= MIN_BYTES and write_direct(fd, views):
        return
    left = list(views)
    while left:
        drop_front(left, os.writev(fd, left[:IOV_MAX]))


def read_bytes(fd: int, start: int, stop: int) -> bytes:
    """Read the bytes ``[start, stop)`` of a file, or as many of them as there are."""
    parts = []
    while start < stop:
        part = os.pread(fd, min(stop - start, _MAX_READ_BYTES), start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_into(fd: int, start: int, outs: Sequence[memoryview]) -> bool:
    """Fill ``outs``, laid end to end, from ``start`` on; ``False`` when the file ends before."""
    left = list(outs)
    while left:
        got = os.preadv(fd, left[:IOV_MAX], start)
        if not got:
            return False
        start += got
        drop_front(left, got)
    return True


def translated(error: OSError, message: str) -> BackendError:
    """Return our exception for ``error``; its message ends with what to do."""
    if error.errno in _FULL:
        raised = " or raise the quota" if error.errno == errno.EDQUOT else ""
        return OutOfSpace(f"{message}; free some space{raised}, then try again")
    if error.errno in DENIED:
        return PermissionDenied(f"{message}; check the owner and mode of the directory")
    if error.errno == errno.EXDEV:
        return BackendError(f"{message}; the whole directory must be on one file system")
    if error.errno == errno.EISDIR:
        return BackendError(f"{message}; move that directory away, then try again")
    if error.errno in MISSING:
        return BackendError(f"{message}; something that is not a directory is in the way")
    return BackendError(f"{message}; check the disk and the system's log")
