"""Mapping a model of 1 GiB from this node's hot tier, beside ``safetensors.torch.load_file``.

Each load runs in a fresh process, all files in the page cache; they take turns. Times are to the
dictionary of tensors (``mapped``) and to one byte of every page read (``touched``), from an open
store: a serving process opens it once, and the milliseconds of that are a column of their own.

* ``layers``: tensors as of a small language model (about 300, of 2 KiB to 260 MiB).
* ``tiled``: 24 copies of all-MiniLM-L6-v2, 2500 tensors, most of them under 300 KiB.
* ``one``: a single embedding.

Then two processes map the same model at once: the proportional set size (Pss) of each shows
whether its pages are shared.

Run: ``python -m benchmarks.bench_hot [--rounds 7]``
"""

from __future__ import annotations

import argparse
import json
import subprocess
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

TIMES_LIBRARY = 1.5
MODELS = {"layers": "layers-bf16", "tiled": "tiled-bf16", "one": "emb-bf16"}

_BARE = "from benchmarks.hot_child import memory; print(memory()['pss'])"

Results = dict[str, Any]


def command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.hot_child", *map(str, argv)]


def child(*argv: object) -> Sample:
    sample, out = run_child(command(*argv), cwd=HERE.parent)
    sample.extra = json.loads(out)
    return sample


def times(name: str, samples: dict[str, list[Sample]], size: int) -> Results:
    """Show the loads of one model; returns the ratios."""
    sums = {s.extra["sum"] for of in samples.values() for s in of}
    if len(sums) != 1:
        raise SystemExit(f"the loaders of {name} disagree about its bytes")
    show(
        f"{name}: {size / MIB:.0f} MiB (median of {len(samples['ours'])})",
        ("loader", "open ms", "mapped ms", "touched ms", "RSS - file, MiB", "anonymous MiB"),
        [
            (
                who,
                median(of, "opened") * 1e3,
                median(of, "mapped") * 1e3,
                median(of, "touched") * 1e3,
                f"{(median(of, 'rss') - size) / MIB:+.1f}",
                f"{median(of, 'anonymous') / MIB:.1f}",
            )
            for who, of in samples.items()
        ],
    )
    pairs = {
        what: (
            [s.extra[what] for s in samples["ours"]],
            [s.extra[what] for s in samples["library"]],
        )
        for what in ("mapped", "touched", "rss")
    }
    ratios = {what: paired_ratio(*both) for what, both in pairs.items()}
    bounds = {"mapped": TIMES_LIBRARY, "touched": TIMES_LIBRARY, "rss": 1.01}
    show(
        f"{name}: ours against safetensors.torch.load_file",
        ("what", "times"),
        [(what, target(ratio, "<=", bounds[what])) for what, ratio in ratios.items()],
    )
    return ratios


def shared_pages(store: Path, size: int) -> Results:
    """Two processes map one model: what each has of it, counting shared pages by halves.

    What a process of its own has without the model, torch itself above all, is taken off.
    """
    bare = run_child([sys.executable, "-c", _BARE], cwd=HERE.parent)[1]
    running = [
        subprocess.Popen(
            command("ours", store, "--hold"), cwd=HERE.parent, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()  # it has touched everything
    found = []
    for process in running:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        found.append(json.loads(process.stdout.readline()))
    for process in running:
        process.communicate()
    show(
        "two processes with the same model",
        ("process", "RSS MiB", "Pss MiB", "anonymous MiB"),
        [
            (n, *(one[what] / MIB for what in ("rss", "pss", "anonymous")))
            for n, one in enumerate(found, 1)
        ],
    )
    total = sum(one["pss"] - int(bare) for one in found)
    print(f"mapped pages of both together: {target(total / size, '<=', 1.2)} times the model")
    return {"processes": found, "together": total / size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    results: Results = {}
    where = input_file(MODELS["layers"]).parent
    with tempfile.TemporaryDirectory(dir=where) as name:
        for what, data in MODELS.items():
            file, store, hot = input_file(data), Path(name) / what, Path(name) / f"{what}-hot"
            run_child(command("fill", store, file, hot), cwd=HERE.parent)
            warm(file)
            runs = {
                "ours": lambda store=store: child("ours", store),
                "library": lambda file=file: child("library", file),
            }
            samples = alternate(runs, rounds)
            size = file.stat().st_size
            results[what] = {"ratios": times(what, samples, size), "samples": samples}
            if what == "layers":
                results["shared"] = shared_pages(store, size)
    write_results("hot", results)


if __name__ == "__main__":
    main()
