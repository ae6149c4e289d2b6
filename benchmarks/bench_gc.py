"""Collecting garbage: how long a mark of a large store takes, and deleting against restic and borg.

``scale``: a generated home of 10^4 versions, 10^6 chunks and 65,700 packs on a local disk. Each row
is a process of its own: the first mark with nothing cached, one that finds nothing new, and one
after a hundredth of the versions was removed.

``radosgw``: a smaller home on a real Ceph radosgw with its data in memory (500 versions, 12,000
chunks of 8 KiB, 1,110 packs): requests by kind, as the server's own log counts them, and seconds.
Each row is a process of its own again.

``peers``: 20 versions of a model of about 1 GiB, as if a fifth of its tensors were trained again
every night. Every second version is removed, without a time in which that can be undone, until the
space is free: ``tierstore rm`` and ``gc``, restic ``forget`` and ``prune``, borg ``delete`` and
``compact``. Each run works on a fresh copy of the same repository. What could be freed at most is
what a repository of the other ten versions alone does not need; the share of that is told, too.

Run: ``python -m benchmarks.bench_gc [scale] [radosgw] [peers] [--rounds 5] [--versions 20]
[--small]``
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.bench_save import PASSWORD
from benchmarks.common import (
    MIB,
    Sample,
    alternate,
    input_file,
    median,
    paired_ratio,
    run_child,
    show,
    target,
    write_results,
)
from benchmarks.data import bench_dir
from benchmarks.generated import Shape, generate
from tests.servers.ceph import Ceph, ceph_cluster
from tests.waiting import wait_until
from tierstore.format.safetensors import Header, header_length, parse_header
from tierstore.wiring import open_blobs

NO_OP_SECONDS, MARK_SECONDS, PEAK_MIB = 10.0, 60.0, 512.0
TIMES_FASTER, SHARE_WITHIN = 3.0, 0.05
KINDS = ("LIST", "GET", "HEAD", "PUT", "DELETE")
"""Kinds of requests; a DELETE has up to a thousand keys."""

_REQUEST = re.compile(r'beast: .* "([A-Z]+) (\S+) HTTP')
CHANGED = 5
"""A version has other values in every fifth tensor."""

PARTS = ["scale", "radosgw", "peers"]
TIERSTORE = [sys.executable, "-m", "tierstore"]
GC = [*TIERSTORE, "gc", "--grace", "0", "--window", "0", "--quiet"]


def scale(parent: Path, rounds: int, shape: Shape) -> dict[str, Any]:
    store, cache = parent / "store", parent / "cache"
    made = generate(store, shape)
    env = {"TIERSTORE_STORE": str(store), "TIERSTORE_CACHE_DIR": str(cache)}
    run_child([*TIERSTORE, "gc", "--enable", "--yes", "--wait", "0", "--quiet"], env)

    def first() -> Sample:
        shutil.rmtree(cache, ignore_errors=True)
        return run_child(GC, env)[0]

    samples = alternate({"full mark": first, "nothing new": lambda: run_child(GC, env)[0]}, rounds)
    refs = [f"model-{at:05d}@{at % (shape.versions - 1) + 1}" for at in range(shape.models)]
    run_child([*TIERSTORE, "rm", *refs, "--quiet"], env)
    samples["a hundredth removed"] = [run_child(GC, env)[0]]
    show(
        f"gc of {made.versions} versions, {made.chunks} chunks, {made.packs} packs "
        f"(median of {rounds})",
        ("run", "wall s", "CPU s", "peak RSS MiB"),
        [
            (name, median(s, "wall"), median(s, "cpu"), median(s, "peak_rss") / MIB)
            for name, s in samples.items()
        ],
    )
    mark, no_op = samples["full mark"], samples["nothing new"]
    show(
        "targets",
        ("what", "value"),
        [
            ("nothing new, seconds", target(median(no_op, "wall"), "<=", NO_OP_SECONDS)),
            ("nothing new, MiB", target(median(no_op, "peak_rss") / MIB, "<=", PEAK_MIB)),
            ("full mark, seconds", target(median(mark, "wall"), "<=", MARK_SECONDS)),
        ],
    )
    return {"samples": samples, "versions": made.versions, "packs": made.packs}


def radosgw(parent: Path, rounds: int, shape: Shape) -> dict[str, Any]:
    made, cache = generate(parent / "made", shape), parent / "cache"
    (parent / "ceph").mkdir()
    with ceph_cluster(parent / "ceph") as ceph:
        url = f"s3://{ceph.bucket()}/home"
        env = {**ceph.environment, "TIERSTORE_STORE": url, "TIERSTORE_CACHE_DIR": str(cache)}
        os.environ.update(ceph.environment)
        with open_blobs(str(parent / "made")) as old, open_blobs(url) as new:
            objects = [info.key for info in old.list()]
            new.put_many({key: old.get(key) for key in objects})
        run_child([*TIERSTORE, "gc", "--enable", "--yes", "--wait", "0", "--quiet"], env)

        def counted() -> Sample:
            before = _requests(ceph)
            sample, _ = run_child(GC, env)
            sample.extra = dict(_requests(ceph) - before)
            return sample

        def first() -> Sample:
            shutil.rmtree(cache, ignore_errors=True)
            return counted()

        samples = {"first of all": [first()]}
        samples |= alternate({"full mark": first, "nothing new": counted}, rounds)
        refs = [f"model-{at:05d}@{at % (shape.versions - 1) + 1}" for at in range(shape.models)]
        run_child([*TIERSTORE, "rm", *refs, "--quiet"], env)
        samples[f"{len(refs)} versions removed"] = [counted()]
    show(
        f"gc on radosgw of {made.versions} versions, {made.chunks} chunks, {made.packs} packs, "
        f"{len(objects)} objects (median of {rounds})",
        ("run", "wall s", "CPU s", "requests", *KINDS),
        [
            (
                name,
                median(s, "wall"),
                median(s, "cpu"),
                *(int(median(s, kind)) for kind in ("requests", *KINDS)),
            )
            for name, s in samples.items()
        ],
    )
    return {
        "samples": samples,
        "versions": made.versions,
        "chunks": made.chunks,
        "packs": made.packs,
        "objects": len(objects),
    }


def _requests(ceph: Ceph) -> Counter[str]:
    """Return how many requests radosgw has answered so far, by kind and together."""
    end = uuid.uuid4().hex  # once this one is in the log, all before it are
    ceph.client().list_objects_v2(Bucket=ceph.bucket(), Prefix=end)
    log = ceph.folder / "client.rgw.a.log"
    wait_until(lambda: end in log.read_text(), "radosgw logs a request")
    found: Counter[str] = Counter(dict.fromkeys(("requests", *KINDS), 0))
    for method, path in _REQUEST.findall(log.read_text()):
        found["requests"] += 1
        kind = "LIST" if method == "GET" and "list-type=2" in path else method
        found["DELETE" if kind == "POST" else kind] += 1
    return found


@dataclass(frozen=True, slots=True)
class Program:
    """How a program keeps versions in a repository, and removes them.

    Attributes:
        init: Makes a repository.
        save: Stores the source file as version N.
        remove: Removes versions by their numbers, until their space is free.
    """

    init: Callable[[Path], list[list[str]]]
    save: Callable[[Path, Path, int], list[list[str]]]
    remove: Callable[[Path, Sequence[int]], list[list[str]]]


def ours() -> Program:
    def at(repo: Path, *command: str) -> list[str]:
        return [*TIERSTORE, *command, "--store", str(repo), "--quiet"]

    return Program(
        lambda repo: [
            at(repo, "init", str(repo)),
            at(repo, "gc", "--enable", "--yes", "--wait", "0"),
        ],
        lambda repo, source, number: [at(repo, "save", "bench", str(source))],
        lambda repo, numbers: [
            at(repo, "rm", *[f"bench@{number}" for number in numbers]),
            at(repo, "gc", "--grace", "0", "--window", "0"),
        ],
    )


def restic() -> Program:
    def at(repo: Path, *command: str) -> list[str]:
        return ["restic", "--quiet", "--no-cache", "--repo", str(repo), *command]

    def remove(repo: Path, numbers: Sequence[int]) -> list[list[str]]:
        _, out = run_child(at(repo, "snapshots", "--json"), PASSWORD)
        ids = {snapshot["tags"][0]: snapshot["id"] for snapshot in json.loads(out)}
        return [at(repo, "forget", *[ids[f"v{number}"] for number in numbers]), at(repo, "prune")]

    return Program(
        lambda repo: [at(repo, "init")],
        lambda repo, source, number: [at(repo, "backup", "--tag", f"v{number}", str(source))],
        remove,
    )


def borg() -> Program:
    def remove(repo: Path, numbers: Sequence[int]) -> list[list[str]]:
        names = [f"v{number}" for number in numbers]
        return [["borg", "delete", str(repo), *names], ["borg", "compact", str(repo)]]

    return Program(
        lambda repo: [["borg", "init", "-e", "none", str(repo)]],
        lambda repo, source, number: [
            ["borg", "create", "--compression", "lz4", f"{repo}::v{number}", str(source)]
        ],
        remove,
    )


PROGRAMS = {"ours": ours, "restic": restic, "borg": borg}


def versions(source: Path, count: int, into: Path) -> Iterator[int]:
    """Write one version after the other into the same file; give their numbers."""
    shutil.copyfile(source, into)
    with source.open("rb") as file:
        start = file.read(8)
        header = parse_header(start + file.read(header_length(start)), None)
    for number in range(1, count + 1):
        if number > 1:
            _change(into, header, number)
        yield number


def _change(path: Path, header: Header, number: int) -> None:
    rng = np.random.default_rng(number)
    with path.open("r+b") as file:
        for tensor in header.tensors[::CHANGED]:
            if tensor.dtype != "BF16":
                continue
            file.seek(len(header.raw) + tensor.begin)
            old = np.frombuffer(file.read(tensor.end - tensor.begin), ml_dtypes.bfloat16)
            noise = 1 + np.float32(1e-3) * rng.standard_normal(old.shape, np.float32)
            file.seek(len(header.raw) + tensor.begin)
            file.write((old.astype(np.float32) * noise).astype(ml_dtypes.bfloat16).tobytes())


def _bytes(repo: Path) -> int:
    du = subprocess.run(["du", "-sb", repo], capture_output=True, text=True, check=True)
    return int(du.stdout.split()[0])


def _save(program: Program, source: Path, parent: Path, count: int, kept: Sequence[int]) -> Path:
    """Make a repository of those versions among ``count`` that are kept."""
    repo, file = parent / "repo", parent / "model.safetensors"
    parent.mkdir()
    env = _env(parent)
    for argv in program.init(repo):
        run_child(argv, env)
    for number in versions(source, count, file):
        for argv in program.save(repo, file, number) if number in kept else ():
            run_child(argv, env)
    file.unlink()
    return repo


def _env(parent: Path) -> dict[str, str]:
    return {
        **PASSWORD,
        "BORG_BASE_DIR": str(parent / "borg"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "TIERSTORE_CACHE_DIR": str(parent / "cache"),
    }


def _remove(program: Program, made: Path, numbers: Sequence[int], least: int) -> Sample:
    """Remove versions from a copy of a repository with its caches; ``least`` bytes must stay."""
    with tempfile.TemporaryDirectory(dir=made.parent.parent) as folder:
        copy = Path(folder) / made.parent.name
        shutil.copytree(made.parent, copy, symlinks=True)
        subprocess.run(["sync"], check=True)
        repo, env, total = copy / made.name, _env(copy), Sample(0.0, 0.0)
        before = _bytes(repo)
        for argv in program.remove(repo, numbers):
            sample, _ = run_child(argv, env)
            total.wall += sample.wall
            total.cpu += sample.cpu
        total.extra = {"before": before, "after": _bytes(repo)}
        total.extra["freed_share"] = (before - total.extra["after"]) / (before - least)
        return total


def peers(parent: Path, rounds: int, count: int, source: Path) -> dict[str, Any]:
    gone = range(1, count, 2)
    kept = [number for number in range(1, count + 1) if number not in gone]
    runs: dict[str, Callable[[], Sample]] = {}
    for name, make in PROGRAMS.items():
        program = make()
        least = _bytes(_save(program, source, parent / f"{name}-kept", count, kept))
        shutil.rmtree(parent / f"{name}-kept")
        made = _save(program, source, parent / name, count, range(1, count + 1))

        def run(program: Program = program, made: Path = made, least: int = least) -> Sample:
            return _remove(program, made, gone, least)

        runs[name] = run
    samples = alternate(runs, rounds, warmup=0)
    show(
        f"{len(gone)} of {count} versions removed, {source.stat().st_size / MIB:.0f} MiB each "
        f"(median of {rounds})",
        ("program", "wall s", "CPU s", "MB before", "MB after", "share freed"),
        [
            (
                name,
                median(s, "wall"),
                median(s, "cpu"),
                median(s, "before") / 1e6,
                median(s, "after") / 1e6,
                f"{median(s, 'freed_share'):.3f}",
            )
            for name, s in samples.items()
        ],
    )
    fastest = min(("restic", "borg"), key=lambda name: median(samples[name], "wall"))
    times = paired_ratio([s.wall for s in samples[fastest]], [s.wall for s in samples["ours"]])
    differs = abs(median(samples[fastest], "freed_share") - median(samples["ours"], "freed_share"))
    show(
        "targets",
        ("what", "of", "value"),
        [
            ("faster, times", fastest, target(times, ">=", TIMES_FASTER)),
            ("share freed, differs", fastest, target(differs, "<=", SHARE_WITHIN)),
        ],
    )
    return {"samples": samples, "fastest": fastest, "times": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument(
        "--small", action="store_true", help="a model of 45 MB, a home of 500 packs"
    )
    args = parser.parse_args()
    parts = args.parts or PARTS
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=bench_dir()) as folder:
        if "scale" in parts:
            (parent := Path(folder) / "scale").mkdir()
            shape = Shape(models=5, versions=10) if args.small else Shape()
            results["scale"] = scale(parent, args.rounds, shape)
            shutil.rmtree(parent)
        if "radosgw" in parts:
            (parent := Path(folder) / "radosgw").mkdir()
            models, versions = (2, 10) if args.small else (10, 50)
            shape = Shape(models, versions, chunks=200, fresh=20, chunk_bytes=8 << 10)
            results["radosgw"] = radosgw(parent, args.rounds, shape)
            shutil.rmtree(parent)
        if "peers" in parts:
            source = input_file("minilm-bf16" if args.small else "tiled-bf16")
            (parent := Path(folder) / "peers").mkdir()
            results["peers"] = peers(parent, args.rounds, args.versions, source)
    write_results("gc-small" if args.small else "gc", results)


if __name__ == "__main__":
    main()
