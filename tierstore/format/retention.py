"""Retention: how long removals can be undone, and what removes versions (SPEC.md 9.1)."""

from typing import Annotated

import msgspec

from tierstore.format.checks import Broken
from tierstore.format.reflog import Microseconds
from tierstore.format.sealed import Body

WINDOW_S = 7 * 24 * 3600
"""Seconds for which a removed version stays, where nothing else is set."""

ALIAS_HISTORY_S = 30 * 24 * 3600
"""Seconds for which a version stays after an alias left it, where nothing else is set."""

MAX_SECONDS = 1 << 40
Seconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_SECONDS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]
MAX_TAGS = 1000
Tags = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=200)]],
    msgspec.Meta(max_length=MAX_TAGS),
]


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a model's versions; what no rule keeps is removed. The words are restic's.

    Attributes:
        keep_last: The newest so many versions.
        keep_hourly: The newest version of each of the last so many hours that have one.
        keep_daily: The same by days (UTC, as all of these).
        keep_weekly: The same by ISO weeks.
        keep_monthly: The same by months.
        keep_yearly: The same by years.
        keep_within_s: Versions no older than so many seconds before the newest one.
        keep_tags: Versions with an alias or a message that matches one of these globs.
    """

    keep_last: Count | None = None
    keep_hourly: Count | None = None
    keep_daily: Count | None = None
    keep_weekly: Count | None = None
    keep_monthly: Count | None = None
    keep_yearly: Count | None = None
    keep_within_s: Seconds | None = None
    keep_tags: Tags = []

    def check(self) -> None:
        """Raise ``Broken`` when there is no rule at all: it would remove everything."""
        if self == Rules():
            raise Broken("there is no rule among its rules")


class Retention(Body, frozen=True, kw_only=True):
    """The retention of a model, or of a store.

    Attributes:
        window_s: Seconds for which a removed version can be brought back for certain.
        alias_history_s: Seconds for which a version stays after an alias left it.
        rules: What an agent keeps; ``None`` where it removes nothing.
        time_us: Microseconds since the epoch by home's clock if that could be asked.
        who: The user and the host.
        message: Why it was set.
    """

    window_s: Seconds | None = None
    alias_history_s: Seconds | None = None
    rules: Rules | None = None
    time_us: Microseconds
    who: str
    message: str = ""

    def check(self) -> None:
        """Raise ``Broken`` unless its rules keep something."""
        if self.rules is not None:
            self.rules.check()
