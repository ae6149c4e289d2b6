"""The command top: shows what is read from which tier, as it happens."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, printable, size, table
from tierstore.cli.kit.params import option
from tierstore.cli.schemas import tiers as schemas

if TYPE_CHECKING:
    from tierstore.admin.overview import PackHeat, TierActivity, Top
    from tierstore.admin.survey import TierReport
    from tierstore.modelstore.store import Store

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


def top(
    cli: Cli,
    once: Annotated[
        bool, option("--once", help="Print once and exit, as --json, -q and a pipe do.")
    ] = False,
    interval: Annotated[
        int, option(metavar="SECONDS", min=1, max=3600, help="Seconds between two updates.")
    ] = 2,
    count: Annotated[
        int,
        option("--count", "-n", metavar="N", min=0, max=100, help="Number of packs to show."),
    ] = 10,
) -> None:
    """Show what is read from which tier, and the packs read most.

    Hit ratios and bytes are those of this node's processes in the last hour; packs are ranked by
    the reads of all nodes. Press Ctrl-C to end. Printed once, it exits with 3 when a tier could not
    be asked.
    """
    from tierstore.admin.overview import Watch

    cli.hold_tier_warnings()
    with cli.open() as store:
        watch = Watch(store, count)
        if once or cli.out.json or cli.out.quiet or not sys.stdout.isatty():
            with cli.progress("asking the tiers"):
                data = _json(store, watch.look())
            cli.out.show(data, [leader.pack for leader in data.leaders], lambda: _print(data))
            down = {tier.name: tier.error for tier in data.tiers if tier.error}
            cli.out.told_down(down)
            if down:
                raise Exit(3)
            return
        with contextlib.suppress(KeyboardInterrupt), _screen():
            while True:
                _show(_json(store, watch.look()))
                time.sleep(interval)


def _json(store: Store, seen: Top) -> schemas.Top:
    now = seen.overview
    return schemas.Top(
        store=store.url,
        node=store.node,
        time=seen.time,
        running=now.alive,
        processes=now.processes,
        served_bytes=now.served_bytes,
        tiers=[_tier_json(one, seen.reports.get(one.name), now.served_bytes) for one in now.tiers],
        leaders=[_leader_json(leader) for leader in seen.hottest],
    )


def _tier_json(
    one: TierActivity, report: TierReport | None, served: int
) -> schemas.TierActivityJson:
    counts = one.counts
    return schemas.TierActivityJson(
        name=one.name,
        role=one.role,
        used_bytes=None if report is None else report.used_bytes,
        quota_bytes=None if report is None else report.quota_bytes,
        hits=counts.hits,
        misses=counts.misses,
        hit_ratio=one.hit_ratio,
        served_bytes=counts.hit_bytes,
        served_share=counts.hit_bytes / served if served else None,
        bytes_per_second=one.bytes_per_s,
        admitted=counts.admitted,
        evicted=counts.evicted,
        rejected=counts.rejected,
        damaged=counts.damaged,
        errors=counts.errors,
        skipped=counts.breaker_open,
        error=None if report is None else report.error,
    )


def _leader_json(leader: PackHeat) -> schemas.LeaderJson:
    return schemas.LeaderJson(
        pack=leader.pack.hex(),
        heat_bytes=round(leader.heat_bytes),
        bytes=leader.size_bytes,
        tiers=list(leader.tiers),
        versions=list(leader.versions),
    )


def _print(data: schemas.Top) -> None:
    clock = f"{data.time.astimezone(UTC):%H:%M:%S} UTC"
    running = f"{counted(data.running, 'process')} reading now"
    print(printable(f"{data.store}  {data.node}  {clock}"))
    print(f"{running}, {data.processes} in the last hour")
    print()
    columns = [
        Column("TIER"),
        Column("ROLE"),
        Column("HOLDS", right=True),
        Column("FULL", right=True),
        Column("HIT RATE", right=True),
        Column("SERVED", right=True),
        Column("SHARE", right=True),
        Column("NOW", right=True),
        Column("FAILED", right=True),
        Column(""),
    ]
    table(columns, [_row(tier) for tier in data.tiers])
    for tier in data.tiers:
        if tier.error:
            print(printable(f"{tier.name}: {tier.error}"))
    if not data.served_bytes:
        print("\nno process of this node has read from the store in the last hour")
    if data.leaders:
        print("\nmost read recently, by all nodes:")
        columns = [
            Column("PACK"),
            Column("READ", right=True),
            Column("SIZE", right=True),
            Column("TIMES", right=True),
            Column("IN"),
            Column("FOR"),
        ]
        is_down = any(tier.error for tier in data.tiers)
        table(columns, [_leader_row(leader, is_down=is_down) for leader in data.leaders])


def _row(tier: schemas.TierActivityJson) -> tuple[str, ...]:
    full = "-"
    if tier.used_bytes is not None and tier.quota_bytes:
        full = f"{100 * tier.used_bytes / tier.quota_bytes:.0f} %"
    state = "DOWN" if tier.error else "skipped" if tier.skipped else ""
    return (
        tier.name,
        tier.role,
        "-" if tier.used_bytes is None else size(tier.used_bytes),
        full,
        "-" if tier.hit_ratio is None else f"{100 * tier.hit_ratio:.1f} %",
        size(tier.served_bytes),
        "-" if tier.served_share is None else f"{100 * tier.served_share:.0f} %",
        f"{size(round(tier.bytes_per_second))}/s" if tier.bytes_per_second else "-",
        str(tier.errors + tier.damaged),
        state,
    )


def _leader_row(leader: schemas.LeaderJson, *, is_down: bool) -> tuple[str, ...]:
    times = f"{leader.heat_bytes / leader.bytes:.1f}" if leader.bytes else "-"
    more = f" and {len(leader.versions) - 1} more" if len(leader.versions) > 1 else ""
    return (
        leader.pack[:12],
        size(leader.heat_bytes),
        "-" if leader.bytes is None else size(leader.bytes),
        times,
        ", ".join(leader.tiers) or ("not known" if is_down else "nowhere"),
        leader.versions[0] + more if leader.versions else "no version",
    )


class _Screenful(io.StringIO):
    """Takes the place of a terminal and keeps what is printed."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """Switch to the terminal's second screen without a cursor, and back at the end."""
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _show(data: schemas.Top) -> None:
    text = _Screenful()
    with contextlib.redirect_stdout(text):
        _print(data)
    lines: Sequence[str] = text.getvalue().splitlines()[: shutil.get_terminal_size().lines - 1]
    sys.stdout.write(_HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in lines) + _REST)
    sys.stdout.flush()
