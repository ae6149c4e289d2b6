"""A commit through the gateway that did not end: the next one goes on from what it has stored."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from safetensors.numpy import save_file

import tierstore
from tests.integration.kit import MIB
from tests.integration.test_hub_client import files_below, tokens_for
from tests.integration.test_hub_hostile import ask
from tests.servers.hub import Gateway, gateway
from tests.waiting import wait_until

pytestmark = pytest.mark.server

CHUNKS, STOPS_AT = 24, 12
LOST = 4
"""Packs that are stored again at most: see ``test_interrupted``."""

STOPPING = """
import time
from pathlib import Path
import tierstore.cli
from tierstore.format import pack
from tierstore.modelstore.saving.segments import SaveSegments

pack.TARGET_BYTES = 1 << 20
note, noted = SaveSegments.note, []

def stops(self, places, pack_size):
    note(self, places, pack_size)
    noted.append(pack_size)
    while len(noted) == {stops_at} and not Path("{go_on}").exists():
        time.sleep(0.02)

SaveSegments.note = stops
tierstore.cli.main()
"""
"""The command line of a gateway that stops in a commit, once so many packs are put, until a file is
there."""


class Setting:
    """A model in a folder, and a store with a gateway to which its large file was uploaded."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, tierstore.init(root / "store", chunk_size=MIB)
        (root / "tokens.toml").write_text(tokens_for(team=("secret", [], ["team/*"])))
        self.source, self.go_on = root / "source", root / "go on"
        self.source.mkdir()
        bits = np.random.default_rng(1).integers(0, 1 << 32, (CHUNKS, MIB // 4), np.uint32)
        save_file({"w": bits}, self.source / "model.safetensors")
        self.data = (self.source / "model.safetensors").read_bytes()
        self.oid = hashlib.sha256(self.data).hexdigest()

    def gateway(self, *, stops: bool) -> AbstractContextManager[Gateway]:
        code = STOPPING.format(stops_at=STOPS_AT if stops else -1, go_on=self.go_on)
        tokens = ("--tokens", str(self.root / "tokens.toml"))
        spool = self.root / "spool"
        return gateway(self.store.url, spool, *tokens, program=("-c", code))

    def upload(self, running: Gateway) -> None:
        """Upload the file as git-lfs does."""
        objects = [{"oid": self.oid, "size": len(self.data)}]
        asked = {"operation": "upload", "objects": objects, "transfers": ["basic"]}
        path = "/team/m.git/info/lfs/objects/batch"
        _, _, said = asking(running, "POST", path, json.dumps(asked).encode())
        href = json.loads(said)["objects"][0]["actions"]["upload"]["href"]
        assert asking(running, "PUT", "/" + href.split("/", 3)[3], self.data)[0] == 200

    def commit(self) -> bytes:
        """The body of a commit of it."""
        file = {"path": "model.safetensors", "algo": "sha256", "oid": self.oid}
        lines = [
            {"key": "header", "value": {"summary": "nightly"}},
            {"key": "lfsFile", "value": {**file, "size": len(self.data)}},
        ]
        return "\n".join(map(json.dumps, lines)).encode()

    def packs(self) -> int:
        return len(list((self.root / "store" / "packs").rglob("*/*")))

    def is_whole(self, out: Path) -> None:
        assert [one.number for one in self.store.versions("team/m")] == [1]
        self.store.load("team/m").export(out)
        assert files_below(out) == files_below(self.source)
        report = self.store.check(read_data=True)
        assert not report.damaged, report.findings
        assert not list((self.root / "spool").rglob(self.oid + "*")), "it needs the upload no more"


COMMIT = "/api/models/team/m/commit/main"


def asking(running: Gateway, method: str, path: str, body: bytes) -> tuple[int, object, bytes]:
    return ask(running, method, path, body, Authorization="Bearer secret")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_a_gateway_that_was_killed_goes_on(setting: Setting, tmp_path: Path) -> None:
    """The client commits again, and sends nothing that has come already."""
    with setting.gateway(stops=True) as running:
        setting.upload(running)

        def commit() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                asking(running, "POST", COMMIT, setting.commit())

        client = Thread(target=commit)
        client.start()
        wait_until(lambda: setting.packs() >= STOPS_AT, "the packs of a commit that stops")
        running.process.kill()
        client.join()
        running.process.wait()
    assert setting.store.models() == []
    assert setting.packs() < CHUNKS
    with setting.gateway(stops=False) as running:
        status, _, said = asking(running, "POST", COMMIT, setting.commit())
        assert status == 200, said
    assert setting.packs() <= CHUNKS + LOST
    setting.is_whole(tmp_path / "out")


def test_a_client_that_goes_away_stops_no_commit(setting: Setting, tmp_path: Path) -> None:
    """It asks again, and gets the version that was made meanwhile."""
    with setting.gateway(stops=True) as running:
        setting.upload(running)
        body = setting.commit()
        head = (
            f"POST {COMMIT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(head.encode() + body)
            wait_until(lambda: setting.packs() >= STOPS_AT, "the packs of a commit that stops")
        setting.go_on.touch()
        wait_until(lambda: bool(setting.store.models()), "the version")
        status, _, said = asking(running, "POST", COMMIT, setting.commit())
        assert status == 200, said
        assert json.loads(said)["commitOid"] == setting.store.resolve("team/m").digest.hex[:40]
    assert setting.packs() <= CHUNKS + LOST
    setting.is_whole(tmp_path / "out")
