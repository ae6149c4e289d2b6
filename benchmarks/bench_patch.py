"""Patches of an embedding table: what publishing, applying and reading them costs.

A table of normally distributed float32, rows of 256 bytes and of 1 KiB, of which 1 % at random get
new values; a local store on this disk.

* ``publish``: ``Store.patch`` of these rows against a full save of the table: bytes written (every
  file of the store that is new or changed) for each changed byte, and time. Full saves go into an
  empty store without a base, and as the next version with deltas; the faster one counts.
* ``size``: the same count of rows published into tables of 0.25, 1 and 4 GiB.
* ``node``: bytes that a node reads (everything, metadata included) to come from v1 to v2: by
  ``Store.patches`` and ``apply_to`` on what it has in memory, and by loading v2 where the chunks of
  v1 are in its hot tier.
* ``chain``: loading through 16 patches of 1 % against the same version folded, and 1,000 rows.

Times are medians of runs in turn; every result is compared with the expected bytes. Run:
``python -m benchmarks.bench_patch [--rounds 5] [--only publish size node chain] [--largest 4]``
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import tierstore
from benchmarks.common import (
    MIB,
    Sample,
    alternate,
    median,
    paired_ratio,
    show,
    target,
    timed,
    write_results,
)
from tierstore import Rows
from tierstore.blobs.base import RangeRead
from tierstore.blobs.local.store import LocalStore
from tierstore.ids import ByteRange
from tierstore.modelstore.loading.arrays import ArrayBytes
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store
from tierstore.placement.policies import DEFAULT_POLICY, make
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import LocalHot

GIB = 1 << 30
HERE = Path(__file__).parent / ".data" / "patch"
WIDTHS = (256, 1024)
SHARE = 0.01
_TILE = 64 * MIB
Array = np.ndarray[Any, Any]


class Table(ArrayBytes):
    """A table of any size out of one block of numbers: each tile is turned by another offset, so
    that no two chunks are equal. ``changes`` lie over it.
    """

    def __init__(self, nbytes: int, width: int, seed: int = 0) -> None:
        self.dtype, self.shape = "F32", (nbytes // width, width // 4)
        self.nbytes, self.width = nbytes, width
        self._block = np.random.default_rng(seed).standard_normal(_TILE // 4, np.float32)
        self._block = self._block.view(np.uint8)
        self.changes: tuple[Array, Array] = (np.empty(0, np.int64), np.empty((0, width), np.uint8))

    def read_into(self, start: int, out: memoryview) -> None:
        data = np.frombuffer(out, np.uint8)
        at = 0
        while at < len(data):
            tile, offset = divmod(start + at, _TILE)
            length = min(len(data) - at, _TILE - offset)
            begin = (offset + tile * 4100) % _TILE
            first = min(length, _TILE - begin)
            data[at : at + first] = self._block[begin : begin + first]
            data[at + first : at + length] = self._block[: length - first]
            at += length
        rows, values = self.changes
        low, high = np.searchsorted(
            rows, [-(-start // self.width), (start + len(data)) // self.width]
        )
        for row, value in zip(rows[low:high].tolist(), values[low:high], strict=True):
            begin = row * self.width - start
            data[begin : begin + self.width] = value


def changed_rows(table: Table, count: int, seed: int) -> tuple[Array, Array]:
    """Random rows, ascending, and new values for them."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(table.shape[0], count, replace=False))
    return rows, rng.standard_normal((count, table.width // 4), np.float32)


class Metered(LocalStore):
    """Counts every byte that is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.bytes = 0

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        found = super().get(key, byte_range)
        self.bytes += len(found)
        return found

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        super().get_ranges(reads)
        self.bytes += sum(len(read.out) for read in reads)


@contextmanager
def scratch() -> Iterator[Path]:
    HERE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=HERE))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def node(folder: Path, name: str, hot: HotTiers | None = None) -> tuple[Metered, Store]:
    """The store in ``folder`` as another node opens it."""
    blobs = Metered(folder / "store")
    return blobs, Store(blobs, Settings(folder / name), hot=hot)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in (folder / "store").rglob("*")
        if path.is_file() and "leases" not in path.parts
    }


def written(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> int:
    return sum(facts[0] for path, facts in after.items() if before.get(path) != facts)


def saved(folder: Path, table: Table) -> Store:
    store = tierstore.init(folder / "store")
    store.save("table", {"emb": table}, base=None)
    return store


def publish(width: int, rounds: int) -> dict[str, Any]:
    table = Table(GIB, width)
    count = int(table.shape[0] * SHARE)
    with scratch() as folder, saved(folder, table) as store:
        numbers: dict[str, float] = {}
        seeds = iter(range(1000))

        def patch() -> Sample:
            rows, values = changed_rows(table, count, next(seeds))
            before = files_of(folder)
            sample = timed(lambda: _published(store, rows, values, numbers))
            numbers["bytes"] = written(before, files_of(folder)) / (count * width)
            numbers["objects"] = len(set(files_of(folder)) - set(before))
            return sample

        def save() -> Sample:
            with scratch() as other, tierstore.init(other / "store") as empty:
                return timed(lambda: _saved(empty, table, None))

        def resave() -> Sample:
            rows, values = changed_rows(table, count, next(seeds))
            with scratch() as other, saved(other, table) as full:
                table.changes = (rows, values.view(np.uint8))
                sample = timed(lambda: _saved(full, table, "auto"))
                table.changes = (rows[:0], values[:0].view(np.uint8))
            return sample

        samples = alternate({"patch": patch, "save": save, "re-save": resave}, rounds, warmup=0)
        rows, values = changed_rows(table, count, 77)
        newest = store.patch("table@1", {"emb": Rows(rows, values)}, fold=False)
        got = store.load(str(newest)).tensor("emb")
        assert got[rows[:500]].tobytes() == values[:500].tobytes()
        walls = {name: [sample.wall for sample in own] for name, own in samples.items()}
        return {
            "width": width, "rows": count, "changed_bytes": count * width, **numbers,
            "patch_s": median(samples["patch"], "wall"), "save_s": median(samples["save"], "wall"),
            "resave_s": median(samples["re-save"], "wall"),
            "time": max(paired_ratio(walls["patch"], walls[one]) for one in ("save", "re-save")),
        }  # fmt: skip


def _published(store: Store, rows: Array, values: Array, numbers: dict[str, float]) -> None:
    version = store.patch("table@1", {"emb": Rows(rows, values)}, fold=False)
    assert version.stats is not None
    numbers["stored"] = version.stats.stored_bytes


def _saved(store: Store, table: Table, base: str | None) -> None:
    store.save("table", {"emb": table}, base=base)


def size(rounds: int, largest: float) -> list[dict[str, Any]]:
    """The same patch of 1 % of 0.25 GiB's rows into tables of several sizes."""
    width, count = 256, int(GIB // 4 // 256 * SHARE)
    found = []
    for gib in (0.25, 1.0, 4.0):
        if gib > largest:
            continue
        table = Table(int(gib * GIB), width)
        with scratch() as folder, saved(folder, table) as store:
            walls = []
            for number in range(2 * rounds + 1):
                rows, values = changed_rows(table, count, number)
                started = time.perf_counter()
                store.patch("table@1", {"emb": Rows(rows, values)}, fold=False)
                walls.append(time.perf_counter() - started)
            found.append({"gib": gib, "rows": count, "patch_s": float(np.median(walls[1:]))})
    return found


def moved(width: int) -> dict[str, Any]:
    table = Table(GIB, width)
    count = int(table.shape[0] * SHARE)
    with scratch() as folder, saved(folder, table) as store:
        rows, values = changed_rows(table, count, 5)
        changed = count * width
        hot = HotTiers(
            LocalHot(
                folder / "hot", store._parts.home.config.store_id, 2 * GIB,
                lambda capacity: make(DEFAULT_POLICY, capacity),
            )
        )  # fmt: skip
        blobs, serving = node(folder, "serving", hot)
        serving.warmup("table@1")
        state = {"emb": store.load("table@1")["emb"]}
        store.patch("table", {"emb": Rows(rows, values)}, fold=False)
        streaming_blobs, streaming = node(folder, "streaming")
        streaming_blobs.bytes = 0
        for patch in streaming.patches(since="table@1"):
            patch.apply_to(state)
        blobs.bytes = 0
        got = serving.load("table@2")["emb"]
        assert got[rows].tobytes() == values.tobytes()
        assert got.tobytes() == state["emb"].tobytes()
        serving.close()
        streaming.close()
        return {
            "width": width, "changed_bytes": changed,
            "streamed": streaming_blobs.bytes / changed, "loaded": blobs.bytes / changed,
        }  # fmt: skip


def chain(width: int, rounds: int) -> dict[str, Any]:
    table = Table(GIB, width)
    count = int(table.shape[0] * SHARE)
    with scratch() as folder, saved(folder, table) as store:
        for number in range(16):
            rows, values = changed_rows(table, count, number)
            store.patch("table", {"emb": Rows(rows, values)}, fold=False)
        chained = store.load("table")
        assert len(chained._opened.patches) == 16
        started = time.perf_counter()
        done = store.fold("table")
        fold_s = time.perf_counter() - started
        folded = store.load("table")
        assert not folded._opened.patches
        buffers = {"emb": np.empty(table.shape, np.float32)}
        rng = np.random.default_rng(1)

        def load(model: tierstore.Model) -> Callable[[], Sample]:
            return lambda: timed(lambda: model.load_into(buffers))

        def pick(model: tierstore.Model) -> Callable[[], Sample]:
            some = rng.integers(0, table.shape[0], 1000)
            return lambda: timed(lambda: _read(model, some))

        loads = alternate({"chain": load(chained), "folded": load(folded)}, rounds)
        picks = alternate({"chain": pick(chained), "folded": pick(folded)}, rounds)
        chained.load_into(buffers)
        once = buffers["emb"].tobytes()
        folded.load_into(buffers)
        assert buffers["emb"].tobytes() == once
        del once
        store.rebase("table", above=1)
        full = store.load("table")
        alone = alternate({"chain": load(chained), "full": load(full)}, rounds)
        assert done.stats is not None
        return {
            "width": width, "chain_s": median(loads["chain"], "wall"),
            "folded_s": median(loads["folded"], "wall"), "fold_s": fold_s,
            "fold_stored": done.stats.stored_bytes,
            "load": _ratio(loads, "chain", "folded"), "rows": _ratio(picks, "chain", "folded"),
            "standalone": _ratio(alone, "chain", "full"),
        }  # fmt: skip


def _read(model: tierstore.Model, rows: Array) -> None:
    model.tensor("emb")[rows]


def _ratio(samples: dict[str, list[Sample]], above: str, below: str) -> float:
    return paired_ratio([s.wall for s in samples[above]], [s.wall for s in samples[below]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest", type=float, default=4.0, help="GiB")
    parts = ("publish", "size", "node", "chain")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    os.environ["TIERSTORE_CACHE_DIR"] = tempfile.mkdtemp()
    results: dict[str, Any] = {}
    if "publish" in options.only:
        results["publish"] = [publish(width, options.rounds) for width in WIDTHS]
        show(
            "publish 1 % random rows of 1 GiB",
            ["row bytes", "written / changed", "new objects", "patch s", "full save s",
             "re-save s", "patch / faster save"],
            [
                (one["width"], target(one["bytes"], "<=", 1.3), int(one["objects"]), one["patch_s"],
                 one["save_s"], one["resave_s"], target(one["time"], "<=", 0.1))
                for one in results["publish"]
            ],
        )  # fmt: skip
    if "size" in options.only:
        results["size"] = size(options.rounds, options.largest)
        first = results["size"][0]["patch_s"]
        show(
            f"publish {results['size'][0]['rows']:,} rows of 256 bytes",
            ["table GiB", "patch s", "to the smallest"],
            [(one["gib"], one["patch_s"], one["patch_s"] / first) for one in results["size"]],
        )
    if "node" in options.only:
        results["node"] = [moved(width) for width in WIDTHS]
        show(
            "bytes read from v1 to v2 for each changed byte",
            ["row bytes", "patches applied in memory", "load with v1 hot"],
            [
                (one["width"], target(one["streamed"], "<=", 1.3), target(one["loaded"], "<=", 1.3))
                for one in results["node"]
            ],
        )
    if "chain" in options.only:
        results["chain"] = [chain(width, options.rounds) for width in WIDTHS]
        show(
            "16 patches of 1 % on 1 GiB",
            ["row bytes", "chain s", "folded s", "chain / folded", "chain / standalone",
             "1,000 rows", "fold s", "fold MiB"],
            [
                (one["width"], one["chain_s"], one["folded_s"], target(one["load"], "<=", 1.5),
                 one["standalone"], one["rows"], one["fold_s"], one["fold_stored"] / MIB)
                for one in results["chain"]
            ],
        )  # fmt: skip
    write_results("patch", results)


if __name__ == "__main__":
    main()
