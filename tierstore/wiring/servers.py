"""The state of a cache server, in one form for Redis and Memcached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis or Memcached server; a field is ``None`` where the server did not say.

    Attributes:
        node: Address of the server.
        version: Version of the server, such as ``7.0.15``.
        used_bytes: Bytes that the server holds, whoever they belong to.
        limit_bytes: Bytes that the server may hold; 0 for no limit.
        evicted: Values evicted since the server started.
        max_item_bytes: Size in bytes of the largest value that the server takes, overhead included.
        policy: Eviction policy of a Redis.
        persistent: Whether the server writes its data to disk.
        findings: Settings that a hot tier needs otherwise, one sentence each.
    """

    node: str
    version: str | None
    used_bytes: int | None
    limit_bytes: int | None
    evicted: int | None
    max_item_bytes: int | None = None
    policy: str | None = None
    persistent: bool | None = None
    findings: tuple[str, ...] = ()
