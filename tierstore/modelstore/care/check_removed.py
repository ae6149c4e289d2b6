"""Removed versions whose window is over: no garbage yet, and nothing of them is damage any more."""

from __future__ import annotations

from collections.abc import Container, Set
from contextlib import suppress

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import ALIASES, REMOVED_LOG, layout_key
from tierstore.format.layout import parse_layout
from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.removed import Removals, Windows


class ExpiredVersions:
    """The removed versions of the models that are checked which may be gone, model after model.

    Those that can be brought back are checked as others are.

    Args:
        home: The store's home.

    Attributes:
        digests: Their manifests, those of their variants and of their folds so far.
    """

    def __init__(self, home: Home) -> None:
        self._home, self._windows = home, Windows(home, Removals(home))
        self._expired: set[int] = set()
        self.digests: set[Digest] = set()

    def begin(self, model: str, logs: Container[str]) -> None:
        """Look up the versions of the model whose logs are checked next.

        What is removed while they are checked is found out for what turns out to be missing.

        Args:
            model: Name of the model.
            logs: The names of its logs that are there.
        """
        self._expired = set()
        if REMOVED_LOG not in logs:
            return
        with suppress(Damaged, UnsupportedFormat):  # the check of the log says so
            self._expired = self._windows.expired(model)

    def takes(self, name: str, entry: RefEntry, digest: Digest) -> bool:
        """Return whether an entry in the log of this name publishes one of them."""
        gone = not name.startswith(ALIASES) and entry.version in self._expired
        if gone:
            self.digests.add(digest)
        return gone

    def add_fold(self, full: Digest | None) -> None:
        """Count the full manifest of the fold of one of them as well."""
        if full is not None:
            self.digests.add(full)

    def packs(self, live: Set[Digest]) -> set[bytes]:
        """Return their packs, but those of live versions, as far as they are known."""
        found: set[bytes] = set()
        for digest in self.digests - live:
            key = layout_key(digest)
            with suppress(Damaged, NotFound, UnsupportedFormat):
                found.update(parse_layout(self._home.blobs.get(key), digest, key).pack_ids)
        return found
