"""When this node last read each copy of a pack in full, in a local file that can be lost.

Without it everything counts as never read. SQLite has no checksums of its own: a wrong time only
means that a copy is read sooner or later than it would be.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from tierstore.modelstore.home.cachefile import open_cache, remove_cache

_log = logging.getLogger("tierstore.check")

Reader: TypeAlias = Literal["check", "scrub"]
Copy: TypeAlias = tuple[str, str]
"""The name of a tier, and the key of an object in it."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS reads (
    reader TEXT, tier TEXT, key TEXT, time_us INTEGER NOT NULL,
    PRIMARY KEY (reader, tier, key)
) WITHOUT ROWID;
"""
_LOOK = "SELECT reader, tier, key, time_us FROM reads LIMIT 1"
_FORGET = "DELETE FROM reads WHERE reader = ? AND tier = ? AND key = ?"


class ReadTimes:
    """The times of one reader's last full reads. For one thread; to be closed.

    Args:
        path: The file; where it cannot be used, times are kept in memory.
        reader: Who reads; a check and a scrub do not verify the same.
    """

    def __init__(self, path: Path, reader: Reader) -> None:
        self._path, self._reader = path, reader

    @cached_property
    def _db(self) -> sqlite3.Connection:
        try:
            with contextlib.suppress(sqlite3.DatabaseError):
                return open_cache(self._path, _SCHEMA, _LOOK)
            remove_cache(self._path)
            return open_cache(self._path, _SCHEMA)
        except (OSError, sqlite3.Error) as error:
            _log.warning("when copies were read is not kept in %s: %s", self._path, error)
            return open_cache(None, _SCHEMA)

    def of(self, copies: Collection[Copy]) -> dict[Copy, int]:
        """Return when copies were last read, in microseconds since the epoch; 0 for never.

        The times of all others are forgotten.
        """
        query = "SELECT tier, key, time_us FROM reads WHERE reader = ?"
        known: dict[Copy, int] = {}
        gone = list[tuple[str, str, str]]()
        with self._tolerant():
            for tier, key, time_us in self._db.execute(query, (self._reader,)):
                if (tier, key) in copies:
                    known[tier, key] = int(time_us)
                else:
                    gone.append((self._reader, tier, key))
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(_FORGET, gone)
            self._db.execute("COMMIT")
        return {copy: known.get(copy, 0) for copy in copies}

    def note(self, copy: Copy) -> None:
        """Note that a copy was just read in full and found good."""
        row = self._reader, *copy, time.time_ns() // 1000
        with self._tolerant():
            self._db.execute("INSERT OR REPLACE INTO reads VALUES (?, ?, ?, ?)", row)

    def forget(self, copy: Copy) -> None:
        """Note that a copy is damaged, so that it is read again before all others."""
        with self._tolerant():
            self._db.execute(_FORGET, (self._reader, *copy))

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:  # it is read again sooner
            _log.warning("when copies were read is not kept in %s: %s", self._path, error)
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        db = self.__dict__.pop("_db", None)
        if db is not None:
            db.close()
