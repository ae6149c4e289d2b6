"""A blob store that fails on demand, for tests of the layers above."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

from tierstore.blobs.base import BlobInfo, BlobStore, Capabilities, RangeRead
from tierstore.errors import Damaged, Unreachable
from tierstore.ids import Buffer, ByteRange

Fault: TypeAlias = Exception | Literal["truncate", "flip", "lose-response"] | None
"""The fault of one call:

* an exception: it is raised, and nothing is done;
* ``truncate``: a write silently stores only the first half; a read finds only the first half;
* ``flip``: one bit in the middle of what is written or read is flipped;
* ``lose-response``: the call is carried out, and then ``Unreachable`` is raised.
"""

FaultPlan: TypeAlias = Callable[[str, str, int], Fault]
"""``plan(op, key, n)``, where ``op`` is the method's name, ``key`` the (first) key or the prefix,
and ``n`` counts all calls from 1."""

_MUTATING = frozenset({"put", "put_if_absent", "delete"})


class Crashed(BaseException):
    """A crash of the process; handlers of ``Exception`` do not catch it."""


class FaultyStore(BlobStore):
    """A wrapper that fails on demand; it deletes key by key, so that a batch can fail half way.

    To try every crash point of an operation, run it once and read ``mutations``; then run it with
    ``crash_after`` from 0 to that number, each time on a fresh store, and look at ``inner``.

    Args:
        inner: Store that does the work, and stays intact when this one crashes.
        plan: Function that chooses the fault of each call; ``None`` for no faults.
        crash_after: Number of calls that change the store and succeed; every call after them raises
            ``Crashed``.
    """

    def __init__(
        self, inner: BlobStore, plan: FaultPlan | None = None, *, crash_after: int | None = None
    ) -> None:
        self.inner = inner
        self.plan = plan
        self.crash_after = crash_after
        self.mutations = 0
        """Number of calls so far that changed the store, or may have."""
        self.calls: list[tuple[str, str]] = []
        """``(op, key)`` of every call so far, failed ones included."""
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        fault = self._next("put", key)
        self.inner.put(key, _spoiled(data, fault))
        self._answer("put", key, fault)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        fault = self._next("put_if_absent", key)
        created = self.inner.put_if_absent(key, _spoiled(data, fault))
        self._answer("put_if_absent", key, fault)
        return created

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        fault = self._next("get", key)
        found = self.inner.get(key, byte_range)
        self._answer("get", key, fault)
        if fault == "truncate" and byte_range is not None:
            raise Damaged(f"blob {key!r} in {self.url} was cut short")
        return memoryview(_spoiled(found, fault))

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        key = reads[0].key if reads else ""
        fault = self._next("get_ranges", key)
        self.inner.get_ranges(reads)
        self._answer("get_ranges", key, fault)
        if fault == "truncate":
            raise Damaged(f"blob {key!r} in {self.url} was cut short")
        if fault == "flip":
            for read in reads:
                read.out[:] = _spoiled(read.out, fault)

    def info(self, key: str) -> BlobInfo:
        self._answer("info", key, self._next("info", key))
        return self.inner.info(key)

    def signs(self, key: str) -> frozenset[str]:
        self._answer("signs", key, self._next("signs", key))
        return self.inner.signs(key)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            fault = self._next("delete", key)
            self.inner.delete([key])
            self._answer("delete", key, fault)

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        self._answer("list", prefix, self._next("list", prefix))
        return self.inner.list(prefix)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        self._answer("list_folders", prefix, self._next("list_folders", prefix))
        return self.inner.list_folders(prefix)

    def close(self) -> None:
        self.inner.close()

    def _next(self, op: str, key: str) -> Fault:
        """Count a call and return its fault; raise it when it is an exception."""
        with self._lock:
            if self.crash_after is not None and self.mutations >= self.crash_after:
                raise Crashed(f"{op} {key!r} after {self.mutations} changes")
            self.calls.append((op, key))
            fault = self.plan(op, key, len(self.calls)) if self.plan else None
            if isinstance(fault, Exception):
                raise fault
            self.mutations += op in _MUTATING
            return fault

    def _answer(self, op: str, key: str, fault: Fault) -> None:
        if fault == "lose-response":
            raise Unreachable(f"{op} {key!r} in {self.url}: the answer was lost")


def _spoiled(data: Buffer | Sequence[Buffer], fault: Fault) -> Buffer:
    parts = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
    content = bytearray().join(parts)
    middle = len(content) // 2
    if fault == "truncate":
        return content[:middle]
    if fault == "flip" and content:
        content[middle] ^= 1
    return content
