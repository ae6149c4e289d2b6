"""The command on the space in tiers: df."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.exceptions import Exit

from tierstore.cli.gc import last_gc, print_last_gc
from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, printable, size, table
from tierstore.cli.schemas import tiers as schemas
from tierstore.cli.tierhealth import disk_json, disk_text, server_json

if TYPE_CHECKING:
    from tierstore.admin.survey import TierReport


def df(cli: Cli) -> None:
    """Show the space that each tier uses, and its quota.

    Durable tiers hold packs; this node's hot tier, Redis and Memcached hold chunks. 'tierstore du'
    shows what the versions are made of instead. Exits with 3 when a tier could not be asked.
    """
    with cli.open() as store, cli.progress("asking the tiers"):
        reports, last = store.admin.df(), last_gc(store)
    data = schemas.Df(tiers=[usage_json(report) for report in reports], last_gc=last)
    cli.out.show(data, [tier.name for tier in data.tiers], lambda: _print(data))
    cli.out.told_down({tier.name: tier.error for tier in data.tiers if tier.error})
    if any(tier.error for tier in data.tiers):
        raise Exit(3)


def usage_json(report: TierReport) -> schemas.TierUsageJson:
    """Return the usage of a tier as it is printed."""
    spec = report.spec
    return schemas.TierUsageJson(
        name=spec.name,
        role=spec.role,
        url=spec.url,
        state=spec.state,
        enabled=report.enabled,
        used_bytes=report.used_bytes,
        objects=report.objects,
        pinned_bytes=report.pinned_bytes,
        quota_bytes=report.quota_bytes,
        high_percent=spec.high,
        low_percent=spec.low,
        disk=disk_json(report.disk),
        servers=[server_json(server) for server in report.servers],
        error=report.error,
    )


def _print(data: schemas.Df) -> None:
    columns = [
        Column("TIER"),
        Column("ROLE"),
        Column("USED", right=True),
        Column("QUOTA", right=True),
        Column("USE", right=True),
        Column("KEPT AT", right=True),
        Column("PINNED", right=True),
        Column("HOLDS", right=True),
        Column(""),
    ]
    table(columns, [_row(tier) for tier in data.tiers])
    for tier in data.tiers:
        if tier.disk is not None:
            print(printable(f"{tier.name}: {disk_text(tier.disk)}"))
        if tier.error:
            print(printable(f"{tier.name}: {tier.error}"))
    print_last_gc(data.last_gc)


def _row(tier: schemas.TierUsageJson) -> tuple[str, ...]:
    known = [tier.used_bytes, tier.quota_bytes, tier.pinned_bytes]
    used, quota, pinned = ("-" if count is None else size(count) for count in known)
    share = "-"
    if tier.used_bytes is not None and tier.quota_bytes:
        share = f"{100 * tier.used_bytes / tier.quota_bytes:.0f} %"
    bounded = tier.quota_bytes is not None and tier.role != "shared"
    noun = "chunk" if tier.role in ("hot", "shared") else "pack"
    note = "DOWN" if tier.error else "" if tier.state == "active" else tier.state
    return (
        tier.name,
        tier.role,
        used,
        quota,
        share,
        f"{tier.low_percent}-{tier.high_percent} %" if bounded else "-",
        pinned,
        "-" if tier.objects is None else counted(tier.objects, noun),
        note if tier.enabled else "off here",
    )
