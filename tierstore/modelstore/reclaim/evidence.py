"""How long the logs of a store must be, by what a collector has read anyway: see ``lostlogs``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tierstore.format.keys import VARIANTS, VERSION_LOG, segment
from tierstore.modelstore.home.pins import PinnedVersion
from tierstore.modelstore.names.claims import Claim, claims, log_title, pinned
from tierstore.modelstore.reclaim.lostlogs import LostEntries
from tierstore.modelstore.reclaim.reflogs import Log


class Evidence:
    """How long logs must be, as far as objects say that were read anyway.

    Args:
        logs: All logs of the store.
        before: How many entries each log had for the last collection, by ``<model>/<name>``.
    """

    def __init__(self, logs: Sequence[Log], before: Mapping[str, int]) -> None:
        self._has = {(log.model, log.name): len(log.entries) for log in logs}
        self._least: dict[tuple[str, str], Claim] = {}
        for key, count in before.items():
            model, _, name = key.partition("/")
            self._add(model, name, Claim(count, f"there were {count} at the last collection"))
        for log in logs:
            if log.name != VERSION_LOG:
                title = log_title(log.name)
                self._add(log.model, VERSION_LOG, Claim(1, f"there is a {title} of it"))
                for one in claims(log.name, log.entries):
                    self._add(log.model, VERSION_LOG, _named(one))

    def names(self, model: str, number: int, why: str) -> None:
        """Take note that something names a version of a model."""
        self._add(segment(model), VERSION_LOG, _named(Claim(number, why)))

    def _add(self, model: str, name: str, one: Claim) -> None:
        known = self._least.get((model, name))
        if one.number > self._has.get((model, name), 0) and (
            known is None or one.number > known.number
        ):
            self._least[model, name] = one

    def lost(self) -> list[LostEntries]:
        """Return the entries that are lost."""
        return [
            LostEntries(*log, range(self._has.get(log, 0) + 1, one.number + 1), one.why)
            for log, one in sorted(self._least.items())
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


def note_pins(pins: Iterable[PinnedVersion], evidence: Evidence) -> None:
    """Take note of the versions that pins name."""
    for pin in pins:
        found = pinned(pin.ref)
        if found is not None:
            evidence.names(*found, f"pin of {pin.who}")


def _named(one: Claim) -> Claim:
    return Claim(one.number, f"{one.why} names version {one.number}")


def lengths(logs: Iterable[Log]) -> dict[str, int]:
    """Return how many entries logs have, by ``<model>/<name>``."""
    return {f"{log.model}/{log.name}": len(log.entries) for log in logs}
