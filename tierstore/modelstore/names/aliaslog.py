"""What an alias means, what it meant, and where it would go back: read off its log (SPEC.md 9).

Whoever decides what stays because of an alias asks here: those who remove versions, those who
collect garbage, and ``rollback`` itself. Nothing here reads a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from tierstore.format.reflog import RefEntry

MOST_OLD = 64
"""What lies behind so many entries in a row that are older than the history is older, too."""


class Meant(NamedTuple):
    """A version that an alias means or meant.

    Attributes:
        version: Its number.
        manifest: The hex digest of its manifest.
        is_rollout: Whether a rollout goes or went to it, so that only some of the nodes got it.
    """

    version: int
    manifest: str
    is_rollout: bool = False


def current(entries: Sequence[RefEntry]) -> list[Meant]:
    """Return what an alias means: nothing, a version, or in a rollout both of its ends.

    Args:
        entries: Its log, the oldest entry first; the newest one is enough.
    """
    return _meant(entries[-1]) if entries else []


def goes_back_to(last: RefEntry | None, entry_of: Callable[[int], RefEntry]) -> RefEntry | None:
    """Return the entry that a rollback goes back to: the last one that means another version.

    What was removed in between does not count. In a rollout it is where a rollback goes once the
    rollout is over, as the first one only ends that.

    Args:
        last: The newest entry of the alias's log.
        entry_of: Returns an entry of it by its number.

    Returns:
        The entry; ``None`` when there is nothing to go back to.
    """
    before = last
    while before is not None and (
        before.version is None or (last is not None and before.version == last.version)
    ):
        before = entry_of(before.previous) if before.previous is not None else None
    return before


def newest_since(newest_first: Iterable[RefEntry], since_us: float) -> list[RefEntry]:
    """Return the end of a log, as far as ``meant_since`` needs it, without reading all of it.

    One entry that is older is not enough, as the clock of its writer may be behind.

    Args:
        newest_first: The entries, the newest first; asked for no more than is needed.
        since_us: Microseconds since the epoch.

    Returns:
        The newest entries, the oldest of them first.
    """
    found, old = list[RefEntry](), 0
    for entry in newest_first:
        found.append(entry)
        old = 0 if entry.time_us > since_us else old + 1
        if old == MOST_OLD:
            break
    return found[::-1]


def meant_since(entries: Sequence[RefEntry], since_us: float, now_us: float) -> list[Meant]:
    """Return what an alias meant at any time since then and does not mean now, the newest first.

    An entry holds until the one behind it was written, however long ago it was written itself.
    Clocks differ: an entry counts as written no earlier than those before it, and where its time
    lies ahead as written when the next one was.

    Args:
        entries: Its log, the oldest entry first.
        since_us: Microseconds since the epoch.
        now_us: The same, of now.
    """
    left_us = _written_us(entries, now_us)[1:]
    found = [
        one
        for entry, until_us in zip(entries, left_us, strict=False)  # the last one holds
        if until_us > since_us
        for one in _meant(entry)
    ]
    means = {one.version for one in current(entries)}
    return [one for one in dict.fromkeys(reversed(found)) if one.version not in means]


def _meant(entry: RefEntry) -> list[Meant]:
    found = []
    if entry.version is not None and entry.manifest is not None:
        found.append(Meant(entry.version, entry.manifest))
    if entry.rollout is not None:
        found.append(Meant(entry.rollout.version, entry.rollout.manifest, True))
    return found


def _written_us(entries: Sequence[RefEntry], now_us: float) -> list[float]:
    """Return when entries were written, as far as their clocks can be right."""
    times = [float(entry.time_us) for entry in entries]
    next_us = now_us
    for at in reversed(range(len(times))):
        next_us = times[at] = times[at] if times[at] <= now_us else next_us
    return list(accumulate(times, max))
