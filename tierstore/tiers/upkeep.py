"""Background tasks of a process that reads, in one thread."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tierstore.errors import BackendError
from tierstore.forks import begin
from tierstore.tiers.activity import EVERY_S

if TYPE_CHECKING:
    from tierstore.tiers.heat.recorder import HeatRecorder
    from tierstore.tiers.hot.tiers import HotTiers

_SOON_S = 2.0
"""Seconds until the first run of a task that is due soon: not during the first load."""

_DRAIN_S = 5.0
_HEAT_S = 30.0
_INDEX_S = 60.0
_PINS_S = 60.0
_SCRUB_S, _SCRUB_BYTES = 60.0, 16 << 20
"""Interval and amount of the scrub: a terabyte is read in 45 days, at 0.3 MB/s."""

_log = logging.getLogger("tierstore.tiers")


@dataclass(frozen=True, slots=True)
class Task:
    """Something to do at intervals; exceptions are logged.

    Attributes:
        name: The name of the task, for the log.
        every_s: Seconds between two runs.
        run: Does the work.
        soon: Whether the first run is soon after the start instead of one interval later.
    """

    name: str
    every_s: float
    run: Callable[[], object]
    soon: bool = False


class Upkeep:
    """Runs tasks from the first ``start`` until ``close``. Thread-safe, fork-safe."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tuple(tasks)
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Make sure that the thread runs; this costs next to nothing when it does."""
        if self._thread is not None or not self._tasks:
            return
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                thread = threading.Thread(target=self._run, name="tierstore-upkeep", daemon=True)
                with contextlib.suppress(RuntimeError):  # the interpreter ends
                    thread.start()
                    self._thread = thread

    def close(self, timeout_s: float) -> None:
        """Stop, and wait for a running task for at most ``timeout_s`` seconds."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _run(self) -> None:
        now = time.monotonic()
        due = {task: now + (_SOON_S if task.soon else task.every_s) for task in self._tasks}
        while not self._stop.wait(max(0.0, min(due.values()) - time.monotonic())):
            for task in self._tasks:
                if due[task] <= time.monotonic() and not self._stop.is_set():
                    try:
                        task.run()
                    except BackendError as error:  # the storage may be back the next time
                        _log.info("%s failed: %s", task.name, error)
                    except Exception:  # one task must not end the others
                        _log.warning("%s failed", task.name, exc_info=True)
                    due[task] = time.monotonic() + task.every_s


def upkeep_tasks(
    hot: HotTiers, heat: HeatRecorder | None, sync_pins: Callable[[], None] | None
) -> list[Task]:
    """Return the tasks that the tiers of a process need.

    Args:
        hot: The hot tiers.
        heat: Counts what is read, if anything does.
        sync_pins: Brings the pins of this node's hot tier in line with the store's, if it has one.
    """
    tasks = []
    if heat is not None:
        tasks.append(Task("handing over heat", _HEAT_S, heat.flush))
    if hot.activity is not None:
        tasks.append(Task("publishing counters", EVERY_S, hot.activity.publish))
    if sync_pins is not None:
        tasks.append(Task("looking for pins", _PINS_S, sync_pins, soon=True))
    local = hot.local
    if local is not None:
        tasks.append(Task("counting what was mapped", _DRAIN_S, hot.drain))
        tasks.append(Task("noting reads in the hot tier", _INDEX_S, local.flush))
        tasks.append(Task("verifying the hot tier", _SCRUB_S, lambda: local.scrub(_SCRUB_BYTES)))
    return tasks
