"""The directory of this node's hot tier, which may fail, fill up, vanish and come back."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tierstore.folders import Owners
from tierstore.placement.base import PlacementPolicy
from tierstore.tiers.guard.breaker import Breaker
from tierstore.tiers.node.book import HotBook
from tierstore.tiers.node.files import ChunkFiles
from tierstore.tiers.node.index import HotIndex, IndexLost
from tierstore.tiers.stats import TierStats

_LOCK_WAIT_S = 10.0
_FAILURES = 3
_LOST_BYTES = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE})
"""Errors after which a file may hold anything."""

_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""Errors that stay until somebody changes rights or mounts."""

_T = TypeVar("_T")
_log = logging.getLogger("tierstore.tiers")


class HotDirectory:
    """The files and the book of a directory, with a breaker each for reading and for filling.

    A disk that became read-only can still be read, so filling fails alone.

    Args:
        name: The name of the tier, for the log.
        root: The directory of the tier.
        store_id: The name of the store's folder.
        boot_id: The name of the folder of trusted files.
        policy: Makes the policy for a capacity in bytes.
        high_bytes: Bytes up to which it is filled.
        low_bytes: Bytes down to which it is emptied when it is found above ``high_bytes``.
        half_life_s: The half-life of the heat in the index.
        retry_s: Seconds that it is left alone after it failed.
        stats: Receives the counts of failures, damage and evictions.
        owners: Who may write to it.
        compare_first: That of ``ChunkFiles``.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        store_id: str,
        boot_id: str,
        policy: Callable[[int], PlacementPolicy],
        *,
        high_bytes: int,
        low_bytes: int,
        half_life_s: float,
        retry_s: float,
        stats: TierStats,
        owners: Owners,
        compare_first: bool = False,
    ) -> None:
        self._name, self.stats = name, stats
        self.files = ChunkFiles(
            root, store_id, boot_id, self.on_bad, owners, compare_first=compare_first
        )
        self.book = HotBook(
            self.files,
            HotIndex(self.files.folder, boot_id, owners),
            policy,
            high_bytes=high_bytes,
            low_bytes=low_bytes,
            half_life_s=half_life_s,
            stats=stats,
        )
        self.reading = self._breaker("reading", root, retry_s)
        self.filling = self._breaker("filling", root, retry_s)
        self._prepared = self._suspect = False
        self.refused: OSError | None = None
        """Why the last attempt to fill it was refused, if it was."""

    def _breaker(self, doing: str, root: Path, retry_s: float) -> Breaker:
        return Breaker(
            f"{doing} tier {self._name} in {root}",
            self._name,
            retry_s,
            self._changed,
            failures=_FAILURES,
            advice="check that the disk is mounted and may be written",
        )

    def ready(self, breaker: Breaker) -> bool:
        """Return whether the directory can be used; after a failure, whether it is back."""
        if not breaker.ready():
            return False
        if self._prepared and not self._suspect and not breaker.open:
            return True
        try:
            if self._suspect and self._prepared:
                self.files.distrust()
            else:
                self.files.prepare()
        except OSError as error:
            self.refused = error if error.errno in _REFUSED else None
            breaker.failed(error)
            return False
        self._prepared, self._suspect = True, False
        return True

    def transact(self, work: Callable[[], _T]) -> _T:
        """Do ``work`` under the node's lock; again when the index or the folder had to be made.

        Raises:
            OSError: The directory failed.
        """
        for last in (False, False, True):
            try:
                with self.book.opened(_LOCK_WAIT_S):
                    return work()
            except IndexLost as error:
                if last:
                    raise OSError(errno.EIO, str(error)) from error
            except FileNotFoundError:
                if last:
                    raise
                self.files.prepare()
        raise AssertionError

    def manage(self, work: Callable[[], _T], default: _T) -> _T:
        """Do ``work`` under the node's lock, or return ``default`` when the directory fails."""
        if not self.ready(self.filling):
            return default
        try:
            done = self.transact(work)
        except OSError as error:
            self.fill_failed(error)
            return default
        self.filling.worked()
        return done

    def read_failed(self, error: OSError, digest: bytes | None = None) -> None:
        """Count a failure; a file that cannot be read is removed, or it would fail for ever."""
        if error.errno in _LOST_BYTES:
            self._suspect = True
            if digest is not None:
                with contextlib.suppress(OSError):
                    self.files.remove(digest)
                self.book.lost.append(digest)
        self.reading.failed(error)

    def fill_failed(self, error: OSError) -> None:
        """Count a failure of filling."""
        self._suspect = self._suspect or error.errno in _LOST_BYTES
        self.refused = error if error.errno in _REFUSED else None
        self.filling.failed(error)

    def _changed(self, opened: bool) -> None:
        self.stats.count(breaker_opened=opened)
        self.stats.breaker_open = self.reading.open or self.filling.open

    def on_bad(self, digest: bytes) -> None:
        """Count a file that was wrong and is removed."""
        _log.warning("tier %s: chunk %s was damaged, it is removed", self._name, digest.hex())
        self.stats.count(damaged=1)
        self.book.lost.append(digest)
