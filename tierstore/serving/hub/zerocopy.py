"""uvicorn's HTTP/1.1 with files that the kernel sends itself.

It adds ASGI's extension ``http.response.zerocopysend`` to connections without TLS: a message names
an open file, an offset and a count, and sendfile(2) moves the bytes (asgi.readthedocs.io,
extensions). h11 only learns the count, as its documentation of sendfile describes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any, cast

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

EXTENSION = "http.response.zerocopysend"

_NO_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_OF_FILES = {errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE}
_COPY_BYTES = 1 << 20


class _Length:
    """Takes the place of bytes that do not pass through this process."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


class ZeroCopyProtocol(H11Protocol):
    """The protocol of uvicorn for applications that may send files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._application = self.app
        self.app = cast(Any, self._serve)
        self._own: socket.socket | None = None
        self._writable: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.scheme == "http":
            # writing is paused until the buffer is empty: then a file may follow
            transport.set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost.set()
        self._wake()
        if self._own is not None:
            self._own.close()
            self._own = None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        ``ConnectionAbortedError`` of the application, which has logged the reason, cuts the
        connection, drops what waits to be sent, and is no error of the server.
        """
        try:
            await self._answer(scope, receive, send)
        except ConnectionAbortedError:
            self.transport.abort()
            await self._lost.wait()  # else uvicorn complains of an answer that was not completed

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["scheme"] != "http":
            await self._application(cast(Any, scope), cast(Any, receive), cast(Any, send))
            return

        async def send_all(message: Message) -> None:
            if message["type"] == EXTENSION:
                await self._send_file(message["file"].fileno(), message["offset"], message["count"])
            else:
                await send(message)

        offered = {**scope, "extensions": {**scope.get("extensions", {}), EXTENSION: {}}}
        await self._application(cast(Any, offered), cast(Any, receive), cast(Any, send_all))

    async def _send_file(self, file: int, offset: int, count: int) -> None:
        """Send bytes of an open file; ``ConnectionError`` if the client went away."""
        self._still_open()
        self.conn.send_with_data_passthrough(h11.Data(data=cast(bytes, _Length(count))))
        await self.flow.drain()
        to = self.transport.get_extra_info("socket").fileno()
        while count:
            self._still_open()
            try:
                sent = os.sendfile(to, file, offset, count)
            except BlockingIOError:
                await self._room()
                continue
            except OSError as error:
                if error.errno in _OF_FILES:
                    raise
                if error.errno not in _NO_SENDFILE:
                    raise ConnectionAbortedError(error.errno, error.strerror) from None
                data = os.pread(file, min(count, _COPY_BYTES), offset)
                self.transport.write(data)
                await self.flow.drain()
                sent = len(data)
            if not sent:
                raise OSError(errno.EIO, f"a file ended {count} bytes too early")
            offset, count = offset + sent, count - sent

    def _still_open(self) -> None:
        if self.transport.is_closing():
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client went away")

    async def _room(self) -> None:
        """Wait until the socket takes more, or is closed."""
        loop = asyncio.get_running_loop()
        if self._own is None:  # the transport's own descriptor must not be watched by others
            self._own = self.transport.get_extra_info("socket").dup()
        number = self._own.fileno()
        self._writable = loop.create_future()
        loop.add_writer(number, self._wake)
        try:
            await self._writable
        finally:
            self._writable = None
            loop.remove_writer(number)

    def _wake(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
