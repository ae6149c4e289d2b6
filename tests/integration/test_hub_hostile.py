"""The gateway against clients that are broken, slow or mean: it answers, and it stays up."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

import tierstore
from tests.servers.hub import Gateway, gateway
from tests.waiting import wait_until
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.app import make_app
from tierstore.serving.hub.bodies import json_of, read_body
from tierstore.serving.hub.rights import Tokens
from tierstore.serving.hub.spool import UploadSpool

pytestmark = pytest.mark.server

SECRET = b"the other model's bytes"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("hub-hostile")
    tokens = root / "tokens.toml"
    tokens.write_text('[anonymous]\nread = ["m", "org/*"]\nwrite = ["w"]\n')
    (root / "hidden").mkdir()
    (root / "hidden" / "secret.txt").write_bytes(SECRET)
    with tierstore.init(root / "store") as store:
        store.save("m", {"w": np.arange(9, dtype="f4")})
        store.save("org/big", {"w": np.random.default_rng(1).standard_normal(6 << 20)})
        store.save("hidden", root / "hidden", allow_no_tensors=True)
        with gateway(store.url, root / "spool", "--tokens", str(tokens)) as one:
            yield one


def ask(
    running: Gateway, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        if body is not None:
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_ranges_and_conditions(running: Gateway) -> None:
    path = "/m/resolve/main/model.safetensors"
    status, headers, whole = ask(running, "GET", path)
    assert (status, headers["content-length"]) == (200, str(len(whole)))
    assert "x-xet-hash" not in headers
    etag = headers["etag"]
    for asked, wanted in {
        "bytes=0-9": whole[:10], "bytes=5-": whole[5:], "bytes=-7": whole[-7:],
        "bytes=3-3": whole[3:4], f"bytes=2-{10**15}": whole[2:], f"bytes=-{10**15}": whole,
    }.items():  # fmt: skip
        status, headers, body = ask(running, "GET", path, Range=asked)
        assert (status, body) == (206, wanted), asked
        start = len(whole) - len(wanted) if asked.startswith("bytes=-") else int(asked[6:7])
        assert headers["content-range"] == f"bytes {start}-{start + len(wanted) - 1}/{len(whole)}"
    for ignored in ("bytes=9-2", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=a-b"):
        assert ask(running, "GET", path, Range=ignored)[::2] == (200, whole), ignored
    status, headers, _ = ask(running, "GET", path, Range=f"bytes={len(whole)}-")
    assert (status, headers["content-range"]) == (416, f"bytes */{len(whole)}")
    assert ask(running, "GET", path, If_None_Match=etag)[::2] == (304, b"")
    assert ask(running, "GET", path, Range="bytes=0-1", If_Range=etag)[0] == 206
    assert ask(running, "GET", path, Range="bytes=0-1", If_Range='"other"')[::2] == (200, whole)
    status, headers, body = ask(running, "HEAD", path)
    assert (status, headers["content-length"], body) == (200, str(len(whole)), b"")


def test_health_and_metrics(running: Gateway) -> None:
    status, _, body = ask(running, "GET", "/healthz")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    before = ask(running, "GET", "/metrics")[2].decode()
    ask(running, "GET", "/m/resolve/main/model.safetensors")
    after = ask(running, "GET", "/metrics")[2].decode()

    def value(page: str, name: str) -> float:
        lines = [line for line in page.splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].split()[1])

    assert (
        value(after, "tierstore_hub_requests_total")
        >= value(before, "tierstore_hub_requests_total") + 2
    )
    assert value(after, "tierstore_hub_sent_bytes_total") > 0
    assert 'tierstore_tier_hits_total{role="cold",tier="home"}' in after


@pytest.mark.parametrize(
    "path",
    [
        "/m/resolve/main/../../hidden/resolve/main/secret.txt",
        "/m/resolve/main/..%2f..%2fhidden%2fsecret.txt",
        "/m/resolve/main/%2e%2e/secret.txt",
        "/m/resolve/main/secret.txt%00.json",
        "/m/resolve/..%2fhidden/secret.txt",
        "/m/resolve/main%00/secret.txt",
        "/m%2f..%2fhidden/resolve/main/secret.txt",
        "/hidden/resolve/main/secret.txt",
        "/hidden%00/resolve/main/secret.txt",
        "/org/../hidden/resolve/main/secret.txt",
        "/m/resolve/main//etc/passwd",
        "/m/resolve/main/%ff%fe",
        "/m/resolve/main/C:%5csecret.txt",
        "/api/models/hidden",
        "/api/models/hidden/tree/main",
        "/api/models/hidden/refs",
        "/api/models/hidden/commits/main",
        "/api/models/..%2fhidden",
        "/api/models/m/tree/main/..%2f..",
        "/api/models/m/tree/main?cursor=-1",
        "/api/models/m/safetensors-metadata/model.safetensors",
        "/nothing/at/all",
    ],
)
def test_tricks_with_paths_get_nothing(running: Gateway, path: str) -> None:
    status, _, body = ask(running, "GET", path)
    assert 400 <= status < 500, (path, status, body[:300])
    assert SECRET not in body
    assert b"error" in body


def test_oversized_headers_are_refused(running: Gateway) -> None:
    with contextlib.suppress(ConnectionError):  # it is cut off before all of it was sent
        assert ask(running, "GET", "/healthz", X_Big="x" * (1 << 20))[0] in {400, 431}
    assert ask(running, "GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/models/w/commit/main", b"not json"),
        ("/api/models/w/commit/main", b"[]\n"),
        ("/api/models/w/commit/main", b'{"key":"file","value":{"path":"../x","content":""}}'),
        ("/api/models/w/commit/main", b'{"key":"file","value":{"path":"x","content":"%%%"}}'),
        (
            "/api/models/w/commit/main",
            b'{"key":"file","value":{"path":"a/.tierstore-export.json","content":""}}',
        ),
        ("/api/models/w/commit/main", b'{"key":"file","value":{"path":"a\\n","content":""}}'),
        ("/api/models/w/commit/main", b'{"key":"odd","value":{}}'),
        ("/api/models/w/commit/main", b'{"key":"header","value":{"summary":"nothing"}}'),
        (
            "/api/models/w/commit/main",
            b'{"key":"lfsFile","value":{"path":"x","oid":"%s","size":4}}' % (b"a" * 64),
        ),
        (
            "/api/models/w/commit/main",
            b'{"key":"file","value":{"path":"a.safetensors","content":"AAAA"}}',
        ),
        ("/api/models/w/preupload/main", b'{"files": 7}'),
        ("/api/models/w/preupload/main", b'{"files": [{"path": 7}]}'),
        ("/w.git/info/lfs/objects/batch", b'{"operation":"upload","objects":[{"oid":"../x"}]}'),
        ("/w.git/info/lfs/objects/batch", b'{"operation":"download","objects":[]}'),
        ("/api/models/m/commit/main", b'{"key":"header","value":{"summary":"no right"}}'),
        ("/api/models/w/preupload/main", b'{"files": [{"path": "\\ud800", "size": 3}]}'),
        ("/api/models/w/branch/new", b'{"startingPoint": "\\uDFFF"}'),
        (
            "/api/models/w/commit/main",
            b'{"key":"header","value":{"summary":"","parentCommit":"\\ud8000000000"}}',
        ),
        ("/api/repos/create", b'{"name": "..", "type": "model"}'),
        ("/api/repos/create", b'{"name": "w", "type": "space"}'),
    ],
)
def test_malformed_writes_change_nothing(running: Gateway, path: str, body: bytes) -> None:
    status, _, said = ask(running, "POST", path, body)
    assert 400 <= status < 500, (status, said[:300])
    assert json.loads(said)["error"]
    assert ask(running, "GET", "/api/models/w")[0] == 404


def test_writes_reads_and_tokens_need_a_right(running: Gateway) -> None:
    assert ask(running, "POST", "/api/models/m/branch/x", b"{}")[0] == 403
    assert json.loads(ask(running, "GET", "/api/models/m/refs")[2])["branches"][1:] == []
    for path in ("/api/models/hidden", "/hidden/resolve/main/secret.txt"):
        status, _, said = ask(running, "GET", path)
        assert status == 401, path
        assert SECRET not in said
    assert ask(running, "GET", "/api/models/m", Authorization="Bearer nobody")[0] == 401


def test_uploads_need_a_url_that_was_given_out(running: Gateway) -> None:
    oid = "ab" * 32
    asked = json.dumps(
        {"operation": "upload", "objects": [{"oid": oid, "size": 4}], "transfers": ["basic"]}
    )
    _, _, said = ask(running, "POST", "/w.git/info/lfs/objects/batch", asked.encode())
    href = json.loads(said)["objects"][0]["actions"]["upload"]["href"]
    path = "/" + href.split("/", 3)[3]
    assert ask(running, "PUT", path, b"1234")[0] == 400  # not the bytes of this digest
    assert ask(running, "PUT", path, b"12345678")[0] == 413
    assert ask(running, "PUT", path.replace("size=4", "size=9"), b"123456789")[0] == 403
    assert ask(running, "PUT", path.replace("/w.git", "/m.git"), b"1234")[0] == 403
    assert ask(running, "PUT", path.split("?")[0], b"1234")[0] == 403
    verify = json.dumps({"oid": oid, "size": 4}).encode()
    assert ask(running, "POST", "/w.git/info/lfs/verify", verify)[0] == 404


def test_a_body_of_no_declared_length_is_cut_off_at_the_limit() -> None:
    taken = []

    async def receive() -> dict[str, object]:
        taken.append(4)
        return {"type": "http.request", "body": b"1234", "more_body": True}

    request = Request({"type": "http", "method": "PUT", "headers": []}, receive)
    with pytest.raises(HubError, match="at most 10 bytes"):
        asyncio.run(read_body(request, 10, 30.0))
    assert sum(taken) == 12


def test_clients_that_go_away_or_stall_hurt_nobody(running: Gateway) -> None:
    request = b"GET /org/big/resolve/main/model.safetensors HTTP/1.1\r\nHost: x\r\n\r\n"
    stalled = []
    for number in range(24):
        client = socket.create_connection(("127.0.0.1", running.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request if number % 3 else request[:30])
        if number % 3 == 1:
            client.recv(1000)
            client.close()
        else:
            stalled.append(client)
    began = time.monotonic()
    assert ask(running, "GET", "/m/resolve/main/model.safetensors")[0] == 200
    assert time.monotonic() - began < 20
    for client in stalled:
        client.close()


QUICK = """
import sys
from pathlib import Path
import tierstore
from tierstore.serving.hub.app import make_app
from tierstore.serving.hub.server import listen, run
where = listen("127.0.0.1", 0)
with tierstore.open(sys.argv[1]) as store:
    app = make_app(store, Path(sys.argv[2]), stall_s=0.5)
    run(app, where, ready=lambda: print(where.getsockname()[1], flush=True))
"""


def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"w": np.random.default_rng(1).standard_normal(8 << 20)})
    command = [sys.executable, "-c", QUICK, str(tmp_path / "store"), str(tmp_path / "spool")]
    errors = (tmp_path / "errors").open("w+")
    with (
        errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET /m/resolve/main/model.safetensors HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
            wait_until(lambda: "cut off" in (tmp_path / "errors").read_text(), "it is cut off")
            received = 12
            while data := client.recv(1 << 20):  # what had been sent before it was cut off
                received += len(data)
            assert received < 60 << 20
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"POST /api/models/m/paths-info/main HTTP/1.1\r\nHost: x\r\n")
            client.sendall(b"Content-Length: 100\r\n\r\npaths=")
            assert b" 408 " in client.recv(100)
        server.terminate()
        assert server.wait(30) == 0
        errors.seek(0)
        assert errors.read() == "a client that took nothing for 0.5 s is cut off\n"


TEXT = st.text(
    st.characters(min_codepoint=0, max_codepoint=0x2FFF, exclude_categories=["Cs"]), max_size=12
)
PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "api", "models", "m", "org", "big", "hidden", "resolve", "main", "tree", "..",
                ".", "", "revision", "refs", "commits", "paths-info", "preupload", "w.git", "info",
                "lfs", "objects", "batch", "branch", "commit", "model.safetensors", "1", "b3:",
                "+", "@",
            ]
        ),
        TEXT,
    ),
    max_size=8,
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    parts=PARTS,
    raw=st.booleans(),
    query=st.dictionaries(
        st.sampled_from(["recursive", "cursor", "limit", "p", "size", "part", "expires", "blobs"]),
        TEXT, max_size=3,
    ),
    body=st.one_of(
        st.none(), st.binary(max_size=60),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), TEXT),
            lambda below: st.one_of(
                st.lists(below, max_size=3),
                st.dictionaries(
                    st.one_of(
                        st.sampled_from(
                            ["key", "value", "files", "objects", "oid", "size", "path", "paths"]
                        ),
                        TEXT,
                    ),
                    below, max_size=4,
                ),
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    asked=st.one_of(st.none(), st.from_regex(r"bytes=[0-9,\- ]{0,20}", fullmatch=True)),
)  # fmt: skip
def test_no_request_breaks_it(
    running: Gateway, method: str, parts: list[str], raw: bool, query: dict[str, str],
    body: bytes | None, asked: str | None,
) -> None:  # fmt: skip
    safe = "/%" if raw else ""
    path = "/" + "/".join(quote(part, safe=safe) for part in parts)
    if query:
        path += "?" + "&".join(f"{name}={quote(value)}" for name, value in query.items())
    headers = {} if asked is None else {"Range": asked}
    status, found, said = ask(running, method, path, body, **headers)
    assert status < 500, (method, path, body, said[:500])
    assert SECRET not in said
    if status >= 400 and method != "HEAD":
        assert json.loads(said)["error"], found


def test_a_broken_file_of_tokens_lets_nobody_in(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[anonymous]\nread = ["*"]\n')
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"w": np.ones(3)})
        with gateway(store.url, tmp_path / "spool", "--tokens", str(tokens)) as one:
            assert ask(one, "GET", "/api/models/m")[0] == 200
            tokens.write_text("[anonymous\n")
            assert ask(one, "GET", "/api/models/m")[0] == 503
            tokens.write_text('[anonymous]\nread = ["*"]\n')
            assert ask(one, "GET", "/api/models/m")[0] == 200
        tokens.write_text('[[token]]\nname = "x"\nsha256 = 7\n')
        with pytest.raises(tierstore.errors.ConfigError, match="not a valid file of tokens"):
            make_app(store, tmp_path / "spool", tokens=tokens)
        tokens.unlink()
        with pytest.raises(tierstore.errors.ConfigError, match="cannot be read: No such file"):
            make_app(store, tmp_path / "spool", tokens=tokens)


def test_a_file_of_tokens_that_changed_in_place_is_read_again(tmp_path: Path) -> None:
    """Its new content has the length and the time of the old, as ``cp -p`` may make it."""
    path = tmp_path / "tokens.toml"
    path.write_text('[anonymous]\nread = ["a"]\n')
    tokens, before = Tokens(path), path.stat()
    assert tokens.caller(None).may_read("a")
    path.write_text('[anonymous]\nread = ["b"]\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not tokens.caller(None).may_read("a")


def test_text_that_nothing_can_hold_is_in_no_answer() -> None:
    assert json_of(b'["\\ud83d\\ude00"]') == ["\U0001f600"]
    with pytest.raises(HubError, match="not JSON"):
        json_of(b'["\\ud83d"]')
    assert b"no \\\\ud83d" in HubError(400, "no \ud83d").response().body


def test_uploads_are_swept_and_signatures_expire(tmp_path: Path) -> None:
    spool = UploadSpool(tmp_path / "spool")
    path = spool.keep("m", [b"data"])
    assert spool.find("m", path.name, 4) == path
    assert spool.find("other", path.name, 4) is None
    assert spool.find("m", path.name, 5) is None
    again = UploadSpool(tmp_path / "spool")
    now = int(time.time())
    again.check("m", path.name, 4, 0, now + 60, spool.sign("m", path.name, 4, 0, now + 60))
    with pytest.raises(HubError, match="took too long"):
        again.check("m", path.name, 4, 0, now - 1, spool.sign("m", path.name, 4, 0, now - 1))
    spool.sweep(older_than_s=-1)
    assert spool.find("m", path.name, 4) is None
