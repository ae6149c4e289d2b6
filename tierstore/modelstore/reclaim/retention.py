"""Retention: rules that are stored with a model, or for all, and windows (SPEC.md section 9.1)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Unpack

from tierstore.arguments import as_message, wrong
from tierstore.errors import UsageError
from tierstore.format.keys import RETENTION, retention_key
from tierstore.format.retention import Retention, Rules
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.storeconfig import check_features
from tierstore.ids import check_name
from tierstore.modelstore.home.probe import certain_now_s, home_or_own_now_s
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.retention import (
    read_retention,
    settled_window_s,
    stored_retention,
)
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.reclaim.forgetting import MOST_PERCENT, Forgetting, Forgotten
from tierstore.modelstore.reclaim.rules import Keep, rules_of

MESSAGE = "by the rules of retention"


@dataclass(frozen=True, slots=True)
class ModelRetention:
    """What is set for one model, or for all that have nothing of their own.

    Attributes:
        model: The model's name; ``None`` for the store.
        window: How long a removed version can be brought back; ``None`` where nothing is set.
        alias_history: How long a version stays after an alias left it; ``None`` where nothing is
            set.
        rules: What is kept; ``None`` where nothing is removed by rules.
        since: When it was set, in UTC, by home's clock if that could be asked.
        who: Who set it.
        message: Why.
    """

    model: str | None
    window: timedelta | None
    alias_history: timedelta | None
    rules: Rules | None
    since: datetime
    who: str
    message: str


class Retentions:
    """The windows and rules of a store.

    Args:
        names: The names of the store.
    """

    def __init__(self, names: Names) -> None:
        self._names, self._home = names, names.home

    def __repr__(self) -> str:
        return f"<Retentions of {self._home.blobs.url}>"

    def set(
        self,
        model: str | None,
        *,
        window: timedelta | None = None,
        alias_history: timedelta | None = None,
        message: str | None = None,
        **keep: Unpack[Keep],
    ) -> ModelRetention:
        """Set what is kept of a model, or of all models, instead of what was set before.

        Args:
            model: The model's name; ``None`` for all models that have nothing of their own.
            window: How long a removed version can be brought back: 0 for not at all. ``None`` for
                the store's, or for the store 7 days.
            alias_history: How long a version stays after an alias left it, besides the one that a
                rollback goes back to: 0 for not at all. ``None`` for the store's, or for the store
                30 days.
            message: Why; kept with it. ``None`` for no message.
            keep: What an agent keeps, as in ``Store.forget``; without any of them it removes
                nothing.

        Raises:
            UsageError: Neither rules nor times were given, or they make no sense.
            NotFound: There is no such model.
        """
        note = as_message(message)
        is_given = any(value not in (None, (), []) for value in keep.values())
        rules = rules_of(**keep) if is_given else None
        window_s = _seconds("window", window)
        alias_history_s = _seconds("alias_history", alias_history)
        if rules is None and window_s is None and alias_history_s is None:
            raise UsageError(
                "give rules, such as keep_last, or a window, or an alias history; nothing was "
                "changed"
            )
        if model is not None:
            model = check_name("model", model)
            self._names.newest(model) or self._names.resolve(model)  # says what does not exist
        check_features(self._home.config, "write", self._home.blobs.url)
        retention = Retention(
            window_s=window_s,
            alias_history_s=alias_history_s,
            rules=rules,
            time_us=int(home_or_own_now_s(self._home.blobs) * 1e6),
            who=whoami(),
            message=note,
        )
        sealed = seal_body(Kind.RETENTION, retention)
        self._home.blobs.put(retention_key(model), sealed)
        return _shown(model, retention)

    def remove(self, model: str | None) -> None:
        """Remove what is set for a model, or with ``None`` for all models."""
        self._home.blobs.delete([retention_key(model)])

    def get(self, model: str | None) -> ModelRetention | None:
        """Return what is set for a model itself, or with ``None`` for all models."""
        found = stored_retention(self._home.blobs, model)
        return None if found is None else _shown(model, found)

    def all(self) -> list[ModelRetention]:
        """Return what is set: for the store first, then by model."""
        keys = {info.key for info in self._home.blobs.list(RETENTION)}
        wanted: list[str | None] = [None, *self._home.models()]
        found = (self.get(model) for model in wanted if retention_key(model) in keys)
        return [one for one in found if one is not None]

    def due(self, model: str) -> tuple[Rules | None, datetime | None]:
        """Return the rules for a model, its own or the store's, and from when on they remove.

        Until then, one window after they were set, they only report.
        """
        both = read_retention(self._home.blobs, model)
        held = next((one for one in both if one is not None and one.rules is not None), None)
        if held is None:
            return None, None
        due_s = held.time_us / 1e6 + settled_window_s(both)
        return held.rules, datetime.fromtimestamp(due_s, UTC)

    def apply(self, model: str, *, most_percent: float = MOST_PERCENT) -> Forgotten | None:
        """Remove what the stored rules of a model do not keep, as an agent does.

        Args:
            model: The model's name.
            most_percent: The most of the model's versions that may go, in percent.

        Returns:
            What stays and what was removed; a ``dry_run`` before the rules are due. ``None`` when
            there are no rules for the model.

        Raises:
            Conflict: More would go than ``most_percent``; nothing is removed.
        """
        rules, due = self.due(model)
        if rules is None or due is None:
            return None
        waits = datetime.fromtimestamp(certain_now_s(self._home.blobs), UTC) < due
        return Forgetting(self._names).forget(
            model, rules, dry_run=waits, most_percent=most_percent, message=MESSAGE
        )


def _seconds(argument: str, given: timedelta | None) -> int | None:
    if given is None:
        return None
    if not isinstance(given, timedelta) or given < timedelta(0):
        raise wrong(argument, "a timedelta, such as timedelta(days=7)", given)
    return int(given.total_seconds())


def _time(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _shown(model: str | None, retention: Retention) -> ModelRetention:
    return ModelRetention(
        model,
        _time(retention.window_s),
        _time(retention.alias_history_s),
        retention.rules,
        datetime.fromtimestamp(retention.time_us / 1e6, UTC),
        retention.who,
        retention.message,
    )
