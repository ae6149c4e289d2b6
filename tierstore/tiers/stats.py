"""The counters of a store or tier, which a metrics page reads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field

from tierstore.forks import begin

LATENCY_BOUNDS_S = (
    0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0,
)  # fmt: skip
"""Upper bounds in seconds of the latency histogram's buckets; the last bucket has none."""


@dataclass(slots=True)
class OpStats:
    """The counters of one kind of operation: calls, errors, bytes, seconds.

    ``buckets`` counts calls by latency, one more than ``LATENCY_BOUNDS_S``.
    """

    calls: int = 0
    errors: int = 0
    bytes: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))


@dataclass(slots=True, weakref_slot=True)
class TierStats:
    """The counters of one tier. Thread-safe through ``record`` and ``count``.

    Attributes:
        ops: The counters by operation: ``get``, ``put``, ``delete``, ``list``, ``info``.
        hits: Chunks or packs that a read found here.
        misses: Chunks or packs that a read did not find here.
        hit_bytes: Plain bytes (hot tiers) or frame bytes (durable tiers) of the hits.
        admitted: Chunks or packs taken in.
        admitted_bytes: Bytes of those.
        evicted: Chunks or packs that were evicted.
        evicted_bytes: Bytes of those.
        rejected: Offers that were not taken, because of the policy, a full queue or a failure.
        damaged: Chunks or packs that failed their check here, when they were read (they came from
            elsewhere then) or when they were verified in the background.
        scrubbed_bytes: Bytes that were verified in the background.
        breaker_opened: How often the breaker began to skip the tier.
        breaker_open: Whether it skips the tier now.
    """

    ops: dict[str, OpStats] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    admitted: int = 0
    admitted_bytes: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    rejected: int = 0
    damaged: int = 0
    scrubbed_bytes: int = 0
    breaker_opened: int = 0
    breaker_open: bool = False
    _lock: threading.Lock = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def record(self, op: str, seconds: float, nbytes: int = 0, *, failed: bool = False) -> None:
        """Count one call of an operation."""
        with self._lock:
            stats = self.ops.setdefault(op, OpStats())
            stats.calls += 1
            stats.errors += failed
            stats.bytes += nbytes
            stats.seconds += seconds
            stats.buckets[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1

    def count(self, **increments: int) -> None:
        """Add to counters, given by name."""
        with self._lock:
            for name, by in increments.items():
                setattr(self, name, getattr(self, name) + by)
