"""Follows frames to their new packs when a pack was rewritten."""

from __future__ import annotations

import threading

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound
from tierstore.forks import begin
from tierstore.format.checks import damaged
from tierstore.format.keys import move_key, pack_key
from tierstore.format.layout import Move
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.home.footers import read_footer
from tierstore.tiers.durable.tiers import DurableTiers


class Moves:
    """The moves of packs that are gone, each read when it is first needed. Thread-safe.

    Args:
        home_blobs: The blobs of the store's home, where moves lie.
        tiers: The durable tiers, where packs lie.
    """

    def __init__(self, home_blobs: BlobStore, tiers: DurableTiers) -> None:
        self._home_blobs, self._tiers = home_blobs, tiers
        self._moved: dict[bytes, dict[bytes, ChunkPlace]] = {}
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def current(self, place: ChunkPlace) -> ChunkPlace:
        """Return the place of the frame after the moves that are known so far."""
        moved = self._moved.get(place.pack)
        if moved is None:
            return place
        if place.digest not in moved:
            raise Damaged(
                f"chunk b3:{place.digest.hex()} is lost: pack {place.pack.hex()} was rewritten "
                "without it; run 'tierstore check' and save the model again from its source"
            )
        return self.current(moved[place.digest])

    def follow(self, pack: bytes) -> None:
        """Read where the frames of a missing pack went; ``NotFound`` when no move is recorded."""
        self._follow(pack, frozenset())

    def _follow(self, pack: bytes, behind: frozenset[bytes]) -> dict[bytes, ChunkPlace]:
        key = move_key(pack)
        try:
            data = self._home_blobs.get(key)
        except NotFound:
            raise NotFound(
                f"pack {pack.hex()} is missing from {self._tiers.url}; run 'tierstore check' to "
                "see which versions need it, and restore it from a copy"
            ) from None
        move = unseal_body(Kind.MOVE, data, Move, key)
        places: dict[bytes, ChunkPlace] = {}
        for into in map(bytes.fromhex, move.into):
            target = pack_key(into)
            try:
                _, found = read_footer(self._tiers, target, self._tiers.info(target).size)
            except NotFound:  # moved on once more
                if into in behind or into == pack:
                    damaged(key, "the moves of its packs go round in a circle")
                places.update(self._follow(into, behind | {pack}))
            else:
                places.update((place.digest, place) for place in found)
        with self._lock:
            self._moved[pack] = places
        return places
