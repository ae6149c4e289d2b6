"""Heals older versions: moves say where chunks of unfit packs lie now (format/SPEC.md 11, step 5).

A layout is never written over for that. Several saves may heal the same pack at once: the moves of
a pack are numbered, and whoever comes second looks at what the first one wrote.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping, MutableSet, Set
from typing import TypeAlias

from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.chunks.ways import FrameWays
from tierstore.modelstore.chunks.writemove import write_move
from tierstore.modelstore.home.confirm import unfit_packs
from tierstore.modelstore.home.home import Home

Lost: TypeAlias = Mapping[bytes, Set[bytes]]
"""Digests of chunks by the id of the pack in which they cannot be read."""


class Healing:
    """Finds out which lost chunks no move leads to, and writes the moves.

    Args:
        home: The store's home.
        unfit: Ids of packs that nothing new may rely on; the caller may add to it, as this does.
    """

    def __init__(self, home: Home, unfit: MutableSet[bytes]) -> None:
        self._home, self._unfit = home, unfit
        self._bad_bases: set[bytes] = set()
        self._confirmed: set[bytes] = set()

    @property
    def leads_to(self) -> Set[bytes]:
        """Ids of the packs to which moves that were read or written here lead."""
        return self._confirmed

    def lost_in(self, table: ChunkTable, own: Collection[bytes]) -> dict[bytes, set[bytes]]:
        """Return those chunks of a layout that lie in unfit packs or need a base in one.

        From then on a delta on a base that cannot be read, and that the save does not have itself,
        does not count as found.

        Args:
            table: The layout.
            own: Digests of the chunks that the save has.
        """
        bases = {place.digest: place for base in set(table.bases) if (place := table.find(base))}
        unread = {one for one, place in bases.items() if place.pack in self._unfit}
        there: dict[bytes, set[bytes]] = {}
        for one in unread - set(own):
            there.setdefault(bases[one].pack, set()).add(one)
        self._bad_bases |= {one for left in self.uncovered(there, table).values() for one in left}
        bad = self._unfit
        lost: dict[bytes, set[bytes]] = {}
        for place in table:
            if place.digest in own and (
                place.pack in bad or not self._bad_bases.isdisjoint(place.bases)
            ):
                lost.setdefault(place.pack, set()).add(place.digest)
        return lost

    def uncovered(self, lost: Lost, table: ChunkTable | None = None) -> dict[bytes, set[bytes]]:
        """Return those chunks that readers cannot find, by the pack where their way ends.

        Args:
            lost: The chunks, by the packs in which they cannot be read.
            table: The layout that a reader has, for the bases of deltas to which moves lead;
                without one those of which moves say nothing count as found.
        """
        moves = Moves(self._home.blobs, self._home.packs)
        sizes = ChainMap(moves.sizes)
        if table is not None:
            sizes.maps.append(dict(zip(table.pack_ids, table.pack_sizes, strict=True)))
        ways = FrameWays(moves, lambda place: self._is_good(place, sizes))
        found: dict[bytes, set[bytes]] = {}
        for pack, digest in ((pack, digest) for pack, every in lost.items() for digest in every):
            end = ways.end_behind(pack, digest, table)
            if end is not None:
                found.setdefault(end, set()).add(digest)
        return found

    def _is_good(self, place: ChunkPlace, sizes: Mapping[bytes, int]) -> bool:
        if place.pack not in self._confirmed:
            self._unfit |= unfit_packs(self._home, {place.pack: sizes[place.pack]})
            self._confirmed.add(place.pack)
        return place.pack not in self._unfit and self._bad_bases.isdisjoint(place.bases)

    def move(self, pack: bytes, into: Set[bytes]) -> None:
        """Write a move, as ``write_move`` does, into packs that were confirmed."""
        self._confirmed |= into
        write_move(self._home, pack, into)
