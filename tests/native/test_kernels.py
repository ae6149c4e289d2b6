"""The C kernels without Python, with sanitizers and with guard pages, on damaged payloads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "tierstore" / "codecs" / "kernels"
HARNESS = Path(__file__).with_name("fuzz_kernels.c")
BUILDS = {
    "sanitizers": ["-O2", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "guard-pages": ["-O3", "-DGUARD_PAGES", "-D_GNU_SOURCE"],
}


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3600, env={**os.environ, **environment}
    )
    assert done.returncode == 0, (
        f"{command[0]} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    )
    return done.stdout


@pytest.mark.parametrize("mutations", [30_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("build", BUILDS)
def test_damaged_payloads_never_leave_their_buffers(
    build: str, mutations: int, tmp_path: Path
) -> None:
    program = str(tmp_path / "fuzz_kernels")
    sources = [str(HARNESS), *sorted(map(str, KERNELS.glob("*.c")))]
    compiler = os.environ.get("CC", "cc")
    warnings = ["-g", "-Wall", "-Wextra", "-Werror", f"-I{KERNELS}"]
    run([compiler, *BUILDS[build], *warnings, *sources, "-o", program, "-lm"])
    # Leaks are looked for with ptrace, which containers often forbid.
    report = run([program, "20260101", str(mutations)], ASAN_OPTIONS="detect_leaks=0")
    assert report.startswith(f"{mutations} mutations"), report
