"""A blob store of files in a directory, where a crash leaves a whole blob or none.

A blob is written to ``<root>/.tmp~/``, synced, and then renamed (``put``) or hard-linked
(``put_if_absent``) to its place, after which every directory that changed is synced. A crash leaves
at most files in ``.tmp~``, a name that no key can have. The first write of the next process removes
them.

Paths are walked one segment at a time with ``O_NOFOLLOW``, so that a symbolic link below the root,
whoever planted it, never leads a read, a write or a deletion out of it. No file descriptor is kept
between calls: a blob can be replaced or deleted at any time, by any process.

So each call opens each folder on the way, and that has a second use: a client of NFS remembers that
a name was not there, for up to a minute, and asks the server whether the folder has changed when
that is opened (close-to-open consistency; not with the mount option ``nocto``). Whoever looks for
the next entry of a log finds what another host has written before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

from tierstore import locks
from tierstore.blobs.base import (
    BlobInfo,
    BlobStore,
    Capabilities,
    RangeRead,
    check_key,
    check_prefix,
)
from tierstore.blobs.local import files
from tierstore.blobs.shared import by_key, flat_views, is_key, runs, without_refusals
from tierstore.errors import BackendError, Damaged, NotDurable, NotFound, TierstoreError
from tierstore.folders import absolute, is_network, sync_entries
from tierstore.ids import Buffer, ByteRange
from tierstore.unfinished import create, sweep

TEMP_DIR = ".tmp~"
"""The folder of unfinished blobs below the root; ``~`` is in no key, so it hides no blob."""

_KNOWN_DIRS_MAX = 4096

_Stack: TypeAlias = list[tuple[str, Iterator[files.DirEntry]]]


class LocalStore(BlobStore):
    """Blobs as files below one directory, shared by any number of threads and processes.

    Args:
        root: The directory; it may itself be a symbolic link.
        create: Whether to make the directory and its parents when it is missing.

    Raises:
        NotFound: ``root`` is missing and ``create`` is false.
        BackendError: ``root`` is not a directory, or cannot be made.
    """

    def __init__(self, root: str | os.PathLike[str], *, create: bool = False) -> None:
        self._root = absolute(root)
        self._durable_dirs: set[str] = set()
        self._swept = False
        if create:
            with self._errors("making the directory"):
                files.make_root(str(self._root))
        with self._errors("opening the directory"):
            exists = self._root.exists()
        if not exists:
            raise NotFound(
                f"there is no directory {str(self._root)!r}; check the path, or make a new store "
                "there with 'tierstore init'"
            )
        if not self._root.is_dir():
            raise BackendError(f"{str(self._root)!r} is not a directory: choose another path")

    @property
    def url(self) -> str:
        return self._root.as_uri()

    @property
    def root(self) -> Path:
        """The directory as an absolute path."""
        return self._root

    @cached_property
    def capabilities(self) -> Capabilities:
        """The capabilities, probed once.

        A file system without hard links cannot create atomically.
        """
        return Capabilities(put_if_absent=self._probe_links(), durable=True)

    @property
    def bounded(self) -> bool:
        """Whether no call can hang, as it can on a mount whose server is gone."""
        return self.local

    @cached_property
    def local(self) -> bool:
        return not is_network(str(self._root))

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        check_key(key)
        with self._errors("writing", key), self._temp_file(data) as (temp_fd, temp):
            folder, name = self._open_parent(key, create=True)
            try:
                os.rename(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder)
                self._sync(folder, key)
            finally:
                os.close(folder)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        check_key(key)
        with self._errors("creating", key):
            folder, name = self._open_parent(key, create=True)
            try:
                known = self._exists(key, folder, name)
                created = not known and self._link(key, data, folder, name)
                # Also when somebody else created it: the caller may build on its being there.
                self._sync(folder, key)
                return created
            finally:
                os.close(folder)

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        check_key(key)
        with self._errors("reading", key), self._open_blob(key) as (fd, size):
            wanted = ByteRange(0, size) if byte_range is None else byte_range
            start, stop = wanted.start, wanted.stop
            self._check_end(key, size, start, stop)
            data = files.read_bytes(fd, start, stop)
            if len(data) < stop - start:
                raise self._became_shorter(key)
            return memoryview(data)

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        for key, group in by_key(reads).items():
            check_key(key)
            with self._errors("reading", key), self._open_blob(key) as (fd, size):
                for read in group:
                    self._check_end(key, size, read.start, read.start + read.out.nbytes)
                for start, outs in runs(group):
                    if not files.read_into(fd, start, outs):
                        raise self._became_shorter(key)

    def info(self, key: str) -> BlobInfo:
        check_key(key)
        with self._errors("reading", key):
            folder, name = self._open_parent(key)
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            finally:
                os.close(folder)
            if not files.is_regular(found):
                raise NotFound(self._no_blob(key))
            return BlobInfo(key, found.st_size, found.st_mtime)

    def signs(self, key: str) -> frozenset[str]:
        """Return two signs: its place in the file system, and when its inode changed last.

        Changes of owner, mode or links change the latter, a file system without lasting numbers of
        inodes the former. The folder's number tells it from a hard link to it, the generation from
        what has its number on another file system.
        """
        check_key(key)
        with self._errors("reading", key):
            folder, name = self._open_parent(key)
            try:
                fd = os.open(name, files.READ_FLAGS, dir_fd=folder)
                try:
                    found, above = os.fstat(fd), os.fstat(folder)
                    number = files.generation(fd)
                finally:
                    os.close(fd)
            finally:
                os.close(folder)
            return frozenset(
                {
                    f"inode {above.st_ino}/{found.st_ino}/{number}",
                    f"changed {found.st_ctime_ns}",
                }
            )

    def delete(self, keys: Iterable[str]) -> None:
        folders: dict[str, list[str]] = {}
        for key in keys:
            folder, _, name = check_key(key).rpartition("/")
            folders.setdefault(folder, []).append(name)
        refused: list[TierstoreError] = []
        deleted = without_refusals(partial(self._delete, refused), refused)
        for entries in folders.items():
            deleted(entries)
        if refused:
            raise refused[0]

    def _delete(self, refused: list[TierstoreError], of: tuple[str, Sequence[str]]) -> None:
        folder, names = of
        with self._errors("deleting", f"{folder}/{names[0]}".lstrip("/"), missing_ok=True):
            fd = self._walk(folder)
            try:
                unlinked = without_refusals(partial(self._unlink, fd, folder), refused)
                for name in names:
                    unlinked(name)
                sync_entries(fd)
            finally:
                os.close(fd)

    def _unlink(self, fd: int, folder: str, name: str) -> None:
        with self._errors("deleting", f"{folder}/{name}".lstrip("/")):
            files.unlink_file(name, fd)

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        return self._list(prefix)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        with self._errors("listing", prefix or "the root"):
            below = [entry.name for entry in self._entries_below(prefix) if entry.info is None]
            # Deleting blobs leaves their directories: only one that holds a blob counts.
            return iter([name for name in below if self._has_blob(f"{prefix}{name}")])

    # Writing

    def _exists(self, key: str, folder: int, name: str) -> bool:
        """Return whether a blob is there; what lies in its place and is no file stays as it is."""
        found = files.look(name, folder)
        if found is None or files.is_regular(found):
            return found is not None
        kind = "symbolic link" if files.is_link(found) else "directory or special file"
        raise BackendError(
            f"blob {key!r} in {self.url} cannot be created: a {kind} is in its place; move that "
            "away, then try again"
        )

    def _sync(self, folder: int, key: str) -> None:
        """Make a blob's name durable, once everybody can see it."""
        try:
            sync_entries(folder)
        except OSError as error:
            raise NotDurable(
                f"blob {key!r} in {self.url} was written, but may be gone after a power loss, as "
                f"its directory could not be synced: {error.strerror}; check the disk and the "
                "system's log before you write again"
            ) from error

    def _link(self, key: str, data: Buffer | Sequence[Buffer], folder: int, name: str) -> bool:
        with self._temp_file(data) as (temp_fd, temp):
            try:
                os.link(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                # NFS can repeat a request whose answer was lost; the link count tells the truth
                # (open(2), NOTES, O_EXCL).
                found = os.stat(temp, dir_fd=temp_fd, follow_symlinks=False)
                return found.st_nlink == 2
            except OSError as error:
                if error.errno not in files.NO_LINKS:
                    raise
                raise BackendError(
                    f"cannot create blob {key!r} in {self.url}: its file system has no hard "
                    "links, so nothing is created atomically; use another file system"
                ) from error
            return True

    @contextmanager
    def _temp_file(self, data: Buffer | Sequence[Buffer]) -> Iterator[tuple[int, str]]:
        """Write and sync a temporary file; yield its directory and name; remove what is left."""
        views = flat_views(data)
        folder = self._walk(TEMP_DIR, create=True)
        try:
            if not self._swept:
                self._swept = True
                with contextlib.suppress(OSError):  # a folder that may not be listed
                    sweep(folder, network=not self.local, every=True)
            fd, temp = create(folder, locked=self.local)
            try:
                with contextlib.ExitStack() as held:
                    held.callback(locks.close, fd)
                    files.write_all(fd, views)
                    os.fsync(fd)
                    if not self.local:  # NFS gives an open file that is removed another name
                        held.close()
                    yield folder, temp
            finally:
                with contextlib.suppress(OSError):  # renamed away; or left for the next sweep
                    os.unlink(temp, dir_fd=folder)
        finally:
            os.close(folder)

    def _probe_links(self) -> bool:
        name = f"probe-{os.urandom(12).hex()}"
        with self._errors("probing"):
            try:
                with self._temp_file(b"") as (folder, temp):
                    os.link(temp, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                    os.unlink(name, dir_fd=folder)
            except OSError as error:
                if error.errno in files.NO_LINKS:
                    return False
                if error.errno not in files.DENIED:
                    raise
            # A reader without the right to write creates nothing, so it breaks no promise.
            return True

    # Paths

    def _open_parent(self, key: str, *, create: bool = False) -> tuple[int, str]:
        folder, _, name = key.rpartition("/")
        return self._walk(folder, create=create), name

    def _walk(self, folder: str, *, create: bool = False) -> int:
        """Open a directory below the root, following no symbolic link, and return its descriptor.

        With ``create``, whatever is missing is made, and each directory is made durable in its
        parent the first time this store sees it: another process may have made it and not yet
        synced it.
        """
        try:
            fd = os.open(self._root, files.DIR_FLAGS)
        except OSError as error:
            if error.errno not in files.MISSING:
                raise
            raise BackendError(
                f"the directory of {self.url} is gone: see that its file system is mounted"
            ) from error
        path = ""
        for name in folder.split("/") if folder else ():
            path = f"{path}/{name}"
            try:
                child = files.open_dir(name, fd, create=create)
                if create and path not in self._durable_dirs:
                    try:
                        sync_entries(fd)
                    except OSError:
                        os.close(child)
                        raise
                    self._remember(path)
            finally:
                os.close(fd)
            fd = child
        return fd

    def _remember(self, path: str) -> None:
        if len(self._durable_dirs) >= _KNOWN_DIRS_MAX:
            self._durable_dirs.clear()
        self._durable_dirs.add(path)

    # Reading

    @contextmanager
    def _open_blob(self, key: str) -> Iterator[tuple[int, int]]:
        folder, name = self._open_parent(key)
        try:
            fd = os.open(name, files.READ_FLAGS, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            found = os.fstat(fd)
            if not files.is_regular(found):
                raise NotFound(self._no_blob(key))
            yield fd, found.st_size
        finally:
            os.close(fd)

    def _list(self, prefix: str) -> Iterator[BlobInfo]:
        what = prefix or "the root"
        with self._errors("listing", what, missing_ok=True):
            # The stack holds directories whose entries are still to come, the deepest last.
            stack: _Stack = [(prefix, iter(self._entries_below(prefix)))]
            while stack:
                path, entries = stack[-1]
                entry = next(entries, None)
                if entry is None:
                    stack.pop()
                elif entry.info is None:
                    below = f"{path}{entry.name}/"
                    stack.append((below, iter(self._entries_below(below))))
                else:
                    key = f"{path}{entry.name}"
                    yield BlobInfo(key, entry.info.st_size, entry.info.st_mtime)

    def _entries_below(self, prefix: str) -> Sequence[files.DirEntry]:
        try:
            fd = self._walk(prefix[:-1])
        except OSError as error:
            if error.errno in files.MISSING:
                return []
            raise
        try:
            return [entry for entry in files.entries(fd) if is_key(prefix + entry.name)]
        finally:
            os.close(fd)

    def _has_blob(self, folder: str) -> bool:
        try:
            fd = self._walk(folder)
        except FileNotFoundError:
            return False
        try:
            return files.has_file(fd)
        finally:
            os.close(fd)

    # Errors

    @contextmanager
    def _errors(self, doing: str, key: str = "", *, missing_ok: bool = False) -> Iterator[None]:
        """Turn an ``OSError`` into one of ours that says what failed, where, and what to do."""
        try:
            yield
        except TierstoreError:
            raise
        except OSError as error:
            if error.errno in files.MISSING:
                if missing_ok:
                    return
                if doing == "reading":
                    raise NotFound(self._no_blob(key)) from None
            target = f"{doing} {key!r} in" if key else f"{doing} of"
            raise files.translated(
                error, f"{target} {self.url} failed: {error.strerror}"
            ) from error

    def _no_blob(self, key: str) -> str:
        return f"no blob {key!r} in {self.url}"

    def _check_end(self, key: str, size: int, start: int, stop: int) -> None:
        if stop > size:
            raise Damaged(
                f"blob {key!r} in {self.url} has {size} bytes, but [{start}, {stop}) was asked "
                "for: it was cut short; restore it from another copy"
            )

    def _became_shorter(self, key: str) -> Damaged:
        return Damaged(
            f"blob {key!r} in {self.url} was cut short while it was read; "
            "restore it from another copy"
        )
