"""Blobs in any file system that fsspec can reach.

fsspec promises neither that a write is all-or-nothing nor that creating is atomic: it depends on
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from fsspec.core import url_to_fs

from tierstore.blobs import _files
from tierstore.blobs._shared import by_key, flat_views, is_key, joined, runs
from tierstore.blobs.base import (
    BlobInfo,
    BlobStore,
    Capabilities,
    RangeRead,
    check_key,
    check_prefix,
)
from tierstore.errors import (
    BackendError,
    ConfigError,
    Damaged,
    NotFound,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)
from tierstore.ids import Buffer, ByteRange

_TEMP_DIR = ".tmp~"  # "~" is in no key
_LOCAL = frozenset({"file", "local"})
# One request carries the whole blob, and it appears when that has been answered.
_WHOLE = frozenset({"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
_UNCHECKED_MAX = 8 << 20  # bytes that are asked for without a look whether they are there
_MEMORY_LOCK = threading.Lock()  # fsspec has one memory file system per process
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


class FsspecStore(BlobStore):
    """Blobs below a path of an fsspec file system.

    On ``file`` a blob is written beside and renamed, or hard-linked to create it, but not synced,
    and symbolic links are followed. On ``memory`` a lock of this process makes creation atomic.
    Elsewhere ``put_if_absent`` is refused, and where a write is not one request a reader can see a
    part of it (``Capabilities.atomic_put``).

    Args:
        url: what fsspec takes, such as ``memory://name`` or ``sftp://host/path``.
        options: of the file system, as its own documentation names them.

    Raises:
        ConfigError: fsspec does not know the protocol, or a package for it is missing.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._protocol = url.partition("://")[0]
        self._url = _shown(url)
        try:
            # Cached listings would hide what other clients write.
            self._fs, root = url_to_fs(url, use_listings_cache=False, **(options or {}))
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"fsspec cannot open {self._url}: {_first_line(error)}; install the package for "
                f"{self._protocol!r}, or check the URL"
            ) from None
        self._root = root.rstrip("/")

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        known = self._protocol in _LOCAL or self._protocol == "memory"
        return Capabilities(
            put_if_absent=known,
            durable=not known,
            local=known,
            atomic_put=known or self._protocol in _WHOLE,
        )

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        path = self._path(key)
        with self._errors("writing", key):
            if self._protocol in _LOCAL:
                with self._temp_file(path, data) as temp:
                    self._fs.mv(temp, path)
                return
            if self._protocol not in _WHOLE:
                self._fs.makedirs(self._fs._parent(path), exist_ok=True)
            with _MEMORY_LOCK if self._protocol == "memory" else contextlib.nullcontext():
                self._fs.pipe_file(path, joined(data))

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        path = self._path(key)
        if not self.capabilities.put_if_absent:
            raise BackendError(
                f"cannot create blob {key!r} in {self._url}: fsspec's {self._protocol!r} creates "
                "nothing atomically; use another store for this"
            )
        with self._errors("creating", key):
            if self._protocol in _LOCAL:
                return self._link(path, data)
            content = joined(data)
            with _MEMORY_LOCK:
                if self._fs.isfile(path):
                    return False
                self._fs.pipe_file(path, content)
                return True

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        path = self._path(key)
        with self._errors("reading", key):
            if byte_range is None:
                return memoryview(self._fs.cat_file(path))
            if not 0 < len(byte_range) <= _UNCHECKED_MAX:
                self._check_reach(key, byte_range.stop)  # before so much is allocated
            if not len(byte_range):
                return memoryview(b"")
            with self._reaching(key, byte_range.stop):
                data = self._fs.cat_file(path, start=byte_range.start, end=byte_range.stop)
        return self._complete(key, data, byte_range.stop, len(byte_range))

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        wanted = []
        for key, group in by_key(reads).items():
            check_key(key)
            for read in group:
                if not read.out.nbytes:
                    self._check_reach(key, read.start)
            for start, outs in runs(group):
                wanted.append((key, start, start + sum(out.nbytes for out in outs), outs))
        with self._errors("reading", wanted[0][0] if wanted else ""):
            found = self._fs.cat_ranges(
                [self._path(key) for key, _, _, _ in wanted],
                [start for _, start, _, _ in wanted],
                [stop for _, _, stop, _ in wanted],
                on_error="return",
            )
        for (key, start, stop, outs), data in zip(wanted, found, strict=True):
            with self._errors("reading", key), self._reaching(key, stop):
                if isinstance(data, BaseException):
                    raise data
            view = self._complete(key, data, stop, stop - start)
            for out in outs:
                out[:] = view[: out.nbytes]
                view = view[out.nbytes :]

    def info(self, key: str) -> BlobInfo:
        path = self._path(key)
        with self._errors("reading", key):
            found = self._fs.info(path)
        if found["type"] != "file":
            raise NotFound(self._no_blob(key))
        return BlobInfo(key, found["size"], _mtime(found))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            missing = FileNotFoundError, NotADirectoryError, IsADirectoryError
            with self._errors("deleting", key), contextlib.suppress(*missing):
                self._fs.rm_file(path)

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        below = f"{self._root}/{prefix}"
        with self._errors("listing", prefix):
            found = self._fs.find(below.rstrip("/"), detail=True)
        keys = sorted(
            (path[len(self._root) + 1 :], about)
            for path, about in found.items()
            if path.startswith(below)
        )
        return (BlobInfo(key, about["size"], _mtime(about)) for key, about in keys if is_key(key))

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        below = f"{self._root}/{prefix}".rstrip("/")
        with self._errors("listing", prefix):
            try:
                found = self._fs.ls(below, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return iter(())
            paths = [about["name"] for about in found if about["type"] == "directory"]
            # Deleting blobs can leave directories: only one that holds a blob counts.
            full = [path for path in paths if any(files for _, _, files in self._fs.walk(path))]
        names = (path.rstrip("/").rpartition("/")[2] for path in full)
        return iter(sorted(name for name in names if is_key(name)))

    def _link(self, path: str, data: Buffer | Sequence[Buffer]) -> bool:
        with self._temp_file(path, data) as temp:
            try:
                self._fs.link(temp, path)
            except FileExistsError:
                return False
            return True

    @contextmanager
    def _temp_file(self, path: str, data: Buffer | Sequence[Buffer]) -> Iterator[str]:
        temp = f"{self._root}/{_TEMP_DIR}/{secrets.token_hex(12)}"
        self._fs.makedirs(self._fs._parent(temp), exist_ok=True)
        self._fs.makedirs(self._fs._parent(path), exist_ok=True)
        try:
            with self._fs.open(temp, "wb") as file:
                for view in flat_views(data):
                    file.write(view)
            yield temp
        finally:
            with contextlib.suppress(OSError):  # renamed away
                self._fs.rm_file(temp)

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _complete(self, key: str, data: bytes, stop: int, length: int) -> memoryview:
        if len(data) != length:
            raise Damaged(
                f"blob {key!r} in {self._url} ends {length - len(data)} bytes before {stop}: it "
                "was cut short; restore it from another copy"
            )
        return memoryview(data)

    def _check_reach(self, key: str, stop: int) -> None:
        size = self.info(key).size
        if stop > size:
            self._complete(key, b"", stop, stop - size)

    @contextmanager
    def _reaching(self, key: str, stop: int) -> Iterator[None]:
        """When reading a range fails: it is ``Damaged`` if the blob ends before ``stop``."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception:
            self._check_reach(key, stop)
            raise

    def _no_blob(self, key: str) -> str:
        return f"no blob {key!r} in {self._url}"

    @contextmanager
    def _errors(self, doing: str, key: str) -> Iterator[None]:
        """Turn whatever a file system raises into one of ours, without its text: that may hold
        a credential."""
        try:
            yield
        except TierstoreError:
            raise
        except Exception as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            if missing and doing == "reading":
                raise NotFound(self._no_blob(key)) from None
            raise _translated(error, f"{doing} {key!r} in {self._url} failed") from None


def _translated(error: Exception, message: str) -> TierstoreError:
    if isinstance(error, OSError) and error.errno is not None:
        why = error.strerror or os.strerror(error.errno)
        return _files.translated(error, f"{message}: {why}")
    message = f"{message}: {type(error).__name__}"
    if isinstance(error, PermissionError):
        return PermissionDenied(f"{message}; check the credentials and what they may do")
    if isinstance(error, TimeoutError | ConnectionError):
        return Unreachable(f"{message}; check the address and the network")
    return BackendError(f"{message}; check the file system's own log")


def _shown(url: str) -> str:
    """The URL without user, password and options, as ``open_blobs`` takes it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    kind = "" if parts.scheme == "memory" else "fsspec+"
    where = f"{host}{parts.path}".rstrip("/")
    return f"{kind}{parts.scheme}://{where}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _mtime(about: Mapping[str, Any]) -> float:
    """When a file was written, in seconds since the epoch, whatever its file system calls that.

    Not known means just now: whoever removes what is old must not remove it.
    """
    value = next((about[name] for name in _TIMES if about.get(name) is not None), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if value is not None else time.time()
