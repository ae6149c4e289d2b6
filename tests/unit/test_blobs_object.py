"""ObjectStore against a server that answers as told: what is asked, what is made of it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tierstore.blobs.base import RangeRead
from tierstore.blobs.objects.store import ObjectStore
from tierstore.errors import (
    BackendError,
    Damaged,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)
from tierstore.ids import ByteRange

_MIB = 1 << 20
_KEY_ID, _SECRET = "AKIAKEYIDKEYIDKEYIDX", "TheSecretAccessKey"


class _Server(ThreadingHTTPServer):
    """Answers from ``content``, or by the next of ``script``: ``(status, body)``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = b""
        self.etag: Callable[[int], str] = lambda start: '"one"'
        self.script: list[tuple[int, bytes]] = []
        self.default: tuple[int, bytes] | None = None
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        wanted = self.headers.get("range", "")
        self.server.requests.append(f"{self.command} {wanted}".strip())
        told = self.server.script.pop(0) if self.server.script else self.server.default
        if told:
            self._answer(*told)
            return
        content = self.server.content
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if not found:
            self._answer(200, content)
            return
        start, stop = int(found[1]), min(int(found[2]) + 1, len(content))
        about = {"content-range": f"bytes {start}-{stop - 1}/{len(content)}"}
        self._answer(206, content[start:stop], etag=self.server.etag(start), **about)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("last-modified", "Mon, 23 Nov 2026 12:00:00 GMT")
        for name, value in {"etag": '"one"', **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = _handle

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name, value in {
            "AWS_ACCESS_KEY_ID": _KEY_ID,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(name, value)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store(server: _Server) -> Iterator[ObjectStore]:
    with ObjectStore("s3://bucket/prefix", allow_http=True, retry_s=0.3) as store:
        yield store


_CONFLICT = (409, b"<Error><Code>ConditionalRequestConflict</Code></Error>")
_EXISTS = (412, b"<Error><Code>PreconditionFailed</Code></Error>")


@pytest.mark.parametrize(
    ("script", "created"),
    [
        ([(200, b"")], True),
        ([_EXISTS, (200, b"")], False),
        ([_CONFLICT, (200, b"")], False),
        ([_CONFLICT, (404, b""), (200, b"")], True),
        ([_CONFLICT, (404, b""), _EXISTS, (200, b"")], False),
        ([(503, b"SlowDown"), (200, b"")], True),
    ],
)
def test_a_conflict_is_never_taken_for_success(
    server: _Server, store: ObjectStore, script: list[tuple[int, bytes]], created: bool
) -> None:
    server.script = list(script)
    assert store.put_if_absent("k", b"x") is created
    assert server.script == []


def test_a_conflict_that_does_not_end(server: _Server, store: ObjectStore) -> None:
    server.script = [_CONFLICT, (404, b"")] * 6
    with pytest.raises(Unreachable, match=r"'k'.*refused 6 times"):
        store.put_if_absent("k", b"x")


def _body(code: str) -> bytes:
    return (
        f"<Error><Code>{code}</Code><AWSAccessKeyId>{_KEY_ID}</AWSAccessKeyId>"
        f"<StringToSign>{_SECRET}</StringToSign></Error>"
    ).encode()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchBucket", NotFound),
        (403, "AccessDenied", PermissionDenied),
        (403, "InvalidAccessKeyId", PermissionDenied),
        (401, "", PermissionDenied),
        (403, "QuotaExceeded", OutOfSpace),
        (507, "XMinioStorageFull", OutOfSpace),
        (503, "SlowDown", Unreachable),
        (500, "InternalError", Unreachable),
        (429, "TooManyRequests", Unreachable),
        (400, "InvalidRequest", BackendError),
    ],
)
def test_what_an_answer_means(
    server: _Server, store: ObjectStore, status: int, code: str, kind: type[TierstoreError]
) -> None:
    server.default = (status, _body(code))
    calls: list[Callable[[], object]] = [
        lambda: store.put("some/key", b"x"),
        lambda: store.put_if_absent("some/key", b"x"),
        lambda: store.get("some/key"),
        lambda: store.get("some/key", ByteRange(0, 1)),
    ]
    for call in calls:
        with pytest.raises(TierstoreError) as caught:
            call()
        assert type(caught.value) is kind
        message = str(caught.value)
        assert "some/key" in message
        assert "s3://bucket/prefix" in message
        assert code in message
        assert _KEY_ID not in message
        assert _SECRET not in message
        assert caught.value.__cause__ is None


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, server: _Server) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = ObjectStore("s3://bucket/prefix", allow_http=True, retry_s=0.2)
    with pytest.raises(Unreachable, match="no connection"):
        store.info("k")
    with pytest.raises(Unreachable):
        list(store.list())


def test_plain_http_must_be_allowed(server: _Server) -> None:
    with pytest.raises(BackendError, match="AWS_ALLOW_HTTP"):
        ObjectStore("s3://bucket/prefix").get("k")
    assert server.requests == []


def test_a_short_answer_is_damaged(server: _Server, store: ObjectStore) -> None:
    server.content = b"0123456789"
    with pytest.raises(Damaged, match="10 bytes"):
        store.get("k", ByteRange(5, 11))
    with pytest.raises(Damaged, match="10 bytes"):
        store.get_ranges([RangeRead("k", 5, memoryview(bytearray(6)))])
    server.default = (416, b"<Error><Code>InvalidRange</Code></Error>")
    with pytest.raises(Damaged, match="416"):
        store.get("k", ByteRange(50, 51))


def test_a_short_range_is_one_request(server: _Server, store: ObjectStore) -> None:
    server.content = bytes(100)
    store.get("k", ByteRange(10, 20))
    assert server.requests == ["GET bytes=10-19"]


def test_touching_ranges_are_one_request(server: _Server, store: ObjectStore) -> None:
    server.content = bytes(range(100))
    outs = [bytearray(10) for _ in range(4)]
    starts = [30, 10, 20, 60]
    pairs = zip(starts, outs, strict=True)
    store.get_ranges([RangeRead("k", at, memoryview(out)) for at, out in pairs])
    assert [out[0] for out in outs] == starts
    assert sorted(server.requests) == ["GET bytes=10-39", "GET bytes=60-69"]


def test_a_long_range_is_split(server: _Server, store: ObjectStore) -> None:
    server.content = bytes(range(256)) * (20 * _MIB // 256)
    outs = [bytearray(3 * _MIB + 1), bytearray(15 * _MIB)]
    first, second = (memoryview(out) for out in outs)
    store.get_ranges([RangeRead("k", 5, first), RangeRead("k", 5 + len(first), second)])
    assert outs[0] + outs[1] == server.content[5 : 18 * _MIB + 6]
    ends = [(5 + 8 * _MIB * n, min(5 + 8 * _MIB * (n + 1), 18 * _MIB + 6) - 1) for n in range(3)]
    assert sorted(server.requests) == sorted(f"GET bytes={a}-{b}" for a, b in ends)


def test_parts_of_two_versions_are_not_mixed(server: _Server, store: ObjectStore) -> None:
    server.content = bytes(10 * _MIB)
    replaced = iter(['"old"', '"new"', '"new"', '"new"'])
    server.etag = lambda start: next(replaced)
    out = memoryview(bytearray(10 * _MIB))
    store.get_ranges([RangeRead("k", 0, out)])
    assert len(server.requests) == 4
    server.etag = lambda start: f'"{start}"'
    with pytest.raises(BackendError, match="replaced"):
        store.get_ranges([RangeRead("k", 0, out)])
