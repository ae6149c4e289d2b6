"""Schedules and faults of the real code: nothing that was promised is lost, and garbage goes.

A thousand random schedules here, 50,000 with ``-m soak``, and there processes are killed and paused
on real servers too. What fails prints how to run it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.schedules.faults import CASES

ROOT = Path(__file__).parents[2]
BLOCK, CI, SOAK = 250, 1_000, 50_000
KILLS, MANY_KILLS = 100, 3_000
ON_SERVERS = {"radosgw": 60, "hdfs": 40, "sftp": 40}
"""Kills on each server: what some ten minutes are enough for."""


def run(*args: object) -> None:
    command = [sys.executable, "-m", "tests.schedules", *map(str, args)]
    environ = {**os.environ, "PYTHONHASHSEED": "0"}  # else it would begin twice
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.alone
@pytest.mark.parametrize("first", range(1, CI + 1, BLOCK))
def test_nothing_is_lost_in_any_schedule(first: int) -> None:
    run(first, first + BLOCK - 1)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(CI + 1, CI + SOAK + 1, 4 * BLOCK))
def test_nothing_is_lost_in_any_schedule_of_many(first: int) -> None:
    run(first, first + 4 * BLOCK - 1)


@pytest.mark.alone
@pytest.mark.parametrize("part", range(2))
def test_a_fault_at_every_call(part: int) -> None:
    """EIO at each call, and a disk that is full from each write on: the next run goes on."""
    run("--faults", *list(CASES)[part::2])


@pytest.mark.alone
@pytest.mark.parametrize("seed", [1, 2])
def test_processes_that_are_killed(seed: int) -> None:
    """SIGKILL at random moments, on a disk: the next run goes on, nothing is lost or stays."""
    run("--kills", KILLS // 2, seed)


@pytest.mark.alone
def test_processes_that_are_paused() -> None:
    """SIGSTOP at random moments: all leases end and a collection is done before they go on."""
    run("--pauses", 30)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5, 5 + MANY_KILLS // KILLS))
def test_many_processes_that_are_killed(seed: int) -> None:
    run("--kills", KILLS, seed)
    run("--pauses", KILLS, seed)


@pytest.mark.soak
@pytest.mark.server
@pytest.mark.parametrize(("where", "kills"), ON_SERVERS.items())
def test_processes_that_are_killed_on_a_server(where: str, kills: int) -> None:
    """Home and the warm tier are on a real server, which the run starts for itself."""
    run("--on", where, "--kills", kills)
    run("--on", where, "--pauses", kills // 2)
