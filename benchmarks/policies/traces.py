"""The recorded streams; ``traces/README.md`` says where they are from."""

from __future__ import annotations

import gzip

from benchmarks.common import HERE
from benchmarks.policies.workload import Stream

UNITS = {"mooncake_conv": 1024, "cdn_adaptsize": 1}
"""Bytes of one unit of the size column."""


def recorded(name: str) -> Stream:
    """One recorded stream; every object keeps the size that it had at first."""
    stream, known = Stream(name), dict[int, int]()
    with gzip.open(HERE / "traces" / f"{name}.csv.gz", "rt") as lines:
        next(lines)
        for line in lines:
            time, number, size, _ = line.split(",")
            obj = int(number)
            stream.times.append(float(time))
            stream.objects.append(obj)
            stream.sizes.append(known.setdefault(obj, int(size) * UNITS[name]))
    return stream
