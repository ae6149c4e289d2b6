"""Connections of clients: how many there may be, how long they may be idle, and who gives way.

They are counted where they are accepted, those in a TLS handshake among them. Where there is no
room, the new one takes the place of one without a request: of the oldest that never had one, or
else of the one that has had none for longest. So half-open ones keep nobody out, and cut off no
client that waits between two requests. Only where every connection has a request in progress, a new
one is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import socket
import weakref
from collections import Counter, defaultdict
from typing import Any

import h11

from tierstore.serving.hub.zerocopy import ZeroCopyProtocol

MOST = 2048
PER_ADDRESS = 256
HEAD_S = 10.0
"""Seconds in which a TLS handshake, and then the head of a request, must have arrived."""

_TAKEN_S = 60.0
"""Seconds in which a client must take the end of an answer."""

_DROPPED_BYTES = 1 << 20
"""Bytes of a body that are read and dropped once its request was refused."""


class _Open:
    """An open connection; it has a transport once its handshake is over."""

    def __init__(self, conn: socket.socket, who: str) -> None:
        self.who = who
        self.counted = True
        self.had_request = False
        self.conn = weakref.ref(conn)
        self.transport: asyncio.Transport | None = None

    def cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif (conn := self.conn()) is not None:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)  # whoever is about to read it then closes it


class _Idle:
    """Connections without a request, in the order in which they are to give way."""

    def __init__(self) -> None:
        self._new: dict[_Open, None] = {}
        self._known: dict[_Open, None] = {}

    def add(self, one: _Open) -> None:
        (self._known if one.had_request else self._new)[one] = None

    def remove(self, one: _Open) -> None:
        self._new.pop(one, None)
        self._known.pop(one, None)

    def first(self) -> _Open | None:
        return next(iter(self._new or self._known), None)


class Connections:
    """The open connections of a gateway; used from its event loop alone.

    Args:
        most: The most connections.
        per_address: The most connections from one address, or one /64 network of IPv6.
    """

    def __init__(self, most: int = MOST, per_address: int = PER_ADDRESS) -> None:
        self._most, self._per_address = most, per_address
        self._counts: Counter[str] = Counter()
        self._by_number: dict[int, _Open] = {}
        self._idle = _Idle()
        self._idle_of: defaultdict[str, _Idle] = defaultdict(_Idle)

    def admit(self, conn: socket.socket, address: str) -> bool:
        """Count a connection that was accepted; ``False`` if there is no room for it."""
        who = _network_of(address)
        if self._counts[who] >= self._per_address:
            idle = self._idle_of[who]
        elif self._counts.total() >= self._most:
            idle = self._idle
        else:
            return self._count(conn, who)
        first = idle.first()
        if first is None:
            return False
        self.gone(first)
        first.cut()
        return self._count(conn, who)

    def _count(self, conn: socket.socket, who: str) -> bool:
        one = self._by_number[conn.fileno()] = _Open(conn, who)
        self._counts[who] += 1
        self.idle(one)
        weakref.finalize(conn, self.gone, one).atexit = False
        return True

    def gone(self, one: _Open) -> None:
        """Count a connection no more: it is closed, or about to be."""
        if not one.counted:
            return
        one.counted = False
        self._counts[one.who] -= 1
        if not self._counts[one.who]:
            del self._counts[one.who]
        self.busy(one)

    def opened(self, transport: asyncio.Transport) -> _Open:
        """Return the connection of a transport, whose handshake is over."""
        one = self._by_number.pop(transport.get_extra_info("socket").fileno())
        one.transport = transport
        return one

    def idle(self, one: _Open) -> None:
        """Note that a connection has no request from now on."""
        if one.counted:
            self._idle.add(one)
            self._idle_of[one.who].add(one)

    def busy(self, one: _Open) -> None:
        """Note that a connection has a request in progress, or is closed."""
        self._idle.remove(one)
        own = self._idle_of[one.who]
        own.remove(one)
        if own.first() is None:
            del self._idle_of[one.who]


@functools.lru_cache(4096)
def _network_of(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


class Listener(socket.socket):
    """A listening socket that accepts what ``connections`` admits, and closes the rest."""

    connections: Connections

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept one connection; ``ConnectionAbortedError`` where there is no room for it."""
        conn, address = super().accept()
        if not self.connections.admit(conn, address[0]):
            conn.close()
            raise ConnectionAbortedError("no room for another connection")
        return conn, address


class BoundedProtocol(ZeroCopyProtocol):
    """The gateway's HTTP/1.1, with bounds on what a client may leave undone.

    Args:
        connections: The gateway's connections.
        head_s: Seconds in which the head of a request must have arrived once it began.
    """

    def __init__(self, *args: Any, connections: Connections, head_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections, self._head_s = connections, head_s
        self._late: asyncio.TimerHandle | None = None
        self._idle_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._open = self._connections.opened(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        self._connections.gone(self._open)
        super().connection_lost(exc)

    def _expect(self) -> None:
        """Close the connection unless a whole head arrives in time."""
        if self._late is None:
            self._late = self.loop.call_later(self._head_s, self.transport.close)

    def _relax(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._idle_bytes += len(data)
            if self._idle_bytes > _DROPPED_BYTES:
                self.transport.close()
            else:
                self._expect()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._relax()
            self._idle_bytes = 0
            self._open.had_request = True
            self._connections.busy(self._open)

    def on_response_complete(self) -> None:
        self._connections.idle(self._open)
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # nobody asks for the rest of its body
            self._expect()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(_TAKEN_S, self._cut_unless_taken, self.cycle)

    def _cut_unless_taken(self, cycle: object) -> None:
        # closing would wait for the client until it goes away
        if self.cycle is cycle and self.transport.get_write_buffer_size():
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; within a request or an answer the connection is cut."""
        if self.conn.our_state is h11.IDLE:
            super().send_400_response(msg)
        else:
            self.transport.abort()
