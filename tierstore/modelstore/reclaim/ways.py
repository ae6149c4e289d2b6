"""The ways of chunks: from where a layout places them, by moves, to where readers find them.

They are those of ``chunks.moves.Moves``, but of a whole store: what never changes is read once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tierstore.errors import BackendError, Damaged, NotFound
from tierstore.format.keys import MOVES, move_key, moved_pack, pack_key
from tierstore.format.layout import parse_move
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.home.footers import read_chunks
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.holdings import Holdings


@dataclass(slots=True)
class Targets:
    """Where the moves of one pack lead.

    Attributes:
        tables: The chunks in each pack, in the order of the moves.
        hidden: Packs that these moves name and that cannot be looked into now: they are in archives
            alone, or in tiers that cannot be asked.
    """

    tables: list[ChunkTable] = field(default_factory=list)
    hidden: set[bytes] = field(default_factory=set)

    def find(self, digest: bytes) -> ChunkPlace | None:
        """Return the place of a chunk, where the last pack that has it does; ``None`` if none."""
        for table in reversed(self.tables):
            place = table.find(digest)
            if place is not None:
                return place
        return None


class Ways:
    """The moves of a store.

    Moves never change, and each is read once. So are the footers of packs to which they lead, which
    are forgotten once these packs are gone.

    Args:
        home: The store's home.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._moves: dict[str, list[bytes]] = {}
        self._footers: dict[bytes, ChunkTable] = {}
        self._listed: set[str] = set()
        self._targets: dict[bytes, Targets] = {}
        self._holdings: Holdings | None = None

    def look(self, holdings: Holdings) -> None:
        """List the moves that are there now."""
        self._holdings = holdings
        self._listed = {i.key for i in self._home.blobs.list(MOVES) if moved_pack(i.key)}
        self._targets = {}
        self._footers = {
            pack: table for pack, table in self._footers.items() if holdings.bytes_of(pack)
        }

    def targets(self, pack: bytes) -> Targets:
        """Return where the moves of a pack lead.

        Raises:
            Damaged: A move is damaged.
        """
        if pack not in self._targets:
            self._targets[pack] = self._follow(pack, {})
        return self._targets[pack]

    def _follow(self, pack: bytes, known: dict[bytes, list[ChunkTable]]) -> Targets:
        """Follow the moves of a pack, and those of packs that a reader could not look into either.

        A pack that is there and cannot be looked into now is hidden, as it may have the chunk, and
        is kept for that. Its moves are followed all the same, as readers follow them: what is found
        behind it serves whoever comes before it can be looked into again.

        Args:
            pack: The id of the pack.
            known: What is in the packs that were looked at already, or is found behind them.
        """
        found = Targets()
        known[pack] = []
        number = 1
        while (key := move_key(pack, number)) in self._listed:
            number += 1
            for into in self._into(key, pack):
                if into not in known:
                    table = self._looked_into(into)
                    if table is None:
                        if self._there.is_there(into):
                            found.hidden.add(into)
                        behind = self._follow(into, known)
                        known[into] = behind.tables
                        found.hidden |= behind.hidden
                    else:
                        known[into] = [table]
                found.tables += known[into]
        found.tables = _each_once(found.tables)
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

    def _looked_into(self, pack: bytes) -> ChunkTable | None:
        """Return what is in a pack; ``None`` when a reader could not look into it either."""
        if not self._there.is_readable(pack):
            return None
        try:
            if pack not in self._footers:
                self._footers[pack] = self.footer(pack)
            return self._footers[pack]
        except NotFound:
            self._there.distrust(pack)
            return None
        except (Damaged, BackendError):
            return None

    def footer(self, pack: bytes) -> ChunkTable:
        """Read which chunks a pack has; ``Damaged`` and ``NotFound`` as reading it."""
        key = pack_key(pack)
        return read_chunks(self._home.packs, key, self._home.packs.info(key).size)


def _each_once(tables: list[ChunkTable]) -> list[ChunkTable]:
    """Return tables without repeats, each at its last place: the last that has a chunk counts.

    Several ways may lead to a pack, and through chains of packs that are gone their number doubles
    with each that forks.
    """
    last = {id(table): at for at, table in enumerate(tables)}
    return [table for at, table in enumerate(tables) if last[id(table)] == at]
