"""One tier that holds packs."""

from __future__ import annotations

from dataclasses import dataclass, field

from tierstore.blobs.base import BlobStore
from tierstore.format.tiers import HOME_NAME, Role, TierSpec
from tierstore.tiers.durable.archive import Archive
from tierstore.tiers.durable.marker import Keeper, verify
from tierstore.tiers.stats import TierStats


@dataclass(frozen=True, slots=True)
class DurableTier:
    """A tier that holds packs and may hold the only copy of one.

    Attributes:
        spec: The tier's settings, of the store and of this node.
        blobs: The opened blob store, guarded by its timeout and breaker, and metered into
            ``stats``.
        stats: The tier's counters.
        store_id: The id of the store that its marker must name; ``None`` for home.
        archive: Freezes and restores its packs, for a tier in an archive class.
    """

    spec: TierSpec
    blobs: BlobStore
    stats: TierStats = field(default_factory=TierStats)
    store_id: str | None = None
    archive: Archive | None = None

    @property
    def name(self) -> str:
        """The name of the tier in commands and messages."""
        return self.spec.name

    @property
    def role(self) -> Role:
        """The role, ``warm`` or ``cold``; for home the one that is configured."""
        return self.spec.role

    @property
    def is_home(self) -> bool:
        """Whether it is the store's home, which has packs as well."""
        return self.name == HOME_NAME

    @property
    def takes_writes(self) -> bool:
        """Whether new packs may be written here."""
        return self.spec.state == "active"

    def verify(self) -> Keeper | None:
        """Return which home deletes here, as ``marker.verify``; ``None`` of home itself.

        Raises:
            Unreachable: This place is not the tier, as where a mount is missing.
        """
        if self.store_id is None:
            return None
        return verify(self.blobs, self.name, self.store_id)
