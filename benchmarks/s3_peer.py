"""One load of a raw safetensors file from S3 by another tool; prints one line of JSON.

Started by ``bench_s3`` in the environment of its own that ``envs.sh`` makes. Every tool reads 8 MiB
ranges with eight requests at once where it lets one say so, into one buffer that is made before the
clock starts where it takes one, and then every cache line of every tensor is touched once.

``s3_peer.py TOOL BUCKET KEY``
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

PART = 8 << 20
THREADS = 8
CACHE_LINE = 64


def touch(file: Any) -> int:
    """Of a whole file in memory: one byte of every cache line of each tensor."""
    data = np.frombuffer(file, np.uint8)
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    total = 0
    for tensor in header.values():
        start, stop = (8 + length + offset for offset in tensor["data_offsets"])
        total += int(data[start:stop][::CACHE_LINE].sum(dtype=np.uint64))
    return total


def in_parts(size: int, fill: Callable[[int, int, memoryview], None]) -> memoryview:
    """Let eight threads fill one buffer."""
    out = np.empty(size, np.uint8).data

    def one(start: int) -> None:
        stop = min(start + PART, size)
        fill(start, stop, out[start:stop])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(0, size, PART)))
    return out


def obstore_(bucket: str, key: str) -> Callable[[], int]:
    import obstore
    from obstore.store import S3Store

    store = S3Store(bucket, client_options={"allow_http": True})

    def load() -> int:
        def fill(start: int, stop: int, out: memoryview) -> None:
            out[:] = memoryview(obstore.get_range(store, key, start=start, end=stop))

        return touch(in_parts(obstore.head(store, key)["size"], fill))

    return load


def boto3_(bucket: str, key: str) -> Callable[[], int]:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=THREADS))

    def load() -> int:
        def fill(start: int, stop: int, out: memoryview) -> None:
            body = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}")
            while out:
                out = out[body["Body"].readinto(out) :]

        return touch(in_parts(client.head_object(Bucket=bucket, Key=key)["ContentLength"], fill))

    return load


def runai(bucket: str, key: str) -> Callable[[], int]:
    from runai_model_streamer import SafetensorsStreamer

    def load() -> int:

        total = 0
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(f"s3://{bucket}/{key}")
            for _, tensor in streamer.get_tensors():
                flat = tensor.contiguous().view(-1).view(torch.uint8).numpy()
                total += int(flat[::CACHE_LINE].sum(dtype=np.uint64))
        return total

    import torch

    return load


def s3fs_(bucket: str, key: str) -> Callable[[], int]:
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    return lambda: touch(fs.cat_file(f"{bucket}/{key}"))


TOOLS: dict[str, Callable[[str, str], Callable[[], int]]] = {
    "obstore": obstore_,
    "boto3": boto3_,
    "runai": runai,
    "s3fs": s3fs_,
}

if __name__ == "__main__":
    load = TOOLS[sys.argv[1]](*sys.argv[2:])
    cpu, begun = time.process_time(), time.perf_counter()
    total = load()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"sum": total, "seconds": seconds, "cpu_in": cpu, "peak": peak}))
