"""Collecting on a full home, where neither the right nor the time can be written (SPEC.md 10.1)."""

from __future__ import annotations

import time

from tierstore.blobs.base import BlobStore
from tierstore.errors import Conflict, Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import CONFIG, GC, LEASES, SWEEPS
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.tiers import MoverLease
from tierstore.modelstore.placing.moverlease import TTL_S


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
