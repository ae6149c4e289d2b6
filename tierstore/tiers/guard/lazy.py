"""A blob store that is opened at its first use, since opening one can take time, or fail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tierstore.blobs.base import BlobInfo, BlobStore, Capabilities, RangeRead
from tierstore.errors import BackendError, TierstoreError, Unreachable
from tierstore.forks import begin
from tierstore.ids import Buffer, ByteRange

_log = logging.getLogger("tierstore.tiers")


class LazyStore(BlobStore):
    """Opens ``url`` with ``opener`` at first use; ``Unreachable`` when it cannot be opened.

    Args:
        url: The address, for messages.
        opener: Opens and checks the store; it is called again after it failed.
        tier: The name of the tier, which a warning carries.
    """

    def __init__(self, url: str, opener: Callable[[], BlobStore], tier: str) -> None:
        self._url, self._opener, self._tier = url, opener, tier
        self._store: BlobStore | None = None
        self._warned = False
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return self._open().capabilities

    @property
    def local(self) -> bool:
        return self._open().local

    def _open(self) -> BlobStore:
        store = self._store
        if store is not None:
            return store
        with self._lock:
            if self._store is None:
                try:
                    self._store = self._opener()
                except BackendError:
                    raise
                except TierstoreError as error:
                    if not self._warned:
                        said = "%s cannot be opened: %s"
                        _log.warning(said, self._url, error, extra={"tier": self._tier})
                        self._warned = True
                    raise Unreachable(f"{self._url} cannot be opened: {error}") from error
            return self._store

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self._open().put(key, data)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        return self._open().put_if_absent(key, data)

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        return self._open().get(key, byte_range)

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        self._open().get_ranges(reads)

    def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
        return self._open().get_many(keys)

    def present(self, keys: Sequence[str]) -> set[str]:
        return self._open().present(keys)

    def put_many(self, blobs: Mapping[str, Buffer | Sequence[Buffer]]) -> None:
        self._open().put_many(blobs)

    def info(self, key: str) -> BlobInfo:
        return self._open().info(key)

    def delete(self, keys: Iterable[str]) -> None:
        self._open().delete(keys)

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        return self._open().list(prefix)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        return self._open().list_folders(prefix)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
