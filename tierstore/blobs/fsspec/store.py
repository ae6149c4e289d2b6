"""A blob store in any file system that fsspec can reach.

fsspec promises neither that a write is all-or-nothing nor that creation is atomic: that depends on
the file system. What is known and tested is used, and the capabilities say ``False`` for the rest.
For a local directory ``LocalStore`` is faster and syncs what it writes; for S3, Google Cloud and
Azure ``ObjectStore`` is faster.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tierstore.blobs.base import (
    BlobInfo,
    BlobStore,
    Capabilities,
    RangeRead,
    check_key,
    check_prefix,
)
from tierstore.blobs.fsspec.kinds import FileSystem, RenamingFileSystem, open_file_system
from tierstore.blobs.local import files
from tierstore.blobs.shared import by_key, each, is_key, joined, runs, without_refusals
from tierstore.errors import (
    BackendError,
    ConfigError,
    Damaged,
    NotFound,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)
from tierstore.forks import OfProcess, begin
from tierstore.ids import Buffer, ByteRange
from tierstore.shown import shown_url

_R = TypeVar("_R")
_TEMP_DIR = ".tmp~"  # "~" is in no key
_UNCHECKED_MAX_BYTES = 8 << 20  # up to this a range is read without a look at the size
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created", "modificationTime")
_THREADS = 8
_LEFT_OVER_S = 86_400  # an older temporary file belongs to a dead writer
_UNREACHABLE = frozenset({
    "TimeoutError", "ConnectionError", "Timeout", "SSHException", "EOFError", "BotoCoreError",
})  # fmt: skip
_DENIED = frozenset({"PermissionError", "AuthenticationException", "NoCredentialsError"})


class _Memory:
    """The lock of fsspec's memory file system, of which a process has one."""

    def __init__(self) -> None:
        begin(self._begin)

    def _begin(self) -> None:
        self.lock = threading.Lock()


_memory = _Memory()


class FsspecStore(BlobStore):
    """Blobs below a path of an fsspec file system.

    On ``file`` a blob is written beside its place and renamed, or hard-linked to create it, but not
    synced, and symbolic links are followed. On ``webhdfs`` and ``sftp`` (of OpenSSH) it is renamed,
    with or without overwriting. On ``memory`` a lock of this process makes creation atomic.
    Elsewhere ``put_if_absent`` is refused, and where a write takes several requests a reader can
    see a part of it (``Capabilities.atomic_put``).

    Args:
        url: A URL of fsspec, such as ``memory://name`` or ``sftp://host/path``.
        options: Options of the file system, as its own documentation names them.
        timeout_s: Seconds that ``webhdfs`` and ``sftp`` wait for an answer, or for more of it.

    Raises:
        ConfigError: fsspec does not know the protocol, or a package for it is missing.
    """

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, *, timeout_s: float = 15.0
    ) -> None:
        self._protocol = url.partition("://")[0]
        self._url = _shown(url)
        self._own = OfProcess(partial(_connected, url, dict(options or {}), timeout_s))
        begin(self._begin)
        self._root = self._file_system.root

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._folders: set[str] = set()
        self._swept = False

    @property
    def _file_system(self) -> FileSystem:
        return self._own.get()

    @property
    def url(self) -> str:
        return shown_url(self._url)

    @property
    def capabilities(self) -> Capabilities:
        memory = self._protocol == "memory"
        return Capabilities(
            put_if_absent=isinstance(self._file_system, RenamingFileSystem) or memory,
            durable=not self.local,
            atomic_put=self._file_system.atomic_put,
        )

    @property
    def bounded(self) -> bool:
        return self.local

    @property
    def local(self) -> bool:
        return self._file_system.local or self._protocol == "memory"

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        path = self._path(key)
        with self._errors("writing", key), self._file_system.use() as fs:
            if isinstance(self._file_system, RenamingFileSystem):
                with self._temp_file(fs, path, data) as temp:
                    self._file_system.replace(fs, temp, path)
                return
            if self._file_system.needs_folders:
                self._make_folder(fs, _parent(path))
            with _memory.lock if self._protocol == "memory" else contextlib.nullcontext():
                self._file_system.write(fs, path, data)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        path = self._path(key)
        if not self.capabilities.put_if_absent:
            raise BackendError(
                f"cannot create blob {key!r} in {self.url}: fsspec's {self._protocol!r} creates "
                "nothing atomically; use another store for this"
            )
        with self._errors("creating", key), self._file_system.use() as fs:
            if isinstance(self._file_system, RenamingFileSystem):
                with self._temp_file(fs, path, data) as temp:
                    return self._file_system.create(fs, temp, path)
            content = joined(data)
            with _memory.lock:
                if fs.isfile(path):
                    return False
                fs.pipe_file(path, content)
                return True

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        path = self._path(key)
        if byte_range is None:
            with (
                self._errors("reading", key),
                self._reaching(key, 0),
                self._file_system.use() as fs,
            ):
                return memoryview(self._file_system.read(fs, path, 0, None))
        if not 0 < len(byte_range) <= _UNCHECKED_MAX_BYTES:
            self._check_reach(key, byte_range.stop)  # before that much is allocated
        if not len(byte_range):
            return memoryview(b"")
        return self._read(key, byte_range.start, byte_range.stop)

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        wanted = []
        for key, group in by_key(reads).items():
            check_key(key)
            for read in group:
                if not read.out.nbytes:
                    self._check_reach(key, read.start)
            wanted += [(key, start, outs) for start, outs in runs(group)]

        def fill(run: tuple[str, int, list[memoryview]]) -> None:
            key, start, outs = run
            view = self._read(key, start, start + sum(out.nbytes for out in outs))
            for out in outs:
                out[:] = view[: out.nbytes]
                view = view[out.nbytes :]

        self._each(fill, wanted)

    def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
        wanted = [check_key(key) for key in dict.fromkeys(keys)]

        def one(key: str) -> memoryview | None:
            with contextlib.suppress(NotFound):
                return self.get(key)
            return None

        found = zip(wanted, self._each(one, wanted), strict=True)
        return {key: data for key, data in found if data is not None}

    def put_many(self, blobs: Mapping[str, Buffer | Sequence[Buffer]]) -> None:
        for key in blobs:
            check_key(key)
        self._each(lambda blob: self.put(*blob), list(blobs.items()))

    def info(self, key: str) -> BlobInfo:
        path = self._path(key)
        with self._errors("reading", key), self._file_system.use() as fs:
            found = fs.info(path)
        if found["type"] != "file":
            raise NotFound(self._no_blob(key))
        return BlobInfo(key, found["size"], _mtime(found))

    def delete(self, keys: Iterable[str]) -> None:
        refused: list[TierstoreError] = []
        deleted = without_refusals(self._delete, refused)
        self._each(deleted, [(key, self._path(key)) for key in keys])
        if refused:
            raise refused[0]

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        below = f"{self._root}/{self._file_system.name_of(prefix)}"
        with self._errors("listing", prefix), self._file_system.use() as fs:
            found = fs.find(below.rstrip("/"), detail=True)
        start = len(self._root) + 1
        keys = {
            self._file_system.key_of(path[start:]): about
            for path, about in found.items()
            if path.startswith(below)
        }
        return (
            BlobInfo(key, keys[key]["size"], _mtime(keys[key]))
            for key in sorted(keys)
            if is_key(key)
        )

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        below = f"{self._root}/{self._file_system.name_of(prefix)}".rstrip("/")
        with self._errors("listing", prefix), self._file_system.use() as fs:
            try:
                found = fs.ls(below, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return iter(())
            paths = [about["name"] for about in found if about["type"] == "directory"]
            # Deleting blobs can leave directories: only one that holds a blob counts.
            full = [path for path in paths if any(files for _, _, files in fs.walk(path))]
        names = (self._file_system.key_of(path.rstrip("/").rpartition("/")[2]) for path in full)
        return iter(sorted(name for name in names if is_key(name)))

    def close(self) -> None:
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()
        if self._own.made is not None:
            self._own.made.close()

    def _read(self, key: str, start: int, stop: int) -> memoryview:
        path = self._path(key)
        with self._errors("reading", key), self._reaching(key, stop), self._file_system.use() as fs:
            data = self._file_system.read(fs, path, start, stop)
        return self._complete(key, data, stop, stop - start)

    def _delete(self, one: tuple[str, str]) -> None:
        key, path = one
        missing = FileNotFoundError, NotADirectoryError, IsADirectoryError
        with (
            self._errors("deleting", key),
            contextlib.suppress(*missing),
            self._file_system.use() as fs,
        ):
            # an empty directory must stay: somebody may be about to write into it
            if not self._file_system.needs_folders or fs.isfile(path):
                fs.rm_file(path)

    def _each(self, work: Callable[[Any], _R], items: Sequence[Any]) -> Sequence[_R]:
        if self._file_system.local or len(items) < 2:
            return [work(item) for item in items]
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tierstore-fs")
            threads = self._threads
        return each(threads, work, items)

    @contextmanager
    def _temp_file(self, fs: Any, path: str, data: Buffer | Sequence[Buffer]) -> Iterator[str]:
        temp = f"{self._root}/{_TEMP_DIR}/{secrets.token_hex(12)}"
        self._make_folder(fs, _parent(temp))
        self._make_folder(fs, _parent(path))
        try:
            self._file_system.write(fs, temp, data)
            if not self._swept:
                self._swept = True
                self._sweep(fs, temp)
            yield temp
        except FileNotFoundError:
            self._folders.clear()  # somebody removed one that we made
            raise
        finally:
            with contextlib.suppress(Exception):  # renamed away
                fs.rm_file(temp)

    def _sweep(self, fs: Any, temp: str) -> None:
        """Remove what killed writers left long before ``temp`` was written."""
        with contextlib.suppress(OSError):
            now = _mtime(fs.info(temp))
            for about in fs.ls(_parent(temp), detail=True):
                if _mtime(about) < now - _LEFT_OVER_S:
                    fs.rm_file(about["name"])

    def _make_folder(self, fs: Any, path: str) -> None:
        if path in self._folders:
            return
        # each time another client may have made the next directory on the way in between
        for others in reversed(range(path.count("/") + 1)):
            try:
                fs.makedirs(path, exist_ok=True)
                break
            except Exception as error:
                if fs.isdir(path):
                    break
                if not others or _error_type(error) is not BackendError:
                    raise
        self._folders.add(path)

    def _path(self, key: str) -> str:
        return f"{self._root}/{self._file_system.name_of(check_key(key))}"

    def _complete(self, key: str, data: bytes, stop: int, length: int) -> memoryview:
        if len(data) != length:
            raise Damaged(
                f"blob {key!r} in {self.url} ends {length - len(data)} bytes before {stop}: it "
                "was cut short; restore it from another copy"
            )
        return memoryview(data)

    def _check_reach(self, key: str, stop: int) -> None:
        size = self.info(key).size
        if stop > size:
            self._complete(key, b"", stop, stop - size)

    @contextmanager
    def _reaching(self, key: str, stop: int) -> Iterator[None]:
        """Turn a failed read into ``Damaged`` if the blob ends before ``stop``, or ``NotFound``."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if _error_type(error) is BackendError:
                self._check_reach(key, stop)
            raise

    def _no_blob(self, key: str) -> str:
        return f"no blob {key!r} in {self.url}"

    @contextmanager
    def _errors(self, doing: str, key: str) -> Iterator[None]:
        """Turn an error of a file system into one of ours, without its text.

        The text may hold a credential.
        """
        try:
            yield
        except TierstoreError:
            raise
        except Exception as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            if missing and doing == "reading":
                raise NotFound(self._no_blob(key)) from None
            raise _translated(error, f"{doing} {key!r} in {self.url} failed") from None


def _connected(url: str, options: dict[str, Any], timeout_s: float) -> FileSystem:
    shown = shown_url(_shown(url))
    try:
        return open_file_system(url, options, timeout_s)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"fsspec cannot open {shown}: {_first_line(error)}; install the package for "
            f"{url.partition('://')[0]!r}, or check the URL"
        ) from None
    except Exception as error:
        raise _translated(error, f"opening {shown} failed") from None


def _error_type(error: Exception) -> type[BackendError]:
    names = {one.__name__ for one in type(error).__mro__}
    if names & _DENIED:
        return PermissionDenied
    return Unreachable if names & _UNREACHABLE else BackendError


def _translated(error: Exception, message: str) -> TierstoreError:
    kind = _error_type(error)
    if isinstance(error, OSError) and error.errno is not None and kind is not Unreachable:
        why = error.strerror or os.strerror(error.errno)
        return files.translated(error, f"{message}: {why}")
    message = f"{message}: {type(error).__name__}"
    if kind is PermissionDenied:
        return PermissionDenied(f"{message}; check the credentials and what they may do")
    if kind is Unreachable:
        return Unreachable(f"{message}; check the address and the network")
    return BackendError(f"{message}; check the file system's own log")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _shown(url: str) -> str:
    """Return a URL without user, password and options, as ``open_blobs`` takes it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    kind = "" if parts.scheme == "memory" else "fsspec+"
    where = f"{host}{parts.path}".rstrip("/")
    return f"{kind}{parts.scheme}://{where}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _mtime(about: Mapping[str, Any]) -> float:
    """Return when a file was written, in seconds since the epoch, by whatever name that has.

    An unknown time counts as now: whoever removes old files must not remove this one.
    """
    value = next((about[name] for name in _TIMES if about.get(name) is not None), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    if value is None:
        return time.time()
    return float(value) / (1000 if "modificationTime" in about else 1)
