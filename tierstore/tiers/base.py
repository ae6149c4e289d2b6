"""Types that all tiers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tierstore.blobs.base import BlobStore
from tierstore.format.tiers import Role, TierSpec
from tierstore.tiers.durable.archive import Archive
from tierstore.tiers.durable.marker import verify
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
    def takes_writes(self) -> bool:
        """Whether new packs may be written here."""
        return self.spec.state == "active"

    def verify(self) -> None:
        """Raise ``Unreachable`` when this place is not the tier, as where a mount is missing."""
        if self.store_id is not None:
            verify(self.blobs, self.name, self.store_id)


class ChunkRead(NamedTuple):
    """One read of a chunk or of a part of it, wherever its bytes came from.

    Attributes:
        digest: The digest of the chunk.
        pack: The id of the pack that its version's layout names.
        plain_bytes: The bytes of the whole chunk, which it takes in a hot tier of this node.
        read_bytes: The bytes of its frame that were wanted, which count as heat of the pack.
    """

    digest: bytes
    pack: bytes
    plain_bytes: int
    read_bytes: int


class HeatSink(Protocol):
    """Takes note of reads; it is called while reading, so it only counts in memory."""

    def record(self, reads: Sequence[ChunkRead], /) -> None:
        """Count these reads as happening now. Never raises, never waits."""


@dataclass(frozen=True, slots=True)
class TierUsage:
    """The use of a tier at this moment.

    Attributes:
        used_bytes: Bytes in use.
        objects: The number of chunks or packs.
        pinned_bytes: Bytes that may not be evicted.
        quota_bytes: The quota; ``None`` for no limit.
    """

    used_bytes: int
    objects: int
    pinned_bytes: int
    quota_bytes: int | None
