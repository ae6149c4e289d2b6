"""Reading frames from Redis: ``get_many`` beside redis-py in a loop and redis-benchmark.

A redis-server of its own on loopback holds frames of 4 MiB. redis-benchmark, which comes with
Redis and throws away what it reads, measures what the server and this machine can do. The loop is
``redis.Redis().get`` key by key, and keeps the values as ``get_many`` does.

Then a model of 1 GiB is loaded whose chunks are all in that Redis: fetched, verified and decoded,
beside redis-benchmark again.

Run: ``python -m benchmarks.bench_redis [--frames 64] [--rounds 7]``
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import redis

from benchmarks.common import (
    MIB,
    Sample,
    alternate,
    input_file,
    median,
    paired_ratio,
    run_child,
    show,
    timed,
    write_results,
)
from tests.servers.process import program
from tests.servers.redis import RedisServer, redis_running
from tierstore.blobs.base import BlobStore
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.store import RedisStore
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.loading.model import LoadStats
from tierstore.store import init_store

FRAME = 4 * MIB
MODEL = "tiled-bf16"
PREFIX = "tier:bench:"
LIMIT = "redis-benchmark, 1 connection"
LOOP = "redis-py, loop of GET"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keys = [f"{n:012d}" for n in range(options.frames)]  # as redis-benchmark writes its numbers
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_running(Path(folder)) as server,
        RedisStore(RedisEndpoint(server.url), prefix=PREFIX) as store,
        RedisStore(RedisEndpoint(f"unix://{server.socket}"), prefix=PREFIX) as by_socket,
        redis.Redis(port=server.port) as client,
    ):
        rng = random.Random(0)
        for key in keys:
            store.put(key, rng.randbytes(FRAME))
        contestants: dict[str, Callable[[], Sample]] = {
            "get_many, 1 thread": lambda: _get_many(store, keys, 1),
            "get_many, 2 threads": lambda: _get_many(store, keys, 2),
            "get_many, 4 threads": lambda: _get_many(store, keys, 4),
            "get_many, 1 thread, Unix socket": lambda: _get_many(by_socket, keys, 1),
            LOOP: lambda: timed(lambda: _check([client.get(PREFIX + key) for key in keys], keys)),
            LIMIT: lambda: _redis_benchmark(server, len(keys), 1),
            "redis-benchmark, 4 connections": lambda: _redis_benchmark(server, len(keys), 4),
        }
        samples = alternate(contestants, options.rounds)
        store.delete(keys)
        loads = _loads(Path(folder), server, client, options.rounds)
    _report(samples, options.frames, options.rounds)
    write_results("redis", {"frame_bytes": FRAME, "frames": options.frames, "samples": samples,
                            "loads": loads})  # fmt: skip


def _loads(
    folder: Path, server: RedisServer, client: redis.Redis, rounds: int
) -> dict[str, list[Sample]]:
    """Load a model out of Redis, in turns with redis-benchmark, which reads the largest frame."""
    tier = TierSpec(name="redis", role="shared", url=server.url)
    with init_store(folder / "store", tiers=[tier]) as store:
        store.save("m", input_file(MODEL))
        store.warmup("m", tier="redis")
        frames = [client.strlen(key) for key in client.scan_iter(count=1000)]
        key = max(client.scan_iter(count=1000), key=client.strlen).decode()
        stats: list[LoadStats] = []

        def load() -> None:
            model = store.load("m")
            model.load()
            stats.append(model.stats)

        limit = partial(_redis_benchmark, server, len(frames), 1, key)
        samples = alternate({"load": lambda: timed(load), "limit": limit}, rounds)
        assert {tuple(one.bytes_by_tier) for one in stats} == {("redis",)}, stats[-1]
        stored, largest = stats[-1].bytes_by_tier["redis"], max(frames)
        sizes = {"load": stored, "limit": len(frames) * largest}
        rates = {who: [size / s.wall / 1e6 for s in samples[who]] for who, size in sizes.items()}
        plain = store.load("m").nbytes
    show(
        f"loading {MODEL}, {plain / MIB:.0f} MiB, all {len(frames)} chunks in Redis as "
        f"{stored / MIB:.0f} MiB (median of {rounds})",
        ("who", "s", "MB/s over the wire", "plain MB/s", "x redis-benchmark"),
        [
            ("load", median(samples["load"], "wall"), statistics.median(rates["load"]),
             plain / median(samples["load"], "wall") / 1e6,
             paired_ratio(rates["load"], rates["limit"])),
            (LIMIT, "", statistics.median(rates["limit"]), "", 1.0),
        ],
    )  # fmt: skip
    return samples


def _get_many(store: BlobStore, keys: list[str], threads: int) -> Sample:
    """All frames in calls of one batch each, so that threads can share them out."""
    calls = [keys[n : n + 4] for n in range(0, len(keys), 4)]

    def read() -> None:
        if threads == 1:
            found = store.get_many(keys)
        else:
            with ThreadPoolExecutor(threads) as pool:
                found = {
                    key: view
                    for part in pool.map(store.get_many, calls)
                    for key, view in part.items()
                }
        _check(list(found.values()), keys)

    return timed(read)


def _check(values: list[object], keys: list[str]) -> None:
    assert len(values) == len(keys)
    assert all(isinstance(value, bytes | memoryview) and len(value) == FRAME for value in values)


def _redis_benchmark(
    server: RedisServer, frames: int, connections: int, key: str = f"{PREFIX}__rand_int__"
) -> Sample:
    """Its own measure of how long as many reads take, of random frames or of ``key``; the start is
    not in it."""
    sample, out = run_child([
        program("redis-benchmark", "redis-tools"), "-p", str(server.port), "--csv",
        "-c", str(connections), "-n", str(frames), "-r", str(frames),
        "GET", key,
    ])  # fmt: skip
    header, values = csv.reader(out.splitlines()[-2:])
    sample.wall = frames / float(dict(zip(header, values, strict=True))["rps"])
    return sample


def _report(samples: dict[str, list[Sample]], frames: int, rounds: int) -> None:
    total = frames * FRAME
    walls = {name: [sample.wall for sample in runs] for name, runs in samples.items()}
    ratios = {
        name: {
            "to_redis_benchmark": paired_ratio(walls[LIMIT], walls[name]),
            "to_loop": paired_ratio(walls[LOOP], walls[name]),
        }
        for name in samples
    }
    show(
        f"{frames} frames of 4 MiB from one Redis on loopback (median of {rounds})",
        ("who", "MB/s", "CPU s", "x redis-benchmark", "x loop"),
        [
            (name, total / median(runs, "wall") / 1e6, median(runs, "cpu"), *ratios[name].values())
            for name, runs in samples.items()
        ],
    )


if __name__ == "__main__":
    main()
