"""Leases: what garbage collection must wait for (format/SPEC.md section 10)."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Literal, Self

import msgspec

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound, TierstoreError, UnsupportedFormat
from tierstore.format.keys import LEASES
from tierstore.format.reflog import Lease
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.modelstore.home.refs import whoami

TTL_S = 4 * 3600
_log = logging.getLogger("tierstore.leases")


def _new_lease(role: Literal["writer", "reader"]) -> Lease:
    return Lease(
        id=uuid.uuid4().hex, role=role, who=whoami(), host=socket.gethostname(), pid=os.getpid(),
        ttl_s=TTL_S,
    )  # fmt: skip


def writers(home: BlobStore) -> dict[str, Lease]:
    """The saves that seem to run: writers' leases, by id, that have not ended by this clock."""
    found = {}
    for info in home.list(LEASES):
        try:
            lease = unseal_body(Kind.LEASE, home.get(info.key), Lease, info.key)
        except (Damaged, NotFound, UnsupportedFormat):
            continue
        if lease.role == "writer" and time.time() - info.mtime < lease.ttl_s:
            found[lease.id] = lease
    return found


def is_saving(home: BlobStore) -> bool:
    """Whether a save seems to be running."""
    return bool(writers(home))


class WriterLease:
    """Held while a save runs: garbage collection leaves its packs alone. A context manager."""

    def __init__(self, home: BlobStore) -> None:
        self._home = home
        self._lease = _new_lease("writer")
        self._renewed = 0.0

    @property
    def _key(self) -> str:
        return LEASES + self._lease.id

    def __enter__(self) -> Self:
        self.renew()
        return self

    def renew(self) -> bool:
        """Write the lease again; ``False`` when it had ended in between."""
        lapsed = self._renewed > 0 and time.monotonic() - self._renewed > TTL_S
        self._home.put(self._key, seal_body(Kind.LEASE, self._lease))
        self._renewed = time.monotonic()
        return not lapsed

    @property
    def is_young(self) -> bool:
        """Whether less than a third of its time has passed."""
        return self._renewed > 0 and time.monotonic() - self._renewed <= TTL_S / 3

    def keep(self) -> None:
        """Renew it unless it is young; cheap enough to call often."""
        if not self.is_young:
            self.renew()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._home.delete([self._key])
        except TierstoreError as failure:  # it ends by itself
            _log.warning("the writer's lease was not removed: %s", failure)


class ReaderLease:
    """One per process and store: names the versions that it reads, off the reading path.

    A store that cannot be written to is read without a lease.
    """

    def __init__(self, home: BlobStore) -> None:
        self._home = home
        self._lease = _new_lease("reader")
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, version: str) -> None:
        """Hold the version with this manifest digest (hex) until ``close``."""
        with self._lock:
            if version in self._lease.versions:
                return
            versions = [*self._lease.versions, version]
            self._lease = msgspec.structs.replace(self._lease, versions=versions)
            self._changed.set()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._renew_until_closed, name="tierstore-lease", daemon=True
                )
                self._thread.start()

    def _renew_until_closed(self) -> None:
        while not self._closed.is_set():
            self._changed.clear()
            try:
                self._home.put(LEASES + self._lease.id, seal_body(Kind.LEASE, self._lease))
            except TierstoreError as error:
                _log.info("reading without a lease: %s", error)
            self._changed.wait(TTL_S / 3)

    def close(self) -> None:
        """Give the lease back; in a forked child it is the parent's, and stays."""
        if self._thread is None or self._lease.pid != os.getpid():
            return
        self._closed.set()
        self._changed.set()
        self._thread.join()
        self._thread = None
        try:
            self._home.delete([LEASES + self._lease.id])
        except TierstoreError as error:
            _log.info("the reader's lease was not removed: %s", error)
