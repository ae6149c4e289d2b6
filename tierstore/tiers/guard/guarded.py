"""A tier's blob store with a meter and breakers: calls are counted, a failing tier is skipped.

Reading and writing have a breaker each, so that a cache which is full or read-only is still read.
Both open after two failures in a row, each of which costs at most the tier's timeout. From then on
every call fails at once. A thread of its own finds out whether a tier that could not be read is
back, at no caller's cost.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tierstore.blobs.base import (
    BlobInfo,
    BlobStore,
    Capabilities,
    RangeRead,
    check_prefix,
)
from tierstore.errors import Archived, BackendError, Damaged, NotFound, TierstoreError, Unreachable
from tierstore.ids import Buffer, ByteRange
from tierstore.tiers.guard.breaker import Breaker
from tierstore.tiers.stats import TierStats

_FAILURES = 2
_RETRY_S = 5.0
_PROBE = "probes/is-it-back"
_T = TypeVar("_T")


class GuardedStore(BlobStore):
    """Counts the calls of a store and skips it while it fails. Thread-safe, fork-safe.

    Args:
        inner: The store; each of its calls must end by itself, after its own timeout at the latest.
        name: The name of the tier, for messages.
        stats: Receives the counts.
        retry_s: Seconds for which a failing tier is skipped before it is tried again.
    """

    def __init__(
        self, inner: BlobStore, name: str, stats: TierStats, *, retry_s: float = _RETRY_S
    ) -> None:
        self.inner, self._name, self._stats = inner, name, stats
        advice = f"see 'tierstore store validate {inner.url}'"

        def breaker(doing: str) -> Breaker:
            what = f"{doing} tier {name}"
            return Breaker(what, name, retry_s, self._changed, failures=_FAILURES, advice=advice)

        self._reading, self._writing = breaker("reading"), breaker("writing to")
        self._why = ""

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @property
    def local(self) -> bool:
        return self.inner.local

    # Reading

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        return self._read("get", lambda: self.inner.get(key, byte_range), lambda data: data.nbytes)

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        nbytes = sum(read.out.nbytes for read in reads)
        self._read("get", lambda: self.inner.get_ranges(reads), lambda _: nbytes)

    def get_many(self, keys: Sequence[str]) -> dict[str, memoryview]:
        return self._read(
            "get",
            lambda: self.inner.get_many(keys),
            lambda found: sum(data.nbytes for data in found.values()),
        )

    def present(self, keys: Sequence[str]) -> set[str]:
        return self._read("info", lambda: self.inner.present(keys))

    def info(self, key: str) -> BlobInfo:
        return self._read("info", lambda: self.inner.info(key))

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        check_prefix(prefix)
        if not self.capabilities.listable:
            return self.inner.list(prefix)  # which raises
        return self._listed(lambda: self.inner.list(prefix))

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        check_prefix(prefix)
        if not self.capabilities.listable:
            return self.inner.list_folders(prefix)
        return self._listed(lambda: self.inner.list_folders(prefix))

    def _read(self, op: str, call: Callable[[], _T], size: Callable[[_T], int] = lambda _: 0) -> _T:
        self._check_reading()
        with self._metered(op, self._reading) as done:
            result = call()
            done(size(result))
        return result

    def _listed(self, listing: Callable[[], Iterator[_T]]) -> Iterator[_T]:
        self._check_reading()
        with self._metered("list", self._reading):
            yield from listing()

    # Writing

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self._write("put", lambda: self.inner.put(key, data), _size(data))

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        return self._write("put", lambda: self.inner.put_if_absent(key, data), _size(data))

    def put_many(self, blobs: Mapping[str, Buffer | Sequence[Buffer]]) -> None:
        nbytes = sum(map(_size, blobs.values()))
        self._write("put", lambda: self.inner.put_many(blobs), nbytes)

    def delete(self, keys: Iterable[str]) -> None:
        self._write("delete", lambda: self.inner.delete(keys))

    def _write(self, op: str, call: Callable[[], _T], nbytes: int = 0) -> _T:
        self._check_reading("written to")  # what does not answer takes nothing
        if not self._writing.ready():
            self._refuse("written to")
        with self._metered(op, self._writing) as done:
            result = call()
            done(nbytes)
        return result

    def close(self) -> None:
        self.inner.close()

    # Guards

    @contextmanager
    def _metered(self, op: str, breaker: Breaker) -> Iterator[Callable[[int], None]]:
        started = time.perf_counter()
        nbytes = 0

        def done(count: int) -> None:
            nonlocal nbytes
            nbytes = count

        failed = False
        try:
            yield done
        except Archived:  # an answer: the tier works
            breaker.worked()
            raise
        except BackendError as error:
            failed = True
            self._why = str(error)
            breaker.failed(error)
            raise
        except (NotFound, Damaged):  # an answer as well: the tier works
            breaker.worked()
            raise
        else:
            breaker.worked()
        finally:
            self._stats.record(op, time.perf_counter() - started, nbytes, failed=failed)

    def _check_reading(self, doing: str = "read") -> None:
        if not self._reading.open:
            return
        if self._reading.ready():
            thread = threading.Thread(target=self._look, name="tierstore-probe", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                thread.start()
        self._refuse(doing)

    def _look(self) -> None:
        """Find out whether the tier answers again."""
        try:
            with contextlib.suppress(NotFound):
                self.inner.info(_PROBE)
        except TierstoreError as error:
            self._why = str(error)
            self._reading.failed(error)
        else:
            self._reading.answered()

    def _refuse(self, what: str) -> None:
        raise Unreachable(
            f"tier {self._name} is not {what} for a while, because it failed: {self._why}"
        )

    def _changed(self, opened: bool) -> None:
        self._stats.count(breaker_opened=opened)
        self._stats.breaker_open = self._reading.open or self._writing.open


def _size(data: Buffer | Sequence[Buffer]) -> int:
    if isinstance(data, bytes | bytearray | memoryview):
        return memoryview(data).nbytes
    return sum(memoryview(part).nbytes for part in data)
