"""Error answers of the gateway, in the form that clients of the Hub know.

Clients tell errors apart by ``X-Error-Code``: ``RepoNotFound``, ``RevisionNotFound`` and
``EntryNotFound`` become exceptions of their own in ``huggingface_hub``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tierstore.errors import (
    BackendError,
    Conflict,
    Damaged,
    NotFound,
    OutOfSpace,
    SourceError,
    TierstoreError,
    UsageError,
)

_log = logging.getLogger("tierstore.hub")
_RETRY_AFTER_S = 2


class Stalled(ConnectionAbortedError):
    """The client took nothing for too long; who raises it has logged it."""


class HubError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: Message for people.
        code: ``X-Error-Code``, if clients know one for this error.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Make the answer."""
        headers = {**self.headers, "X-Error-Message": _one_line(self.message)}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        message = self.message.encode(errors="backslashreplace").decode()
        return JSONResponse({"error": message}, self.status, headers)


def base_of(request: Request) -> str:
    """Return the URL of the gateway, as the client knows it."""
    return f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}"


def repo_not_found(model: str, *, anonymous: bool) -> HubError:
    """Make the error for a model that does not exist or that the caller may not know of.

    As on the Hub, both look alike.
    """
    status = 401 if anonymous else 404
    headers = {"WWW-Authenticate": "Bearer"} if anonymous else {}
    return HubError(status, f"Repository not found: {model[:200]}", "RepoNotFound", headers)


def revision_not_found(revision: str) -> HubError:
    """Make the error for a model without this branch, tag or commit."""
    return HubError(404, f"Invalid rev id: {revision[:200]}", "RevisionNotFound")


def entry_not_found(path: str, commit: str) -> HubError:
    """Make the error for a version without this file."""
    return HubError(
        404, f"Entry not found: {path[:200]}", "EntryNotFound", {"X-Repo-Commit": commit}
    )


def of_error(error: TierstoreError) -> HubError:
    """Make the answer to an error of the store."""
    message = str(error)
    if isinstance(error, UsageError | SourceError):
        return HubError(400, message)
    if isinstance(error, NotFound):
        return HubError(404, message)
    if isinstance(error, Conflict):
        return HubError(409, message)
    if isinstance(error, OutOfSpace):
        return HubError(507, message)
    if isinstance(error, BackendError):
        _log.warning("the storage failed: %s", message)
        return HubError(
            503,
            "the storage behind this gateway does not answer; try again",
            headers={"Retry-After": str(_RETRY_AFTER_S)},
        )
    if isinstance(error, Damaged):
        _log.error("%s", message)
        return HubError(500, "stored bytes are damaged; the gateway's operator should run 'check'")
    return HubError(500, message)


def _one_line(message: str) -> str:
    return " ".join(message.split()).encode("ascii", "backslashreplace").decode()[:500]
