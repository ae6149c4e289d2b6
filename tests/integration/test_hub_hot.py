"""Files whose chunks are hot on the gateway's node: sent by the kernel, byte for byte the same."""

from __future__ import annotations

import contextlib
import errno
import http.client
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tierstore
from tests.integration.test_hub_hostile import QUICK
from tests.servers.hub import Gateway, gateway
from tests.waiting import wait_until
from tierstore.modelstore.chunks.local import FilePart
from tierstore.modelstore.loading.fileview import FileView

PATH = "/m/resolve/main/model.safetensors"
CHUNK = re.compile(r"/[0-9a-f]{64}( \(deleted\))?$")


@dataclass
class Hot:
    store: tierstore.Store
    folder: Path
    data: bytes

    def view(self) -> FileView:
        return self.store.load("m").open_file("model.safetensors")


def fill(root: Path, **options: str) -> tierstore.Store:
    rng = np.random.default_rng(3)
    tensors = {
        "big": rng.integers(0, 255, 9 << 20, dtype="u1"),  # three chunks
        "empty": np.zeros(0, "f4"),
        "mid": rng.integers(0, 255, 300_001, dtype="u1"),
    } | {f"small{number}": rng.standard_normal(number + 1) for number in range(5)}
    save_file(tensors, root / "model.safetensors")
    tier = tierstore.TierSpec(
        name="hot", role="hot", url=str(root / "tier"), size=1 << 30, options=options
    )
    store = tierstore.init(root / "store", tiers=[tier])
    store.save("m", root / "model.safetensors")
    store.warmup("m")
    return store


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hot]:
    root = tmp_path_factory.mktemp("hub-hot")
    with fill(root) as store:
        yield Hot(store, root, (root / "model.safetensors").read_bytes())


@pytest.fixture(scope="module")
def running(hot: Hot) -> Iterator[Gateway]:
    with gateway(hot.store.url, hot.folder / "spool") as one:
        yield one


def joined(parts: list[bytes | FilePart]) -> tuple[bytes, int]:
    """The bytes, and how many of them lie in files; closes these."""
    data, in_files = b"", 0
    for part in parts:
        if isinstance(part, bytes):
            data += part
            continue
        with part.file as file:
            file.seek(part.offset)
            data += file.read(part.plain_bytes)
            in_files += part.plain_bytes
    return data, in_files


SPANS = [
    (0, None), (0, 1), (5, 6), (0, 70_000), (100, 5 << 20), ((4 << 20) - 3, (4 << 20) + 3_000_000),
    ((8 << 20) + 17, None), ((9 << 20) - 5, (9 << 20) + 200_000), (-300_000, None), (-1, None),
]  # fmt: skip


@pytest.mark.server
@pytest.mark.parametrize("span", SPANS)
def test_any_part_is_the_files_own(
    hot: Hot, running: Gateway, span: tuple[int, int | None]
) -> None:
    start, stop, _ = slice(*span).indices(len(hot.data))
    wanted = hot.data[start:stop]
    found, in_files = joined(hot.view().parts(start, stop))
    assert found == wanted
    assert in_files >= len(wanted) - 200_000  # but for its header and what is small
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    for _ in range(2):  # the second on the same connection
        connection.request("GET", PATH, headers={"Range": f"bytes={start}-{stop - 1}"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (206, wanted)
    connection.close()


@pytest.mark.server
def test_two_requests_at_once_on_one_connection(hot: Hot, running: Gateway) -> None:
    request = f"GET {PATH} HTTP/1.1\r\nHost: x\r\n".encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as client:
        client.sendall(request + b"\r\n" + request + b"Connection: close\r\n\r\n")
        got = b""
        while data := client.recv(1 << 20):
            got += data
    assert got.count(hot.data) == 2


def test_what_is_evicted_while_it_is_sent_stays_whole(tmp_path: Path) -> None:
    with fill(tmp_path) as store:
        view = store.load("m").open_file("model.safetensors")
        parts = view.parts(0, view.size)
        store.evict("m")
        whole = (tmp_path / "model.safetensors").read_bytes()
        assert joined(parts)[0] == whole
        again, in_files = joined(view.parts(0, view.size))
        assert (again, in_files) == (whole, 0)


def test_a_file_that_fails_is_read_from_elsewhere_from_then_on(tmp_path: Path) -> None:
    with fill(tmp_path) as store:
        view = store.load("m").open_file("model.safetensors")
        parts = [part for part in view.parts(0, view.size) if isinstance(part, FilePart)]
        parts[0].failed(OSError(errno.EIO, "I/O error"))
        for part in parts:
            part.file.close()
        whole = (tmp_path / "model.safetensors").read_bytes()
        again, in_files = joined(view.parts(0, view.size))
        assert again == whole
        assert in_files == sum(part.plain_bytes for part in parts[1:])


def test_a_tier_that_verifies_every_use_gives_no_files(tmp_path: Path) -> None:
    with fill(tmp_path, verify="always") as store:
        view = store.load("m").open_file("model.safetensors")
        found, in_files = joined(view.parts(0, view.size))
        assert (found, in_files) == ((tmp_path / "model.safetensors").read_bytes(), 0)


def test_patches_are_never_sent_from_the_file_below(tmp_path: Path) -> None:
    with fill(tmp_path) as store:
        store.patch("m", {"mid": tierstore.Dense(np.zeros(300_001, "u1"))})
        model = store.load("m")
        view = model.open_file("model.safetensors")
        (data,) = view.parts(0, view.size)
        assert data == view.read()
        assert data != (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.server
def test_nothing_stays_open_when_clients_go_away(hot: Hot, running: Gateway) -> None:
    def tier_files() -> list[str]:
        """Chunk files that the server has open; the tier's own index and claims may stay open."""
        links = []
        for one in Path(f"/proc/{running.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                links.append(str(one.readlink()))
        tier = str(hot.folder / "tier")
        return [link for link in links if link.startswith(tier) and CHUNK.search(link)]

    request = f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    clients = []
    for _ in range(8):
        client = socket.create_connection(("127.0.0.1", running.port), timeout=30)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request)
        assert client.recv(12) == b"HTTP/1.1 200"
        clients.append(client)
    for client in clients:
        client.close()
    wait_until(lambda: tier_files() == [], "no file of the tier is open any more")


@pytest.mark.server
def test_https_reads_what_it_encrypts(hot: Hot, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    options = ["--certificate", str(certificate), "--key", str(key)]
    with gateway(hot.store.url, tmp_path / "spool", *options) as one:
        trust = ssl.create_default_context(cafile=str(certificate))
        trust.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", one.port, timeout=60, context=trust)
        connection.request("GET", PATH)
        assert connection.getresponse().read() == hot.data
        connection.close()


NO_SENDFILE = """
import errno, os
def refused(*_):
    raise OSError(errno.EINVAL, "this file system has no sendfile")
os.sendfile = refused
"""


@pytest.mark.parametrize("before", ["", NO_SENDFILE], ids=["sendfile", "no sendfile"])
def test_a_client_that_takes_nothing_is_cut_off(hot: Hot, tmp_path: Path, before: str) -> None:
    command = [sys.executable, "-c", before + QUICK, hot.store.url, str(tmp_path / "spool")]
    errors = (tmp_path / "errors").open("w")
    with (
        errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", PATH)
            assert connection.getresponse().read() == hot.data
            connection.close()
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.settimeout(60)
                client.connect(("127.0.0.1", port))
                client.sendall(f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert client.recv(12) == b"HTTP/1.1 200"
                wait_until(lambda: "cut off" in (tmp_path / "errors").read_text(), "it is cut off")
                received = 12
                while data := client.recv(1 << 20):  # what had been sent before it was cut off
                    received += len(data)
                assert received < len(hot.data)
        finally:
            server.terminate()
        assert server.wait(60) == 0
