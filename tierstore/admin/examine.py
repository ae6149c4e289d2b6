"""Trying what a blob store can do: the promises of the contract, and its own claims."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.errors import NotFound, TierstoreError
from tierstore.format.keys import PROBES
from tierstore.ids import ByteRange

WRITERS = 8
ROUNDS = 8
_LARGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """The result of trying one thing that a store should be able to do.

    Attributes:
        what: Short name of the thing.
        ok: Whether the store does it; ``None`` if it does not claim to.
        detail: What was observed.
    """

    what: str
    ok: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Examination:
    """The results of all checks, and what the store can be used for.

    Attributes:
        checks: Results in the order in which they were made.
        home: Whether it can hold a store's metadata.
        durable: Whether it can be a warm or cold tier.
        shared: Whether it can be a cache that nodes share.
    """

    checks: tuple[Check, ...]
    home: bool
    durable: bool
    shared: bool

    @property
    def broken(self) -> bool:
        """Whether the store does not do something that it claims."""
        return any(check.ok is False for check in self.checks)


def examine(stores: Sequence[BlobStore]) -> Examination:
    """Try everything that tiers and homes need, and remove what was written.

    Args:
        stores: The same place, opened several times, so that independent clients race.

    Raises:
        PermissionDenied, OutOfSpace, Unreachable, BackendError: Not even one small object can be
            written.
    """
    store = stores[0]
    can = store.capabilities
    trial = _Trial(stores)
    try:
        store.put(trial.key("first"), b"first")
        checks = [
            _tried("write and read back", trial.read_back),
            _tried("replace", trial.replace),
            _tried("read a range", trial.ranges),
            _tried("missing objects", trial.missing),
            _tried("large objects", trial.large)
            if can.max_blob_bytes is None or can.max_blob_bytes >= _LARGE_BYTES
            else Check("large objects", None, f"takes none above {can.max_blob_bytes} bytes"),
            _tried("delete", trial.delete),
            _tried("list", trial.listing)
            if can.listable
            else Check("list", None, "cannot list what it holds"),
            _tried("create only if absent", trial.create)
            if can.put_if_absent
            else Check("create only if absent", None, "does not offer it"),
            _tried("race to create", trial.race)
            if can.put_if_absent
            else Check("race to create", None, "does not offer it"),
            _tried("clock", trial.clock),
        ]
    finally:
        with suppress(TierstoreError):
            store.delete(trial.keys)
    checks.append(Check("all or nothing", can.atomic_put or None, _atomic(can.atomic_put)))
    checks.append(Check("durable", can.durable or None, _durable(can.durable)))
    works = {check.what for check in checks if check.ok}
    basic = {"write and read back", "read a range", "missing objects", "delete"}
    lasting = works >= {*basic, "replace", "list", "large objects", "durable"}
    creates = works >= {"create only if absent", "race to create", "all or nothing"}
    return Examination(tuple(checks), lasting and creates, lasting, works >= basic)


def _atomic(yes: bool) -> str:
    return "a reader never sees part of an object" if yes else "a reader may see part of an object"


def _durable(yes: bool) -> str:
    return "says that it keeps what it was given" if yes else "may forget what it was given"


def _tried(what: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(what, True, attempt())
    except _Wrong as wrong:
        return Check(what, False, str(wrong))
    except TierstoreError as error:
        return Check(what, False, str(error))


class _Wrong(Exception):
    """Ends an attempt: the store did not do what it should."""


class _Trial:
    """The attempts; each returns what was observed, or raises."""

    def __init__(self, stores: Sequence[BlobStore]) -> None:
        self._stores, self._store = stores, stores[0]
        self._prefix = f"{PROBES}{uuid.uuid4().hex}"
        self.keys: list[str] = []

    def key(self, name: str) -> str:
        self.keys.append(f"{self._prefix}/{name}")
        return self.keys[-1]

    def read_back(self) -> str:
        key = self.key("read")
        started = time.perf_counter()
        self._store.put(key, [b"tier", b"store"])
        wrote = time.perf_counter()
        self._expect(key, b"tierstore")
        done = time.perf_counter()
        return f"{(wrote - started) * 1000:.1f} ms and {(done - wrote) * 1000:.1f} ms"

    def replace(self) -> str:
        key = self.key("replaced")
        for data in (b"old", b"newer"):
            self._store.put(key, data)
        self._expect(key, b"newer")
        return "the new one is read at once"

    def ranges(self) -> str:
        key = self.key("ranges")
        data = bytes(range(256)) * 64
        self._store.put(key, data)
        self._same(self._store.get(key, ByteRange(1000, 9000)), data[1000:9000])
        outs = [bytearray(100), bytearray(7)]
        self._store.get_ranges(
            [RangeRead(key, 5, memoryview(outs[0])), RangeRead(key, 9999, memoryview(outs[1]))]
        )
        self._same(b"".join(outs), data[5:105] + data[9999:10006])
        return "exactly what was asked for"

    def missing(self) -> str:
        try:
            self._store.get(f"{self._prefix}/missing")
        except NotFound:
            return "are told apart from failures"
        raise _Wrong("an object that does not exist was read")

    def large(self) -> str:
        key = self.key("large")
        data = memoryview(uuid.uuid4().bytes * (_LARGE_BYTES // 16))
        started = time.perf_counter()
        self._store.put(key, data)
        wrote = time.perf_counter()
        self._expect(key, bytes(data))
        done = time.perf_counter()
        mib = _LARGE_BYTES / (1 << 20)
        return f"{mib / (wrote - started):.0f} MiB/s written, {mib / (done - wrote):.0f} MiB/s read"

    def delete(self) -> str:
        key = self.key("deleted")
        self._store.put(key, b"gone")
        self._store.delete([key, f"{self._prefix}/missing"])
        try:
            self._store.get(key)
        except NotFound:
            return "at once, and what is missing is no error"
        raise _Wrong("a deleted object can still be read")

    def listing(self) -> str:
        for name in ("list/a", "list/b"):
            self._store.put(self.key(name), b"1")
        prefix = f"{self._prefix}/list/"
        before = [info.key for info in self._store.list(prefix)]
        self._store.delete([f"{prefix}a"])
        after = [info.key for info in self._store.list(prefix)]
        if (before, after) != ([f"{prefix}a", f"{prefix}b"], [f"{prefix}b"]):
            counts = f"{len(before)} of 2 objects, and {len(after)} of 1 after a deletion"
            raise _Wrong(f"lists {counts}")
        return "what was just written is listed, what was deleted is not"

    def create(self) -> str:
        key = self.key("created")
        if not self._store.put_if_absent(key, b"1"):
            raise _Wrong("says that a new object exists already")
        if self._store.put_if_absent(key, b"2"):
            raise _Wrong("overwrites: two writers could lose a version")
        self._expect(key, b"1")
        return "a second one is refused"

    def race(self) -> str:
        start = threading.Barrier(WRITERS)

        def write(number: int, key: str) -> bool:
            store = self._stores[number % len(self._stores)]
            start.wait(60)
            return store.put_if_absent(key, b"writer %d" % number)

        with ThreadPoolExecutor(WRITERS) as pool:
            for turn in range(ROUNDS):
                key = self.key(f"race{turn}")
                won = list(pool.map(write, range(WRITERS), [key] * WRITERS))
                if sum(won) != 1:
                    raise _Wrong(f"{sum(won)} of {WRITERS} writers at once were told that they won")
                self._expect(key, b"writer %d" % won.index(True))
        return f"one of {WRITERS} writers at once won, {ROUNDS} times"

    def clock(self) -> str:
        key = self.key("clock")
        before = time.time()
        self._store.put(key, b"1")
        skew = self._store.info(key).mtime - (before + time.time()) / 2
        return "the same as this machine's" if abs(skew) < 1.5 else f"{skew:+.0f} s off this one's"

    def _expect(self, key: str, data: bytes) -> None:
        self._same(self._store.get(key), data)

    def _same(self, found: bytes | memoryview, data: bytes) -> None:
        if bytes(found) != data:
            raise _Wrong("gives back other bytes than it was given")
