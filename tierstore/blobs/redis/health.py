"""The health of a Redis: whether it is set up as a shared hot tier needs it, and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tierstore.errors import PermissionDenied

if TYPE_CHECKING:
    from tierstore.blobs.redis.client import RedisClient

WANTED_POLICY = "volatile-lfu"
OLDEST = 6
"""The oldest major version that is supported."""


@dataclass(frozen=True, slots=True)
class RedisHealth:
    """The state of one server; ``None`` where it did not say, as to an ACL user without ``+info``.

    Attributes:
        node: ``host:port``, or the path of the socket.
        version: The version, such as ``7.0.15``.
        policy: The eviction policy (``maxmemory-policy``).
        max_memory_bytes: The memory limit (``maxmemory``); 0 for no limit.
        used_bytes: Bytes of memory in use.
        evicted: Keys evicted since it started.
        persistent: Whether it writes its data to disk.
        replica: Whether it only follows another server.
        findings: What is wrong and what to do about it, one sentence each.
    """

    node: str
    version: str | None
    policy: str | None
    max_memory_bytes: int | None
    used_bytes: int | None
    evicted: int | None
    persistent: bool | None
    replica: bool | None
    findings: tuple[str, ...]


def health_of(client: RedisClient) -> Sequence[RedisHealth]:
    """Ask every node that holds keys for its state.

    Raises:
        Unreachable, BackendError: A node does not answer.
        PermissionDenied: The user may not connect at all.
    """
    doing = "asking for its health"
    reports = []
    for address in client.nodes(doing):
        host, port = address
        node = f"{host}:{port}" if port else host
        client.run_on(address, doing, [("PING",)])  # so that a refusal below is about one command
        said: dict[str, str] = {}
        for command in (("INFO",), ("CONFIG", "GET", "save"), ("CONFIG", "GET", "appendonly")):
            try:
                [reply] = client.run_on(address, doing, [command])
            except PermissionDenied:
                continue
            said |= _parsed(reply)
        reports.append(_report(node, said))
    return reports


def _parsed(reply: bytes | Sequence[bytes]) -> dict[str, str]:
    """Return the names and values in an answer to INFO or to CONFIG GET."""
    if isinstance(reply, bytes):
        lines = reply.decode(errors="replace").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")
    texts = [item.decode(errors="replace") for item in reply]
    return {f"config {name}": value for name, value in zip(texts[::2], texts[1::2], strict=True)}


def _report(node: str, said: dict[str, str]) -> RedisHealth:
    version, policy = said.get("redis_version"), said.get("maxmemory_policy")
    maxmemory = _number(said.get("maxmemory"))
    persistent = _persistent(said)
    replica = said["role"] == "slave" if "role" in said else None
    findings = []
    if version is None:
        findings.append(
            "Its version, eviction policy and memory limit are unknown: this user may not run "
            "INFO; allow +info in its ACL, or check them as another user."
        )
    elif int(version.partition(".")[0]) < OLDEST:
        findings.append(f"Version {version} is too old: use {OLDEST}.0 or newer.")
    if policy is not None and policy != WANTED_POLICY:
        findings.append(
            f"Its eviction policy is {policy}: set maxmemory-policy {WANTED_POLICY}, which evicts "
            "what is read least and keeps the heat."
        )
    if maxmemory == 0:
        findings.append(
            "It has no memory limit and grows until the machine is full: set maxmemory."
        )
    if persistent:
        findings.append(
            "It writes its data to disk, which a cache need not: set save '' and appendonly no."
        )
    if replica:
        findings.append("It is a read-only replica: give the address of the primary.")
    return RedisHealth(
        node,
        version,
        policy,
        maxmemory,
        _number(said.get("used_memory")),
        _number(said.get("evicted_keys")),
        persistent,
        replica,
        tuple(findings),
    )


def _persistent(said: dict[str, str]) -> bool | None:
    if said.get("aof_enabled") == "1" or said.get("config appendonly") == "yes":
        return True
    save = said.get("config save")
    return None if save is None else bool(save)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
