"""Saving a model of about 1 GiB, end to end: ours against restic, borg and zstd.

Every run writes to a new, empty target on the same disk; the source is in the page cache. Each
program is a process of its own, so start-up counts, and so does creating the repository. Borg does
not encrypt (``-e none``); restic always does. zstd stores no identity and dedups nothing: it stands
for the speed of a plain compressor. Throughput is the source's bytes over wall seconds; stored
bytes are what ``du -sb`` counts in the target.

Run: ``python -m benchmarks.bench_save [--rounds 3] [--only tiled-bf16] [--peers] [--slow]``
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import (
    MIB,
    Sample,
    alternate,
    input_file,
    median,
    paired_ratio,
    run_child,
    show,
    target,
    warm,
    write_results,
)

TIMES_FASTER = 3.0
STORED_SHARE = 0.85
PASSWORD = {"RESTIC_PASSWORD": "benchmark", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}
OURS = "import sys, tierstore; tierstore.init(sys.argv[1]).save('bench', sys.argv[2])"

Commands = Callable[[Path, Path], list[list[str]]]


def restic(*options: str) -> Commands:
    def commands(source: Path, into: Path) -> list[list[str]]:
        restic = ["restic", "--quiet", "--no-cache", "--repo", str(into)]
        return [[*restic, "init"], [*restic, "backup", *options, str(source)]]

    return commands


def borg(compression: str) -> Commands:
    def commands(source: Path, into: Path) -> list[list[str]]:
        archive = ["--compression", compression, f"{into}::bench", str(source)]
        return [["borg", "init", "-e", "none", str(into)], ["borg", "create", *archive]]

    return commands


def zstd(source: Path, into: Path) -> list[list[str]]:
    return [["zstd", "-q", "-T0", "-1", str(source), "-o", f"{into}/model.zst"]]


def ours(source: Path, into: Path) -> list[list[str]]:
    return [[sys.executable, "-c", OURS, f"{into}/store", str(source)]]


PEERS: dict[str, Commands] = {
    "restic": restic(),
    "borg lz4": borg("lz4"),
    "borg zstd,3": borg("zstd,3"),
    "zstd -T0 -1": zstd,
}
SLOW: dict[str, Commands] = {"restic max": restic("--compression", "max")}
BACKUP_DEFAULTS = ("restic", "borg lz4")


def save_once(commands: Commands, source: Path, parent: Path) -> Sample:
    """One save into a new directory: times of all its commands, the largest of their peaks."""
    into = Path(tempfile.mkdtemp(dir=parent))
    total = Sample(0.0, 0.0)
    # borg keeps a cache of chunks per repository: a new one each time, as for a first save
    env = {**PASSWORD, "BORG_BASE_DIR": str(into) + ".borg"}
    try:
        for argv in commands(source, into):
            sample, _ = run_child(argv, env)
            total.wall += sample.wall
            total.cpu += sample.cpu
            total.peak_rss = max(total.peak_rss, sample.peak_rss)
        du = subprocess.run(["du", "-sb", into], capture_output=True, text=True, check=True)
        total.extra["stored"] = int(du.stdout.split()[0])
    finally:
        shutil.rmtree(into)
        shutil.rmtree(str(into) + ".borg", ignore_errors=True)
    return total


def compare(samples: dict[str, list[Sample]], size: int, bf16: bool) -> dict[str, Any]:
    """Print and return ours against the faster of the backup programs and the smallest of all."""
    peers = {name: runs for name, runs in samples.items() if name != "ours"}
    fastest = min(BACKUP_DEFAULTS, key=lambda name: median(peers[name], "wall"))
    times = paired_ratio([s.wall for s in peers[fastest]], [s.wall for s in samples["ours"]])
    smallest = min(peers, key=lambda name: median(peers[name], "stored"))
    share = median(samples["ours"], "stored") / median(peers[smallest], "stored")
    bound = target(share, "<=", STORED_SHARE) if bf16 else f"{share:.3f}"
    show(
        f"ours against the best, {size / MIB:.0f} MiB",
        ("what", "of", "value"),
        [
            ("throughput, times", fastest, target(times, ">=", TIMES_FASTER)),
            ("stored, share", smallest, bound),
        ],
    )
    return {"fastest": fastest, "times": times, "smallest": smallest, "share": share}


def bench(source: Path, contestants: Mapping[str, Commands], rounds: int) -> dict[str, Any]:
    size = source.stat().st_size
    warm(source)
    with tempfile.TemporaryDirectory(dir=source.parent) as parent:
        runs = {
            name: (lambda commands=commands: save_once(commands, source, Path(parent)))
            for name, commands in contestants.items()
        }
        samples = alternate(runs, rounds)
    show(
        f"saving {source.name}, {size / MIB:.0f} MiB (median of {rounds})",
        ("program", "MB/s", "wall s", "CPU s", "stored MB", "stored/plain", "peak RSS MiB"),
        [
            (
                name,
                size / 1e6 / median(s, "wall"),
                median(s, "wall"),
                median(s, "cpu"),
                f"{median(s, 'stored') / 1e6:.1f}",
                f"{median(s, 'stored') / size:.4f}",
                f"{median(s, 'peak_rss') / MIB:.0f}",
            )
            for name, s in samples.items()
        ],
    )
    results: dict[str, Any] = {"bytes": size, "samples": samples}
    if "ours" in contestants:
        results["ours_against"] = compare(samples, size, "bf16" in source.name)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("tiled-bf16", "tiled-f32"))
    parser.add_argument("--peers", action="store_true", help="leave ours out")
    parser.add_argument("--slow", action="store_true", help="restic's best compression, too")
    args = parser.parse_args()
    contestants = {} if args.peers else {"ours": ours}
    contestants |= PEERS | (SLOW if args.slow else {})
    names = [args.only] if args.only else ["tiled-bf16", "tiled-f32"]
    results = {name: bench(input_file(name), contestants, args.rounds) for name in names}
    write_results("save-peers" if args.peers else "save", results)


if __name__ == "__main__":
    main()
