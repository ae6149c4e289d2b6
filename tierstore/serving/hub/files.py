"""Sending files: ranges, conditions, and bodies read from the tiers while they are sent.

A body is never assembled as a whole: two parts of some MiB are in memory at a time, the one that is
being sent and the one that is being read. A client that does not take what it is sent within a
second has them dropped, and read again in small pieces; one that takes nothing for a while is cut
off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tierstore.errors import TierstoreError
from tierstore.modelstore.chunks.local import FilePart
from tierstore.serving.hub.answers import HubError, Stalled
from tierstore.serving.hub.tree import Blob
from tierstore.serving.hub.zerocopy import EXTENSION

_log = logging.getLogger("tierstore.hub")
_PART_BYTES = 8 << 20
_PIECE_BYTES = 256 << 10
_FILE_BYTES = 1 << 20
_AHEAD_BYTES = 64 << 20
_READ_THREADS = 16
_PROMPT_S = 1.0
_NOTICED_S = 5.0
_NOTHING = {"type": "http.response.body", "body": b"", "more_body": True}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")
_JSON = ".json"
_TEXT = (".txt", ".md", ".py", ".yaml", ".yml", ".gitattributes", ".gitignore")


@dataclass(frozen=True, slots=True)
class SentRange:
    """The bytes [start, stop) of a file that are sent; ``partial`` if a range was asked for."""

    start: int
    stop: int
    partial: bool


def range_of(request: Request, blob: Blob) -> SentRange:
    """Return the part of a file that a request asks for.

    A request for several ranges gets the whole file, as RFC 9110 allows; clients of the Hub never
    send one.

    Raises:
        HubError: 416, the range begins behind the end of the file.
    """
    whole = SentRange(0, blob.size, False)
    match = _RANGE.match(request.headers.get("range", "").replace(" ", ""))
    if_range = request.headers.get("if-range")
    if match is None or (if_range is not None and not _same(if_range, blob.etag)):
        return whole
    first, last = match.groups()
    if not first and not last:
        return whole
    if not first:
        start, stop = max(0, blob.size - int(last)), blob.size
    else:
        start, stop = int(first), min(blob.size, int(last) + 1) if last else blob.size
        if last and int(last) < start:
            return whole  # not a range at all
    if start >= stop:
        raise HubError(
            416,
            f"{blob.path} has {blob.size} bytes",
            headers={"Content-Range": f"bytes */{blob.size}"},
        )
    return SentRange(start, stop, True)


def is_fresh(request: Request, blob: Blob) -> bool:
    """Return whether the caller has this very file already (``If-None-Match``)."""
    named = request.headers.get("if-none-match")
    return named is not None and any(
        tag.strip() == "*" or _same(tag, blob.etag) for tag in named.split(",")
    )


def _same(tag: str, etag: str) -> bool:
    return tag.strip().removeprefix("W/").strip('"') == etag


def headers_of(blob: Blob, commit: str, span: SentRange) -> dict[str, str]:
    """Return the headers of an answer with a file, whether its body follows or not."""
    name = blob.path.rpartition("/")[2]
    found = {
        "ETag": f'"{blob.etag}"',
        "X-Linked-ETag": f'"{blob.etag}"',
        "X-Linked-Size": str(blob.size),
        "X-Repo-Commit": commit,
        "Accept-Ranges": "bytes",
        "Content-Type": _type_of(name),
        "Content-Length": str(span.stop - span.start),
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}",
        # nothing that a model holds runs in a browser
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if span.partial:
        found["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{blob.size}"
    return found


def _type_of(name: str) -> str:
    if name.endswith(_JSON):
        return "application/json"
    return "text/plain; charset=utf-8" if name.endswith(_TEXT) else "application/octet-stream"


@dataclass(frozen=True, slots=True)
class _Reading:
    """A part that is being read, and the bytes of ``SendRoom`` that it took."""

    taken: int
    task: asyncio.Task[Sequence[bytes | FilePart]]


class SendRoom:
    """Memory and threads for what is read for clients, so that other requests have their own.

    The memory is 64 MiB for all clients together; each has 256 KiB of its own beside it. Used from
    the gateway's event loop alone.
    """

    def __init__(self) -> None:
        self._free = _AHEAD_BYTES
        self._threads = anyio.CapacityLimiter(_READ_THREADS)

    async def read(
        self, take: Callable[[int, int], Sequence[bytes | FilePart]], start: int, stop: int
    ) -> Sequence[bytes | FilePart]:
        """Read a part in one of the threads."""
        return await anyio.to_thread.run_sync(take, start, stop, limiter=self._threads)

    def take(self, count: int) -> bool:
        """Take ``count`` bytes, or return ``False`` if there are not as many."""
        if count > self._free:
            return False
        self._free -= count
        return True

    def give(self, count: int) -> None:
        """Give back what was taken."""
        self._free += count

    def give_after(self, reading: _Reading) -> None:
        """Give back what a part takes that nobody waits for, once it is read and can be dropped."""

        def ended(task: asyncio.Task[Sequence[bytes | FilePart]]) -> None:
            if not task.cancelled() and task.exception() is None:
                _close(task.result())
            self.give(reading.taken)

        reading.task.add_done_callback(ended)


class Source(Protocol):
    """What a body is read from."""

    @property
    def path(self) -> str:
        """Its name in messages."""

    def spans(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
        """Cut a range into parts that are best read one by one."""

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes."""

    def parts(self, start: int, stop: int) -> Sequence[bytes | FilePart]:
        """Return bytes, as open files where they lie in some."""


class _Ahead:
    """What was read for one client and is not sent yet.

    It begins with 256 KiB; while the client takes what it gets, parts grow to 8 MiB and the next
    one is read while one is sent. ``drop`` forgets all of it, to be read again.
    """

    def __init__(
        self,
        source: Source,
        span: SentRange,
        take: Callable[[int, int], Sequence[bytes | FilePart]],
        room: SendRoom,
    ) -> None:
        self._source, self._take, self._room = source, take, room
        self._at = self._read_to = span.start
        self._stop = span.stop
        self._most, self._taken = _PIECE_BYTES, 0
        self._parts: deque[memoryview | FilePart] = deque()
        self._next: _Reading | None = None

    async def fill(self) -> None:
        """Have something to send, unless all of it was sent."""
        if self._parts:
            return
        self._room.give(self._taken)
        self._taken = 0
        self._next = self._next or self._begin()
        if self._next is None:
            return
        parts = await asyncio.shield(self._next.task)
        self._taken, self._next = self._next.taken, None
        self._parts.extend(memoryview(one) if isinstance(one, bytes) else one for one in parts)
        if self._most > _PIECE_BYTES:
            self._next = self._begin()
        self._most = min(4 * self._most, _PART_BYTES)

    def _begin(self) -> _Reading | None:
        start, taken = self._read_to, 0
        if start >= self._stop:
            return None
        stop = min(self._stop, start + _PIECE_BYTES)
        if self._most > _PIECE_BYTES:
            _, end = next(self._source.spans(start, self._stop, self._most))
            if self._room.take(end - start):
                stop, taken = end, end - start
        self._read_to = stop
        return _Reading(taken, asyncio.create_task(self._room.read(self._take, start, stop)))

    def piece(self) -> memoryview | FilePart | None:
        """Return what is to be sent next: at most 256 KiB, or a file, which the caller closes."""
        if not self._parts:
            return None
        first = self._parts.popleft()
        if isinstance(first, memoryview) and len(first) > _PIECE_BYTES:
            self._parts.appendleft(first[_PIECE_BYTES:])
            first = first[:_PIECE_BYTES]
        self._at += len(first)
        return first

    def drop(self) -> None:
        """Forget what was read and not sent."""
        for part in self._parts:
            if isinstance(part, FilePart):
                part.file.close()
        self._parts.clear()
        if self._next is not None:
            self._room.give_after(self._next)
            self._next = None
        self._room.give(self._taken)
        self._taken, self._most, self._read_to = 0, _PIECE_BYTES, self._at


class FileBody(Response):
    """An answer with a file, or a part of it, as its body.

    Args:
        source: File to send.
        span: Bytes of it to send.
        headers: Headers of the answer.
        sender: What bodies are sent with.
        status: Status of the answer.
    """

    def __init__(
        self,
        source: Source,
        span: SentRange,
        headers: Mapping[str, str],
        sender: Sender,
        *,
        status: int = 200,
    ) -> None:
        super().__init__(status_code=206 if span.partial else status, headers=headers)
        self.raw_headers = [
            (key.lower().encode("latin-1"), value.encode("latin-1"))
            for key, value in headers.items()
        ]
        self._source, self._span, self._sender = source, span, sender

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; a failure behind the first byte can only cut the connection."""
        source, sender = self._source, self._sender
        take = source.parts if EXTENSION in scope.get("extensions", ()) else self._read
        ahead = _Ahead(source, self._span, take, sender.room)
        gone: asyncio.Task[None] | None = None
        try:
            await ahead.fill()  # before the status: an error still has an answer of its own
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            gone = asyncio.create_task(_gone(receive))
            while await sender.send_piece(ahead, send, gone):
                pass
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except _Gone:
            if gone is not None:  # the server is to have noticed, too, before this ends
                await asyncio.wait([gone], timeout=_NOTICED_S)
            _log.info("the client went away while %s was sent", source.path)
        except Stalled:
            raise
        except ConnectionAbortedError as error:
            _log.warning("sending %s was broken off: %s", source.path, error)
            raise
        except TierstoreError as error:
            if gone is None:
                raise
            _log.error("sending %s was broken off: %s", source.path, error)
            raise ConnectionAbortedError(str(error)) from None
        finally:
            if gone is not None:
                gone.cancel()
            ahead.drop()

    def _read(self, start: int, stop: int) -> Sequence[bytes | FilePart]:
        return [self._source.read(start, stop - start)]


class Sender:
    """Sends bodies piece by piece.

    Args:
        sent: Called with the number of bytes sent, piece by piece.
    """

    def __init__(self, sent: Callable[[int], None]) -> None:
        self._sent, self.room = sent, SendRoom()

    async def send_piece(self, ahead: _Ahead, send: Send, gone: asyncio.Task[None]) -> bool:
        """Send what comes next; ``False`` at the end.

        Of a client that does not take at once what it was sent nothing but that is kept.
        """
        with _patience(ahead):
            await send(_NOTHING)  # returns once the client has taken what was sent before
        if gone.done():
            raise _Gone
        await ahead.fill()
        piece = ahead.piece()
        if piece is None:
            return False
        if isinstance(piece, memoryview):
            # copied on its way: nothing of this part is held by what waits to be sent
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self._sent(len(piece))
            return True
        with piece.file:
            for at in range(0, len(piece), _FILE_BYTES):
                with _patience(ahead):
                    await _send_file(piece, at, min(_FILE_BYTES, len(piece) - at), send)
                self._sent(min(_FILE_BYTES, len(piece) - at))
        return True


@contextmanager
def _patience(ahead: _Ahead) -> Iterator[None]:
    """Have what was read ahead dropped, if the client takes long for what it gets meanwhile."""
    timer = asyncio.get_running_loop().call_later(_PROMPT_S, ahead.drop)
    try:
        yield
    finally:
        timer.cancel()


class _Gone(Exception):
    """The client closed the connection."""


async def _gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_file(part: FilePart, at: int, count: int, send: Send) -> None:
    message = {"file": part.file, "offset": part.offset + at, "count": count, "more_body": True}
    try:
        await send({"type": EXTENSION, **message})
    except TierstoreError:
        raise
    except Stalled:
        raise
    except ConnectionError:
        raise _Gone from None
    except OSError as error:
        part.failed(error)
        raise ConnectionAbortedError(f"this node's hot tier failed: {error}") from None


class _Kept:
    """Bytes that were put into an unnamed file, to be sent from there."""

    path = "an answer"

    def __init__(self, folder: Path, data: bytes) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with this object
        self._file.write(data)
        self._file.flush()

    def spans(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
        yield from ((at, min(stop, at + most)) for at in range(start, stop, most))

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def parts(self, start: int, stop: int) -> Sequence[bytes | FilePart]:
        return [self.read(start, stop - start)]


def without_holding(answer: Response, folder: Path, sender: Sender) -> Response:
    """Return an answer whose body, if it is large, waits for its client in a file of ``folder``."""
    if isinstance(answer, FileBody) or len(answer.body) <= _PIECE_BYTES:
        return answer
    data = bytes(answer.body)
    span = SentRange(0, len(data), False)
    return FileBody(_Kept(folder, data), span, answer.headers, sender, status=answer.status_code)


def _close(parts: Sequence[bytes | FilePart]) -> None:
    for part in parts:
        if not isinstance(part, bytes):
            part.file.close()
