"""The address of a Redis and how to reach it, without any client library."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from tierstore.errors import ConfigError

_PORT = 6379
_FORMS = (
    "redis://host:port/db, rediss://host:port/db (TLS), redis+cluster://host:port,host:port, "
    "rediss+cluster://…, or unix:///path/to/socket?db=0"
)

Address: TypeAlias = tuple[str, int]
"""Host and port; a Unix socket is its path and 0."""


@dataclass(frozen=True, slots=True)
class RedisEndpoint:
    """A Redis server or cluster, with the limits of time and connections for using it.

    Attributes:
        url: ``redis://host:port/db``, ``rediss://…`` for TLS, ``redis+cluster://host:port,…`` and
            ``rediss+cluster://…`` with one or more nodes of a cluster, or
            ``unix:///path/to/socket?db=0``; never with credentials.
        username: The name of an ACL user; ``None`` for the default user.
        password: The password of that user; never shown.
        ca: The path of a PEM file with the authorities to trust for TLS; ``None`` for the system's.
        timeout_s: Seconds that one request, of at most one batch, may take; connecting, and waiting
            for a free connection, may each take as long again.
        connections: The most connections to one server from one process.

    Raises:
        ConfigError: The URL or another value cannot be used.
    """

    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    timeout_s: float = 5.0
    connections: int = 8

    def __post_init__(self) -> None:
        if "@" in self.url.partition("://")[2]:  # the URL is not repeated: it may hold a secret
            raise ConfigError(
                "the URL of a Redis must not hold credentials: give user and password apart"
            )
        if not self.timeout_s > 0 or self.connections < 1:
            raise ConfigError(f"{self.url}: timeout and connections must be positive")
        if self.ca is not None and not Path(self.ca).is_file():
            raise ConfigError(f"{self.url}: there is no file {self.ca!r} with authorities")
        if self.username is not None and self.password is None:
            raise ConfigError(f"{self.url}: a user name needs a password")
        if not self.addresses or self.db < 0:
            raise ConfigError(f"{self.url}: use {_FORMS}")

    @property
    def scheme(self) -> str:
        """The scheme of the URL, such as ``redis``, ``rediss+cluster`` or ``unix``."""
        return self.url.partition("://")[0]

    @property
    def cluster(self) -> bool:
        """Whether the addresses are nodes of a cluster."""
        return self.scheme.endswith("+cluster")

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.scheme.startswith("rediss")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The address of the server, or of the nodes of the cluster that the URL names."""
        rest = self.url.partition("://")[2]
        if self.scheme == "unix":
            path = unquote(rest.partition("?")[0])
            return ((path, 0),) if path.startswith("/") else ()
        if self.scheme not in {"redis", "rediss", "redis+cluster", "rediss+cluster"}:
            return ()
        hosts = rest.partition("/")[0].split(",")
        try:
            parts = [urlsplit(f"//{host}") for host in hosts]
            found = tuple((part.hostname or "", part.port or _PORT) for part in parts)
        except ValueError:
            return ()
        good = all(host for host, _ in found) and (self.cluster or len(found) == 1)
        return found if good else ()

    @property
    def db(self) -> int:
        """The number of the database; negative when the URL is not valid."""
        rest = self.url.partition("://")[2]
        if self.scheme == "unix":
            query = rest.partition("?")[2]
            text = query.removeprefix("db=") if query else "0"
        else:
            text = rest.partition("/")[2] or "0"
        if not (text.isascii() and text.isdigit()) or (self.cluster and text != "0"):
            return -1
        return int(text)
