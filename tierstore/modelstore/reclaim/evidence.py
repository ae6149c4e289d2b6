"""What of a store's logs is lost, by what a collector has read anyway: see ``lostlogs``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tierstore.format.keys import VARIANTS, VERSION_LOG
from tierstore.format.manifest import Member
from tierstore.modelstore.home.pins import PinnedVersion
from tierstore.modelstore.names.claims import least_lengths
from tierstore.modelstore.reclaim.lostlogs import LostEntries
from tierstore.modelstore.reclaim.reflogs import Log


def lost_entries(
    logs: Sequence[Log],
    before: Mapping[str, int],
    members: Iterable[Member],
    pins: Iterable[PinnedVersion],
) -> list[LostEntries]:
    """Return the entries that are lost, as far as objects say that were read anyway.

    Args:
        logs: All logs of the store.
        before: How many entries each log had for the last collection, by ``<model>/<name>``.
        members: Members of its releases.
        pins: Its pins.
    """
    every = {(log.model, log.name): log.entries for log in logs}
    least = least_lengths(before, every.items(), members, pins)
    return [
        LostEntries(*log, range(there + 1, one.number + 1), one.why)
        for log, one in sorted(least.items())
        if (there := len(every.get(log, ()))) < one.number
    ]


def orphaned(pins: Sequence[PinnedVersion], logs: Iterable[Log]) -> list[str]:
    """Return a sentence for each pin of a version or variant that no log has.

    Args:
        pins: The pins.
        logs: All logs of the store.
    """
    if not pins:
        return []
    named = {
        entry.manifest
        for log in logs
        if log.name == VERSION_LOG or log.name.startswith(VARIANTS)
        for entry in log.entries
    }
    return [
        f"{pin.version}, which the pin of {pin.who} ({pin.ref}) names, is in no log of versions"
        for pin in pins
        if pin.version.hex not in named
    ]


def lengths(logs: Iterable[Log]) -> dict[str, int]:
    """Return how many entries logs have, by ``<model>/<name>``."""
    return {f"{log.model}/{log.name}": len(log.entries) for log in logs}
