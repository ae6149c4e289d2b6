"""What a manifest needs of the packs: those from which readers take its chunks (SPEC.md 8, 12).

Moves are followed only where a reader must: from packs that are gone, condemned, quarantined or in
archives alone, and from deltas whose base cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.reclaim.holdings import Holdings
from tierstore.modelstore.reclaim.layouts import Layouts
from tierstore.modelstore.reclaim.ways import Ways

Standing = Literal["good", "archived", "quarantined", "condemned", "gone"]


@dataclass(frozen=True, slots=True)
class Lost:
    """A chunk that no reader will find once what is condemned is deleted.

    Attributes:
        digest: The digest of the chunk.
        pack: The pack where its way ends, from which a move may lead on.
        bases: The bases that it lacks where it is; with these it would not be lost.
    """

    digest: bytes
    pack: bytes
    bases: tuple[Lost, ...] = ()


@dataclass(slots=True)
class Need:
    """What one manifest needs.

    Attributes:
        digest: The digest of the manifest.
        own: The packs that hold its chunks.
        bases: The packs that hold nothing but bases of its deltas.
        named: All packs that its layout names.
        lost: Its chunks that must be healed.
        is_laid_out: Whether there is a layout.
        moved: The packs that its layout names, with those of the bases there, by the pack to which
            moves lead from them; ``None`` if it names good packs alone, or some of it has no good
            place.
    """

    digest: Digest
    own: Set[bytes] = frozenset()
    bases: Set[bytes] = frozenset()
    named: Set[bytes] = frozenset()
    lost: tuple[Lost, ...] = ()
    is_laid_out: bool = True
    moved: Mapping[bytes, Set[bytes]] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether readers find all of it, whatever is deleted that is condemned."""
        return self.is_laid_out and not self.lost


@dataclass(slots=True)
class _Way:
    """Where a chunk is found: the packs and the frames that this needs, or what is lost.

    ``end`` is the frame that readers come to, if its pack is good.
    """

    packs: set[bytes] = field(default_factory=set)
    frames: list[ChunkPlace] = field(default_factory=list)
    lost: Lost | None = None
    end: ChunkPlace | None = None


class Needs:
    """The needs of manifests at the time of one mark.

    Args:
        layouts: The layouts of the store.
        ways: The moves of the store.
        holdings: Which packs are there.
        condemned: The ids of all condemned packs.
        quarantined: The ids of all packs that are marked as damaged.
    """

    def __init__(
        self,
        layouts: Layouts,
        ways: Ways,
        holdings: Holdings,
        condemned: Set[bytes],
        quarantined: Set[bytes],
    ) -> None:
        self._layouts, self._ways, self._holdings = layouts, ways, holdings
        self._condemned, self._quarantined = condemned, quarantined
        self._known: dict[Digest, Need] = {}
        self._standings: dict[bytes, Standing] = {}

    def of(self, digest: Digest) -> Need:
        """Return what a manifest needs itself, without what it lies on.

        Raises:
            Damaged, NotFound: Its layout or the manifest cannot be read.
        """
        if digest not in self._known:
            self._known[digest] = self._find(digest)
        return self._known[digest]

    def _find(self, digest: Digest) -> Need:
        named = self._layouts.named(digest)
        if named is None:
            return Need(digest, is_laid_out=False)
        every = named.own | named.bases
        if all(self.standing(pack) == "good" for pack in every):
            return Need(digest, named.own, named.bases, every)
        table = self._layouts.table(digest)
        if table is None:
            return Need(digest, is_laid_out=False)
        there = {p for p in table.pack_ids if self.standing(p) in ("good", "archived")}
        packs, below, lost = named.own & (there - self._unfit(table)), set[bytes](), []
        chunks = set(self._layouts.chunks(digest))
        moved: dict[bytes, set[bytes]] | None = {}
        for place, way in self._followed(table):
            if moved is not None and way.end is not None and way.end.pack != place.pack:
                under = table.packs_of(place.bases) if place.bases else set[bytes]()
                moved.setdefault(way.end.pack, set()).update({place.pack} | under)
            if place.digest not in chunks:  # a base: what needs it may be found without it by now
                below |= way.packs
                continue
            packs |= way.packs
            if way.end is None:
                moved = None
            if way.lost is not None:
                lost.append(way.lost)
        bases = (there & named.bases | below) - packs
        return Need(digest, packs | (there - bases), bases, every, tuple(lost), moved=moved)

    def _unfit(self, table: ChunkTable) -> set[bytes]:
        return {pack for pack in table.pack_ids if self.standing(pack) != "good"}

    def _followed(self, table: ChunkTable) -> Iterator[tuple[ChunkPlace, _Way]]:
        """Yield the ways of all frames but those of which the layout alone says enough."""
        for place in table.places_relying_on(self._unfit(table)):
            yield place, self._way(place, table, frozenset())

    def frames(self, digest: Digest) -> Iterator[ChunkTable | list[ChunkPlace]]:
        """Yield the places of all frames that a manifest needs, and perhaps some more.

        They are those of its layout, and where packs of that cannot be relied on those to which
        readers come by moves.

        Raises:
            Damaged, NotFound: Its layout or the manifest cannot be read.
        """
        table = self._layouts.table(digest)
        if table is None:
            return
        yield table
        for _, way in self._followed(table):
            yield way.frames

    def moved(self, digest: Digest) -> tuple[ChunkTable, dict[bytes, ChunkPlace]] | None:
        """Return the layout of a manifest as it is now, and where else readers find what it places.

        Returns:
            The layout, and by digest the places of chunks and bases to which moves lead; ``None``
            if there is no layout, or some of it has no good place.

        Raises:
            Damaged, NotFound: The layout or the manifest cannot be read.
        """
        table = self._layouts.table(digest)
        if table is None:
            return None
        chunks, places = set(self._layouts.chunks(digest)), dict[bytes, ChunkPlace]()
        for place, way in self._followed(table):
            if place.digest not in chunks:
                continue
            if way.end is None:
                return None
            last = {one.digest: one for one in way.frames}
            places |= {one: last[one] for one in (place.digest, *way.end.bases)}
        return table, places

    def standing(self, pack: bytes) -> Standing:
        """Return whether a pack can be relied on; one that may be in a tier that is down can."""
        if pack not in self._standings:
            self._standings[pack] = self._look_at(pack)
        return self._standings[pack]

    def _look_at(self, pack: bytes) -> Standing:
        if pack in self._condemned:
            return "condemned"
        if not self._holdings.is_there(pack):
            return "gone"
        if pack in self._quarantined:
            return "quarantined"
        return "archived" if self._holdings.is_archived(pack) else "good"

    def _way(self, place: ChunkPlace, table: ChunkTable, behind: frozenset[bytes]) -> _Way:
        """Follow a frame as readers do.

        Args:
            place: Where the layout places it.
            table: The layout, which places bases.
            behind: The digests of chunks whose bases are being followed.
        """
        way, bad, visited = _Way(), set[bytes](), list[ChunkPlace]()
        seen, broken, found = [place.pack], tuple[Lost, ...](), False
        while True:
            standing = self.standing(place.pack)
            if standing in ("good", "archived", "quarantined"):
                below = [self._base(one, place, table, seen, behind) for one in place.bases]
                packs = {place.pack}.union(*(one.packs for one in below))
                visited += [place, *(frame for one in below for frame in one.frames)]
                lost = tuple(one.lost for one in below if one.lost is not None)
                if standing == "quarantined":
                    bad |= packs
                elif lost:
                    broken = broken or lost
                else:
                    way.packs |= packs
                    way.frames = visited
                    found = True
                if found and standing == "good":
                    if not lost and all(one.end is not None for one in below):
                        way.end = place
                    return way
            targets = self._ways.targets(place.pack)
            target = targets.find(place.digest)
            if target is None or target.pack in seen:
                break
            seen.append(target.pack)
            place = target
        if not found:
            way.frames = visited
            self._end(way, place, seen, bad, broken)
        return way

    def _end(
        self,
        way: _Way,
        place: ChunkPlace,
        seen: list[bytes],
        bad: set[bytes],
        broken: tuple[Lost, ...],
    ) -> None:
        """Keep what may still serve where the way of a frame ends without a good one."""
        hidden = self._ways.targets(place.pack).hidden
        if hidden:  # it may be there: until that is known, nothing on the way is deleted
            way.packs |= hidden | bad | {pack for pack in seen if self._holdings.is_there(pack)}
        elif bad:  # damaged, but all that there is
            way.packs |= bad
        else:
            way.lost = Lost(place.digest, place.pack, broken)

    def _base(
        self,
        base: bytes,
        place: ChunkPlace,
        table: ChunkTable,
        seen: list[bytes],
        behind: frozenset[bytes],
    ) -> _Way:
        """Follow the base of a delta: by the layout, or else by the moves that led here."""
        at = table.find(base)
        for pack in reversed(seen):
            if at is None:
                moved = self._ways.targets(pack).find(base)
                at = moved if moved is not None and not moved.bases else None
        if at is None or base in behind:
            return _Way(lost=Lost(base, place.pack))
        return self._way(at, table, behind | {place.digest})
