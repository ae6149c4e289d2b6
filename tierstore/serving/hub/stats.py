"""Counters of a gateway, for its page of metrics."""

from __future__ import annotations

import threading
from collections import Counter


class HubStats:
    """Counts answers and bytes; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def sent(self, nbytes: int) -> None:
        """Count bytes of files that were sent."""
        with self._lock:
            self._counts["hub_sent_bytes"] += nbytes

    def received(self, nbytes: int) -> None:
        """Count bytes of files that were received."""
        with self._lock:
            self._counts["hub_received_bytes"] += nbytes

    def answered(self, status: int) -> None:
        """Count one answer."""
        with self._lock:
            self._counts["hub_requests"] += 1
            self._counts[f"hub_answers_{status // 100}xx"] += 1

    def totals(self) -> dict[str, float]:
        """Return all counts by name."""
        with self._lock:
            return dict(self._counts)
