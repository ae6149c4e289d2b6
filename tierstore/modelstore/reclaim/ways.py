"""The ways of chunks: from where a layout places them, by moves, to where readers find them.

They are those of ``chunks.moves.Moves``, but of a whole store: what never changes is read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tierstore.errors import BackendError, Damaged, NotFound
from tierstore.format.keys import MOVES, move_key, moved_pack, pack_key
from tierstore.format.layout import parse_move
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.holdings import Holdings


@dataclass(slots=True)
class Targets:
    """Where the moves of one pack lead.

    Attributes:
        places: The place of each chunk, by digest.
        hidden: Packs that these moves name and that cannot be looked into now: they are in archives
            alone, or in tiers that cannot be asked.
    """

    places: dict[bytes, ChunkPlace] = field(default_factory=dict)
    hidden: set[bytes] = field(default_factory=set)


class Ways:
    """The moves of a store. Moves and footers never change, and each is read once.

    Args:
        home: The store's home.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._moves: dict[str, list[bytes]] = {}
        self._footers: dict[bytes, Sequence[ChunkPlace]] = {}
        self._listed: set[str] = set()
        self._targets: dict[bytes, Targets] = {}
        self._holdings: Holdings | None = None

    def look(self, holdings: Holdings) -> None:
        """List the moves that are there now."""
        self._holdings = holdings
        self._listed = {i.key for i in self._home.blobs.list(MOVES) if moved_pack(i.key)}
        self._targets = {}

    def targets(self, pack: bytes) -> Targets:
        """Return where the moves of a pack lead.

        Raises:
            Damaged: A move is damaged.
        """
        if pack not in self._targets:
            self._targets[pack] = self._follow(pack, {})
        return self._targets[pack]

    def _follow(self, pack: bytes, known: dict[bytes, Mapping[bytes, ChunkPlace]]) -> Targets:
        found = Targets()
        known[pack] = {}
        number = 1
        while (key := move_key(pack, number)) in self._listed:
            number += 1
            for into in self._into(key, pack):
                if into not in known:
                    places = self._looked_into(into)
                    if places is None:
                        if self._there.is_there(into):
                            found.hidden.add(into)
                        behind = self._follow(into, known)
                        known[into] = behind.places
                        found.hidden |= behind.hidden
                    else:
                        known[into] = {place.digest: place for place in places}
                found.places.update(known[into])
        return found

    def named(self, pack: bytes) -> set[bytes]:
        """Return the packs that the moves of a pack name; ``Damaged`` if one is."""
        found, number = set[bytes](), 1
        while (key := move_key(pack, number)) in self._listed:
            number += 1
            found.update(self._into(key, pack))
        return found

    @property
    def _there(self) -> Holdings:
        assert self._holdings is not None  # ``look`` comes first
        return self._holdings

    def _into(self, key: str, pack: bytes) -> list[bytes]:
        if key not in self._moves:
            self._moves[key] = parse_move(self._home.blobs.get(key), pack, key)
        return self._moves[key]

    def _looked_into(self, pack: bytes) -> Sequence[ChunkPlace] | None:
        """Return what is in a pack; ``None`` when a reader could not look into it either."""
        if not self._there.is_readable(pack):
            return None
        try:
            return self.footer(pack)
        except NotFound:
            self._there.distrust(pack)
            return None
        except (Damaged, BackendError):
            return None

    def footer(self, pack: bytes) -> Sequence[ChunkPlace]:
        """Return the places of the frames in a pack that is there; ``Damaged`` as reading it."""
        if pack not in self._footers:
            key = pack_key(pack)
            size = self._home.packs.info(key).size
            self._footers[pack] = read_footer(self._home.packs, key, size)[1]
        return self._footers[pack]
