"""A process that answers requests while its model is replaced. Started by ``bench_swap``.

``WAY SOURCE REF``, where WAY is ``swap`` (the follower's arrays replace the old ones at once),
``inplace`` (what changed is written into weights that stay), ``mapped`` (the same, into weights
that were loaded from the node's hot tier, whose pages are its files') or ``file`` (what one does
without a store: look for a new file, load it with safetensors, swap). It reads commands from stdin,
and prints one line of JSON for each answer:

``touch``: read all weights once; ``begin``: answer requests from now on; ``end``: stop, and tell
how that went; ``batch N``: write in batches of N bytes from now on, 0 for all at once. ``served``
is told whenever a version came to be served.

A request looks up rows of every table. Some of them carry their version's number in their first and
last column, so the answer tells of which version the weights were; one that saw two is *mixed*.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import tierstore
from benchmarks.load_child import peak_rss, touch
from tierstore.serving import follow
from tierstore.serving.inplace import InPlace
from tierstore.serving.update import Update

THREADS = 4
THINK_S = 0.001
LOOKUPS = 64
LOOK_S = 0.05
STAMPED = "stamped"
"""Name of the tensor that tells which rows carry the version."""

Tables = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


class Meter:
    """What the requests of one window saw."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.took: list[float] = []
        self.failed = 0
        self.mixed = 0
        self.backwards = 0
        self.versions: set[int] = set()
        self.swaps: list[tuple[float, float]] = []

    @property
    def longest_at_swap(self) -> float:
        """Of the requests that ran while a version was taken."""
        begins = np.subtract(self.ends, self.took)
        at = [(begins < end) & (np.array(self.ends) > begin) for begin, end in self.swaps]
        return float(np.array(self.took)[np.logical_or.reduce(at)].max(initial=0)) if at else 0.0

    def report(self) -> dict[str, Any]:
        ends = np.sort(self.ends)
        took = np.sort(self.took)
        return {
            "requests": len(took) + self.failed, "answered": len(took), "mixed": self.mixed,
            "backwards": self.backwards, "versions": sorted(self.versions),
            "longest_s": float(took[-1]), "at_swap_s": self.longest_at_swap,
            "gap_s": float(np.diff(ends).max()),
            "p50_s": float(np.quantile(took, 0.5)), "p999_s": float(np.quantile(took, 0.999)),
            "peak_rss": peak_rss(),
        }  # fmt: skip


class Server:
    """Threads that answer, and the weights that they answer from."""

    def __init__(self, guard: contextlib.AbstractContextManager[Any]) -> None:
        self.tables: Tables = {}
        self.guard = guard
        self._open = threading.Event()
        self._meter = Meter()
        self._lock = threading.Lock()
        self._busy: list[threading.Thread] = []

    def begin(self) -> None:
        self._meter = Meter()
        self._open.set()
        self._busy = [threading.Thread(target=self._answer, args=(n,)) for n in range(THREADS)]
        for thread in self._busy:
            thread.start()

    def swapped(self, began: float) -> None:
        """A version was taken since ``began``."""
        self._meter.swaps.append((began, time.perf_counter()))

    def end(self) -> dict[str, Any]:
        self._open.clear()
        for thread in self._busy:
            thread.join()
        return self._meter.report()

    def _answer(self, seed: int) -> None:
        rng, meter = np.random.default_rng(seed), self._meter
        newest, due = 0, time.perf_counter()
        while self._open.is_set():
            try:
                versions = self._request(rng)
            except Exception as error:  # what a user would see as a failed request
                print(f"a request failed: {error!r}", file=sys.stderr)
                with self._lock:
                    meter.failed += 1
                continue
            ended = time.perf_counter()
            with self._lock:
                meter.ends.append(ended)
                meter.took.append(ended - due)
                meter.versions |= versions
                meter.mixed += len(versions) > 1
                meter.backwards += min(versions) < newest
            newest, due = max(versions), ended + THINK_S
            time.sleep(THINK_S)

    def _request(self, rng: np.random.Generator) -> set[int]:
        with self.guard:
            tables = self.tables
            stamped = tables[STAMPED]
            seen: set[int] = set()
            for name, table in tables.items():
                if name == STAMPED:
                    continue
                ours = stamped[rng.integers(0, len(stamped), LOOKUPS // 4)]
                rows = table[np.concatenate([ours, rng.integers(0, len(table), LOOKUPS)])]
                rows.mean(axis=0)
                seen |= set(rows[: len(ours), [0, -1]].ravel().tolist())
        return {int(version) for version in seen}


def tell(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def number_of(tables: Tables) -> int:
    name = next(name for name in tables if name != STAMPED)
    return int(tables[name][tables[STAMPED][0], 0])


def told(server: Server, update: Update, began: float, held: float = 0.0) -> None:
    server.swapped(began)
    tell("served", number=number_of(update.tensors), time=time.time(), load_s=update.load_s,
         fetched=update.stats.bytes_fetched, held_s=held)  # fmt: skip


def swapped(server: Server, ref: str, store: tierstore.Store) -> Any:
    def on_ready(update: Update) -> None:
        began = time.perf_counter()
        server.tables = update.tensors
        told(server, update, began)

    return follow(ref, on_ready, store=store, poll_s=LOOK_S)


def in_place(
    server: Server, ref: str, store: tierstore.Store, batch: list[int], *, mapped: bool
) -> Any:
    state: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}

    def on_ready(update: Update) -> None:
        if mapped:  # anew for each: pages that were written to before are ours already
            state.update(store.load(update.previous or update.version).load())
            touch(state.values())
        elif not state:
            state.update((name, np.empty_like(new)) for name, new in update.tensors.items())
        server.tables = state
        began = time.perf_counter()
        apply = InPlace(state, server.guard, batch_bytes=batch[0] or None)
        apply(update)
        told(server, update, began, apply.longest_pause_s)

    return follow(ref, on_ready, store=store, poll_s=LOOK_S)


@contextlib.contextmanager
def from_file(server: Server, path: Path) -> Any:
    stop = threading.Event()

    def look() -> None:
        seen = 0
        while not stop.is_set():
            found = path.stat().st_ino
            if found != seen:
                seen, began = found, time.perf_counter()
                tables = safetensors.numpy.load_file(path)
                server.swapped(began)
                server.tables = tables
                facts = {"load_s": time.perf_counter() - began, "fetched": path.stat().st_size}
                tell("served", number=number_of(tables), time=time.time(), held_s=0.0, **facts)
                del tables
            stop.wait(LOOK_S)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def commands(server: Server, batch: list[int]) -> None:
    actions: dict[str, Callable[[], Any]] = {
        "touch": lambda: tell("touched", sum=touch(server.tables.values())),
        "begin": server.begin,
        "end": lambda: tell("window", **server.end()),
    }
    for line in sys.stdin:
        word, _, value = line.strip().partition(" ")
        if word == "batch":
            batch[0] = int(value)
        else:
            actions[word]()


def main() -> None:
    way, source, ref = sys.argv[1:4]
    batch = [0]
    with contextlib.ExitStack() as stack:
        if way == "file":
            server = Server(contextlib.nullcontext())
            stack.enter_context(from_file(server, Path(source)))
        else:
            store = stack.enter_context(tierstore.open(source))
            guard = contextlib.nullcontext() if way == "swap" else threading.Lock()
            server = Server(guard)
            following = (
                swapped(server, ref, store)
                if way == "swap"
                else in_place(server, ref, store, batch, mapped=way == "mapped")
            )
            stack.enter_context(following)
        commands(server, batch)


if __name__ == "__main__":
    main()
