"""The gateway as an ASGI application: one store behind the API of the Hugging Face Hub."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

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
from tierstore.serving.hub.answers import HubError, of_error
from tierstore.serving.hub.commits import Committer
from tierstore.serving.hub.openapi import describe
from tierstore.serving.hub.reading import Reading
from tierstore.serving.hub.repos import Repos
from tierstore.serving.hub.rights import Tokens
from tierstore.serving.hub.spool import UploadSpool
from tierstore.serving.hub.stats import HubStats
from tierstore.serving.hub.tree import Blobs
from tierstore.serving.hub.writing import Writing

_log = logging.getLogger("tierstore.hub")
STALL_S = 60.0


class _Repo(Convertor[str]):
    """Matches ``model`` or ``org/model`` in a path."""

    regex = "[^/]+(?:/[^/]+)?"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("repo", _Repo())


class _AsSent:
    """Routes by the path as it was sent, in which ``%2F`` of a branch's name is no separator."""

    def __init__(self, app: ASGIApp, stats: HubStats) -> None:
        self._app, self._stats = app, stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw = scope.get("raw_path") or scope["path"].encode()
            scope = {**scope, "path": raw.split(b"?")[0].decode("ascii", "replace")}
        began, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._stats.answered(status)
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
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
    repos, stats = Repos(store), HubStats()
    reading = Reading(repos, Tokens(tokens), Blobs(), stats, stall_s)
    place = UploadSpool(spool)
    writing = Writing(reading, place, Committer(repos, place))

    def health(request: Request) -> Response:
        """Check that the store answers."""
        read_config(store._parts.home.blobs)
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
        Route("/healthz", health),
        Route("/metrics", page),
        Route("/openapi.json", description),
        *_routes(reading, writing),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response] | Response]] = {
        HubError: lambda _, error: error.response(),
        TierstoreError: lambda _, error: of_error(error).response(),
        HTTPException: lambda _, error: HubError(error.status_code, error.detail).response(),
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    return _AsSent(app, stats)


def _routes(reading: Reading, writing: Writing) -> list[Route]:
    api = "/api/models/{repo:repo}"
    lfs = "/{repo:repo}.git/info/lfs"
    return [
        Route("/api/whoami-v2", reading.whoami),
        Route("/api/models", reading.models),
        Route("/api/repos/create", writing.create_repo, methods=["POST"]),
        Route(f"{api}/revision/{{rev}}", reading.info),
        Route(f"{api}/tree/{{rev}}", reading.tree),
        Route(f"{api}/tree/{{rev}}/{{path:path}}", reading.tree),
        Route(f"{api}/paths-info/{{rev}}", reading.paths_info, methods=["POST"]),
        Route(f"{api}/refs", reading.refs),
        Route(f"{api}/commits/{{rev}}", reading.commits),
        Route(f"{api}/auth-check", reading.auth_check),
        Route(f"{api}/safetensors-metadata/{{path:path}}", reading.safetensors_metadata),
        Route(f"{api}/preupload/{{rev}}", writing.preupload, methods=["POST"]),
        Route(f"{api}/commit/{{rev}}", writing.commit, methods=["POST"]),
        Route(f"{api}/branch/{{rev}}", writing.create_branch, methods=["POST"]),
        Route(f"{api}/branch/{{rev}}", writing.delete_branch, methods=["DELETE"]),
        Route(api, reading.info),
        Route(f"{lfs}/objects/batch", writing.lfs_batch, methods=["POST"]),
        Route(f"{lfs}/verify", writing.verify, methods=["POST"]),
        Route(f"{lfs}/objects/{{oid}}", writing.upload, methods=["PUT"]),
        Route(f"{lfs}/objects/{{oid}}", writing.complete, methods=["POST"]),
        Route("/{repo:repo}/resolve/{rev}/{path:path}", reading.file),
    ]
