"""Which versions of a model are to be copied, and which the other store has. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

from tierstore.errors import UsageError
from tierstore.format.reflog import RefEntry


def match(source: Iterable[RefEntry], target: Iterable[RefEntry]) -> dict[int, int]:
    """Return the numbers that versions of a model have in another store, by their own.

    A version is there under its own number if that has its content, and else as the first that no
    other version is: the same content may have been saved twice.

    Args:
        source: The entries of the log of versions, those of removed ones included.
        target: The same of the other store.
    """
    own = {entry.seq: entry.manifest for entry in source}
    other = {entry.seq: entry.manifest for entry in target}
    found = {number: number for number, digest in own.items() if other.get(number) == digest}
    free: dict[str | None, list[int]] = defaultdict(list)
    for number in sorted(other.keys() - set(found.values()), reverse=True):
        free[other[number]].append(number)
    for number in sorted(own.keys() - found.keys()):
        if free[own[number]]:
            found[number] = free[own[number]].pop()
    return found


_RANGE = re.compile(r"(\d{1,9})(?:(-)(\d{1,9})?)?|last:(\d{1,9})", re.ASCII)


def selected(text: str | None, numbers: Collection[int]) -> list[int]:
    """Return those of the numbers that a user names, rising.

    Args:
        text: ``12``, ``5-20``, ``30-`` (from 30 on) or ``last:3`` (the newest three), or several
            of these with commas between; ``None`` for all.
        numbers: The numbers of the versions that there are.

    Raises:
        UsageError: The text is none of these.
    """
    every = sorted(numbers)
    if text is None:
        return every
    found: set[int] = set()
    for word in text.split(","):
        parts = _RANGE.fullmatch(word.strip())
        if parts is None:
            raise UsageError(
                f"versions {text[:80]!r} make no sense: give numbers and ranges, such as 12, 5-20, "
                "30- or last:3, with commas between"
            )
        first, dash, end, count = parts.groups()
        if count is not None:
            found |= set(every[len(every) - min(int(count), len(every)) :])
        else:
            top = int(end) if end else every[-1] if dash and every else int(first)
            found |= {number for number in every if int(first) <= number <= top}
    return sorted(found)
