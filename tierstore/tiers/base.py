"""What a tier is to the code above it."""

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
        spec: as configured for the store and this node.
        store: opened, guarded by its timeout and breaker, and metered into ``stats``.
        stats: what it has done so far.
        store_id: of the store whose tier it must say it is; ``None`` for home.
        archive: how packs are frozen and restored, for a tier in an archive class.
    """

    spec: TierSpec
    store: BlobStore
    stats: TierStats = field(default_factory=TierStats)
    store_id: str | None = None
    archive: Archive | None = None

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

    def verify(self) -> None:
        """Raise ``Unreachable`` when what is there is not this tier: a mount that is missing."""
        if self.store_id is not None:
            verify(self.store, self.name, self.store_id)


class ChunkRead(NamedTuple):
    """One read of a chunk or of a part of it, wherever its bytes came from.

    Attributes:
        digest: of the chunk.
        pack: id of the pack that its version's layout names.
        plain: bytes of the whole chunk: what it takes in a hot tier of this node.
        read: bytes of its frame that were wanted: what the read adds to the heat of the pack.
    """

    digest: bytes
    pack: bytes
    plain_bytes: int
    read_bytes: int


class HeatSink(Protocol):
    """Takes note of what is read; called on the reading path, so it only ever counts in memory."""

    def record(self, reads: Sequence[ChunkRead], /) -> None:
        """Count these reads as happening now. Never raises, never waits."""


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
