"""Bodies of requests: bounds on their size, speed, memory, and on the depth of JSON."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect, Request

from tierstore.forks import begin
from tierstore.serving.hub.answers import HubError

_SLOWEST_BYTES_PER_S = 16 << 10
_HELD_BYTES = 128 << 20
_DEEPEST = 32
_TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _declared(request: Request, most: int) -> int | None:
    """Return the length that a request declares; ``None`` if it declares none.

    Where a body comes in chunks, a length beside that says nothing (RFC 9112, 6.3).
    """
    declared = request.headers.get("content-length")
    if declared is None or "transfer-encoding" in request.headers:
        return None
    if not declared.isdigit() or int(declared) > most:
        raise HubError(413, f"the body may have at most {most} bytes")
    return int(declared)


async def body_parts(request: Request, most: int, stall_s: float) -> AsyncIterator[bytes]:
    """Yield the parts of a body as they arrive.

    Raises:
        HubError: 413 above ``most`` bytes; 408 if nothing arrives for ``stall_s`` seconds, or less
            than 16 KiB/s on the average after these; 400 if the client went away.
    """
    _declared(request, most)
    now = asyncio.get_running_loop().time
    began, total = now(), 0
    parts = request.stream().__aiter__()
    while True:
        try:
            late = began + stall_s + total / _SLOWEST_BYTES_PER_S
            part = await asyncio.wait_for(parts.__anext__(), min(stall_s, late - now()))
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HubError(408, "the body did not arrive in time") from None
        except ClientDisconnect:
            raise HubError(400, "the client went away") from None
        total += len(part)
        if total > most:
            raise HubError(413, f"the body may have at most {most} bytes")
        if part:
            yield part


async def read_body(request: Request, most: int, stall_s: float) -> bytes:
    """Read a whole body; raises the same errors as ``body_parts``."""
    return b"".join([part async for part in body_parts(request, most, stall_s)])


class BodyRoom:
    """The memory for bodies that are held as a whole: 128 MiB for all requests together.

    Args:
        stall_s: Seconds after which a request that found no room is refused.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        begin(self._begin)

    def _begin(self) -> None:
        self._free = _HELD_BYTES
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def body(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """Read a body of at most ``most`` bytes, which may be used until the block ends.

        Raises:
            HubError: As of ``body_parts``; 503, the room was taken by other requests.
        """
        declared = _declared(request, most)
        count = most if declared is None else declared
        async with self._changed:
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._changed.wait_for(lambda: count <= self._free)
            except TimeoutError:
                raise HubError(
                    503, "too many large bodies at once; try again", headers={"Retry-After": "5"}
                ) from None
            self._free -= count
        try:
            yield await read_body(request, most, self._stall_s)
        finally:
            async with self._changed:
                self._free += count
                self._changed.notify_all()


def check_depth(body: bytes) -> None:
    """Raise ``HubError`` 400 if JSON is nested more than 32 levels deep, before it is parsed."""
    brackets = _TEXTS.sub(b"", body).translate(None, _NOT_BRACKETS)
    for _ in range(_DEEPEST):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return
    raise HubError(400, f"the body is no JSON, or is nested more than {_DEEPEST} levels deep")


def json_of(body: bytes) -> Any:
    """Parse JSON; ``HubError`` 400 if it is none, is nested too deeply, or has bad text."""
    check_depth(body)
    try:
        found = json.loads(body)
        if _SURROGATE.search(body):  # a pair of them is a character, one alone is in no answer
            json.dumps(found, ensure_ascii=False).encode()
    except ValueError:
        raise HubError(400, "the body is not JSON") from None
    return found


def json_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; an empty body is an empty one."""
    found = json_of(body or b"{}")
    if not isinstance(found, dict):
        raise HubError(400, "the body must be a JSON object")
    return found
