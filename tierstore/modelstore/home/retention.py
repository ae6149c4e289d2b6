"""Retention as it is stored: windows and rules of models and of the store (SPEC.md 9.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tierstore.blobs.base import BlobStore
from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.collected import Collected
from tierstore.format.keys import COLLECTED, RETENTION, retention_key
from tierstore.format.retention import ALIAS_HISTORY_S, WINDOW_S, Retention
from tierstore.format.sealed import Kind, unseal_body


def read_retention(home_blobs: BlobStore, model: str) -> tuple[Retention | None, Retention | None]:
    """Return what is set for a model, and for the store; ``None`` for what is not set."""
    own, common = retention_key(model), retention_key(None)
    found = home_blobs.get_many([own, common])
    return _parsed(found, own), _parsed(found, common)


def stored_retention(home_blobs: BlobStore, model: str | None) -> Retention | None:
    """Return what is set for a model, or with ``None`` for the store; ``None`` if nothing is."""
    key = retention_key(model)
    return _parsed(home_blobs.get_many([key]), key)


def over_us(home_blobs: BlobStore) -> int:
    """Return the time of the newest removal whose window a collection took for over.

    By what was set or given then, whatever is set now. Microseconds since the epoch; 0 for none.
    """
    try:
        found = unseal_body(Kind.COLLECTED, home_blobs.get(COLLECTED), Collected, COLLECTED)
    except (NotFound, Damaged, UnsupportedFormat):  # it may be lost at any time
        return 0
    return found.over_us


def window_s(home_blobs: BlobStore, model: str) -> int:
    """Return for how many seconds a removed version of a model can be brought back."""
    return settled_window_s(read_retention(home_blobs, model))


def settled_window_s(both: tuple[Retention | None, Retention | None]) -> int:
    """Return the window of a model in seconds, from what is set for it and for the store."""
    return _settled((one.window_s for one in both if one is not None), WINDOW_S)


class SetRetentions:
    """What is set in a store, as it is when it is first asked for.

    Costs one LIST, and a read of what is set for each model that is asked about.

    Args:
        home_blobs: The store's home.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._blobs = home_blobs
        self._keys: set[str] | None = None
        self._read: dict[str, Retention | None] = {}

    def window_s(self, model: str) -> int:
        """Return for how many seconds a removed version of a model can be brought back."""
        return settled_window_s(self._both(model))

    def alias_history_s(self, model: str) -> int:
        """Return for how many seconds a version of a model stays after an alias left it."""
        found = (one.alias_history_s for one in self._both(model) if one is not None)
        return _settled(found, ALIAS_HISTORY_S)

    def _both(self, model: str) -> tuple[Retention | None, Retention | None]:
        return self._of(model), self._of(None)

    def _of(self, model: str | None) -> Retention | None:
        if self._keys is None:
            self._keys = {info.key for info in self._blobs.list(RETENTION)}
        key = retention_key(model)
        if key not in self._keys:
            return None
        if key not in self._read:
            self._read[key] = stored_retention(self._blobs, model)
        return self._read[key]


def _settled(found: Iterable[int | None], default: int) -> int:
    """Return the first seconds that are set, the model's before the store's."""
    return next((seconds for seconds in found if seconds is not None), default)


def _parsed(found: Mapping[str, memoryview], key: str) -> Retention | None:
    if key not in found:
        return None
    return unseal_body(Kind.RETENTION, found[key], Retention, f"retention {key}")
