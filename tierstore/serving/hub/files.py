"""Sending files: ranges, conditions, and bodies read from the tiers while they are sent.

A body is never assembled as a whole: two parts of some MiB are in memory at a time, the one that is
being sent and the one that is being read. A client that takes nothing for a while is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tierstore.errors import TierstoreError
from tierstore.modelstore.chunks.local import FilePart
from tierstore.modelstore.loading.fileview import FileView
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.tree import Blob
from tierstore.serving.hub.zerocopy import EXTENSION

_log = logging.getLogger("tierstore.hub")
_PART_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20
_NOTICED_S = 5.0
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


class FileBody(Response):
    """An answer with a file, or a part of it, as its body.

    Args:
        view: File to send.
        span: Bytes of it to send.
        headers: Headers of the answer.
        sent: Called with the number of bytes sent, piece by piece.
        stall_s: Seconds in which a client must take 1 MiB.
    """

    def __init__(
        self,
        view: FileView,
        span: SentRange,
        headers: dict[str, str],
        *,
        sent: Callable[[int], None],
        stall_s: float,
    ) -> None:
        super().__init__(status_code=206 if span.partial else 200, headers=headers)
        self.raw_headers = [
            (key.lower().encode("latin-1"), value.encode("latin-1"))
            for key, value in headers.items()
        ]
        self._view, self._span, self._sent, self._stall_s = view, span, sent, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; a failure behind the first byte can only cut the connection."""
        take = self._view.parts if EXTENSION in scope.get("extensions", ()) else self._read
        spans = self._view.spans(self._span.start, self._span.stop, _PART_BYTES)
        reading = _next(take, spans)
        # the first part is there before the status is: an error still has an answer of its own
        parts = await asyncio.shield(reading) if reading is not None else None
        gone: asyncio.Task[None] | None = None
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            gone = asyncio.create_task(_gone(receive))
            while parts is not None:
                reading = _next(take, spans)
                await self._send(parts, send, gone)
                parts = await asyncio.shield(reading) if reading is not None else None
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except _Gone:
            if gone is not None:  # the server is to have noticed, too, before this ends
                await asyncio.wait([gone], timeout=_NOTICED_S)
            _log.info("the client went away while %s was sent", self._view.path)
        except ConnectionAbortedError as error:
            _log.warning("sending %s was broken off: %s", self._view.path, error)
            raise
        except TierstoreError as error:
            _log.error("sending %s was broken off: %s", self._view.path, error)
            raise ConnectionAbortedError(str(error)) from None
        except TimeoutError:
            _log.warning("a client that took nothing for %g s is cut off", self._stall_s)
            raise ConnectionAbortedError("the client stalled") from None
        finally:
            if gone is not None:
                gone.cancel()
            if reading is not None:
                reading.add_done_callback(_release)

    def _read(self, start: int, stop: int) -> Sequence[bytes | FilePart]:
        return [self._view.read(start, stop - start)]

    async def _send(
        self, parts: Sequence[bytes | FilePart], send: Send, gone: asyncio.Task[None]
    ) -> None:
        clock = asyncio.get_running_loop().time
        sent, taken = 0, clock()
        try:
            async with asyncio.timeout(self._stall_s) as limit:
                for part in parts:
                    for at in range(0, len(part), _PIECE_BYTES):
                        if gone.done():
                            raise _Gone
                        count = min(_PIECE_BYTES, len(part) - at)
                        await _send_piece(part, at, count, send)
                        sent += count
                        if (now := clock()) > taken + self._stall_s / 8:
                            limit.reschedule(now + self._stall_s)
                            taken = now
        finally:
            self._sent(sent)
            _close(parts)


class _Gone(Exception):
    """The client closed the connection."""


async def _gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_piece(part: bytes | FilePart, at: int, count: int, send: Send) -> None:
    if isinstance(part, bytes):
        piece = memoryview(part)[at : at + count]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        return
    message = {"file": part.file, "offset": part.offset + at, "count": count, "more_body": True}
    try:
        await send({"type": EXTENSION, **message})
    except TierstoreError:
        raise
    except ConnectionError:
        raise _Gone from None
    except OSError as error:
        part.failed(error)
        raise ConnectionAbortedError(f"this node's hot tier failed: {error}") from None


def _next(
    take: Callable[[int, int], Sequence[bytes | FilePart]], spans: Iterator[tuple[int, int]]
) -> asyncio.Task[Sequence[bytes | FilePart]] | None:
    span = next(spans, None)
    return None if span is None else asyncio.create_task(run_in_threadpool(take, *span))


def _release(reading: asyncio.Task[Sequence[bytes | FilePart]]) -> None:
    if not reading.cancelled() and reading.exception() is None:
        _close(reading.result())


def _close(parts: Sequence[bytes | FilePart]) -> None:
    for part in parts:
        if not isinstance(part, bytes):
            part.file.close()
