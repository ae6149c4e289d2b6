"""The rights of callers: a file says which bearer tokens, by hash, may read and write models.

::

    [[token]]
    name = "search-team"
    sha256 = "…"                  # of the token: printf %s "$TOKEN" | sha256sum
    read = ["ranker", "search/*"]
    write = ["search/*"]

    [anonymous]                   # without it nobody reads without a token
    read = ["public/*"]

Patterns are those of ``fnmatch``, case-sensitive, and in NFC, as the names of models are. Who may
write may read. The file is read again when it changes: a token that was taken out is refused at its
next request. Nobody has the empty token.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from tierstore.errors import ConfigError
from tierstore.serving.hub.answers import HubError
from tierstore.shown import why_unread

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_OF_NOTHING = hashlib.sha256(b"").hexdigest()


class _Rights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


class _Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    sha256: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: tuple[_Token, ...] = ()
    anonymous: _Rights = _Rights()


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller of the gateway and its rights.

    Attributes:
        name: Name of the token; ``None`` without one.
        read: Patterns of models that it may read.
        write: Patterns of models that it may read and write.
    """

    name: str | None
    read: tuple[str, ...]
    write: tuple[str, ...] = ()

    def may_read(self, model: str) -> bool:
        """Return whether this caller may know of a model."""
        return any(fnmatchcase(model, pattern) for pattern in (*self.read, *self.write))

    def may_write(self, model: str) -> bool:
        """Return whether this caller may add versions to a model."""
        return any(fnmatchcase(model, pattern) for pattern in self.write)


class Tokens:
    """The tokens of a gateway; thread-safe.

    Args:
        path: File of tokens; ``None`` lets everybody read everything and nobody write.

    Raises:
        ConfigError: The file cannot be read or is invalid.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._anonymous = Caller(None, ("*",))
        self._known: Mapping[str, Caller] = {}
        if path is not None:
            self._read_again(path)

    def caller(self, authorization: str | None) -> Caller:
        """Return the caller that sends this ``Authorization`` header.

        Raises:
            HubError: 401, the token is not known, or empty.
        """
        if self._path is not None:
            self._refresh(self._path)
        if authorization is None:
            return self._anonymous
        kind, _, token = authorization.partition(" ")
        token = token.strip()
        if kind.lower() == "bearer" and not token:
            raise _unauthorized("the token in the Authorization header is empty")
        if kind.lower() == "bearer" and self._path is None:
            return self._anonymous  # clients send the token they have, whoever it is for
        # starlette decodes headers as Latin-1: these are the bytes that were sent
        found = self._known.get(hashlib.sha256(token.encode("latin-1")).hexdigest())
        if kind.lower() != "bearer" or found is None:
            raise _unauthorized("Invalid credentials in Authorization header")
        return found

    def _refresh(self, path: Path) -> None:
        try:
            found = path.stat()
        except OSError:
            found = None
        with self._lock:
            if found is not None and _identity(found) == self._seen:
                return
            try:
                self._read_again(path)
            except ConfigError as error:
                # nobody is let in on what a broken file may have meant
                self._known, self._anonymous, self._seen = {}, Caller(None, ()), None
                raise HubError(503, f"the gateway's tokens cannot be read: {error}") from None

    def _read_again(self, path: Path) -> None:
        try:
            found = path.stat()
            file = msgspec.convert(tomllib.loads(path.read_text("utf-8")), _File)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {why_unread(error)}") from None
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"{path} is not a valid file of tokens: {error}") from None
        known = {}
        for token in file.token:
            if not _SHA256.match(token.sha256):
                raise ConfigError(
                    f"{path}: sha256 of token {token.name!r} is not 64 lower-case hex digits; "
                    'make it with printf %s "$TOKEN" | sha256sum'
                )
            if token.sha256 == _OF_NOTHING:
                raise ConfigError(
                    f"{path}: sha256 of token {token.name!r} is that of an empty token: see that "
                    "$TOKEN is set when it is made"
                )
            read = _patterns(*token.read, *file.anonymous.read)
            known[token.sha256] = Caller(token.name, read, _patterns(*token.write))
        self._known = known
        anonymous = file.anonymous
        self._anonymous = Caller(None, _patterns(*anonymous.read), _patterns(*anonymous.write))
        self._seen = _identity(found)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    # the kernel sets ctime itself: whoever keeps the time of a file cannot keep this one
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _patterns(*given: str) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", pattern) for pattern in given)


def _unauthorized(message: str) -> HubError:
    return HubError(401, message, headers={"WWW-Authenticate": "Bearer"})


def whoami(caller: Caller) -> dict[str, Any]:
    """Return the body of ``/api/whoami-v2``."""
    return {
        "type": "user",
        "id": caller.name,
        "name": caller.name,
        "fullname": caller.name,
        "isPro": False,
        "orgs": [],
        "auth": {
            "type": "access_token",
            "accessToken": {
                "displayName": caller.name,
                "role": "write" if caller.write else "read",
            },
        },
    }
