"""What every benchmark shares: alternating runs, paired ratios, child processes, tables, results.

Timings on a shared machine drift, so contestants take turns (A B A B ...) after a warm-up, and a
ratio is the median of the ratios of runs that stood side by side, never a ratio of two medians.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MIB = 1 << 20
PACKAGES = ("tierstore", "numpy", "safetensors", "zstandard", "blake3", "xxhash", "ml_dtypes")

console = Console(width=140)


@dataclass
class Sample:
    """One run: seconds of wall clock and of CPU (children included), and what else it counted."""

    wall: float
    cpu: float
    peak_rss: int = 0
    extra: dict[str, float] = field(default_factory=dict)


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def timed(call: Callable[[], Mapping[str, float] | None]) -> Sample:
    """Run ``call`` once; the numbers it returns go into ``extra``."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    extra = call()
    return Sample(time.perf_counter() - wall, cpu_seconds() - cpu, extra=dict(extra or {}))


def alternate(
    contestants: Mapping[str, Callable[[], Sample]], rounds: int, warmup: int = 1
) -> dict[str, list[Sample]]:
    """Run the contestants in turn, ``rounds`` times each after ``warmup`` uncounted rounds.

    Every second round goes in reverse order, so that none always follows the same neighbour.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for number in range(-warmup, rounds):
        order = list(contestants.items())
        for name, run in order if number % 2 == 0 else reversed(order):
            sample = run()
            if number >= 0:
                samples[name].append(sample)
    return samples


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios of the runs of the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def median(samples: Iterable[Sample], what: str) -> float:
    """Median of one field of the samples, or of one of their extra numbers."""
    values = [s.extra[what] if what in s.extra else getattr(s, what) for s in samples]
    return statistics.median(values)


def run_child(
    argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[Sample, str]:
    """Run a command to its end; its times, peak resident memory in bytes, and standard output.

    Linux carries the parent's own peak over into a child that it starts, so a benchmark that
    reports peaks must itself stay small: the child's figure is at least its parent's.
    """
    started = time.perf_counter()
    child = subprocess.Popen(
        list(argv),
        stdout=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )
    assert child.stdout is not None
    out = child.stdout.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(argv)[:300]} exited with {child.returncode}:\n{out[-2000:]}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024), out


def input_file(name: str) -> Path:
    """The path of an input, made if need be by another process: this one stays small."""
    _, out = run_child([sys.executable, "-m", "benchmarks.data", name], cwd=HERE.parent)
    return Path(out.splitlines()[-1])


def warm(path: Path) -> None:
    """Read a file once, so that its pages are in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(8 * MIB):
            pass


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, cores, kernel, versions, date."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers are aligned to the right."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)


def target(value: float, op: str, bound: float) -> str:
    """``1.72 (>= 1.6: met)``: a result beside what was asked for."""
    met = value >= bound if op == ">=" else value <= bound
    return f"{value:.3f} ({op} {bound:g}: {'met' if met else 'MISSED'})"


def write_results(name: str, results: Mapping[str, Any]) -> Path:
    """Write ``results/<name>.json`` with the machine's facts; dataclasses become objects."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"

    def plain(value: object) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    text = json.dumps({"machine": machine(), **results}, indent=1, default=plain)
    path.write_text(text + "\n")
    console.print(f"written: {path}")
    return path
