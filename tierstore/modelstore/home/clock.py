"""The clock of leases: it runs on while the machine sleeps.

``time.monotonic`` stands still on a suspended machine, for which a lease would then still hold that
has long been taken over.
"""

from __future__ import annotations

import time
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
# macOS has no CLOCK_BOOTTIME; there CLOCK_MONOTONIC runs on (clock_gettime(3))
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def running_s() -> float:
    """Return seconds since some moment; never goes backwards, and counts time asleep."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


def boot() -> str:
    """Return what this machine calls its running since it was started; empty where it says none.

    Two values of ``running_s`` can be compared if they are of the same.
    """
    try:
        return _BOOT.read_text().strip()
    except OSError:  # only Linux says it
        return ""
