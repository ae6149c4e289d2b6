"""Growth: what every operation costs in small and large stores, and how that grows.

Stores are generated through ``tierstore.format``, on a local disk and with everything that is asked
of home counted as requests to an object store. Four kinds of growth: models of one version each,
versions of one model, chunks of a few models, and patches of one model. Every operation runs in a
process of its own, after it has run once on a tiny store, so that no import is counted. The
exponent of growth is the slope of a line through the logarithms of sizes and costs: 0 where a cost
stays as it is, 1 where it doubles with the store. Kinds can be measured one by one: each says when;
``docs/assets/growth.json`` has the last run of each.

Run: ``python -m benchmarks.bench_growth [models] [versions] [chunks] [patches] [--small]
[--only OPERATION]``
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import MIB, machine, show, write_results
from benchmarks.data import bench_dir
from benchmarks.generated import Shape
from benchmarks.growth import OPERATIONS, Cost, Place, cost_of, exponent, make

GROWN = "model-00000"
_CHUNKS_A_MODEL = 100_000

SIZES = {
    "models": [100, 1000, 10_000],
    "versions": [100, 1000, 10_000],
    "chunks": [100_000, 1_000_000, 10_000_000],
    "patches": [1, 10, 100, 300],
}
SMALL = {"models": [20, 80], "versions": [20, 80], "chunks": [1000, 4000], "patches": [1, 20]}
MEASURES: dict[str, Callable[[Cost], float]] = {
    "requests": lambda cost: cost.requests,
    "CPU": lambda cost: cost.cpu_s,
    "bytes": lambda cost: cost.read_bytes + cost.written_bytes,
    "memory": lambda cost: cost.peak_bytes,
}


def store_of(kind: str, size: int, folder: Path) -> Place:
    """Make a store of so many models, versions, chunks or patches."""
    if kind == "models":
        return make(folder, Shape(size, 1, chunks=4, fresh=4))
    if kind == "versions":
        return make(folder, Shape(1, size, chunks=4, fresh=1), model=GROWN)
    if kind == "patches":
        return make(folder, Shape(0), patches=size)
    per_model = min(size, _CHUNKS_A_MODEL)
    return make(folder, Shape(size // per_model, 1, chunks=per_model, fresh=1, per_pack=1024))


def in_child(call: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a process that is forked for it, and return what it returns."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(call, *args).result()


def measured(name: str, place: Place, tiny: Place) -> Cost:
    """Run an operation once on a tiny store and then on this one; tell what the second took."""
    cost_of(OPERATIONS[name], tiny)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    cost = cost_of(OPERATIONS[name], place)
    status = Path("/proc/self/status").read_text()
    [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    cost.peak_bytes = int(peak) * 1024
    return cost


def grow(
    kind: str, sizes: Sequence[int], parent: Path, tiny: Place, names: Sequence[str]
) -> dict[str, dict[int, Cost]]:
    costs: dict[str, dict[int, Cost]] = {name: {} for name in names}
    for size in sizes:
        place = in_child(store_of, kind, size, parent / "store")
        for name in names:
            costs[name][size] = in_child(measured, name, place, tiny)
        for path in parent.glob("store*"):
            shutil.rmtree(path)
        _show(kind, size, {name: costs[name][size] for name in names})
    return costs


def _show(kind: str, size: int, costs: Mapping[str, Cost]) -> None:
    rows = [
        (name, cost.cpu_s, cost.requests, *cost.by_kind.values(), cost.read_bytes / 1e3,
         cost.written_bytes / 1e3, cost.peak_bytes / MIB)
        for name, cost in costs.items()
    ]  # fmt: skip
    kinds = next(iter(costs.values())).by_kind
    columns = ("operation", "CPU s", "requests", *kinds, "kB read", "kB written", "peak MiB")
    show(f"{size} {kind}", columns, rows)


def exponents(costs: Mapping[str, Mapping[int, Cost]]) -> dict[str, dict[str, float]]:
    """Return the exponents of growth by operation and measure."""
    return {
        name: {
            what: round(exponent({size: of(cost) for size, cost in by_size.items()}), 3)
            for what, of in MEASURES.items()
        }
        for name, by_size in costs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*SIZES, []], default=[])
    parser.add_argument("--small", action="store_true", help="stores of two sizes, in a minute")
    parser.add_argument("--most", type=int, help="no store of more models, versions or chunks")
    parser.add_argument("--only", action="append", choices=OPERATIONS, help="one operation")
    args = parser.parse_args()
    sizes = SMALL if args.small else SIZES
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=bench_dir()) as folder:
        tiny = in_child(make, Path(folder) / "tiny", Shape(1, 2, chunks=4, fresh=1))
        for kind in args.kinds or sizes:
            chosen = [size for size in sizes[kind] if args.most is None or size <= args.most]
            costs = grow(kind, chosen, Path(folder), tiny, args.only or list(OPERATIONS))
            found = exponents(costs)
            rows = [(name, *of.values()) for name, of in found.items()]
            title = f"exponents of growth in {kind}, {chosen[0]} to {chosen[-1]}"
            show(title, ("operation", *MEASURES), rows)
            costs_of = {
                name: {str(size): asdict(cost) for size, cost in by_size.items()}
                for name, by_size in costs.items()
            }
            results[kind] = {"date": machine()["date"], "costs": costs_of, "exponents": found}
            write_results("growth-small" if args.small else "growth", results)


if __name__ == "__main__":
    main()
