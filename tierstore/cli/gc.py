"""The command that collects garbage: gc."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import click
from click.exceptions import Exit

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import NOT_ENABLED, Column, counted, printable, size, table, when
from tierstore.cli.kit.params import option
from tierstore.cli.kit.times import duration
from tierstore.cli.schemas import gc as schemas
from tierstore.cli.schemas.core import LastGc
from tierstore.errors import UsageError
from tierstore.shown import duration_text, time_text

if TYPE_CHECKING:
    from tierstore.cli.kit.progress import ProgressBar
    from tierstore.modelstore.reclaim.explain import Share
    from tierstore.modelstore.reclaim.feature import SeenWriter
    from tierstore.modelstore.reclaim.report import Report
    from tierstore.modelstore.store import Store

_STAYS = ("live", "chain", "base", "leased")
_SHOWN = 20
_EXPLAINED = {
    "chain": "below a patch",
    "base": "base of deltas",
    "leased": "being read",
    "window": "removed",
    "waiting": "garbage",
    "writing": "garbage",
    "down": "garbage",
    "condemned": "garbage",
    "deleted": "to be deleted",
    "foreign": "not ours",
}


Enable = Annotated[
    bool,
    option("--enable", help="Allow removal and collection in this store, for good."),
]
Moved = Annotated[
    bool,
    option(
        "--moved",
        help="Make this the home that deletes in the tiers, as it was moved or restored.",
    ),
]
Yes = Annotated[bool, option("--yes", help="With --enable and --moved: do not ask.")]
Wait = Annotated[
    str,
    option(
        metavar="TIME",
        help="With --enable: time to wait for saves that began before; 0 if there are none.",
    ),
]
DryRun = Annotated[bool, option("--dry-run", help="Only show what would be deleted.")]
Explain = Annotated[
    bool,
    option("--explain", help="Change nothing; say why every byte of every tier is there."),
]
NoRepack = Annotated[
    bool,
    option("--no-repack", help="Leave packs as they are of which much is waste."),
]
Grace = Annotated[
    str,
    option(metavar="TIME", help="Time that packs of unfinished saves stay: 12h, 7d, or 0."),
]
Window = Annotated[
    str | None,
    option(
        metavar="TIME",
        help="Time in which a removal can be undone, instead of what 'retention' says: or 0.",
    ),
]
MaxBytes = Annotated[
    str | None,
    option(metavar="SIZE", help="Delete at most this much, counted in all tiers: 1TB."),
]
MaxTime = Annotated[
    str | None, option(metavar="TIME", help="Begin no deletions after this time: 30m.")
]


def gc(
    cli: Cli,
    enable: Enable = False,
    moved: Moved = False,
    yes: Yes = False,
    wait: Wait = "4h",
    dry_run: DryRun = False,
    explain: Explain = False,
    no_repack: NoRepack = False,
    grace: Grace = "1d",
    window: Window = None,
    max_bytes: MaxBytes = None,
    max_time: MaxTime = None,
) -> None:
    """Delete what nothing needs any more, in every tier.

    What is needed of packs of which more than a fifth is waste goes into new packs; what lacks
    something is healed first. It can be stopped at any moment, and run while the store is in use.
    Exits with 3 when a limit ended it, or a tier could not be asked or did not delete something:
    the next run goes on.
    """
    from tierstore.config import parse_size

    if enable or moved:
        if dry_run or explain or max_bytes or max_time or window or (enable and moved):
            raise UsageError(
                "--enable only allows collection, and --moved only says where it deletes: give one "
                "alone, then run gc"
            )
        if enable:
            _enable(cli, wait, yes=yes)
        else:
            _take_over(cli, yes=yes)
        return
    until = None if window is None else duration(window)
    if explain:
        _explain(cli, duration(grace), until)
        return
    cli.hold_tier_warnings()
    with cli.open() as store, cli.progress("collecting garbage") as progress:
        report = store.reclaim.run(
            dry_run=dry_run,
            repack=not no_repack,
            grace=duration(grace),
            window=until,
            max_bytes=None if max_bytes is None else parse_size(max_bytes),
            max_time=None if max_time is None else duration(max_time),
            progress=progress,
        )
        data = _json(store, report)
    deleted = [one.pack.hex() for one in report.of("deleted")]
    cli.out.show(data, deleted, lambda: _print(data))
    cli.out.told_down(report.down)
    if report.stopped or report.down or report.refused:
        raise Exit(3)


def _enable(cli: Cli, wait: str, *, yes: bool) -> None:
    wait_s = duration(wait).total_seconds()
    talks = not (cli.out.json or cli.out.quiet)
    with cli.open() as store:
        writers, was = store.reclaim.writers(), store.reclaim.is_enabled
        if talks:
            _print_writers(writers, was=was)
        if not (yes or was):
            _ask(talks, "--enable cannot be undone", "Enable it for good?")
        with cli.progress("waiting for saves that began before") as progress:
            waiting = _Waiting(progress, wait, talks=talks)
            try:
                store.reclaim.enable(wait_s=wait_s, waiting=waiting)
            except KeyboardInterrupt as error:
                if waiting.goes_on is not None:
                    error.args = (waiting.goes_on,)
                raise
        data = schemas.GcEnabled(
            url=store.url,
            writers=[schemas.GcWriter(who=w.who, tool=w.tool, last=w.last) for w in writers],
        )
    cli.out.show(
        data,
        [data.url],
        lambda: print("removal is enabled: 'tierstore rm' and 'tierstore gc' work from now on"),
    )


def _take_over(cli: Cli, *, yes: bool) -> None:
    talks = not (cli.out.json or cli.out.quiet)
    with cli.open() as store:
        if talks:
            print(f"{store.url} deletes in its tiers what it does not know,")
            print("what is saved in any other home with the same tiers among it. That one deletes")
            print("nothing there any more. See that nobody uses it.")
        if not yes:
            why = "--moved lets this home delete what another one may need"
            _ask(talks, why, "Does nobody use another home with these tiers?")
        data = schemas.GcMoved(url=store.url, tiers=store.reclaim.take_over())
    names = ", ".join(data.tiers)
    cli.out.show(data, data.tiers, lambda: print(f"this home deletes in {names} from now on"))


def _ask(talks: bool, why: str, question: str) -> None:
    if not talks or sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{why}, so it asks, and nobody can answer here: give --yes")
    click.confirm(question, abort=True)


class _Waiting:
    """Says until when older saves are waited for, and how long that still is.

    Args:
        progress: Shows what is left.
        wait: The whole time, as it was given.
        talks: Whether the end is printed as well.

    Attributes:
        goes_on: What to say when the wait is interrupted; ``None`` before it began.
    """

    def __init__(self, progress: ProgressBar, wait: str, *, talks: bool) -> None:
        self._progress, self._wait, self._talks = progress, wait, talks
        self.goes_on: str | None = None

    def __call__(self, left_s: float) -> None:
        """Take in how many seconds are left."""
        left = timedelta(seconds=math.ceil(left_s))
        until = time_text(datetime.now(UTC) + left)
        if self._talks and self.goes_on is None:
            began = time_text(datetime.now(UTC) + left - duration(self._wait))
            print(
                f"Saves that began before {began}\n"
                f"are waited for until {until} (--wait {self._wait}).",
                flush=True,
            )
        self.goes_on = (
            "nothing can be removed yet. The wait counts from when it was allowed, so 'tierstore "
            f"gc --enable --yes --wait {self._wait}' ends at {until}, or at once after that"
        )
        self._progress.describe(
            f"waiting for saves that began before: {duration_text(left)} left, until {until}"
        )


def _explain(cli: Cli, grace: timedelta, window: timedelta | None) -> None:
    cli.hold_tier_warnings()
    with cli.open() as store, cli.progress("looking at everything"):
        found = store.reclaim.explain(grace=grace, window=window)
        enabled = store.reclaim.is_enabled
        tiers = [tier.name for tier in store._parts.home.packs.tiers]
    data = schemas.GcExplained(
        tiers=[
            schemas.GcTierExplained(
                name=name,
                bytes=sum(share.bytes for share in found.of(name)),
                shares=[_share_json(share) for share in found.of(name)],
                error=found.down.get(name),
            )
            for name in tiers
        ],
        enabled=enabled,
    )
    cli.out.show(data, [], lambda: _print_explained(data))
    cli.out.told_down(found.down)
    if found.down:
        raise Exit(3)


def _share_json(share: Share) -> schemas.GcShare:
    return schemas.GcShare(
        kind=share.kind,
        why=share.why,
        objects=share.objects,
        bytes=share.bytes,
        unpaid_gb_months=f"{share.unpaid_gb_months:.6g}",
        fee=None if share.fee is None else f"{share.fee:.6g}",
    )


def _print_explained(data: schemas.GcExplained) -> None:
    rows = []
    for tier in data.tiers:
        if tier.error is not None:
            rows.append((tier.name, "-", "-", "DOWN", tier.error))
            continue
        for share in _shortened(tier.shares):
            why = share.why
            if float(share.unpaid_gb_months):
                fee = "" if share.fee is None else f", {share.fee} in its prices"
                why += f"; deleted now, {share.unpaid_gb_months} GB-months are still charged{fee}"
            what = _EXPLAINED.get(share.kind, share.kind)
            rows.append((tier.name, size(share.bytes), str(share.objects or "-"), what, why))
        rows.append((tier.name, size(tier.bytes), "", "in all", ""))
    columns = [Column("TIER"), Column("SIZE", right=True), Column("OBJECTS", right=True)]
    table([*columns, Column("WHAT"), Column("WHY")], rows)
    if not data.enabled:
        print(f"\n{NOT_ENABLED}")


def _shortened(shares: Sequence[schemas.GcShare]) -> list[schemas.GcShare]:
    """Return the largest shares of each kind, and one for all others of that kind."""
    found: list[schemas.GcShare] = []
    for kind, each in groupby(shares, lambda share: share.kind):
        same = list(each)
        if kind == "metadata" or len(same) <= _SHOWN + 1:
            found += same
            continue
        rest = same[_SHOWN:]
        fees = [Decimal(share.fee) for share in rest if share.fee is not None]
        found += same[:_SHOWN]
        found.append(
            schemas.GcShare(
                kind=kind,
                why=f"{len(rest)} other reasons, which --json lists",
                objects=sum(share.objects for share in rest),
                bytes=sum(share.bytes for share in rest),
                unpaid_gb_months=str(sum(Decimal(share.unpaid_gb_months) for share in rest)),
                fee=str(sum(fees)) if fees else None,
            )
        )
    return found


def _print_writers(writers: Sequence[SeenWriter], *, was: bool) -> None:
    rows = [
        (one.who, one.tool or "a save that runs now", when(one.last) if one.last else "now")
        for one in writers
    ]
    if rows:
        table([Column("WHO"), Column("WROTE WITH"), Column("LAST (UTC)")], rows)
        print()
    if was:
        print("removal is enabled already")
        return
    print("Versions of tierstore that know no removal can still read the store then, and")
    print("cannot write to it any more. There is no way back. Update whoever is")
    print("listed first. Then saves that began before are waited for: 4 hours, unless")
    print("--wait says otherwise.")
    print("Interrupted, it goes on when it is called again.")


def _json(store: Store, report: Report) -> schemas.Gc:
    left, amounts = report.left(), report.amounts()
    deleted = amounts.get("deleted")
    tiers = [tier.name for tier in store._parts.home.packs.tiers]
    return schemas.Gc(
        dry_run=report.dry_run,
        enabled=store.reclaim.is_enabled,
        deleted_packs=0 if deleted is None else deleted.packs,
        deleted_bytes=0 if deleted is None else deleted.bytes,
        condemned_packs=report.condemned,
        healed=report.healed,
        repacked_packs=report.repacked,
        waste_bytes=report.waste_bytes,
        rewritten_bytes=report.rewritten_bytes,
        lacking=list(report.lacking),
        stopped=report.stopped,
        tiers=[
            schemas.GcTier(
                name=name,
                freed_bytes=report.freed.get(name, 0),
                kept_bytes=report.kept.get(name, 0),
                holds=[
                    schemas.GcAmount(state=state, why=None, packs=one.packs, bytes=one.bytes)
                    for state, one in sorted(left.get(name, {}).items())
                ],
                refused=report.refused.get(name),
                error=report.down.get(name),
            )
            for name in tiers
        ],
        reasons=[
            schemas.GcAmount(state=state, why=why, packs=one.packs, bytes=one.bytes)
            for (state, why), one in sorted(report.reasons().items(), key=lambda of: -of[1].bytes)
            if state not in _STAYS
        ],
    )


def _print(data: schemas.Gc) -> None:
    columns = [Column("TIER"), Column("", right=True)]
    columns[1] = Column("WOULD FREE" if data.dry_run else "FREED", right=True)
    columns += [Column(title, right=True) for title in ("LIVE", "REMOVED", "GARBAGE")]
    table([*columns, Column("")], [_row(data, tier) for tier in data.tiers])
    if data.reasons:
        print()
        rows = [
            (_what(one.state, data.dry_run), str(one.packs), _known(one), one.why or "")
            for one in data.reasons[:_SHOWN]
        ]
        columns = [Column(""), Column("PACKS", right=True), Column("SIZE", right=True)]
        table([*columns, Column("WHY")], rows)
        if len(data.reasons) > _SHOWN:
            print(f"and {len(data.reasons) - _SHOWN} more, which --json lists")
    print()
    for line in _summary(data):
        print(printable(line))


def _row(data: schemas.Gc, tier: schemas.GcTier) -> tuple[str, ...]:
    if tier.error:
        return tier.name, size(tier.freed_bytes), "-", "-", "-", "DOWN"

    from tierstore.modelstore.reclaim.report import GARBAGE

    def of(*states: str) -> str:
        return size(sum(one.bytes for one in tier.holds if one.state in states))

    freed = of("deleted") if data.dry_run else size(tier.freed_bytes)
    return tier.name, freed, of(*_STAYS), of("window"), of(*GARBAGE), ""


def _known(amount: schemas.GcAmount) -> str:
    """Return the size of packs, ``-`` where only tiers that cannot be asked may have them."""
    return size(amount.bytes) if amount.bytes or amount.state != "down" else "-"


def _what(state: str, dry_run: bool) -> str:
    words = {"window": "removed", "deleted": "would go" if dry_run else "deleted"}
    return words.get(state, "garbage")


def _summary(data: schemas.Gc) -> list[str]:
    did = "would be deleted" if data.dry_run else "deleted"
    gone = sum(one.freed_bytes + one.kept_bytes for one in data.tiers)
    lines = []
    if data.deleted_packs:
        lines.append(f"{counted(data.deleted_packs, 'pack')} of {size(data.deleted_bytes)} {did}")
    if (besides := gone - data.deleted_bytes) > 0 and not data.dry_run:
        tiers = any(one.state == "down" for one in data.reasons)
        why = "copies of packs that other tiers may hold still" if tiers else "to make room"
        lines.append(f"{size(besides)} deleted: {why}")
    if not lines:
        lines.append(f"nothing {did}" if data.dry_run else "nothing was deleted")
    if data.healed:
        lines.append(f"{data.healed} chunks and layouts of what stays healed first")
    lines += [f"would be healed first: {what}" for what in data.lacking]
    if data.repacked_packs:
        did = f"would be repacked; waste in packs that stay is {size(data.waste_bytes)} in one tier"
        if not data.dry_run:
            did = f"repacked: {size(data.rewritten_bytes)} written anew"
        lines.append(f"{counted(data.repacked_packs, 'pack')} with much waste {did}")
    lines += [
        f"tier {one.name} cannot be asked, and what nothing needs there goes with a later run: "
        f"{one.error}"
        for one in data.tiers
        if one.error
    ]
    lines += [
        f"tier {one.name} did not delete everything, and what it still holds of these goes with a "
        f"later run: {one.refused}"
        for one in data.tiers
        if one.refused and not one.error
    ]
    lines += [
        f"tier {one.name} keeps what is deleted as older versions: {size(one.kept_bytes)} of these "
        "stay in its bucket until a lifecycle rule ends noncurrent versions"
        for one in data.tiers
        if one.kept_bytes
    ]
    if data.stopped:
        lines.append(f"{data.stopped}: {_to_go_on(data, gone)}")
    if not data.enabled:
        lines.append(NOT_ENABLED)
    return lines


def _to_go_on(data: schemas.Gc, gone: int) -> str:
    from tierstore.modelstore.reclaim.report import BYTES_REACHED

    if data.stopped == BYTES_REACHED and not (gone or data.deleted_packs or data.repacked_packs):
        return "nothing fits into it, so give a larger one, or none"
    return "run it again to go on"


def last_gc(store: Store) -> LastGc | None:
    """Return what the last collection left, as ``du`` and ``df`` print it."""
    last = store.reclaim.last()
    if last is None:
        return None
    garbage, removed = last.garbage.values(), last.removed.values()
    return LastGc(
        time=last.time,
        who=last.who,
        freed_bytes=sum(last.freed.values()),
        garbage_packs=sum(one.packs for one in garbage),
        garbage_bytes=sum(one.bytes for one in garbage),
        removed_packs=sum(one.packs for one in removed),
        removed_bytes=sum(one.bytes for one in removed),
    )


def print_last_gc(last: LastGc | None) -> None:
    """Print the line of ``du`` and ``df`` for garbage, if any was collected yet."""
    if last is not None:
        print(
            f"garbage {size(last.garbage_bytes)}, can be undeleted {size(last.removed_bytes)}, at "
            f"the last gc, {time_text(last.time)}"
        )
