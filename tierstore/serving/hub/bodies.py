"""Reading bodies of requests, with bounds on their size and on the time between parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from tierstore.serving.hub.answers import HubError


async def body_parts(request: Request, most: int, stall_s: float) -> AsyncIterator[bytes]:
    """Yield the parts of a body as they arrive.

    Raises:
        HubError: 413 above ``most`` bytes, 408 if nothing arrives for ``stall_s`` seconds, 400 if
            the client went away.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > most:
        raise HubError(413, f"the body may have at most {most} bytes")
    total = 0
    parts = request.stream().__aiter__()
    while True:
        try:
            part = await asyncio.wait_for(parts.__anext__(), stall_s)
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
