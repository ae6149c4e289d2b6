"""Finds out by trying what a store's storage really does, and what time its clock says."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass

from tierstore.blobs.base import BlobInfo, BlobStore
from tierstore.errors import BackendError
from tierstore.format.keys import PROBES

_log = logging.getLogger("tierstore.clock")


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of writing and deleting one object.

    Attributes:
        put_if_absent: Whether a second creation of the same key was refused.
        clock_skew_s: The storage's clock minus this machine's, in seconds; accurate to half the
            round trip plus the resolution of the storage's times, often a whole second.
        keeps_versions: Whether what is deleted or written over stays there as an older version.
    """

    put_if_absent: bool
    clock_skew_s: float
    keeps_versions: bool = False


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
        info = blobs.info(key)
        return Probe(refused, info.mtime - middle, _is_kept(info))
    finally:
        blobs.delete([key])


def home_now_s(home_blobs: BlobStore) -> float:
    """Return the time by home's clock, in seconds since the epoch; five small requests.

    Raises:
        PermissionDenied, OutOfSpace, Unreachable, BackendError: The storage did not take the object
            whose time it is.
    """
    return time.time() + probe(home_blobs).clock_skew_s


def home_or_own_now_s(home_blobs: BlobStore) -> float:
    """Return the time by home's clock, or by this machine's where nothing can be written."""
    try:
        return home_now_s(home_blobs)
    except BackendError as error:
        _log.info("the clock of %s cannot be asked: %s", home_blobs.url, error)
        return time.time()


def certain_now_s(home_blobs: BlobStore) -> float:
    """Return a time that has come by home's clock and by this machine's, as far as both are known.

    Whichever of them is ahead by mistake: what stays for a time stays for no less.
    """
    return min(home_or_own_now_s(home_blobs), time.time())


def prove(blobs: BlobStore) -> bool:
    """Write one small object, read it back and delete it.

    Returns:
        Whether it stays there as an older version, as all that is deleted or written over.

    Raises:
        PermissionDenied, OutOfSpace, Unreachable, BackendError: The storage refused, or gave back
            something else.
    """
    key = PROBES + uuid.uuid4().hex
    blobs.put(key, b"tierstore")
    try:
        found, info = bytes(blobs.get(key)), blobs.info(key)
    finally:
        blobs.delete([key])
    if found != b"tierstore":
        raise BackendError(f"{blobs.url} does not give back what was written to it: {found[:20]!r}")
    return _is_kept(info)


def _is_kept(info: BlobInfo) -> bool:
    # "null" is the version of what S3 writes while a bucket's versioning is suspended
    return info.version not in (None, "null")
