"""The health of memcached servers: whether they are set up as a shared hot tier needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymemcache.client.base import Client

    from tierstore.blobs.memcached.client import MemcachedClient

OLDEST = (1, 4, 26)
"""The oldest version that is supported."""


@dataclass(frozen=True, slots=True)
class MemcachedHealth:
    """The state of one server.

    Attributes:
        node: ``host:port``.
        version: The version, such as ``1.6.18``.
        max_memory_bytes: Bytes of memory that it may use (``-m``).
        used_bytes: Bytes of all items, whoever wrote them.
        items: The number of items.
        evicted: Items evicted since it started.
        max_item_bytes: The size of the largest item that it takes, with its key (``-I``).
        findings: What is wrong and what to do about it, one sentence each.
    """

    node: str
    version: str
    max_memory_bytes: int
    used_bytes: int
    items: int
    evicted: int
    max_item_bytes: int
    findings: tuple[str, ...]


def health_of(client: MemcachedClient) -> Sequence[MemcachedHealth]:
    """Ask every server for its state.

    Raises:
        Unreachable, BackendError: A server does not answer.
    """
    doing = "asking for its health"

    def ask(server: Client) -> tuple[dict[bytes, object], dict[bytes, object]]:
        return server.stats(), server.stats("settings")

    reports = []
    for host, port in client.addresses:
        said, settings = client.call((host, port), doing, ask)
        reports.append(_report(f"{host}:{port}", said, settings))
    return reports


def _report(node: str, said: dict[bytes, object], settings: dict[bytes, object]) -> MemcachedHealth:
    version = _text(said.get(b"version", "?"))
    parts = [int(part) for part in version.split(".")[:3] if part.isdigit()]
    findings = []
    if parts and tuple(parts) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        findings.append(f"Version {version} is too old: use {oldest} or newer.")
    if _text(settings.get(b"evictions")) == "off":
        findings.append("It refuses what it has no room for instead of evicting: start without -M.")
    return MemcachedHealth(
        node,
        version,
        _number(said.get(b"limit_maxbytes")),
        _number(said.get(b"bytes")),
        _number(said.get(b"curr_items")),
        _number(said.get(b"evictions")),
        _number(settings.get(b"item_size_max")),
        tuple(findings),
    )


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _number(value: object) -> int:
    text = _text(value)
    return int(text) if text.isdigit() else 0
