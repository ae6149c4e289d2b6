"""Versions are removed and brought back: entries, then looks (SPEC.md section 9.1)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from tierstore.arguments import as_message, as_number
from tierstore.errors import Conflict, Damaged, NotFound, TierstoreError, UsageError
from tierstore.format.keys import ALIASES, REMOVED_LOG
from tierstore.format.reflog import MAX_REMOVED, Action, RefEntry
from tierstore.format.retention import Rules
from tierstore.ids import ModelRef, check_name
from tierstore.modelstore.home.refs import NOWHERE, RefTarget
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.reclaim.feature import check_enabled, is_enabled
from tierstore.modelstore.reclaim.holders import Content, Holders
from tierstore.modelstore.reclaim.reserve import with_reserve
from tierstore.modelstore.reclaim.rules import Candidate, kept_by
from tierstore.modelstore.version import Version, version_of, when

MOST_PERCENT = 20.0
"""Rules remove no more of a model's versions at once unless somebody allows it."""

_SHOWN = 5
_FIRST = {
    "alias": "point the alias elsewhere ('tierstore alias set') or remove it",
    "rollout": "let the rollout end ('tierstore rollout abort')",
    "release": "remove the release",
    "pin": "take off the pin ('tierstore unpin')",
    "lease": "end the process that reads it, or wait for it",
    "patch": "remove the patch as well, or fold it ('tierstore fold')",
}
"""What to do about who names a version, by the first word of the reason."""

_ROUNDS = 5
_log = logging.getLogger("tierstore.removal")
_Target: TypeAlias = Callable[[RefEntry | None], RefTarget]


@dataclass(frozen=True, slots=True)
class RemovedVersion:
    """A version that was removed.

    Attributes:
        version: The version.
        removed: When it was removed, by the clock of whoever did it, in UTC.
        who: Who removed it, as ``user@host``.
        message: Why.
        until: Until when it can be brought back for certain.
    """

    version: Version
    removed: datetime
    who: str
    message: str
    until: datetime


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A version that stays, and what keeps it: rules, and who names it."""

    version: Version
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What rules made of the versions of a model.

    Attributes:
        model: The model's name.
        kept: The versions that stay, newest first, each with its reasons.
        removed: The versions that were removed, newest first; with ``dry_run`` those that would be.
        dry_run: Whether nothing was removed.
    """

    model: str
    kept: list[KeptVersion]
    removed: list[Version]
    dry_run: bool


class Removing:
    """Removes versions of a store and brings them back.

    Args:
        names: The names of the store.
    """

    def __init__(self, names: Names) -> None:
        self._names, self._home = names, names.home

    def remove(
        self, refs: Iterable[str | Version], *, force: bool, message: str | None
    ) -> list[Version]:
        """Remove versions, all or none; see ``Store.remove``."""
        note = as_message(message)
        check_enabled(self._home)
        going: dict[str, dict[int, Version]] = {}
        for version in [self._names.resolve(_as_text(ref)) for ref in refs]:
            if version.variant is not None:
                raise UsageError(
                    f"{version} is a variant, which goes with its version and not without it: "
                    f"remove {version.model}@{version.number}"
                )
            going.setdefault(version.model, {})[version.number] = version
        if not going:
            raise UsageError("no version was named; give references, such as 'ranker@3'")
        holders = Holders(self._names)
        plans = {
            model: self._planned(holders, model, sorted(versions), force)
            for model, versions in going.items()
        }
        for model, (contents, staying) in plans.items():
            self._forget(holders, model, contents, staying, note)
        return [version for versions in going.values() for version in versions.values()]

    def remove_model(self, model: str, *, message: str | None) -> list[Version]:
        """Remove all versions of a model; see ``Store.remove_model``."""
        versions = self._names.versions(check_name("model", model))
        return self.remove(versions, force=True, message=message)

    def _planned(
        self, holders: Holders, model: str, numbers: Sequence[int], force: bool
    ) -> tuple[dict[int, Content], frozenset[str]]:
        """Return what would go, and the digests of what stays; ``Conflict`` when it is needed."""
        newest = self._names.newest(model)
        assert newest is not None
        if newest.seq in numbers and not force:
            raise Conflict(
                f"{model}@{newest.seq} is the newest version of {model!r}, which programs that "
                "know no removal go on loading: update them all, then give force=True (--force); "
                f"'tierstore rm {model} --all' removes the whole model"
            )
        contents = holders.contents(model, self._present(model))
        if gone := [number for number in numbers if number not in contents]:
            raise Conflict(_gone_meanwhile(model, gone[0]))
        going = {number: contents[number] for number in numbers}
        stays = {number: one for number, one in contents.items() if number not in going}
        staying = frozenset(digest for one in stays.values() for digest in one.digests)
        held = holders.named(model, going, staying)
        newer = {number: one for number, one in stays.items() if number > min(numbers)}
        chains = holders.chains(model, newer)
        for number, content in going.items():
            patch = chains.get(content.entry.manifest or "")
            if patch is not None and content.entry.manifest not in staying:
                held.setdefault(number, []).append(f"patch {patch}, which lies on it")
        _refuse_held(model, held)
        return going, staying

    def _present(self, model: str) -> list[int]:
        """Return the numbers of the versions that are not removed, newest first."""
        last, removed = self._names.removals.last(model)
        top = 0 if last is None else last.seq
        return [number for number in range(top, 0, -1) if number not in removed]

    def _forget(
        self,
        holders: Holders,
        model: str,
        going: Mapping[int, Content],
        staying: frozenset[str],
        note: str,
    ) -> None:
        """Announce that versions are removed, look who names them, and if nobody does, say so.

        Whoever names one of them stops the removal as long as it is announced only: then the entry
        that is the newest about its number is another one.
        """
        numbers = sorted(going)
        batches = [numbers[at : at + MAX_REMOVED] for at in range(0, len(numbers), MAX_REMOVED)]
        log = self._home.log(model, REMOVED_LOG)
        done: list[list[int]] = []

        def in_force(last: RefEntry | None) -> RefTarget:
            removed = self._names.removals.of(model)
            if gone := [number for number in numbers if number in removed]:
                raise Conflict(_gone_meanwhile(model, gone[0]))
            return NOWHERE

        def append(action: Action, target: _Target, batch: Sequence[int]) -> int:
            entry = with_reserve(self._home.blobs, lambda: log.append(action, target, note, batch))
            return entry.seq

        announcements = [append("announce", in_force, batch) for batch in batches]
        _refuse_held(model, holders.named(model, going, staying))
        try:
            for batch, seq in zip(batches, announcements, strict=True):
                append("forget", self._still_announced(model, batch, seq), batch)
                done.append(batch)
        except BaseException as error:
            for batch in done:
                log.append("undelete", lambda last: NOWHERE, _undone(error), batch)
            self._look_after(model, {n: going[n] for batch in done for n in batch})
            raise

    def _still_announced(self, model: str, batch: Sequence[int], seq: int) -> _Target:
        """Return a target that is refused unless entry ``seq`` is the newest about all of these."""

        def target(last: RefEntry | None) -> RefTarget:
            found = self._names.removals.announced(model)
            for number in batch:
                if number not in found or found[number].seq != seq:
                    raise Conflict(
                        f"{model}@{number} was named, or removed by somebody else, just now; "
                        f"nothing of {model} was removed: look at it and try again"
                    )
            return NOWHERE

        return target

    def _look_after(self, model: str, back: Mapping[int, Content]) -> None:
        """See to it that versions stay whose removal was undone: a collector may have seen it."""
        for number, content in back.items():
            version = version_of(model, content.entry)
            try:
                self._names.named.keep_version(version)
            except (NotFound, Damaged) as error:
                _log.warning("%s stays removed: %s", version, error)
                log = self._home.log(model, REMOVED_LOG)
                log.append("forget", lambda last: NOWHERE, _undone(error), [number])

    def undelete(self, ref: str | Version, *, message: str | None) -> Version:
        """Bring a removed version back; see ``Store.undelete``."""
        note = as_message(message)
        is_enabled(self._home)  # asks whether it was since the store was opened
        version = self._removed_version(ModelRef.parse(_as_text(ref)))
        check_enabled(self._home)
        model, number = version.model, version.number

        def target(last: RefEntry | None) -> RefTarget:
            if number not in self._names.removals.of(model):
                raise Conflict(f"{version} was brought back by somebody else just now")
            return NOWHERE

        self._see_whole(version)  # what is gone already never comes into force, if we end here, too
        self._home.log(model, REMOVED_LOG).append("undelete", target, note, [number])
        for again in reversed(range(_ROUNDS)):
            try:
                self._see_whole(version)
                return version
            except BaseException as error:
                # who named it meanwhile saw that it was whole, or sees now that it is not
                is_removed = self._remove_again(version, _undone(error))
                if is_removed or not again or not isinstance(error, TierstoreError):
                    raise
        raise AssertionError  # the last round returns or raises

    def _remove_again(self, version: Version, note: str) -> bool:
        """Remove a version that was brought back too late; return ``False`` when it is named."""
        model, batch = version.model, [version.number]
        log = self._home.log(model, REMOVED_LOG)
        seq = log.append("announce", lambda last: NOWHERE, note, batch).seq
        if self._is_named(version):
            return False
        try:
            log.append("forget", self._still_announced(model, batch, seq), note, batch)
        except Conflict:
            return False
        return True

    def _is_named(self, version: Version) -> bool:
        holders = Holders(self._names)
        contents = holders.contents(version.model, [version.number])
        return bool(holders.named(version.model, contents, frozenset()))

    def _removed_version(self, ref: ModelRef) -> Version:
        """Return the removed version that a reference names."""
        if ref.variant is not None:
            raise UsageError(f"{ref} is a variant: it comes back with its version")
        removed = self._names.removals.of(ref.model)
        found = [version_of(ref.model, one.entry) for one in self._entries(ref.model, removed)]
        if ref.number is not None:
            chosen = [version for version in found if version.number == ref.number]
        elif ref.prefix is not None:
            chosen = [version for version in found if version.digest.hex.startswith(ref.prefix)]
        else:
            chosen = found
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            some = ", ".join(str(version) for version in chosen[:_SHOWN])
            raise UsageError(
                f"{len(chosen)} removed versions are meant by {ref}, {some} among them; name one"
            )
        self._names.resolve(str(ref))  # says what does not exist
        raise UsageError(f"{ref} is not removed; 'tierstore ls --deleted' lists what is")

    def _entries(self, model: str, removed: Iterable[int]) -> list[Content]:
        numbers = sorted(removed, reverse=True)
        entries = self._home.log(model).numbered(numbers)
        return [Content(entry, frozenset()) for entry in entries]

    def _see_whole(self, version: Version) -> None:
        """Raise ``NotFound`` unless all that a version needs is there, and will stay."""
        for member in self._names.named.members(version):
            note = f"{version} names {member} again"
            if self._names.named.stop_removal(member.model, member.number, note):
                self._names.refuse_removed(member.model, member.number)
        try:
            self._names.named.keep_version(version)
        except (NotFound, Damaged) as error:
            raise NotFound(f"it is too late for {version}: {error}") from error

    def deleted(self, model: str | None) -> list[RemovedVersion]:
        """Return the versions that are removed; see ``Store.deleted``."""
        if model is not None:
            last, _ = self._names.removals.last(check_name("model", model))
            if last is None:
                self._names.resolve(model)  # says so
        found = []
        for name in self._home.models() if model is None else [check_name("model", model)]:
            removed = self._names.removals.of(name)
            for content in self._entries(name, removed):
                by = removed[content.entry.seq]
                version = version_of(name, content.entry)
                until = self._names.removals.until(name, by)
                found.append(RemovedVersion(version, when(by), by.who, by.message, until))
        return found

    def forget(
        self,
        model: str,
        rules: Rules,
        *,
        dry_run: bool,
        most_percent: float,
        message: str | None,
    ) -> Forgotten:
        """Remove the versions of a model that no rule keeps; see ``Store.forget``."""
        note = as_message(message)
        most = as_number("most_percent", most_percent, "a share in percent, 0 to 100", 0)
        if not dry_run:
            check_enabled(self._home)
        model = check_name("model", model)
        self._names.newest(model)  # says when there is none
        holders = Holders(self._names)
        contents = holders.contents(model, self._present(model))
        if not contents:
            raise NotFound(f"there is no model {model!r}; 'tierstore ls' lists them")
        kept = self._kept(holders, model, rules, contents)
        going = {number: one for number, one in contents.items() if number not in kept}
        staying = frozenset(digest for number in kept for digest in contents[number].digests)
        share = 100 * len(going) / len(contents)
        if not dry_run and share > most:
            enough = math.ceil(share)
            raise Conflict(
                f"{len(going)} of the {len(contents)} versions of {model} would be removed, which "
                f"is more than {most:g} % of them: look at them with dry_run=True (--dry-run), "
                f"then allow it with most_percent={enough} (--yes, or --most-percent {enough})"
            )
        if going and not dry_run:
            self._forget(holders, model, going, staying, note)
        return Forgotten(
            model,
            [
                KeptVersion(version_of(model, contents[number].entry), tuple(kept[number]))
                for number in sorted(kept, reverse=True)
            ],
            [version_of(model, going[number].entry) for number in sorted(going, reverse=True)],
            dry_run,
        )

    def _kept(
        self, holders: Holders, model: str, rules: Rules, contents: Mapping[int, Content]
    ) -> dict[int, list[str]]:
        """Return what stays, with the reasons: rules, names, and what patches lie on."""
        aliases: dict[int, list[str]] = {}
        for alias in self._home.aliases(model):
            last = self._home.log(model, ALIASES + alias).last()
            if last is not None and last.version is not None:
                aliases.setdefault(last.version, []).append(alias)
        candidates = [
            Candidate(
                number,
                when(one.entry),
                (*aliases.get(number, ()), one.entry.message),
                holders.is_patch(one),
            )
            for number, one in contents.items()
        ]
        kept = {max(contents): ["newest"]}
        for reasons in (
            kept_by(rules, candidates, datetime.now(UTC)),
            holders.named(model, contents, frozenset()),
            holders.left(model),
        ):
            for number, why in reasons.items():
                if number in contents:
                    kept.setdefault(number, []).extend(why)
        chains = holders.chains(model, {number: contents[number] for number in kept})
        for number, one in contents.items():
            patch = chains.get(one.entry.manifest or "")
            if patch is not None:
                kept.setdefault(number, []).append(f"patch {patch} lies on it")
        return {number: list(dict.fromkeys(why)) for number, why in kept.items()}


def _as_text(ref: str | Version) -> str:
    """Return a reference as text: whether a version is removed is looked up by its number."""
    return str(ref) if isinstance(ref, Version) else ref


def _refuse_held(model: str, held: Mapping[int, Sequence[str]]) -> None:
    """Raise ``Conflict`` when versions that are to go are needed, with all the reasons."""
    if not held:
        return
    needed = [f"{model}@{number} is needed by {', '.join(held[number])}" for number in sorted(held)]
    more = f"; and {len(needed) - _SHOWN} more" if len(needed) > _SHOWN else ""
    kinds = {reason.partition(" ")[0] for reasons in held.values() for reason in reasons}
    first = ", ".join(what for kind, what in _FIRST.items() if kind in kinds)
    raise Conflict(
        f"{'; '.join(needed[:_SHOWN])}{more}; nothing of {model} was removed: first {first}"
    )


def _gone_meanwhile(model: str, number: int) -> str:
    return (
        f"{model}@{number} was removed by somebody else just now; 'tierstore ls {model} --deleted' "
        "says by whom"
    )


def _undone(error: BaseException) -> str:
    if isinstance(error, TierstoreError):
        return f"undone: {error}"[:500]
    return "undone: it was interrupted"
