"""A blob store in this process's memory, for tests; ``memory://`` is opened through fsspec."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from tierstore.blobs.base import (
    BlobInfo,
    BlobStore,
    Capabilities,
    RangeRead,
    check_key,
    check_prefix,
)
from tierstore.blobs.shared import folders_of, joined, writable
from tierstore.errors import Damaged, NotFound
from tierstore.forks import begin
from tierstore.ids import Buffer, ByteRange


class MemoryStore(BlobStore):
    """Blobs in a dict, which are gone with the last reference to the store.

    Args:
        name: A part of ``url``, which tells several stores apart in messages.
    """

    def __init__(self, name: str = "") -> None:
        self._url = f"memory://{name}"
        self._blobs: dict[str, tuple[bytes, float]] = {}
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(put_if_absent=True, durable=False)

    @property
    def local(self) -> bool:
        return True

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        check_key(key)
        content = joined(data)
        with self._lock:
            self._blobs[key] = (content, time.time())

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        check_key(key)
        content = joined(data)
        with self._lock:
            if key in self._blobs:
                return False
            self._blobs[key] = (content, time.time())
            return True

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        content, _ = self._find(key)
        view = memoryview(content)
        if byte_range is None:
            return view
        return self._slice(key, view, byte_range.start, byte_range.stop)

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        for read in reads:
            out = writable(read.out)
            content, _ = self._find(read.key)
            stop = read.start + out.nbytes
            out[:] = self._slice(read.key, memoryview(content), read.start, stop)

    def info(self, key: str) -> BlobInfo:
        content, mtime = self._find(key)
        return BlobInfo(key, len(content), mtime)

    def delete(self, keys: Iterable[str]) -> None:
        checked = [check_key(key) for key in keys]
        with self._lock:
            for key in checked:
                self._blobs.pop(key, None)

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        with self._lock:
            found = sorted(item for item in self._blobs.items() if item[0].startswith(prefix))
        return (BlobInfo(key, len(content), mtime) for key, (content, mtime) in found)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        return folders_of((info.key for info in self.list(prefix)), prefix)

    def _find(self, key: str) -> tuple[bytes, float]:
        check_key(key)
        with self._lock:
            found = self._blobs.get(key)
        if found is None:
            raise NotFound(f"no blob {key!r} in {self._url}")
        return found

    def _slice(self, key: str, view: memoryview, start: int, stop: int) -> memoryview:
        if stop > view.nbytes:
            raise Damaged(
                f"blob {key!r} in {self._url} has {view.nbytes} bytes, "
                f"but [{start}, {stop}) was asked for"
            )
        return view[start:stop]
