"""What the last collection of a store has left in home; it may be lost at any time (SPEC 10.1)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.collected import Collected
from tierstore.format.keys import COLLECTED
from tierstore.format.sealed import Kind, unseal_body

_log = logging.getLogger("tierstore.gc")


def read_collected(home_blobs: BlobStore, so: str | None = None) -> Collected | None:
    """Return what the last collection left; ``None`` if there was none, or it is lost.

    Args:
        home_blobs: The store's home.
        so: What comes of it where it cannot be read, for a warning; ``None`` gives none.
    """
    try:
        return unseal_body(Kind.COLLECTED, home_blobs.get(COLLECTED), Collected, COLLECTED)
    except NotFound:
        return None
    except (Damaged, UnsupportedFormat) as error:
        if so is not None:
            _log.warning("%s; %s", error, so)
        return None


def lengths_before(home_blobs: BlobStore) -> Mapping[str, int]:
    """Return how many entries each ref log had for the last collection; nothing where that is lost.

    Args:
        home_blobs: The store's home.

    Returns:
        The numbers by ``<model>/<name>``, as in the keys of the logs.
    """
    found = read_collected(home_blobs)
    return {} if found is None else found.logs
