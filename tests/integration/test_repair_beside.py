"""A repair beside others that save: what came after it looked is not called lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import created, tensors
from tierstore.blobs.base import BlobInfo
from tierstore.blobs.memory import MemoryStore
from tierstore.format.keys import REFS, entry_key
from tierstore.ids import Digest
from tierstore.modelstore.reclaim.repair import content, repairing
from tierstore.modelstore.reclaim.repair.objects import Objects
from tierstore.testing.faulty import FaultyStore


def test_a_version_saved_after_manifests_were_listed_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, look = str(tmp_path / "store"), content.bad_manifests

    def looking(objects: Objects, found: Iterable[str]) -> dict[Digest, str]:
        bad = look(objects, found)
        with tierstore.open(url) as other:
            other.save("m", {"w": np.zeros(5, np.float32)})
        return bad

    with tierstore.init(url) as store:
        store.save("m", {"w": np.ones(3, np.float32)})
        monkeypatch.setattr(repairing, "bad_manifests", looking)
        report = store.repair()
        assert report.is_whole
        assert not report.objects


class Slow(FaultyStore):
    """A store whose listings miss an entry: it was written when that page was listed already."""

    unlisted = ""

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        return (info for info in super().list(prefix) if info.key != self.unlisted)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("log", ["versions", "alias/prod"])
def test_an_entry_that_was_written_during_a_listing_is_not_missing(
    cache: Path, log: str, number: int
) -> None:
    blobs = Slow(MemoryStore("slow"))
    with created(blobs, cache) as store:
        for seed in (1, 2, 3):
            store.save("m", tensors(seed), alias="prod")
        blobs.unlisted = entry_key(f"{REFS}m/{log}/", number)
        assert store.repair().objects == []
        assert store.check().findings == []
        blobs.inner.delete([blobs.unlisted])
        assert blobs.unlisted in [one.key for one in store.check().findings]
        assert blobs.unlisted in [one.key for one in store.repair().objects]


def test_what_is_no_entry_of_a_log_is_said(cache: Path) -> None:
    blobs = MemoryStore("odd")
    with created(blobs, cache) as store:
        store.save("m", tensors(1))
        for name in ("notes", "000000/000000001/x", "000001/000000002"):
            key = f"{REFS}m/versions/{name}"
            blobs.put(key, b"x")
            [finding] = store.check().findings
            assert (finding.key, finding.what) == (key, "it is no entry of this log")
            blobs.delete([key])
        far = entry_key(f"{REFS}m/versions/", 999_999_999)
        blobs.put(far, blobs.get(entry_key(f"{REFS}m/versions/", 1)))
        assert [one.key for one in store.check().findings] == [far]
        assert store.repair().objects == []


def test_an_object_of_another_kind_is_no_whole_one(tmp_path: Path) -> None:
    """A wrong file was copied there: what an alias says of the version is written anew."""
    values = np.arange(7, dtype=np.float32)
    with tierstore.init(str(tmp_path / "store")) as store:
        store.save("m", {"w": values}, alias="prod")
        store.save("m", {"w": values + 1})
    entry = tmp_path / "store/refs/m/versions/000000/000000001"
    manifest = next(path for path in (tmp_path / "store/versions").iterdir())
    entry.chmod(0o600)
    entry.write_bytes(manifest.read_bytes())
    with tierstore.open(str(tmp_path / "store")) as store:
        report = store.repair()
        assert [(one.outcome, one.key) for one in report.objects] == [
            ("repaired", "refs/m/versions/000000/000000001")
        ]
        assert not store.check(read_data=True).findings
        assert store.load("m@1")["w"].tobytes() == values.tobytes()
