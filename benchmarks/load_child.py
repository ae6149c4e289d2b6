"""One load in a fresh process; prints one line of JSON. Started by ``bench_load``.

``save STORE FILE``: make a store and save the file as ``bench``.
``ours STORE`` / ``library FILE``: everything to numpy arrays, then every cache line touched once.
``tensor STORE NAME``: one tensor. ``rows STORE NAME COUNT``: that many random rows of it.

Seconds run from opening the store or file, imports done, to the last byte touched.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (makes bfloat16 known to numpy, which safetensors relies on)
import numpy as np
import safetensors.numpy

import tierstore

CACHE_LINE = 64


def touch(arrays: Iterable[np.ndarray[Any, Any]]) -> int:
    """Read one byte of every cache line; their sum, the same for the same bytes."""
    return sum(
        int(array.reshape(-1).view(np.uint8)[::CACHE_LINE].sum(dtype=np.uint64)) for array in arrays
    )


def peak_rss() -> int:
    """Largest resident set of this process since it was started, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the kernel does not report VmHWM")


def costs(model: tierstore.Model) -> dict[str, int]:
    stats = model.stats
    return {
        "fetched": stats.bytes_fetched,
        "decoded": stats.bytes_decoded,
        "requests": stats.requests,
    }


def save(store: str, file: str) -> dict[str, int]:
    with tierstore.init(store) as opened:
        opened.save("bench", file)
    return {}


def ours(store: str) -> dict[str, int]:
    with tierstore.open(store) as opened:
        model = opened.load("bench")
        arrays: Mapping[str, Any] = model.load()
        return {"sum": touch(arrays.values()), **costs(model)}


def library(file: str) -> dict[str, int]:
    return {"sum": touch(safetensors.numpy.load_file(file).values())}


def tensor(store: str, name: str) -> dict[str, int]:
    with tierstore.open(store) as opened:
        model = opened.load("bench")
        return {"sum": touch([model[name]]), **costs(model)}


def rows(store: str, name: str, count: str) -> dict[str, int]:
    with tierstore.open(store) as opened:
        model = opened.load("bench")
        lazy = model.tensor(name)
        chosen = np.random.default_rng(10).choice(len(lazy), int(count), replace=False)
        return {"sum": touch([lazy[chosen]]), **costs(model)}


COMMANDS: dict[str, Callable[..., dict[str, int]]] = {
    "save": save,
    "ours": ours,
    "library": library,
    "tensor": tensor,
    "rows": rows,
}

if __name__ == "__main__":
    # names of tierstore are imported on first use; that is start-up, not loading
    tierstore.init, tierstore.open  # noqa: B018
    command = COMMANDS[sys.argv[1]]
    cpu, start = time.process_time(), time.perf_counter()
    answer = command(*sys.argv[2:])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({**answer, "seconds": seconds, "cpu_in": cpu, "peak": peak_rss()}))
