"""Real memcached servers on loopback, on random ports."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymemcache.client.base import Client

from tests.servers.process import free_port, listening, pause_process, program, running

PACKAGE = "memcached"


@dataclass
class MemcachedServer:
    """One server process, which a test may stop, kill, pause and start again on its port.

    Attributes:
        folder: where its log goes.
        options: of its command line, beside those that all have.
        port: where it listens.
    """

    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """As a store takes it."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, empty, on the port that it had before."""
        command = [
            program("memcached", PACKAGE), "-u", "nobody", "-l", "127.0.0.1", "-U", "0",
            "-p", str(self.port), *self.options,
        ]  # fmt: skip
        self._process = self._stack.enter_context(
            running(command, lambda: listening(self.port), log=self.folder / f"{self.port}.log")
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
        """A client that shares no code with the store under test."""
        return Client(("127.0.0.1", self.port), default_noreply=False)


@contextmanager
def memcached_running(folder: Path, *options: str) -> Iterator[MemcachedServer]:
    """A server with more options of ``memcached``."""
    server = MemcachedServer(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
