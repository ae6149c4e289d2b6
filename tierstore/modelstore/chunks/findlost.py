"""Which chunks of manifests no reader finds, by layouts, moves and packs as they are now."""

from __future__ import annotations

from collections.abc import Iterable, MutableSet, Set
from typing import NamedTuple

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import layout_key, pack_key
from tierstore.format.layout import missing_chunks, parse_layout
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.chunks.frameways import FrameWays
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.home.home import Home, chunks_of


class NeededChunks(NamedTuple):
    """The chunks of a manifest.

    Attributes:
        own: Their digests.
        table: Its layout, which has places of all of them.
    """

    own: Set[bytes]
    table: ChunkTable


class LostIn(NamedTuple):
    """What of a manifest is lost.

    Attributes:
        table: Its layout.
        places: Where that places those of the manifest's own chunks that no reader finds.
    """

    table: ChunkTable
    places: list[ChunkPlace]


class LostChunks:
    """Looks for packs that layouts name, and follows chunks of those that are gone. For one thread.

    Args:
        home: The store's home.
        unfit: Ids of packs of which no frame can be read; those that are in no tier are added.
        known: Ids of packs that were looked for already.
        bad: Single frames that cannot be read.
    """

    def __init__(
        self,
        home: Home,
        unfit: MutableSet[bytes],
        known: Iterable[bytes] = (),
        bad: Set[ChunkPlace] = frozenset(),
    ) -> None:
        self._home, self._unfit, self._known = home, unfit, {*known}
        self._bad_packs = {place.pack for place in bad}
        moves = Moves(home.blobs, home.packs)
        self._ways = FrameWays(moves, lambda one: one.pack not in unfit and one not in bad)

    def of(self, digest: Digest) -> LostIn | None:
        """Return what of a manifest is lost; ``None`` if it or its layout cannot be read.

        What may lie in a tier that cannot be asked is not lost. Where the move is damaged that
        would lead to a chunk it is: readers do not find it.
        """
        needed = self.read(digest)
        return None if needed is None else self.find(needed)

    def read(self, digest: Digest) -> NeededChunks | None:
        """Return the chunks of a manifest; ``None`` if it or its layout cannot be read.

        Any thread may ask.
        """
        key = layout_key(digest)
        try:
            own = set(chunks_of(self._home.manifest(digest)))
            table = parse_layout(self._home.blobs.get(key), digest, key)
        except (Damaged, NotFound, UnsupportedFormat):
            return None
        return None if missing_chunks(table, own) else NeededChunks(own, table)

    def find(self, needed: NeededChunks) -> LostIn:
        """Return what is lost of the chunks of a manifest."""
        own, table = needed
        self._look_for({*table.pack_ids})
        places = [
            place
            for place in table.places_relying_on(self._unfit | self._bad_packs)
            # what was a base alone may be lost, where its deltas were stored anew since
            if place.digest in own and isinstance(self._ways.lost(place, table), NotFound | Damaged)
        ]
        return LostIn(table, places)

    def is_gone(self, digest: Digest) -> bool:
        """Return whether chunks of a manifest are in no tier, as far as moves can be read.

        What a damaged manifest, layout or move says nobody knows: it may be made anew.
        """
        found = self.of(digest)
        return found is not None and any(self._is_certain(one, found.table) for one in found.places)

    def _is_certain(self, place: ChunkPlace, table: ChunkTable) -> bool:
        try:
            return self._ways.end(place, table) is not None
        except (Damaged, UnsupportedFormat):
            return False

    def _look_for(self, packs: set[bytes]) -> None:
        new = packs - self._known
        self._known |= new
        for pack in new:
            try:
                self._home.packs.size(pack_key(pack))
            except NotFound:
                self._unfit.add(pack)
            except BackendError:
                continue  # it may be there
