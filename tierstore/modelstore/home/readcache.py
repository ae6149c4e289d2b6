"""What was read of home, kept in a local file for the next process that collects, or lists models.

The file can be deleted at any moment: what it lacks is read again. A value counts only while the
object that it was read from has the size and time that it had then, and every row carries a
checksum, as SQLite has none: a wrong value would delete what is needed.

What it has of a version says which packs that needs. So a collector that finds it here reads no
manifest, and does not notice one that was lost since: all that it needs stays all the same, as if
it were there. A collector without this file stops, and a check says what is lost.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

from tierstore.blobs.base import BlobInfo
from tierstore.folders import ALONE
from tierstore.format.checks import xxh3

SETTLED_S = 10
"""Seconds after which an object that is written over has another time than it had before."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS values_read (
    key TEXT PRIMARY KEY, stamp TEXT NOT NULL, value BLOB NOT NULL, sum BLOB NOT NULL
) WITHOUT ROWID;
"""
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PAGE = 500
_log = logging.getLogger("tierstore.gc")


class ReadCache:
    """Values by the key of the object that they were read from. Not thread-safe.

    Args:
        path: The file; ``None`` keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def get(self, infos: Iterable[BlobInfo]) -> dict[str, bytes]:
        """Return what was kept of the objects that have not changed, by key."""
        found, wanted = dict[str, bytes](), list(infos)

        def look(db: sqlite3.Connection) -> None:
            for at in range(0, len(wanted), _PAGE):
                stamps = {info.key: _stamp(info) for info in wanted[at : at + _PAGE]}
                marks = ", ".join("?" * len(stamps))
                query = f"SELECT * FROM values_read WHERE key IN ({marks})"
                for key, stamp, value, stored in db.execute(query, list(stamps)):
                    if stored == _sum(key, stamp, value) and stamps.get(key) == stamp:
                        found[key] = value

        self._use(look)
        return found

    def put(self, values: Iterable[tuple[BlobInfo, bytes]], now_s: float) -> None:
        """Keep values of objects, but of those that were just written.

        Args:
            values: What was read of each object that was listed before.
            now_s: Seconds since the epoch by the storage's clock when it was listed, or earlier.
        """
        rows = []
        for info, value in values:
            if is_settled(info, now_s):
                stamp = _stamp(info)
                rows.append((info.key, stamp, value, _sum(info.key, stamp, value)))
        query = "INSERT OR REPLACE INTO values_read VALUES (?, ?, ?, ?)"
        if rows:
            self._use(lambda db: db.executemany(query, rows))

    def _use(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do something with the file; one that cannot be used is not asked again."""
        if self._path is None:
            return
        try:
            ALONE.make(self._path.parent, above=1)
            with contextlib.closing(sqlite3.connect(self._path, timeout=30)) as db, db:
                db.execute("PRAGMA synchronous = OFF")  # it can be lost
                db.execute(_SCHEMA)
                work(db)
        except (OSError, sqlite3.Error) as error:
            _log.warning("what was read of home is not kept in %s: %s", self._path, error)
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)
            self._path = None


def is_settled(info: BlobInfo, now_s: float) -> bool:
    """Return whether the next change of an object will show in its time."""
    return now_s - info.mtime > SETTLED_S


def _stamp(info: BlobInfo) -> str:
    return f"{info.size} {info.mtime!r}"


def _sum(*columns: object) -> bytes:
    # repr: in a damaged file a column can have any type
    return xxh3(repr(columns).encode()).to_bytes(8, "little")
