"""Retention as it is stored: windows and rules of models and of the store (SPEC.md 9.1).

What is damaged concerns its own model alone: what is set for the store is looked at only where a
model has nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tierstore.blobs.base import BlobInfo, BlobStore
from tierstore.format.keys import RETENTION, retention_key
from tierstore.format.reflog import RefEntry
from tierstore.format.retention import ALIAS_HISTORY_S, WINDOW_S, Retention
from tierstore.format.sealed import Kind, unseal_body
from tierstore.modelstore.home.collected import read_collected


@dataclass(frozen=True, slots=True)
class SetFor:
    """What is set for a model: by what is stored for itself, or else for the store.

    Attributes:
        model: The model's name.
        stored: Returns what is stored for a model, or with ``None`` for the store.
    """

    model: str
    stored: Callable[[str | None], Retention | None]

    def rules(self) -> tuple[str | None, Retention] | None:
        """Return whose rules hold, ``None`` for the store's, and these; ``None`` without any."""
        return next((one for one in self._both() if one[1].rules is not None), None)

    def window_s(self) -> int:
        """Return for how many seconds a removed version of the model can be brought back."""
        found = (one.window_s for _, one in self._both())
        return next((seconds for seconds in found if seconds is not None), WINDOW_S)

    def alias_history_s(self) -> int:
        """Return for how many seconds a version of the model stays after an alias left it."""
        found = (one.alias_history_s for _, one in self._both())
        return next((seconds for seconds in found if seconds is not None), ALIAS_HISTORY_S)

    def _both(self) -> Iterator[tuple[str | None, Retention]]:
        for name in (self.model, None):
            one = self.stored(name)
            if one is not None:
                yield name, one


def read_set(home_blobs: BlobStore, model: str) -> SetFor:
    """Return what is set for a model now, by one request.

    What is damaged of it raises ``Damaged`` where it is asked for.
    """
    found = home_blobs.get_many([retention_key(model), retention_key(None)])
    return SetFor(model, lambda name: _parsed(found, retention_key(name)))


def stored_retention(home_blobs: BlobStore, model: str | None) -> Retention | None:
    """Return what is set for a model, or with ``None`` for the store; ``None`` if nothing is."""
    key = retention_key(model)
    return _parsed(home_blobs.get_many([key]), key)


@dataclass(frozen=True, slots=True)
class Over:
    """Removals whose window collections took for over: they cannot be undone for certain.

    By what was set or given then, whatever is set now.

    Attributes:
        until_us: Those up to this time are over, in microseconds since the epoch; 0 for none.
        entries: Those up to this entry of a model's log of removals are over, by model.
        times_us: When the latest of these was written, in microseconds since the epoch, by model;
            of collectors of before it is not known. An entry that is later has the number of one
            that was lost.
    """

    until_us: int = 0
    entries: Mapping[str, int] = field(default_factory=dict)
    times_us: Mapping[str, int] = field(default_factory=dict)

    def has(self, model: str, entry: RefEntry) -> bool:
        """Return whether what an entry removed of a model is not promised any more."""
        return entry.time_us <= self.until_us or self.ended(model, entry)

    def ended(self, model: str, entry: RefEntry) -> bool:
        """Return whether a collection ended the window of what an entry removed of a model.

        A time alone ends none: where home's clock went back, what is removed now may have that of
        before.
        """
        is_known = entry.time_us <= self.times_us.get(model, entry.time_us)
        return is_known and entry.seq <= self.entries.get(model, 0)

    def __or__(self, other: Over) -> Over:
        """Return what is over by one of both."""
        return Over(
            max(self.until_us, other.until_us),
            _highest(self.entries, other.entries),
            _highest(self.times_us, other.times_us),
        )


def _highest(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {key: max(one.get(key, 0), other.get(key, 0)) for key in one.keys() | other.keys()}


NONE_OVER = Over()


def read_over(home_blobs: BlobStore) -> Over:
    """Return which removals collections took for over; none where that is lost."""
    found = read_collected(home_blobs)
    return Over() if found is None else Over(found.over_us, found.over, found.over_times_us)


def window_s(home_blobs: BlobStore, model: str) -> int:
    """Return for how many seconds a removed version of a model can be brought back."""
    return read_set(home_blobs, model).window_s()


class SetRetentions:
    """What is set in a store, as it is when it is first asked for.

    Costs one LIST, and a read of what is set for each model that is asked about.

    Args:
        home_blobs: The store's home.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._blobs = home_blobs
        self._listed: dict[str, BlobInfo] | None = None
        self._read: dict[str | None, Retention | None] = {}

    def of(self, model: str) -> SetFor:
        """Return what is set for a model; what is damaged of it raises where it is asked for."""
        return SetFor(model, self.stored)

    def info(self, model: str | None) -> BlobInfo | None:
        """Return what is listed of that which is stored for a model, or for the store."""
        return self.listed().get(retention_key(model))

    def listed(self) -> dict[str, BlobInfo]:
        """Return all that is stored, by key."""
        if self._listed is None:
            self._listed = {info.key: info for info in self._blobs.list(RETENTION)}
        return self._listed

    def stored(self, model: str | None) -> Retention | None:
        """Return what is stored for a model, or with ``None`` for the store; read once."""
        if self.info(model) is None:
            return None
        if model not in self._read:
            self._read[model] = stored_retention(self._blobs, model)
        return self._read[model]


def _parsed(found: Mapping[str, memoryview], key: str) -> Retention | None:
    if key not in found:
        return None
    return unseal_body(Kind.RETENTION, found[key], Retention, f"retention {key}")
