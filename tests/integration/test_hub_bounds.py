"""What a client of the gateway can cost, with a token or without one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.test_hub_hostile import ask
from tests.servers.hub import gateway

pytestmark = pytest.mark.server


def stored(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "leases" not in path.parts
    }


def test_reading_stores_nothing(tmp_path: Path) -> None:
    table = np.random.default_rng(1).standard_normal((4000, 64), np.float32)
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"w": table})
        for number in range(2, 5):
            change = tierstore.Rows([number], np.full((1, 64), number, np.float32))
            store.patch("m", {"w": change}, fold=False)
        before = stored(tmp_path / "store")
        sums = set()
        with gateway(store.url, tmp_path / "spool") as running:
            for number in range(1, 5):
                revision = f"/api/models/m/revision/{number}?blobs=true"
                status, _, body = ask(running, "GET", revision)
                assert status == 200, body
                (sibling,) = json.loads(body)["siblings"]
                status, headers, data = ask(
                    running, "GET", f"/m/resolve/{number}/model.safetensors"
                )
                assert hashlib.sha256(data).hexdigest() == sibling["lfs"]["sha256"]
                assert headers["etag"] == f'"{sibling["lfs"]["sha256"]}"'
                for path in ("tree", "commits"):
                    assert ask(running, "GET", f"/api/models/m/{path}/{number}")[0] == 200
                sums.add(sibling["lfs"]["sha256"])
        assert len(sums) == 4
        assert stored(tmp_path / "store") == before
