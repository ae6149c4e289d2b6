"""A deadline for calls that may hang.

They hang on a mount whose server is gone, or in a file system of fsspec that has no limits of its
own. Such a call cannot be ended, only left behind: it runs in a thread of its own, on copies of the
caller's buffers, so that whatever it does later harms nobody.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tierstore.blobs.base import BlobInfo, BlobStore, Capabilities, RangeRead, check_prefix
from tierstore.errors import Unreachable
from tierstore.forks import begin
from tierstore.ids import Buffer, ByteRange

_T = TypeVar("_T")
_BYTES_PER_LIMIT = 8 << 20  # a call that moves more has several times the limit
_LONGEST_S = 3600.0
_MAX_CALLS = 64  # calls at once, of which any number may hang
_MAX_QUEUED = 1000  # entries of a listing that are read ahead


def within(limit_s: float, what: str, call: Callable[[], _T]) -> _T:
    """Return what ``call`` returns; ``Unreachable`` if it takes longer than ``limit_s`` seconds."""
    found: list[_T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="tierstore-bounded", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise _too_long(what, limit_s)
    if failed:
        raise failed[0]
    return found[0]


class DeadlineStore(BlobStore):
    """A store whose calls take at most ``timeout_s`` for each 8 MiB or part of it.

    Args:
        inner: The store; it gets its own copies of all bytes, so that an abandoned call harms
            nobody.
        timeout_s: Seconds for each 8 MiB or part of it.
    """

    def __init__(self, inner: BlobStore, timeout_s: float) -> None:
        self._inner, self._timeout_s = inner, timeout_s
        self._capabilities: Capabilities | None = None
        begin(self._begin)

    def _begin(self) -> None:
        self._slots = threading.BoundedSemaphore(_MAX_CALLS)

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            what = f"asking {self.url}"
            self._capabilities = within(self._timeout_s, what, lambda: self._inner.capabilities)
        return self._capabilities

    @property
    def local(self) -> bool:
        return self._inner.local

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        own = _copied(data)
        self._call(f"writing {key!r} in", lambda: self._inner.put(key, own), len(own))

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        own = _copied(data)
        return self._call(
            f"creating {key!r} in", lambda: self._inner.put_if_absent(key, own), len(own)
        )

    def put_many(self, blobs: Mapping[str, Buffer | Sequence[Buffer]]) -> None:
        own = {key: _copied(data) for key, data in blobs.items()}
        size = sum(map(len, own.values()))
        self._call("writing to", lambda: self._inner.put_many(own), size)

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        size = len(byte_range) if byte_range else 0
        return self._call(f"reading {key!r} in", lambda: self._inner.get(key, byte_range), size)

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        if not reads:
            return
        size = sum(read.out.nbytes for read in reads)

        def read() -> list[memoryview]:
            own = [RangeRead(r.key, r.start, memoryview(bytearray(r.out.nbytes))) for r in reads]
            self._inner.get_ranges(own)
            return [read.out for read in own]

        found = self._call(f"reading {reads[0].key!r} in", read, size)
        for read_, data in zip(reads, found, strict=True):
            if data.nbytes:
                read_.out.cast("B")[:] = data

    def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
        return self._call("reading from", lambda: self._inner.get_many(keys), len(keys) << 20)

    def present(self, keys: Sequence[str]) -> set[str]:
        return self._call("asking", lambda: self._inner.present(keys), len(keys) << 16)

    def info(self, key: str) -> BlobInfo:
        return self._call(f"reading {key!r} in", lambda: self._inner.info(key))

    def signs(self, key: str) -> frozenset[str]:
        return self._call(f"reading {key!r} in", lambda: self._inner.signs(key))

    def delete(self, keys: Iterable[str]) -> None:
        own = list(keys)
        self._call("deleting from", lambda: self._inner.delete(own), len(own) << 18)

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        return self._listed(lambda: self._inner.list(prefix))

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        return self._listed(lambda: self._inner.list_folders(prefix))

    def close(self) -> None:
        self._inner.close()

    def _call(self, doing: str, call: Callable[[], _T], nbytes: int = 0) -> _T:
        what = f"{doing} {self.url}"
        slots = self._slots
        if not slots.acquire(timeout=self._timeout_s):
            raise Unreachable(
                f"{what} failed: {_MAX_CALLS} earlier calls hang; check that it answers"
            )

        def work() -> _T:
            try:
                return call()
            finally:
                slots.release()

        limit_s = min(self._timeout_s * (1 + nbytes // _BYTES_PER_LIMIT), _LONGEST_S)
        return within(limit_s, what, work)

    def _listed(self, listing: Callable[[], Iterator[_T]]) -> Iterator[_T]:
        """Yield the entries of a listing; the wait for each is bounded, not that for all."""
        entries: queue.Queue[Any] = queue.Queue(_MAX_QUEUED)
        left = threading.Event()
        end = object()

        def work() -> None:
            try:
                for entry in listing():
                    while not left.is_set():
                        try:
                            entries.put((entry, None), timeout=0.5)
                            break
                        except queue.Full:
                            continue
                    if left.is_set():
                        return
                entries.put((end, None))
            except BaseException as error:
                entries.put((end, error))

        threading.Thread(target=work, name="tierstore-bounded", daemon=True).start()
        try:
            while True:
                try:
                    entry, error = entries.get(timeout=self._timeout_s)
                except queue.Empty:
                    raise _too_long(f"listing {self.url}", self._timeout_s) from None
                if error is not None:
                    raise error
                if entry is end:
                    return
                yield entry
        finally:
            left.set()


def _copied(data: Buffer | Sequence[Buffer]) -> bytes:
    parts = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
    return b"".join(memoryview(part).cast("B") for part in parts if memoryview(part).nbytes)


def _too_long(what: str, limit_s: float) -> Unreachable:
    return Unreachable(
        f"{what} did not end in {limit_s:g} s; check that it answers, or give its tier more time"
    )
