"""From a route to its handler: who asks, may they, and only then the body and the version.

A handler is registered by what it needs: nothing, a caller, a model to read, a version, a model to
write to, or a signed URL. It gets a ``Call`` that holds what was granted, and has no other way to a
model, so that no handler can forget to ask. Bodies are read behind that.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tierstore.modelstore.loading.model import Model
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.bodies import BodyRoom, json_object
from tierstore.serving.hub.files import Sender, without_holding
from tierstore.serving.hub.hashing import Hashing
from tierstore.serving.hub.repos import MAIN, Commit, Repo, Repos, WritableRepo
from tierstore.serving.hub.rights import Caller, Tokens
from tierstore.serving.hub.spool import UploadSpool, check_oid

_NAMES_BYTES = 64 << 10


def text_of(request: Request, name: str) -> str:
    """Return a part of the request's path, unquoted.

    Raises:
        HubError: It is not UTF-8, or holds a NUL.
    """
    try:
        found = unquote(request.path_params[name], errors="strict")
    except UnicodeDecodeError:
        raise HubError(400, "the URL is not UTF-8") from None
    if "\0" in found:
        raise HubError(400, "the URL holds a NUL")
    return found


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and the caller that sent it."""

    request: Request
    caller: Caller


@dataclass(frozen=True, slots=True)
class ReadCall(Call):
    """A request on a model that its caller may read; ``body`` is empty unless one is taken."""

    repo: Repo
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class VersionCall(Call):
    """A request on a version that its caller may read."""

    repo: Repo
    commit: Commit
    model: Model
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class WriteCall(Call):
    """A request on a model that its caller may write to."""

    repo: WritableRepo
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class UploadCall:
    """A request to a URL that was given out for an upload.

    Attributes:
        request: The request.
        repo: Name of the model that the URL was signed for.
        oid: SHA-256 of the file, as hex digits.
        size: Size of the file in bytes.
        part: Number of the part that is sent; 0 for the whole file.
    """

    request: Request
    repo: str
    oid: str
    size: int
    part: int


@dataclass(frozen=True, slots=True)
class SessionCall:
    """A request with the token of a session of the Xet protocol.

    Attributes:
        request: The request.
        repo: Name of the model that the session uploads to.
        session: Name of the session.
    """

    request: Request
    repo: str
    session: str


_Asked = TypeVar("_Asked")


class Endpoints:
    """Makes the routes of a gateway.

    Args:
        tokens: Rights of the callers.
        repos: Models of the store.
        spool: What has signed the URLs of uploads.
        stall_s: Seconds for which a client may send nothing.
        sender: Sends files, and large answers.
    """

    def __init__(
        self, tokens: Tokens, repos: Repos, spool: UploadSpool, stall_s: float, sender: Sender
    ) -> None:
        self._tokens, self._repos, self._spool, self._sender = tokens, repos, spool, sender
        self._hashing, self._room = Hashing(), BodyRoom(stall_s)

    async def _run(self, handler: Callable[[_Asked], Response], call: _Asked) -> Response:
        """Run a handler in a thread; a large answer does not stay in memory."""
        return await run_in_threadpool(self._answer, handler, call)

    def _answer(self, handler: Callable[[_Asked], Response], call: _Asked) -> Response:
        return without_holding(handler(call), self._spool.root, self._sender)

    def _caller(self, request: Request) -> Caller:
        return self._tokens.caller(request.headers.get("authorization"))

    def _any_writer(self, request: Request) -> Caller:
        caller = self._caller(request)
        if not caller.write:
            if caller.name is None:
                raise HubError(401, "a token is needed", headers={"WWW-Authenticate": "Bearer"})
            raise HubError(403, "this token may not write")
        return caller

    def _readable(self, request: Request) -> Repo:
        return self._repos.readable(text_of(request, "repo"), self._caller(request))

    # What a handler may need

    def to_anyone(self, path: str, handler: Callable[[Request], Response]) -> Route:
        """Route to what everybody may ask, and what says nothing of any model."""

        async def answer(request: Request) -> Response:
            return await self._run(handler, request)

        return _route(path, handler, answer, "GET")

    def to_callers(self, path: str, handler: Callable[[Call], Response]) -> Route:
        """Route to what depends on the caller alone."""

        async def answer(request: Request) -> Response:
            return await self._run(handler, Call(request, self._caller(request)))

        return _route(path, handler, answer, "GET")

    def to_any_writer(self, path: str, handler: Callable[[Call], Response]) -> Route:
        """Route to what needs the right to write to any model at all; the body is dropped."""

        async def answer(request: Request) -> Response:
            return await self._run(handler, Call(request, self._any_writer(request)))

        return _route(path, handler, answer, "POST")

    def to_readers(self, path: str, handler: Callable[[ReadCall], Response]) -> Route:
        """Route to what needs the right to read the model in the path."""

        async def answer(request: Request) -> Response:
            repo = self._readable(request)
            return await self._run(handler, ReadCall(request, repo.caller, repo))

        return _route(path, handler, answer, "GET")

    def to_version(
        self, path: str, handler: Callable[[VersionCall], Response], *, body_bytes: int = 0
    ) -> Route:
        """Route to what reads the version that the path names, by default ``main``.

        Args:
            path: Path of the route, with ``repo``, and ``rev`` where it names one.
            handler: Makes the answer.
            body_bytes: The most that the body of a POST may have; 0 for a GET without one.
        """

        async def answer(request: Request) -> Response:
            repo = self._readable(request)
            revision = text_of(request, "rev") if "rev" in request.path_params else MAIN

            def opened() -> tuple[Commit, Model]:
                commit = repo.commit(revision)
                return commit, repo.open(commit)

            taken = self._room.body(request, body_bytes) if body_bytes else nullcontext(b"")
            async with taken as body:
                commit, model = await run_in_threadpool(opened)
                await self._hashing.complete(model)
                call = VersionCall(request, repo.caller, repo, commit, model, body)
                return await self._run(handler, call)

        return _route(path, handler, answer, "POST" if body_bytes else "GET")

    def to_writers(
        self,
        path: str,
        handler: Callable[[WriteCall], Response],
        *,
        body_bytes: int,
        method: str = "POST",
    ) -> Route:
        """Route to what needs the right to write to the model in the path.

        Args:
            path: Path of the route, with ``repo``.
            handler: Makes the answer.
            body_bytes: The most that the body may have.
            method: Method of the route.
        """

        async def answer(request: Request) -> Response:
            caller = self._caller(request)
            repo = self._repos.writable(text_of(request, "repo"), caller)
            async with self._room.body(request, body_bytes) as body:
                return await self._run(handler, WriteCall(request, caller, repo, body))

        return _route(path, handler, answer, method)

    def to_named_in_body(self, path: str, handler: Callable[[WriteCall], Response]) -> Route:
        """Route to what creates the model that the body names; the body is small.

        It is read only of callers that may write to any model at all.
        """

        async def answer(request: Request) -> Response:
            caller = self._any_writer(request)
            async with self._room.body(request, _NAMES_BYTES) as body:
                asked = json_object(body)
                parts = [asked.get("organization"), asked.get("name")]
                name = "/".join(str(part) for part in parts if part)
                repo = self._repos.writable(name, caller)
                return await self._run(handler, WriteCall(request, caller, repo, body))

        return _route(path, handler, answer, "POST")

    def to_uploads(
        self,
        path: str,
        handler: Callable[[UploadCall], Awaitable[Response]],
        method: str,
    ) -> Route:
        """Route to what needs a signed URL; the handler takes the body as it arrives."""

        async def answer(request: Request) -> Response:
            return await handler(self._upload(request))

        return _route(path, handler, answer, method)

    def to_sessions(
        self, path: str, handler: Callable[[SessionCall], Awaitable[Response]]
    ) -> Route:
        """Route to what needs the token of a session; the handler takes the body as it arrives."""

        async def answer(request: Request) -> Response:
            return await handler(self._session(request))

        return _route(path, handler, answer, "POST")

    def _session(self, request: Request) -> SessionCall:
        repo, session = text_of(request, "repo"), text_of(request, "session")
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        expires, _, signature = token.strip().partition(".")
        if kind.lower() != "bearer" or not _is_count(expires):
            raise HubError(401, "the token of the session is needed")
        self._spool.check(repo, session, 0, 0, int(expires), signature)
        return SessionCall(request, repo, session)

    def _upload(self, request: Request) -> UploadCall:
        repo, query = text_of(request, "repo"), request.query_params
        numbers = [query.get(name, "") for name in ("size", "part", "expires")]
        if not all(map(_is_count, numbers)):
            raise HubError(403, "this URL is not one that the gateway gave out")
        size, part, expires = map(int, numbers)
        oid, size = check_oid(text_of(request, "oid"), size)
        self._spool.check(repo, oid, size, part, expires, query.get("signature", ""))
        return UploadCall(request, repo, oid, size, part)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 17


def _route(
    path: str,
    handler: Callable[[_Asked], object],
    answer: Callable[[Request], Awaitable[Response]],
    method: str,
) -> Route:
    """Make a route that is named and described as its handler is."""
    endpoint = functools.wraps(handler)(answer)
    return Route(path, endpoint, methods=[method], name=handler.__name__)
