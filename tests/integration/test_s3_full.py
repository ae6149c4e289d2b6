"""A bucket that is full: said so, and the next tier takes what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.kit import MIB, equal, tensors
from tests.servers.ceph import Ceph
from tierstore.blobs.base import BlobStore
from tierstore.errors import OutOfSpace
from tierstore.format.tiers import TierSpec
from tierstore.store import init_store, open_store
from tierstore.wiring import open_blobs


@pytest.fixture
def full(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that holds three objects at most."""
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    bucket = ceph.bucket()
    for change in (["set", "--max-objects=3"], ["enable"]):
        ceph.run(
            "radosgw-admin", "quota", change[0], "--quota-scope=bucket", f"--bucket={bucket}",
            *change[1:], package="radosgw",
        )  # fmt: skip
    return bucket


def _fill(store: BlobStore) -> None:
    for n in range(20):
        store.put(f"k/{n}", b"x")


def test_a_full_bucket_is_out_of_space(full: str) -> None:
    with open_blobs(f"s3://{full}/p") as store:
        with pytest.raises(OutOfSpace, match="QuotaExceeded"):
            _fill(store)
        kept = [info.key for info in store.list()]
        assert kept
        assert all(store.get(key) == b"x" for key in kept)
        with pytest.raises(OutOfSpace):
            store.put("large", bytes(12 * MIB))
        with pytest.raises(OutOfSpace):
            store.put_if_absent("new", b"x")


def test_the_next_tier_takes_what_a_full_one_does_not(
    full: str, tmp_path: Path, cache: Path
) -> None:
    home = str(tmp_path / "home")
    spec = TierSpec(name="cold", role="cold", url=f"s3://{full}/t")
    with init_store(home, chunk_size=MIB, tiers=[spec]) as store:
        for seed in range(6):
            store.save("m", tensors(seed))
    with open_blobs(home) as blobs:
        assert list(blobs.list("packs/")), "home took none"
    with open_store(home) as store:
        for seed in range(6):
            equal(store.load(f"m@{seed + 1}").load(), tensors(seed))
