"""Placement policies on recorded and generated streams: bytes missed, relative to offline Belady.

Every policy of ``tierstore.placement.policies`` and libcachesim's LRU, 2Q, GDSF, S3-FIFO and
W-TinyLFU see the same accesses with caches of 1, 10 and 30 % of each stream's footprint.
libcachesim runs in a process and an environment of its own (``envs.sh``) and is an independent
oracle, too: our own LRU must miss exactly what its LRU misses. The reference is Belady's rule with
bypass, which knows the future (``policies/belady.py``). Ratios are averaged by geometric means.

Streams: ``traces/README.md`` (recorded), ``policies/workload.py`` (generated). Knobs were chosen on
the recorded ones and the ``DEVELOPMENT`` seeds; this reports the recorded ones and other seeds.

Run: ``python -m benchmarks.bench_policies [--development] [--jobs N]``
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

from benchmarks.common import console, show, target, write_results
from benchmarks.policies.belady import belady, next_uses
from benchmarks.policies.replay import ORACLE, Replay, lru, peers, replay
from benchmarks.policies.traces import UNITS, recorded
from benchmarks.policies.workload import DEVELOPMENT, REPORTED, Stream, serving
from tierstore.placement.policies import DEFAULT_POLICY, POLICIES, make

SHARES = (0.01, 0.1, 0.3)
OURS = "tierstore "


@dataclass(frozen=True, slots=True)
class Cell:
    """One stream and one size of the cache.

    Attributes:
        stream: its name.
        traced: recorded, not generated.
        share: of the footprint.
        capacity: bytes.
        read: bytes of all accesses.
        belady: bytes that the offline reference missed.
        replays: by policy.
    """

    stream: str
    traced: bool
    share: float
    capacity: int
    read: int
    belady: int
    replays: dict[str, Replay]

    def ratio(self, policy: str) -> float:
        """Missed bytes relative to Belady."""
        return self.replays[policy].missed / self.belady


def cells_of(name: str) -> list[Cell]:
    """Replay one stream through everything."""
    traced = name in UNITS
    stream: Stream = recorded(name) if traced else serving(int(name.removeprefix("serving-")))
    capacities = [int(stream.footprint * share) for share in SHARES]
    others, following = peers(stream, capacities), next_uses(stream.objects)
    cells = []
    for number, capacity in enumerate(capacities):
        own = lru(stream, capacity)
        oracle = others["LRU"][number]
        if (own.misses, own.missed) != (oracle.misses, oracle.missed):
            raise SystemExit(f"{name}: our LRU {own} and libcachesim's {oracle} differ")
        replays = {peer: results[number] for peer, results in others.items()} | {"LRU": own}
        for policy in POLICIES:
            replays[OURS + policy] = replay(stream, make(policy, capacity))
        reference, _ = belady(stream, capacity, following)
        cells.append(
            Cell(name, traced, SHARES[number], capacity, sum(stream.sizes), reference, replays)
        )
    return cells


def mean(cells: Iterable[Cell], policy: str) -> float:
    """Geometric mean of the ratios to Belady."""
    logs = [math.log(cell.ratio(policy)) for cell in cells]
    return math.exp(math.fsum(logs) / len(logs))


def gap(cells: Sequence[Cell], policy: str) -> float:
    """The share of the way from LRU to Belady that a policy goes, by geometric means."""
    start = mean(cells, "LRU")
    return (start - mean(cells, policy)) / (start - 1.0)


def report(cells: Sequence[Cell]) -> None:
    """Tables of every cell and of the means."""
    names = list(cells[0].replays)
    for title, chosen in (
        ("Recorded streams", [cell for cell in cells if cell.traced]),
        ("Generated streams", [cell for cell in cells if not cell.traced]),
    ):
        rows = [
            [f"{cell.stream} {cell.share:.0%}", *(f"{cell.ratio(name):.3f}" for name in names)]
            for cell in chosen
        ]
        rows.append(["geometric mean", *(f"{mean(chosen, name):.3f}" for name in names)])
        show(f"{title}: bytes missed relative to Belady", ["stream, cache", *names], rows)
    groups: list[tuple[str, Callable[[Cell], bool]]] = [
        ("recorded", lambda cell: cell.traced),
        ("generated", lambda cell: not cell.traced),
        *((f"cache of {share:.0%}", lambda cell, s=share: cell.share == s) for share in SHARES),
        ("all", lambda cell: True),
    ]
    parts = [(title, [cell for cell in cells if belongs(cell)]) for title, belongs in groups]
    show(
        "Geometric means, relative to Belady",
        ["cells", *names],
        [[title, *(f"{mean(part, name):.3f}" for name in names)] for title, part in parts],
    )
    show(
        "Share of the gap from LRU to Belady that is closed",
        ["cells", *names],
        [[title, *(f"{gap(part, name):.1%}" for name in names)] for title, part in parts],
    )


def filled(cell: Cell, policy: str) -> float:
    """Bytes that a policy of ours, or our LRU, wrote into the cache, relative to LRU."""
    own, reference = cell.replays[policy].filled, cell.replays["LRU"].filled
    assert own is not None
    assert reference
    return own / reference


def judge(cells: Sequence[Cell]) -> dict[str, float]:
    """Compare the default with what was asked of it."""
    default = OURS + DEFAULT_POLICY
    rivals = {name: mean(cells, name) for name in cells[0].replays if name != default}
    best = min(rivals, key=lambda name: rivals[name])
    logs = [math.log(filled(cell, default)) for cell in cells]
    judged = {
        "mean": mean(cells, default),
        "best_rival_mean": rivals[best],
        "gap_closed": gap(cells, default),
        "worst_to_lru": max(cell.ratio(default) / cell.ratio("LRU") for cell in cells),
        "fills_to_lru": math.exp(math.fsum(logs) / len(logs)),
        "worst_fills_to_lru": max(filled(cell, default) for cell in cells),
        "fill_bytes_to_lru": sum(cell.replays[default].filled or 0 for cell in cells)
        / sum(cell.replays["LRU"].filled or 0 for cell in cells),
    }
    rows = [
        [f"geometric mean (best other: {best})", target(judged["mean"], "<=", rivals[best])],
        ["gap from LRU to Belady closed", target(judged["gap_closed"], ">=", 0.2)],
        ["worst cell, missed relative to LRU", target(judged["worst_to_lru"], "<=", 1.02)],
        ["bytes filled relative to LRU, all", target(judged["fill_bytes_to_lru"], "<=", 1.0)],
        ["bytes filled relative to LRU, mean", f"{judged['fills_to_lru']:.3f}"],
        ["bytes filled relative to LRU, worst cell", f"{judged['worst_fills_to_lru']:.4f}"],
    ]
    show(f"The default policy: {DEFAULT_POLICY}", ["what", "value"], rows)
    ours = [OURS + name for name in POLICIES]
    show(
        "Processor time of one access, ns (on a busy machine; it has one core of many)",
        ["cells", *ours],
        [
            [f"{cell.stream} {cell.share:.0%}", *(f"{cell.replays[name].ns:.0f}" for name in ours)]
            for cell in cells
        ],
    )
    return judged


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--development", action="store_true", help="the seeds used for tuning")
    parser.add_argument("--jobs", type=int, default=1, help="streams at once")
    options = parser.parse_args()
    if not ORACLE.exists():
        sys.exit(f"{ORACLE} is missing: run benchmarks/envs.sh")
    seeds = DEVELOPMENT if options.development else REPORTED
    names = [*UNITS, *(f"serving-{seed}" for seed in seeds)]
    cells: list[Cell] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for found in pool.map(cells_of, names):
            console.print(f"{found[0].stream}: done")
            cells += found
    report(cells)
    judged = judge(cells)
    name = "policies-development" if options.development else "policies"
    write_results(name, {"cells": [asdict(cell) for cell in cells], "default": judged})


if __name__ == "__main__":
    main()
