"""How long the ref logs of a store were: no entry is deleted, so a shorter one has lost some."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.collected import Collected
from tierstore.format.keys import COLLECTED
from tierstore.format.sealed import Kind, unseal_body


def lengths_before(home_blobs: BlobStore) -> Mapping[str, int]:
    """Return how many entries each log had for the last collection; nothing where that is lost.

    Args:
        home_blobs: The store's home.

    Returns:
        The numbers by ``<model>/<name>``, as in the keys of the logs.
    """
    with suppress(Damaged, NotFound, UnsupportedFormat):
        return unseal_body(Kind.COLLECTED, home_blobs.get(COLLECTED), Collected, COLLECTED).logs
    return {}
