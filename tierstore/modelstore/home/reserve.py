"""A reserve of space in home, so that garbage can be collected on a full disk (SPEC.md 10.1).

A removal writes entries, and a collection a lease, a probe and a condemned list before it deletes
anything. Where there is no room for these, what can be deleted without writing goes first, and then
the reserve. Whoever used it makes as much of it again as there is room for, at once: else the next
save would take that room, and there would be none to remove anything. A collection makes it whole.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, NotFound, OutOfSpace
from tierstore.format.keys import RESERVE
from tierstore.shown import size

RESERVE_BYTES = 4 << 20
_STEP_BYTES = RESERVE_BYTES // 16
NO_RESERVE = (
    "There is no reserve any more: 1 MiB of room is enough to remove versions and to collect"
)
_Done = TypeVar("_Done")
_log = logging.getLogger("tierstore.gc")


def keep_reserve(home_blobs: BlobStore) -> bool:
    """Make the reserve, or as much of it as there is room for; return ``False`` if not all is."""
    try:
        there = _reserved_bytes(home_blobs)
        if there == RESERVE_BYTES:
            return True
        if there:
            home_blobs.delete([RESERVE])  # a new one beside it would need as much room again
        content = memoryview(os.urandom(RESERVE_BYTES))  # zeros may take no room at all
        for nbytes in range(RESERVE_BYTES, 0, -_STEP_BYTES):
            with suppress(OutOfSpace):
                home_blobs.put(RESERVE, content[:nbytes])
                return nbytes == RESERVE_BYTES
        _log.warning("there is no room in %s for a reserve to collect garbage", home_blobs.url)
        return False
    except BackendError as error:
        _log.warning("there is no reserve to collect garbage on a full disk: %s", error)
        return True


def _reserved_bytes(home_blobs: BlobStore) -> int:
    try:
        return home_blobs.info(RESERVE).size
    except NotFound:
        return 0


def give_up_reserve(home_blobs: BlobStore) -> bool:
    """Delete the reserve; return whether there was one."""
    there = _reserved_bytes(home_blobs)
    if there:
        _log.warning("%s is full: its reserve of %s is used", home_blobs.url, size(there))
        home_blobs.delete([RESERVE])
    return there > 0


def with_reserve(home_blobs: BlobStore, do: Callable[[], _Done]) -> _Done:
    """Do something that writes little; where home is full the reserve is used for it.

    Raises:
        OutOfSpace: There is no room without it either. What is left of it is there again.
    """
    try:
        return do()
    except OutOfSpace:
        if not give_up_reserve(home_blobs):
            raise
        try:
            return do()
        finally:
            keep_reserve(home_blobs)
