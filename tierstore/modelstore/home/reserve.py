"""A reserve of space in home, so that garbage can be collected on a full disk (SPEC.md 10.1).

A removal writes an entry, and a collection a lease, a probe and a condemned list before it deletes
anything. Where there is no room for these, what can be deleted without writing goes first, and then
the reserve. The next collection that ends well makes it again.
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
