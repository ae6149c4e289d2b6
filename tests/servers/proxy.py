"""A proxy between a client and a real server that breaks what passes through, as told.

It knows as much of HTTP as it needs to tell requests apart, to answer one itself and to leave the
head of an answer whole; a server that speaks something else passes through just as well.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_CHUNK = 64 << 10
_TICK_S = 0.02
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>"


@dataclass
class Faults:
    """What is wrong now; probabilities are for each request whose first line has all of ``only``.

    Attributes:
        only: parts of a request's first line; none for every request.
        most: so many faults are made at most.
        latency_s: before a request is passed on.
        bytes_per_s: of answers, all connections together; 0 for no limit.
        hang: nothing is passed on, either way, until it is over.
        reset: a request's connection is reset before the server sees it.
        lose: the server has done what it was asked to, and its answer is lost.
        half: the connection ends in the middle of an answer.
        stall: an answer stops in its middle, and the connection stays.
        unavailable: 503 SlowDown is answered instead.
        flip: one bit of an answer's body is changed.
    """

    only: tuple[bytes, ...] = ()
    most: int = 1 << 30
    latency_s: float = 0.0
    bytes_per_s: int = 0
    hang: bool = False
    reset: float = 0.0
    lose: float = 0.0
    half: float = 0.0
    stall: float = 0.0
    unavailable: float = 0.0
    flip: float = 0.0


@dataclass
class Proxy:
    """Where it listens, what it does wrong, what it saw.

    Attributes:
        target: the server's address.
        faults: to be replaced or changed at any time.
        requests: the first line of each request.
        done: how often each fault was made, by its name.
    """

    target: tuple[str, int]
    faults: Faults = field(default_factory=Faults)
    requests: list[bytes] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    port: int = 0

    def __post_init__(self) -> None:
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.rng = random.Random(11)
        self.clear_at = 0.0  # when the bytes so far have passed

    def roll(self, name: str, line: bytes) -> bool:
        """Whether this request gets that fault."""
        chance: float = getattr(self.faults, name)
        with self.lock:
            faults = self.faults
            hit = all(part in line for part in faults.only) and self.rng.random() < chance
            hit = hit and faults.most > 0
            if hit:
                faults.most -= 1
                self.done[name] = self.done.get(name, 0) + 1
        return hit

    def wait_for_room(self, nbytes: int) -> None:
        """Keep to ``bytes_per_s``."""
        if rate := self.faults.bytes_per_s:
            with self.lock:
                self.clear_at = max(self.clear_at, time.monotonic()) + nbytes / rate
                until = self.clear_at
            while (left := until - time.monotonic()) > 0 and not self.ended.is_set():
                time.sleep(min(left, _TICK_S))

    def wait_while_hanging(self) -> None:
        while self.faults.hang and not self.ended.wait(_TICK_S):
            pass


class _Connection:
    """One client's connection and ours to the server; a thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy, self._client = proxy, client
        self._server = socket.create_connection(proxy.target)
        self._line = b""
        self._answered = True
        self._fate = ""
        self._is_reset = False
        self._threads = [threading.Thread(target=self._up), threading.Thread(target=self._down)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for one in (self._client, self._server):
            with contextlib.suppress(OSError):
                if one is self._server or not self._is_reset:
                    one.shutdown(socket.SHUT_RDWR)
            one.close()

    def join(self) -> None:
        self.close()
        for thread in self._threads:
            thread.join()

    def _up(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(_CHUNK):
                self._proxy.wait_while_hanging()
                if self._answered and not self._begin(data):
                    return
                self._server.sendall(data)
        self.close()

    def _begin(self, data: bytes) -> bool:
        """A new request: what becomes of it is decided here; whether it is passed on."""
        proxy, self._line = self._proxy, data.partition(b"\r\n")[0]
        proxy.requests.append(self._line)
        time.sleep(proxy.faults.latency_s)
        if proxy.roll("reset", self._line):
            self._reset()
            return False
        if proxy.roll("unavailable", self._line):
            self._refuse()
            return False
        self._fate = next(
            (name for name in ("lose", "half", "stall", "flip") if proxy.roll(name, self._line)), ""
        )
        self._answered = False
        return True

    def _down(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(_CHUNK):
                self._proxy.wait_while_hanging()
                first, self._answered = not self._answered, True
                self._proxy.wait_for_room(len(data))
                if not self._pass(data, first):
                    return
        self.close()

    def _pass(self, data: bytes, first: bool) -> bool:
        """Send part of an answer on, as its fate has it; whether more may come."""
        head = data.find(b"\r\n\r\n") + 4 if first and data.startswith(b"HTTP/") else 0
        if self._fate == "lose":
            self._reset()
            return False
        if self._fate in {"half", "stall"} and (not first or len(data) > head + 1):
            with contextlib.suppress(OSError):
                self._client.sendall(data[: head + (len(data) - head) // 2])
            if self._fate == "half":
                self.close()
            else:
                self._proxy.ended.wait(120)
            return False
        if self._fate == "flip" and len(data) > head:
            at = head + self._proxy.rng.randrange(len(data) - head)
            data = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
            self._fate = ""
        self._client.sendall(data)
        return True

    def _reset(self) -> None:
        self._is_reset = True  # shutting down what is sent would end it politely
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._client.shutdown(socket.SHUT_RD)  # lets go of it whoever is reading
        self.close()

    def _refuse(self) -> None:
        head = (
            "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            f"Content-Length: {len(_SLOW_DOWN)}\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            self._client.sendall(head.encode() + _SLOW_DOWN)
            self._client.shutdown(socket.SHUT_WR)
            self._client.settimeout(2.0)
            while self._client.recv(_CHUNK):  # the rest of the request
                pass
        self.close()


@contextmanager
def proxying(port: int, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A proxy to a server on this machine; without faults until it gets some."""
    proxy = Proxy((host, port))
    connections: list[_Connection] = []

    def accept() -> None:
        while not proxy.ended.is_set():
            with contextlib.suppress(TimeoutError):
                client = listener.accept()[0]
                client.settimeout(None)
                try:
                    connections.append(_Connection(proxy, client))
                except OSError:  # the server is down
                    client.close()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.settimeout(0.1)
        proxy.port = listener.getsockname()[1]
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            accepting.join()
            for connection in connections:
                connection.join()
