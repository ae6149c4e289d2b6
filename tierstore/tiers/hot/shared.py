"""A hot tier that nodes share: frames in a Redis or Memcached, by digest.

It may lose anything at any time, and its answers are never trusted: what fails to answer is a miss,
and a frame that fails its checks is a miss that is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import blake3

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, Damaged, TierstoreError, UnsupportedFormat
from tierstore.format.table import ChunkPlace
from tierstore.format.tiers import TierSpec
from tierstore.ids import Buffer
from tierstore.tiers.stats import TierStats

BATCH_BYTES = 16 << 20
"""Frames of at most this many bytes are asked for, or written, at once."""

_log = logging.getLogger("tierstore.tiers")


def frame_key(place: ChunkPlace) -> str:
    """The key of a chunk's frame: its digest, and for a delta what it is a delta of."""
    if not place.bases:
        return place.digest.hex()
    bases = blake3.blake3(b"".join(place.bases)).digest()[:16]
    return f"{place.digest.hex()}-{bases.hex()}"


class SharedHot:
    """Frames in a store that may fail or forget. Thread-safe.

    Args:
        spec: as configured.
        store: guarded by its timeout and breaker.
        stats: what it has done so far.
    """

    def __init__(self, spec: TierSpec, store: BlobStore, stats: TierStats | None = None) -> None:
        self.spec, self.store = spec, store
        self.stats = stats or TierStats()

    @property
    def name(self) -> str:
        """How commands and messages call it."""
        return self.spec.name

    def get(self, places: Sequence[ChunkPlace]) -> dict[bytes, memoryview]:
        """The frames, by digest, of those chunks that are here; at most ``BATCH_BYTES`` at once.

        They are not verified; ``hit`` or ``bad`` must be told what became of each.
        """
        keys = {frame_key(place): place.digest for place in places}
        try:
            found = self.store.get_many(list(keys))
        except (BackendError, Damaged) as error:
            _log.debug("tier %s failed: %s", self.name, error)
            found = {}
        self.stats.count(misses=len(keys) - len(found))
        return {keys[key]: frame for key, frame in found.items()}

    def hit(self, plain: int) -> None:
        """A frame from here was good; it gave so many plain bytes."""
        self.stats.count(hits=1, hit_bytes=plain)

    def bad(self, place: ChunkPlace, error: TierstoreError) -> None:
        """A frame from here failed its checks: count it, and remove it unless it is newer."""
        self.stats.count(misses=1, damaged=1)
        _log.warning("tier %s had a bad frame: %s", self.name, error)
        if isinstance(error, UnsupportedFormat):
            return
        try:
            self.store.delete([frame_key(place)])
        except BackendError as failure:
            _log.debug("tier %s failed: %s", self.name, failure)

    def take(self, frames: Sequence[tuple[str, Buffer]]) -> None:
        """Write frames by key; those that it cannot hold are counted as rejected."""
        fitting: dict[str, Buffer] = {}
        try:
            limit = self.store.capabilities.max_blob
            fitting = {key: frame for key, frame in frames if limit is None or len(frame) <= limit}
            self.store.put_many(fitting)
        except BackendError as error:
            _log.debug("tier %s failed: %s", self.name, error)
            fitting = {}
        self.stats.count(
            rejected=len(frames) - len(fitting),
            admitted=len(fitting),
            admitted_bytes=sum(len(frame) for frame in fitting.values()),
        )

    def present(self, places: Sequence[ChunkPlace]) -> list[ChunkPlace]:
        """Those of the chunks whose frames are here; none when it cannot be asked."""
        keys = {frame_key(place): place for place in places}
        try:
            found = self.store.present(list(keys))
        except BackendError as error:
            _log.debug("tier %s failed: %s", self.name, error)
            return []
        return [place for key, place in keys.items() if key in found]

    def remove(self, places: Sequence[ChunkPlace]) -> None:
        """Delete frames.

        Raises:
            BackendError: some may still be here.
        """
        self.store.delete([frame_key(place) for place in places])

    def close(self) -> None:
        """Release connections."""
        self.store.close()
