"""The dedup index: which chunks the store has, cached in a local SQLite file.

Home holds immutable index segments; this cache holds their rows. It is only ever a hint: a writer
confirms what it takes from it before it publishes. The file can be deleted at any moment, and a
damaged one is replaced. SQLite has no checksums of its own, so every row carries one: a wrong place
would be published in a layout. When the file cannot be used, the cache is kept in memory.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import struct
import threading
import uuid
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from pathlib import Path

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound, TierstoreError, UnsupportedFormat
from tierstore.forks import begin, leave
from tierstore.format.checks import digest_of, xxh3
from tierstore.format.keys import INDEX
from tierstore.format.layout import seal_segment
from tierstore.format.segments import parse_any_segment
from tierstore.format.table import ChunkPlace
from tierstore.ids import split_digests
from tierstore.modelstore.home.cachefile import open_cache, remove_cache
from tierstore.modelstore.home.condemned import CondemnedPacks

_log = logging.getLogger("tierstore.index")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS segments (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS condemned (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS packs (id BLOB PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks (
    digest BLOB PRIMARY KEY, pack BLOB NOT NULL, place_and_proof BLOB NOT NULL,
    bases BLOB NOT NULL, sum BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS place (url TEXT NOT NULL);
"""
_LOOKS = ("SELECT count(*) FROM segments", "SELECT place_and_proof FROM chunks LIMIT 1")
"""A cache from before there were proofs lacks that column, and is replaced."""
_ADD = """
INSERT INTO chunks VALUES (?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET
    pack = excluded.pack, place_and_proof = excluded.place_and_proof, bases = excluded.bases,
    sum = excluded.sum
WHERE excluded.bases = x'' OR chunks.bases != x'';
"""
"""A newer place replaces an older one, but no delta replaces a standalone frame: that may be a
base.
"""
_ADD_UNFIT = "INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?)"
"""A place in a pack that is not relied on replaces none: segments are read in any order."""
_PLACE = struct.Struct("<4IHB")
_IS_OURS = "INSERT INTO place SELECT ? WHERE NOT EXISTS (SELECT 1 FROM place)"
"""The first place that uses a cache file owns it."""
_ROUNDS = 3
_REPLACED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""Errors that a new file cures: damage, or tables of another version of this module."""


def write_segment(
    home_blobs: BlobStore, places: Sequence[ChunkPlace], sizes: Mapping[bytes, int]
) -> tuple[str, int] | None:
    """Tell later saves of chunks that were stored, by a new index segment.

    Args:
        home_blobs: The store's home.
        places: Where the chunks lie.
        sizes: The bytes of packs by id; those of other packs than of ``places`` are not written.

    Returns:
        The key of the segment and its bytes; ``None`` if it was not written, which is only waste.
    """
    used = {place.pack: sizes[place.pack] for place in places}
    key, data = INDEX + uuid.uuid4().hex, seal_segment(places, used)
    try:
        home_blobs.put(key, data)
    except TierstoreError as error:
        _log.warning("an index segment was not written, so duplicates may be missed: %s", error)
        return None
    return key, len(data)


class ChunkIndex:
    """Finds the place of a chunk by its digest.

    Args:
        home_blobs: The store's home, where the segments lie.
        path: The cache file; ``None`` keeps the cache in memory.
    """

    def __init__(self, home_blobs: BlobStore, path: Path | None) -> None:
        self._home_blobs = home_blobs
        self._path = path
        self._db: sqlite3.Connection | None = None
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.RLock()
        if self._db is not None:  # closing it here could remove its log, which the parent needs
            leave(self._db)
            self._db = None

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = self._open()
        return self._db

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            try:
                return self._own(open_cache(self._path, _SCHEMA, *_LOOKS))
            except OSError as error:
                _log.warning("the index cache is kept in memory: %s", error)
                self._path = None
        return open_cache(None, _SCHEMA)

    def _own(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """Return a cache file, or another one where that is of a copy of this store.

        A plain copy of all objects has the store's id, and lacks packs that were written since.
        """
        url = self._home_blobs.url
        try:
            db.execute(_IS_OURS, (url,))
            is_ours = db.execute("SELECT url FROM place").fetchone() == (url,)
        except BaseException:
            db.close()
            raise
        if is_ours or self._path is None:
            return db
        db.close()
        own = self._path.with_name(f"index-{digest_of(url.encode()).hex[:16]}.sqlite")
        if own == self._path:  # it says that it is another's all the same
            raise sqlite3.DatabaseError(f"{own} is of another place")
        self._path = own
        return self._own(open_cache(own, _SCHEMA, *_LOOKS))

    def _recover(self, error: sqlite3.Error) -> None:
        """Give up a broken cache file: replace it if it is damaged, else use memory."""
        self.close()
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if self._path is not None and code in _REPLACED:
            _log.warning("the index cache %s is replaced: %s", self._path, error)
            with contextlib.suppress(OSError):
                remove_cache(self._path)
                return
        _log.warning("the index cache is kept in memory: %s", error)
        self._path = None

    def sync(self, unfit: Container[bytes] = ()) -> None:
        """Read the segments that were added to home since the last call.

        Args:
            unfit: Ids of packs that are not relied on: a place in one of them stands back behind
                any other.
        """
        with self._lock:
            for _ in range(2):  # a bad file is replaced, and the next one may not be writable
                try:
                    return self._sync(unfit)
                except sqlite3.Error as error:
                    self._recover(error)
            self._path = None
            return self._sync(unfit)

    def _sync(self, unfit: Container[bytes]) -> None:
        for _ in range(_ROUNDS):
            if self._take_in(unfit):
                return

    def _take_in(self, unfit: Container[bytes]) -> bool:
        """Take in what is new; return ``False`` if something was merged since it was listed."""
        db = self._connection()
        seen = {key for (key,) in db.execute("SELECT key FROM segments")}
        is_all = True
        for info in self._home_blobs.list(INDEX):
            if info.key in seen:
                continue
            try:
                data = self._home_blobs.get(info.key)
                segment = parse_any_segment(data, f"index segment {info.key}")
            except NotFound:
                is_all = False
                continue
            except (Damaged, UnsupportedFormat) as error:  # a missed duplicate is only waste
                _log.warning("skipped: %s", error)
                continue
            table = segment.table
            if segment.replaces and segment.replaces <= seen:
                db.execute("INSERT OR IGNORE INTO segments VALUES (?)", (info.key,))
                continue
            sizes = dict(zip(table.pack_ids, table.pack_sizes, strict=True))
            self._add(info.key, table, sizes, unfit)
        return is_all

    def add(self, key: str, places: Iterable[ChunkPlace], sizes: dict[bytes, int]) -> None:
        """Take in one segment that was just written to home."""
        with self._lock:
            try:
                self._add(key, places, sizes)
            except sqlite3.Error as error:  # the next sync reads it from home
                _log.warning("the index cache %s was not updated: %s", self._path, error)

    def _add(
        self,
        key: str,
        places: Iterable[ChunkPlace],
        sizes: dict[bytes, int],
        unfit: Container[bytes] = (),
    ) -> None:
        rows: dict[bool, list[tuple[bytes, ...]]] = {True: [], False: []}
        behind = {pack: pack in unfit for pack in sizes}
        for place in places:
            rows[behind[place.pack]].append(_row(place))
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany("INSERT OR REPLACE INTO packs VALUES (?, ?)", sizes.items())
            db.executemany(_ADD, rows[False])
            db.executemany(_ADD_UNFIT, rows[True])
            db.execute("INSERT OR IGNORE INTO segments VALUES (?)", (key,))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def find(self, digest: bytes) -> tuple[ChunkPlace, int] | None:
        """Return the place recorded for a chunk and the size of its pack; ``None`` if unknown."""
        query = (
            "SELECT pack, place_and_proof, bases, sum, size FROM chunks "
            "JOIN packs ON packs.id = chunks.pack WHERE digest = ?"
        )
        with self._lock:
            try:
                row = self._connection().execute(query, (digest,)).fetchone()
            except sqlite3.DatabaseError as error:  # a missed duplicate is only waste
                _log.warning("the index cache %s cannot be read: %s", self._path, error)
                return None
        if row is None:
            return None
        *columns, stored, size = row
        if stored != _sum(digest, *columns):
            _log.warning("a row of the index cache %s is damaged", self._path)
            return None
        pack, place, bases = columns
        offset, frame_bytes, head_bytes, plain_bytes, proof_bytes, codec = _PLACE.unpack(place)
        split = tuple(split_digests(bases))
        lengths = (offset, frame_bytes, head_bytes, plain_bytes)
        return ChunkPlace(digest, pack, *lengths, codec, split, proof_bytes), size

    def forget(self, packs: Iterable[bytes]) -> None:
        """Drop the places recorded in packs that are gone."""
        with self._lock:
            try:
                self._forget(self._connection(), packs)
            except sqlite3.Error as error:  # the next save finds them gone again
                _log.warning("the index cache %s was not updated: %s", self._path, error)

    @staticmethod
    def _forget(db: sqlite3.Connection, packs: Iterable[bytes]) -> None:
        """Drop the rows of packs in one pass: the chunks are not ordered by packs."""
        known = "SELECT id FROM packs WHERE id = ?"
        here = [row for pack in packs if (row := db.execute(known, (pack,)).fetchone())]
        if not here:
            return
        db.execute("CREATE TEMP TABLE IF NOT EXISTS gone (id BLOB PRIMARY KEY) WITHOUT ROWID")
        db.execute("DELETE FROM gone")
        db.executemany("INSERT OR IGNORE INTO gone VALUES (?)", here)
        db.execute("DELETE FROM chunks WHERE pack IN (SELECT id FROM gone)")
        db.execute("DELETE FROM packs WHERE id IN (SELECT id FROM gone)")

    def forget_condemned(self, named: Set[str], condemned: CondemnedPacks) -> None:
        """Drop the places recorded in packs that were condemned since the last call.

        Each segment of condemned packs is read once by whoever shares the file, as its packs never
        come back.

        Args:
            named: The random parts of the keys of all segments of condemned packs.
            condemned: Reads those that are new.
        """
        with self._lock:
            try:
                db = self._connection()
                seen = {key for (key,) in db.execute("SELECT key FROM condemned")}
                packs = condemned.packs_in(sorted(named - seen))
                self._forget(db, packs)
                db.executemany(
                    "INSERT OR IGNORE INTO condemned VALUES (?)", [(key,) for key in named - seen]
                )
                db.executemany(
                    "DELETE FROM condemned WHERE key = ?", [(key,) for key in seen - named]
                )
            except (Damaged, NotFound, sqlite3.Error) as error:  # a save finds out by itself
                _log.warning("places in condemned packs stay in the index cache: %s", error)

    def close(self) -> None:
        """Close the cache file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db = None


def _row(place: ChunkPlace) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    packed = _PLACE.pack(
        place.offset,
        place.frame_bytes,
        place.head_bytes,
        place.plain_bytes,
        place.proof_bytes,
        place.codec,
    )
    bases = b"".join(place.bases)
    return place.digest, place.pack, packed, bases, _sum(place.digest, place.pack, packed, bases)


def _sum(*columns: object) -> bytes:
    # repr: in a damaged file a column can have any type
    return xxh3(repr(columns).encode()).to_bytes(8, "little")
