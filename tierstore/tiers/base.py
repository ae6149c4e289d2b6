"""What a tier is to the code above it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tierstore.blobs.base import BlobStore
from tierstore.blobs.stats import TierStats
from tierstore.format.tiers import Role, TierSpec


@dataclass(frozen=True, slots=True)
class DurableTier:
    """A tier that holds packs and may hold the only copy of one.

    Attributes:
        spec: as configured for the store and this node.
        store: opened, guarded by its timeout and breaker, and metered into ``stats``.
        stats: what it has done so far.
    """

    spec: TierSpec
    store: BlobStore
    stats: TierStats = field(default_factory=TierStats)

    @property
    def name(self) -> str:
        """How commands and messages call it."""
        return self.spec.name

    @property
    def role(self) -> Role:
        """``warm`` or ``cold``; home counts as what it is configured as."""
        return self.spec.role

    @property
    def takes_writes(self) -> bool:
        """Whether new packs may be put here."""
        return self.spec.state == "active"


@dataclass(frozen=True, slots=True)
class TierUsage:
    """What a tier holds now.

    Attributes:
        used: bytes.
        objects: chunks or packs.
        pinned: bytes that may not be evicted.
        quota: bytes; ``None`` for no limit.
    """

    used: int
    objects: int
    pinned: int
    quota: int | None
