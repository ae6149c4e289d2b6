"""Commands that remove versions and bring them back: rm, forget, undelete."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from tierstore.cli import purge as purging
from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import NOT_ENABLED, Column, counted, table, when
from tierstore.cli.kit.params import argument, option
from tierstore.cli.kit.skipped import Skipped
from tierstore.cli.models import REF_HELP, Message, Ref, version_fields, version_json
from tierstore.cli.schemas import removal as schemas
from tierstore.cli.schemas.core import VersionJson
from tierstore.config import parse_seconds
from tierstore.errors import UsageError

if TYPE_CHECKING:
    from tierstore.modelstore.reclaim.forgetting import Forgotten
    from tierstore.modelstore.reclaim.removedlist import RemovedVersion
    from tierstore.modelstore.reclaim.rules import Keep
    from tierstore.modelstore.store import Store

KeepLast = Annotated[int | None, option(metavar="N", help="Keep the newest N versions.")]
KeepWithin = Annotated[
    str | None,
    option(metavar="TIME", help="Keep versions of this time before the newest: 12h, 30d."),
]
KeepHourly = Annotated[
    int | None, option(metavar="N", help="Keep the newest version of each of N hours.")
]
KeepDaily = Annotated[int | None, option(metavar="N", help="The same by days (UTC).")]
KeepWeekly = Annotated[int | None, option(metavar="N", help="The same by weeks.")]
KeepMonthly = Annotated[int | None, option(metavar="N", help="The same by months.")]
KeepYearly = Annotated[int | None, option(metavar="N", help="The same by years.")]
KeepTag = Annotated[
    list[str] | None,
    option(metavar="GLOB", help="Keep versions with such an alias or message; may be repeated."),
]


def remove(
    cli: Cli,
    refs: Annotated[list[str], argument(metavar="REF...", help=REF_HELP)],
    every: Annotated[
        bool, option("--all", help="Remove all versions of each MODEL that is named.")
    ] = False,
    force: Annotated[
        bool, option("--force", help="Remove the newest version of a model as well.")
    ] = False,
    purge: Annotated[
        bool,
        option("--purge", help="For good: delete the bytes everywhere, with a receipt."),
    ] = False,
    yes: Annotated[bool, option("--yes", help="With --purge: do not ask.")] = False,
    dry_run: Annotated[
        bool, option("--dry-run", help="With --purge: say what would go, and change nothing.")
    ] = False,
    message: Message = "",
) -> None:
    """Remove versions, with their variants; all of them or none.

    They are not found any more; 'undelete' brings them back within 7 days, or the window that is
    set. Refused for what an alias, rollout, release, pin, reader or patch needs.

    A version whose entry is lost is given up, and by MODEL@N+NAME what the log of that variant has
    lost.

    With --purge there is no way back: what nothing else needs goes from every tier and cache at
    once, and a receipt says what went, what is left and why. Exits with 3 while anything is left,
    or a node has not answered; 'purge show' prints the receipt again, 'purge run' and agents go on.
    """
    if every and (named := [ref for ref in refs if "@" in ref]):
        raise UsageError(f"--all takes names of models, and {named[0]} names a version")
    if dry_run and not purge:
        raise UsageError("--dry-run goes with --purge: what rm removes 'undelete' brings back")
    if purge and dry_run:
        purging.plan(cli, refs, every=every, force=force)
        return
    if purge:
        purging.purge(cli, refs, every=every, force=force, yes=yes, message=message)
        return
    with cli.open() as store:
        if every:
            gone = store.remove_model(*refs, message=message)
        else:
            gone = store.remove(*refs, force=force, message=message)
        wanted = {str(version) for version in gone}
        found = [
            one
            for model in dict.fromkeys(version.model for version in gone)
            for one in store.deleted(model)
            if str(one.version) in wanted
        ]
    _show_deleted(cli, found, "what the logs of these variants had lost is given up")


def undelete(cli: Cli, ref: Ref, message: Message = "") -> None:
    """Bring back a version that was removed, with its variants."""
    with cli.open() as store:
        version = store.undelete(ref, message=message)
    cli.out.show(version_json(version), [str(version)], lambda: print(f"{version} is back"))


def show_deleted(cli: Cli, store: Store, model: str | None) -> None:
    """Print what 'ls --deleted' lists; of all models those that can be read."""
    from tierstore.modelstore.reclaim.removedlist import RemovedListing

    of = f" of {model}" if model else ""
    found: list[RemovedVersion] = []
    skipped = Skipped()
    if model is not None:
        found = store.deleted(model)
    else:
        listing = RemovedListing(store._names)
        for name in store._parts.home.models():
            with skipped.unless_done(name):
                found += listing.of(name)
    _show_deleted(cli, found, f"no version{of} is removed")
    skipped.tell()


def _show_deleted(cli: Cli, found: Sequence[RemovedVersion], none: str) -> None:
    data = schemas.Deleted(
        versions=[
            schemas.DeletedVersion(
                **version_fields(one.version),
                removed=one.removed,
                removed_by=one.who,
                reason=one.message,
                until=None if one.is_purged else one.until,
            )
            for one in found
        ]
    )

    def text() -> None:
        titles = ("VERSION", "REMOVED (UTC)", "WHO", "BACK UNTIL (UTC)", "REASON")
        rows = [
            (
                str(one.version),
                when(one.removed),
                one.who,
                "never" if one.is_purged else when(one.until),
                one.message,
            )
            for one in found
        ]
        if rows:
            table([Column(title) for title in titles], rows)
        else:
            print(none)

    cli.out.show(data, [str(one.version) for one in found], text)


def forget(
    cli: Cli,
    models: Annotated[list[str], argument(metavar="MODEL...", help="Models.")],
    keep_last: KeepLast = None,
    keep_within: KeepWithin = None,
    keep_hourly: KeepHourly = None,
    keep_daily: KeepDaily = None,
    keep_weekly: KeepWeekly = None,
    keep_monthly: KeepMonthly = None,
    keep_yearly: KeepYearly = None,
    keep_tag: KeepTag = None,
    dry_run: Annotated[
        bool, option("--dry-run", help="Only show what stays, and by which rule.")
    ] = False,
    yes: Annotated[
        bool, option("--yes", help="Remove however many versions the rules do not keep.")
    ] = False,
    most_percent: Annotated[
        float,
        option(metavar="N", help="Stop if more percent of a model's versions would go."),
    ] = 20.0,
    message: Message = "",
) -> None:
    """Remove the versions of models that no rule keeps.

    The newest version stays in any case, and so do all that 'rm' refuses to remove, that a rollback
    goes back to, and that an alias pointed to in the last 30 days, or the time that 'retention set
    --alias-history' gives. Patches stay for 7 days, and
    while they are among the newest 64 versions.

    A model that cannot be looked at is skipped, and the command says so at its end.
    """
    keep = keep_of(
        keep_last, keep_within, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly,
        keep_tag,
    )  # fmt: skip
    most = 100.0 if yes else most_percent
    found: list[Forgotten] = []
    skipped = Skipped()
    with cli.open() as store:
        for model in models:
            with skipped.unless_done(model):
                found.append(
                    store.forget(model, **keep, dry_run=dry_run, most_percent=most, message=message)
                )
        enabled = store.reclaim.is_enabled
    if not found:
        skipped.tell()
    data = schemas.Forgot(enabled=enabled, models=[forgotten_json(one) for one in found])
    ids = [str(version) for one in found for version in one.removed]
    cli.out.show(data, ids, lambda: print_forgotten(found, enabled=enabled))
    skipped.tell()


def keep_of(
    last: int | None,
    within: str | None,
    hourly: int | None,
    daily: int | None,
    weekly: int | None,
    monthly: int | None,
    yearly: int | None,
    tags: list[str] | None,
) -> Keep:
    """Return rules as ``Store.forget`` takes them."""
    return {
        "keep_last": last,
        "keep_within": None if within is None else timedelta(seconds=parse_seconds(within)),
        "keep_hourly": hourly,
        "keep_daily": daily,
        "keep_weekly": weekly,
        "keep_monthly": monthly,
        "keep_yearly": yearly,
        "keep_tag": tags or [],
    }


def forgotten_json(one: Forgotten) -> schemas.ForgottenJson:
    """Return what rules made of a model as it is printed."""
    return schemas.ForgottenJson(
        model=one.model,
        dry_run=one.dry_run,
        kept=[
            schemas.Kept(**version_fields(kept.version), reasons=list(kept.reasons))
            for kept in one.kept
        ],
        removed=[VersionJson(**version_fields(version)) for version in one.removed],
    )


def print_forgotten(found: Sequence[Forgotten], *, enabled: bool) -> None:
    """Print which versions stay, and why, and which go."""
    rows = [
        (str(version), when(version.created), what, why, version.message)
        for one in found
        for version, what, why in sorted(
            [
                *((kept.version, "stays", ", ".join(kept.reasons)) for kept in one.kept),
                *((gone, "would go" if one.dry_run else "removed", "") for gone in one.removed),
            ],
            key=lambda row: -row[0].number,
        )
    ]
    table([Column(title) for title in ("VERSION", "CREATED (UTC)", "", "WHY", "MESSAGE")], rows)
    gone = sum(len(one.removed) for one in found)
    dry = any(one.dry_run for one in found)
    print(f"\n{counted(gone, 'version')} {'would be removed' if dry else 'removed'}")
    if not enabled:
        print(NOT_ENABLED)
