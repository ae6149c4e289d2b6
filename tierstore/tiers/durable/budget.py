"""What moving packs may take of the bandwidth that reading weights needs."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Makes whoever moves bytes wait, so that on average it stays within limits.

    Args:
        bytes_per_s: of what is read and written together; ``None`` for no limit.
        share: of the time, and so of the bandwidth that there is, above 0 and up to 1.
        clock: seconds, never backwards.
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

    @property
    def piece(self) -> int:
        """Bytes to read at once: little enough that waiting in between evens out."""
        if self._bytes_per_s is None:
            return 64 << 20
        return int(min(64 << 20, max(1 << 20, self._bytes_per_s)))

    def wait_s(self, nbytes: int, took_s: float) -> float:
        """Seconds to wait now that ``nbytes`` were moved, which took ``took_s``."""
        now = self._clock()
        rest = took_s * (1 / self._share - 1)
        if self._bytes_per_s is not None:
            # what was not used before is not saved up
            self._due = max(self._due, now - took_s) + nbytes / self._bytes_per_s
            rest = max(rest, self._due - now)
        return max(0.0, rest)
