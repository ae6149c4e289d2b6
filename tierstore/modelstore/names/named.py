"""The look after a name was given: whoever lets something name a version makes it (SPEC.md 9.1).

Who removes a version announces it, and then looks for names; who names it looks for removals, and
stops one that is announced (``removalprotocol.py``). Who condemns packs looks at names after saying
so, and who names a version looks at its packs after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from tierstore.errors import Conflict, NotDurable, NotFound, TierstoreError
from tierstore.format.keys import version_key
from tierstore.format.reflog import Action, RefEntry
from tierstore.format.storeconfig import reclaims
from tierstore.ids import Digest
from tierstore.modelstore.home.ahead import parallel
from tierstore.modelstore.home.home import Home, read_config
from tierstore.modelstore.home.refs import RefLog, RefTarget
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.home.settling import Purged, appended, retold, taken_back
from tierstore.modelstore.names.members import contents_of, members_of
from tierstore.modelstore.names.purgerecords import give_order, take_order_back
from tierstore.modelstore.names.removalprotocol import (
    Removal,
    RemovalProtocol,
    purge_lost,
    undone,
)
from tierstore.modelstore.names.removed import PURGE, Removals
from tierstore.modelstore.version import Version, version_of

if TYPE_CHECKING:
    from tierstore.modelstore.home.chain import Chain

Keep: TypeAlias = "Callable[[str, Callable[[], Iterable[Chain]], bool], None]"
"""Sees to it that packs stay, or raises ``NotFound``.

It gets what the versions are called, a function that returns how they are read, and whether they
were ever removed.
"""


class Named:
    """Looks at versions that were just named, or brought back.

    Args:
        home: The store's home.
        removals: What is removed.
        keep: Sees to it that the packs of versions stay.
        is_needed: Whether anything but a reader's lease refuses the removal of a version.
    """

    def __init__(
        self, home: Home, removals: Removals, keep: Keep, is_needed: Callable[[Version], bool]
    ) -> None:
        self._home, self._removals = home, removals
        self._keep, self._is_needed = keep, is_needed
        self.protocol = RemovalProtocol(home, removals)

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

    def look(
        self,
        versions: Iterable[Version],
        take_back: Callable[[str], str],
        is_settled: bool = False,
    ) -> None:
        """See that versions which an entry names are in force and stay, or take the entry back.

        A removal that is announced only is stopped. Whatever fails, Ctrl-C too, the entry is taken
        back.

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
        try:
            self.see(versions, is_settled)
        except BaseException as error:
            retold(error, taken_back(lambda why: take_back(undone(why)), error))

    def see(self, versions: Iterable[Version], is_settled: bool = False) -> None:
        """See that versions which an entry names are in force and stay, as ``look`` does.

        Whoever calls it takes the entry back.
        """
        if not self._home.reclaims:
            return
        for version in versions:
            self._see(version, is_settled)

    def put_back(
        self, model: str, log: RefLog, new: RefEntry, before: RefTarget, action: Action, note: str
    ) -> str:
        """Let an alias mean what it did before an entry; return in words what that is.

        It is looked at, too, but led nowhere else for that: whatever the look says, it is what the
        alias meant. The alias is removed if that is nothing, or a version that is removed by now.

        Args:
            model: Name of the model.
            log: The alias's log.
            new: The entry, its newest one.
            before: What the alias meant before.
            action: The action that leads back to a version.
            note: Why, for the log.

        Raises:
            Conflict: Somebody moved the alias since.
        """
        number = before.version
        if number is not None and not self._is_known_as_removed(model, number):
            new, flaw = self._append_behind(log, action, new, before, note)
            told = "" if flaw is None else f", but: {flaw}"
            where = f"{log.title} points to {model}@{number} as before{told}"
            try:
                self._see(version_of(model, self._home.log(model).entry(number)), False)
                return where
            except TierstoreError as error:
                if not self._is_known_as_removed(model, number):
                    return f"{where}; looking at that ended with: {error}"
        _, flaw = self._append_behind(log, "remove", new, RefTarget(None, None, new.seq), note)
        return f"{log.title} is gone" + ("" if flaw is None else f", but: {flaw}")

    def _is_known_as_removed(self, model: str, number: int) -> bool:
        try:
            return number in self._removals.of(model)
        except TierstoreError:
            return False

    def _append_behind(
        self, log: RefLog, action: Action, seen: RefEntry, to: RefTarget, note: str
    ) -> tuple[RefEntry, NotDurable | None]:
        def target(last: RefEntry | None) -> RefTarget:
            if last is None or last.seq != seen.seq:
                raise Conflict(f"somebody moved {log.title} again just now; look at it")
            return to

        return appended(
            lambda: with_reserve(self._home.blobs, lambda: log.append(action, target, note)),
            log.own,
        )

    def _see(self, version: Version, is_settled: bool) -> None:
        note = f"{version} is named again"
        if self.protocol.stop(version.model, version.number, note):
            self.refuse_removed(version.model, version.number)
            # whoever removed it saw the entry, too
            raise Conflict(f"{version} was removed just now and brought back; try again")
        if is_settled and version.number not in self._removals.ever(version.model):
            return  # in force since it was whole: every collector has seen it
        self.see_whole(version, note)

    def see_whole(self, version: Version, note: str) -> None:
        """See that all that nodes may serve of a version stays; of a release the members, too.

        Args:
            version: The version, which is named, or comes back.
            note: Who needs the members, for the log.

        Raises:
            NotFound: A member is removed, or packs are gone.
            Conflict: A member was removed and brought back just now.
        """
        from tierstore.modelstore.home.chain import find_chain

        home, members = self._home, self.members(version)
        for member in members:
            if self.protocol.stop(member.model, member.number, note):
                self.refuse_removed(member.model, member.number)
                raise Conflict(f"{member} was removed just now and brought back; try again")

        def chains() -> list[Chain]:
            return parallel(lambda one: find_chain(home, one), contents_of(home, version))

        self._keep(str(version), chains, self._were_removed([version, *members]))

    def look_below(self, base: Version, patch: str, chain: Chain) -> None:
        """See to it that all stays which a patch of a version lies on.

        A removal of that version that is announced only is stopped. Done with, it may stay removed:
        the patch needs its chunks. As long as the version was never removed every collector has
        kept it, so that nothing but the log of removals is looked at.

        Args:
            base: The version.
            patch: What the patch is called, for the log.
            chain: How the version is read.
        """
        if not self._home.reclaims:
            return
        self.protocol.stop(base.model, base.number, f"{patch} lies on it")
        if self._were_removed([base]):
            self._keep(str(base), lambda: [chain], True)

    def keep_digest(self, what: str, digest: Digest, were_removed: bool) -> None:
        """See to it that all stays which reading a manifest needs."""
        from tierstore.modelstore.home.chain import find_chain

        self._keep(what, lambda: [find_chain(self._home, digest)], were_removed)

    def _were_removed(self, versions: Iterable[Version]) -> bool:
        """Return whether versions were ever removed, as far as the logs were just read."""
        return any(one.number in self._removals.ever(one.model) for one in versions)

    def unpublish(self, version: Version, why: BaseException) -> str:
        """Take back a version whose writer was refused by its look; return in words what was done.

        What was refused because content was purged is removed for good: a window would keep that.
        Where its own manifest is gone, nobody can read it, whoever names it.

        Args:
            version: The version, a release, too.
            why: What the look ended with.
        """
        self._home.config = read_config(self._home.blobs)
        if not reclaims(self._home.config):
            return f"{version} is published all the same: nothing is removed from this store"
        note, is_removed = undone(why), True
        purged = _purged(why)
        if purged is None:
            is_removed = self.remove_own(version, note)
        elif purged == version.digest and not self._is_there(version):
            purge_lost(self._home, version.model, version.number, note)
        else:
            is_below = purged != version.digest  # else an order has its manifest
            if is_below:
                give_order(self._home, version.model, version.number, note)
            is_removed = self.remove_own(version, note, PURGE)
            if is_below and not is_removed:
                take_order_back(self._home, version.model, version.number)
        if is_removed:
            return f"{version} was published, and is removed again"
        return f"{version} was published, and stays, as something needs it by now"

    def _is_there(self, version: Version) -> bool:
        """Return whether the manifest of a version is there."""
        key = version_key(version.digest)
        return key in self._home.blobs.get_many([key])

    def remove_own(self, version: Version, note: str, action: Removal = "forget") -> bool:
        """Remove a version that its writer cannot promise to anybody, unless something needs it.

        What needs it was named since: whoever did that looks as well, and found it whole, or takes
        the name back. A reader's lease keeps what is left from being deleted, which is enough.

        Args:
            version: The version.
            note: Why, for the log.
            action: ``purge`` removes it for good.

        Returns:
            Whether it is removed.
        """
        try:
            [announced] = self.protocol.announce(version.model, [version.number], note)
        except Conflict:  # somebody else has removed it
            return True
        try:
            if not self._is_needed(version):
                if (flaw := self.protocol.forget(announced, note, action).flaw) is not None:
                    raise flaw
                return True
        except Conflict:  # somebody named it, or removed it
            return version.number in self._removals.of(version.model)
        except BaseException as error:
            self.protocol.undo(announced, undone(error))
            raise
        self.protocol.undo(announced, f"{version} is needed by now")
        return False

    def members(self, version: Version) -> list[Version]:
        """Return the versions that a release names; none for any other version."""
        return list(members_of(self._home, version).values()) if version.is_release else []


def _purged(why: BaseException | None) -> Digest | None:
    """Return the manifest whose purge an error is about, or what led to it; ``None``: no purge."""
    while why is not None and not isinstance(why, Purged):
        why = why.__cause__
    return None if why is None else why.digest
