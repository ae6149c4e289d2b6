"""Replaying a stream: through a placement policy, through our own LRU, through libcachesim."""

from __future__ import annotations

import json
import subprocess
import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import HERE
from benchmarks.policies.workload import Stream
from tierstore.placement.base import Access, PlacementPolicy

ORACLE = HERE / ".envs/cachesim/bin/python"
ORACLE_LIMIT_S = 900.0

PEERS: tuple[tuple[str, str, dict[str, float], bool], ...] = (
    ("LRU", "LRU", {}, False),
    ("2Q", "TwoQ", {}, False),
    ("GDSF", "GDSF", {}, False),
    ("S3-FIFO", "S3FIFO", {}, False),
    ("W-TinyLFU", "WTinyLFU", {}, True),
)
"""libcachesim's, with its defaults: name, class, parameters, whether sizes are counted coarsely."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What one cache did.

    Attributes:
        misses: accesses.
        missed: bytes.
        filled: bytes written into the cache; ``None`` where that is not known.
        ns: processor time of one access, nanoseconds; 0.0 where it was not measured.
    """

    misses: int
    missed: int
    filled: int | None = None
    ns: float = 0.0


def replay(stream: Stream, policy: PlacementPolicy) -> Replay:
    """Drive a policy as ``placement/base.py`` says, and check that it keeps to its capacity."""
    resident: dict[bytes, int] = {}
    misses = missed = filled = used = 0
    keys = [number.to_bytes(8, "big") for number in stream.objects]
    accesses = list(map(Access, keys, stream.sizes, stream.times))
    started = time.process_time()
    for access in accesses:
        policy.record(access)
        if access.key in resident:
            continue
        misses += 1
        missed += access.size_bytes
        admission = policy.admit(access)
        if admission.admitted:
            for victim in admission.victims:
                used -= resident.pop(victim)
            resident[access.key] = access.size_bytes
            used += access.size_bytes
            filled += access.size_bytes
            if used > policy.capacity_bytes:
                raise SystemExit(
                    f"{policy.name} holds {used} bytes, {policy.capacity_bytes} are allowed"
                )
    took = time.process_time() - started
    if used != policy.used_bytes:
        raise SystemExit(f"{policy.name} holds {used} bytes and says {policy.used_bytes}")
    return Replay(misses, missed, filled, took / len(accesses) * 1e9)


def lru(stream: Stream, capacity: int) -> Replay:
    """Our own LRU."""
    resident: OrderedDict[int, int] = OrderedDict()
    misses = missed = filled = used = 0
    for obj, size in zip(stream.objects, stream.sizes, strict=True):
        if obj in resident:
            resident.move_to_end(obj)
            continue
        misses += 1
        missed += size
        if size > capacity:
            continue
        while used + size > capacity:
            used -= resident.popitem(last=False)[1]
        resident[obj] = size
        used += size
        filled += size
    return Replay(misses, missed, filled)


def peers(stream: Stream, capacities: Sequence[int]) -> dict[str, list[Replay]]:
    """libcachesim's replays, one for each capacity, in a process with a time limit."""
    asked = {
        "policies": PEERS,
        "capacities": list(capacities),
        "accesses": len(stream.objects),
    }
    done = subprocess.run(
        [ORACLE, HERE / "policies" / "oracle.py"],
        input=json.dumps(asked).encode()
        + b"\n"
        + array("q", stream.objects).tobytes()
        + array("q", stream.sizes).tobytes(),
        capture_output=True,
        timeout=ORACLE_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"libcachesim's replay failed:\n{done.stderr.decode()[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: [Replay(*pair) for pair in pairs] for name, pairs in found.items()}
