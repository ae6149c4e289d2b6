"""What must stay: every manifest that somebody may need, each with the reason (SPEC.md section 10).

What protects is read after what it protects from: removals before versions and names, and leases
last. So whoever brings a version back, or lets a name or a lease hold it, is seen; or it looks at
what is condemned afterwards, and sees the collector.

Who removes versions asks the same sources of one model (``holders``), and the answers differ on
purpose. A name that a user gave refuses ``rm``; what only may be wanted again does not, but rules
leave it alone. Of equal content a pin and a lease mean a version that stays, so that the others can
go. What this process reads itself its lease keeps from being deleted, which is enough.

::

    source                                 a root   refuses rm   rules keep it
    alias                                  yes      yes          yes
    target of a rollout                    yes      yes          yes
    pin of a rollout                       yes      no           no
    member of a release                    yes      yes          yes
    pin of a user                          yes      yes          yes
    lease of another process               yes      yes          yes
    lease of this process                  yes      no           no
    patch that lies on it                  below    yes          yes
    where an alias would go back to        yes      no           yes
    what an alias meant lately             yes      no           yes
    where a removed alias would go back    no       no           yes
    what a removed alias meant lately      yes      no           yes

Besides, versions that are not removed, with their variants, and until their window has ended those
that are. Of a patch the mark finds what lies below (``mark``).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import chain
from types import MappingProxyType
from typing import Literal, TypeAlias

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import ALIASES, REMOVED_LOG, VARIANTS, VERSION_LOG
from tierstore.format.manifest import Member
from tierstore.format.reflog import RefEntry, that_count
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import standing
from tierstore.modelstore.home.pins import PinnedVersion, Pins
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.home.retention import NONE_OVER, Over, SetRetentions
from tierstore.modelstore.names.aliaslog import Meant, current, goes_back_to, meant_since
from tierstore.modelstore.names.claims import pinned
from tierstore.modelstore.names.removed import PURGE, Removed, apply_removal, window_end_s
from tierstore.modelstore.reclaim.evidence import lengths, lost_entries, orphaned
from tierstore.modelstore.reclaim.lostlogs import LostEntries, refuse_lost
from tierstore.modelstore.reclaim.reflogs import Log, RefLogs
from tierstore.modelstore.reclaim.report import end_text
from tierstore.modelstore.version import RELEASED
from tierstore.shown import duration_text

_MOST_AHEAD_S = 24 * 3600
"""How far home's clock may be ahead of all others before a collector trusts it no more."""

_log = logging.getLogger("tierstore.gc")

RootKind = Literal["live", "window", "leased"]
"""Why a manifest stays: something names it, its removal can be undone, or a reader holds it."""


@dataclass(frozen=True, slots=True)
class Root:
    """A manifest that stays with all that it needs.

    Attributes:
        digest: Its digest.
        kind: Why it stays, for reports.
        why: The same in words, such as ``ranker@3`` or ``lease of ada@node7``.
        ref: The version in words, where ``why`` does not say it.
        is_removed: Whether it is removed, and nothing names it now.
        model: The model of the version that it is, or is a variant of; empty where nothing says it.
        number: The number of that version; 0 where nothing says it.
        variant: The variant that it is an entry of; empty for all else.
    """

    digest: Digest
    kind: RootKind
    why: str
    ref: str = ""
    is_removed: bool = False
    model: str = ""
    number: int = 0
    variant: str = ""

    @property
    def is_firm(self) -> bool:
        """Whether somebody can load it, so that nothing of it may be lost.

        Nobody can load what is removed; and who reads what is removed and lost, by its lease, has
        begun too late. What is not removed is a root without its lease, too.
        """
        return not self.is_removed and self.kind != "leased"

    def of_variant(self, manifest: bytes) -> Root:
        """Return the root of a variant of it, which stays for the same reason."""
        return replace(self, digest=Digest(manifest))

    def of_member(self, one: Member) -> Root:
        """Return the root of a member of this release, which stays for the same reason."""
        ref, digest = f"{one.model}@{one.version}", Digest(one.manifest)
        return replace(self, digest=digest, ref=ref, model=one.model, number=one.version)

    def __str__(self) -> str:
        why = f"{self.why}, " if self.ref else ""
        return f"{self.ref or self.why} ({why}b3:{self.digest.hex})"


_Held: TypeAlias = tuple[str, int, Root]
"""A version that stays: the model's name, its number, and why."""


@dataclass(slots=True)
class Found:
    """The roots of a store.

    Attributes:
        roots: What must stay; one manifest may be there several times.
        dead: Manifests of versions that were removed, and cannot be brought back for certain.
        over: Removals that cannot be undone for certain.
        logs: How many entries each log has, by ``<model>/<name>`` as in its keys.
        lost: Releases whose manifests cannot be read, so that nobody knows their members.
        holders: Entries in force that only have a number taken.
    """

    roots: list[Root] = field(default_factory=list)
    dead: set[Digest] = field(default_factory=set)
    lost: dict[Digest, Damaged | NotFound] = field(default_factory=dict)
    over: Over = NONE_OVER
    logs: Mapping[str, int] = field(default_factory=dict)
    holders: list[Root] = field(default_factory=list)


class Roots:
    """Finds the roots of a store. What never changes is read once by each of these.

    Args:
        home: The store's home.
        cache: What was read of it before.
    """

    def __init__(self, home: Home, cache: ReadCache) -> None:
        self._home = home
        self._logs = RefLogs(home.blobs, cache)
        self._members: dict[str, tuple[Member, ...]] = {}

    def find(
        self,
        now_s: float,
        window_s: float | None,
        before: Mapping[str, int] = MappingProxyType({}),
        over: Over = NONE_OVER,
    ) -> Found:
        """Return the roots as they are now.

        Args:
            now_s: Seconds since the epoch by home's clock, or earlier.
            window_s: Seconds for which a removed version stays; ``None`` for what is set in the
                store.
            before: How many entries each log had for the last collection, as in ``Found.logs``.
            over: The removals whose window collections before ended; counts without ``window_s``.

        Raises:
            Damaged, NotFound, UnsupportedFormat: Something that may name a version cannot be read,
                or is lost; the message names it.
            BackendError: Home's clock cannot be right, or this machine's.
        """
        # first, as said above: versions and names are those of the second reading, behind it
        removed = {log.model: log for log in self._logs.read(now_s) if log.name == REMOVED_LOG}
        retentions = _Retentions(self._home.blobs)
        ended = over if window_s is None else NONE_OVER  # a window that is given holds
        ends_s = _ends(removed.values(), now_s, window_s, retentions, ended)
        now = _Now(now_s, ends_s, retentions)
        logs = self._logs.read(now_s)
        _check_clock(now_s, logs, self._home.blobs.url)
        found = Found(over=_over(removed.values(), now))
        held = list[_Held]()
        for log in logs:
            if log.name == VERSION_LOG or log.name.startswith(VARIANTS):
                self._versions(log, now, found)
            elif log.name.startswith(ALIASES):
                held += _held_by_alias(log, now)
            elif log.name != REMOVED_LOG:  # written by a later version
                found.roots += _of_entries(log.entries, log, f"{log.title} in its log {log.name}")
        found.roots += self._all_of([*held, *_releases(logs, now)], logs, found)
        pins = Pins(self._home.blobs).active(lambda: now_s)
        self._refuse_lost(logs, pins, before, now_s)
        purged = _purged(removed.values())
        found.roots += _pinned(pins, _digests_of(logs, purged))
        found.roots = [one for one in found.roots if (one.model, one.number) not in purged]
        found.roots += self._leased(now_s)
        found.logs = lengths(logs)
        return found

    def _refuse_lost(
        self,
        logs: Sequence[Log],
        pins: Sequence[PinnedVersion],
        before: Mapping[str, int],
        now_s: float,
    ) -> None:
        """Raise ``Damaged`` where something names a version whose entry is lost.

        What was read behind the logs may name what was published since: then they are read again.
        """
        if any(self._lost(logs, pins, before)):
            refuse_lost(*self._lost(self._logs.read(now_s), pins, before))

    def _lost(
        self, logs: Sequence[Log], pins: Sequence[PinnedVersion], before: Mapping[str, int]
    ) -> tuple[list[LostEntries], list[str]]:
        members = chain.from_iterable(self._members.values())
        return lost_entries(logs, before, members, pins), orphaned(pins, logs)

    @staticmethod
    def _versions(log: Log, now: _Now, found: Found) -> None:
        variant = log.name.removeprefix(VARIANTS) if log.name.startswith(VARIANTS) else ""
        for entry in that_count(reversed(log.entries)) if variant else log.entries:
            if entry.version is None or entry.manifest is None:
                continue
            digest = Digest.from_hex(entry.manifest)
            root = now.root(log, entry.version, digest, variant)
            if root is None:
                found.dead.add(digest)
            else:
                found.roots.append(root)
                if entry.holds_number and not root.is_removed:
                    found.holders.append(root)

    def _all_of(self, held: Iterable[_Held], logs: Sequence[Log], found: Found) -> Iterator[Root]:
        """Return all that nodes may serve of versions: members of releases, and all variants."""
        released = {
            (log.title, entry.seq)
            for log in logs
            if log.name == VERSION_LOG
            for entry in log.entries
            if entry.action == RELEASED
        }
        chosen: dict[tuple[str, int], Root] = {}
        for model, number, root in held:
            parts = [(model, number, root)]
            if (model, number) in released:
                parts += self._members_of(root, found)
            for title, version, part in parts:
                yield part
                known = chosen.get((title, version))
                if known is None or known.is_removed:
                    chosen[title, version] = part
        for log in logs:
            if log.name.startswith(VARIANTS):
                for entry in that_count(reversed(log.entries)):
                    staying = chosen.get((log.title, entry.version or 0))
                    if staying is not None and entry.manifest is not None:
                        yield staying.of_variant(bytes.fromhex(entry.manifest))

    def _members_of(self, release: Root, found: Found) -> list[_Held]:
        digest = release.digest
        if digest.hex not in self._members:
            try:
                self._members[digest.hex] = tuple(self._home.manifest(digest).members or ())
            except (Damaged, NotFound) as error:
                found.lost[digest] = error
                return []
        return [
            (one.model, one.version, release.of_member(one)) for one in self._members[digest.hex]
        ]

    def _leased(self, now_s: float) -> Iterator[Root]:
        for lease in standing(self._home.blobs, now_s).standing:
            why = f"lease of {lease.who} (pid {lease.pid} on {lease.host})"
            for version in lease.versions:
                yield Root(Digest.from_hex(version), "leased", why)


class _Retentions:
    """For how long things of a model stay: for ever where nobody can read that.

    Args:
        home_blobs: The store's home.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._set = SetRetentions(home_blobs)
        self._told = set[str]()

    def window_s(self, model: str) -> float:
        """Return for how many seconds a removed version of a model can be brought back."""
        return self._or_for_ever(model, self._set.of(model).window_s)

    def alias_history_s(self, model: str) -> float:
        """Return for how many seconds a version of a model stays after an alias left it."""
        return self._or_for_ever(model, self._set.of(model).alias_history_s)

    def _or_for_ever(self, model: str, seconds: Callable[[], int]) -> float:
        try:
            return seconds()
        except (Damaged, UnsupportedFormat) as error:
            if model not in self._told:
                self._told.add(model)
                _log.warning(
                    "nothing is collected that was removed of %s, or that its aliases left, until "
                    "'tierstore retention set' sets its retention again: %s",
                    model,
                    error,
                )
            return math.inf


@dataclass(frozen=True, slots=True)
class _Now:
    """What is removed at the time of a mark.

    Attributes:
        now_s: Seconds since the epoch by home's clock.
        ends_s: Until when removed versions can be brought back, by model and number.
        retentions: What is set in the store.
    """

    now_s: float
    ends_s: Mapping[str, Mapping[int, float]]
    retentions: _Retentions

    def root(
        self, log: Log, number: int, digest: Digest, variant: str = "", what: str = ""
    ) -> Root | None:
        """Return why a version, variant or release stays; ``None`` when it does not."""
        end_s = self.ends_s.get(log.model, {}).get(number)
        why = f"{what}{log.title}@{number}" + (f"+{variant}" if variant else "")
        root = Root(digest, "live", why, model=log.title, number=number, variant=variant)
        if end_s is None:
            return root
        if end_s <= self.now_s:
            return None
        why += f" was removed, and can be undeleted until {end_text(end_s)}"
        return replace(root, kind="window", why=why, is_removed=True)


def _check_clock(now_s: float, logs: Iterable[Log], url: str) -> None:
    """Raise ``BackendError`` where time by home's clock is far ahead of all other clocks.

    If it has leaped, what waits for its time would be deleted at once. The times of removals do not
    count, as they are by home's clock themselves.
    """
    own_s = time.time()
    if now_s - own_s <= _MOST_AHEAD_S:
        return
    past = (
        entry.time_us / 1e6
        for log in logs
        for entry in log.entries
        if entry.action not in ("forget", PURGE) and entry.time_us / 1e6 <= now_s
    )
    newest_s = max(past, default=0.0)
    if now_s - newest_s > _MOST_AHEAD_S:
        raise BackendError(
            f"the clock of {url} says {end_text(now_s)}, which is more than a day after this "
            f"machine's, {end_text(own_s)}, and after the newest entry of the store, "
            f"{end_text(newest_s)}: nothing was deleted, as all that waits for its time would be "
            "over at once. Set the one that is wrong (NTP), then try again"
        )


def _ends(
    logs: Iterable[Log], now_s: float, window_s: float | None, retentions: _Retentions, ended: Over
) -> dict[str, dict[int, float]]:
    """Return until when removed versions can be brought back, by model and number.

    What seems to be removed in the future is removed now: clocks differ by some seconds.
    """
    found: dict[str, dict[int, float]] = {}
    for log in logs:
        removed = _removed(log.entries)
        if removed:
            wait_s = retentions.window_s(log.title) if window_s is None else window_s
            found[log.model] = {
                n: window_end_s(one, wait_s, is_over=ended.ended(log.title, one), now_s=now_s)
                for n, one in removed.items()
            }
    return found


def _lately(history_s: float) -> str:
    if history_s == math.inf:
        return "some time, and its retention cannot be read"
    return f"in the last {duration_text(timedelta(seconds=history_s))}"


def _over(logs: Iterable[Log], now: _Now) -> Over:
    """Return which removals cannot be undone for certain, as their window is over.

    A purge has no window, and says nothing about others. Of a model it is the newest entry before
    all whose window is not over, as home's clock may have been behind. By time, for readers that
    look at nothing else, it is the newest of them that is older than all whose window is not over,
    as models may have windows of their own; and not what seems to be removed in the future, or all
    that is removed until then would be over.
    """
    over_us, open_us = [0], list[float]()
    entries, times_us = dict[str, int](), dict[str, int]()
    for log in logs:
        ends_s, first_open = now.ends_s.get(log.model, {}), len(log.entries) + 1
        over = list[RefEntry]()
        for number, entry in _removed(log.entries).items():
            if entry.action != "forget":
                continue
            if ends_s[number] > now.now_s:
                open_us.append(entry.time_us)
                first_open = min(first_open, entry.seq)
                continue
            over_us.append(min(entry.time_us, int(now.now_s * 1e6)))
            over.append(entry)
        if before := [entry for entry in over if entry.seq < first_open]:
            entries[log.title] = max(entry.seq for entry in before)
            times_us[log.title] = max(entry.time_us for entry in before)
    first_open_us = min(open_us, default=math.inf)
    return Over(max(one for one in over_us if one < first_open_us), entries, times_us)


def _removed(entries: Iterable[RefEntry]) -> Removed:
    removed: dict[int, RefEntry] = {}
    for entry in entries:
        apply_removal(entry, removed)
    return removed


def _purged(logs: Iterable[Log]) -> set[tuple[str, int]]:
    """Return the versions that were purged: what names one has not looked yet, or never will."""
    return {
        (log.title, number)
        for log in logs
        for number, entry in _removed(log.entries).items()
        if entry.action == PURGE
    }


def _digests_of(logs: Iterable[Log], purged: Set[tuple[str, int]]) -> set[str]:
    """Return the manifests that are of purged versions alone, with their variants, in hex."""
    going, staying = set[str](), set[str]()
    for log in logs:
        if log.name == VERSION_LOG or log.name.startswith(VARIANTS):
            for entry in log.entries:
                number = entry.version or entry.seq  # a release has its own alone
                if entry.manifest is not None:
                    (going if (log.title, number) in purged else staying).add(entry.manifest)
    return going - staying


def _pinned(pins: Iterable[PinnedVersion], purged: Set[str]) -> Iterator[Root]:
    """Return what pins hold but these manifests; a rollout's says of which alias it is alone."""
    for pin in pins:
        if pin.version.hex not in purged:
            model, number = pinned(pin.ref) or ("", 0)
            why = f"pin of {pin.who}"
            yield Root(pin.version, "live", why, pin.ref, model=model, number=number)


def _alias(log: Log) -> str:
    return f"alias {log.title}@{log.name.removeprefix(ALIASES)}"


def _held_by_alias(log: Log, now: _Now) -> Iterator[_Held]:
    """Return what an alias means, what it meant lately (SPEC 9.1), and would go back to."""
    removed = now.ends_s.get(log.model, {})
    alias = _alias(log)

    def held(one: Meant, why: str, is_removed: bool) -> _Held:
        return log.title, one.version, replace(_meant(one, log, why), is_removed=is_removed)

    meant = current(log.entries)
    for one in meant:  # whoever follows the alias loads it, removed or not
        yield held(one, alias, False)
    if meant:  # a removed version would stay for ever for an alias that is gone
        before = goes_back_to(log.entries[-1], lambda seq: log.entries[seq - 1])
        if before is not None:
            for one in current([before])[:1]:
                why = f"rollback of {alias.removeprefix('alias ')}"
                yield held(one, why, one.version in removed)
    history_s = now.retentions.alias_history_s(log.title) if len(log.entries) > 1 else 0
    why = f"{alias} left it {_lately(history_s)}"
    for one in meant_since(log.entries, (now.now_s - history_s) * 1e6, now.now_s * 1e6):
        yield held(one, why, one.version in removed)


def _releases(logs: Iterable[Log], now: _Now) -> Iterator[_Held]:
    """Return the releases that stay."""
    for log in logs:
        if log.name == VERSION_LOG:
            for entry in log.entries:
                if entry.action == RELEASED and entry.manifest is not None:
                    digest = Digest.from_hex(entry.manifest)
                    root = now.root(log, entry.seq, digest, what="release ")
                    if root is not None:
                        yield log.title, entry.seq, root


def _of_entries(entries: Iterable[RefEntry], log: Log, why: str) -> Iterator[Root]:
    """Return what entries of a log mean."""
    for entry in entries:
        for one in current([entry]):
            yield _meant(one, log, why)


def _meant(one: Meant, log: Log, why: str) -> Root:
    """Return the root of a version that an entry of an alias means."""
    why = f"rollout of {why}" if one.is_rollout else why
    digest, ref = Digest.from_hex(one.manifest), f"{log.title}@{one.version}"
    return Root(digest, "live", why, ref, model=log.title, number=one.version)
