"""A reserve of space in home, so that garbage can be collected on a full disk (SPEC.md 10.1).

A removal writes an entry, and a collection a lease, a probe and a condemned list before it deletes
anything. Where there is no room for these, what can be deleted without writing goes first, and then
the reserve. The next collection that ends well makes it again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from tierstore.blobs.base import BlobStore
from tierstore.errors import (
    BackendError,
    Conflict,
    Damaged,
    NotFound,
    OutOfSpace,
    UnsupportedFormat,
)
from tierstore.format.keys import CONFIG, GC, LEASES, RESERVE, SWEEPS
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.tiers import MoverLease
from tierstore.modelstore.placing.moverlease import TTL_S

RESERVE_BYTES = 4 << 20
_Done = TypeVar("_Done")
_log = logging.getLogger("tierstore.gc")


def keep_reserve(home_blobs: BlobStore) -> None:
    """Make the reserve unless it is there; where there is no room for it a later run does."""
    try:
        with suppress(NotFound):
            home_blobs.info(RESERVE)
            return
        home_blobs.put(RESERVE, os.urandom(RESERVE_BYTES))  # zeros may take no room at all
    except BackendError as error:
        _log.warning("there is no reserve to collect garbage on a full disk: %s", error)


def give_up_reserve(home_blobs: BlobStore) -> bool:
    """Delete the reserve; return whether there was one."""
    try:
        home_blobs.info(RESERVE)
    except NotFound:
        return False
    _log.warning("%s is full: its reserve of 4 MiB is used", home_blobs.url)
    home_blobs.delete([RESERVE])
    return True


def with_reserve(home_blobs: BlobStore, do: Callable[[], _Done]) -> _Done:
    """Do something that writes little; where home is full the reserve is used for it."""
    try:
        return do()
    except OutOfSpace:
        if not give_up_reserve(home_blobs):
            raise
        return do()


def newest_s(home_blobs: BlobStore) -> float:
    """Return a time by home's clock that is over for certain, in seconds since the epoch.

    That clock cannot be asked without writing. It is the time of the newest object among some.
    """
    found = [home_blobs.info(CONFIG).mtime]
    for prefix in (GC, LEASES, SWEEPS):
        found += [info.mtime for info in home_blobs.list(prefix)]
    return max(found)


class Unheld:
    """Stands in for the right to collect where that cannot be written: nobody else may have it.

    Args:
        home_blobs: The store's home.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs

    def check(self) -> None:
        """Raise ``Conflict`` when somebody collects garbage, by this machine's clock."""
        for info in self._home_blobs.list(SWEEPS):
            try:
                data = self._home_blobs.get(info.key)
                held = unseal_body(Kind.MOVER, data, MoverLease, info.key)
            except (Damaged, NotFound, UnsupportedFormat):
                continue
            if not held.done and time.time() - info.mtime < TTL_S:
                raise Conflict(
                    f"another garbage collection is at work: {held.who}, process {held.pid} on "
                    f"{held.host}; if it is gone its lease ends within {TTL_S} s"
                )
