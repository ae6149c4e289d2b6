"""Drops bad values of hot tiers: they are fetched again from good copies when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tierstore.errors import Damaged, Unreachable, UnsupportedFormat
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.reclaim.repair.report import RepairReport
from tierstore.tiers.durable.packcheck import check_frame
from tierstore.tiers.hot.shared import BATCH_BYTES, SharedHot, frame_key
from tierstore.tiers.hot.tiers import HotTiers

_AGAIN = "it is fetched again when it is read"


class HotRepair:
    """Looks at the values in the hot tiers of this process, each once.

    Args:
        hot: The hot tiers.
        report: Gets what was found.
    """

    def __init__(self, hot: HotTiers, report: RepairReport) -> None:
        self._hot, self._report = hot, report
        self._seen: set[str] = set()
        self._dropped = report.did("dropped") + f": {_AGAIN}"

    def repair_local(self) -> None:
        """Compare this node's files with their digests, and remove those that are wrong.

        Raises:
            Unreachable: The directory failed.
        """
        local = self._hot.local
        if local is None or self._report.dry_run:  # looking at a file removes it if it is wrong
            return
        try:
            done = local.compare_all()
        except OSError as error:
            raise Unreachable(f"the hot tier {local.name!r} in {local.root}: {error}") from error
        self._report.hot_bytes += done.plain_bytes
        for digest in done.damaged:
            what = "this node's disk changed this chunk"
            self._report.add("repaired", digest.hex(), what, self._dropped, local.name)

    def repair_shared(self, table: ChunkTable) -> None:
        """Check the frames of a layout that nodes share, and remove those that are wrong."""
        if not self._hot.shared:
            return
        new = [place for place in table if frame_key(place) not in self._seen]
        self._seen.update(map(frame_key, new))
        for batch in batches(new, lambda place: place.frame_bytes, BATCH_BYTES):
            for tier in self._hot.shared:
                self._check(tier, batch)

    def _check(self, tier: SharedHot, batch: Sequence[ChunkPlace]) -> None:
        places = {place.digest: place for place in batch}
        for digest, frame in tier.get(batch).items():
            self._report.hot_bytes += len(frame)
            place = places[digest]
            try:
                check_frame(frame, replace(place, head_bytes=len(frame)), f"tier {tier.name}")
            except (Damaged, UnsupportedFormat) as error:
                if isinstance(error, Damaged):
                    key = frame_key(place)
                    self._report.add("repaired", key, error, self._dropped, tier.name)
                if not self._report.dry_run:
                    tier.bad(place, error)
            else:
                tier.hit(place.plain_bytes)
