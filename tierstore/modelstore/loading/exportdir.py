"""A directory that is made to hold exactly the files of one version.

The files are written into a folder of the directory first, where nobody looks for content. Only
when all of them are whole are they exchanged: the files of the version before go, and then the new
ones come, so that there is never a mix of two. See docs/explanation/0017-exports.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import msgspec

from tierstore import locks
from tierstore.errors import BackendError, Conflict, Damaged, PermissionDenied, UsageError
from tierstore.folders import absolute, fresh_folder, is_network, mounts, sync_entries
from tierstore.format.exportlist import ExportList, encode_list, parse_list
from tierstore.format.paths import (
    EXPORT_LIST,
    EXPORT_STAGING,
    check_new_path,
    folders_of,
)
from tierstore.shown import counted, printable
from tierstore.unfinished import is_left, is_temporary

Others = Literal["refuse", "delete", "merge"]
"""What happens to files in the directory that no export wrote."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_LOCK = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK, _NAMES = "lock", "names"
_READ_LAST = ("config.json", "index.json")
_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})
_SHOWN = 5


def check_others(others: str) -> None:
    """Raise ``UsageError`` unless ``others`` is one of the choices."""
    if others not in get_args(Others):
        raise UsageError(f"others={others!r} is not known: use 'refuse', 'delete' or 'merge'")


@contextmanager
def exporting(
    directory: str | os.PathLike[str], wanted: ExportList, others: Others
) -> Iterator[ExportDirectory]:
    """Yield a directory to write files for; they are put in place when the block succeeds.

    Nothing in the directory has changed when the block fails, or when this raises before it.

    Args:
        directory: Where the version goes; made if it is missing.
        wanted: The version and its files.
        others: What happens to other files in the directory.

    Raises:
        InvalidName: A file system cannot hold one of the paths, or should not.
        Conflict: There are other files, another export is at work, or the file system takes two
            of the paths for one.
        OSError: The directory cannot be written to.
    """
    for path in wanted.files:
        check_new_path(path)
    root = _resolved(directory)
    with _made(root), _opened(root) as fd, _staging(root, fd) as staging:
        target = ExportDirectory(root, fd, staging, wanted, others)
        yield target
        target.exchange()


def read_list(directory: Path) -> ExportList | None:
    """Return the list of an exported directory; ``None`` if it has none.

    Raises:
        Conflict: Something else has its name.
        UnsupportedFormat: It was written by a newer version.
        OSError: It cannot be read.
    """
    path = directory / EXPORT_LIST
    try:
        # O_NONBLOCK: opening a FIFO must not wait
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        data = file.read() if regular else b""
    try:
        return parse_list(data, str(path))
    except Damaged as error:
        raise Conflict(f"{error}; look at what {directory} holds, and remove that file") from None


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make the entries of a directory durable."""
    with _opened(path) as fd:
        sync_entries(fd)


class ExportDirectory:
    """One export: what is to go, and the new files as they are written.

    Args:
        root: The directory, without links on the way.
        fd: Descriptor of ``root``.
        staging: Descriptor of the folder of ``root`` in which files are written.
        wanted: The version and its files.
        others: What happens to files that no export wrote.
    """

    def __init__(
        self, root: Path, fd: int, staging: int, wanted: ExportList, others: Others
    ) -> None:
        self._root, self._fd, self._staging = root, fd, staging
        self._wanted, self._new = wanted, set(wanted.files)
        self._staged: dict[str, str] = {}
        there, folders = _walk(root)
        before = read_list(root) if others != "delete" else None
        self._owned = set(before.files) if before else set()
        own = {path for path in there if is_temporary(path.rpartition("/")[2])}
        foreign = there - self._owned - own
        if foreign and others == "refuse":
            self._refuse(sorted(foreign))
        if others == "merge":
            self._check_free(foreign - self._new)
            foreign &= self._new
        self._stale = (there & self._owned) | self._left(own) | foreign
        self._emptied = self._to_remove(folders, every=others == "delete")
        if self._stale <= self._new and len(self._new) == 1:
            self._stale = set()  # a rename exchanges one file at once
        self._check_mounts(every=others == "delete")
        self._check_writable(folders)
        self._check_names()

    def _left(self, own: set[str]) -> set[str]:
        """Return those files with temporary names that nobody is writing."""
        network = is_network(str(self._root))
        left = set()
        for path in own:
            with contextlib.suppress(OSError):  # gone, or another user's
                if is_left(path, self._fd, network=network):
                    left.add(path)
        return left

    def _refuse(self, foreign: list[str]) -> None:
        count = len(foreign)
        shown = ", ".join(map(printable, foreign[:_SHOWN])) + (", …" if count > _SHOWN else "")
        raise Conflict(
            f"{self._root} holds {counted(count, 'file')} that no export wrote: {shown}. Choose "
            "another directory, remove them with --delete, or keep them with --merge (in Python "
            "others='delete' or 'merge')"
        )

    def _check_free(self, kept: set[str]) -> None:
        """Raise ``Conflict`` if a file that stays lies where a folder or a file has to be."""
        folders = {folder for path in self._new for folder in folders_of(path)}
        blocked = kept & folders or {
            path for path in kept if not self._new.isdisjoint(folders_of(path))
        }
        if blocked:
            raise Conflict(
                f"{self._root / printable(min(blocked))} is in the way of a file of "
                f"{self._wanted.version}; move it away, or use --delete"
            )

    def _to_remove(self, folders: set[str], *, every: bool) -> list[str]:
        """Return the folders that go if they are empty then, the innermost first."""
        needed = {folder for path in self._new for folder in folders_of(path)}
        emptied = {folder for path in self._stale | self._owned for folder in folders_of(path)}
        gone = {
            folder
            for folder in folders - needed
            if every or not self._new.isdisjoint([folder, *folders_of(folder)])
        }
        return sorted((emptied - needed) | gone, key=lambda folder: -folder.count("/"))

    def _check_mounts(self, *, every: bool) -> None:
        paths = self._new | self._stale
        for mount in _mounts_below(self._root):
            if every or any(path == mount or mount in folders_of(path) for path in paths):
                raise Conflict(
                    f"{self._root / mount} is a mount point, which an export leaves alone; unmount "
                    "it, or choose another directory"
                )

    def _check_writable(self, folders: set[str]) -> None:
        touched = {path.rpartition("/")[0] for path in self._new | self._stale}
        for folder in sorted((touched & folders) | {""}):
            if not os.access(self._root / folder, os.W_OK | os.X_OK):
                raise PermissionDenied(
                    f"{self._root / folder} cannot be written: its mode does not let this user; "
                    "choose another directory"
                )

    def _check_names(self) -> None:
        """See that the file system can hold all paths, with folders of these names."""
        os.mkdir(_NAMES, dir_fd=self._staging)
        made: dict[tuple[int, int], str] = {}
        names = dict.fromkeys(name for path in self._new for name in [*folders_of(path), path])
        for name in names:
            try:
                os.mkdir(f"{_NAMES}/{name}", dir_fd=self._staging)
            except FileExistsError:
                there = os.stat(f"{_NAMES}/{name}", dir_fd=self._staging)
                raise Conflict(
                    f"{self._root} cannot hold both {made[there.st_dev, there.st_ino]!r} and "
                    f"{name!r}: its file system takes them for one name; choose another directory"
                ) from None
            there = os.stat(f"{_NAMES}/{name}", dir_fd=self._staging)
            made[there.st_dev, there.st_ino] = name
        shutil.rmtree(_NAMES, dir_fd=self._staging)

    @contextmanager
    def file(self, path: str) -> Iterator[int]:
        """Yield the descriptor of a new file, which goes to ``path`` once all are there."""
        name = f"{len(self._staged)}.tmp"
        fd = os.open(name, _CREATE, 0o666, dir_fd=self._staging)
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        self._staged[path] = name

    def exchange(self) -> None:
        """Remove what is to go, and put the new files in their places."""
        self._write_list(whole=False, files=self._new | self._owned)
        try:
            for rank in (2, 1, 0):  # what a loader reads first goes first, and comes last
                self._remove(path for path in self._stale if _rank(path) == rank)
            self._remove_folders()
            for _, paths in groupby(sorted(self._new, key=_rank), _rank):
                self._place(paths)
            self._write_list(whole=True, files=self._new)
        except OSError as error:
            raise BackendError(
                f"{self._root} was left without a whole version: {error.strerror} "
                f"({error.filename}); mend that and export again"
            ) from error

    def _write_list(self, *, whole: bool, files: set[str]) -> None:
        value = msgspec.structs.replace(self._wanted, whole=whole, files=sorted(files))
        fd = os.open(EXPORT_LIST, _CREATE, 0o666, dir_fd=self._staging)
        with os.fdopen(fd, "wb") as file:
            file.write(encode_list(value))
            file.flush()
            os.fsync(fd)
        os.rename(EXPORT_LIST, EXPORT_LIST, src_dir_fd=self._staging, dst_dir_fd=self._fd)
        sync_entries(self._fd)

    def _remove(self, paths: Iterable[str]) -> None:
        for folder, names in _by_folder(paths):
            with contextlib.suppress(FileNotFoundError), self._folder(folder) as fd:
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=fd)
                sync_entries(fd)

    def _remove_folders(self) -> None:
        for path in self._emptied:
            folder, _, name = path.rpartition("/")
            # an export that was killed may have put a file in its place already
            gone = contextlib.suppress(FileNotFoundError, NotADirectoryError)
            with gone, self._folder(folder) as fd:
                try:
                    os.rmdir(name, dir_fd=fd)
                except OSError as error:
                    if error.errno not in _NOT_EMPTY:  # others' files and folders are kept
                        raise
                sync_entries(fd)

    def _place(self, paths: Iterable[str]) -> None:
        for folder, names in _by_folder(paths):
            with self._folder(folder, create=True) as fd:
                for name in names:
                    staged = self._staged[f"{folder}/{name}" if folder else name]
                    os.rename(staged, name, src_dir_fd=self._staging, dst_dir_fd=fd)
                sync_entries(fd)

    @contextmanager
    def _folder(self, path: str, *, create: bool = False) -> Iterator[int]:
        """Open a folder of the directory, following no link on the way."""
        fd = os.dup(self._fd)
        try:
            for part in filter(None, path.split("/")):
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                        sync_entries(fd)
                inner = os.open(part, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)


def _resolved(directory: str | os.PathLike[str]) -> Path:
    """Return the directory without links on the way."""
    if not os.fspath(directory):
        raise UsageError("the directory to export to has no name; '.' is the current one")
    given, root = Path(directory), Path(os.path.realpath(absolute(directory)))
    if given.is_symlink() and not root.exists():
        raise BackendError(f"{given} is a link to {root}, which does not exist; make it first")
    if root.exists() and not root.is_dir():
        raise UsageError(f"{given} is a file, and an export goes to a directory; name another one")
    return root


@contextmanager
def _made(root: Path) -> Iterator[None]:
    """Make the directory durably; if the block fails, remove again what was made for it."""
    with fresh_folder(root) as missing:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)
        yield


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _staging(root: Path, fd: int) -> Iterator[int]:
    """Yield the folder for files that are being written: empty, and held by this export alone.

    Whoever holds the lock of the file in it owns the folder. It is removed at the end; that of an
    export that was killed is emptied by the next one. A child that is forked meanwhile holds none.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_staging, fd)  # a signal may come at any line of what follows
        folder = _locked(root, fd, undo)
        _clear(folder)
        yield folder


def _remove_staging(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(EXPORT_STAGING, dir_fd=fd)


def _locked(root: Path, fd: int, undo: contextlib.ExitStack) -> int:
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(EXPORT_STAGING, dir_fd=fd)
        # one that ends right now removes both: then they are made again
        with contextlib.suppress(FileNotFoundError):
            folder = os.open(EXPORT_STAGING, _FOLDER, dir_fd=fd)
            undo.callback(locks.close, folder)
            locks.hold(folder)
            undo.callback(_leave, folder)
            lock = os.open(_LOCK, _OPEN_LOCK | os.O_CREAT, 0o666, dir_fd=folder)
            undo.callback(locks.close, lock)
            if not locks.try_lock(lock):
                raise Conflict(f"another export writes to {root}; wait until it has ended")
            if _is_lock_of(lock, folder):
                return folder


def _is_lock_of(lock: int, folder: int) -> bool:
    return os.path.samestat(os.fstat(lock), os.stat(_LOCK, dir_fd=folder))


def _leave(folder: int) -> None:
    """Remove all from a folder that nobody holds, its lock too.

    Its own export has closed the lock by then: a lock that was just made when a signal came is
    nobody's yet, and goes as well.
    """
    with contextlib.suppress(OSError):  # what is left is no content, and the next export clears it
        lock = os.open(_LOCK, _OPEN_LOCK, dir_fd=folder)
        try:
            if locks.try_lock(lock) and _is_lock_of(lock, folder):
                _clear(folder)
                os.unlink(_LOCK, dir_fd=folder)
        finally:
            locks.close(lock)  # NFS keeps a file that is open when its folder goes


def _clear(folder: int) -> None:
    """Remove all from a folder but its lock."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.name, dir_fd=folder)
        elif entry.name != _LOCK:
            os.unlink(entry.name, dir_fd=folder)


def _walk(root: Path) -> tuple[set[str], set[str]]:
    """Return the paths of files and of folders below ``root``; a link is a file.

    What exports keep for themselves is left out, and so is the empty folder in which a file system
    puts what it finds when it is repaired.
    """
    files, folders = set[str](), set[str]()
    todo = [""]
    while todo:
        base = todo.pop()
        with os.scandir(root / base) as scan:
            for entry in scan:
                path = f"{base}/{entry.name}" if base else entry.name
                if not entry.is_dir(follow_symlinks=False):
                    files.add(path)
                elif path not in {EXPORT_STAGING, "lost+found"}:
                    folders.add(path)
                    todo.append(path)
    files.discard(EXPORT_LIST)
    return files, folders


def _mounts_below(root: Path) -> list[str]:
    """Return the mount points below ``root``, relative to it."""
    top = PurePosixPath(root)
    points = (mount.point for mount in mounts())
    return [
        point.relative_to(top).as_posix()
        for point in points
        if point != top and point.is_relative_to(top)
    ]


def _rank(path: str) -> int:
    """Return where a file stands among those of its version: loaders begin with the highest."""
    if path.endswith(_READ_LAST):
        return 2
    return int(path.endswith(".json"))


def _by_folder(paths: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    split = sorted(path.rpartition("/")[::2] for path in paths)
    for folder, group in groupby(split, lambda pair: pair[0]):
        yield folder, [name for _, name in group]
