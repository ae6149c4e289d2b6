"""Two checkouts of tierstore against each other: does a change cost time?

Each job runs in a fresh process, once with the package of one checkout and once with that of the
other, in turn; a ratio is after / before of two runs side by side. Its 95 % interval is that of the
mean of the logarithms of the ratios. A job is slower for sure when its interval lies wholly above
1.03.

Run: ``python -m benchmarks.compare BEFORE [--after .] [--pairs 15] [--only save load hot startup]``

Both checkouts need their native parts (``python setup.py build_ext --inplace``).
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import (
    HERE,
    Sample,
    alternate,
    input_file,
    median,
    run_child,
    show,
    warm,
    write_results,
)

LIMIT = 1.03
T_95 = {15: 2.145, 20: 2.093, 25: 2.064, 30: 2.045}
"""Student's t for a two-sided interval of 95 %, by the count of pairs."""

TOUCH = "print(sum(int(a.reshape(-1).view('u1')[::64].sum(dtype='u8')) for a in model.values()))"
SAVE = "import sys, tierstore; tierstore.init(sys.argv[2]).save('bench', sys.argv[1])"
LOAD = f"""
import sys, ml_dtypes, tierstore
model = tierstore.open(sys.argv[1]).load('bench').load()
{TOUCH}
"""
TENSOR = """
import sys, ml_dtypes, tierstore
model = tierstore.open(sys.argv[1]).load('bench')
for name in sorted(model)[:20]:
    model[name]
"""
FILL = """
import sys, tierstore
spec = tierstore.TierSpec(name='hot', role='hot', url=sys.argv[3], size=4 << 30)
tierstore.init(sys.argv[2], tiers=[spec]).save('bench', sys.argv[1])
tierstore.open(sys.argv[2]).warmup('bench')
"""
MANY = """
import sys, numpy, tierstore
store = tierstore.init(sys.argv[1])
for number in range(20):
    store.save(f'model-{number}', {'w': numpy.arange(8.0)}, alias='prod')
"""

Run = Callable[[], Sample]


def python(checkout: Path, cache: Path, *argv: object) -> Sample:
    env = {"PYTHONPATH": str(checkout), "TIERSTORE_CACHE_DIR": str(cache)}
    sample, _ = run_child([sys.executable, *map(str, argv)], env=env, cwd=checkout)
    return sample


class Side:
    """One checkout, with stores of its own."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.checkout, self.folder = checkout.resolve(), folder
        folder.mkdir()

    def run(self, *argv: object) -> Sample:
        return python(self.checkout, self.folder / "cache", *argv)

    def prepare(self, source: Path) -> None:
        """Make what the jobs read, by this side's own code."""
        self.run("-c", SAVE, source, self.folder / "cold")
        self.run("-c", FILL, source, self.folder / "hot", self.folder / "tier")
        self.run("-c", MANY, self.folder / "many")

    def save(self, source: Path) -> Sample:
        into = self.folder / "new"
        shutil.rmtree(into, ignore_errors=True)
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        return self.run("-c", SAVE, source, into)

    def jobs(self, source: Path) -> dict[str, dict[str, Run]]:
        cold, hot, many = (self.folder / name for name in ("cold", "hot", "many"))
        return {
            "save": {"save": lambda: self.save(source)},
            "load": {
                "load, all": lambda: self.run("-c", LOAD, cold),
                "load, 20 tensors": lambda: self.run("-c", TENSOR, cold),
            },
            "hot": {
                "hot, all": lambda: self.run("-c", LOAD, hot),
                "hot, 20 tensors": lambda: self.run("-c", TENSOR, hot),
            },
            "startup": {
                "import tierstore": lambda: self.run("-c", "import tierstore"),
                "tierstore ls": lambda: self.run("-m", "tierstore", "--store", many, "ls"),
            },
        }


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The geometric mean of ratios, and its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    count = max(known for known in (*T_95, 0) if known <= len(logs)) or len(logs)
    half = T_95.get(count, 2.3) * statistics.stdev(logs) / math.sqrt(len(logs))
    middle = statistics.fmean(logs)
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("--after", type=Path, default=HERE.parent)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--input", default="tiled-bf16")
    parser.add_argument("--only", nargs="+", default=["save", "load", "hot", "startup"])
    options = parser.parse_args()
    source = input_file(options.input)
    warm(source)
    rows: list[tuple[Any, ...]] = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        before = Side(options.before, Path(folder) / "before")
        after = Side(options.after, Path(folder) / "after")
        for side in (before, after):
            side.prepare(source)
        for group in options.only:
            ours, theirs = after.jobs(source)[group], before.jobs(source)[group]
            for name, run in ours.items():
                pair = {"before": theirs[name], "after": run}
                samples = alternate(pair, options.pairs)
                results[name] = {}
                for what in ("cpu", "wall"):
                    ratios = [
                        getattr(new, what) / getattr(old, what)
                        for old, new in zip(samples["before"], samples["after"], strict=True)
                    ]
                    middle, low, high = interval(ratios)
                    old, new = (median(samples[who], what) for who in ("before", "after"))
                    verdict = "slower" if low > LIMIT else "ok"
                    rows.append((name, what, old, new, middle, low, high, verdict))
                    results[name][what] = {
                        "before_s": old, "after_s": new, "ratio": middle, "low": low, "high": high,
                    }  # fmt: skip
    show(
        f"after / before, {options.pairs} alternating pairs",
        ("job", "of", "before s", "after s", "ratio", "95 % from", "to", f"limit {LIMIT}"),
        rows,
    )
    write_results("compare", results)


if __name__ == "__main__":
    main()
