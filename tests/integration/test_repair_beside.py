"""A repair beside others that save: what came after it looked is not called lost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tierstore.ids import Digest
from tierstore.modelstore.reclaim.repair import content, repairing
from tierstore.modelstore.reclaim.repair.objects import Objects


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
