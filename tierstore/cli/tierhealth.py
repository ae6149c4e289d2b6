"""Tiers and their servers in the output of ``doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierstore.cli.kit.output import size
from tierstore.cli.schemas import health as schemas
from tierstore.cli.schemas import tiers as tier_schemas
from tierstore.shown import shown_url

if TYPE_CHECKING:
    from tierstore.admin.health import TierHealth
    from tierstore.wiring.below import Disk, Server


def tier_health_json(tier: TierHealth) -> schemas.TierHealthJson:
    """Return a tier's health as it is printed."""
    return schemas.TierHealthJson(
        name=tier.spec.name,
        role=tier.spec.role,
        url=shown_url(tier.spec.url),
        enabled=tier.enabled,
        error=tier.error,
        disk=disk_json(tier.disk),
        servers=[server_json(server) for server in tier.servers],
        problems=list(tier.problems),
    )


def disk_json(disk: Disk | None) -> tier_schemas.DiskJson | None:
    """Return a file system as it is printed."""
    if disk is None:
        return None
    return tier_schemas.DiskJson(
        kind=disk.kind,
        network=disk.network,
        total_bytes=disk.total_bytes,
        free_bytes=disk.free_bytes,
    )


def disk_text(disk: tier_schemas.DiskJson) -> str:
    """Return what ``doctor`` and ``df`` say of a file system."""
    where = f"on {disk.kind}, " if disk.kind else ""
    return f"{where}{size(disk.free_bytes)} of {size(disk.total_bytes)} free"


def server_json(server: Server) -> tier_schemas.ServerJson:
    """Return a server as it is printed."""
    return tier_schemas.ServerJson(
        node=server.node,
        version=server.version,
        used_bytes=server.used_bytes,
        limit_bytes=server.limit_bytes,
        evicted=server.evicted,
        max_value_bytes=server.max_item_bytes,
        policy=server.policy,
        persistent=server.persistent,
    )


def tier_facts(tier: schemas.TierHealthJson) -> list[tuple[str, str]]:
    """Return the lines on a tier that ``doctor`` prints for people."""
    name = f"tier {tier.name}"
    if not tier.enabled:
        return [(name, f"{tier.role}, not used by this node: enabled = false; {tier.url}")]
    if tier.error:
        return [(name, f"{tier.role}, NOT usable: {tier.error}")]
    found = [(name, f"{tier.role}, reachable and writable; {tier.url}")]
    if tier.disk is not None:
        found.append((name, disk_text(tier.disk)))
    found += [(name, _server(server)) for server in tier.servers]
    return found


def _server(server: tier_schemas.ServerJson) -> str:
    said = [f"version {server.version or 'unknown'}"]
    if server.used_bytes is not None:
        limit = "no limit" if not server.limit_bytes else size(server.limit_bytes)
        said.append(f"{size(server.used_bytes)} of {limit}")
    if server.policy is not None:
        said.append(f"evicts by {server.policy}")
    if server.max_value_bytes is not None:
        said.append(f"values up to {size(server.max_value_bytes)}")
    if server.persistent is not None:
        said.append("writes to disk" if server.persistent else "in memory only")
    if server.evicted is not None:
        said.append(f"{server.evicted} evicted so far")
    return f"{server.node}: {', '.join(said)}"
