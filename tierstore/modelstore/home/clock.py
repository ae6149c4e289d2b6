"""The clock of leases: it runs on while the machine sleeps.

``time.monotonic`` stands still on a suspended machine, for which a lease would then still hold that
has long been taken over.
"""

from __future__ import annotations

import time

# macOS has no CLOCK_BOOTTIME; there CLOCK_MONOTONIC runs on (clock_gettime(3))
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def running_s() -> float:
    """Return seconds since some moment; never goes backwards, and counts time asleep."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
