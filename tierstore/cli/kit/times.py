"""Times as they are given on command lines, and as they are shown."""

from __future__ import annotations

from datetime import timedelta

from tierstore.config import parse_seconds


def duration(text: str) -> timedelta:
    """Parse a time such as ``90s``, ``30m``, ``12h`` or ``7d``, or ``0`` for none."""
    return timedelta(seconds=0 if text.strip() == "0" else parse_seconds(text))


def duration_text(time: timedelta) -> str:
    """Return a time for people: in days and hours, hours and minutes, minutes, or seconds."""
    seconds = int(time.total_seconds())
    days, hours = seconds // 86400, seconds // 3600
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {seconds // 60 % 60} min"
    return f"{seconds // 60} min" if seconds >= 60 else f"{seconds} s"
