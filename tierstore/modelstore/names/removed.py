"""Which versions are removed: the logs of removals, as resolving needs them (SPEC.md section 9.1).

A store without the feature ``reclaim`` has none, and nothing is looked for. Entries never change,
so what is known of a log is kept: a look reads the entry behind the last one that is known, which
as a rule is not there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, repeat, takewhile
from typing import TYPE_CHECKING, Final

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import REMOVED_LOG, VERSION_LOG, entry_key, ref_prefix
from tierstore.format.reflog import RefEntry, parse_entry
from tierstore.ids import Buffer
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.probe import certain_now_s
from tierstore.modelstore.version import RELEASED, when
from tierstore.shown import time_text

if TYPE_CHECKING:
    from tierstore.modelstore.home.retention import Over

_log = logging.getLogger("tierstore.refs")
_LAST_S = datetime.max.replace(tzinfo=UTC).timestamp() - 1
_PAGES = (4, 32, 256)
"""How many entries are read at once, as long as there are more."""

PURGE: Final = "purge"
"""The action of an entry that removes versions for good."""

Removed = Mapping[int, RefEntry]
"""The removed versions of a model, by number: the entries that removed them."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A log of removals as far as it was read.

    Attributes:
        removed: The versions that are removed then.
        announced: The versions whose removal was announced, and neither done nor stopped.
        entries: All entries, the oldest first: entry n is at n - 1.
    """

    removed: Removed = field(default_factory=dict)
    announced: Removed = field(default_factory=dict)
    entries: tuple[RefEntry, ...] = ()


class Removals:
    """The removed versions of a store's models. Thread-safe.

    Args:
        home: The store's home.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._known: dict[str, _Known] = {}
        self._named: dict[str, bool | None] = {}
        """Names that were seen to have an entry, and whether they are a release's; ``None`` where
        the first one cannot be read. A name keeps its kind for ever."""
        self._strange: set[str] = set()
        """Names without any entry that this process has told."""

    def of(self, model: str) -> Removed:
        """Return the versions of a model that are removed now."""
        return self._look(model).removed

    def announced(self, model: str) -> Removed:
        """Return the versions of a model that are in force, and about to be removed."""
        return self._look(model).announced

    def both(self, model: str) -> tuple[Removed, Removed]:
        """Return what is removed of a model, and what is about to be, by one request."""
        known = self._look(model)
        return known.removed, known.announced

    def entries(self, model: str) -> list[RefEntry]:
        """Return the log of removals of a model, newest first."""
        return list(reversed(self._look(model).entries))

    def ever(self, model: str) -> set[int]:
        """Return the versions that were ever removed, as far as that was read: nothing is asked."""
        entries = self._known_of(model).entries
        return {n for entry in entries if entry.action != "announce" for n in entry.versions}

    def last(self, model: str) -> tuple[RefEntry | None, Removed]:
        """Return the last entry of a model's versions, and what is removed: in one request."""
        log = self._home.log(model)
        if not self._home.reclaims:
            return log.last(), {}
        known = self._known_of(model)
        last, data = log.last_and(_key(model, known))
        return last, self._read_on(model, known, data).removed

    def entry(self, model: str, number: int) -> tuple[RefEntry | None, Removed]:
        """Return an entry of a model's versions, and what is removed: in one request."""
        log = self._home.log(model)
        if not self._home.reclaims:
            try:
                return log.entry(number), {}
            except NotFound:
                return None, {}
        known = self._known_of(model)
        entry, data = log.entry_and(number, _key(model, known))
        return entry, self._read_on(model, known, data).removed

    def listed(self, models: Iterable[str]) -> list[str]:
        """Return those of the models that have a version which is not removed.

        A folder without any entry, which strangers or a loss may leave, is no model. A model whose
        log of removals cannot be read is listed: whoever asks for a version of it is told.
        """
        asked = dict.fromkeys(models)
        first = self._unknown(asked)
        known = {name: self._known_of(name) for name in asked} if self._home.reclaims else {}
        keys = {name: _key(name, one) for name, one in known.items()}
        found = self._home.blobs.get_many([*first.values(), *keys.values()])
        self._learn(first, found)
        names = [name for name in asked if name in self._named]
        return [
            name
            for name in names
            if name not in known or not self._is_gone(name, known[name], found.get(keys[name]))
        ]

    def may_be_releases(self, names: Iterable[str]) -> list[str]:
        """Return those of the names that are not known to be a model's.

        Costs a read of the first entry of each name that this process has not seen before.
        """
        asked = list(names)
        first = self._unknown(asked)
        self._learn(first, self._home.blobs.get_many(list(first.values())))
        return [name for name in asked if self._named.get(name, True) is not False]

    def _unknown(self, names: Iterable[str]) -> dict[str, str]:
        """Return the keys of the first entries of names whose kind is not known, by name."""
        return {
            name: entry_key(ref_prefix(name, VERSION_LOG), 1)
            for name in names
            if name not in self._named
        }

    def _learn(self, first: Mapping[str, str], found: Mapping[str, memoryview]) -> None:
        """Take in the first entries of names, as far as they were found."""
        for name, key in first.items():
            if key in found:
                try:
                    entry = parse_entry(found[key], 1, f"ref entry {key}")
                except (Damaged, UnsupportedFormat) as error:
                    _log.info("what %s is the name of is not known: %s", name, error)
                    self._named[name] = None
                else:
                    self._named[name] = entry.action == RELEASED
            elif self.has_entries(name):  # its first one is lost
                self._named[name] = None
            else:
                self.tell_strange(name)

    def tell_strange(self, name: str) -> None:
        """Log once that a name has no entry of a version."""
        if name not in self._strange:
            self._strange.add(name)
            _log.warning(
                "refs/%s is not listed: it holds no version, or all of its log is lost", name
            )

    def read_to(self, ends: Mapping[str, int]) -> None:
        """Read logs of removals of models up to the entries with these numbers, in few requests.

        What cannot be read is left to ``as_read``.
        """
        if not self._home.reclaims:
            return
        keys = {
            model: [_key(model, known, at) for at in range(last - len(known.entries))]
            for model, last in ends.items()
            for known in [self._known_of(model)]
        }
        found = self._home.blobs.get_many([key for of_model in keys.values() for key in of_model])
        for model, of_model in keys.items():
            page = [found[key] for key in takewhile(found.__contains__, of_model)]
            with suppress(Damaged, UnsupportedFormat):
                self._take_in(model, self._known_of(model), page)

    def as_read(self, model: str, last: int) -> Removed:
        """Return what is removed of a model: nothing is asked if its log was read to an entry.

        Args:
            model: The model's name.
            last: The number of that entry.
        """
        known = self._known_of(model)
        return known.removed if len(known.entries) >= last else self.of(model)

    def has_entries(self, name: str) -> bool:
        """Return whether a name has the log of a model; ``True`` where its end cannot be read."""
        try:
            return self._home.log(name).last() is not None
        except (Damaged, UnsupportedFormat) as error:  # whoever asks for a version of it is told
            _log.info("the last entry of %s cannot be read: %s", name, error)
            return True

    def _is_gone(self, model: str, known: _Known, data: memoryview | None) -> bool:
        try:
            removed = self._read_on(model, known, data).removed
            last = self._home.log(model).last() if removed else None
        except (Damaged, UnsupportedFormat) as error:
            _log.warning("whether %s has a version in force is not known: %s", model, error)
            return False
        return last is not None and len(removed) >= last.seq

    def _look(self, model: str) -> _Known:
        if not self._home.reclaims:
            return _Known()
        known = self._known_of(model)
        key = _key(model, known)
        return self._read_on(model, known, self._home.blobs.get_many([key]).get(key))

    def _known_of(self, model: str) -> _Known:
        return self._known.get(model, _Known())

    def _read_on(self, model: str, known: _Known, data: memoryview | None) -> _Known:
        """Return a log of removals up to its end.

        Args:
            model: The model's name.
            known: What is known of the log.
            data: The entry behind that; ``None`` when there is none.
        """
        if data is None:
            return known
        page = [data]
        for most in chain(_PAGES, repeat(_PAGES[-1])):
            known = self._take_in(model, known, page)
            keys = [_key(model, known, at) for at in range(most)]
            found = self._home.blobs.get_many(keys)
            page = [found[key] for key in takewhile(found.__contains__, keys)]
            if not page:
                break
        return known

    def _take_in(self, model: str, known: _Known, page: Sequence[Buffer]) -> _Known:
        """Return a log of removals with the entries behind what is known of it."""
        entries = [*known.entries]
        for one in page:
            seq = len(entries) + 1
            entries.append(parse_entry(one, seq, f"removal {seq} of {model}"))
        removed, announced = dict(known.removed), dict(known.announced)
        for entry in entries[len(known.entries) :]:
            apply_removal(entry, removed, announced)
        now = _Known(removed, announced, tuple(entries))
        if len(entries) > len(self._known_of(model).entries):
            self._known[model] = now
        return now

    def why(self, model: str, number: int, entry: RefEntry) -> str:
        """Return in words when a version was removed, by whom, and how it can be brought back."""
        ref = f"{model}@{number}"
        note = f", {entry.message!r}" if entry.message else ""
        if entry.action == PURGE:
            return (
                f"{ref} was purged on {when(entry):%Y-%m-%d %H:%M:%S} UTC by {entry.who}{note}, "
                "and cannot be brought back"
            )
        return (
            f"{ref} was removed on {when(entry):%Y-%m-%d %H:%M:%S} UTC by {entry.who}{note}; "
            f"{self._way_back(model, ref, entry)}"
        )

    def _way_back(self, model: str, ref: str, entry: RefEntry) -> str:
        """Return in words how what an entry removed is brought back, and until when for certain."""
        undelete = f"'tierstore undelete {ref}' brings it back"
        try:
            until = self.until(model, entry)
        except (Damaged, UnsupportedFormat) as error:
            return f"{undelete} if it is still there; until when it is nobody knows: {error}"
        if until > datetime.now(UTC):
            return f"until {time_text(until)} {undelete}"
        return f"{undelete} if it is still there, which is certain only until {time_text(until)}"

    def refuse_purged(self, model: str, number: int) -> None:
        """Raise ``NotFound`` for a version that was removed for good."""
        entry = self.of(model).get(number)
        if entry is not None and entry.action == PURGE:
            raise NotFound(self.why(model, number, entry))

    def until(self, model: str, entry: RefEntry) -> datetime:
        """Return until when what an entry removed can be brought back for certain."""
        from tierstore.modelstore.home.retention import read_over, window_s

        is_over = read_over(self._home.blobs).has(model, entry)
        return window_end(entry, window_s(self._home.blobs, model), is_over=is_over)


class Windows:
    """Which removals are over, as one operation sees it: make one for each.

    The time, and what collections took for over, are asked for once by each of these, and only
    where something is removed.

    Args:
        home: The store's home.
        removals: Its removed versions.
    """

    def __init__(self, home: Home, removals: Removals) -> None:
        self._home, self._removals = home, removals
        self._now: tuple[float, Over] | None = None

    def expired(self, model: str) -> set[int]:
        """Return the removed versions of a model whose window is over, or was for a collection.

        Nothing is over that is not so by home's clock and by this machine's, whichever of them is
        wrong; nor by a window that cannot be read.
        """
        removed = self._removals.of(model)
        if not removed:
            return set()
        from tierstore.modelstore.home.retention import read_over, window_s

        if self._now is None:
            self._now = certain_now_s(self._home.blobs), read_over(self._home.blobs)
        now_s, over = self._now
        try:
            since_us = (now_s - window_s(self._home.blobs, model)) * 1e6
        except (Damaged, UnsupportedFormat) as error:
            _log.warning("what was removed of %s counts as not over: %s", model, error)
            since_us = -math.inf
        return {
            number
            for number, entry in removed.items()
            if entry.action == PURGE or entry.time_us <= since_us or over.has(model, entry)
        }


def window_end(entry: RefEntry, seconds: float, *, is_over: bool) -> datetime:
    """Return until when what an entry removed can be brought back for certain.

    Args:
        entry: The entry.
        seconds: The window of the model.
        is_over: Whether a collection took its window for over.
    """
    end_s = window_end_s(entry, seconds, is_over=is_over)
    return when(entry) if end_s == -math.inf else datetime.fromtimestamp(min(end_s, _LAST_S), UTC)


def window_end_s(
    entry: RefEntry, seconds: float, *, is_over: bool, now_s: float = math.inf
) -> float:
    """Return until when what an entry removed is kept, in seconds since the epoch.

    Minus infinity where its window was ended, which no longer one opens again: as ``is_over``. One
    that nobody can read, of infinite seconds, is not over.

    Args:
        entry: As in ``window_end``.
        seconds: As there.
        is_over: As there.
        now_s: The present time: what seems to be removed later is removed now.
    """
    if entry.action == PURGE or (is_over and seconds < math.inf):
        return -math.inf
    return min(entry.time_us / 1e6, now_s) + seconds


def apply_removal(
    entry: RefEntry, removed: dict[int, RefEntry], announced: dict[int, RefEntry] | None = None
) -> None:
    """Apply the next entry of a log of removals; what was purged stays so.

    Args:
        entry: The entry.
        removed: The versions that are removed before it, and then after it.
        announced: Likewise those whose removal is announced.
    """
    for number in entry.versions:
        before = removed.get(number)
        if before is not None and before.action == PURGE:
            continue
        if entry.action == "announce":
            if announced is not None:
                announced[number] = entry
            continue
        if announced is not None:
            announced.pop(number, None)
        if entry.action == "undelete":
            removed.pop(number, None)
        else:
            removed[number] = entry


def _key(model: str, known: _Known, at: int = 0) -> str:
    """Return the key of the entry behind what is known, or of one that is ``at`` further."""
    return entry_key(ref_prefix(model, REMOVED_LOG), len(known.entries) + 1 + at)
