"""A hot tier that nodes share: frames by digest in a Redis or Memcached.

It may lose anything at any time, and its answers are never trusted: a failed request is a miss, and
a frame that fails its checks is a miss and is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import blake3

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, Damaged, TierstoreError, UnsupportedFormat
from tierstore.format.tiers import TierSpec
from tierstore.ids import Buffer
from tierstore.tiers.stats import TierStats

if TYPE_CHECKING:
    from tierstore.format.table import ChunkPlace

BATCH_BYTES = 16 << 20
"""The most bytes of frames that are read or written at once."""

_BATCH_KEYS = 1000
_log = logging.getLogger("tierstore.tiers")


def frame_key(place: ChunkPlace) -> str:
    """Return the key of a chunk's frame: its digest, and for a delta also its bases."""
    if not place.bases:
        return place.digest.hex()
    return f"{place.digest.hex()}-{bases_of(place).hex()}"


def bases_of(place: ChunkPlace) -> bytes:
    """Return what tells a delta from others of its chunk in a key: 16 bytes."""
    return blake3.blake3(b"".join(place.bases)).digest()[:16]


class SharedHot:
    """Frames in a store that may fail or forget. Thread-safe.

    Args:
        spec: The settings of the tier.
        blobs: The blob store, guarded by its timeout and breaker.
        stats: The tier's counters.
    """

    def __init__(self, spec: TierSpec, blobs: BlobStore, stats: TierStats | None = None) -> None:
        self.spec, self.blobs = spec, blobs
        self.stats = stats or TierStats()

    @property
    def name(self) -> str:
        """The name of the tier in commands and messages."""
        return self.spec.name

    def get(self, places: Sequence[ChunkPlace]) -> dict[bytes, memoryview]:
        """Return the frames, by digest, of those chunks that are here; at most ``BATCH_BYTES``.

        They are not verified; the caller must report each one to ``hit`` or ``bad``.
        """
        keys = {frame_key(place): place.digest for place in places}
        try:
            found = self.blobs.get_many(list(keys))
        except (BackendError, Damaged) as error:
            _log.debug("tier %s failed: %s", self.name, error)
            found = {}
        self.stats.count(misses=len(keys) - len(found))
        return {keys[key]: frame for key, frame in found.items()}

    def hit(self, plain_bytes: int) -> None:
        """Count a frame from here that was good and gave ``plain_bytes`` bytes."""
        self.stats.count(hits=1, hit_bytes=plain_bytes)

    def bad(self, place: ChunkPlace, error: TierstoreError) -> None:
        """Count a frame from here that failed its checks, and remove it unless it is newer."""
        self.stats.count(misses=1, damaged=1)
        _log.warning("tier %s had a bad frame: %s", self.name, error)
        if isinstance(error, UnsupportedFormat):
            return
        try:
            self.blobs.delete([frame_key(place)])
        except BackendError as failure:
            _log.debug("tier %s failed: %s", self.name, failure)

    def take(self, frames: Sequence[tuple[str, Buffer]]) -> None:
        """Write frames by key; those that the store cannot hold are counted as rejected."""
        fitting: dict[str, Buffer] = {}
        try:
            limit = self.blobs.capabilities.max_blob_bytes
            fitting = {key: frame for key, frame in frames if limit is None or len(frame) <= limit}
            self.blobs.put_many(fitting)
        except BackendError as error:
            _log.debug("tier %s failed: %s", self.name, error)
            fitting = {}
        self.stats.count(
            rejected=len(frames) - len(fitting),
            admitted=len(fitting),
            admitted_bytes=sum(len(frame) for frame in fitting.values()),
        )

    def present(self, places: Sequence[ChunkPlace]) -> list[ChunkPlace]:
        """Return those of the chunks whose frames are here; none when the store cannot be asked."""
        keys = {frame_key(place): place for place in places}
        try:
            found = self.blobs.present(list(keys))
        except BackendError as error:
            _log.debug("tier %s failed: %s", self.name, error)
            return []
        return [place for key, place in keys.items() if key in found]

    def remove(self, places: Sequence[ChunkPlace]) -> None:
        """Delete the frames of chunks.

        Raises:
            BackendError: Some may still be here.
        """
        self.blobs.delete([frame_key(place) for place in places])

    def drop(self, keys: Sequence[str]) -> int:
        """Delete frames by key; return how many there were.

        Raises:
            BackendError: Some may still be here.
        """
        there = 0
        for at in range(0, len(keys), _BATCH_KEYS):
            batch = keys[at : at + _BATCH_KEYS]
            there += len(self.blobs.present(batch))
            self.blobs.delete(batch)
        return there

    def close(self) -> None:
        """Release connections."""
        self.blobs.close()
