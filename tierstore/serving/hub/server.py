"""Runs the gateway under uvicorn, in the foreground."""

from __future__ import annotations

import asyncio
import functools
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from tierstore.errors import UsageError
from tierstore.serving.hub.connections import (
    HEAD_S,
    MOST,
    PER_ADDRESS,
    BoundedProtocol,
    Connections,
    Listener,
)
from tierstore.serving.hub.memory import few_arenas, rest_collector

_BACKLOG = 2048
_HEAD_BYTES = 32 << 10
_UNSENT_BYTES = 256 << 10
"""Bytes that the kernel holds for a client beside those that are on their way to it."""

_KEEP_ALIVE_S = 30
_GRACE_S = 30
_OPEN_FILES = 16384
_OTHER_FILES = 512
"""Open files that are not connections: of the store, the spool and hot chunks."""


def listen(host: str, port: int, per_address: int = PER_ADDRESS) -> Listener:
    """Return a listening socket; port 0 takes a free one.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        per_address: The most connections from one address.

    Raises:
        UsageError: The address is taken, or is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = Listener(family, socket.SOCK_STREAM)
    found.connections = Connections(min(MOST, _most_files() - _OTHER_FILES), per_address)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # accepted ones inherit these; a small answer is two writes, and must not wait for an ACK
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        found.bind((host, port))
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise UsageError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; choose another "
            "address"
        ) from None
    return found


def _most_files() -> int:
    """Return how many files this process may have open, once it may have as many as it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(2 * _OTHER_FILES, _OPEN_FILES if soft == resource.RLIM_INFINITY else soft)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose servers bound the time of a TLS handshake (uvicorn has no option)."""

    def __init__(self, head_s: float) -> None:
        super().__init__()
        self._head_s = head_s

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        if kwargs.get("ssl") is not None:
            kwargs["ssl_handshake_timeout"] = self._head_s
        return await super().create_server(*args, **kwargs)


def _ended(number: int, frame: FrameType | None) -> None:
    """Do nothing: uvicorn has ended by the signal already."""


def run(
    app: ASGIApp,
    where: Listener,
    *,
    ready: Callable[[], None] = lambda: None,
    certificate: str | None = None,
    key: str | None = None,
    head_s: float = HEAD_S,
) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress then have 30 s to end.

    Args:
        app: Application to serve.
        where: Listening socket, made by ``listen``.
        ready: Called once the server answers.
        certificate: Path of a PEM file of the certificate, to serve https.
        key: Path of a PEM file of its key.
        head_s: Seconds in which a TLS handshake, and then the head of a request, must have arrived.
    """

    few_arenas()
    # uvicorn raises the signal that ended it once more, for those who count on its exit status
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ended)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            rest_collector()
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # as if the clients had gone away: uvicorn would cancel what runs, and log each
            late = asyncio.get_running_loop().call_later(_GRACE_S, self.cut)
            await super().shutdown(sockets)
            late.cancel()

        def cut(self) -> None:
            for connection in list(self.server_state.connections):
                connection.transport.abort()

    protocol = functools.partial(BoundedProtocol, connections=where.connections, head_s=head_s)
    settings = uvicorn.Config(
        app,
        # h11 bounds the size of headers; bodies of some MiB cost it nothing
        http=cast(Any, protocol),
        ws="none",
        lifespan="off",
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=2 * _GRACE_S,
        server_header=False,
        access_log=False,
        log_config=None,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    with asyncio.Runner(loop_factory=lambda: _Loop(head_s)) as runner:  # uvloop has no sendfile
        runner.run(Server(settings).serve([where]))
