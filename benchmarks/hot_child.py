"""One load in a fresh process; prints one line of JSON. Started by ``bench_hot``.

``fill STORE FILE HOT``: make a store with a hot tier, save the file, warm the tier.
``ours STORE`` / ``library FILE``: every tensor as a torch tensor, then one byte of every page.

Seconds run from an open store or the file's path, imports done, to the dictionary of tensors
(``mapped``) and on to the last page touched (``touched``); ``opened`` is the store's own. With
``--hold`` it then waits for a line on its standard input, prints its memory again, and ends with
the next line: so that another process can map the same pages beside it.
"""

from __future__ import annotations

import json
import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

import tierstore
import tierstore.blobs.local.store
from tierstore.format.tiers import TierSpec
from tierstore.store import init_store, open_store

QUOTA = 4 << 30

Tensors = dict[str, torch.Tensor]


def fill(store: str, file: str, hot: str) -> None:
    spec = TierSpec(name="hot", role="hot", url=hot, size=QUOTA)
    with init_store(store, tiers=[spec]) as opened:
        opened.save("bench", file)
    with open_store(store) as opened:
        assert opened.warmup("bench").resident


def ours(store: str) -> Callable[[], Tensors]:
    opened = tierstore.open(store)  # left open: the process ends with it
    return lambda: opened.load("bench").to_torch()


def library(file: str) -> Callable[[], Tensors]:
    return lambda: safetensors.torch.load_file(file)


def touch(tensors: Tensors) -> int:
    """Read one byte of every page; their sum, the same for the same bytes."""
    total = 0
    for tensor in tensors.values():
        flat = tensor.reshape(-1).view(torch.uint8)
        total += int(flat[:: mmap.PAGESIZE].sum(dtype=torch.int64))
    return total


def memory() -> dict[str, int]:
    """Bytes of this process: resident, its share of shared pages, and what is its own alone."""
    wanted = {"Rss": "rss", "Pss": "pss", "Anonymous": "anonymous"}
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        if name in wanted:
            found[wanted[name]] = int(rest.split()[0]) * 1024
    return found


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--hold"]
    if words[0] == "fill":
        fill(*words[1:])
        return
    openers: dict[str, Callable[[str], Callable[[], Tensors]]] = {"ours": ours, "library": library}
    tierstore.open  # noqa: B018 - names are imported on first use; that is start-up, not loading
    before, start = memory(), time.perf_counter()
    load = openers[words[0]](words[1])
    opened = time.perf_counter() - start
    start = time.perf_counter()
    tensors = load()
    mapped = time.perf_counter() - start
    total = touch(tensors)
    touched = time.perf_counter() - start
    after = memory()
    costs = {name: after[name] - before[name] for name in after}
    seconds = {"opened": opened, "mapped": mapped, "touched": touched}
    print(json.dumps({**seconds, "sum": total, **costs}), flush=True)
    if "--hold" in sys.argv:
        sys.stdin.readline()
        print(json.dumps(memory()), flush=True)
        sys.stdin.readline()  # the other process is still to look


if __name__ == "__main__":
    main()
