"""What a process does now and then: each task in its time, none the end of the others."""

from __future__ import annotations

import os
import threading

import pytest

from tierstore.errors import Unreachable
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.upkeep import Task, Upkeep, upkeep_tasks


def test_a_task_that_fails_ends_neither_itself_nor_others(caplog: pytest.LogCaptureFixture) -> None:
    runs: dict[str, int] = {"good": 0, "down": 0, "bad": 0}
    enough = threading.Event()

    def run(name: str, error: Exception | None) -> None:
        runs[name] += 1
        if min(runs.values()) >= 3:
            enough.set()
        if error is not None:
            raise error

    errors = {"good": None, "down": Unreachable("no answer"), "bad": ValueError("a bug")}
    upkeep = Upkeep([
        Task(name, 0.005, lambda name=name, error=error: run(name, error))  # type: ignore[misc]
        for name, error in errors.items()
    ])  # fmt: skip
    before = set(threading.enumerate())  # other tests' stores may still be open
    upkeep.start()
    upkeep.start()
    assert len(set(threading.enumerate()) - before) == 1
    assert enough.wait(60)
    upkeep.close(60)
    assert not set(threading.enumerate()) - before
    assert {r.levelname for r in caplog.records if "bad failed" in r.getMessage()} == {"WARNING"}
    assert not [r for r in caplog.records if r.levelname == "WARNING" and "down" in r.getMessage()]


def test_a_process_without_tiers_has_no_thread() -> None:
    upkeep = Upkeep(upkeep_tasks(HotTiers(), None, None))
    before = threading.active_count()
    upkeep.start()
    assert threading.active_count() == before
    upkeep.close(1)


def test_a_forked_child_has_a_thread_of_its_own() -> None:
    ran = threading.Event()
    upkeep = Upkeep([Task("t", 0.005, ran.set)])
    upkeep.start()
    assert ran.wait(60)
    with upkeep._lock:
        pid = os.fork()
        if not pid:
            ran.clear()
            upkeep.start()
            os._exit(0 if ran.wait(60) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    upkeep.close(60)
