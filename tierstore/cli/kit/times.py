"""Times as they are given on command lines."""

from __future__ import annotations

from datetime import timedelta

from tierstore.config import parse_seconds


def duration(text: str) -> timedelta:
    """Parse a time such as ``90s``, ``30m``, ``12h`` or ``7d``, or ``0`` for none."""
    return timedelta(seconds=parse_seconds(text, none=True))
