"""Formatting of ids, sizes and times in the sentences of plans."""

from __future__ import annotations


def short(pack: bytes) -> str:
    """Return a short form of a pack's id."""
    return pack.hex()[:12]


def human(nbytes: float) -> str:
    """Format a number of bytes with its unit."""
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"


def age(seconds: float) -> str:
    """Format a span of time with its unit."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"
