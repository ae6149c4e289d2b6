"""Reading packs: frames by place, and where frames went when a pack was rewritten."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.errors import Damaged, NotFound
from tierstore.format.checks import damaged
from tierstore.format.keys import move_key, pack_key
from tierstore.format.layout import Move
from tierstore.format.sealed import Kind, unseal_body
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.home.footers import read_footer
from tierstore.tiers.durable.tiers import DurableTiers

_log = logging.getLogger("tierstore.packs")


@dataclass(frozen=True, slots=True)
class BadCopy:
    """A copy of a frame that was damaged while another one was good.

    Attributes:
        place: of the frame.
        tiers: names of the tiers whose copy is bad.
        why: what is wrong with it.
    """

    place: ChunkPlace
    tiers: tuple[str, ...]
    why: str


class Packs:
    """Reads byte ranges of packs from the tiers that have them, following moves. Thread-safe.

    Args:
        home: where the moves lie.
        tiers: where the packs lie.
    """

    def __init__(self, home: BlobStore, tiers: DurableTiers) -> None:
        self._home, self._tiers = home, tiers
        self._lock = threading.Lock()
        self._moved: dict[bytes, dict[bytes, ChunkPlace]] = {}
        self.requests = 0
        self.bytes_by_tier: dict[str, int] = {}
        self.bad_copies: list[BadCopy] = []

    @property
    def bytes_fetched(self) -> int:
        """Bytes read from all tiers."""
        return sum(self.bytes_by_tier.values())

    @property
    def local(self) -> bool:
        """Whether a read costs no network."""
        return self._tiers.local

    def current(self, place: ChunkPlace) -> ChunkPlace:
        """Where the frame is now, as far as this reader knows."""
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
        """Learn where the frames of a pack went that is gone; ``NotFound`` when nobody says."""
        self._follow(pack, frozenset())

    def _follow(self, pack: bytes, behind: frozenset[bytes]) -> dict[bytes, ChunkPlace]:
        key = move_key(pack)
        try:
            data = self._home.get(key)
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

    def read(
        self,
        pack: bytes,
        parts: Sequence[tuple[int, memoryview]],
        avoid: frozenset[str] = frozenset(),
    ) -> str:
        """Fill every buffer from its offset in the pack; the name of the tier that gave it.

        Raises:
            NotFound: the pack is gone, or only in a tier that is to ``avoid``.
        """
        key = pack_key(pack)
        tier = self._tiers.read([RangeRead(key, start, out) for start, out in parts], avoid)
        nbytes = sum(len(out) for _, out in parts)
        with self._lock:
            self.requests += len(parts)
            self.bytes_by_tier[tier] = self.bytes_by_tier.get(tier, 0) + nbytes
        return tier

    def read_frame(
        self, place: ChunkPlace, start: int, stop: int, avoid: frozenset[str] = frozenset()
    ) -> tuple[bytearray, str]:
        """Bytes ``[start, stop)`` of one frame, wherever it is now, and the tier's name."""
        place = self.current(place)
        out = bytearray(stop - start)
        try:
            tier = self.read(place.pack, [(place.offset + start, memoryview(out))], avoid)
        except NotFound:
            self.follow(place.pack)
            return self.read_frame(place, start, stop, avoid)
        return out, tier

    def note_bad_copy(self, place: ChunkPlace, tiers: Iterable[str], error: Damaged) -> None:
        """Report that a frame had to be read from another tier because its copy was damaged."""
        bad = BadCopy(place, tuple(sorted(tiers)), str(error))
        _log.error(
            "the copy of pack %s in tier %s is damaged, another one was read: %s",
            place.pack.hex(), ", ".join(bad.tiers), error,
        )  # fmt: skip
        with self._lock:
            self.bad_copies.append(bad)
