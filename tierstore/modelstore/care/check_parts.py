"""What layouts need of each pack, sorted by pack on disk, so that a check fits into memory.

A layout is cut into the parts of its packs. Versions share packs and with them parts; each is kept
once, with the versions that have it. The file has no name, and is gone when the check ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import blake3
import msgspec

from tierstore.deferred import np
from tierstore.errors import Damaged, NotFound, OutOfSpace
from tierstore.format.keys import layout_key, pack_key
from tierstore.format.layout import missing_chunks, parse_layout
from tierstore.format.manifest import Manifest
from tierstore.format.table import ChunkPlace, ChunkTable, TableBody, TablePart
from tierstore.ids import DIGEST_BYTES, Digest
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.prepared import prepared

_SCHEMA = """
CREATE TABLE parts (
    id INTEGER PRIMARY KEY, pack BLOB NOT NULL, sum BLOB NOT NULL, body BLOB NOT NULL,
    UNIQUE (pack, sum)
);
CREATE TABLE versions (manifest BLOB NOT NULL, parts BLOB NOT NULL);
CREATE TABLE chunks (start INTEGER PRIMARY KEY);
"""
_MANY = 1 << 16
_RECENT = 1 << 16
"""Parts whose numbers are kept in memory: versions in a row share most of theirs."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one or several layouts need of a pack.

    Attributes:
        pack: The id of the pack.
        table: The places of these chunks, and of bases that lie elsewhere.
    """

    pack: bytes
    table: ChunkTable

    def places(self) -> Iterator[ChunkPlace]:
        """Yield the places of the chunks that lie in the pack."""
        return self.table.places_in(self.pack)


class NeededParts:
    """The parts of layouts by pack. For one thread; to be closed.

    Raises ``OutOfSpace`` from any method when its file cannot grow.
    """

    def __init__(self) -> None:
        with _on_disk():
            # without a name: SQLite keeps what is beyond its small cache in a file of its own
            self._db = sqlite3.connect("", isolation_level=None)
            self._db.execute("PRAGMA journal_mode = OFF")
            self._db.executescript(_SCHEMA)
            self._db.execute("BEGIN")
        self._new: list[int] = []
        self._recent: dict[tuple[bytes, bytes], int] = {}

    def close(self) -> None:
        """Give the disk's space back."""
        self._db.close()

    def add(self, digest: Digest, table: ChunkTable) -> None:
        """Take in the layout of a manifest; each manifest once."""
        with _on_disk():
            parts = np.array([self._number(part) for part in table.parts()], np.int64)
            row = digest.raw, parts.tobytes()
            self._db.execute("INSERT INTO versions VALUES (?, ?)", row)

    def _number(self, part: TablePart) -> int:
        """Return the number of a part, which is kept unless it is known."""
        row = part.pack, blake3.blake3(part.key()).digest(16)
        number = self._recent.get(row)
        if number is None:
            query = "SELECT id FROM parts WHERE pack = ? AND sum = ?"
            known = self._db.execute(query, row).fetchone()
            number = self._keep(row, part.body()) if known is None else int(known[0])
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            self._recent[row] = number
        return number

    def _keep(self, row: tuple[bytes, bytes], body: TableBody) -> int:
        # eight bytes of a digest tell chunks apart
        self._new += np.frombuffer(body.digests, "<i8")[:: DIGEST_BYTES // 8].tolist()
        if len(self._new) >= _MANY:
            self._count()
        insert = "INSERT INTO parts (pack, sum, body) VALUES (?, ?, ?)"
        number = self._db.execute(insert, (*row, msgspec.msgpack.encode(body))).lastrowid
        assert number is not None
        return number

    def _count(self) -> None:
        starts = sorted(set(self._new))
        self._db.executemany("INSERT OR IGNORE INTO chunks VALUES (?)", ((one,) for one in starts))
        self._new.clear()

    def chunks(self) -> int:
        """Return the number of distinct chunks."""
        with _on_disk():
            self._count()
            (count,) = self._db.execute("SELECT count(*) FROM chunks").fetchone()
        return int(count)

    def packs(self) -> list[bytes]:
        """Return the ids of all packs, in the order in which layouts first named them."""
        with _on_disk():
            found = self._db.execute("SELECT pack FROM parts GROUP BY pack ORDER BY min(id)")
            return [pack for (pack,) in found]

    def packs_of(self, manifests: Set[Digest]) -> list[bytes]:
        """Return the ids of the packs that the layouts of these manifests name, in any order."""
        with _on_disk():
            rows = self._db.execute("SELECT manifest, parts FROM versions")
            numbers = [
                number
                for manifest, parts in rows.fetchall()
                if Digest(manifest) in manifests
                for number in np.frombuffer(parts, np.int64).tolist()
            ]
            query = "SELECT pack FROM parts WHERE id = ?"
            return [*{self._db.execute(query, (one,)).fetchone()[0] for one in numbers}]

    def of(self, pack: bytes) -> list[Part]:
        """Return the parts of a pack, in the order in which layouts first had them."""
        with _on_disk():
            found = self._db.execute("SELECT body FROM parts WHERE pack = ? ORDER BY id", (pack,))
            bodies = [msgspec.msgpack.decode(body, type=prepared(TableBody)) for (body,) in found]
        name = f"what layouts need of pack {pack_key(pack)}"
        return [Part(pack, ChunkTable(body, name)) for body in bodies]

    def users(self, packs: Sequence[bytes]) -> list[Digest]:
        """Return the manifests whose layouts name any of these packs."""
        query = "SELECT id FROM parts WHERE pack = ?"
        if not packs:
            return []
        with _on_disk():
            every = [self._db.execute(query, (pack,)).fetchall() for pack in packs]
            wanted = np.array([number for found in every for (number,) in found], np.int64)
            return [
                Digest(manifest)
                for manifest, parts in self._db.execute("SELECT manifest, parts FROM versions")
                if np.isin(np.frombuffer(parts, np.int64), wanted).any()
            ]


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OutOfSpace(
            f"the check's temporary file cannot be written: {error}; set SQLITE_TMPDIR to a folder "
            "with more room"
        ) from error


def read_layout(home: Home, digest: Digest, manifest: Manifest) -> ChunkTable:
    """Return the layout of a manifest.

    Raises:
        NotFound: It is missing.
        Damaged, UnsupportedFormat: It cannot be read, or lacks chunks of the manifest.
    """
    key = layout_key(digest)
    try:
        data = home.blobs.get(key)
    except NotFound:
        raise NotFound("it is missing; 'tierstore layout rebuild --all' makes it anew") from None
    table = parse_layout(data, digest, f"layout {key}")
    if missing := missing_chunks(table, chunks_of(manifest)):
        raise Damaged(f"it has no place for {len(missing)} of the version's chunks")
    return table


def distinct(parts: Sequence[Part]) -> list[tuple[Part, list[ChunkPlace]]]:
    """Return for each part of one pack those places that no part before it has."""
    if len(parts) == 1:
        return [(parts[0], list(parts[0].places()))]
    seen = set[ChunkPlace]()
    found = []
    for part in parts:
        new = [place for place in part.places() if place not in seen]
        seen.update(new)
        found.append((part, new))
    return found
