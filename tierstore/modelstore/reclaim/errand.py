"""What a collection deletes at once besides what is garbage: see ``purge``."""

from __future__ import annotations

from collections.abc import Set

from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.reclaim.mark import Mark, Marker
from tierstore.modelstore.reclaim.repack import Repacked
from tierstore.modelstore.reclaim.report import Report


class Errand:
    """What a run deletes at once besides what is garbage, such as all that was purged: nothing."""

    @property
    def doomed(self) -> Set[bytes]:
        """The packs that are to go, as the last ``prepare`` found them."""
        return frozenset()

    def begin(self) -> None:
        """Read what is to be done, once the right to collect is held."""

    def prepare(self, mark: Mark, marker: Marker, lease: HeldLease) -> bool:
        """Find what is to go, by a mark; tell whether that changed the store: mark again."""
        return False

    def names(self, mark: Mark) -> Set[bytes]:
        """Return the digests of manifests that are condemned with the packs, but for ``needed``."""
        return frozenset()

    def needed(self, mark: Mark) -> Set[bytes]:
        """Return the digests of manifests that something needs now that came since a mark."""
        return frozenset()

    def rewrote(self, done: Repacked) -> None:
        """Take note of what was copied out of packs that are to go."""

    def found(self, mark: Mark) -> None:
        """Take note of what will be deleted now, before anything is."""

    def swept(self, mark: Mark, lease: HeldLease) -> None:
        """Delete objects of manifests that are condemned, after the packs were."""

    def conclude(self, report: Report) -> None:
        """Look what is left and write it down, as long as the right to collect is held."""


NOTHING = Errand()
"""Nothing but garbage."""
