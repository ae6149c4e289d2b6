"""The look after a name was given: whoever lets something name a version makes it (SPEC.md 9.1).

Who removes a version announces it, and then looks for names; who names it looks for removals, and
stops one that is announced: so at least one of them sees the other, and who dies in between has
removed nothing. Who condemns packs looks at names after saying so, and who names a version looks at
its packs after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeAlias

from tierstore.errors import Conflict, NotFound, TierstoreError
from tierstore.format.keys import REMOVED_LOG
from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.modelstore.home.ahead import parallel
from tierstore.modelstore.home.chain import Chain, find_chain
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.refs import NOWHERE, RefTarget
from tierstore.modelstore.names.members import contents_of, members_of
from tierstore.modelstore.names.removed import Removals
from tierstore.modelstore.version import Version

Keep: TypeAlias = Callable[[str, Callable[[], Iterable[Chain]], bool], None]
"""Sees to it that packs stay, or raises ``NotFound``.

It gets what the versions are called, a function that returns how they are read, and whether they
were ever removed.
"""


class _Over(Exception):
    """A removal is not announced any more."""


class Named:
    """Looks at versions that were just named, or brought back.

    Args:
        home: The store's home.
        removals: What is removed.
        keep: Sees to it that the packs of versions stay.
    """

    def __init__(self, home: Home, removals: Removals, keep: Keep) -> None:
        self._home, self._removals, self._keep = home, removals, keep

    def refuse_removed(self, model: str, number: int, meanwhile: str = "") -> None:
        """Raise ``NotFound`` for a version that is removed.

        Args:
            model: Name of the model.
            number: Number of the version.
            meanwhile: What was undone for it, to be said too.
        """
        entry = self._removals.of(model).get(number)
        if entry is not None:
            raise NotFound(f"{self._removals.why(model, number, entry)}{meanwhile}")

    def stop_removal(self, model: str, number: int, note: str) -> bool:
        """Stop the removal of a version that was announced, and is not done yet.

        Args:
            model: Name of the model.
            number: Number of the version.
            note: Who needs the version, for the log.

        Returns:
            Whether the version is removed already.
        """

        def target(last: RefEntry | None) -> RefTarget:
            if number not in self._removals.announced(model):
                raise _Over
            return NOWHERE

        removed, announced = self._removals.both(model)
        if number in announced:
            with suppress(_Over):  # it is done by now, or somebody else has stopped it
                self._home.log(model, REMOVED_LOG).append("undelete", target, note, [number])
            removed = self._removals.of(model)
        return number in removed

    def look(
        self,
        versions: Iterable[Version],
        take_back: Callable[[str], str],
        is_settled: bool = False,
    ) -> None:
        """See that versions which an entry names are in force and stay, or take the entry back.

        A removal that is announced only is stopped.

        Args:
            versions: The versions.
            take_back: Takes the entry back: called with the reason, for the log; returns in words
                what was done.
            is_settled: Whether the caller has published the versions, and looked at the condemned
                list after that.

        Raises:
            NotFound: A version is removed, or packs that it needs are gone.
            Conflict: A version was removed and brought back just now.
        """
        if not self._home.reclaims:
            return
        for version in versions:
            note = f"{version} is named again"
            if self.stop_removal(version.model, version.number, note):
                note = f"{version} was removed"
                done = take_back(note)
                self.refuse_removed(version.model, version.number, f". {done}")
                # whoever removed it saw the entry, too
                raise Conflict(f"{note} just now and brought back. {done}; try again")
            if is_settled and version.number not in self._removals.ever(version.model):
                continue  # in force since it was whole: every collector has seen it
            try:
                self.keep_version(version)
            except TierstoreError as error:
                done = take_back(f"undone: {error}"[:500])
                raise type(error)(f"{error}. {done}") from error

    def keep_version(self, version: Version) -> None:
        """See to it that all stays which nodes may serve of a version that is in force."""
        home = self._home

        def chains() -> list[Chain]:
            return parallel(lambda one: find_chain(home, one), contents_of(home, version))

        self._keep(str(version), chains, self._were_removed([version, *self.members(version)]))

    def keep_below(self, base: Version, chain: Chain) -> None:
        """See to it that all stays which a patch of a version lies on.

        As long as that version was never removed every collector has kept it, so that nothing but
        the log of removals is looked at.
        """
        if self._home.reclaims and self._were_removed([base]):
            self._keep(str(base), lambda: [chain], True)

    def keep_digest(self, what: str, digest: Digest, were_removed: bool) -> None:
        """See to it that all stays which reading a manifest needs."""
        self._keep(what, lambda: [find_chain(self._home, digest)], were_removed)

    def _were_removed(self, versions: Iterable[Version]) -> bool:
        found = False
        for one in versions:
            self._removals.of(one.model)  # reads on
            found |= one.number in self._removals.ever(one.model)
        return found

    def remove(self, model: str, number: int, note: str) -> None:
        """Remove a version that was just published by the caller, and that nobody can rely on."""
        log = self._home.log(model, REMOVED_LOG)
        log.append("forget", lambda last: NOWHERE, note, [number])

    def members(self, version: Version) -> list[Version]:
        """Return the versions that a release names; none for any other version."""
        return list(members_of(self._home, version).values()) if version.is_release else []
