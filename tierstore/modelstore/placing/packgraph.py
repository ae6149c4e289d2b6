"""Which packs a version needs, and which packs hold the bases of others' deltas."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import LAYOUTS, MOVES, moved_pack
from tierstore.format.layout import parse_layout
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.home.chain import version_table
from tierstore.modelstore.home.confirm import gone_packs, unfit_packs
from tierstore.modelstore.home.home import Home

_log = logging.getLogger("tierstore.mover")


class PackGraph:
    """The references between packs, read from the layouts; each is read once. Thread-safe."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._seen: dict[str, tuple[float, frozenset[tuple[bytes, bytes]]]] = {}

    def packs_of(self, version: Digest) -> list[bytes]:
        """Return the packs of a version: of its chunks, their bases and its patches.

        Instead of a pack that cannot be relied on they are those to which its moves lead, as a
        reader follows them.

        Raises:
            NotFound, Damaged: The version's metadata cannot be read.
        """
        table = version_table(self._home, version)
        packs = list(table.pack_ids)
        if {moved_pack(info.key) for info in self._home.blobs.list(MOVES)}.isdisjoint(packs):
            return packs
        way = _Way(self._home, dict(zip(table.pack_ids, table.pack_sizes, strict=True)))
        return list(dict.fromkeys(pack for place in table for pack in way.ends(place)))

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


class _Way:
    """The packs from which a reader takes frames whose own packs are unfit (SPEC 8, 10)."""

    def __init__(self, home: Home, sizes: dict[bytes, int]) -> None:
        self._home = home
        self._moves = Moves(home.blobs, home.packs)
        self._moves.sizes.update(sizes)
        self._unfit: dict[bytes, bool] = {}
        self._hidden: dict[bytes, list[bytes]] = {}

    def ends(self, place: ChunkPlace) -> list[bytes]:
        """Return the pack where the way of a frame ends.

        They may be several where it ends in packs that only an archive has.
        """
        seen: set[bytes] = set()
        while place.pack not in seen and self._is_unfit(place.pack):
            seen.add(place.pack)
            target = self._moves.target(place.pack, place.digest)
            if target is None:
                return self._hidden[place.pack] or [place.pack]
            place = target
        return [place.pack]

    def _is_unfit(self, pack: bytes) -> bool:
        if pack not in self._unfit:
            sizes = {pack: self._moves.sizes[pack]}
            try:
                self._unfit[pack] = bool(unfit_packs(self._home, sizes))
            except BackendError:  # a tier that may have it cannot be asked
                self._unfit[pack] = False
            if self._unfit[pack]:
                self._moves.learn(pack)
                gone = gone_packs(self._home, sizes)
                self._hidden[pack] = self._moves.unread(pack) if gone else []
        return self._unfit[pack]
