"""A model of 1 GiB is replaced while it answers requests: the pause, and whether answers mix.

Four tables of 256 MiB; a new version has 1 % other rows, at random places, and these carry its
number, so that every answer tells of which version the weights were. Four threads look rows up
(closed loop, 1 ms apart) in a process of its own. A version is published before, and while requests
run only the alias is moved (or the file renamed), so that what is measured is the node's own work.
A request's time counts from when it was due, so that one that could not even begin is seen:

* ``swap``: ``serving.follow``, whose arrays replace the old ones at once; with a hot tier on the
  node, and without one.
* ``in place``: ``InPlace`` writes what changed into weights that stay, under the lock that requests
  take; all at once, and in batches, between which an answer may see both versions. ``mapped``:
  the weights were loaded from the hot tier, so that a page becomes theirs when it is written to
  (but those that a patch was laid over while loading).
* ``file``: what one does without a store: load the new safetensors file, swap.

``longest`` is the longest request of a whole window, ``at swap`` of those that ran while the new
version was taken (``file``: and loaded), ``held`` how long InPlace held the lock. Where only the
first is long, the machine's cores were busy with reading the version.

Published as a patch (``Store.patch``), and as a whole version (``Store.save``), all of whose chunks
differ. Each swap stands beside a window without one; the first of each process is not counted.
Where the machine itself stood still (a thread of another process, which only sleeps, was held up
for more than 20 ms), the window says nothing and is taken again. Staleness runs from the alias's
move to the moment when the new version served; whoever looks for news does so every 50 ms.

Run: ``python -m benchmarks.bench_swap [--rounds 5] [--ways …] [--publish patch save]``
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import tierstore
from benchmarks.common import HERE, MIB, show, write_results
from benchmarks.swap_child import STAMPED

PAUSE_S = 0.05
HOW = ["patch", "save"]
TABLES, WIDTH = 4, 64
SHARE = 0.01
STILL_S = 0.02
QUIET_S = 2.0
AFTER_S = 1.0
BATCH = 256 << 10

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Way:
    """One way to serve: what the child is told, and whether its node has a hot tier."""

    kind: str
    hot: bool = True
    batch: int = 0
    windows: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"quiet": [], "swap": []}
    )
    disturbed: int = 0

    @property
    def held(self) -> bool:
        """Whether the bar is meant for it."""
        return self.kind != "file"

    def add(self, kind: str, found: dict[str, Any], watch: Watch) -> None:
        found["machine_s"] = watch.worst_s
        if watch.worst_s > STILL_S:
            self.disturbed += 1
        else:
            self.windows[kind].append(found)

    def enough(self, rounds: int) -> bool:
        return all(len(windows) >= rounds for windows in self.windows.values())


def ways() -> dict[str, Way]:
    return {
        "swap": Way("swap"),
        "swap, no hot tier": Way("swap", hot=False),
        "in place": Way("inplace"),
        "in place, batches": Way("inplace", batch=BATCH),
        "in place, mapped": Way("mapped"),
        "file": Way("file", hot=False),
    }


class Content:
    """The versions of the model: 1 % of the rows of each table carry their number."""

    def __init__(self, gib: float) -> None:
        rng = np.random.default_rng(1)
        rows = int(gib * (1 << 30)) // TABLES // WIDTH // 4
        self.stamped = np.sort(rng.choice(rows, int(rows * SHARE), replace=False))
        self.tables: dict[str, Array] = {
            f"table{n}": rng.standard_normal((rows, WIDTH), np.float32) for n in range(TABLES)
        }
        self.make(1)

    def make(self, number: int) -> dict[str, tierstore.Rows]:
        """Make the tables those of a version; what changed."""
        rng = np.random.default_rng(1000 + number)
        changes = {}
        for name, table in self.tables.items():
            values = rng.standard_normal((len(self.stamped), WIDTH), np.float32)
            values[:, [0, -1]] = number
            table[self.stamped] = values
            changes[name] = tierstore.Rows(self.stamped, values)
        return changes

    @property
    def tensors(self) -> dict[str, Array]:
        return {**self.tables, STAMPED: self.stamped}


class Watch:
    """A thread that only sleeps: what holds it up is the machine."""

    def __init__(self) -> None:
        self._worst = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        last = time.perf_counter()
        while True:
            time.sleep(0.001)
            now = time.perf_counter()
            self._worst = max(self._worst, now - last)
            last = now

    def begin(self) -> None:
        self._worst = 0.0

    @property
    def worst_s(self) -> float:
        return self._worst


class Child:
    """A serving process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def hear(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = json.loads(line)
            if found["event"] == event:
                return dict(found)
        raise SystemExit(f"the serving process ended with {self._process.wait()}")


@contextmanager
def serving(folder: Path, name: str, way: Way, source: Path) -> Iterator[Child]:
    own = folder / name.replace(", ", "-").replace(" ", "-")
    own.mkdir()
    config = own / "node.toml"
    config.write_text(f'[hot]\nurl = "{own / "hot"}"\nsize = "3GiB"\n' if way.hot else "")
    env = {
        **os.environ, "TIERSTORE_CONFIG": str(config), "TIERSTORE_CACHE_DIR": str(own / "cache"),
    }  # fmt: skip
    argv = [sys.executable, "-m", "benchmarks.swap_child", way.kind, str(source), ref_of(name)]
    with subprocess.Popen(
        argv, env=env, cwd=HERE.parent, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            child = Child(process)
            child.hear("served")
            if way.batch:
                child.say(f"batch {way.batch}")
            yield child
            assert process.stdin is not None
            process.stdin.close()
        except BaseException:
            process.kill()
            raise


def alias_of(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def ref_of(name: str) -> str:
    return f"ranker@{alias_of(name)}"


def window(child: Child, seconds: float) -> dict[str, Any]:
    child.say("begin")
    time.sleep(seconds)
    child.say("end")
    return child.hear("window")


def swap_window(child: Child, number: int, publish: Any) -> dict[str, Any]:
    child.say("begin")
    time.sleep(AFTER_S)
    meant = time.time()
    publish()
    while (served := child.hear("served"))["number"] != number:
        pass
    time.sleep(AFTER_S)
    child.say("end")
    found = child.hear("window")
    for what in ("load_s", "fetched", "held_s"):
        found[what] = served[what]
    found["staleness_s"] = served["time"] - meant
    if number not in found["versions"]:
        raise SystemExit(f"version {number} was served, but no answer came from it")
    return found


def compare(chosen: Mapping[str, Way], how: str, rounds: int, gib: float) -> None:
    with tempfile.TemporaryDirectory(dir=HERE / ".data") as place, ExitStack() as stack:
        folder = Path(place)
        content = Content(gib)
        file, fresh = folder / "model.safetensors", folder / "fresh.safetensors"
        store = stack.enter_context(tierstore.init(folder / "store"))
        store.save("ranker", content.tensors, base=None)
        safetensors.numpy.save_file(content.tensors, file)
        children = {}
        for name, way in chosen.items():
            if way.kind != "file":
                store.alias("ranker", alias_of(name), "ranker@1")
            source = file if way.kind == "file" else folder / "store"
            children[name] = stack.enter_context(serving(folder, name, way, source))
        watch = Watch()
        for number in range(2, 3 * rounds + 2):
            left = {name: way for name, way in chosen.items() if not way.enough(rounds)}
            if not left:
                break
            changes = content.make(number)
            if how == "patch":
                store.patch(f"ranker@{number - 1}", changes)
            else:
                store.save("ranker", content.tensors, base=f"ranker@{number - 1}")
            if "file" in left:
                safetensors.numpy.save_file(content.tensors, fresh)
            os.sync()
            for name, way in left.items():

                def publish(name: str = name, way: Way = way, number: int = number) -> None:
                    if way.kind == "file":
                        fresh.replace(file)
                    else:
                        store.alias("ranker", alias_of(name), f"ranker@{number}")

                if number == 2:  # memory that the machine gives out for the first time is slow
                    swap_window(children[name], number, publish)
                    continue
                children[name].say("touch")  # an idle process's memory may have been taken
                children[name].hear("touched")
                watch.begin()
                way.add("quiet", window(children[name], QUIET_S), watch)
                watch.begin()
                way.add("swap", swap_window(children[name], number, publish), watch)
                print(".", end="", flush=True, file=sys.stderr)
        print(file=sys.stderr)


def most(windows: list[dict[str, Any]], what: str) -> float:
    return float(max(one[what] for one in windows))


def middle(windows: list[dict[str, Any]], what: str) -> float:
    return statistics.median(float(one[what]) for one in windows)


def table(how: str, chosen: Mapping[str, Way], gib: float) -> None:
    rows = []
    for name, way in chosen.items():
        quiet, swaps = way.windows["quiet"], way.windows["swap"]
        requests, answered = (sum(one[w] for one in swaps) for w in ("requests", "answered"))
        pause = most(swaps, "longest_s")
        rows.append([
            name,
            f"{1e3 * pause:.1f}" + (f" ({'MISSED' if pause > PAUSE_S else 'met'})" * way.held),
            1e3 * most(quiet, "longest_s"), 1e3 * most(swaps, "at_swap_s"),
            1e3 * most(swaps, "held_s"), 1e3 * most(swaps, "gap_s"),
            f"{1e3 * middle(swaps, 'p50_s'):.2f} / {1e3 * middle(quiet, 'p50_s'):.2f}",
            f"{1e3 * middle(swaps, 'p999_s'):.1f} / {1e3 * middle(quiet, 'p999_s'):.1f}",
            f"{answered / requests:.2%} of {requests}",
            sum(one["mixed"] + one["backwards"] for one in swaps),
            f"{middle(swaps, 'staleness_s'):.2f}", f"{middle(swaps, 'fetched') / MIB:.1f}",
            f"{most(swaps, 'peak_rss') / MIB:.0f}",
            way.disturbed,
        ])  # fmt: skip
    show(
        f"{gib:g} GiB, 1 % of the rows changed, published as a {how}; bar: 50 ms",
        ["way", "longest ms", "without", "at swap", "held", "gap ms", "p50 / without",
         "p99.9 / without", "answered", "mixed", "stale s", "MiB read", "peak MiB", "again"],
        rows,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--publish", nargs="+", choices=HOW, default=HOW)
    parser.add_argument("--ways", nargs="+", choices=list(ways()), default=list(ways()))
    options = parser.parse_args()
    results = {}
    for how in options.publish:
        chosen = {name: way for name, way in ways().items() if name in options.ways}
        compare(chosen, how, options.rounds, options.gib)
        table(how, chosen, options.gib)
        results[how] = chosen
    write_results("swap", {"gib": options.gib, "results": results})


if __name__ == "__main__":
    main()
