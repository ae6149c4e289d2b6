"""Frames in a cache that nodes share: what proves wrong is removed, what is newer is left."""

from __future__ import annotations

import pytest

from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, TierstoreError, UnsupportedFormat
from tierstore.format.table import ChunkPlace
from tierstore.format.tiers import TierSpec
from tierstore.tiers.hot.shared import SharedHot, frame_key

PLACE = ChunkPlace(bytes(32), bytes(32), 64, 100, 80, 50, 0)


@pytest.mark.parametrize(
    ("error", "left"), [(Damaged("it is bad"), set()), (UnsupportedFormat("newer"), {"frame"})]
)
def test_a_bad_frame_is_removed_and_a_newer_one_is_not(
    error: TierstoreError, left: set[str]
) -> None:
    store = MemoryStore("shared")
    tier = SharedHot(TierSpec(name="shared", role="shared", url="memory://"), store)
    tier.take([(frame_key(PLACE), b"frame")])
    tier.bad(PLACE, error)
    assert {bytes(frame).decode() for frame in tier.get([PLACE]).values()} == left
    assert tier.stats.damaged == 1
