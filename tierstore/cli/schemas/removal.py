"""What ``rm``, ``forget``, ``undelete``, ``ls --deleted`` and ``retention`` print as JSON."""

from __future__ import annotations

from datetime import datetime

from tierstore.cli.schemas.core import Schema, VersionJson


class DeletedVersion(VersionJson):
    """A removed version; until ``until`` it can be brought back for certain.

    ``until`` is null for one that was purged: it cannot be brought back.
    ``created``, ``who`` and ``message`` are those of the version, ``removed_by`` and ``reason``
    those of its removal.
    """

    removed: datetime
    removed_by: str
    reason: str
    until: datetime | None


class Deleted(Schema):
    """Removed versions, newest first, by model."""

    versions: list[DeletedVersion]


class Kept(VersionJson):
    """A version that stays, and why: the rules that keep it, and who names it."""

    reasons: list[str]


class ForgottenJson(Schema):
    """What rules made of the versions of a model; with ``dry_run`` nothing was removed."""

    model: str
    dry_run: bool
    kept: list[Kept]
    removed: list[VersionJson]


class Forgot(Schema):
    """What rules made of the versions of each model.

    ``enabled`` is false for a ``dry_run`` in a store that does not allow removal yet.
    """

    enabled: bool
    models: list[ForgottenJson]


class OutlookJson(Schema):
    """What rules will remove of a model.

    ``due`` is from when on agents remove, ``versions`` how many the model has, and ``going`` those
    that no rule keeps. ``blocked`` says why agents remove none of them, and how to allow it; null
    if they do.
    """

    model: str
    due: datetime
    versions: int
    going: list[str]
    blocked: str | None


class RetentionJson(Schema):
    """What is set for a model, or for all models where ``model`` is null.

    ``window_s`` is for how many seconds a removal can be undone, and ``alias_history_s`` for how
    many a version stays after an alias left it; null where that is not set. ``rules`` are the
    options that set them, null where nothing is removed by rules. ``since`` is when this was set,
    and ``who`` did it. ``outlooks`` are what the rules will remove, by model. ``problem`` is why it
    cannot be read, and null where it can; nothing else is known then, and ``since`` is when it was
    written.
    """

    model: str | None
    window_s: int | None
    alias_history_s: int | None
    rules: str | None
    since: datetime
    who: str
    message: str
    problem: str | None
    outlooks: list[OutlookJson]


class Retentions(Schema):
    """All that is set, for all models first."""

    retentions: list[RetentionJson]


class RetentionRemoved(Schema):
    """What is set no more; ``model`` is null for what was set for all models."""

    model: str | None
