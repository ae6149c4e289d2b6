"""Commands to several memcached servers, bounded in time and in connections.

pymemcache's client of one server gives the protocol. Its ``HashClient`` is not used: for a second
after a server failed it answers "missing" or "stored" in the server's name, and then gives the
server's keys to the others, so that what was deleted or replaced meanwhile comes back later. Here
a key has one server for good, and a server that fails is an error.
"""

from __future__ import annotations

import hashlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from pymemcache.client.base import Client
from pymemcache.exceptions import (
    MemcacheError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
)

from tierstore.errors import BackendError, OutOfSpace, TierstoreError, Unreachable
from tierstore.forks import begin

Address: TypeAlias = tuple[str, int]
T = TypeVar("T")

_RECV_BYTES = 256 << 10
# What pymemcache, which trusts the server, raises for a garbled answer.
_GARBLED = (KeyError, IndexError, ValueError, AssertionError)


_limit = threading.local()


class _Socket(socket.socket):
    """A socket that keeps to the time limit of the call that uses it.

    pymemcache's own limit is that of one ``recv``, and it asks for 4 KiB at a time.
    """

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        self._keep_limit()
        return super().recv(max(bufsize, _RECV_BYTES), flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self._keep_limit()
        super().sendall(data, flags)

    def _keep_limit(self) -> None:
        left: float = _limit.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("it took too long")
        self.settimeout(left)

    def is_stale(self) -> bool:
        """Return whether the server closed the connection, or sent something nobody asked for."""
        self.setblocking(False)
        try:
            super().recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


class _Sockets:
    """The names of the module ``socket`` that pymemcache uses, with our socket class."""

    AF_UNSPEC = socket.AF_UNSPEC
    SOCK_STREAM = socket.SOCK_STREAM
    IPPROTO_TCP = socket.IPPROTO_TCP
    TCP_NODELAY = socket.TCP_NODELAY
    getaddrinfo = staticmethod(socket.getaddrinfo)
    socket = _Socket


class KeepFlags:
    """A serialiser that leaves values as bytes and keeps their flags."""

    @staticmethod
    def serialize(_key: object, value: bytes) -> tuple[bytes, int]:
        return value, 0

    @staticmethod
    def deserialize(_key: object, value: bytes, flags: int) -> tuple[bytes, int]:
        return value, flags


class MemcachedClient:
    """Commands to each of several servers; it connects at the first command."""

    def __init__(
        self, addresses: Sequence[Address], url: str, timeout_s: float, connections: int
    ) -> None:
        self.addresses = addresses
        self._url = url
        self._timeout_s = timeout_s
        self._connections = connections
        self._names = [f"{host}:{port}".encode() for host, port in addresses]
        begin(self._begin)

    def _begin(self) -> None:
        self._pools: dict[Address, queue.LifoQueue[Client]] = {}

    def server_of(self, key: bytes) -> Address:
        """Return the server of a key: the highest hash of both wins (rendezvous hashing)."""
        hashes = [
            hashlib.blake2b(name + b" " + key, digest_size=8).digest() for name in self._names
        ]
        return self.addresses[hashes.index(max(hashes))]

    def call(self, address: Address, doing: str, command: Callable[[Client], T]) -> T:
        """Run a command on a connection to one server, within the time limit.

        Raises:
            Unreachable, OutOfSpace, BackendError: The server did not carry it out.
        """
        host, port = address
        with self._errors(f"{doing} in {self._url} (server {host}:{port})"):
            pool = self._pool(address)
            try:
                client = pool.get(timeout=self._timeout_s)
            except queue.Empty:
                raise TimeoutError("all connections are in use") from None
            try:
                _limit.until = time.monotonic() + self._timeout_s
                if client.sock is not None and client.sock.is_stale():
                    client.close()
                return command(client)
            except BaseException:
                client.close()  # an answer may still come: nobody else may read it
                raise
            finally:
                pool.put(client)

    def close(self) -> None:
        """Close the connections that are not in use; another call opens new ones."""
        for address in list(self._pools):
            _drain(self._pools.pop(address))

    def _pool(self, address: Address) -> queue.LifoQueue[Client]:
        return self._pools.get(address) or self._pools.setdefault(address, self._new_pool(address))

    def _new_pool(self, address: Address) -> queue.LifoQueue[Client]:
        pool: queue.LifoQueue[Client] = queue.LifoQueue()
        for _ in range(self._connections):
            pool.put(
                Client(
                    address,
                    serde=KeepFlags(),
                    connect_timeout=self._timeout_s,
                    timeout=self._timeout_s,
                    no_delay=True,
                    default_noreply=False,
                    ignore_exc=False,
                    socket_module=_Sockets,
                )
            )
        return pool

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except TierstoreError:
            raise
        except (MemcacheError, OSError, *_GARBLED) as error:
            raise _translated(error, doing) from None


def _drain(pool: queue.LifoQueue[Client]) -> None:
    while True:
        try:
            pool.get_nowait().close()
        except queue.Empty:
            return


def _translated(error: Exception, doing: str) -> TierstoreError:
    what = f"{doing} failed: {_text(error)}"
    if isinstance(error, OSError | MemcacheUnexpectedCloseError):
        return Unreachable(f"{what}; check that it runs and that the network reaches it")
    if isinstance(error, MemcacheServerError) and "memory" in _text(error):
        return OutOfSpace(f"{what}; give it more memory (-m)")
    if isinstance(error, MemcacheServerError) and "too large" in _text(error):
        return OutOfSpace(f"{what}; raise its item limit (-I)")
    return BackendError(what)


def _text(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    if isinstance(first, bytes):
        return first.decode(errors="replace")[:200]
    return str(error)[:200] or type(error).__name__
