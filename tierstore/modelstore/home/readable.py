"""Reads many small objects of home at once, and goes on where some of them cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TypeVar

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.format.sealed import Body, Kind, unseal_body

_B = TypeVar("_B", bound=Body)


def read_readable(
    home_blobs: BlobStore,
    keys: Iterable[str],
    kind: Kind,
    body: type[_B],
    log: logging.Logger | None = None,
) -> dict[str, _B]:
    """Return those of some sealed objects that are there and can be read, by their keys.

    Args:
        home_blobs: The store's home.
        keys: Their keys.
        kind: Their kind.
        body: What is in them.
        log: Is told why others cannot be read; ``None`` where whoever checks or repairs says so.
    """
    found: dict[str, _B] = {}
    wanted = list(keys)
    for key, data in home_blobs.get_many(wanted).items() if wanted else ():
        try:
            found[key] = unseal_body(kind, data, body, key)
        except (Damaged, UnsupportedFormat) as error:
            if log is not None:
                log.warning("%s", error)
    return found
