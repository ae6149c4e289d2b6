"""How long it takes to begin: ``import tierstore`` against ``import numpy``, and ``tierstore ls``.

Every run is a fresh process; what a bare interpreter takes is measured beside and subtracted from
the two imports.

Run: ``python -m benchmarks.bench_startup [--rounds 15]``
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tierstore
from benchmarks.common import (
    HERE,
    Sample,
    alternate,
    median,
    run_child,
    show,
    target,
    write_results,
)

TIMES_NUMPY = 2.0
LS_SECONDS = 0.5
MODELS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        with tierstore.init(Path(folder) / "store") as store:
            for number in range(MODELS):
                store.save(f"model-{number}", {"w": np.arange(8.0)}, alias="prod")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody compiles at every start
        os.environ["TIERSTORE_STORE"] = str(Path(folder) / "store")

        def run(*argv: str) -> Callable[[], Sample]:
            return lambda: run_child([sys.executable, *argv], cwd=HERE.parent)[0]

        runs = {
            "bare interpreter": run("-c", "pass"),
            "import numpy": run("-c", "import numpy"),
            "import tierstore": run("-c", "import tierstore"),
            f"tierstore ls, {MODELS} models": run("-m", "tierstore", "ls"),
        }
        subprocess.run([sys.executable, "-m", "tierstore", "ls"], check=True, capture_output=True)
        samples = alternate(runs, rounds)
    show(
        f"starting (median of {rounds})",
        ("what", "ms", "CPU ms"),
        [(who, median(s, "wall") * 1e3, median(s, "cpu") * 1e3) for who, s in samples.items()],
    )
    bare = median(samples["bare interpreter"], "cpu")
    times = (median(samples["import tierstore"], "cpu") - bare) / (
        median(samples["import numpy"], "cpu") - bare
    )
    ls = median(samples[f"tierstore ls, {MODELS} models"], "wall")
    show(
        "targets",
        ("what", "value"),
        [
            ("import tierstore, times the CPU of import numpy", target(times, "<=", TIMES_NUMPY)),
            ("tierstore ls, seconds", target(ls, "<=", LS_SECONDS)),
        ],
    )
    write_results("startup", {"samples": samples, "times_numpy": times, "ls_seconds": ls})


if __name__ == "__main__":
    main()
