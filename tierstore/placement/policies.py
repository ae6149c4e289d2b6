"""The table of placement policies by name."""

from __future__ import annotations

from collections.abc import Callable

from tierstore.errors import ConfigError
from tierstore.placement.base import PlacementPolicy
from tierstore.placement.density import ValueDensity
from tierstore.placement.s3fifo import S3Fifo

POLICIES: dict[str, Callable[[int], PlacementPolicy]] = {
    ValueDensity.name: ValueDensity,
    S3Fifo.name: S3Fifo,
}

DEFAULT_POLICY = ValueDensity.name
"""The policy that is better on the benchmark, ``benchmarks/bench_policies.py``."""


def make(name: str, capacity_bytes: int) -> PlacementPolicy:
    """Make the named policy for a cache of ``capacity_bytes``.

    Raises:
        ConfigError: There is no policy of that name, or the capacity is negative.
    """
    if name not in POLICIES:
        names = ", ".join(POLICIES)
        raise ConfigError(f"there is no placement policy {name!r}; use one of: {names}")
    if capacity_bytes < 0:
        raise ConfigError(f"a cache cannot hold {capacity_bytes} bytes")
    return POLICIES[name](capacity_bytes)
