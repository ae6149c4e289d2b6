"""Leases: which saves and readers garbage collection must wait for (format/SPEC.md section 10)."""

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
from tierstore.forks import begin
from tierstore.format.keys import LEASES
from tierstore.format.reflog import Lease
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.modelstore.home.refs import whoami

TTL_S = 4 * 3600
_log = logging.getLogger("tierstore.leases")


def _new_lease(role: Literal["writer", "reader"]) -> Lease:
    return Lease(
        id=uuid.uuid4().hex,
        role=role,
        who=whoami(),
        host=socket.gethostname(),
        pid=os.getpid(),
        ttl_s=TTL_S,
    )


def writers(home_blobs: BlobStore) -> dict[str, Lease]:
    """Return the leases of running saves, by id: those not expired by this machine's clock."""
    found = {}
    for info in home_blobs.list(LEASES):
        try:
            lease = unseal_body(Kind.LEASE, home_blobs.get(info.key), Lease, info.key)
        except (Damaged, NotFound, UnsupportedFormat):
            continue
        if lease.role == "writer" and time.time() - info.mtime < lease.ttl_s:
            found[lease.id] = lease
    return found


def is_saving(home_blobs: BlobStore) -> bool:
    """Return whether a save seems to be running."""
    return bool(writers(home_blobs))


class WriterLease:
    """A lease held while a save runs, so that garbage collection leaves its packs alone.

    It is a context manager: it is written on entry and deleted on exit.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs
        self._lease = _new_lease("writer")
        self._renewed = 0.0

    @property
    def _key(self) -> str:
        return LEASES + self._lease.id

    def __enter__(self) -> Self:
        self.renew()
        return self

    def renew(self) -> bool:
        """Write the lease again; return ``False`` when it had expired in between."""
        lapsed = self._renewed > 0 and time.monotonic() - self._renewed > TTL_S
        self._home_blobs.put(self._key, seal_body(Kind.LEASE, self._lease))
        self._renewed = time.monotonic()
        return not lapsed

    @property
    def is_young(self) -> bool:
        """Whether less than a third of the lease's time has passed."""
        return self._renewed > 0 and time.monotonic() - self._renewed <= TTL_S / 3

    def keep(self) -> None:
        """Renew the lease unless it is young; cheap enough to call often."""
        if not self.is_young:
            self.renew()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._home_blobs.delete([self._key])
        except TierstoreError as failure:  # it ends by itself
            _log.warning("the writer's lease was not removed: %s", failure)


class ReaderLease:
    """The lease of one process on one store: names the versions that it reads.

    A background thread writes it, off the reading path. A store that cannot be written to is read
    without a lease.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs
        begin(self._begin)

    def _begin(self) -> None:
        self._lease = _new_lease("reader")  # its parent's is not a child's to renew or remove
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
                self._home_blobs.put(LEASES + self._lease.id, seal_body(Kind.LEASE, self._lease))
            except TierstoreError as error:
                _log.info("reading without a lease: %s", error)
            self._changed.wait(TTL_S / 3)

    def close(self) -> None:
        """Delete the lease."""
        if self._thread is None:
            return
        self._closed.set()
        self._changed.set()
        self._thread.join()
        self._thread = None
        try:
            self._home_blobs.delete([LEASES + self._lease.id])
        except TierstoreError as error:
            _log.info("the reader's lease was not removed: %s", error)
