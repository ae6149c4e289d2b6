"""The leases of a process that reads: which versions garbage collection must leave alone for it.

A version is held by each ``Hold`` of it, and what reads the version keeps one. When the last one is
gone, however it went, the version is released. One thread of its own does all the writing, off the
reading path, and lives while anything is held. It is told through a queue, because a ``Hold`` may
end wherever Python's collector runs, where no lock may be taken.

A forked child has leases of its own, which name what it still holds; they are begun by its first
read. It never touches its parent's.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

import msgspec

from tierstore.blobs.base import BlobStore
from tierstore.errors import PermissionDenied, TierstoreError
from tierstore.forks import at_end, begin
from tierstore.format.keys import LEASES
from tierstore.format.reflog import Lease
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.leases import TTL_S, new_lease

MAX_VERSIONS = 1000
"""The most versions in one lease: one object of 67 KB is written when one of them changes."""

RELEASE_S = 5.0
"""Seconds for which released versions stay in a lease, as the next load often wants them again."""

RETRY_S, _LONGEST_S = 1.0, 60.0
"""Seconds after which a lease that could not be written is tried again; twice as long each time."""

_LOOK_S = 30.0
_CLOSE_S = 5.0
_END = ""
_log = logging.getLogger("tierstore.leases")
_ids: set[str] = set()
"""The ids of the leases that this process has begun, or one that it was forked from."""

_held: set[ReaderLease] = set()
"""What this process has to end before it ends itself."""


def is_own(lease: Lease) -> bool:
    """Return whether this process has begun a lease; containers may share host and pid."""
    return lease.id in _ids and lease.pid == os.getpid()


class Hold:
    """Keeps a version in the lease until it is released, or nobody has this object any more."""

    __slots__ = ("__weakref__", "_end", "_lease", "_version")

    def __init__(self, lease: ReaderLease, version: str) -> None:
        self._lease, self._version = lease, version
        self._end = weakref.finalize(self, lease._tell, version, -1)
        self._end.atexit = False  # the lease itself ends then
        begin(self._begin)

    def _begin(self) -> None:
        if self._end.alive:  # not what the parent had given back
            self._lease._tell(self._version, 1)

    def go_on(self) -> None:
        """Have the lease written, in a child that was forked; costs next to nothing otherwise."""
        self._lease._go_on()

    def release(self) -> None:
        """Give the version back; once is enough."""
        self._end()

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(eq=False, slots=True)
class _Part:
    """One lease object and its versions.

    Attributes:
        lease: What is written; its versions are those of the last write.
        versions: The versions now, in order.
        due: When it is written next, by ``running_s``.
        written: When it was last written; ``None`` if it never was.
    """

    lease: Lease
    versions: dict[str, None] = field(default_factory=dict)
    due: float = 0.0
    written: float | None = None


class ReaderLease:
    """The leases of one process on one store. Thread-safe, fork-safe.

    A store that cannot be written to is read without leases.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs
        begin(self._begin)

    def _begin(self) -> None:
        self._told: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._counts: Counter[str] = Counter()
        self._parts: list[_Part] = []
        self._pause_s = RETRY_S
        self._failing = False
        _held.discard(self)

    def hold(self, version: str) -> Hold:
        """Hold the version with this manifest digest (hex)."""
        held = Hold(self, version)
        self._start()
        return held

    def close(self) -> None:
        """Remove the leases, whatever is still held; waits for that for at most 5 seconds."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            self._told.put((_END, 0))
            thread.join(_CLOSE_S)

    def _tell(self, version: str, by: int) -> None:
        self._told.put((version, by))

    def _go_on(self) -> None:
        if self._thread is None and not self._told.empty():
            self._start()

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="tierstore-lease", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter ends
                    return
                self._thread = thread
                _held.add(self)
                at_end(_end_all)

    # The thread: all below is its own

    def _run(self) -> None:
        while True:
            ended = self._take_in()
            if ended:
                for part in self._parts:
                    self._remove(part)
                self._parts.clear()
                self._counts.clear()
            now = running_s()
            for part in [part for part in self._parts if part.due <= now]:
                self._bring_up_to_date(part)
            if not self._parts and self._ends():
                return

    def _ends(self) -> bool:
        with self._lock:
            if not self._told.empty():
                return False
            self._thread = None
            _held.discard(self)
            return True

    def _take_in(self) -> bool:
        """Wait until a lease is due or something was told; return whether it is the end."""
        due = min((part.due for part in self._parts), default=running_s() + _LOOK_S)
        # in short waits, as waiting does not count the time that the machine sleeps
        wait_s = min(max(0.0, due - running_s()), _LOOK_S)
        try:
            told = self._told.get(timeout=wait_s)
            while True:
                version, by = told
                if version == _END:
                    return True
                self._counts[version] += by
                if by > 0 and self._counts[version] == 1:
                    self._add(version)
                elif self._counts[version] <= 0:
                    del self._counts[version]
                    self._drop(version)
                told = self._told.get_nowait()
        except queue.Empty:
            return False

    def _add(self, version: str) -> None:
        part = self._part_of(version)
        if part is None:
            room = (part for part in self._parts if len(part.versions) < MAX_VERSIONS)
            part = next(room, None)
            if part is None:
                part = _Part(new_lease("reader"))
                _ids.add(part.lease.id)
                self._parts.append(part)
            part.versions[version] = None
            part.due = 0.0

    def _drop(self, version: str) -> None:
        part = self._part_of(version)
        if part is not None:
            part.due = min(part.due, running_s() + RELEASE_S)

    def _part_of(self, version: str) -> _Part | None:
        return next((part for part in self._parts if version in part.versions), None)

    def _bring_up_to_date(self, part: _Part) -> None:
        for version in [one for one in part.versions if one not in self._counts]:
            del part.versions[version]
        if part.versions:
            self._write(part)
        else:
            self._parts.remove(part)
            self._remove(part)

    def _write(self, part: _Part) -> None:
        part.lease = msgspec.structs.replace(part.lease, versions=list(part.versions))
        began = running_s()
        try:
            self._home_blobs.put(LEASES + part.lease.id, seal_body(Kind.LEASE, part.lease))
        except Exception as error:  # the thread must live on
            self._failed(part, error)
            return
        part.written = began  # what was written is as old as this at most
        part.due = part.written + TTL_S / 3
        self._pause_s = RETRY_S
        if self._failing:
            self._failing = False
            _log.warning("the lease of this reader in %s is written again", self._home_blobs.url)

    def _failed(self, part: _Part, error: Exception) -> None:
        if isinstance(error, PermissionDenied) and part.written is None:
            # a reader that may not write: it is asked again in case that changes
            part.due = running_s() + TTL_S / 3
            _log.info("reading without a lease: %s", error)
            return
        part.due = running_s() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_S)
        if self._failing:
            return
        self._failing = True
        passed = 0.0 if part.written is None else running_s() - part.written
        left_s = 0.0 if part.written is None else max(0.0, TTL_S - passed)
        _log.warning(
            "the lease of this reader in %s cannot be written, and is tried again every few "
            "seconds: %s. Versions that are removed while it is read may be deleted under it %s",
            self._home_blobs.url,
            error,
            f"in {left_s / 60:.0f} min" if left_s else "at any time",
        )

    def _remove(self, part: _Part) -> None:
        try:
            self._home_blobs.delete([LEASES + part.lease.id])
        except TierstoreError as error:  # it ends by itself
            _log.info("the reader's lease was not removed: %s", error)


def _end_all() -> None:
    for lease in list(_held):
        lease.close()
