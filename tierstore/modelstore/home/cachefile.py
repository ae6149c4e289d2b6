"""Local SQLite files of what can be read again: they can be lost, and are replaced when damaged."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tierstore.folders import ALONE


def open_cache(path: Path | None, schema: str, *looks: str) -> sqlite3.Connection:
    """Open a cache file, made with its folder where there is none; any thread may use it.

    Args:
        path: The file; ``None`` for one in memory.
        schema: Makes the tables that are not there.
        looks: Statements that fail on the tables of another version.

    Raises:
        OSError: The folder cannot be used.
        sqlite3.Error: The file cannot be used, is damaged, or of another version.
    """
    if path is not None:
        ALONE.make(path.parent, above=1)
    where = ":memory:" if path is None else str(path)
    db = sqlite3.connect(where, timeout=30, check_same_thread=False, isolation_level=None)
    try:
        # a write-ahead log has a mapped index: on a full disk that may be SIGBUS
        db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(schema)
        for look in looks:
            db.execute(look).fetchone()
    except sqlite3.Error:
        db.close()
        raise
    return db


def remove_cache(path: Path) -> None:
    """Remove a cache file and what SQLite keeps beside it; ``OSError`` where that fails."""
    for suffix in ("", "-journal", "-wal", "-shm"):  # the last two of earlier versions
        Path(f"{path}{suffix}").unlink(missing_ok=True)
