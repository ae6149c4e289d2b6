"""Real Redis servers on loopback: plain, Unix socket, TLS, ACL users, a cluster of three nodes.

Each has a random port and a directory of its own, keeps nothing on disk, and ends with the tests.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.servers.process import free_port, make_certificate, pause_process, program, running

PACKAGE = "redis-server"
USER, PASSWORD = "tier", "tier-Secret-7"
READER, READER_PASSWORD = "reader", "reader-Secret-8"
ADMIN_PASSWORD = "admin-Secret-9"
_ACL = f"""\
user default on >{ADMIN_PASSWORD} ~* &* +@all
user {USER} on >{PASSWORD} ~tier:* resetchannels &tier:* +@read +@write +@connection +@pubsub +time
user {READER} on >{READER_PASSWORD} ~tier:* resetchannels +@read +@connection
"""


@dataclass
class RedisServer:
    """One server process, which a test may stop, kill, pause and start again on its port.

    Attributes:
        folder: its working directory.
        options: of its command line, beside those that all have.
        port: 0 when it listens on a Unix socket alone.
        tls: whether the port takes TLS.
        password: of the default user, for ``admin``.
    """

    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    tls: bool = False
    password: str | None = None

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The path of its Unix socket."""
        return self.folder / "s.sock"

    @property
    def ca(self) -> Path:
        """The certificate to trust."""
        return self.folder / "ca.pem"

    @property
    def url(self) -> str:
        """As a store takes it."""
        if not self.port:
            return f"unix://{self.socket}"
        return f"{'rediss' if self.tls else 'redis'}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process, to send it signals."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, empty, on the port that it had before."""
        plain, tls = (0, self.port) if self.tls else (self.port, 0)
        command = [
            program("redis-server", PACKAGE), "--bind", "127.0.0.1", "--port", plain,
            "--unixsocket", self.socket, "--dir", self.folder, "--save", "", "--appendonly", "no",
            "--daemonize", "no", "--loglevel", "warning", *self.options,
        ]  # fmt: skip
        if tls:
            key, own = self.folder / "key.pem", self.folder / "cert.pem"
            command += ["--tls-port", tls, "--tls-cert-file", own, "--tls-key-file", key]
            command += ["--tls-ca-cert-file", self.ca, "--tls-auth-clients", "no"]
        log = self.folder / "log"
        self._process = self._stack.enter_context(
            running([str(part) for part in command], self._answers, log=log)
        )

    def stop(self) -> None:
        """End it; what it held is gone."""
        self._stack.close()

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.stop()

    def pause(self) -> None:
        """Let it hang: connections are taken, but never answered."""
        assert self._process is not None
        pause_process(self._process.pid)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def admin(self) -> Any:
        """A client of the default user that shares no code with the store under test."""
        return redis.Redis(unix_socket_path=str(self.socket), password=self.password)

    def _answers(self) -> bool:
        try:
            with self.admin() as admin:
                return bool(admin.ping())
        except redis.ConnectionError:
            return False


@contextmanager
def redis_running(folder: Path, *options: str, **settings: Any) -> Iterator[RedisServer]:
    """A server with more options of ``redis-server``; settings are fields of ``RedisServer``."""
    server = RedisServer(folder, options, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def tls_running(folder: Path) -> Iterator[RedisServer]:
    """A server that speaks TLS and wants a password; also at 127.0.0.2, unlike its certificate."""
    make_certificate(folder)
    options = ("--requirepass", PASSWORD, "--bind", "127.0.0.1", "127.0.0.2")
    with redis_running(folder, *options, tls=True, password=PASSWORD) as server:
        yield server


@contextmanager
def acl_running(folder: Path) -> Iterator[RedisServer]:
    """A server with the users ``USER`` and ``READER``, who may do what their names say."""
    (folder / "acl").write_text(_ACL)
    with redis_running(folder, "--aclfile", str(folder / "acl"), password=ADMIN_PASSWORD) as server:
        yield server


@dataclass(frozen=True)
class RedisCluster:
    """Three primaries that share all slots between them."""

    nodes: tuple[RedisServer, ...]

    @property
    def url(self) -> str:
        """As a store takes it: one node, which knows the others."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def admin(self) -> Any:
        """A client that shares no code with the store under test."""
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port)


@contextmanager
def cluster_running(folder: Path) -> Iterator[RedisCluster]:
    """A cluster of three nodes without replicas."""
    with ExitStack() as stack:
        nodes = []
        for n in range(3):
            (folder / f"n{n}").mkdir()
            options = (
                "--cluster-enabled", "yes", "--cluster-node-timeout", "5000",
                "--cluster-announce-ip", "127.0.0.1",
                "--cluster-require-full-coverage", "no",
            )  # fmt: skip
            nodes.append(stack.enter_context(redis_running(folder / f"n{n}", *options)))
        redis_cli("--cluster", "create", *(f"127.0.0.1:{node.port}" for node in nodes),
                  "--cluster-replicas", "0", "--cluster-yes")  # fmt: skip
        deadline = time.monotonic() + 60
        while not all(b"cluster_state:ok" in _cluster_info(node) for node in nodes):
            assert time.monotonic() < deadline, "the cluster does not agree on its slots"
            time.sleep(0.02)
        yield RedisCluster(tuple(nodes))


def redis_cli(*arguments: str) -> str:
    """Run ``redis-cli`` to its end; what it printed."""
    command = [program("redis-cli", "redis-tools"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _cluster_info(node: RedisServer) -> bytes:
    with node.admin() as admin:
        connection = admin.connection_pool.get_connection()
        connection.send_command("CLUSTER", "INFO")
        answer: bytes = connection.read_response()
        admin.connection_pool.release(connection)
        return answer
