"""ObjectStore against a server that answers as told: what is asked, what is made of it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tierstore import config
from tierstore.blobs.base import RangeRead
from tierstore.blobs.objects.store import ObjectStore
from tierstore.config import NodeTier
from tierstore.errors import (
    BackendError,
    ConfigError,
    Damaged,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)
from tierstore.format.tiers import TierSpec
from tierstore.ids import ByteRange
from tierstore.wiring.backends import Place, open_tier

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
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
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


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("AccessDenied", PermissionDenied),
        ("SlowDown", Unreachable),
        ("InternalError", Unreachable),
        ("InvalidRequest", BackendError),
    ],
)
def test_what_the_answer_to_a_deletion_means(
    server: _Server, store: ObjectStore, code: str, kind: type[TierstoreError]
) -> None:
    """It is 200, and says for each key what became of it."""
    left = f"<Error><Key>prefix/k</Key><Code>{code}</Code><Message>{_SECRET}</Message></Error>"
    server.default = (200, f"<DeleteResult>{left}</DeleteResult>".encode())
    with pytest.raises(TierstoreError, match=f"deleting 'k' in .*{code}") as caught:
        store.delete(["k"])
    assert type(caught.value) is kind
    assert _SECRET not in str(caught.value)


def test_what_cannot_be_deleted_keeps_nothing_else(server: _Server, store: ObjectStore) -> None:
    """A thousand keys go with each request."""
    left = b"<Error><Key>prefix/k0</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    server.script = [(200, b"<DeleteResult>" + left + b"</DeleteResult>")]
    server.default = (200, b"<DeleteResult></DeleteResult>")
    with pytest.raises(PermissionDenied, match="AccessDenied"):
        store.delete([f"k{at}" for at in range(1500)])
    assert server.requests == ["POST", "POST"]


@pytest.mark.parametrize("key", ["/x", "../x"])
def test_a_key_that_cannot_be_listed_is_named(
    server: _Server, store: ObjectStore, key: str
) -> None:
    server.default = (200, _listed({key: 0}))
    with pytest.raises(BackendError, match=f"listing 'refs/' in .*'prefix/refs/{key}' into the"):
        list(store.list("refs/"))


def test_markers_of_folders_end_no_listing(server: _Server, store: ObjectStore) -> None:
    """Of their keys the client drops the slash: ``a`` is behind ``a-b`` then."""
    server.default = (200, _listed({"a-b/x": 1, "a/": 0, "a/x": 1}))
    assert [info.key for info in store.list("refs/")] == ["refs/a-b/x", "refs/a/x"]
    server.default = (200, _listed({"a-b/x": 1, "a": 1}))
    with pytest.raises(BackendError, match="in order"):
        list(store.list("refs/"))


def _listed(sizes: dict[str, int]) -> bytes:
    """An answer to a listing of ``refs/``."""
    found = "".join(
        f"<Contents><Key>prefix/refs/{key}</Key><Size>{size}</Size>"
        "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        for key, size in sizes.items()
    )
    return f"<ListBucketResult>{found}</ListBucketResult>".encode()


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


ODD_TEXTS = {
    "AWS_ACCESS_KEY_ID": "k\n", "AWS_SECRET_ACCESS_KEY": " s", "AWS_SESSION_TOKEN": "t\r\n",
    "AWS_REGION": "us-east-1 ", "AWS_DEFAULT_REGION": "us\teast", "AWS_TOKEN": "t\x01",
    "AWS_ENDPOINT_URL": "http://localhost:1 ", "AZURE_STORAGE_ACCOUNT_KEY": "k\n",
}  # fmt: skip


def opened(url: str, **options: str) -> None:
    spec = TierSpec(name="cold", role="cold", url=url, options=options)
    open_tier(Place(spec, NodeTier(), "00" * 16)).close()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ODD_TEXTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    return monkeypatch


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_texts_that_no_request_can_hold_are_named_and_not_shown(
    cloud: pytest.MonkeyPatch, name: str
) -> None:
    cloud.setenv(name, ODD_TEXTS[name])
    with pytest.raises(ConfigError, match=f"^the variable {name} holds white space") as caught:
        opened("s3://bucket/p")
    assert ODD_TEXTS[name].strip() not in str(caught.value).replace(name, "").split()


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("127.0.0.1:9000", "is no address: give it as https://HOST or http://HOST:PORT"),
        ("minio:9000", "is no address"),
        ("ftp://host", "is no address"),
        ("http://", "is no address"),
        ("http://host:port", "is no address"),
        ("http://user:hush@host", "is no address"),
        ("https://host/bucket", "has a path: give https://host alone"),
        ("http://host:1/a/b/", "has a path: give http://host:1 alone"),
    ],
)
def test_an_endpoint_is_an_address(cloud: pytest.MonkeyPatch, endpoint: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"the option endpoint.*{why}") as caught:
        opened("s3://bucket/p", endpoint=endpoint)
    assert "hush" not in str(caught.value)
    cloud.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match=f"the variable AWS_ENDPOINT_URL.*{why}"):
        opened("s3://bucket/p")
    opened("s3://bucket/p", endpoint="http://127.0.0.1:1/")


def test_a_proxy_that_does_not_answer_is_named(cloud: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    cloud.setenv("http_proxy", f"http://me:hush@127.0.0.1:{port}")
    spec = TierSpec(
        name="cold", role="cold", url="s3://bucket/p", timeout_ms=300,
        options={"endpoint": "http://192.0.2.1:1"},
    )  # fmt: skip
    place = Place(spec, NodeTier(), "00" * 16)
    with open_tier(place) as store, pytest.raises(Unreachable) as caught:
        store.get("k")
    assert f"through the proxy http_proxy=http://…@127.0.0.1:{port}; check" in str(caught.value)
    assert "hush" not in str(caught.value)
    cloud.setenv("no_proxy", "192.0.2.1")
    assert config.proxy_of("http://192.0.2.1:1") is None
