"""Follows frames to other packs, where they cannot be read in their own (format/SPEC.md 8)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeAlias

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.forks import begin
from tierstore.format.keys import move_key, pack_key
from tierstore.format.layout import parse_move
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.home.footers import read_footer
from tierstore.tiers.durable.tiers import DurableTiers

_log = logging.getLogger("tierstore.packs")

_Known: TypeAlias = dict[bytes, Collection[ChunkPlace]]
"""Places to which packs lead, by pack id; of those that are being looked into, none yet."""


class Moves:
    """The moves of packs whose frames cannot be read, read when first needed. Thread-safe.

    Args:
        home_blobs: The blobs of the store's home, where moves lie.
        tiers: The durable tiers, where packs lie.
        table: The layout that is being read, and that what ``look_again`` returns stands in for.
        look_again: Returns the layout as it is now; asked where moves lead no further, as it may
            have been written anew since it was read, and the packs that it named deleted.
    """

    def __init__(
        self,
        home_blobs: BlobStore,
        tiers: DurableTiers,
        table: ChunkTable | None = None,
        look_again: Callable[[], ChunkTable] | None = None,
    ) -> None:
        self._home_blobs, self._tiers = home_blobs, tiers
        self._table, self._look_again = table, look_again
        self._newer: ChunkTable | None = None
        self._moved: dict[bytes, dict[bytes, ChunkPlace]] = {}
        self._below: dict[bytes, dict[bytes, ChunkPlace]] = {}
        """Where the moves of packs lead that can be read: to the bases of deltas in them."""
        self._numbers: dict[bytes, int] = {}
        self._unread: dict[bytes, dict[bytes, BackendError]] = {}
        """Why packs that the moves of a pack name could not be looked into, by both their ids."""
        self.sizes: dict[bytes, int] = {}
        """Bytes of the packs that moves led to."""
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    @property
    def any_known(self) -> bool:
        """Whether any pack could not be read so far."""
        return bool(self._moved)

    def way(self, place: ChunkPlace) -> list[ChunkPlace]:
        """Return a frame's place and, by the moves that are known so far, those that follow."""
        way = [place]
        seen = {place.pack}
        while (target := self.target(place.pack, place.digest)) and target.pack not in seen:
            place = target
            seen.add(place.pack)
            way.append(place)
        return way

    def current(self, place: ChunkPlace) -> ChunkPlace:
        """Return the place of a frame after the moves that are known so far."""
        return self.way(place)[-1] if self._moved else place

    def target(self, pack: bytes, digest: bytes) -> ChunkPlace | None:
        """Return where the moves of one pack lead for a chunk, as far as they are known.

        Where they do not, it is where the layout as it is now has what the old one had there.
        """
        found = self._moved.get(pack, {}).get(digest)
        if found is None and self._newer is not None and pack in self._moved:
            found = self._in_newer(self._newer, pack, digest)
        return found

    def _in_newer(self, newer: ChunkTable, pack: bytes, digest: bytes) -> ChunkPlace | None:
        if self._table is None:
            return None
        old, found = self._table.find(digest), newer.find(digest)
        if old is None or old.pack != pack or found is None or found.pack == pack:
            return None
        # a reader looks for bases in the layout that it has
        return found if all(base in self._table.digests for base in found.bases) else None

    def find(self, digest: bytes) -> ChunkPlace | None:
        """Return where a chunk lies standalone that is a base of a delta to which a move led.

        It is where any move leads that is known so far, or else those of packs with such deltas.
        """
        known = list(self._moved.values())
        found = _standalone(known, digest)
        if found is None:
            deltas = {one.pack for places in known for one in places.values() if one.bases}
            for pack in deltas - self._moved.keys() - self._below.keys():
                self._below[pack] = self._read(pack, {}, {})[0]
            found = _standalone(list(self._below.values()), digest)
        return found

    def follow(self, place: ChunkPlace) -> bool:
        """Look where else a frame lies, now that it could not be read at ``place``.

        Returns:
            Whether ``current`` leads on from there.
        """
        if self.current(place) == place:
            self.learn(place.pack)
        if self.current(place) == place and self._look_again is not None:
            try:
                self._newer = self._look_again()
            except (NotFound, Damaged, UnsupportedFormat) as error:
                _log.warning(
                    "the layout around b3:%s is not read again: %s", place.digest.hex(), error
                )
        return self.current(place) != place

    def learn(self, pack: bytes) -> int:
        """Read the moves of a pack from home; return the number of the next one to be written."""
        unread: dict[bytes, BackendError] = {}
        moved, number = self._read(pack, {}, unread)
        with self._lock:
            self._moved[pack], self._numbers[pack], self._unread[pack] = moved, number, unread
        return number

    def unread(self, pack: bytes) -> list[bytes]:
        """Return the packs that the moves of a pack name, and that could not be looked into."""
        return list(self._unread.get(pack, ()))

    def lost(self, place: ChunkPlace) -> NotFound | Damaged | BackendError:
        """Return what to raise for a frame whose pack is gone, and that no move leads to."""
        pack = place.pack
        for error in self._unread.get(pack, {}).values():
            return type(error)(str(error))  # it may be there
        if self._numbers.get(pack, 1) == 1:
            return NotFound(
                f"pack {pack.hex()} is missing from {self._tiers.url}; run 'tierstore repair', "
                "which finds what is left of it, then save the content again or restore the pack"
            )
        return Damaged(
            f"chunk b3:{place.digest.hex()} is lost: pack {pack.hex()} was rewritten without it; "
            "run 'tierstore repair', then save the model again from its source"
        )

    def _read(
        self, pack: bytes, known: _Known, unread: dict[bytes, BackendError]
    ) -> tuple[dict[bytes, ChunkPlace], int]:
        known[pack] = ()  # it could not be read: that is how we came here
        places: dict[bytes, ChunkPlace] = {}
        number = 1
        while True:
            key = move_key(pack, number)
            try:
                leads_to = parse_move(self._home_blobs.get(key), pack, key)
            except NotFound:
                return places, number
            number += 1
            for into in leads_to:
                if into not in known:  # many ways may lead to a pack: it is looked into once
                    known[into] = self._places_in(into, key, known, unread)
                places.update((place.digest, place) for place in known[into])

    def _places_in(
        self, pack: bytes, move: str, known: _Known, unread: dict[bytes, BackendError]
    ) -> Collection[ChunkPlace]:
        """Return the places of the frames of a pack that a move names, or of where they went."""
        key = pack_key(pack)
        try:
            self.sizes[pack] = self._tiers.size(key)
            return read_footer(self._tiers, key, self.sizes[pack])[1]
        except NotFound:
            pass
        except Damaged as error:
            _log.warning("%s names a damaged pack: %s", move, error)
        except BackendError as error:  # a copy: its traceback would hold the buffers of the read
            unread[pack] = type(error)(str(error))
        return self._read(pack, known, unread)[0].values()


def _standalone(every: Iterable[Mapping[bytes, ChunkPlace]], digest: bytes) -> ChunkPlace | None:
    found = (places.get(digest) for places in every)
    return next((one for one in found if one is not None and not one.bases), None)
