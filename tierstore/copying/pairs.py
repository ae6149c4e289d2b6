"""Which versions of a name both stores have, and why others are not copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import msgspec

from tierstore.copying.matching import match
from tierstore.copying.models import ModelCopy
from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.reflog import RefEntry
from tierstore.modelstore.names.members import members_of
from tierstore.modelstore.names.releases import named_digest
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version, version_of


class Pairs:
    """The versions of a name in the source, and which of them the target has.

    Releases are compared by what their members are called in the target, as each store numbers
    these itself.

    Args:
        source: The store that is copied.
        target: The store that it comes to.
        name: Name of the model, or the release.
        copier: What copies it.
        number_there: Returns the number in the target of a member of a release, removed or not;
            ``None`` where the target never had it.

    Attributes:
        copier: As given.
        versions: Those in force in the source, by number, rising.
        there: The same in the target, as far as they are in force there, by number in the source.
        before: The numbers that the target had when its log was read, before the source's.
        unread: Why releases are not compared, by number: their members cannot be read.
    """

    def __init__(
        self,
        source: Store,
        target: Store,
        name: str,
        copier: ModelCopy,
        number_there: Callable[[Version], int | None],
    ) -> None:
        self.copier = copier
        self.before = frozenset(copier.entries)
        self._source, self._target, self._number_there = source, target, number_there
        entries = {entry.seq: entry for entry in source._parts.home.log(name).entries()}
        removed = source._names.removals.of(name)
        self.versions = {
            number: version_of(name, entries[number])
            for number in sorted(entries)
            if number not in removed
        }
        self.unread: dict[int, str] = {}
        own = list(self._as_there(name, entries.values()))
        self._matched = match(own, [one for one in copier.entries.values() if not one.holds_number])
        self.there = {
            number: copier.version(at)
            for number, at in self._matched.items()
            if number in self.versions and at not in copier.removed
        }
        self._newest = max(self.there, default=0)
        self._planned: set[int] = set()

    def _as_there(self, name: str, entries: Iterable[RefEntry]) -> Iterator[RefEntry]:
        """Yield the entries with the digests that their content has in the target."""
        for entry in entries:
            version = version_of(name, entry)
            if not version.is_release:
                yield entry
                continue
            try:
                named = members_of(self._source._parts.home, version)
            except (Damaged, NotFound, UnsupportedFormat) as error:
                if entry.seq in self.versions:
                    self.unread[entry.seq] = str(error)
                continue
            numbers = {model: self._number_there(member) for model, member in named.items()}
            called = {
                model: replace(named[model], number=number)
                for model, number in numbers.items()
                if number is not None
            }
            if len(called) == len(named):  # else the target cannot have it
                digest = named_digest(self._target._parts.home, called)
                yield msgspec.structs.replace(entry, manifest=digest.hex)

    def number_there(self, number: int) -> int | None:
        """Return the number of a version in the target, removed or not; ``None`` if not there."""
        if number in self.there:
            return self.there[number].number
        return self._matched.get(number)

    def note(self, number: int, version: Version) -> None:
        """Take note that a version is in the target by now."""
        self.there[number] = version
        self._newest = max(self._newest, number)

    def plan(self, number: int) -> None:
        """Take note that a version would be in the target by now."""
        self._planned.add(number)
        self._newest = max(self._newest, number)

    def why_left(self, number: int) -> str:
        """Return why a version is not copied; nothing where it is, is there, or cannot be read."""
        version = self.versions[number]
        if number in self.there or number in self._planned or number in self.unread:
            return ""
        if number in self._matched:
            return self.copier.why_removed(self._matched[number])
        if number < self._newest:
            newer = self.there.get(self._newest, self.versions[self._newest])
            return (
                f"it is older than {newer}, which is there, and would be the newest version; "
                f"'tierstore cp {version}' copies it all the same"
            )
        return ""
