"""The share of the bandwidth that moving packs may take from reading weights."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Limits the rate of moves: tells how long to wait after each piece of work.

    Args:
        bytes_per_s: The most bytes read and written per second; ``None`` for no limit.
        share: The share of the time, and so of the bandwidth, above 0 and up to 1.
        clock: Returns seconds that never run backwards.
    """

    def __init__(
        self,
        bytes_per_s: float | None = None,
        share: float = 1.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < share <= 1 or (bytes_per_s is not None and bytes_per_s <= 0):
            raise ValueError(f"no budget: {bytes_per_s} bytes/s, a share of {share}")
        self._bytes_per_s, self._share, self._clock = bytes_per_s, share, clock
        self._due = clock()

    def at_most(self, share: float) -> Budget:
        """Return a budget of its own with the same limit, and at most this share of the time."""
        return Budget(self._bytes_per_s, min(self._share, share), clock=self._clock)

    @property
    def piece_bytes(self) -> int:
        """Bytes to move at once: few enough that waiting in between evens out."""
        if self._bytes_per_s is None:
            return 64 << 20
        return int(min(64 << 20, max(1 << 20, self._bytes_per_s)))

    def wait_s(self, nbytes: int, took_s: float) -> float:
        """Return the seconds to wait after moving ``nbytes`` in ``took_s`` seconds."""
        now = self._clock()
        rest = took_s * (1 / self._share - 1)
        if self._bytes_per_s is not None:
            # what was not used before is not saved up
            self._due = max(self._due, now - took_s) + nbytes / self._bytes_per_s
            rest = max(rest, self._due - now)
        return max(0.0, rest)
