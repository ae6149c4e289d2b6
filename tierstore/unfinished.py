"""Files and folders that are being written, and what killed processes left of them.

Whoever writes one holds its lock, so the next one that writes in the same folder can tell what is
being written from what was left, and removes that. Locks of other machines may not be seen: on a
network file system, and where nothing can be locked, left is what nobody has written to for a day.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tierstore import locks
from tierstore.folders import is_network, sync_entries

LEFT_AFTER_S = 24 * 3600

_NAME = re.compile(r"\.tierstore-[0-9a-f]{32}\.tmp\Z")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def is_temporary(name: str) -> bool:
    """Return whether what has this name was being written, and gets its own name when it is."""
    return _NAME.match(name) is not None


def create(folder: int, *, mode: int = 0o666, locked: bool = True) -> tuple[int, str]:
    """Make a file with a temporary name, locked until ``locks.close``.

    Args:
        folder: Descriptor of its folder.
        mode: Its mode, before the umask.
        locked: ``False`` to lock nothing: on a network file system it would prove nothing.

    Returns:
        Its descriptor, for writing, and its name.
    """
    while True:
        name = _new_name()
        fd = os.open(name, _CREATE, mode, dir_fd=folder)
        locks.hold(fd)
        if not locked or _taken(fd):
            return fd, name
        locks.close(fd)  # somebody swept between these two steps


def discard(fd: int, name: str, folder: int) -> None:
    """Remove a file from ``create``, unless it is that of a parent process."""
    if locks.is_held(fd):
        with contextlib.suppress(OSError):  # renamed away; or left for the next sweep
            os.unlink(name, dir_fd=folder)


@contextmanager
def written_beside(target: Path, *, durable: bool = True) -> Iterator[int]:
    """Yield the descriptor of a new file that replaces ``target`` when the block succeeds.

    What killed processes left in its folder is removed first.

    Args:
        target: Path of the file; its folder exists.
        durable: Whether it and its name are on the disk then.

    Raises:
        OSError: It cannot be written.
    """
    sweep_path(target.parent)
    folder = os.open(target.parent, _FOLDER)
    try:
        fd, name = create(folder)
        try:
            yield fd
            if durable:
                os.fsync(fd)
            os.rename(name, target.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            discard(fd, name, folder)
            raise
        finally:
            locks.close(fd)
        if durable:
            sync_entries(folder)
    finally:
        os.close(folder)


class TemporaryFolder:
    """A folder with a temporary name, for this user alone, locked until ``close``.

    A context manager: it is removed at the end of the block, unless it has got another name.
    What killed processes left beside it is removed first.

    Args:
        parent: Path of the folder to make it in; by default the system's for temporary files.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        if parent is None:
            import tempfile  # few processes need it

            parent = Path(tempfile.gettempdir())
        sweep_path(parent)
        folder = os.open(parent, _FOLDER)
        try:
            while True:
                name = _new_name()
                os.mkdir(name, 0o700, dir_fd=folder)
                self._fd = os.open(name, _LOOK, dir_fd=folder)
                if _taken(self._fd):
                    break
                locks.close(self._fd)
        finally:
            os.close(folder)
        self.path = parent / name
        """Path of the folder."""

    def close(self) -> None:
        """Remove the folder with all that is in it, unless it is that of a parent process."""
        import shutil

        own, self._fd = self._fd, -1
        if own < 0:  # at the end of a process it may be called twice
            return
        if locks.is_held(own):
            shutil.rmtree(self.path, ignore_errors=True)
        locks.close(own)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def nameless_file() -> Iterator[tuple[int, str]]:
    """Yield the descriptor of an empty file, and a path that leads to it until the block ends.

    On Linux it is in memory and has no name; elsewhere it has a temporary one.
    """
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").exists():
        fd = os.memfd_create("tierstore", os.MFD_CLOEXEC)
        try:
            yield fd, f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    with TemporaryFolder() as folder:
        path = folder / "file"
        with open(path, "xb+", buffering=0) as file:
            yield file.fileno(), str(path)


def is_left(name: str, folder: int, *, network: bool) -> bool:
    """Return whether a file or folder is what a process that was killed has left.

    Raises:
        OSError: It is gone, or may not be opened.
    """
    with _opened(name, folder) as fd:
        return _is_left(fd, network)


def sweep(folder: int, *, network: bool, every: bool = False) -> int:
    """Remove what processes that were killed have left, as far as that is possible.

    Args:
        folder: Descriptor of the folder to look in.
        network: Whether another machine serves its file system.
        every: Whether other names than temporary ones are of unfinished files, too: versions that
            locked none wrote them. They are left when nobody has written to them for a day.

    Returns:
        The number of files and folders removed.
    """
    removed = 0
    for name in os.listdir(folder):
        if every or is_temporary(name):
            with contextlib.suppress(OSError):  # gone, or another user's
                removed += _swept(name, folder, network or not is_temporary(name))
    return removed


def sweep_path(path: Path) -> None:
    """Remove what processes that were killed have left in a folder, and nothing else.

    Raises:
        OSError: There is no such folder, or it may not be opened.
    """
    fd = os.open(path, _FOLDER)
    try:
        if _has_temporary(fd):  # as a rule nothing was left, and nothing more is asked
            sweep(fd, network=is_network(str(path)))
    finally:
        os.close(fd)


def _has_temporary(folder: int) -> bool:
    return any(map(is_temporary, os.listdir(folder)))


def _swept(name: str, folder: int, network: bool) -> bool:
    import shutil  # slow, and rarely needed

    with _opened(name, folder) as fd:
        if not _is_left(fd, network):
            return False
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
    return True


@contextmanager
def _opened(name: str, folder: int) -> Iterator[int]:
    fd = os.open(name, _LOOK, dir_fd=folder)
    try:
        yield fd
    finally:
        locks.close(fd)


def _is_left(fd: int, network: bool) -> bool:
    try:
        if not locks.try_lock(fd):
            return False
    except OSError:  # nothing can be locked there
        network = True
    return not network or time.time() - os.fstat(fd).st_mtime > LEFT_AFTER_S


def _taken(fd: int) -> bool:
    """Lock what was just made; ``False`` if a sweep came first."""
    try:
        if not locks.try_lock(fd):
            return False
    except OSError:  # nothing can be locked there
        return True
    return os.fstat(fd).st_nlink > 0


def _new_name() -> str:
    return f".tierstore-{os.urandom(16).hex()}.tmp"
