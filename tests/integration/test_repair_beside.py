"""A repair beside others: what came after it looked is not lost, what others did is not its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import condemn, created, opened, tensors
from tierstore.blobs.base import BlobInfo
from tierstore.blobs.memory import MemoryStore
from tierstore.format.keys import CONDEMNED, GC, REFS, entry_key, list_key, pack_key
from tierstore.format.tiers import TIERS, TierList, seal_tiers, tiers_key
from tierstore.ids import Buffer, Digest
from tierstore.modelstore.reclaim.repair import content, repairing
from tierstore.modelstore.reclaim.repair.objects import Objects
from tierstore.modelstore.reclaim.repair.report import RepairReport
from tierstore.modelstore.reclaim.repair.start import repair_tier_list
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


class Raced(MemoryStore):
    """A store in which another process creates an object right before this one does."""

    rival: Callable[[], object] | None = None
    prefix = ""

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        if self.rival is not None and key.startswith(self.prefix):
            rival, self.rival = self.rival, None
            rival()
        return super().put_if_absent(key, data)


@pytest.mark.parametrize("what", ["alias", "list", "segment"])
def test_what_another_process_has_created_is_not_called_repaired(cache: Path, what: str) -> None:
    blobs = Raced("raced")
    with created(blobs, cache) as store:
        for seed in (1, 2):
            store.save("m", tensors(seed), alias="prod")
        condemn(blobs, pack_key(bytes(32)))
    bad, blobs.prefix = {
        "alias": (entry_key(f"{REFS}m/alias/prod/", 1), REFS),
        "list": (list_key(1), GC),
        "segment": (next(info.key for info in blobs.list(CONDEMNED)), GC),
    }[what]
    if what == "list":
        blobs.put(bad, b"damaged")
    else:
        blobs.delete([bad])

    def repaired() -> RepairReport:
        with opened(blobs, cache) as other:
            return other.repair()

    blobs.rival = repaired
    [left] = repaired().objects
    assert (left.outcome, left.key) == ("left", bad)
    assert left.done == "another process was there first: repair again"
    again = repaired()
    assert again.is_whole
    assert not again.objects


def test_a_list_of_tiers_that_another_process_has_written_is_read() -> None:
    blobs, seen = Raced("raced"), list[TierList | None]()

    def look() -> RepairReport:
        report = RepairReport()
        seen.append(repair_tier_list(Objects(blobs, report)))
        return report

    first = TierList(seq=1, write_id="0" * 32, tiers=[], time_us=0, who="me", message="")
    blobs.put(tiers_key(1), seal_tiers(first))
    blobs.put(tiers_key(2), b"damaged")
    blobs.rival, blobs.prefix = look, TIERS
    report = look()
    others, mine = seen
    assert others is not None
    assert others.seq == 3
    assert mine == others
    assert "nothing needs it" in report.objects[0].done
