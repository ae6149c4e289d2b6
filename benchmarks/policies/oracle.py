"""libcachesim's replay of a stream, in a process of its own: an independent oracle, and the peers.

Runs in the environment that ``envs.sh`` makes, without anything of this repository. Standard input:
one line of JSON, ``{"policies": [[name, class, {parameter: value}, coarse], ...], "capacities":
[bytes, ...], "accesses": count}``, then that many object numbers and as many sizes, 8 bytes
little-endian each. Standard output: its last line, ``{name: [[misses, missed bytes], ...]}``, one
pair for each capacity.

``coarse`` counts sizes in units of the capacity / 2^24, rounded up: W-TinyLFU here sizes its sketch
by the capacity's number and overflows at a few GiB. Missed bytes are the true ones all the same.

An object that a policy refuses for its size counts as a miss each time, as with all of them.
"""

from __future__ import annotations

import json
import sys
from array import array

import libcachesim


def replay(cache: object, objects: array[int], sizes: array[int], unit: int) -> list[int]:
    """Misses and missed bytes."""
    misses = missed = 0
    request = libcachesim.Request()
    request.clock_time = 0
    for obj, size in zip(objects, sizes, strict=True):
        request.obj_id, request.obj_size = obj, -(-size // unit)
        if not cache.get(request):  # type: ignore[attr-defined]
            misses += 1
            missed += size
    return [misses, missed]


def main() -> None:
    """See the module's docstring."""
    asked = json.loads(sys.stdin.buffer.readline())
    objects, sizes = array("q"), array("q")
    for column in (objects, sizes):
        column.frombytes(sys.stdin.buffer.read(8 * asked["accesses"]))
    found: dict[str, list[list[int]]] = {}
    for name, kind, parameters, coarse in asked["policies"]:
        make = getattr(libcachesim, kind)
        for capacity in asked["capacities"]:
            unit = max(1, capacity >> 24) if coarse else 1
            cache = make(cache_size=capacity // unit, hashpower=18, **parameters)
            found.setdefault(name, []).append(replay(cache, objects, sizes, unit))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
