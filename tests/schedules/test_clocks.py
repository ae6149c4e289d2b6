"""Writers, readers and collectors with clocks that differ by an hour (libfaketime), on a disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.schedules.kill import make, opened
from tests.schedules.places import Disk
from tests.schedules.promises import CONTENTS, Promises, patched

ROOT = Path(__file__).parents[2]
HOUR_S = 3600


def preload() -> str:
    """Return the path of libfaketime."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert found, "this test needs libfaketime: install Debian's package 'faketime'"
    return str(found[0])


def started(root: Path, offset_s: int, *roles: str) -> subprocess.Popen[str]:
    """Start a process whose clock is ahead; files have their times by the true clock."""
    env = {
        **os.environ,
        "LD_PRELOAD": preload(),
        "FAKETIME": f"{offset_s:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    command = [sys.executable, "-m", "tests.schedules.clocks", str(root), *roles]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S])
def test_clocks_that_differ_by_an_hour(tmp_path: Path, ahead_s: int) -> None:
    disk = Disk(tmp_path)
    promises = Promises(make(disk), is_kept=False)
    parties = [
        started(tmp_path, ahead_s, "write", "read"),
        started(tmp_path, -ahead_s, "collect", "remove"),
    ]
    written = ""
    for party in parties:
        out, errors = party.communicate(timeout=240)
        assert party.returncode == 0, errors
        written += out
    promises.undeleted.add("kept")
    for line in written.splitlines():
        model, number, name, rows = line.split()
        content = CONTENTS[name]
        promises.versions[model, int(number)] = patched(content, 2)[1] if rows != "0" else content
    assert len(written.splitlines()) == 12
    promises.settle(lambda: opened(disk), disk.end_leases)
