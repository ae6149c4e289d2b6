"""The counters of all processes of this node, published in one small file for each.

Counters live in memory, so other processes can show them only if they are written down. A process
writes its counters into the cache directory every few seconds while they change, and once when it
closes the store. Losing a file loses a line of ``tierstore top`` and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from tierstore.folders import ALONE
from tierstore.forks import begin
from tierstore.prepared import prepared
from tierstore.tiers.stats import TierStats
from tierstore.unfinished import written_beside

EVERY_S = 2.0
"""Seconds between two looks at the counters."""

_STILL_S = 10.0
"""Seconds after which a file is written again though nothing changed."""

ALIVE_S = 3 * _STILL_S
"""Seconds after which a process whose file was not written has ended, or hangs."""

_KEPT_S = 24 * 3600.0
_MAX_BYTES = 1 << 20
_COUNTERS = (
    "hits", "misses", "hit_bytes", "admitted", "admitted_bytes", "evicted", "evicted_bytes",
    "rejected", "damaged", "breaker_opened",
)  # fmt: skip
COUNTERS = (*_COUNTERS, "errors")
"""The fields of ``TierCounts`` that add up."""


_log = logging.getLogger("tierstore.tiers")


class TierCounts(msgspec.Struct, kw_only=True):
    """The counters of one tier in one process; see ``TierStats``.

    Attributes:
        errors: Calls that failed, of all kinds.
        recent_bytes: Bytes of the hits of the last ``recent_s`` seconds.
        recent_s: How long that is; 0.0 when there was no earlier look.
    """

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    admitted: int = 0
    admitted_bytes: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    rejected: int = 0
    damaged: int = 0
    breaker_opened: int = 0
    errors: int = 0
    breaker_open: bool = False
    recent_bytes: int = 0
    recent_s: float = 0.0


class ProcessActivity(msgspec.Struct, kw_only=True):
    """A process that has this store open, or had it open.

    Attributes:
        pid: The id of the process.
        program: The name of its program.
        started: When it started, in seconds since the epoch.
        updated: When these counters were read, in seconds since the epoch.
        ended: Whether it has closed the store.
        tiers: The counters by the name of the tier.
    """

    pid: int
    program: str
    started: float
    updated: float
    ended: bool
    tiers: dict[str, TierCounts]

    def alive(self, now: float) -> bool:
        """Return whether the process seems to run."""
        return not self.ended and now - self.updated < ALIVE_S


_Counts: TypeAlias = dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class _Look:
    """Counters at one moment, by tier and name."""

    at: float
    counts: _Counts


class Activity:
    """Publishes the counters of this process. For one thread at a time; fork-safe.

    Args:
        folder: The folder of the files of all processes.
        tiers: Returns the tiers' counters by name.
    """

    def __init__(self, folder: Path, tiers: Callable[[], Mapping[str, TierStats]]) -> None:
        self._folder, self._tiers = folder, tiers
        self._last = _Look(0.0, {})
        begin(self._begin)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._started = time.time()
        self._path = self._folder / f"{self._pid}-{os.urandom(4).hex()}.json"
        self._written: _Look | None = None
        self._parents = self._last.counts  # a child that was forked does not tell it again

    def publish(self, *, ended: bool = False) -> None:
        """Write the counters if they changed, or if nothing was written for a while.

        Nothing is written before something was counted. Never raises.
        """
        tiers = self._tiers()
        look = _Look(time.time(), {name: _counts(stats) for name, stats in tiers.items()})
        before, self._last = self._last, look
        if look.counts == self._parents or not any(any(c.values()) for c in look.counts.values()):
            return
        old = self._written
        unchanged = old is not None and old.counts == look.counts
        if not ended and old is not None and unchanged and look.at - old.at < _STILL_S:
            return
        told = {name: self._told(name, stats, before, look) for name, stats in tiers.items()}
        try:
            self._write(told, look.at, ended)
        except OSError as error:
            _log.debug("the counters of this process were not written: %s", error)
        self._written = look

    def _told(self, name: str, stats: TierStats, before: _Look, look: _Look) -> TierCounts:
        now, then = look.counts[name], before.counts.get(name)
        parents = self._parents.get(name, {})
        counts = {key: max(0, value - parents.get(key, 0)) for key, value in now.items()}
        recent = 0 if then is None else max(0, now["hit_bytes"] - then["hit_bytes"])
        return TierCounts(
            **counts,
            breaker_open=stats.breaker_open,
            recent_bytes=recent,
            recent_s=0.0 if then is None else look.at - before.at,
        )

    def _write(self, tiers: dict[str, TierCounts], now: float, ended: bool) -> None:
        if self._written is None:
            ALONE.make(self._folder, above=2)
            _forget_old(self._folder, now)
        activity = ProcessActivity(
            pid=self._pid,
            program=Path(sys.argv[0] if sys.argv else "python").name[:40],
            started=self._started,
            updated=now,
            ended=ended,
            tiers=tiers,
        )
        with (
            written_beside(self._path, durable=False) as fd,
            open(fd, "wb", closefd=False) as file,
        ):
            file.write(msgspec.json.encode(activity))


def _counts(stats: TierStats) -> dict[str, int]:
    counts: dict[str, int] = {name: getattr(stats, name) for name in _COUNTERS}
    return counts | {"errors": sum(op.errors for op in list(stats.ops.values()))}


def _forget_old(folder: Path, now: float) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > _KEPT_S:
                path.unlink()


def activities(folder: Path, since: float) -> Iterator[ProcessActivity]:
    """Yield what processes of this node published after ``since`` (seconds since the epoch).

    A file that cannot be read is left out.
    """
    try:
        paths = sorted(folder.glob("*.json"))
    except OSError:
        return
    for path in paths:
        try:
            info = path.stat()
            if info.st_mtime < since or info.st_size > _MAX_BYTES:
                continue
            yield msgspec.json.decode(path.read_bytes(), type=prepared(ProcessActivity))
        except (OSError, msgspec.MsgspecError) as error:
            _log.debug("%s: %s", path, error)
