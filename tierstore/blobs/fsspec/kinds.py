"""Particular file systems of fsspec: how each of them writes, creates, and reads a range.

fsspec itself promises nothing about a write that is seen half done, about two clients that create
one file, or about how long a call may take. Where a file system can do better, one class here says
how.
"""

from __future__ import annotations

import contextlib
import queue
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fsspec import get_filesystem_class
from fsspec.core import url_to_fs

from tierstore.blobs.shared import flat_views, joined, size_of
from tierstore.ids import Buffer

Data = Buffer | Sequence[Buffer]
_HDFS_EXISTS = "already exists"


class FileSystem:
    """A file system of which nothing more is known.

    Attributes:
        local: Whether it is on this machine, and is lost with it.
        atomic_put: Whether a write becomes visible all at once.
        needs_folders: Whether directories must exist before something is written below them.
    """

    local = False
    atomic_put = False
    needs_folders = True

    def __init__(self, url: str, options: Mapping[str, Any], timeout_s: float) -> None:
        # Cached listings would hide what other clients write.
        self._fs, root = url_to_fs(url, use_listings_cache=False, **options)
        self.root = root.rstrip("/")

    @contextmanager
    def use(self) -> Iterator[Any]:
        """Yield the file system for one operation."""
        yield self._fs

    def close(self) -> None:
        """Release connections."""

    def name_of(self, key: str) -> str:
        """Return the name in the file system of a key, or of the beginning of one."""
        return key

    def key_of(self, name: str) -> str:
        """Return the key that has this name; something that is no key if the file is not ours."""
        return name

    def read(self, fs: Any, path: str, start: int, stop: int | None) -> bytes:
        """Return bytes ``[start, stop)`` of a file (all for ``None``); fewer if it is shorter."""
        # an empty file has no range at all
        span = {} if stop is None else {"start": start, "end": stop}
        data: bytes = fs.cat_file(path, **span)
        return data

    def write(self, fs: Any, path: str, data: Data) -> None:
        """Write a file, replacing what is there."""
        fs.pipe_file(path, joined(data))


class RenamingFileSystem(FileSystem, ABC):
    """A file system with an atomic rename: a blob is written under another name first."""

    atomic_put = True

    @abstractmethod
    def replace(self, fs: Any, source: str, path: str) -> None:
        """Rename a file, replacing what is there."""

    @abstractmethod
    def create(self, fs: Any, source: str, path: str) -> bool:
        """Rename a file; return ``False`` when the name is taken, and ``source`` may be left."""


class ObjectFileSystem(FileSystem):
    """A file system where one request carries the whole blob, which then appears at once."""

    atomic_put = True
    needs_folders = False


class LocalFileSystem(RenamingFileSystem):
    """This machine's file system: blobs are written, then renamed or hard-linked."""

    local = True

    def write(self, fs: Any, path: str, data: Data) -> None:
        with fs.open(path, "wb") as file:
            for view in flat_views(data):
                file.write(view)

    def replace(self, fs: Any, source: str, path: str) -> None:
        fs.mv(source, path)

    def create(self, fs: Any, source: str, path: str) -> bool:
        try:
            fs.link(source, path)
        except FileExistsError:
            return False
        return True


class WebHdfsFileSystem(RenamingFileSystem):
    """HDFS through its HTTP interface, whose rename is atomic and can refuse to overwrite."""

    def __init__(self, url: str, options: Mapping[str, Any], timeout_s: float) -> None:
        # an instance of our own, which gets our time limit
        super().__init__(url, {"skip_instance_cache": True, **options}, timeout_s)
        from requests.adapters import HTTPAdapter

        class Bounded(HTTPAdapter):
            def send(self, request: Any, **kwargs: Any) -> Any:  # type: ignore[override]
                return super().send(request, **{**kwargs, "timeout": timeout_s})

        for scheme in ("http://", "https://"):
            self._fs.session.mount(scheme, Bounded(pool_maxsize=16))

    # A datanode decodes a path that the namenode has decoded already. No key holds a "=".
    def name_of(self, key: str) -> str:
        return key.replace("%", "=")

    def key_of(self, name: str) -> str:
        return "" if "%" in name else name.replace("=", "%")

    def read(self, fs: Any, path: str, start: int, stop: int | None) -> bytes:
        wanted = {"offset": start} | ({} if stop is None else {"length": stop - start})
        answer = fs._call("OPEN", path=path, redirect=False, **wanted)
        if "Location" in answer.headers:
            answer = fs.session.get(fs._apply_proxy(answer.headers["Location"]))
            answer.raise_for_status()
        data: bytes = answer.content
        return data

    def write(self, fs: Any, path: str, data: Data) -> None:
        answer = fs._call("CREATE", "put", path, redirect=False, overwrite="true")
        where = fs._apply_proxy(answer.headers["Location"])
        headers = {"content-type": "application/octet-stream"}
        fs.session.put(where, data=joined(data), headers=headers).raise_for_status()

    def replace(self, fs: Any, source: str, path: str) -> None:
        fs._call("RENAME", "put", source, destination=path, renameoptions="OVERWRITE")

    def create(self, fs: Any, source: str, path: str) -> bool:
        # Without any option HDFS moves into a directory that is in the way.
        try:
            fs._call("RENAME", "put", source, destination=path, renameoptions="NONE")
        except RuntimeError as error:
            if _HDFS_EXISTS in str(error) and fs.isfile(path):
                return False
            raise
        return True


class SftpFileSystem(RenamingFileSystem):
    """SFTP through paramiko, whose connections serve one thread at a time.

    OpenSSH's rename links and unlinks, so that it never overwrites; its extension does overwrite.
    """

    _KEPT = 8

    def __init__(self, url: str, options: Mapping[str, Any], timeout_s: float) -> None:
        self._class = get_filesystem_class(url.partition("://")[0])
        self._options = {
            **self._class._get_kwargs_from_urls(url),
            **dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), timeout_s),
            **options,
        }
        self._timeout_s = timeout_s
        self.root = self._class._strip_protocol(url).rstrip("/")
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()

    @contextmanager
    def use(self) -> Iterator[Any]:
        try:
            fs = self._idle.get_nowait()
        except queue.Empty:
            fs = self._class(**self._options, skip_instance_cache=True)
            fs.ftp.get_channel().settimeout(self._timeout_s)
        try:
            yield fs
        except FileNotFoundError:
            self._keep(fs)
            raise
        except BaseException:
            fs.client.close()  # an answer may still come: nobody else may read it
            raise
        self._keep(fs)

    def close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().client.close()

    def _keep(self, fs: Any) -> None:
        if self._idle.qsize() < self._KEPT:
            self._idle.put(fs)
        else:
            fs.client.close()

    def read(self, fs: Any, path: str, start: int, stop: int | None) -> bytes:
        with fs.ftp.open(path, "rb") as file:
            size = file.stat().st_size
            stop = size if stop is None else min(stop, size)
            if stop <= start:
                return b""
            # many requests under way at once, where read() would wait for each 32 KiB
            [data] = file.readv([(start, stop - start)])
            return bytes(data)

    def write(self, fs: Any, path: str, data: Data) -> None:
        with fs.ftp.open(path, "wb") as file:
            file.set_pipelined(True)
            for view in flat_views(data):
                file.write(view)
        # pipelined writes can fail silently
        if fs.ftp.stat(path).st_size != size_of(data):
            raise ConnectionError("it was not written in full")

    def replace(self, fs: Any, source: str, path: str) -> None:
        fs.ftp.posix_rename(source, path)

    def create(self, fs: Any, source: str, path: str) -> bool:
        try:
            fs.ftp.rename(source, path)
        except FileNotFoundError:
            raise
        except OSError:  # SFTP has no code for "it exists"
            if fs.exists(path):
                return False
            raise
        return True


_BY_SCHEME: dict[str, type[FileSystem]] = {
    **dict.fromkeys(("file", "local"), LocalFileSystem),
    "webhdfs": WebHdfsFileSystem,
    **dict.fromkeys(("sftp", "ssh"), SftpFileSystem),
    **dict.fromkeys(("memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"), ObjectFileSystem),
}


def open_file_system(url: str, options: Mapping[str, Any], timeout_s: float) -> FileSystem:
    """Return the file system of a URL; ``ImportError`` or ``ValueError`` when fsspec has none."""
    return _BY_SCHEME.get(url.partition("://")[0], FileSystem)(url, options, timeout_s)
