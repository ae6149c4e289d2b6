"""Follows frames by moves as readers do, by what footers say, without reading any (SPEC.md 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.moves import Moves


class FrameWays:
    """Finds out where the ways of frames end that no reader finds. For one thread.

    A delta is found where all of its bases are: where the layout places them, or else by the moves
    that led to the delta or those of its own pack.

    Args:
        moves: Those of each pack are read once.
        is_fit: Returns whether a frame can be read where it is, its bases aside.
    """

    def __init__(self, moves: Moves, is_fit: Callable[[ChunkPlace], bool]) -> None:
        self._moves, self._is_fit = moves, is_fit
        self._known: set[bytes] = set()

    def end(self, place: ChunkPlace, table: ChunkTable | None) -> bytes | None:
        """Return the pack where the way of a frame ends; ``None`` if a reader finds the frame.

        Args:
            place: Where the layout places it.
            table: The layout; ``None`` for any: a base of which moves say nothing is not found.
        """
        return self._end(place, table, frozenset())

    def end_behind(self, pack: bytes, digest: bytes, table: ChunkTable | None) -> bytes | None:
        """Return what ``end`` does of a frame that cannot be read in this pack."""
        return self._behind(pack, digest, table, frozenset())

    def leads_to_delta(self, pack: bytes, digest: bytes) -> bool:
        """Return whether a way leads to a delta from a pack, so that it depends on the layout."""
        return any(place.bases for place in self._targets(pack, digest))

    def lost(
        self, place: ChunkPlace, table: ChunkTable
    ) -> NotFound | Damaged | BackendError | None:
        """Return why no reader finds a frame; ``None`` if one does.

        It is a ``BackendError`` if the frame may be there, in what cannot be looked into now.
        """
        try:
            end = self.end(place, table)
        except (Damaged, UnsupportedFormat) as error:  # a move: readers end there, too
            return Damaged(str(error))
        if end is None:
            return None
        at = next((one for one in self._moves.way(place) if one.pack == end), place)
        if end != place.pack and at.bases and not self._moves.unread(place.pack):
            return Damaged(
                f"chunk b3:{place.digest.hex()} is lost: pack {place.pack.hex()} was moved, and in "
                f"pack {end.hex()} it is a delta without a base that can be read"
            )
        return self._moves.lost(place)

    def _end(
        self, place: ChunkPlace, table: ChunkTable | None, behind: frozenset[bytes]
    ) -> bytes | None:
        if self._is_found(place, [place.pack], table, behind):
            return None
        return self._behind(place.pack, place.digest, table, behind)

    def _behind(
        self, pack: bytes, digest: bytes, table: ChunkTable | None, behind: frozenset[bytes]
    ) -> bytes | None:
        way = [pack]
        for target in self._targets(pack, digest):
            way.append(target.pack)
            if self._is_found(target, way, table, behind):
                return None
        return way[-1]

    def _targets(self, pack: bytes, digest: bytes) -> Iterator[ChunkPlace]:
        """Yield where moves lead from a pack, one after the other."""
        seen = {pack}
        while (target := self._target(pack, digest)) is not None and target.pack not in seen:
            pack = target.pack
            seen.add(pack)
            yield target

    def _target(self, pack: bytes, digest: bytes) -> ChunkPlace | None:
        if pack not in self._known:
            self._moves.learn(pack)
            self._known.add(pack)
        return self._moves.target(pack, digest)

    def _is_found(
        self,
        place: ChunkPlace,
        way: Sequence[bytes],
        table: ChunkTable | None,
        behind: frozenset[bytes],
    ) -> bool:
        below = behind | {place.digest}
        return self._is_fit(place) and all(
            self._has_base(base, way, table, below) for base in place.bases
        )

    def _has_base(
        self,
        base: bytes,
        way: Sequence[bytes],
        table: ChunkTable | None,
        behind: frozenset[bytes],
    ) -> bool:
        at = None if table is None else table.find(base)
        if at is None:
            moved = (self._target(pack, base) for pack in reversed(way))
            at = next((one for one in moved if one is not None and not one.bases), None)
        return (
            at is not None
            and not at.bases
            and base not in behind
            and self._end(at, table, behind) is None
        )
