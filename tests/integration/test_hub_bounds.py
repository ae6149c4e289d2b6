"""What a client of the gateway can cost, with a token or without one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import select
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message

import tierstore
from tests.integration.test_hub_hostile import ask
from tests.integration.test_hub_kept import Watched
from tests.servers.hub import gateway
from tests.servers.process import make_certificate
from tests.waiting import wait_until
from tierstore.modelstore.chunks.local import FilePart
from tierstore.serving.hub import app as hub_app
from tierstore.serving.hub import files as hub_files
from tierstore.serving.hub import reading as hub_reading
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.app import make_app
from tierstore.serving.hub.bodies import BodyRoom, check_depth, json_of, read_body
from tierstore.serving.hub.connections import Connections
from tierstore.serving.hub.files import FileBody, Sender, SentRange, without_holding
from tierstore.serving.hub.server import listen

pytestmark = pytest.mark.server

MIB = 1 << 20
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
GET = b"GET /m/resolve/main/model.safetensors HTTP/1.1\r\nHost: x\r\n\r\n"
SERVE = """
import ctypes, gc, json, sys
from pathlib import Path
import tierstore
from tierstore.serving.hub import connections
from tierstore.serving.hub.app import make_app
from tierstore.serving.hub.server import listen, run
given = json.loads(sys.argv[3])
connections._TAKEN_S = given.pop("taken_s", 60.0)
where = listen("127.0.0.1", 0, given.pop("per_address", 256))
if "sndbuf" in given:
    where.setsockopt(1, 7, given.pop("sndbuf"))
with tierstore.open(sys.argv[1]) as store:
    app = make_app(store, Path(sys.argv[2]), stall_s=given.pop("stall_s", 60.0))
    run(app, where, ready=lambda: print(where.getsockname()[1], flush=True), **given)
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    told = Path(sys.argv[2]) / "malloc.xml"
    libc.malloc_info(0, ctypes.c_void_p(libc.fopen(str(told).encode(), b"w")))
    libc.fflush(None)
    print(json.dumps([told.read_text().count("<heap nr="), gc.get_freeze_count()]))
"""


@dataclass
class Served:
    """A gateway in a process of its own, with bounds that a test can reach."""

    port: int
    process: subprocess.Popen[str]

    def connect(self, data: bytes = b"", rcvbuf: int = 0, source: str = "127.0.0.1") -> Any:
        client = socket.socket()
        if rcvbuf:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        client.settimeout(60)
        client.bind((source, 0))
        client.connect(("127.0.0.1", self.port))
        client.sendall(data)
        return client

    def peak_mib(self) -> float:
        """Peak of the process's resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [row for row in status.splitlines() if row.startswith("VmHWM")]
        return int(line.split()[1]) / 1024


@contextmanager
def served(store: tierstore.Store, spool: Path, **bounds: float | str) -> Iterator[Served]:
    command = [sys.executable, "-c", SERVE, store.url, str(spool), json.dumps(bounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Served(int(process.stdout.readline()), process)
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def open_sockets(process: subprocess.Popen[str]) -> int:
    """How many sockets a process has open."""
    found = 0
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(link.readlink()).startswith("socket:")
    return found


def closed(client: socket.socket) -> bool:
    """Whether the other side has closed a connection, without reading from it."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return any(event & (select.POLLRDHUP | select.POLLHUP) for _, event in poll.poll(0))


def one_answer(client: socket.socket) -> bytes:
    """A whole answer whose body is an object of JSON, on a connection that goes on."""
    said = b""
    while not said.endswith(b"}"):
        part = client.recv(1000)
        assert part, f"the connection ended behind {said!r}"
        said += part
    return said


def answer_of(client: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := client.recv(MIB):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tierstore.Store]:
    root = tmp_path_factory.mktemp("hub-bounds")
    with tierstore.init(root / "store") as one:
        one.save("m", {"w": np.random.default_rng(1).standard_normal(3 * MIB)})
        yield one


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


# Bodies


def test_no_body_is_read_before_the_right_is_known(store: tierstore.Store, tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text('[anonymous]\nread = ["open"]\n')
    with gateway(store.url, tmp_path / "spool", "--tokens", str(tmp_path / "tokens.toml")) as one:
        with urllib.request.urlopen(f"{one.url}/openapi.json", timeout=30) as answer:
            paths = json.load(answer)["paths"]
        tried = 0
        for path, item in paths.items():
            for method in item:
                if method == "get":
                    continue
                named = path.replace("{repo}", "m").replace("{rev}", "main")
                named = named.replace("{oid}", "ab" * 32)
                head = f"{method.upper()} {named} HTTP/1.1\r\nHost: x\r\nContent-Length: {64 * MIB}"
                with socket.create_connection(("127.0.0.1", one.port), timeout=60) as client:
                    client.sendall(head.encode() + b"\r\n\r\n")  # and nothing of the body
                    said = client.recv(100)
                assert said.split()[1] in {b"401", b"403"}, (method, path, said)
                tried += 1
        assert tried == 13


def test_a_body_that_was_refused_is_not_taken_for_long(
    store: tierstore.Store, tmp_path: Path
) -> None:
    with served(store, tmp_path / "spool") as one:
        head = b"POST /api/models/m/commit/main HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864"
        client = one.connect(head + b"\r\n\r\n")
        assert b" 403 " in client.recv(4096)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 * MIB:
                sent += client.send(bytes(MIB))
        assert sent < 32 * MIB, "all of it was taken"
        client.close()
        small = one.connect(head.replace(b"67108864", b"5") + b"\r\n\r\n12345" + GET)
        said = small.recv(1 << 16)
        while said.count(b"HTTP/1.1 ") < 2:  # the connection goes on behind a small one
            said += small.recv(1 << 16)
        assert b"HTTP/1.1 403" in said
        assert b"HTTP/1.1 200" in said
        small.close()


def test_bodies_wait_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def request(count: int, go: asyncio.Event) -> Request:
        async def receive() -> dict[str, object]:
            await go.wait()
            return {"type": "http.request", "body": bytes(count), "more_body": False}

        headers = [(b"content-length", b"%d" % count)]
        return Request({"type": "http", "method": "POST", "headers": headers}, receive)

    async def check() -> None:
        room, first, second = BodyRoom(30.0), asyncio.Event(), asyncio.Event()
        order: list[str] = []

        async def read(name: str, count: int, go: asyncio.Event) -> None:
            async with room.body(request(count, go), 100 * MIB) as body:
                order.append(name)
                assert len(body) == count

        tasks = [asyncio.create_task(read("first", 100 * MIB, first))]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(read("second", 60 * MIB, second)))
        await asyncio.sleep(0)
        second.set()  # it could go on, but there is no room
        small = asyncio.Event()
        small.set()
        await read("small", MIB, small)
        first.set()
        await asyncio.gather(*tasks)
        assert order == ["small", "first", "second"]
        hasty = BodyRoom(0.05)
        async with hasty.body(request(100 * MIB, small), 100 * MIB):
            with pytest.raises(HubError) as caught:
                async with hasty.body(request(60 * MIB, small), 100 * MIB):
                    pass
        assert caught.value.status == 503

    asyncio.run(check())


def test_a_body_that_trickles_is_refused() -> None:
    """A byte now and then is no stall, and would hold its connection for ever."""

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.01)
        parts.append(b"x")
        return {"type": "http.request", "body": b"x", "more_body": len(parts) < 300}

    parts: list[bytes] = []
    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(HubError) as caught:
        asyncio.run(read_body(request, MIB, stall_s=0.5))
    assert caught.value.status == 408


def test_a_length_beside_chunks_makes_no_room() -> None:
    """Where a body comes in chunks, what it may have counts, not what a second header says."""

    async def check() -> None:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": bytes(MIB), "more_body": False}

        headers = [(b"content-length", b"0"), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": "POST", "headers": headers}
        room = BodyRoom(0.05)
        async with room.body(Request(scope, receive), 100 * MIB) as body:
            assert len(body) == MIB
            with pytest.raises(HubError, match="too many large bodies at once"):
                async with room.body(Request(scope, receive), 100 * MIB):
                    pass

    asyncio.run(check())


def test_json_is_at_most_32_levels_deep() -> None:
    assert json_of(b"[" * 32 + b"]" * 32)
    assert json_of(b'{"a": ' * 32 + b"1" + b"}" * 32)
    for deep in (b"[" * 33 + b"]" * 33, b"[" * 10**6, b'{"a":' * 33 + b"1" + b"}" * 33):
        with pytest.raises(HubError, match="more than 32 levels deep"):
            json_of(deep)
    assert json_of(b'["' + b"[" * 99 + b'", "\\"' + b"{" * 99 + b'"]')[1] == '"' + "{" * 99


@given(
    st.recursive(
        st.none() | st.text() | st.floats(allow_nan=False) | st.booleans(),
        lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
        max_leaves=30,
    )
)
def test_json_that_is_not_deep_is_never_refused(value: object) -> None:
    check_depth(json.dumps([value]).encode())
    check_depth(json.dumps([value], ensure_ascii=False).encode())


# Connections


def test_half_open_connections_give_way(store: tierstore.Store, tmp_path: Path) -> None:
    with served(store, tmp_path / "spool", per_address=8, head_s=600) as one:
        half = [one.connect(GET[:20] if number % 2 else b"") for number in range(40)]
        assert b"HTTP/1.1 200" in answer_of(one.connect(HEALTH))
        wait_until(lambda: sum(map(closed, half)) >= 33, "all but the newest gave way")
        assert not closed(half[-1])
        for client in half:
            client.close()


def test_neighbours_share_the_connections_of_their_network() -> None:
    """Whoever has one address of IPv6 has 2^64 of them."""
    connections = Connections(most=100, per_address=2)
    ours, theirs = zip(*(socket.socketpair() for _ in range(6)), strict=True)
    with contextlib.ExitStack() as stack:
        for one in (*ours, *theirs):
            stack.enter_context(one)
        addresses = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "2001:db8::3"]
        addresses += ["192.0.2.1", "::ffff:192.0.2.2"]
        for number, address in enumerate(addresses):
            assert connections.admit(ours[number], address)
            gone = [closed(other) for other in theirs]
            assert gone == [number >= 3, *[False] * 5], address


def test_a_client_between_two_requests_stays(store: tierstore.Store, tmp_path: Path) -> None:
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with served(store, tmp_path / "spool", per_address=4, head_s=600) as one:
        kept = one.connect(asked)
        assert one_answer(kept).endswith(b"}")
        half = [one.connect(GET[:20] if number % 2 else b"") for number in range(20)]
        wait_until(lambda: sum(map(closed, half)) >= 16, "those that never asked gave way")
        kept.sendall(asked)
        assert one_answer(kept).startswith(b"HTTP/1.1 200 OK")
        for client in (kept, *half):
            client.close()


def test_connections_in_use_are_not_cut_for_new_ones(
    store: tierstore.Store, tmp_path: Path
) -> None:
    with served(store, tmp_path / "spool", per_address=4) as one:
        readers = [one.connect(GET, rcvbuf=4096) for _ in range(4)]
        for client in readers:
            assert client.recv(12) == b"HTTP/1.1 200"
        assert answer_of(one.connect(GET)) == b"", "a fifth connection of this address"
        other = one.connect(HEALTH, source="127.0.0.2")
        assert b"HTTP/1.1 200" in answer_of(other), "another address has its own"
        readers.pop().close()

        def let_in() -> bool:
            with one.connect() as client, contextlib.suppress(ConnectionError):
                client.sendall(HEALTH)
                return b"HTTP/1.1 200" in answer_of(client)
            return False

        wait_until(let_in, "a place that became free is given out again")
        assert not any(map(closed, readers))
        for client in readers:
            client.close()


def test_a_head_that_does_not_arrive_ends_the_connection(
    store: tierstore.Store, tmp_path: Path
) -> None:
    with served(store, tmp_path / "spool", head_s=0.5) as one:
        silent, slow = one.connect(), one.connect(GET[:10])

        def trickle() -> bool:
            with contextlib.suppress(ConnectionError):
                slow.send(b"x")
            return closed(slow)

        wait_until(lambda: closed(silent), "a silent connection is closed")
        wait_until(trickle, "one that sends a byte now and then, too")
        kept = one.connect(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in kept.recv(1000)
        kept.sendall(b"GET /")  # a second request, and its head does not arrive
        wait_until(lambda: closed(kept), "nor may a later request take its time")


def test_a_handshake_that_does_not_arrive_ends_the_connection(
    store: tierstore.Store, tmp_path: Path
) -> None:
    make_certificate(tmp_path)
    tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    with served(store, tmp_path / "spool", head_s=0.5, **tls) as one:
        silent = one.connect()
        wait_until(lambda: closed(silent), "a silent connection is closed")
        silent.close()
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        with trust.wrap_socket(one.connect(), server_hostname="localhost") as client:
            client.sendall(HEALTH)
            assert b"HTTP/1.1 200" in answer_of(client)


def test_heads_are_at_most_32_kib(store: tierstore.Store, tmp_path: Path) -> None:
    with served(store, tmp_path / "spool") as one:
        head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        assert b" 200 " in answer_of(one.connect(head + b"X: " + b"x" * 30_000 + b"\r\n\r\n"))
        assert b" 400 " in answer_of(one.connect(head + b"X: " + b"x" * 33_000))


def test_an_answer_that_nobody_takes_ends_the_connection(
    store: tierstore.Store, tmp_path: Path
) -> None:
    question = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with served(store, tmp_path / "spool", taken_s=0.2, stall_s=0.2, sndbuf=2048) as one:
        before = open_sockets(one.process)
        one_question = one.connect(question, rcvbuf=2048)
        second_waits = one.connect(2 * question, rcvbuf=2048)
        wait_until(lambda: open_sockets(one.process) == before + 2, "both are connected")
        wait_until(lambda: open_sockets(one.process) == before, "both are cut off")
        one_question.close()
        second_waits.close()


def test_a_small_answer_does_not_wait_for_the_client() -> None:
    where = listen("127.0.0.1", 0)
    with where, socket.create_connection(where.getsockname()):
        accepted, _ = where.accept()
        with accepted:  # else its body waits 40 ms for an acknowledgement of its head
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_refusal_needs_no_thread(store: tierstore.Store, tmp_path: Path) -> None:
    app = make_app(store, tmp_path / "spool")

    async def check() -> int:
        threads = anyio.to_thread.current_default_thread_limiter()
        for _ in range(int(threads.total_tokens)):  # others have all of them
            threads.acquire_on_behalf_of_nowait(object())
        async with asyncio.timeout(30):
            return (await call(app, "/api/models/m/commit/main", "POST"))[0]

    assert asyncio.run(check()) == 403


def test_requests_at_once_are_limited(
    store: tierstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(store, tmp_path / "spool")
    assert asyncio.run(call(app, "/healthz"))[0] == 200
    monkeypatch.setattr(hub_app, "MOST_AT_ONCE", 0)
    status, headers, _ = asyncio.run(call(app, "/healthz"))
    assert (status, headers["retry-after"]) == (503, "2")


# Answers


async def call(app: Any, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Ask an ASGI application, and take what it sends as it comes."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http",
        "server": ("x", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(bytes(one["body"]) for one in sent[1:])


def test_safetensors_metadata_reads_headers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    headers, weight_map = {}, {}
    for number in range(2):
        name = f"model-{number}.safetensors"
        values = np.random.default_rng(number).standard_normal((512, 1024), np.float32)
        save_file({f"w{number}": values}, source / name)
        raw = (source / name).read_bytes()
        headers[name] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        weight_map[f"w{number}"] = name
    index = {"metadata": {"total_size": 4 * MIB}, "weight_map": weight_map}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "big.index.json").write_bytes(b" " + np.random.default_rng(2).bytes(17 * MIB))
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", source)
        app = make_app(store, tmp_path / "spool")
        watched = Watched(store, monkeypatch)
        api = "/api/models/m/safetensors-metadata"
        status, _, body = asyncio.run(call(app, f"{api}/model.safetensors.index.json"))
        assert status == 200
        assert json.loads(body) == {
            "headers": headers,
            "index": {"metadata": {"total_size": 4 * MIB}},
        }
        assert watched.read < 100_000
        for path in ("model-0.safetensors", "big.index.json"):
            assert asyncio.run(call(app, f"{api}/{path}"))[0] == 400
        assert watched.read < 100_000, "a file that is no index was read"


def test_headers_of_shards_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "model"
    source.mkdir()
    weight_map = {f"w{number}": f"model-{number}.safetensors" for number in range(2)}
    for name, file in weight_map.items():
        save_file({name: np.zeros(3, np.float32)}, source / file, {"text": "x" * 1000})
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    asked = "/api/models/m/safetensors-metadata/model.safetensors.index.json"
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", source)
        app = make_app(store, tmp_path / "spool")
        for most, status in ((4000, 200), (2000, 413)):
            monkeypatch.setattr(hub_reading, "_HEADERS_BYTES", most)
            assert asyncio.run(call(app, asked))[0] == status


class Source:
    """A file of 16 MiB that notes how it is read."""

    path = "big"

    def __init__(self) -> None:
        self.data = np.random.default_rng(2).bytes(16 * MIB)
        self.reads: list[int] = []

    def spans(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
        yield from ((at, min(stop, at + most)) for at in range(start, stop, most))

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append(length)
        return self.data[offset : offset + length]

    def parts(self, start: int, stop: int) -> Sequence[bytes | FilePart]:
        raise AssertionError


async def sent_body(
    source: Source, sender: Sender, pause: Callable[[int], asyncio.Future[None] | None]
) -> bytes:
    taken: list[bytes] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        waiting = pause(sum(map(len, taken)))
        if waiting is not None:
            await waiting
        taken.append(bytes(message.get("body", b"")))

    body = FileBody(source, SentRange(0, len(source.data), False), {}, sender)
    await body({"type": "http"}, receive, send)
    return b"".join(taken)


def test_parts_grow_while_the_client_takes_them() -> None:
    source, sender = Source(), Sender(lambda count: None)
    assert asyncio.run(sent_body(source, sender, lambda at: None)) == source.data
    assert source.reads[:5] == [MIB // 4, MIB, MIB, 4 * MIB, 8 * MIB]
    assert len(source.reads) == 6
    assert sender.room._free == 64 * MIB


def test_nothing_is_kept_for_a_client_that_takes_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_files, "_PROMPT_S", 0.01)
    source, sender = Source(), Sender(lambda count: None)
    held = []

    async def check() -> None:
        loop = asyncio.get_running_loop()
        paused: list[int] = []

        def pause(at: int) -> asyncio.Future[None] | None:
            if at < 7 * MIB or len(paused) == 3:
                return None
            waiting: asyncio.Future[None] = loop.create_future()
            paused.append(at)

            def resume() -> None:
                held.append(64 * MIB - sender.room._free)
                waiting.set_result(None)

            loop.call_later(0.2, resume)
            return waiting

        assert await sent_body(source, sender, pause) == source.data
        assert len(paused) == 3

    asyncio.run(check())
    assert held == [0, 0, 0]
    assert source.reads.count(MIB // 4) >= 2, "it begins small again"


def test_what_is_read_ahead_of_all_clients_is_bounded() -> None:
    source, sender = Source(), Sender(lambda count: None)
    assert sender.room.take(64 * MIB)
    assert asyncio.run(sent_body(source, sender, lambda at: None)) == source.data
    assert source.reads == [MIB // 4] * 64
    assert not sender.room.take(1)


def test_what_is_still_being_read_counts_until_it_is_read() -> None:
    class Slow(Source):
        go_on = threading.Event()

        def read(self, offset: int, length: int) -> bytes:
            if offset >= 2 * MIB:
                assert self.go_on.wait(60)
            return super().read(offset, length)

    source, sender = Slow(), Sender(lambda count: None)

    async def check() -> None:
        taken, enough = 0, asyncio.Event()

        async def receive() -> Message:
            await enough.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal taken
            taken += len(message.get("body", b""))
            if taken >= 2 * MIB:  # the next part is being read
                enough.set()
                for _ in range(10):  # its sender gets to know that the client is gone
                    await asyncio.sleep(0)

        body = FileBody(source, SentRange(0, len(source.data), False), {}, sender)
        await body({"type": "http"}, receive, send)
        assert sender.room._free < 64 * MIB, "a thread reads for a client that is gone"
        source.go_on.set()
        while sender.room._free < 64 * MIB:
            await asyncio.sleep(0.01)

    asyncio.run(check())


def test_slow_readers_cost_little_memory(store: tierstore.Store, tmp_path: Path) -> None:
    with served(store, tmp_path / "spool") as one, ExitStack() as stack:
        first = one.connect(GET.replace(b"Host", b"Connection: close\r\nHost"))
        assert len(answer_of(first)) > 24 * MIB
        before = one.peak_mib()
        for _ in range(60):
            client = stack.enter_context(one.connect(GET, rcvbuf=4096))
            assert client.recv(12) == b"HTTP/1.1 200"
        # 64 MiB are read ahead of all of them; the rest is what threads need to decode
        assert one.peak_mib() - before < 60 + 64 + 64


def test_many_threads_share_two_arenas(store: tierstore.Store, tmp_path: Path) -> None:
    with served(store, tmp_path / "spool") as one:
        clients = [one.connect(GET, rcvbuf=4096) for _ in range(60)]
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
            client.close()
        one.process.terminate()
        assert one.process.stdout is not None
        arenas, frozen = json.loads(one.process.stdout.read())
    assert arenas == 2
    assert frozen > 10_000, "the collector looks at all modules, again and again"


def test_a_large_answer_waits_in_a_file(tmp_path: Path) -> None:
    small, rows = JSONResponse("x"), [str(number) for number in range(300_000)]
    sender = Sender(lambda count: None)
    assert without_holding(small, tmp_path, sender) is small
    answer = without_holding(JSONResponse(rows, 201, {"Link": "<next>"}), tmp_path, sender)
    assert isinstance(answer, FileBody)
    status, headers, body = asyncio.run(call(answer, "/"))
    assert (status, headers["link"], headers["content-length"]) == (201, "<next>", str(len(body)))
    assert json.loads(body) == rows
    assert list(tmp_path.iterdir()) == []
