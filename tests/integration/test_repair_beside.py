"""A repair beside others that save: what came after it looked is not called lost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tierstore.ids import Digest
from tierstore.modelstore.reclaim.repair import repairing
from tierstore.modelstore.reclaim.repair.objects import Objects


def test_a_version_saved_after_manifests_were_listed_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, look = str(tmp_path / "store"), repairing.bad_manifests

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
