"""Removed versions, as a check sees them: no garbage yet, and what is gone of them is no damage."""

from __future__ import annotations

from collections.abc import Set
from contextlib import suppress

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import ALIASES, layout_key
from tierstore.format.layout import parse_layout
from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.removed import Removals, Removed


class RemovedVersions:
    """The removed versions of the models that are checked, one after the other.

    Args:
        home: The store's home.

    Attributes:
        digests: The manifests of removed versions, of their variants and of their folds so far.
    """

    def __init__(self, home: Home) -> None:
        self._home, self._removals = home, Removals(home)
        self._removed: Removed = {}
        self.digests: set[Digest] = set()

    def begin(self, model: str) -> None:
        """Look up what is removed of the model whose logs are checked next."""
        self._removed = {}
        with suppress(Damaged, UnsupportedFormat):  # the check of the log says so
            self._removed = self._removals.of(model)

    def takes(self, name: str, entry: RefEntry, digest: Digest) -> bool:
        """Return whether an entry in the log of this name publishes what is removed."""
        gone = not name.startswith(ALIASES) and entry.version in self._removed
        if gone:
            self.digests.add(digest)
        return gone

    def add_fold(self, full: Digest | None) -> None:
        """Count the full manifest of a removed version's fold as removed, too."""
        if full is not None:
            self.digests.add(full)

    def packs(self, live: Set[Digest]) -> set[bytes]:
        """Return the packs of removed versions, but of live ones, as far as they are known."""
        found: set[bytes] = set()
        for digest in self.digests - live:
            key = layout_key(digest)
            with suppress(Damaged, NotFound, UnsupportedFormat):
                found.update(parse_layout(self._home.blobs.get(key), digest, key).pack_ids)
        return found
