"""The index of the node's hot tier, for all its processes: a small SQLite file beside the chunks.

The files are the truth; the index adds what they cannot say: heat, pins, and what the other
processes did since one last looked. It can be lost or deleted at any moment, and is then made anew
from the files, without heat.

All access is under one lock of the whole node (``flock``), held for a few milliseconds. So a
damaged file can be replaced while others have it open: they notice by its inode.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, NoReturn

from tierstore import locks
from tierstore.folders import Owners
from tierstore.forks import begin, leave
from tierstore.format.chunking import MAX_CHUNK
from tierstore.ids import DIGEST_BYTES

_log = logging.getLogger("tierstore.tiers")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS chunks (
    digest BLOB PRIMARY KEY, size INTEGER NOT NULL, score REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pins (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, who INTEGER NOT NULL, kind INTEGER NOT NULL,
    digest BLOB NOT NULL, size INTEGER NOT NULL, time REAL NOT NULL, cost REAL NOT NULL,
    reads REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS epoch (id INTEGER NOT NULL, boot TEXT NOT NULL);
"""
_KEPT_CHANGES = 1 << 14
_MOST_CHANGES = 1 << 62  # no index counts so far; behind 2^63 SQLite takes no row
_REPLACED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""Errors that a new file cures: damage, or tables of another version of this module."""

_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
}


class IndexLost(Exception):
    """The index was damaged and is removed; the next attempt finds a new one."""


class ChangeKind(IntEnum):
    """The kinds of rows of ``changes``, by which a process tells the others what it did."""

    READ = 0
    IN = 1
    OUT = 2
    PIN = 3
    UNPIN = 4


_KINDS = frozenset(ChangeKind)


class IndexChange(NamedTuple):
    """One change, in the order in which a policy is to hear of it.

    Attributes:
        kind: What happened.
        digest: The digest of the chunk.
        size: The bytes of the chunk on the disk.
        time: When it was read, the last time if several; seconds since the epoch.
        cost: The cost of the read, as in ``Access``.
        reads: How many reads there were, decayed to ``time``.
    """

    kind: ChangeKind
    digest: bytes
    size: int = 0
    time: float = 0.0
    cost: float = 1.0
    reads: float = 1.0


class IndexRow(NamedTuple):
    """One chunk; ``score`` is log2 of its forward-decayed reads, ``None`` if never read."""

    digest: bytes
    size: int
    score: float | None


class HotIndex:
    """The index file of one folder, for use within ``transaction``. Not thread-safe.

    Args:
        folder: The folder of the store's chunks.
        boot_id: The id of the machine's start; an index from before it is checked as a whole.
        owners: Who may write to it.
    """

    def __init__(self, folder: Path, boot_id: str, owners: Owners) -> None:
        self._owners = owners
        self._path, self._lock_path = folder / "index.db", folder / "lock"
        self._boot_id = boot_id
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self.epoch = 0
        """A random number, which differs when the index was made anew."""
        begin(self._begin)

    def _begin(self) -> None:
        if self._db is not None:  # only the process that opened it may close it
            leave(self._db)
            self._db = None

    @contextmanager
    def transaction(self, wait_s: float) -> Iterator[None]:
        """Hold the node's lock in a transaction: its changes are kept all or none.

        Raises:
            IndexLost: The index was damaged; try again.
            OSError: The directory fails or is full, or others hold the lock for ``wait_s`` seconds.
        """
        with self._locked(wait_s):
            try:
                db = self._connection()
                db.execute("BEGIN IMMEDIATE")
                yield
                db.execute("COMMIT")
            except sqlite3.Error as error:
                self._translate(error)
            finally:
                if self._db is not None and self._db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")

    @contextmanager
    def _locked(self, wait_s: float) -> Iterator[None]:
        fd = self._owners.open(self._lock_path)
        try:
            until, pause = time.monotonic() + wait_s, 0.0005
            while not locks.try_lock(fd):
                if time.monotonic() >= until:
                    raise BlockingIOError(errno.EAGAIN, "locked", str(self._lock_path))
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            yield
        finally:
            locks.close(fd)

    def _connection(self) -> sqlite3.Connection:
        try:
            found = self._path.stat()
            inode = found.st_dev, found.st_ino
        except FileNotFoundError:
            inode = None
        if self._db is not None and (inode is None or inode != self._inode):
            self.close()
        if self._db is None:
            self._db = self._connect()
            found = self._path.stat()
            self._inode = found.st_dev, found.st_ino
        return self._db

    def _connect(self) -> sqlite3.Connection:
        os.close(self._owners.open(self._path))  # its journals get the mode that it has
        db = sqlite3.connect(
            str(self._path), timeout=10, check_same_thread=False, isolation_level=None
        )
        try:
            db.execute("PRAGMA journal_mode = TRUNCATE")
            db.execute("PRAGMA synchronous = OFF")  # it can be lost: made anew from the files
            db.create_function("add_score", 2, add_scores, deterministic=True)
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}; COMMIT")
            row = db.execute("SELECT id, boot FROM epoch").fetchone()
            if row is None:
                row = secrets.randbits(62), self._boot_id
                db.execute("INSERT INTO epoch VALUES (?, ?)", row)
            self.epoch, boot = row
            if boot != self._boot_id:
                if db.execute("PRAGMA quick_check").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("damaged when the machine stopped")
                db.execute("UPDATE epoch SET boot = ?", (self._boot_id,))
        except BaseException:
            db.close()
            raise
        return db

    def _translate(self, error: sqlite3.Error) -> NoReturn:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in _REPLACED:
            _log.warning("the index %s is made anew: %s", self._path, error)
            self.close()
            for suffix in ("", "-journal"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            raise IndexLost(str(error)) from error
        number = _ERRNO.get(code, errno.EIO)
        raise OSError(number, f"its index: {error}", str(self._path)) from error

    def close(self) -> None:
        """Close the index file."""
        if self._db is not None:
            self._db.close()
        self._db = None

    def _execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        assert self._db is not None  # within a transaction
        return self._db.execute(sql, values)

    def rows(self) -> list[IndexRow]:
        """Return every chunk that the index knows."""
        rows = [IndexRow(*row) for row in self._execute("SELECT digest, size, score FROM chunks")]
        _check(all(map(_is_row, rows)))
        return rows

    def pins(self) -> list[bytes]:
        """Return every pinned chunk, here or not."""
        pins = [digest for (digest,) in self._execute("SELECT digest FROM pins")]
        _check(all(map(_is_digest, pins)))
        return pins

    def last_change(self) -> int:
        """Return the number of the newest change; 0 if there was none."""
        found = self._execute("SELECT max(seq) FROM changes").fetchone()[0]
        _check((found or 0) < _MOST_CHANGES)
        return int(found or 0)

    def changes(self, after: int, but: int) -> list[IndexChange] | None:
        """Return what others did after the change ``after``; ``None`` when that is not known.

        Args:
            after: The number of a change.
            but: The process whose changes are left out.
        """
        oldest = self._execute("SELECT min(seq) FROM changes").fetchone()[0]
        if (oldest or 0) > after + 1:
            return None
        found = self._execute(
            "SELECT kind, digest, size, time, cost, reads FROM changes "
            "WHERE seq > ? AND who != ? ORDER BY seq",
            after,
            but,
        )
        changes = [IndexChange(*row) for row in found]
        _check(all(map(_is_change, changes)))
        return changes

    def apply(self, who: int, changes: Sequence[IndexChange], half_life_s: float) -> None:
        """Write changes to the index, and note them for the other processes."""
        assert self._db is not None
        for change in changes:
            sql, values = _statement(change, half_life_s)
            self._db.execute(sql, values)
        self._db.executemany(
            "INSERT INTO changes (who, kind, digest, size, time, cost, reads) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(who, *change) for change in changes],
        )
        self._execute("DELETE FROM changes WHERE seq <= ?", self.last_change() - _KEPT_CHANGES)


def _check(sane: bool) -> None:
    """Have the index made anew: SQLite has no checksums, and damage must not reach a policy."""
    if not sane:
        raise sqlite3.DatabaseError("a row is damaged")


def _is_row(row: IndexRow) -> bool:
    return _is_digest(row.digest) and _is_size(row.size) and (row.score is None or _is_real(row[2]))


def _is_change(change: IndexChange) -> bool:
    kind, digest, size, when, cost, reads = change
    return (
        kind in _KINDS
        and _is_digest(digest)
        and _is_size(size)
        and _is_real(when)
        and _is_real(cost)
        and _is_real(reads)
        and cost >= 0
        and reads >= 0
    )


def _is_digest(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == DIGEST_BYTES


def _is_size(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= MAX_CHUNK


def _is_real(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _statement(change: IndexChange, half_life_s: float) -> tuple[str, tuple[object, ...]]:
    score = change.time / half_life_s + math.log2(change.reads) if change.reads else None
    match change.kind:
        case ChangeKind.READ:
            sql = "UPDATE chunks SET score = add_score(score, ?) WHERE digest = ?"
            return sql, (score, change.digest)
        case ChangeKind.IN:
            sql = "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)"
            return sql, (change.digest, change.size, score)
        case ChangeKind.OUT:
            return "DELETE FROM chunks WHERE digest = ?", (change.digest,)
        case ChangeKind.PIN:
            return "INSERT OR IGNORE INTO pins VALUES (?)", (change.digest,)
        case ChangeKind.UNPIN:
            return "DELETE FROM pins WHERE digest = ?", (change.digest,)


def add_scores(a: float | None, b: float | None) -> float | None:
    """Return log2 of the sum of two numbers given as log2; ``None`` stands for zero."""
    if a is None or b is None:
        return b if a is None else a
    high, low = max(a, b), min(a, b)
    return high + math.log2(1 + 2 ** (low - high))
