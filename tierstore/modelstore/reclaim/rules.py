"""Rules of retention: which versions are kept, and by which rule. Pure; the words are restic's."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import NoReturn, TypedDict, Unpack

from tierstore.arguments import as_texts, as_whole, wrong
from tierstore.errors import UsageError
from tierstore.format.checks import Broken
from tierstore.format.readback import read_back
from tierstore.format.retention import Rules
from tierstore.shown import duration_text

NEWEST_PATCHES, PATCH_AGE = 64, timedelta(days=7)
"""A patch version stays while it is one of the newest so many versions, or younger (SPEC 11)."""

_PERIODS: tuple[tuple[str, Callable[[datetime], tuple[int, ...]]], ...] = (
    ("hourly", lambda time: (time.year, time.month, time.day, time.hour)),
    ("daily", lambda time: (time.year, time.month, time.day)),
    ("weekly", lambda time: time.isocalendar()[:2]),
    ("monthly", lambda time: (time.year, time.month)),
    ("yearly", lambda time: (time.year,)),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that rules decide on.

    Attributes:
        number: The version's number.
        created: When it was published, in UTC.
        tags: Its aliases and its message.
        is_patch: Whether it is a patch on another one.
    """

    number: int
    created: datetime
    tags: tuple[str, ...]
    is_patch: bool


def kept_by(rules: Rules, versions: Iterable[Candidate], now: datetime) -> dict[int, list[str]]:
    """Return the versions that rules keep, with the rules that keep each.

    Counts and periods are of versions that are no patches. Patches are kept while they are young
    or among the newest of all versions.

    Args:
        rules: The rules.
        versions: The versions of one model.
        now: The present time, for the age of patches.
    """
    newest_first = sorted(versions, key=lambda one: one.number, reverse=True)
    full = [one for one in newest_first if not one.is_patch]
    found: dict[int, list[str]] = {}

    def keep(kept: Iterable[Candidate], rule: str) -> None:
        for one in kept:
            found.setdefault(one.number, []).append(rule)

    if rules.keep_last is not None:
        keep(full[: rules.keep_last], f"last {rules.keep_last}")
    for name, period in _PERIODS:
        count = getattr(rules, f"keep_{name}")
        if count is not None:
            keep(_newest_of_each(full, period)[:count], f"{name} {count}")
    if rules.keep_within_s is not None and newest_first:
        age = timedelta(seconds=rules.keep_within_s)
        latest = max(one.created for one in newest_first)
        keep(
            (one for one in newest_first if latest - one.created <= age),
            f"within {duration_text(age)}",
        )
    for glob in rules.keep_tags:
        keep((one for one in newest_first if _matches(one, glob)), f"tag {glob}")
    newest = newest_first[:NEWEST_PATCHES]
    keep((one for one in newest if one.is_patch), f"patch among the newest {NEWEST_PATCHES}")
    young = (one for one in newest_first if one.is_patch and now - one.created < PATCH_AGE)
    keep(young, f"patch younger than {PATCH_AGE.days} days")
    return found


def _newest_of_each(
    newest_first: Sequence[Candidate], period: Callable[[datetime], tuple[int, ...]]
) -> list[Candidate]:
    found: dict[tuple[int, ...], Candidate] = {}
    for one in newest_first:
        found.setdefault(period(one.created), one)
    return list(found.values())


def _matches(one: Candidate, glob: str) -> bool:
    return any(fnmatchcase(tag, glob) for tag in one.tags)


class Keep(TypedDict, total=False):
    """Rules as arguments; see ``Store.forget``."""

    keep_last: int | None
    keep_within: timedelta | None
    keep_hourly: int | None
    keep_daily: int | None
    keep_weekly: int | None
    keep_monthly: int | None
    keep_yearly: int | None
    keep_tag: Sequence[str]


def rules_of(**keep: Unpack[Keep]) -> Rules:
    """Return rules as they are stored; ``UsageError`` for none at all, or one that makes no sense.

    The arguments are those of ``Store.forget``.
    """
    within, tags = keep.pop("keep_within", None), keep.pop("keep_tag", ())
    given = {
        name: as_whole(name, count, "a count of versions, 1 or more", 0)
        for name, count in keep.items()
        if count is not None
    }
    for name, count in given.items():
        if not count:
            _refuse_none(name)
    within_s = None
    if within is not None:
        if not isinstance(within, timedelta) or within < timedelta(0):
            raise wrong("keep_within", "a timedelta, such as timedelta(days=30)", within)
        within_s = int(within.total_seconds())
        if not within_s:
            _refuse_none("keep_within")
    globs = as_texts("keep_tag", tags, "['prod', 'v*']")
    rules = Rules(**given, keep_within_s=within_s, keep_tags=globs)
    if rules == Rules():
        raise UsageError(
            "no rule was given, and without any every version would go: give one, such as "
            "keep_last=10 (--keep-last 10)"
        )
    try:
        read_back(rules)
    except Broken as error:
        raise UsageError(f"such rules cannot be used: {error}") from None
    return rules


def _refuse_none(rule: str) -> NoReturn:
    """Raise ``UsageError`` for a rule that keeps nothing: who writes it means something else."""
    raise UsageError(
        f"{rule} of 0 keeps nothing: leave {_option(rule)} out, or give keep_last=1 "
        "(--keep-last 1) to keep the newest version alone"
    )


def described(rules: Rules) -> str:
    """Return rules in words: the options of the command that sets them."""
    words = []
    for name in Rules.__struct_fields__:
        value = getattr(rules, name)
        option = _option(name.removesuffix("_s").removesuffix("s"))
        if name == "keep_tags":
            words += [f"{option} {shlex.quote(tag)}" for tag in value]
        elif value is not None:
            words.append(f"{option} {_time(value) if name == 'keep_within_s' else value}")
    return " ".join(words)


def _option(rule: str) -> str:
    return "--" + rule.replace("_", "-")


def _time(seconds: int) -> str:
    """Return seconds as they are given: in the largest unit that fits, such as ``30d``."""
    for unit, unit_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % unit_s == 0:
            return f"{seconds // unit_s}{unit}"
    return f"{seconds}s"
