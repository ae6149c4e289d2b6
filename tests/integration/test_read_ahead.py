"""A warm tier is read ahead in the order in which a load consumes it, and never far."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.integration.kit import MIB, opened, settings
from tierstore.blobs.base import BlobStore, Capabilities, RangeRead
from tierstore.blobs.fsspec.store import FsspecStore
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.store import Store

_AHEAD = 8


class Remote(FsspecStore):
    """fsspec's file system in memory, as if it were far away: it notes when each range is read."""

    def __init__(self) -> None:
        super().__init__(f"memory://{uuid.uuid4().hex}")
        self.lock = threading.Lock()
        self.begun: list[tuple[str, int]] = []
        self.under_way = self.most = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(put_if_absent=True, durable=True)

    @property
    def local(self) -> bool:
        return False

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        with self.lock:
            self.begun.append((reads[0].key, reads[0].start))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.01)
        super().get_ranges(reads)
        with self.lock:
            self.under_way -= 1


def _digests(model: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: hashlib.sha256(array.data).digest() for name, array in model.items()}


def _saved(store: BlobStore, cache: Path) -> dict[str, bytes]:
    """Save a model; the digests of its tensors."""
    create_config(store, MIB)
    rng = np.random.default_rng(3)
    model = {f"layer.{n:02d}": rng.integers(0, 256, 4 * MIB, np.uint8) for n in range(40)}
    with opened(store, cache) as saving:
        saving.save("m", model)
    return _digests(model)


def test_ranges_are_read_in_the_order_of_the_load(tmp_path: Path) -> None:
    remote = Remote()
    model = _saved(remote, tmp_path)
    with Store(remote, settings(tmp_path)) as store:
        found = store.load("m")
        remote.begun.clear()
        remote.most = 0
        assert _digests(found.load()) == model
    remote.delete([info.key for info in remote.list()])  # fsspec keeps them for ever
    packs = [read for read in remote.begun if read[0].startswith("packs/")]
    assert len(packs) >= 20
    firsts = list(dict.fromkeys(key for key, _ in packs))
    wanted = sorted(packs, key=lambda read: (firsts.index(read[0]), read[1]))
    late = [abs(packs.index(read) - place) for place, read in enumerate(wanted)]
    assert max(late) < _AHEAD, "a range was read long before or after its turn"
    assert 2 <= remote.most <= _AHEAD, f"{remote.most} ranges were under way at once"
