"""A blob store that counts what is asked of another one, as requests to an object store."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from tierstore.blobs.base import BlobInfo, BlobStore, Capabilities, RangeRead
from tierstore.ids import Buffer, ByteRange

KINDS = ("LIST", "GET", "HEAD", "PUT", "DELETE")
"""Kinds of requests; a DELETE has up to a thousand keys, a LIST gives so many."""

_KEYS = 1000
_Item = TypeVar("_Item", BlobInfo, str)


class Counted(BlobStore):
    """Counts requests and bytes, and leaves the work to another store. Thread-safe.

    An object store answers one request for each key that is read, written or looked for, and one
    for each thousand that are listed or deleted; a key that is missing is a request, too.

    Args:
        inner: The store that does the work.
        requests: Where requests are counted by kind, and bytes as ``read`` and ``written``.
        page: So many keys are listed by one request.
    """

    def __init__(self, inner: BlobStore, requests: Counter[str], page: int = _KEYS) -> None:
        self._inner, self._requests, self._page = inner, requests, page
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    @property
    def bounded(self) -> bool:
        return self._inner.bounded

    @property
    def local(self) -> bool:
        return self._inner.local

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self._count("PUT", written=_bytes(data))
        self._inner.put(key, data)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        self._count("PUT", written=_bytes(data))
        return self._inner.put_if_absent(key, data)

    def put_many(self, blobs: Mapping[str, Buffer | Sequence[Buffer]]) -> None:
        self._count("PUT", len(blobs), written=sum(map(_bytes, blobs.values())))
        self._inner.put_many(blobs)

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        self._count("GET")
        found = self._inner.get(key, byte_range)
        self._count("GET", 0, read=found.nbytes)
        return found

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        self._count("GET", len(reads), read=sum(read.out.nbytes for read in reads))
        self._inner.get_ranges(reads)

    def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
        self._count("GET", len(keys))
        found = self._inner.get_many(keys)
        self._count("GET", 0, read=sum(data.nbytes for data in found.values()))
        return found

    def present(self, keys: Sequence[str]) -> set[str]:
        self._count("HEAD", len(keys))
        return self._inner.present(keys)

    def info(self, key: str) -> BlobInfo:
        self._count("HEAD")
        return self._inner.info(key)

    def delete(self, keys: Iterable[str]) -> None:
        every = list(keys)
        self._count("DELETE", -(-len(every) // _KEYS))
        self._inner.delete(every)

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        return self._pages(self._inner.list(prefix))

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        return self._pages(self._inner.list_folders(prefix))

    def _pages(self, items: Iterator[_Item]) -> Iterator[_Item]:
        self._count("LIST")
        for number, item in enumerate(items):
            if number and number % self._page == 0:
                self._count("LIST")
            yield item

    def close(self) -> None:
        self._inner.close()

    def _count(self, kind: str, times: int = 1, **nbytes: int) -> None:
        with self._lock:
            self._requests[kind] += times
            self._requests.update(nbytes)


def _bytes(data: Buffer | Sequence[Buffer]) -> int:
    parts = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
    return sum(memoryview(part).nbytes for part in parts)
