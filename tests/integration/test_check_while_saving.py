"""What check says of the packs of a save that is still running."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import tierstore


def _wait_for_a_pack(packs: Path, seconds: float = 60.0) -> None:
    """Packs are written beside the save, so the first may not be there yet on a slow machine."""
    deadline = time.monotonic() + seconds
    while not any(path.is_file() and "~" not in path.name for path in packs.rglob("*")):
        assert time.monotonic() < deadline, f"no pack came under {packs} within {seconds} s"
        time.sleep(0.01)


def test_packs_of_a_running_save_are_not_to_be_deleted(tmp_path: Path) -> None:
    # random mantissas barely shrink: 144 MB fill more than one pack before the save ends
    weights = {f"w{i}": np.random.default_rng(i).normal(size=300_000) for i in range(60)}
    with tierstore.init(tmp_path / "store") as store:
        said: list[str] = []

        def look(done: int, total: int) -> None:
            if done == total:
                _wait_for_a_pack(tmp_path / "store" / "packs")
                said.extend(finding.what for finding in store.check().findings)

        store.save("m", weights, progress=look)
        assert said, "check did not see the pack that has no version yet"
        assert all("leave it alone" in what for what in said), said
        assert store.check().findings == []

        orphan = tmp_path / "store" / "versions" / ("0" * 64)
        orphan.write_bytes(b"left by a crash")
        (finding,) = store.check().findings
        assert "leave it alone" not in finding.what
