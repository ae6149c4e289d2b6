"""Heals older versions: moves say where chunks of unfit packs lie now (format/SPEC.md 11, step 5).

A layout is never written over for that. Several saves may heal the same pack at once: the moves of
a pack are numbered, and whoever comes second looks at what the first one wrote.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, MutableSet, Set
from typing import TypeAlias

from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.frameways import FrameWays
from tierstore.modelstore.chunks.moves import Moves
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
                without one those of which moves say nothing are not found.
        """
        ways, sizes = self._ways()
        sizes |= _sizes(table) if table is not None else {}
        found: dict[bytes, set[bytes]] = {}
        for pack, digest in ((pack, digest) for pack, every in lost.items() for digest in every):
            end = ways.end_behind(pack, digest, table)
            if end is not None:
                found.setdefault(end, set()).add(digest)
        return found

    def ends(
        self, pack: bytes, digests: Iterable[bytes], tables: Iterable[ChunkTable]
    ) -> dict[bytes, bytes]:
        """Return where the ways of those chunks end that readers of some layout do not find.

        Args:
            pack: The pack in which they cannot be read.
            digests: The chunks.
            tables: The layouts, of which as many are taken as it depends on: where a move leads to
                a delta, one may have its base and another not. Where none places a chunk in the
                pack, bases of which moves say nothing are not found.
        """
        ways, sizes = self._ways()
        found: dict[bytes, bytes] = {}
        left, placed = {*digests}, set[bytes]()

        def ask(digest: bytes, table: ChunkTable | None) -> None:
            end = ways.end_behind(pack, digest, table)
            if end is not None:
                found[digest] = end

        for table in tables:
            sizes |= _sizes(table)
            here = {one for one in left if (at := table.find(one)) is not None and at.pack == pack}
            for digest in here:
                ask(digest, table)
            placed |= here
            left -= {one for one in here if one in found or not ways.leads_to_delta(pack, one)}
            if not left:
                return found
        for digest in left - placed:
            ask(digest, None)
        return found

    def _ways(self) -> tuple[FrameWays, ChainMap[bytes, int]]:
        """Return what follows frames, and the bytes of packs in which places are."""
        moves = Moves(self._home.blobs, self._home.packs)
        sizes = ChainMap(dict[bytes, int](), moves.sizes)
        return FrameWays(moves, lambda place: self._is_good(place, sizes)), sizes

    def _is_good(self, place: ChunkPlace, sizes: Mapping[bytes, int]) -> bool:
        if place.pack not in self._confirmed:
            self._unfit |= unfit_packs(self._home, {place.pack: sizes[place.pack]})
            self._confirmed.add(place.pack)
        return place.pack not in self._unfit and self._bad_bases.isdisjoint(place.bases)

    def move(self, pack: bytes, into: Set[bytes]) -> None:
        """Write a move, as ``write_move`` does, into packs that were confirmed."""
        self._confirmed |= into
        write_move(self._home, pack, into)


def _sizes(table: ChunkTable) -> dict[bytes, int]:
    return dict(zip(table.pack_ids, table.pack_sizes, strict=True))
