"""How much of the data a check reads, by the arguments of ``Store.check``."""

from __future__ import annotations

import time
from datetime import timedelta

from tierstore.arguments import as_number, wrong
from tierstore.modelstore.care.check_data import Limits

_SHARE = "a share of the stored bytes above 0 and up to 1, such as 0.05"


def limits_of(read_data: bool, subset: float | None, max_time: timedelta | None) -> Limits | None:
    """Return the limits that the arguments of ``Store.check`` mean; ``None``: no data is read.

    Raises ``UsageError`` for what is no share and no time.
    """
    share, until = 1.0, float("inf")
    if subset is not None:
        share = as_number("subset", subset, _SHARE, 0, above=True)
        if share > 1:
            raise wrong("subset", _SHARE, subset)
    if max_time is not None:
        if not isinstance(max_time, timedelta):
            raise wrong("max_time", "a timedelta, such as timedelta(hours=2)", max_time)
        until = time.monotonic() + max_time.total_seconds()
    reads = read_data or subset is not None or max_time is not None
    return Limits(share, until) if reads else None
