"""Which packs a version needs, and which packs hold the bases of others' deltas."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import LAYOUTS
from tierstore.format.layout import parse_layout
from tierstore.format.table import ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import version_table
from tierstore.modelstore.home.home import Home

_log = logging.getLogger("tierstore.mover")


class PackGraph:
    """The references between packs, read from the layouts; each is read once. Thread-safe."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._seen: dict[str, tuple[float, frozenset[tuple[bytes, bytes]]]] = {}

    def packs_of(self, version: Digest) -> list[bytes]:
        """Return the packs of a version: of its chunks, their bases and its patches.

        Raises:
            NotFound, Damaged: The version's metadata cannot be read.
        """
        return list(version_table(self._home, version).pack_ids)

    def bases(self) -> dict[bytes, set[bytes]]:
        """Return for each pack the other packs that hold bases of its deltas, in any version.

        A layout that cannot be read is logged and left out.
        """
        current = {}
        for info in self._home.blobs.list(LAYOUTS):
            known = self._seen.get(info.key)
            if known is None or known[0] != info.mtime:
                edges = self._read(info.key)
                if edges is None:
                    continue
                known = (info.mtime, edges)
            current[info.key] = known
        self._seen = current
        found: dict[bytes, set[bytes]] = {}
        for _, edges in current.values():
            for pack, base in edges:
                found.setdefault(pack, set()).add(base)
        return found

    def _read(self, key: str) -> frozenset[tuple[bytes, bytes]] | None:
        try:
            digest = Digest.from_hex(key.removeprefix(LAYOUTS))
            return frozenset(_edges(parse_layout(self._home.blobs.get(key), digest, key)))
        except (Damaged, NotFound, UnsupportedFormat) as error:
            _log.warning("%s; its packs may be kept apart from their bases", error)
            return None


def _edges(table: ChunkTable) -> Iterable[tuple[bytes, bytes]]:
    if not table.bases:
        return
    for place in table:
        for digest in place.bases:
            base = table.find(digest)
            if base is not None and base.pack != place.pack:
                yield place.pack, base.pack
