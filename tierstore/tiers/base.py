"""Types that all tiers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


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
