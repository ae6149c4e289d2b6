"""Credentials that the machine itself gives: an instance role, as the metadata service has it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.servers.ceph import ACCESS_KEY, SECRET_KEY, Ceph
from tierstore.wiring import open_blobs

_ROLE = "models-reader"


class _Metadata(BaseHTTPRequestHandler):
    """Version 2 of the metadata service: a token first, then the role, then its credentials."""

    asked: list[str]

    def do_PUT(self) -> None:
        self._answer("a-session")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        assert self.headers["X-aws-ec2-metadata-token"] == "a-session"
        path = "/latest/meta-data/iam/security-credentials"
        if self.path.rstrip("/") == path:
            self._answer(_ROLE)
        elif self.path == f"{path}/{_ROLE}":
            self._answer(json.dumps({
                "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": "",
                "Expiration": "2099-01-01T00:00:00Z", "Code": "Success", "Type": "AWS-HMAC",
                "LastUpdated": "2026-01-01T00:00:00Z",
            }))  # fmt: skip
        else:
            self.send_error(404)

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the metadata service was asked for."""
    paths: list[str] = []
    handler = type("Handler", (_Metadata,), {"asked": paths})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        yield paths
        server.shutdown()
        thread.join()


def test_an_instance_role_opens_the_bucket(
    ceph: Ceph, asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_blobs(f"s3://{ceph.bucket()}/p") as store:
        store.put("k", b"x")
        assert store.get("k") == b"x"
    assert len(asked) <= 4, "they are asked for once by each of two clients, and kept"
