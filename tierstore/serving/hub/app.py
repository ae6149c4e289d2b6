"""The gateway as an ASGI application: one store behind the API of the Hugging Face Hub."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tierstore.errors import TierstoreError
from tierstore.modelstore.home.home import read_config
from tierstore.modelstore.store import Store
from tierstore.serving.hub.answers import HubError, Stalled, of_error
from tierstore.serving.hub.commits import Committer
from tierstore.serving.hub.endpoints import Endpoints
from tierstore.serving.hub.files import Sender
from tierstore.serving.hub.openapi import describe
from tierstore.serving.hub.reading import PATHS_BYTES, Reading
from tierstore.serving.hub.repos import Repos
from tierstore.serving.hub.rights import Tokens
from tierstore.serving.hub.spool import UploadSpool
from tierstore.serving.hub.stats import HubStats
from tierstore.serving.hub.tree import Blobs
from tierstore.serving.hub.writing import COMMIT_BYTES, LISTS_BYTES, SMALL_BYTES, Writing
from tierstore.serving.hub.xet import Xet

_log = logging.getLogger("tierstore.hub")
STALL_S = 60.0
MOST_AT_ONCE = 1024
"""Most requests in progress; others are answered with 503."""

_HEALTHY_S = 1.0
_BUSY = HubError(503, "too many requests at once; try again", headers={"Retry-After": "2"})


class _Repo(Convertor[str]):
    """Matches ``model`` or ``org/model`` in a path."""

    regex = "[^/]+(?:/[^/]+)?"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("repo", _Repo())


class _Outermost:
    """What every request passes: it is bounded in number, counted and logged.

    The path is the one that was sent, in which ``%2F`` of a branch's name is no separator.
    """

    def __init__(self, app: ASGIApp, stats: HubStats, stall_s: float) -> None:
        self._app, self._stats, self._stall_s = app, stats, stall_s
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw = scope.get("raw_path") or scope["path"].encode()
            scope = {**scope, "path": raw.split(b"?")[0].decode("ascii", "replace")}
        began, status = time.monotonic(), 0
        app = self._app if self._now < MOST_AT_ONCE else _BUSY.response()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._stats.answered(status)
            try:
                async with asyncio.timeout(self._stall_s):
                    await send(message)
            except TimeoutError:
                _log.warning("a client that took nothing for %g s is cut off", self._stall_s)
                raise Stalled("the client stalled") from None

        self._now += 1
        try:
            await app(scope, receive, counted)
        finally:
            self._now -= 1
            if scope["type"] == "http":
                took = time.monotonic() - began
                _log.info("%s %s %d %.3f s", scope["method"], scope["path"], status, took)


def make_app(
    store: Store,
    spool: Path,
    *,
    tokens: Path | None = None,
    stall_s: float = STALL_S,
    metrics: Callable[[HubStats], tuple[bytes, str]] | None = None,
) -> ASGIApp:
    """Make the application.

    Args:
        store: Store to serve; it must stay open while the application serves.
        spool: Folder on a local disk for uploads that wait for their commit.
        tokens: File of tokens (see ``rights``); without it everybody reads and nobody writes.
        stall_s: Seconds for which a client may neither send nor take anything.
        metrics: Function that makes the page of metrics and its content type.

    Raises:
        ConfigError: The file of tokens cannot be read or is invalid.
    """
    repos, stats, blobs, place = Repos(store), HubStats(), Blobs(), UploadSpool(spool)
    sender = Sender(stats.sent)
    ends = Endpoints(Tokens(tokens), repos, place, stall_s, sender)
    reading = Reading(repos, blobs, sender)
    writing = Writing(place, Committer(store, place), blobs, stats, stall_s)

    seen = -_HEALTHY_S

    def health(request: Request) -> Response:
        """Check that the store answers."""
        nonlocal seen
        if time.monotonic() >= seen + _HEALTHY_S:  # however often anybody asks
            read_config(store._parts.home.blobs)
            seen = time.monotonic()
        return JSONResponse({"status": "ok", "store": store._parts.home.config.store_id})

    def page(request: Request) -> Response:
        """Show the metrics of this gateway for Prometheus."""
        if metrics is None:
            raise HubError(404, "metrics need the extra tierstore[metrics]")
        body, kind = metrics(stats)
        return Response(body, media_type=kind)

    def description(request: Request) -> Response:
        """Describe the API as OpenAPI."""
        return JSONResponse(describe(routes))

    routes = [
        ends.to_anyone("/healthz", health),
        ends.to_anyone("/metrics", page),
        ends.to_anyone("/openapi.json", description),
        *_reading(ends, reading),
        *_writing(ends, writing),
        *_xet(ends, Xet(place, stats, stall_s)),
        ends.to_version("/api/models/{repo:repo}", reading.info),
        ends.to_version("/{repo:repo}/resolve/{rev}/{path:path}", reading.file),
    ]

    handlers = dict.fromkeys((HubError, TierstoreError, HTTPException), _refused)
    app = Starlette(routes=routes, exception_handlers=handlers)
    return _Outermost(app, stats, stall_s)


async def _refused(request: Request, error: Exception) -> Response:
    # a coroutine, as starlette runs others in a thread: refusing is to cost next to nothing
    if isinstance(error, TierstoreError):
        error = of_error(error)
    elif isinstance(error, HTTPException):
        error = HubError(error.status_code, error.detail)
    assert isinstance(error, HubError)
    return error.response()


def _reading(ends: Endpoints, reading: Reading) -> list[Route]:
    api = "/api/models/{repo:repo}"
    paths = f"{api}/paths-info/{{rev}}"
    return [
        ends.to_callers("/api/whoami-v2", reading.whoami),
        ends.to_callers("/api/models", reading.models),
        ends.to_version(f"{api}/revision/{{rev}}", reading.info),
        ends.to_version(f"{api}/tree/{{rev}}", reading.tree),
        ends.to_version(f"{api}/tree/{{rev}}/{{path:path}}", reading.tree),
        ends.to_version(paths, reading.paths_info, body_bytes=PATHS_BYTES),
        ends.to_readers(f"{api}/refs", reading.refs),
        ends.to_version(f"{api}/commits/{{rev}}", reading.commits),
        ends.to_readers(f"{api}/auth-check", reading.auth_check),
        ends.to_version(f"{api}/safetensors-metadata/{{path:path}}", reading.safetensors_metadata),
    ]


def _writing(ends: Endpoints, writing: Writing) -> list[Route]:
    api = "/api/models/{repo:repo}"
    lfs = "/{repo:repo}.git/info/lfs"
    branch = f"{api}/branch/{{rev}}"
    return [
        ends.to_any_writer("/api/validate-yaml", writing.validate_yaml),
        ends.to_named_in_body("/api/repos/create", writing.create_repo),
        ends.to_writers(f"{api}/preupload/{{rev}}", writing.preupload, body_bytes=LISTS_BYTES),
        ends.to_writers(f"{api}/commit/{{rev}}", writing.commit, body_bytes=COMMIT_BYTES),
        ends.to_writers(branch, writing.create_branch, body_bytes=SMALL_BYTES),
        ends.to_writers(branch, writing.delete_branch, body_bytes=SMALL_BYTES, method="DELETE"),
        ends.to_writers(f"{lfs}/objects/batch", writing.lfs_batch, body_bytes=LISTS_BYTES),
        ends.to_writers(f"{lfs}/verify", writing.verify, body_bytes=SMALL_BYTES),
        ends.to_uploads(f"{lfs}/objects/{{oid}}", writing.upload, "PUT"),
        ends.to_uploads(f"{lfs}/objects/{{oid}}", writing.complete, "POST"),
    ]


def _xet(ends: Endpoints, xet: Xet) -> list[Route]:
    token = "/api/models/{repo:repo}/xet-write-token/{rev}"
    session = "/{repo:repo}.git/info/xet/{session}/v1"
    return [
        ends.to_writers(token, xet.token, body_bytes=0, method="GET"),
        ends.to_sessions(f"{session}/xorbs/default/{{hash}}", xet.xorb),
        ends.to_sessions(f"{session}/shards", xet.shard),
    ]
