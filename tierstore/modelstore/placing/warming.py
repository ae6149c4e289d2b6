"""Brings a version into a hot tier before it is asked for, and out of it again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tierstore.errors import OutOfSpace, PermissionDenied, UsageError
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.chunks.reader import ChunkReader, OnChunk
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.defaults import HOT
from tierstore.modelstore.home.home import chunks_of
from tierstore.modelstore.loading.arrays import new_bytes
from tierstore.modelstore.loading.model import LoadStats, counted, stats_of
from tierstore.modelstore.loading.opener import Opened
from tierstore.modelstore.placing.hotpins import HotPins
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.version import Version
from tierstore.progress import Progress
from tierstore.tiers.hot.shared import SharedHot
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.node.local import LocalHot, disk_size

_BATCH_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Warmth:
    """How much of a version a hot tier holds.

    Attributes:
        version: The version that was looked at.
        tier: Name of the tier.
        chunks: Number of distinct chunks that it needs; in a shared tier with the bases of its
            deltas.
        missing_chunks: Number of those that are not there.
        tier_bytes: Bytes that all of them take in the tier.
        missing_bytes: Bytes that those not there would take.
        plain_bytes: Plain bytes of all of them.
        stats: Cost of the reads that brought it there; ``None`` when nothing was brought.
        seconds: Time that this took, in seconds.
    """

    version: Version
    tier: str
    chunks: int
    missing_chunks: int
    tier_bytes: int
    missing_bytes: int
    plain_bytes: int
    stats: LoadStats | None
    seconds: float

    @property
    def resident(self) -> bool:
        """Whether reading the version needs no durable tier."""
        return not self.missing_chunks


class Open(Protocol):
    """Opens a version for reading through some hot tiers."""

    def __call__(self, version: Version, hot: HotTiers, /) -> Opened: ...


class Warming:
    """Brings versions into the hot tiers of this process, and evicts them.

    Args:
        hot: The hot tiers.
        pins: The pins of this node's tier, which eviction respects.
        open_version: Opens a version for reading.
        settings: Limits on memory, a quarter of which is used for plain chunks.
    """

    def __init__(
        self, hot: HotTiers, pins: HotPins, open_version: Open, settings: Settings
    ) -> None:
        self._hot, self._pins, self._open = hot, pins, open_version
        self._batch = min(_BATCH_BYTES, settings.memory_limit_bytes // 4)

    def __repr__(self) -> str:
        return f"<Warming of {', '.join(tier.name for tier in self._tiers()) or 'no tier'}>"

    def look(self, version: Version, tier: str) -> Warmth:
        """Return how much of a version is in a tier; chunks count until they prove damaged."""
        target = self._tier(tier)
        needed = _needed(target, self._open(version, self._hot))
        return _warmth(version, target, needed, None, 0.0)

    def bring(self, version: Version, tier: str, progress: Progress | None = None) -> Warmth:
        """Put what is missing of a version into a tier, whatever the tier's policy says.

        Raises:
            OutOfSpace: The tier is smaller than the version.
            PermissionDenied: This user may not write to this node's tier.
        """
        started = time.perf_counter()
        target = self._tier(tier)
        if isinstance(target, LocalHot):
            stats, needed = self._bring_here(target, version, progress)
        else:
            own = HotTiers(shared=[target])  # what is on this node has no frame to give
            stats, needed = self._bring(own, target, version, progress)
            own.stop()
        return _warmth(version, target, needed, stats, time.perf_counter() - started)

    def evict(self, version: Version | None, tier: str) -> int:
        """Remove the chunks of a version, or all, except pinned ones; return the bytes freed.

        Args:
            version: The version, or ``None`` for all; chunks that it shares with others are
                removed, too.
            tier: Name of the tier; ``hot`` for this node's.

        Raises:
            UsageError: Everything in a tier that nodes share was to be removed.
            BackendError: The pins cannot be read, or frames cannot be removed.
        """
        target = self._tier(tier)
        if isinstance(target, LocalHot):
            self._pins.sync()
            if version is None:
                return target.evict()
            needed = _needed(target, self._open(version, self._hot))
            return target.evict([place.digest for place in needed])
        if version is None:
            raise UsageError(
                f"name the version to evict from {target.name}: a tier that nodes share is never "
                "emptied as a whole"
            )
        kept = self._pins.chunks()
        needed = _needed(target, self._open(version, self._hot))
        gone = target.present([place for place in needed if place.digest not in kept])
        target.remove(gone)
        return sum(place.frame_bytes for place in gone)

    def _tiers(self) -> list[LocalHot | SharedHot]:
        local = [] if self._hot.local is None else [self._hot.local]
        return [*local, *self._hot.shared]

    def _tier(self, name: str) -> LocalHot | SharedHot:
        found = self._tiers()
        for tier in found:
            if tier.name == name or name == HOT:
                return tier
        names = ", ".join(tier.name for tier in found) or "none"
        raise UsageError(
            f"this node has no hot tier {name!r}; its hot tiers are: {names}. Add one with "
            "'tierstore tier add', or under [hot] in this node's tierstore.toml"
        )

    def _bring_here(
        self, target: LocalHot, version: Version, progress: Progress | None
    ) -> tuple[LoadStats, list[ChunkPlace]]:
        needed = _needed(target, self._open(version, self._hot))
        size = sum(disk_size(place.plain_bytes) for place in needed)
        if size > target.capacity_bytes:
            raise OutOfSpace(
                f"{version} takes {size} bytes, but tier {target.name} holds at most "
                f"{target.capacity_bytes}; give it a larger size, or warm a smaller variant"
            )
        # held, so that its own chunks do not push each other out
        with self._pins.holding(target, [place.digest for place in needed]):
            done = self._bring(self._hot, target, version, progress)
            self._hot.flush()
        if target.refused is not None and _missing(target, needed):
            raise PermissionDenied(
                f"tier {target.name} cannot be written to: {target.refused.strerror}: "
                f"{target.refused.filename or 'its directory'}; check the owner, mode and mount of "
                "the directory, or name another one under [hot] in this node's tierstore.toml"
            )
        return done

    def _bring(
        self,
        hot: HotTiers,
        target: LocalHot | SharedHot,
        version: Version,
        progress: Progress | None,
    ) -> tuple[LoadStats, list[ChunkPlace]]:
        opened = self._open(version, hot)
        needed = _needed(target, opened)
        count = counted(progress, sum(place.plain_bytes for place in needed))
        missing = _missing(target, needed)
        if count:
            count(sum(p.plain_bytes for p in needed) - sum(p.plain_bytes for p in missing))
        _read(opened.content.reader, missing, self._batch, count)
        return stats_of(opened.content.reader.pool), needed


def _needed(target: LocalHot | SharedHot, opened: Opened) -> list[ChunkPlace]:
    """Return the chunks that must be in the tier; in a shared one with the bases of deltas."""
    found: dict[bytes, ChunkPlace] = {}
    table = opened.content.table
    for digest in [d for one in (opened.manifest, *opened.patches) for d in chunks_of(one)]:
        place = table.find(digest)
        assert place is not None  # it was checked when the version was opened
        found[digest] = place
    if isinstance(target, SharedHot):
        for digest in [base for place in found.values() for base in place.bases]:
            place = table.find(digest)
            assert place is not None
            found.setdefault(digest, place)
    return list(found.values())


def _missing(target: LocalHot | SharedHot, needed: Sequence[ChunkPlace]) -> list[ChunkPlace]:
    if isinstance(target, LocalHot):
        there = target.resident([place.digest for place in needed])
        return [place for place, here in zip(needed, there, strict=True) if not here]
    present = {place.digest for place in target.present(needed)}
    return [place for place in needed if place.digest not in present]


def _warmth(
    version: Version,
    target: LocalHot | SharedHot,
    needed: Sequence[ChunkPlace],
    stats: LoadStats | None,
    seconds: float,
) -> Warmth:
    missing = _missing(target, needed)

    def size(places: Sequence[ChunkPlace]) -> int:
        here = isinstance(target, LocalHot)
        return sum(place.plain_bytes if here else place.frame_bytes for place in places)

    return Warmth(
        version,
        target.name,
        len(needed),
        len(missing),
        size(needed),
        size(missing),
        sum(place.plain_bytes for place in needed),
        stats,
        seconds,
    )


def _read(
    reader: ChunkReader, places: Sequence[ChunkPlace], batch: int, count: OnChunk | None
) -> None:
    """Read chunks just to bring them into hot tiers, one batch at a time."""
    room = new_bytes(0)
    for some in batches(places, lambda place: place.plain_bytes, batch):
        total = sum(place.plain_bytes for place in some)
        if len(room) < total:
            room = new_bytes(total)
        wants = []
        at = 0
        for place in some:
            wants.append(Want(place, room.data[at : at + place.plain_bytes]))
            at += place.plain_bytes
        reader.read(wants, count, keep=True, own=True)
