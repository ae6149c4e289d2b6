"""Garbage collection by agents: however many there are, one collects for all of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tierstore.errors import Conflict, OtherHome, TierstoreError
from tierstore.modelstore.reclaim.report import Report
from tierstore.modelstore.store import Store
from tierstore.shown import counted, size

_LOOK_EVERY_S = 600.0
"""Seconds between two looks at whether a collection is due; a failed one is tried again then."""

_log = logging.getLogger("tierstore.agent")


@dataclass(frozen=True, slots=True)
class CollectingPlan:
    """When an agent collects garbage, and how much it does at once.

    Attributes:
        every: Time from the end of a collection, of whoever it was, to the start of the next;
            ``None`` for never.
        max_bytes: The most to delete by one, in bytes; ``None`` for no limit.
        max_time: Time after which one begins no further deletions; ``None`` for no limit.
    """

    every: timedelta | None = timedelta(days=1)
    max_bytes: int | None = None
    max_time: timedelta | None = timedelta(minutes=10)


@dataclass(slots=True)
class CollectingStats:
    """Counts of the collections of one agent.

    Attributes:
        runs: Collections that ended.
        failed: Those that an error ended: nothing was deleted.
        refused: Those for which another process was at work.
        deleted_packs: Packs that were deleted.
        freed_bytes: Their bytes, in all tiers together.
    """

    runs: int = 0
    failed: int = 0
    refused: int = 0
    deleted_packs: int = 0
    freed_bytes: int = 0


class Collecting:
    """Collects garbage when it is due, in a store that allows it. For one thread.

    Args:
        store: Open store.
        plan: When to collect.
        stop: Ends a collection once it is set.
        clock: Returns seconds that never go backwards.
    """

    def __init__(
        self,
        store: Store,
        plan: CollectingPlan,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._plan, self._stop, self._clock = store, plan, stop, clock
        self._looked_s = -_LOOK_EVERY_S
        self._other_home = ""
        self.stats = CollectingStats()

    def round(self) -> None:
        """Collect if it is due; an error is logged, and tried again later."""
        every = self._plan.every
        if every is None or self._clock() - self._looked_s < min(
            _LOOK_EVERY_S, every.total_seconds()
        ):
            return
        self._looked_s = self._clock()
        reclaim = self._store.reclaim
        if not reclaim.is_enabled:
            return
        last = reclaim.last()
        # a time in the future comes of a clock that was wrong
        if last is not None and timedelta(0) <= datetime.now(UTC) - last.time < every:
            return
        began = self._clock()
        try:
            report = reclaim.run(
                max_bytes=self._plan.max_bytes, max_time=self._plan.max_time, stop=self._stop
            )
        except Conflict as error:
            self.stats.refused += 1
            _log.info("%s", error)
        except OtherHome as error:  # it stays so until somebody does something about it
            self.stats.failed += 1
            level = logging.DEBUG if self._other_home == str(error) else logging.WARNING
            self._other_home = str(error)
            _log.log(level, "no garbage is collected: %s", error)
        except TierstoreError as error:
            self.stats.failed += 1
            _log.warning("no garbage was collected: %s", error)
        else:
            self._count(report, self._clock() - began)

    def _count(self, report: Report, seconds: float) -> None:
        deleted, freed = report.of("deleted"), sum(report.freed.values())
        self.stats.runs += 1
        self.stats.deleted_packs += len(deleted)
        self.stats.freed_bytes += freed
        waiting = report.garbage()
        fields = {
            "event": "gc",
            "deleted_packs": len(deleted),
            "freed_bytes": freed,
            "condemned_packs": report.condemned,
            "healed": report.healed,
            "garbage_bytes": waiting.bytes,
            "stopped": report.stopped,
            "down": sorted({*report.down, *report.refused}),
            "seconds": round(seconds, 3),
        }
        _log.info(
            "garbage collection deleted %s of %s; %s of garbage wait%s",
            counted(len(deleted), "pack"),
            size(freed),
            size(waiting.bytes),
            f"; {report.stopped}" if report.stopped else "",
            extra={"fields": fields},
        )
