"""Cold load of a bf16 model of 1 GiB from a real S3 server, over a capped link and a free one.

The server is a Ceph radosgw with its data in memory; the client runs in a network namespace of its
own, and what the server sends it passes a token bucket of 1 Gbit/s, or nothing. Ours loads a
version from a store in a bucket, its caches empty; ``obstore``, ``boto3``, ``runai-model-streamer``
and ``s3fs`` read the raw safetensors file from the same bucket. Each load is a fresh process; all
touch every cache line and agree about the bytes.

Run: ``python -m benchmarks.bench_s3 [--rounds 5] [--only LINK]`` as root, after ``envs.sh``
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import (
    HERE,
    MIB,
    Sample,
    alternate,
    console,
    input_file,
    median,
    paired_ratio,
    run_child,
    show,
    target,
    write_results,
)
from benchmarks.link import Link, link
from tests.servers.ceph import Ceph, ceph_cluster

PEER = HERE / ".envs" / "s3" / "bin" / "python"
LINKS = {"free": None, "capped": "1gbit"}
BEST_OF = ("obstore", "boto3", "runai")
CAPPED_TIMES, FREE_TIMES, S3FS_TIMES = 0.72, 1.0, 0.35
KEY = "raw/model.safetensors"

Results = dict[str, Any]


def environment(ceph: Ceph) -> dict[str, str]:
    """What all clients need to reach the bucket, each under its own names."""
    return {
        **ceph.environment,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_ENDPOINT": ceph.endpoint,
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_S3_ALLOW_HTTP": "1",
    }


def child(at: Link, env: dict[str, str], argv: list[str]) -> Sample:
    """One load at the other end of the link; the bytes that it took are in ``extra``."""
    before = at.sent
    with tempfile.TemporaryDirectory() as cache:
        own = {**env, "TIERSTORE_CACHE_DIR": cache, "TIERSTORE_CONFIG": ""}
        sample, out = run_child(at.command(argv), env=own, cwd=HERE.parent)
    sample.extra = json.loads(out.splitlines()[-1]) | {"wire": at.sent - before}
    return sample


def compare(
    at: Link, runs: Mapping[str, Callable[[], Sample]], rate: str | None, size: int, rounds: int
) -> Results:
    at.cap(rate)
    samples = alternate(runs, rounds)
    if len({s.extra["sum"] for of in samples.values() for s in of}) != 1:
        raise SystemExit("the loaders disagree about the bytes")
    over = f"over {rate}" if rate else "over a free link"
    show(
        f"cold load of {size / MIB:.0f} MiB from radosgw {over} (median of {rounds})",
        ("loader", "s", "plain MB/s", "wire MiB", "CPU s", "peak MiB"),
        [
            (
                name,
                median(of, "seconds"),
                size / 1e6 / median(of, "seconds"),
                f"{median(of, 'wire') / MIB:.0f}",
                median(of, "cpu_in"),
                f"{median(of, 'peak') / MIB:.0f}",
            )
            for name, of in samples.items()
        ],
    )
    seconds = {name: [s.extra["seconds"] for s in of] for name, of in samples.items()}
    times = {n: paired_ratio(seconds["ours"], of) for n, of in seconds.items() if n != "ours"}
    # the best tool, not the luckiest run of three: times of one tool differ by a factor of two
    best = min(BEST_OF, key=lambda name: median(samples[name], "seconds"))
    times["best"] = times[best]
    bound = CAPPED_TIMES if rate else FREE_TIMES
    bounds = {best: bound} if rate else {best: bound, "s3fs": S3FS_TIMES}
    rows = [
        (f"ours / {name}", target(times[name], "<=", bounds[name]) if name in bounds
         else f"{times[name]:.3f}")
        for name in seconds if name != "ours"
    ]  # fmt: skip
    show(f"ratios of times {over}", ("what", "value"), rows)
    return {"rate": rate, "bytes": size, "samples": samples, "times": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--input", default="tiled-bf16")
    parser.add_argument("--only", choices=LINKS)
    given = parser.parse_args()
    if not PEER.exists():
        raise SystemExit("run benchmarks/envs.sh first")
    file = input_file(given.input)
    size = file.stat().st_size
    results: Results = {}
    with (
        tempfile.TemporaryDirectory(dir=file.parent) as folder,
        link() as at,
        ceph_cluster(Path(folder), address=at.address) as ceph,
    ):
        env, bucket = environment(ceph), ceph.bucket()
        store = f"s3://{bucket}/{uuid.uuid4().hex}"
        console.print("saving the model twice ...")
        save = [sys.executable, "-m", "benchmarks.load_child", "save", store, str(file)]
        run_child(save, env=env, cwd=HERE.parent)
        ceph.client().upload_file(str(file), bucket, KEY)
        ours = [sys.executable, "-m", "benchmarks.load_child", "ours", store]
        runs = {"ours": partial(child, at, env, ours)} | {
            tool: partial(child, at, env, [str(PEER), str(HERE / "s3_peer.py"), tool, bucket, KEY])
            for tool in ("obstore", "boto3", "runai", "s3fs")
        }
        for name, rate in LINKS.items():
            if given.only in {None, name}:
                results[name] = compare(at, runs, rate, size, given.rounds)
    write_results(f"s3-{given.only}" if given.only else "s3", results)


if __name__ == "__main__":
    if os.getuid() != 0:
        raise SystemExit("a network namespace needs root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and take the link down
    main()
