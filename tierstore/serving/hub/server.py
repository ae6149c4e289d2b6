"""Runs the gateway under uvicorn, in the foreground."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from tierstore.errors import UsageError
from tierstore.serving.hub.zerocopy import ZeroCopyProtocol

_BACKLOG = 2048
_MOST_AT_ONCE = 1024
"""Most requests at a time; others are answered with 503, so that memory stays bounded."""

_HEADERS_BYTES = 64 << 10
_KEEP_ALIVE_S = 30
_GRACE_S = 30


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        UsageError: The address is taken, or is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise UsageError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; choose another "
            "address"
        ) from None
    return found


def _ended(number: int, frame: FrameType | None) -> None:
    """Do nothing: uvicorn has ended by the signal already."""


def run(
    app: ASGIApp,
    where: socket.socket,
    *,
    ready: Callable[[], None] = lambda: None,
    certificate: str | None = None,
    key: str | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress then have 30 s to end.

    Args:
        app: Application to serve.
        where: Listening socket.
        ready: Called once the server answers.
        certificate: Path of a PEM file of the certificate, to serve https.
        key: Path of a PEM file of its key.
    """

    # uvicorn raises the signal that ended it once more, for those who count on its exit status
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ended)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    settings = uvicorn.Config(
        app,
        # h11 bounds the size of headers; bodies of some MiB cost it nothing
        http=ZeroCopyProtocol,
        loop="asyncio",  # uvloop has no sendfile
        ws="none",
        lifespan="off",
        h11_max_incomplete_event_size=_HEADERS_BYTES,
        limit_concurrency=_MOST_AT_ONCE,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
        access_log=False,
        log_config=None,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    Server(settings).run([where])
