"""Loading from a local store: everything, one tensor, a few rows.

* Everything to numpy against ``safetensors.numpy.load_file`` on the raw file: each load in a fresh
  process, every cache line touched once afterwards, the store and the file in the page cache.
* One small and one large tensor, out of a model of 45 MB and out of one of 1 GiB: the
  time should not grow with the model.
* Ten random rows of an embedding of 1 GiB, against the whole tensor.

Run: ``python -m benchmarks.bench_load [--rounds 5]``
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import (
    HERE,
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

TIMES_LIBRARY = 1.3
EXTRA_RSS = 300 * MIB
ROWS = 10
SMALL = "encoder.layer.3.attention.self.query.bias"
LARGE = "embeddings.word_embeddings.weight"
COPY = "copy07."
EMBEDDING = "emb.weight"

Results = dict[str, Any]


def child(*argv: object) -> Sample:
    """Run one command of ``load_child``; what it printed is in ``extra``."""
    command = [sys.executable, "-m", "benchmarks.load_child", *map(str, argv)]
    sample, out = run_child(command, cwd=HERE.parent)
    sample.extra = json.loads(out)
    return sample


def make_store(name: str, parent: Path) -> Path:
    """Save an input into a new store; its files are then in the page cache."""
    store = parent / name
    child("save", store, input_file(name))
    for path in store.rglob("*"):
        if path.is_file():
            warm(path)
    return store


def load_all(name: str, store: Path, rounds: int) -> Results:
    file = input_file(name)
    size = file.stat().st_size
    warm(file)
    runs = {
        "ours": lambda: child("ours", store),
        "safetensors": lambda: child("library", file),
    }
    samples = alternate(runs, rounds)
    sums = {s.extra["sum"] for of in samples.values() for s in of}
    if len(sums) != 1:
        raise SystemExit(f"the loaders of {name} disagree about its bytes")
    rows = [
        (
            who,
            median(s, "seconds"),
            median(s, "cpu_in"),
            size / 1e6 / median(s, "seconds"),
            median(s, "wall"),
            f"{(median(s, 'peak') - size) / MIB:+.0f}",
        )
        for who, s in samples.items()
    ]
    columns = ("loader", "s", "CPU s", "MB/s", "process s", "peak RSS - file, MiB")
    show(f"load all of {name}, {size / MIB:.0f} MiB (median of {rounds})", columns, rows)
    times = paired_ratio(
        [s.extra["seconds"] for s in samples["ours"]],
        [s.extra["seconds"] for s in samples["safetensors"]],
    )
    over = max(s.extra["peak"] for s in samples["ours"]) - size
    show(
        f"{name}: ours against safetensors",
        ("what", "value"),
        [
            ("time, times", target(times, "<=", TIMES_LIBRARY)),
            ("peak RSS over the tensors, MiB", target(over / MIB, "<=", EXTRA_RSS / MIB)),
        ],
    )
    return {"bytes": size, "samples": samples, "times": times, "peak_over_tensors": over}


def one_tensor(small_model: Path, large_model: Path, rounds: int) -> Results:
    runs = {
        f"{what}, {which} model": lambda store=store, name=name: child("tensor", store, name)
        for what, tensor in (("small tensor", SMALL), ("large tensor", LARGE))
        for which, store, name in (
            ("45 MB", small_model, tensor),
            ("1 GiB", large_model, COPY + tensor),
        )
    }
    samples = alternate(runs, rounds)
    show(
        f"one tensor (median of {rounds})",
        ("what", "ms", "fetched KiB", "decoded KiB", "requests"),
        [cost_row(name, s) for name, s in samples.items()],
    )
    return {"samples": samples}


def few_rows(store: Path, rounds: int) -> Results:
    runs = {
        f"{ROWS} rows": lambda: child("rows", store, EMBEDDING, ROWS),
        "whole tensor": lambda: child("tensor", store, EMBEDDING),
    }
    samples = alternate(runs, rounds)
    show(
        f"random rows of an embedding of 1 GiB (median of {rounds})",
        ("what", "ms", "fetched KiB", "decoded KiB", "requests"),
        [cost_row(name, s) for name, s in samples.items()],
    )
    return {"samples": samples}


def cost_row(name: str, samples: list[Sample]) -> tuple[object, ...]:
    return (
        name,
        median(samples, "seconds") * 1e3,
        f"{median(samples, 'fetched') / 1024:.0f}",
        f"{median(samples, 'decoded') / 1024:.0f}",
        f"{median(samples, 'requests'):.0f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    results: Results = {}
    where = input_file("minilm-bf16").parent
    with tempfile.TemporaryDirectory(dir=where) as name:
        parent = Path(name)
        stores = {
            each: make_store(each, parent)
            for each in ("minilm-bf16", "tiled-bf16", "tiled-f32", "emb-bf16")
        }
        for each in ("tiled-bf16", "tiled-f32"):
            results[f"all {each}"] = load_all(each, stores[each], rounds)
        results["one tensor"] = one_tensor(stores["minilm-bf16"], stores["tiled-bf16"], rounds)
        results["rows"] = few_rows(stores["emb-bf16"], rounds)
    write_results("load", results)


if __name__ == "__main__":
    main()
