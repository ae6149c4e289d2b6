"""Creating an object of home that nobody else may create, such as the next entry of a log."""

from __future__ import annotations

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, NotDurable, NotFound


def create_once(home_blobs: BlobStore, key: str, data: bytes) -> bool:
    """Create an object; return whether it is this writer's.

    Args:
        home_blobs: The store's home.
        key: Key of the object.
        data: The object. Where it matters whose it is, a random id makes it unlike others.

    Raises:
        NotDurable: The object is there, whoever created it, but may be gone after a power loss.
        BackendError: Home failed, and the object is not there.
    """
    lost: BackendError | None = None
    try:
        if home_blobs.put_if_absent(key, data):
            return True
    except NotDurable:  # it is there, so looking would call it a success
        raise
    except BackendError as error:  # the answer may be lost, not the write: look
        lost = error
    try:
        there = bytes(home_blobs.get(key))
    except NotFound:
        there = None
    if there == data:
        return True
    if lost is not None:
        raise lost
    return False
