"""Leases: which saves garbage collection must wait for (format/SPEC.md section 10)."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, Damaged, NotFound, TierstoreError, UnsupportedFormat
from tierstore.format.keys import LEASES
from tierstore.format.reflog import MAX_LEASE_S, Lease
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.probe import home_now_s
from tierstore.modelstore.home.refs import whoami

TTL_S = 4 * 3600
_LEASE = re.compile(re.escape(LEASES) + r"[0-9a-f]{32}\Z")
_log = logging.getLogger("tierstore.leases")


def new_lease(role: Literal["writer", "reader"]) -> Lease:
    """Return a lease of this process, which is not written yet."""
    return Lease(
        id=uuid.uuid4().hex,
        role=role,
        who=whoami(),
        host=socket.gethostname(),
        pid=os.getpid(),
        ttl_s=TTL_S,
    )


def is_lease(key: str) -> bool:
    """Return whether a key is that of a lease; what else lies there is somebody else's."""
    return _LEASE.match(key) is not None


def writers(home_blobs: BlobStore) -> dict[str, Lease]:
    """Return the leases of running saves, by id; see ``in_force``."""
    return {lease.id: lease for lease in in_force(home_blobs, "writer")}


def in_force(home_blobs: BlobStore, role: Literal["writer", "reader"]) -> list[Lease]:
    """Return the leases of this role that have not ended by home's own clock.

    Where that cannot be asked, as nothing can be written there, none has ended.
    """
    found: list[tuple[Lease, float]] = []
    for info in home_blobs.list(LEASES):
        try:
            lease = unseal_body(Kind.LEASE, home_blobs.get(info.key), Lease, info.key)
        except (Damaged, NotFound, UnsupportedFormat):
            continue
        if lease.role == role:
            found.append((lease, info.mtime))
    now_s = _now_s(home_blobs) if found else 0.0
    return [lease for lease, written_s in found if now_s - written_s < lease.ttl_s]


@dataclass(frozen=True, slots=True)
class StandingLeases:
    """The leases of a store as a collector sees them.

    Attributes:
        standing: Those that may be in force: they ended less than their own time ago.
        ended: The keys of all others.
        until_s: Until when they may be in force unless they are renewed, in seconds since the epoch
            by home's clock, by id.
    """

    standing: list[Lease]
    ended: list[str]
    until_s: dict[str, float]


def standing(home_blobs: BlobStore, now_s: float) -> StandingLeases:
    """Return which leases have not ended well before now.

    Args:
        home_blobs: The store's home.
        now_s: Seconds since the epoch by home's clock.

    Raises:
        Damaged, UnsupportedFormat: A lease cannot be read, and may be in force.
    """
    found, ended, until_s = list[Lease](), list[str](), dict[str, float]()
    for info in home_blobs.list(LEASES):
        if not is_lease(info.key):
            continue
        age_s = now_s - info.mtime
        try:
            lease = unseal_body(Kind.LEASE, home_blobs.get(info.key), Lease, info.key)
        except NotFound:  # given back since it was listed
            continue
        except Damaged:
            if age_s <= 2 * TTL_S:
                raise
            ended.append(info.key)
            continue
        except UnsupportedFormat:  # it may be renewed as seldom as any
            if age_s <= 2 * MAX_LEASE_S:
                raise
            ended.append(info.key)
            continue
        if age_s > 2 * lease.ttl_s:
            ended.append(info.key)
        else:
            found.append(lease)
            until_s[lease.id] = info.mtime + 2 * lease.ttl_s
    return StandingLeases(found, ended, until_s)


def is_saving(home_blobs: BlobStore) -> bool:
    """Return whether a save seems to be running."""
    return bool(writers(home_blobs))


def _now_s(home_blobs: BlobStore) -> float:
    """Return the time by home's clock, in seconds since the epoch; minus infinity if unknown."""
    try:
        return home_now_s(home_blobs)
    except BackendError as error:
        _log.info("the clock of %s cannot be asked: %s", home_blobs.url, error)
        return -math.inf


def _ttl_s(home_blobs: BlobStore, key: str) -> float:
    """Return the time of a lease, in seconds: the most there is, where that cannot be read."""
    try:
        return unseal_body(Kind.LEASE, home_blobs.get(key), Lease, key).ttl_s
    except Damaged:  # it holds nothing
        return TTL_S
    except UnsupportedFormat:
        return MAX_LEASE_S
    except NotFound:  # it is removed already
        return math.inf


class WriterLease:
    """A lease held while a save runs, so that garbage collection leaves its packs alone.

    It is a context manager: it is written on entry and deleted on exit.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs
        self._lease = new_lease("writer")
        self._renewed = 0.0

    @property
    def _key(self) -> str:
        return LEASES + self._lease.id

    def remove_ended(self) -> None:
        """Remove leases of processes that were killed: those that ended a whole lease's time ago.

        Home's own clock decides: the time of this lease, which was just written, is its now.
        """
        try:
            listed = self._home_blobs.list(LEASES)
            found = {info.key: info.mtime for info in listed if is_lease(info.key)}
            now = found.get(self._key, 0.0)
            old = [key for key, mtime in found.items() if now - mtime > 2 * TTL_S]
            self._home_blobs.delete(
                [key for key in old if now - found[key] > 2 * _ttl_s(self._home_blobs, key)]
            )
        except TierstoreError as error:  # the next save tries again
            _log.info("leases that have ended were not removed: %s", error)

    def __enter__(self) -> Self:
        self.renew()
        return self

    def renew(self) -> bool:
        """Write the lease again; return ``False`` when it had expired in between."""
        before, began = self._renewed, running_s()
        self._home_blobs.put(self._key, seal_body(Kind.LEASE, self._lease))
        self._renewed = began  # what was written is as old as this at most
        return not before or running_s() - before <= TTL_S

    @property
    def is_young(self) -> bool:
        """Whether less than a third of the lease's time has passed."""
        return self._renewed > 0 and running_s() - self._renewed <= TTL_S / 3

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
