"""Rows read one by one, each from a block of its own, with proofs and without: what they cost.

A bf16 embedding of 256 MiB is stored once, and opened twice: with the layout that a save writes,
and with one that knows no proofs, which is how rows were read before there were any. Each row lies
in a block that nobody has read, and is read through both, which take turns at going first. From the
page cache (a local store), and with ``--s3`` from a Ceph radosgw with its data in memory.

A third one reads the whole chunk for every row (``TIERSTORE_VERIFY_PARTS=chunks``), which is what
chunks without proofs can be asked to do.

Then saves of the same file, with the native part that makes proofs and without, by CPU time.

Run: ``python -m benchmarks.bench_parts [--rows 400] [--saves 7] [--s3]``
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from benchmarks.data import bench_dir
from tests.servers.ceph import ceph_cluster
from tierstore.config import VERIFY_PARTS
from tierstore.format import proof
from tierstore.format.keys import layout_key
from tierstore.format.layout import seal_layout

COLUMNS, ROWS = 1024, 128 << 10
BLOCK_ROWS = (256 << 10) // (2 * COLUMNS)
AT_MOST = {"page cache": 1.6, "radosgw": 1.15}
SAVE_AT_MOST = 1.02

Results = dict[str, Any]


def embedding() -> np.ndarray:
    """Words of bf16 as they are in weights, without the dtype: rows are compared bit by bit."""
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32) * np.float32(
        0.02
    )
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def without_proofs(store: tierstore.Store) -> None:
    """Write the layout as it was before there were proofs; what is open keeps the other."""
    home, digest = store._parts.home, store.resolve("m").digest
    table = home.layout(digest, home.manifest(digest))
    sizes = dict(zip(table.pack_ids, table.pack_sizes, strict=True))
    places = [replace(one, proof_bytes=0) for one in table]
    home.blobs.put(layout_key(digest), seal_layout(digest, places, sizes))


def rows(url: str, words: np.ndarray, where: str, count: int) -> Results:
    import ml_dtypes

    with tierstore.init(url) as store:
        store.save("m", {"w": words.view(ml_dtypes.bfloat16)})
        proven = store.load("m").tensor("w")
        without_proofs(store)
        plain = store.load("m").tensor("w")
        with variable(VERIFY_PARTS, "chunks"), tierstore.open(url) as strict:
            whole = strict.load("m").tensor("w")
            tensors = {"proofs": proven, "checksums": plain, "whole chunks": whole}
            samples = read_all(tensors, words, count)
    base = samples["checksums"]
    ratios = {
        what: {
            name: paired_ratio([getattr(s, what) for s in of], [getattr(s, what) for s in base])
            for name, of in samples.items()
        }
        for what in ("wall", "cpu")
    }
    show(
        f"a row of {2 * COLUMNS} bytes, from the {where} (median of {count}, each of a new block)",
        ("verified by", "ms", "times that of checksums", "CPU ms", "times"),
        [
            (
                name,
                1e3 * median(of, "wall"),
                target(ratios["wall"][name], "<=", AT_MOST[where])
                if name == "proofs"
                else ratios["wall"][name],
                1e3 * median(of, "cpu"),
                ratios["cpu"][name],
            )
            for name, of in samples.items()
        ],
    )
    return ratios


def read_all(
    tensors: dict[str, tierstore.Tensor], words: np.ndarray, count: int
) -> dict[str, list[Sample]]:
    rng = np.random.default_rng(7)
    wanted = rng.permutation(ROWS // BLOCK_ROWS)[:count] * BLOCK_ROWS + rng.integers(BLOCK_ROWS)
    samples: dict[str, list[Sample]] = {name: [] for name in tensors}
    names = list(tensors)
    for number, row in enumerate(wanted.tolist()):
        for at in range(len(names)):
            name = names[(number + at) % len(names)]
            began, cpu = time.perf_counter(), time.process_time()
            read = tensors[name][row]
            taken = time.perf_counter() - began, time.process_time() - cpu
            samples[name].append(Sample(*taken))
            assert read.tobytes() == words[row].tobytes()
    return samples


def saves(words: np.ndarray, work: Path, count: int) -> Results:
    import ml_dtypes

    tensors = {"w": words.view(ml_dtypes.bfloat16)}
    native = proof._native

    def save(*, proofs: bool) -> Sample:
        shutil.rmtree(work / "saved", ignore_errors=True)
        with tierstore.init(work / "saved") as store:
            proof._native = native if proofs else None
            try:
                return timed(lambda: {"version": store.save("m", tensors).number})
            finally:
                proof._native = native

    runs = {"proofs": lambda: save(proofs=True), "digests alone": lambda: save(proofs=False)}
    samples = alternate(runs, count)
    cpu = {name: [one.cpu for one in of] for name, of in samples.items()}
    ratio = paired_ratio(cpu["proofs"], cpu["digests alone"])
    show(
        f"a save of {words.nbytes / MIB:.0f} MiB (median of {count})",
        ("hashing", "CPU s", "s", "times that of digests"),
        [
            (
                name,
                median(of, "cpu"),
                median(of, "wall"),
                target(ratio, "<=", SAVE_AT_MOST) if name == "proofs" else "",
            )
            for name, of in samples.items()
        ],
    )
    return {"cpu": cpu, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--saves", type=int, default=7)
    parser.add_argument("--s3", action="store_true")
    args = parser.parse_args()
    words = embedding()
    results: Results = {}
    with tempfile.TemporaryDirectory(dir=bench_dir()) as folder:
        work = Path(folder)
        os.environ["TIERSTORE_CACHE_DIR"] = str(work / "cache")
        results["page cache"] = rows(str(work / "store"), words, "page cache", args.rows)
        if args.s3:
            (work / "ceph").mkdir()
            with ceph_cluster(work / "ceph") as ceph:
                os.environ.update(ceph.environment)
                url = f"s3://{ceph.bucket()}/parts"
                results["radosgw"] = rows(url, words, "radosgw", args.rows)
        results["saves"] = saves(words, work, args.saves)
    write_results("parts", results)


if __name__ == "__main__":
    main()
