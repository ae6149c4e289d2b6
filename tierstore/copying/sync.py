"""Brings what one store has to another: models, their versions in order, releases, aliases.

Nothing is ever put before what is there: a version that the target lacks comes behind those that
it has, so an older one is left out, as it would be the newest there. What was removed in the target
stays removed, and what was removed in the source is not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tierstore.arguments import as_text, as_texts, wrong
from tierstore.copying.copying import copy_release
from tierstore.copying.matching import selected
from tierstore.copying.models import ModelCopy
from tierstore.copying.pairs import Pairs
from tierstore.copying.report import CopiedAlias, CopiedVersion, DeletedVersion, Synced
from tierstore.errors import (
    Conflict,
    Damaged,
    InvalidName,
    NotFound,
    TierstoreError,
    UnsupportedFormat,
    UsageError,
)
from tierstore.ids import check_name
from tierstore.modelstore.names.members import members_of
from tierstore.modelstore.reclaim.feature import check_enabled, is_enabled
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import RELEASED, Version
from tierstore.progress import Progress, reported

_Refused = (Conflict, Damaged, InvalidName, NotFound, UnsupportedFormat)
"""What ends the copy of one version, and not that of others."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a sync is to bring, and how.

    Attributes:
        models: Globs of the names of models and releases; empty for all.
        versions: Which versions of each, as ``matching.selected`` takes them.
        aliases: Whether aliases are set as they are in the source.
        history: Whether entries keep their times, and who wrote them.
        delete: Whether versions, and with ``aliases`` aliases, that the source has not are removed.
        dry_run: Whether nothing is changed.
    """

    models: Sequence[str] = ()
    versions: str | None = None
    aliases: bool = False
    history: bool = False
    delete: bool = False
    dry_run: bool = False


def sync_stores(
    source: Store, target: Store, wanted: Wanted, progress: Progress | bool | None
) -> Synced:
    """Bring what one store has to another; see ``Store.sync``."""
    if not isinstance(target, Store):
        raise wrong("to", "a store, as tierstore.open gives it", target)
    as_texts("models", wanted.models, "['ranker', 'org/*']")
    if wanted.versions is not None:
        as_text("versions", wanted.versions, "numbers and ranges as text, such as '5-20'")
    if wanted.delete:
        check_enabled(target._parts.home)
    with reported(progress, "copying") as told:
        return Sync(source, target, wanted, told).run()


class Sync:
    """Brings what one store has to another.

    Args:
        source: The store that has it.
        target: The store that it comes to.
        wanted: What is to be brought, and how.
        progress: Called with the bytes done and the bytes in all of what is copied at a time.
    """

    def __init__(
        self, source: Store, target: Store, wanted: Wanted, progress: Progress | None
    ) -> None:
        if source.url == target.url:
            raise UsageError(f"{source.url} is given twice; name the store that it is copied to")
        selected(wanted.versions, ())  # before anything is read
        self._source, self._target, self._wanted = source, target, wanted
        self._progress = progress
        self._report = Synced(wanted.dry_run)
        self._pairs: dict[str, Pairs] = {}
        self._unread: TierstoreError | None = None
        self._told: set[str] = set()
        """What is in the report: a release names members again that came before it."""
        self._seen: set[bytes] = set()
        """With a dry run, the chunks that would be in the target by now."""

    def run(self) -> Synced:
        """Bring what is wanted; what fails for one version is in the report.

        Raises:
            BackendError: A storage failed. Run again, it goes on where it was.
            Damaged, NotFound: The newest entry of a model cannot be read; all others were copied.
            NotFound: There is no model of a name that is wanted, or none has a wanted version.
        """
        wanted = self._wanted
        names = [
            name
            for name in self._source.models()
            if not wanted.models or any(fnmatchcase(name, glob) for glob in wanted.models)
        ]
        unmet = [glob for glob in wanted.models if not any(fnmatchcase(one, glob) for one in names)]
        if unmet:
            raise NotFound(f"{self._source.url} has no model {', '.join(unmet)}: none was copied")
        if wanted.dry_run:
            self._target._parts.index.sync()
        late = set(self._source._names.removals.may_be_releases(names))  # behind their members
        for name in sorted(names, key=lambda name: (name in late, name)):
            try:
                self._bring(name)
            except _Refused as error:  # of its logs, or a name that is not free there
                self._note_failed(name, error)
        if self._unread is not None:
            raise self._unread
        if wanted.versions is not None and names and not self._report.versions:
            some = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
            raise NotFound(f"{some} have no version {wanted.versions}; nothing was copied")
        return self._report

    def _note_failed(self, name: str, error: TierstoreError) -> None:
        """Put what ended the copy of a whole model into the report; the others come all the same.

        Where not even its newest version is known, the error is raised once they have come.
        """
        try:
            newest = self._source.resolve(name)
        except _Refused:
            self._unread = self._unread or error
            return
        self._report.versions.append(CopiedVersion(newest, None, "failed", str(error)))
        self._report.is_damaged |= isinstance(error, Damaged | NotFound)

    def _bring(self, name: str) -> None:
        wanted = self._wanted
        check_name("model", name)  # a strange source may have any
        pairs = self._pairs_of(name)
        chosen = set(selected(wanted.versions, pairs.versions))
        for number, version in pairs.versions.items():
            if number not in chosen:
                continue
            try:
                for one in self._one(version, pairs):
                    if one.outcome != "there" or str(one.source) not in self._told:
                        self._report.versions.append(one)
                    self._told.add(str(one.source))
                    if one.source == version and one.version is not None:
                        pairs.note(number, one.version)
            except _Refused as error:
                self._report.versions.append(CopiedVersion(version, None, "failed", str(error)))
                self._report.is_damaged |= isinstance(error, Damaged | NotFound)
        if wanted.aliases:
            self._set_aliases(name, pairs)
        if wanted.delete:
            self._delete(name, pairs)

    def _pairs_of(self, name: str) -> Pairs:
        """Return which versions of a name both stores have; it reads each log once."""
        if name not in self._pairs:
            source, target = self._source, self._target
            last = source._parts.home.log(name).last()
            copier = ModelCopy(
                source,
                target,
                name,
                name,
                history=self._wanted.history,
                progress=self._progress,
                keep_numbers=is_enabled(target._parts.home),
                is_release=last is not None and last.action == RELEASED,
            )
            if not self._wanted.dry_run:
                copier.remove_holders()
            self._pairs[name] = Pairs(source, target, name, copier, self._number_there)
        return self._pairs[name]

    def _number_there(self, member: Version) -> int | None:
        return self._pairs_of(member.model).number_there(member.number)

    def _why_lacking(self, member: Version) -> str:
        """Return why a member of a release is not in the target, and cannot come with it."""
        pairs = self._pairs_of(member.model)
        if member.number not in pairs.versions:
            return f"{member} came or went since this began: run it again"
        why = pairs.why_left(member.number)
        return f"its member {member} is left out: {why}" if why else ""

    def _bring_member(self, member: Version) -> Iterator[CopiedVersion]:
        if why := self._why_lacking(member):
            raise Conflict(why)
        pairs = self._pairs_of(member.model)
        for one in pairs.copier.copy(member, pairs.there.get(member.number)):
            if one.source == member and one.version is not None:
                pairs.note(member.number, one.version)
            yield one

    def _one(self, version: Version, pairs: Pairs) -> Iterator[CopiedVersion]:
        there = pairs.there.get(version.number)
        if why := pairs.why_left(version.number):
            yield CopiedVersion(version, None, "left", why)
        elif self._wanted.dry_run:
            yield self._planned(version, there, pairs)
        elif not version.is_release:
            yield from pairs.copier.copy(version, there)
        elif there is not None:
            yield CopiedVersion(version, there, "there")
        else:
            yield from copy_release(self._source, version, self._target, self._bring_member)

    def _planned(self, version: Version, there: Version | None, pairs: Pairs) -> CopiedVersion:
        """Return what would come of a version; its variants are not looked at."""
        if there is not None:
            return CopiedVersion(version, there, "there")
        if version.is_release:
            for member in members_of(self._source._parts.home, version).values():
                if why := self._why_lacking(member):
                    raise Conflict(why)
        sent = 0 if version.is_release else pairs.copier.estimate(version, self._seen)
        pairs.plan(version.number)
        return CopiedVersion(version, None, "copied", sent_bytes=sent)

    # Aliases, and what the source does not have

    def _set_aliases(self, name: str, pairs: Pairs) -> None:
        target, report = self._target, self._report
        is_there = target._names.has(name)
        there = {one.name: one for one in target.aliases(name)} if is_there else {}
        wanted = self._source.aliases(name)
        for alias in wanted:
            now = there.get(alias.name)
            version = pairs.there.get(alias.version.number)
            if now is not None and now.version == version:
                report.aliases.append(CopiedAlias(name, alias.name, version, "there"))
                continue
            report.aliases.append(self._set(name, alias.name, alias.version, version))
        for gone in there.keys() - {one.name for one in wanted} if self._wanted.delete else ():
            report.aliases.append(self._unset(name, gone))

    def _set(self, name: str, alias: str, of: Version, version: Version | None) -> CopiedAlias:
        try:
            if not self._wanted.dry_run:
                if version is None:
                    raise NotFound(f"{of} of {self._source.url} is not in {self._target.url}")
                self._target.alias(name, alias, version, message=self._note)
        except _Refused as error:
            return CopiedAlias(name, alias, None, "failed", str(error))
        return CopiedAlias(name, alias, version, "copied")

    def _unset(self, name: str, alias: str) -> CopiedAlias:
        try:
            if not self._wanted.dry_run:
                self._target.remove_alias(name, alias, message=self._note)
        except _Refused as error:
            return CopiedAlias(name, alias, None, "failed", str(error))
        return CopiedAlias(name, alias, None, "removed")

    @property
    def _note(self) -> str:
        return f"as in {self._source.url}"

    def _delete(self, name: str, pairs: Pairs) -> None:
        """Remove the versions that the source has removed, or never had, as ``rm`` does.

        What came to the target since this began is left to the next sync: another one may have
        brought it, of which the log of the source that was read here knows nothing yet.
        """
        going_numbers = pairs.before - {version.number for version in pairs.there.values()}
        target = self._target
        every = target.versions(name) if target._names.has(name) else []
        going = [version for version in every if version.number in going_numbers]
        if not going:
            return
        if pairs.unread:
            number, error = min(pairs.unread.items())
            why = f"it may be {name}@{number} of {self._source.url}, which cannot be read: {error}"
            self._report.deleted += [DeletedVersion(version, why) for version in going]
            return
        newest = every[0]
        if newest in going:  # as rm without --force does
            going.remove(newest)
            why = (
                "it is the newest version there, which programs that know no removal go on "
                f"loading; 'tierstore rm {newest} --force --store {target.url}' removes it"
            )
            self._report.deleted.append(DeletedVersion(newest, why))
        if not going:
            return
        try:  # together: a patch goes with what it lies on
            self._remove(going)
            self._report.deleted += map(DeletedVersion, going)
        except Conflict:
            for version in going:
                try:
                    self._remove([version])
                    self._report.deleted.append(DeletedVersion(version))
                except Conflict as error:
                    self._report.deleted.append(DeletedVersion(version, str(error)))

    def _remove(self, versions: Sequence[Version]) -> None:
        if not self._wanted.dry_run:
            note = f"not in {self._source.url}"
            self._target.remove(*versions, message=note)
