"""Commands on stored rules and windows: retention set, rm, ls, apply."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import NOT_ENABLED, counted, facts
from tierstore.cli.kit.params import argument, option
from tierstore.cli.kit.skipped import Skipped
from tierstore.cli.kit.times import duration
from tierstore.cli.models import Message
from tierstore.cli.removal import (
    KeepDaily,
    KeepHourly,
    KeepLast,
    KeepMonthly,
    KeepTag,
    KeepWeekly,
    KeepWithin,
    KeepYearly,
    forgotten_json,
    keep_of,
    print_forgotten,
)
from tierstore.cli.schemas import removal as schemas
from tierstore.errors import Damaged, NotFound
from tierstore.shown import duration_text, time_text

if TYPE_CHECKING:
    from tierstore.modelstore.reclaim.forgetting import Forgotten
    from tierstore.modelstore.reclaim.retention import ModelRetention, Outlook
    from tierstore.modelstore.store import Store

WindowOption = Annotated[
    str | None,
    option(metavar="TIME", help="Time in which a removal can be undone: 7d, 12h, or 0."),
]
AliasHistoryOption = Annotated[
    str | None,
    option(metavar="TIME", help="Time that a version stays after an alias left it: 30d, 0."),
]
RetentionModel = Annotated[
    str | None,
    argument(metavar="MODEL", help="The model; all models without it."),
]


def set_rules(
    cli: Cli,
    model: RetentionModel = None,
    window: WindowOption = None,
    alias_history: AliasHistoryOption = None,
    keep_last: KeepLast = None,
    keep_within: KeepWithin = None,
    keep_hourly: KeepHourly = None,
    keep_daily: KeepDaily = None,
    keep_weekly: KeepWeekly = None,
    keep_monthly: KeepMonthly = None,
    keep_yearly: KeepYearly = None,
    keep_tag: KeepTag = None,
    message: Message = "",
) -> None:
    """Set what is kept of a model, and for how long it can be undone.

    It replaces what was set before. Agents keep the rules: for one window they only report what
    they would remove.
    """
    keep = keep_of(
        keep_last, keep_within, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly,
        keep_tag,
    )  # fmt: skip
    times: dict[str, timedelta | None] = {
        "window": None if window is None else duration(window),
        "alias_history": None if alias_history is None else duration(alias_history),
    }
    with cli.open() as store:
        done = store.retention.set(model, **times, message=message, **keep)
        shown = _Shown(store, [done])
    cli.out.show(shown.json()[0], [_name(done)], shown.print)


def remove(cli: Cli, model: RetentionModel = None) -> None:
    """Remove what is set for a model.

    What is set for all models holds for it then.
    """
    with cli.open() as store:
        was_set = store.retention.remove(model)
    name = "all models" if model is None else f"{model} itself"
    said = f"nothing is set for {name} any more" if was_set else f"nothing was set for {name}"
    cli.out.show(schemas.RetentionRemoved(model=model), [model or "-"], lambda: print(said))


def ls(cli: Cli) -> None:
    """List what is kept of models, and how long removals can be undone.

    What is damaged is listed as such, and ends the command with 4 once all is shown.
    """
    with cli.open() as store:
        found = store.retention.all()
        shown = _Shown(store, found)
    data = schemas.Retentions(retentions=shown.json())
    cli.out.show(data, [_name(one) for one in found], shown.print)
    problems = [one.problem for one in found if one.problem is not None]
    if problems:
        raise Damaged("; ".join(problems))


def apply(
    cli: Cli,
    models: Annotated[
        list[str] | None,
        argument(
            metavar="MODEL...",
            help="Models; without it all with rules.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, option("--dry-run", help="Only show what stays, and by which rule.")
    ] = False,
    yes: Annotated[
        bool,
        option(
            "--yes",
            help="Remove however many versions the rules do not keep, in their first window too.",
        ),
    ] = False,
) -> None:
    """Remove what the stored rules do not keep, as agents do.

    For one window after rules were set it only reports. Where over 20 percent of the versions would
    go that there were when the rules were set or last removed any, it removes nothing, and neither
    do agents, until this is run with --yes. What was saved since does not count.
    """
    found: list[Forgotten] = []
    waiting: list[str] = []
    skipped = Skipped()
    most = 100.0 if yes else 20.0
    with cli.open() as store:
        enabled = store.reclaim.is_enabled
        for model in _with_rules(store, models):
            with skipped.unless_done(model):
                done = store.retention.apply(model, most_percent=most, at_once=yes, dry_run=dry_run)
                if done is None:
                    continue
                found.append(done)
                if done.dry_run and not dry_run and (due := store.retention.due(model)):
                    from_text = time_text(due)
                    waiting.append(
                        f"the rules of {model} remove from {from_text} on, or now with --yes"
                    )
    data = schemas.Forgot(enabled=enabled, models=[forgotten_json(one) for one in found])
    gone = [one for one in found if dry_run or not one.dry_run]
    ids = [str(version) for one in gone for version in one.removed]
    cli.out.show(data, ids, lambda: _print_applied(found, waiting, enabled=enabled))
    skipped.tell()


def _with_rules(store: Store, models: Sequence[str] | None) -> list[str]:
    """Return the models that rules are to be applied to: those that are named have some."""
    found = store.retention.with_rules(models)
    for model in models or ():
        if model not in found:
            raise NotFound(f"no rules are set for {model!r}; 'tierstore retention ls' lists all")
    return found


def _print_applied(found: Sequence[Forgotten], waiting: Sequence[str], *, enabled: bool) -> None:
    print_forgotten(found, enabled=enabled)
    for line in waiting:
        print(line)


def _name(one: ModelRetention) -> str:
    return "-" if one.model is None else one.model


class _Shown:
    """What is set, and what that will remove.

    Args:
        store: Open store.
        found: What is set.
    """

    def __init__(self, store: Store, found: Sequence[ModelRetention]) -> None:
        self._found, self._enabled = found, store.reclaim.is_enabled
        ruled = [one.model for one in found if one.rules is not None]
        named = [model for model in ruled if model is not None]
        every = store.retention.each_outlook(None if None in ruled else named)
        self._outlooks = list(every) if ruled else []

    def json(self) -> list[schemas.RetentionJson]:
        """Return it as it is printed as JSON."""
        from tierstore.modelstore.reclaim.rules import described

        return [
            schemas.RetentionJson(
                model=one.model,
                window_s=_seconds(one.window),
                alias_history_s=_seconds(one.alias_history),
                rules=None if one.rules is None else described(one.rules),
                since=one.since,
                who=one.who,
                message=one.message,
                problem=one.problem,
                outlooks=[
                    schemas.OutlookJson(
                        model=outlook.model,
                        due=outlook.due,
                        versions=outlook.versions,
                        going=[str(version) for version in outlook.going],
                        blocked=outlook.blocked,
                    )
                    for outlook in self._of(one)
                ],
            )
            for one in self._found
        ]

    def print(self) -> None:
        """Print it for people."""
        for number, one in enumerate(self._found):
            if number:
                print()
            facts(self._facts(one))
        if not self._found:
            print("nothing is set: removals can be undone for 7 days, what an alias left stays")
            print("for 30 days, and nothing is removed by rules")
        if any(one.rules is not None for one in self._found) and not self._enabled:
            print(f"\n{NOT_ENABLED}")

    def _facts(self, one: ModelRetention) -> list[tuple[str, str]]:
        from tierstore.modelstore.reclaim.rules import described

        name = "all others" if one.model is None else one.model
        if one.problem is not None:
            return [("model", name), ("written", time_text(one.since)), ("damaged", one.problem)]
        return [
            ("model", name),
            ("window", _set_time(one.window)),
            ("alias history", _set_time(one.alias_history)),
            ("rules", "-" if one.rules is None else described(one.rules)),
            ("set", f"{time_text(one.since)} by {one.who}"),
            *([("message", one.message)] if one.message else []),
            *(
                ("next", f"{_going(outlook)} from {time_text(outlook.due)} on")
                for outlook in self._of(one)
                if outlook.going and outlook.blocked is None
            ),
            *(("blocked", one.blocked) for one in self._of(one) if one.blocked is not None),
        ]

    def _of(self, one: ModelRetention) -> list[Outlook]:
        if one.rules is None:
            return []
        return [outlook for outlook in self._outlooks if outlook.set_for == one.model]


def _going(outlook: Outlook) -> str:
    versions = counted(outlook.versions, "version")
    go = "goes" if len(outlook.going) == 1 else "go"
    return f"{len(outlook.going)} of {versions} of {outlook.model} {go}"


def _seconds(time: timedelta | None) -> int | None:
    return None if time is None else int(time.total_seconds())


def _set_time(time: timedelta | None) -> str:
    return "-" if time is None else duration_text(time)
