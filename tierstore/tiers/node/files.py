"""The chunk files of this node's hot tier.

::

    <root>/<store id>/<boot id>/<digest>   verified since the machine started
                      <other boot>/<…>     from before: verified before its first use
                      tmp~/<digest>        being written, locked (flock) by its writer
                      claims               what processes are fetching now, see claims.py
                      scrub                where the scrub stopped, locked by whoever scrubs

A file is immutable once it has its name, and is removed by unlinking: whoever has it open or mapped
keeps it. Nothing is synced. After a power failure a file can hold anything, which is why files from
before the last start are not trusted; the process that writes one may die at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tierstore import locks
from tierstore.folders import Owners
from tierstore.format.checks import digest_of
from tierstore.format.chunking import MAX_CHUNK
from tierstore.ids import DIGEST_BYTES, Buffer

_TEMP = "tmp~"
_SCRUB = "scrub"
_NAME = re.compile(r"[0-9a-f]{64}\Z")
_BOOT = re.compile(r"[0-9A-Za-z-]{1,64}(\.[0-9a-f]{8})?\Z")
# O_NONBLOCK: opening a FIFO that someone put in a chunk's place must not hang
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_READ_ONLY = 0o444
_BLOCK = 4096
_IDENTITY = struct.Struct("=QQQqq")
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def disk_size(nbytes: int) -> int:
    """Return the bytes that a file takes on a disk of the usual block size."""
    return -(-nbytes // _BLOCK) * _BLOCK


def kernel_boot_id() -> str | None:
    """Return an id that changes at every start of the machine; ``None`` if there is none."""
    try:
        found = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return found if _BOOT.match(found) else None


class ChunkFiles:
    """Chunks as files named by their digests; every failure is raised as ``OSError``.

    Args:
        root: The directory of the tier.
        store_id: The name of the store's folder below it.
        boot_id: The name of the folder of trusted files.
        on_bad: Called with the digest of a file that was wrong, after it was removed.
        owners: Who may write to it.
        compare_first: Whether this process compares a file with its digest before it opens it for
            the first time, trusted folder or not, and again when it is not the same file any more.
    """

    def __init__(
        self,
        root: Path,
        store_id: str,
        boot_id: str,
        on_bad: Callable[[bytes], None],
        owners: Owners,
        *,
        compare_first: bool = False,
    ) -> None:
        self.root, self.folder, self.owners = root, root / store_id, owners
        self._boot_id, self._on_bad = boot_id, on_bad
        self.compare_first = compare_first
        self._compared: dict[bytes, bytes] = {}
        self._here = f"{self.folder}/{boot_id}"
        self._temp = f"{self.folder}/{_TEMP}"
        self._old: list[str] = []
        self._device: int | None = None

    @property
    def trusted(self) -> str:
        """The folder of files that were verified since the machine started."""
        return self._here

    @property
    def has_old(self) -> bool:
        """Whether files from before the machine's last start are known to exist."""
        return bool(self._old)

    def prepare(self) -> None:
        """Make the folders, and find those from before the machine's last start.

        Raises:
            OSError: The directory is gone, is on another disk than before, cannot be written, or
                belongs to another user or can be written by others.
        """
        if self._device is None:
            self.owners.make(self.root)
        elif not self.root.exists() and self.root.parent.stat().st_dev == self._device:
            self.owners.make(self.root)  # somebody removed it
        found = self.root.stat()
        if self._device not in (None, found.st_dev) and not self.folder.is_dir():
            # its disk is not mounted: do not fill the one below
            raise OSError(errno.ENODEV, "another file system is mounted there now", str(self.root))
        self._device = found.st_dev
        for path in (self.folder, Path(self._here), Path(self._temp)):
            self.owners.make(path)
        self.refresh()

    def refresh(self) -> None:
        """Look for folders from before; other processes empty and remove them, too."""
        own = {self._boot_id, _TEMP}
        with os.scandir(self.folder) as scan:
            self._old = [
                entry.path
                for entry in scan
                if entry.name not in own
                and _BOOT.match(entry.name)
                and entry.is_dir(follow_symlinks=False)
            ]

    def distrust(self) -> None:
        """Have every file compared with its digest before its next use, in all processes."""
        with contextlib.suppress(FileNotFoundError):  # all of it was removed: nothing is trusted
            os.rename(self._here, f"{self._here}.{secrets.token_hex(4)}")  # noqa: PTH104
        self.prepare()

    # Reading

    def open(self, digest: bytes, size: int) -> int | None:
        """Open a chunk's file of exactly ``size`` bytes, verified if need be; or ``None``."""
        name = digest.hex()
        fd = _open(f"{self._here}/{name}")
        if fd is None:
            if not self._claim(digest):
                return None
            fd = _open(f"{self._here}/{name}")
            if fd is None:
                return None
        try:
            found = os.fstat(fd)
            here = stat.S_ISREG(found.st_mode) and found.st_size == size
            if here and (not self.compare_first or self._is_right(digest, fd, found)):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        self.remove(digest)
        self._on_bad(digest)
        return None

    def _is_right(self, digest: bytes, fd: int, found: os.stat_result) -> bool:
        """Return whether an open file is the one that this process compared, or is right now."""
        identity = _identity(found)
        while self._compared.get(digest) != identity:
            data = _read_all(fd)
            if data is None or digest_of(data).raw != digest:
                return False
            after = _identity(os.fstat(fd))
            if after == identity:
                self._compared[digest] = identity
                break
            identity = after  # it changed while it was read: once more
        return True

    def read_into(self, digest: bytes, out: memoryview) -> bool:
        """Fill ``out`` with a chunk of exactly its length; ``False`` if there is none."""
        fd = self.open(digest, len(out))
        if fd is None:
            return False
        try:
            at = 0
            while at < len(out):
                got = os.preadv(fd, [out[at:]], at)
                if not got:  # somebody cut it short just now
                    return False
                at += got
        finally:
            os.close(fd)
        return True

    def exists(self, digest: bytes) -> bool:
        """Return whether there is a file for this chunk, verified or not."""
        name = digest.hex()
        # lexists and not access: no rights are asked for
        return any(os.path.lexists(f"{folder}/{name}") for folder in (self._here, *self._old))

    def verify(self, digest: bytes) -> bool:
        """Compare a chunk's file with its digest; remove a wrong one and return ``False``."""
        right = self._checked(f"{self._here}/{digest.hex()}", digest)
        return (self._claim(digest) if right is None else right) is not False

    @contextmanager
    def scrubbing(self) -> Iterator[int | None]:
        """Hold this node's scrub; yield its file, or ``None`` while another process holds it."""
        fd = self.owners.open(self.folder / _SCRUB)
        try:
            yield fd if locks.try_lock(fd) else None
        finally:
            locks.close(fd)

    def _claim(self, digest: bytes) -> bool | None:
        """Verify a file from before the last start, and move it to the trusted ones.

        Returns:
            ``False`` when it was wrong, ``None`` when there is none.
        """
        found = None
        for folder in self._old:
            path = f"{folder}/{digest.hex()}"
            right = self._checked(path, digest)
            if right:
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    os.rename(path, f"{self._here}/{digest.hex()}")  # noqa: PTH104
                return True
            found = found if right is None else right
        return found

    def _checked(self, path: str, digest: bytes) -> bool | None:
        """Return whether a file fits its digest; remove a wrong one; ``None`` if there is none."""
        fd = _open(path)
        if fd is None:
            return None
        try:
            data = _read_all(fd)
        finally:
            os.close(fd)
        if data is not None and digest_of(data).raw == digest:
            return True
        _unlink(path)
        self._on_bad(digest)
        return False

    # Writing: with the node's lock, but for the bytes themselves

    def begin(self, digest: bytes) -> int:
        """Make the unfinished file of a chunk and return its descriptor, for ``locks.close``."""
        fd = os.open(f"{self._temp}/{digest.hex()}", _CREATE, _READ_ONLY)
        self.owners.give(fd, _READ_ONLY)
        locks.try_lock(fd)
        return fd

    def write(self, fd: int, plain: Buffer) -> None:
        """Write a chunk into its unfinished file, unless that was removed meanwhile."""
        if not os.fstat(fd).st_nlink:
            return
        left = memoryview(plain)
        try:
            while left:
                left = left[os.write(fd, left) :]
        except OSError:
            os.ftruncate(fd, 0)  # what it took is given back at once
            raise

    def publish(self, digest: bytes, fd: int) -> bool:
        """Give a written file its name; ``False`` when it was removed meanwhile."""
        path = f"{self._temp}/{digest.hex()}"
        if not os.fstat(fd).st_nlink:
            return False
        os.rename(path, f"{self._here}/{digest.hex()}")  # noqa: PTH104
        return True

    def being_written(self, digest: bytes) -> bool:
        """Return whether a living process writes this chunk; remove what a dead one left."""
        path = f"{self._temp}/{digest.hex()}"
        fd = _open(path)
        if fd is None:
            return False
        try:
            if not locks.try_lock(fd):
                return True
            _unlink(path)
            return False
        finally:
            locks.close(fd)

    def remove(self, digest: bytes) -> None:
        """Remove every file of a chunk, also an unfinished one."""
        name = digest.hex()
        self._compared.pop(digest, None)
        # in the order in which files are renamed, so that none escapes
        for folder in (self._temp, *self._old, self._here):
            _unlink(f"{folder}/{name}")

    def sizes(self) -> dict[bytes, int]:
        """Return the bytes of every chunk's file by digest, verified or not."""
        found: dict[bytes, int] = {}
        for folder in (*self._old, self._here):
            for digest in _names(folder):
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    found[digest] = os.lstat(f"{folder}/{digest.hex()}").st_size
        return found

    def tidy(self) -> None:
        """Remove what dead writers left, and empty folders from before the last start."""
        for digest in _names(self._temp):
            self.being_written(digest)
        for folder in self._old:
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(folder)  # noqa: PTH106
        self.refresh()


def scrubbed(fd: int) -> bytes:
    """Return the digest at which the scrub stopped, from its file; empty before the first."""
    found = os.pread(fd, DIGEST_BYTES, 0)
    return found if len(found) == DIGEST_BYTES else b""


def note_scrubbed(fd: int, digest: bytes) -> None:
    """Write down where the scrub stopped."""
    os.pwrite(fd, digest, 0)


def _identity(found: os.stat_result) -> bytes:
    """Return what differs when a file is another one or was written to.

    The kernel sets ctime itself, at every change of a file or of its names.
    """
    return _IDENTITY.pack(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def _open(path: str) -> int | None:
    try:
        return os.open(path, _READ)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise


def _read_all(fd: int) -> bytearray | None:
    """Return the bytes of a file; ``None`` if it is no regular file or longer than any chunk."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_CHUNK:
        return None
    data = bytearray(found.st_size)
    at = 0
    while at < len(data):
        got = os.preadv(fd, [memoryview(data)[at:]], at)
        if not got:
            return None
        at += got
    return data


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)  # noqa: PTH108


def _names(folder: str) -> list[bytes]:
    return [bytes.fromhex(name) for name in os.listdir(folder) if _NAME.match(name)]  # noqa: PTH208
