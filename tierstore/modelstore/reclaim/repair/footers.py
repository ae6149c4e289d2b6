"""What packs hold, by their footers: those of a whole store, many read at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import pack_key
from tierstore.format.table import ChunkTable
from tierstore.modelstore.home.ahead import ahead
from tierstore.modelstore.home.footers import read_chunks
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.holdings import Holdings

_log = logging.getLogger("tierstore.repair")


def read_footers(
    home: Home, holdings: Holdings, packs: Iterable[bytes]
) -> Iterator[tuple[bytes, ChunkTable]]:
    """Yield what packs hold, in their order; those that cannot be looked into now are left out.

    Args:
        home: The store's home.
        holdings: Which packs are there, and how large they are.
        packs: The ids of the packs.
    """

    def read(pack: bytes) -> ChunkTable | None:
        size = next(iter(holdings.bytes_of(pack).values()))
        try:
            return read_chunks(home.packs, pack_key(pack), size)
        except (Damaged, NotFound, UnsupportedFormat, BackendError) as error:
            _log.debug("left out: %s", error)
            return None

    for pack, table in ahead(read, filter(holdings.is_readable, packs)):
        if table is not None:
            yield pack, table
