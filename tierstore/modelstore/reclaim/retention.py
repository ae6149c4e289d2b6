"""Retention: rules that are stored with a model, or for all, and windows (SPEC.md section 9.1)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Unpack

from tierstore.arguments import as_message, as_number, wrong
from tierstore.errors import (
    OF_ONE,
    Conflict,
    Damaged,
    TierstoreError,
    UnsupportedFormat,
    UsageError,
)
from tierstore.format.keys import retention_key
from tierstore.format.retention import Retention, Rules
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.storeconfig import check_features
from tierstore.ids import check_name
from tierstore.modelstore.home.probe import home_or_own_now_s
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.retention import (
    SetFor,
    SetRetentions,
    read_set,
    stored_retention,
)
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.reclaim.feature import check_enabled
from tierstore.modelstore.reclaim.forgetting import MOST_PERCENT, Forgetting, Forgotten, Found
from tierstore.modelstore.reclaim.holders import Holders
from tierstore.modelstore.reclaim.listedholders import ListedHolders
from tierstore.modelstore.reclaim.rules import Keep, rules_of
from tierstore.modelstore.version import Version

MESSAGE = "by the rules of retention"
_log = logging.getLogger("tierstore.removal")


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
        problem: Why it cannot be read, and what to do; ``None`` if it can. All else is not known
            then: ``since`` is when it was written, and ``who`` is empty.
    """

    model: str | None
    window: timedelta | None
    alias_history: timedelta | None
    rules: Rules | None
    since: datetime
    who: str
    message: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the rules for a model will remove.

    Attributes:
        model: The model's name.
        set_for: The model that the rules are set for; ``None`` if they are those for all models.
        due: From when on agents remove, in UTC; before that they only report. Of rules that cannot
            be read it is when they were written.
        versions: How many versions the model has.
        going: The versions that no rule keeps, newest first.
        blocked: Why agents remove none of them, and how to allow it; ``None`` if they do.
    """

    model: str
    set_for: str | None
    due: datetime
    versions: int
    going: list[Version]
    blocked: str | None


@dataclass(frozen=True, slots=True)
class _Held:
    """The rules for a model: whom they are set for, since when, and from when on they remove."""

    model: str | None
    rules: Rules
    time_us: int
    due: datetime


class Retentions:
    """The windows and rules of a store.

    Args:
        names: The names of the store.
        cache_path: A local file that can be lost, where what was read to say what rules will remove
            is kept for the next time; ``None`` keeps nothing.
    """

    def __init__(self, names: Names, cache_path: Path | None = None) -> None:
        self._names, self._home, self._cache_path = names, names.home, cache_path

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
        is_given = any(not (value is None or _is_empty(value)) for value in keep.values())
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

    def remove(self, model: str | None) -> bool:
        """Remove what is set for a model, or with ``None`` for all models; damaged or not.

        Returns:
            Whether anything was set.
        """
        was_set = SetRetentions(self._home.blobs).info(model) is not None
        self._home.blobs.delete([retention_key(model)])
        return was_set

    def get(self, model: str | None) -> ModelRetention | None:
        """Return what is set for a model itself, or with ``None`` for all models.

        ``None`` where nothing is; raises ``Damaged`` where it cannot be read.
        """
        found = stored_retention(self._home.blobs, model)
        return None if found is None else _shown(model, found)

    def all(self) -> list[ModelRetention]:
        """Return what is set: for the store first, then by model.

        What cannot be read is among it, with its ``problem``.
        """
        stored = SetRetentions(self._home.blobs)
        wanted: list[str | None] = [None, *(self._home.models() if stored.listed() else [])]
        found = (_shown_of(stored, model) for model in wanted)
        return [one for one in found if one is not None]

    def outlook(self, model: str) -> Outlook | None:
        """Return what the rules for a model will remove; ``None`` without rules.

        Args:
            model: The model's name.

        Raises:
            NotFound: There is no such model.
            Damaged: The rules cannot be read, or what they are to decide on.
        """
        held = _held(read_set(self._home.blobs, model))
        return (
            None
            if held is None
            else self._found(model, held, Holders(self._names, self._cache_path))
        )

    def outlooks(self) -> list[Outlook]:
        """Return what the rules for each model will remove; a model without rules is left out.

        A model that cannot be looked at, or whose rules cannot be read, is blocked for that reason.
        """
        return list(self.each_outlook())

    def each_outlook(self, models: Iterable[str] | None = None) -> Iterator[Outlook]:
        """Yield the same model by model, each as it is when it is asked for.

        Args:
            models: The names of the models; ``None`` for all of the store.
        """
        stored = SetRetentions(self._home.blobs)
        if not stored.listed():
            return
        holders = ListedHolders(self._names, stored, self._cache_path)
        for model in self._home.models() if models is None else models:
            outlook = self._outlook(model, stored, holders)
            if outlook is not None:
                yield outlook

    def with_rules(self, models: Iterable[str] | None = None) -> list[str]:
        """Return those of the models that rules are set for; damaged ones count as set.

        Args:
            models: The names of the models; ``None`` for all of the store that have a version.
        """
        stored = SetRetentions(self._home.blobs)
        if not stored.listed():
            return []
        found = []
        for model in self._names.models() if models is None else models:
            try:
                if stored.of(model).rules() is not None:
                    found.append(model)
            except (Damaged, UnsupportedFormat) as error:
                _log.info("%s has rules that cannot be read: %s", model, error)
                found.append(model)
        return found

    def due(self, model: str) -> datetime | None:
        """Return from when on the rules for a model remove, in UTC; ``None`` without rules."""
        held = _held(read_set(self._home.blobs, model))
        return None if held is None else held.due

    def apply(
        self,
        model: str,
        *,
        most_percent: float = MOST_PERCENT,
        at_once: bool = False,
        dry_run: bool = False,
    ) -> Forgotten | None:
        """Remove what the stored rules of a model do not keep, as an agent does.

        Args:
            model: The model's name.
            most_percent: By how much fewer versions may be left at most, in percent of those that
                there were when the rules were set, or removed something last. What was saved since
                does not count: it pushes out as much.
            at_once: Whether to remove before the first window of the rules is over as well.
            dry_run: Remove nothing.

        Returns:
            What stays and what was removed; a ``dry_run`` before the rules are due. ``None`` when
            there are no rules for the model.

        Raises:
            UsageError: The store does not allow removal yet.
            Conflict: Fewer versions would be left than ``most_percent`` allows; nothing is removed.
        """
        most = as_number("most_percent", most_percent, "a share in percent, 0 to 100", 0)
        held = _held(read_set(self._home.blobs, model))
        if held is None:
            return None
        forgetting = Forgetting(self._names, self._cache_path)
        found = forgetting.look(model, held.rules)
        waits = datetime.fromtimestamp(found.holders.now_s(), UTC) < held.due
        if dry_run or (waits and not at_once):
            return found.forgotten(dry_run=True)
        check_enabled(self._home)
        if (why := self._blocked(found, held, most)) is not None:
            raise Conflict(why)
        forgetting.carry_out(found, MESSAGE)
        return found.forgotten(dry_run=False)

    def _outlook(self, model: str, stored: SetRetentions, holders: ListedHolders) -> Outlook | None:
        """Return what the rules for a model will remove, or why nobody knows."""
        held: _Held | None = None
        try:
            held = _held(stored.of(model))
            if held is None:
                return None
            holders.begin(model)
            if not holders.in_force(model)[0]:  # a folder of nothing, or all of it is removed
                return None
            return self._found(model, held, holders)
        except OF_ONE as error:
            return _unknown(model, held, stored, error)

    def _found(self, model: str, held: _Held, holders: Holders) -> Outlook:
        found = Forgetting(self._names, self._cache_path).look(model, held.rules, holders)
        blocked = self._blocked(found, held, MOST_PERCENT)
        gone = found.forgotten(dry_run=True).removed
        return Outlook(model, held.model, held.due, len(found.contents), gone, blocked)

    def _blocked(self, found: Found, held: _Held, most_percent: float) -> str | None:
        """Return why so much may not go unasked; ``None`` if it may.

        A wrong rule makes a model smaller. One that was right keeps it as it is: what is saved
        pushes out as much, however few versions it keeps.
        """
        by_rules = (
            entry.time_us
            for entry in found.holders.removals(found.model)
            if entry.action == "forget" and entry.message == MESSAGE
        )
        last_us = max(held.time_us, next(by_rules, 0))
        if found.share_percent(last_us) <= most_percent:
            return None
        return (
            f"{found.shown()} would be removed by rules, over {most_percent:g} % of those that "
            "there were when the rules were set or last removed any: 'tierstore retention apply "
            f"{found.model} --dry-run' lists them, and with --yes instead it removes them"
        )


def _held(found: SetFor) -> _Held | None:
    """Return the rules for a model: its own, or else the store's."""
    held = found.rules()
    if held is None or held[1].rules is None:
        return None
    due = datetime.fromtimestamp(held[1].time_us / 1e6 + found.window_s(), UTC)
    return _Held(held[0], held[1].rules, held[1].time_us, due)


def _unknown(
    model: str, held: _Held | None, stored: SetRetentions, error: TierstoreError
) -> Outlook:
    """Return the outlook of a model that cannot be looked at, or whose rules cannot be read."""
    if held is not None:
        return Outlook(model, held.model, held.due, 0, [], str(error))
    own = stored.info(model)
    info = own or stored.info(None)
    assert info is not None  # there was something to read
    since = datetime.fromtimestamp(info.mtime, UTC)
    return Outlook(model, None if own is None else model, since, 0, [], str(error))


def _is_empty(value: object) -> bool:
    return isinstance(value, list | tuple) and not value


def _seconds(argument: str, given: timedelta | None) -> int | None:
    if given is None:
        return None
    if not isinstance(given, timedelta) or given < timedelta(0):
        raise wrong(argument, "a timedelta, such as timedelta(days=7)", given)
    return int(given.total_seconds())


def _time(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _shown_of(stored: SetRetentions, model: str | None) -> ModelRetention | None:
    """Return what is stored for a model, or with ``None`` for the store; ``None`` for nothing."""
    info = stored.info(model)
    try:
        found = stored.stored(model)
    except (Damaged, UnsupportedFormat) as error:
        since = datetime.fromtimestamp(0 if info is None else info.mtime, UTC)
        named = "" if model is None else f" {model}"
        problem = (
            f"{error}. Nothing that it is set for is removed by rules, or collected once it is "
            f"removed, until 'tierstore retention set{named}' sets it again"
        )
        return ModelRetention(model, None, None, None, since, "", "", problem)
    return None if found is None else _shown(model, found)


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
