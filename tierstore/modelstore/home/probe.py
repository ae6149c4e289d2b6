"""Finds out by trying what a store's storage really does."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError
from tierstore.format.keys import PROBES


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of writing and deleting one object.

    Attributes:
        put_if_absent: Whether a second creation of the same key was refused.
        clock_skew_s: The storage's clock minus this machine's, in seconds; accurate to half the
            round trip plus the resolution of the storage's times, often a whole second.
    """

    put_if_absent: bool
    clock_skew_s: float


def probe(blobs: BlobStore) -> Probe:
    """Create one small object twice, look at its time, and delete it.

    Raises:
        PermissionDenied, OutOfSpace, Unreachable, BackendError: The storage did not take the
            object.
    """
    key = PROBES + uuid.uuid4().hex
    try:
        before = time.time()
        if not blobs.put_if_absent(key, b"1"):
            raise BackendError(f"{blobs.url} says that a new object exists already: {key}")
        middle = (before + time.time()) / 2
        refused = not blobs.put_if_absent(key, b"2") and bytes(blobs.get(key)) == b"1"
        return Probe(refused, blobs.info(key).mtime - middle)
    finally:
        blobs.delete([key])


def prove(blobs: BlobStore) -> None:
    """Write one small object, read it back and delete it.

    Raises:
        PermissionDenied, OutOfSpace, Unreachable, BackendError: The storage refused, or gave back
            something else.
    """
    key = PROBES + uuid.uuid4().hex
    blobs.put(key, b"tierstore")
    try:
        found = bytes(blobs.get(key))
    finally:
        blobs.delete([key])
    if found != b"tierstore":
        raise BackendError(f"{blobs.url} does not give back what was written to it: {found[:20]!r}")
