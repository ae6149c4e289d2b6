"""The log of removals as it is written: who appends what, and who looks after (SPEC.md 9.1).

=========  ============================  ==========================  =========================
entry      appended by                   only if                     and then
=========  ============================  ==========================  =========================
announce   who removes versions          none of them is removed     looks who names them
forget     the same, if nobody does      its announce is the newest  has removed them
                                         entry about each of them
purge      the same, for good            the same, or it is removed  goes on by SPEC.md 10.3
undelete   the same, if anything stops   its announce or forget is   looks, after a forget, as
           it                            the newest about it         who brings one back
undelete   who names one of them, or     the removal is announced    looks if it is removed
           removes equal content
undelete   who brings one back           it is removed               looks at packs, members,
                                                                     and removes it again if
                                                                     something is lost
purge      who published one, or         its manifest is condemned   has nothing to do: it was
           collects                      and gone                    promised to nobody
=========  ============================  ==========================  =========================

``reclaim/removal.py`` removes and brings back, ``named.py`` names; ``tests/reclaim/model.py`` is
the model of both. Of one that removes and one that names at least one sees the other, as each looks
behind its own entry. What failures leave:

* Who removes is killed before the first forget: versions in force, announced for ever. The next one
  that names them, or for which equal content would have to stay, says undelete. Between two
  forgets: what is removed is.
* Who names ends between name and look: a name of a version that may be removed, promised to nobody.
  It leads to bytes that stay, as what names mean is a root of every mark.
* Who brings back ends between entry and look: a version in force that may have lost chunks,
  promised to nobody. A collector stops at it and names it, and it can be removed.

Home may be full: each entry may use the reserve, as nobody can free anything otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tierstore.errors import Conflict, NotDurable, OutOfSpace, TierstoreError
from tierstore.format.keys import REMOVED_LOG
from tierstore.format.reflog import MAX_REMOVED, Action, RefEntry
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.refs import NOWHERE, RefTarget
from tierstore.modelstore.home.reserve import NO_RESERVE, with_reserve
from tierstore.modelstore.home.settling import appended
from tierstore.modelstore.names.removed import Removals

_log = logging.getLogger("tierstore.removal")

Removal: TypeAlias = Literal["forget", "purge"]
"""The action of an entry that removes versions: within a window, or for good."""


@dataclass(frozen=True, slots=True)
class Appended:
    """An entry that was appended to a log of removals.

    Attributes:
        model: The model's name.
        numbers: The versions, rising.
        seq: The entry's number in the log of removals.
        flaw: What is wrong although it is there: a power loss may take it back.
    """

    model: str
    numbers: Sequence[int]
    seq: int
    flaw: NotDurable | None = None


class _Over(Exception):
    """A removal is not announced any more."""


class RemovalProtocol:
    """Writes the logs of removals of a store.

    Args:
        home: The store's home.
        removals: What is removed.
    """

    def __init__(self, home: Home, removals: Removals) -> None:
        self._home, self._removals = home, removals

    def announce(self, model: str, numbers: Sequence[int], note: str) -> Iterator[Appended]:
        """Announce that versions are removed; they are in force still.

        Args:
            model: The model's name.
            numbers: The versions, rising.
            note: Why, for the log.

        Yields:
            Each entry once it is there, one for 10,000 of them.

        Raises:
            Conflict: One of them is removed already.
            NotDurable: A power loss may take the last entry back.
        """

        def check() -> None:
            removed = self._removals.of(model)
            if gone := [number for number in numbers if number in removed]:
                raise Conflict(gone_meanwhile(model, gone[0]))

        batches = [numbers[at : at + MAX_REMOVED] for at in range(0, len(numbers), MAX_REMOVED)]
        for batch in batches:
            entry, flaw = self._append("announce", model, batch, note, check)
            yield Appended(model, batch, entry.seq, flaw)
            if flaw is not None:
                raise flaw

    def forget(self, announced: Appended, note: str, action: Removal = "forget") -> Appended:
        """Remove what was announced, and return the entry that says so.

        Args:
            announced: What was announced.
            note: Why, for the log.
            action: ``purge`` removes for good.

        Raises:
            Conflict: Another entry about one of the versions was appended since.
        """

        def check() -> None:
            found = self._removals.announced(announced.model)
            for number in announced.numbers:
                if number not in found or found[number].seq != announced.seq:
                    raise Conflict(
                        f"{announced.model}@{number} was named, or removed by somebody else, just "
                        "now; nothing was removed: look at it and try again"
                    )

        model, numbers = announced.model, announced.numbers
        entry, flaw = self._append(action, model, numbers, note, check)
        return Appended(model, numbers, entry.seq, flaw)

    def purge_removed(self, model: str, number: int, note: str) -> None:
        """Remove a version for good that is removed already: who names it sees that.

        Raises:
            Conflict: It is not removed any more.
        """

        def check() -> None:
            if number not in self._removals.of(model):
                raise Conflict(f"{model}@{number} was brought back just now: try again")

        _, flaw = self._append("purge", model, [number], note, check)
        if flaw is not None:
            raise flaw

    def stop(self, model: str, number: int, note: str) -> bool:
        """Stop the removal of a version that was announced, and is not done yet.

        Args:
            model: Name of the model.
            number: Number of the version.
            note: Who needs the version, for the log.

        Returns:
            Whether the version is removed already.
        """

        def check() -> None:
            if number not in self._removals.announced(model):
                raise _Over

        removed, announced = self._removals.both(model)
        if number in announced:
            flaw: NotDurable | None = None
            with suppress(_Over):  # it is done by now, or somebody else has stopped it
                _, flaw = self._append("undelete", model, [number], note, check)
            if flaw is not None:
                raise flaw
            removed = self._removals.of(model)
        return number in removed

    def bring_back(self, model: str, numbers: Sequence[int], note: str) -> NotDurable | None:
        """Bring removed versions back; return what is wrong although that is done.

        Raises:
            Conflict: One of them is not removed any more.
            NotFound: One of them was purged meanwhile.
        """

        def check() -> None:
            removed = self._removals.of(model)
            if back := [number for number in numbers if number not in removed]:
                raise Conflict(f"{model}@{back[0]} was brought back by somebody else just now")
            for number in numbers:
                self._removals.refuse_purged(model, number)

        return self._append("undelete", model, numbers, note, check)[1]

    def undo(self, own: Appended, note: str) -> list[int]:
        """Undo an entry that announced or removed versions.

        Those stay as they are about which somebody else has appended an entry since.

        Returns:
            The numbers of the others, which are in force then, and not about to be removed.
        """

        def check() -> None:
            if self._newest(own) != ours:
                raise _Over

        while ours := self._newest(own):
            with suppress(_Over):  # somebody else was faster with one of them
                _, flaw = self._append("undelete", own.model, ours, note, check)
                if flaw is not None:  # what it undoes has ended with an error that is told
                    _log.warning("%s", flaw)
                break
        return ours

    def _newest(self, own: Appended) -> list[int]:
        """Return the versions of an entry about which there is no newer one."""
        removed, announced = self._removals.both(own.model)
        newest = {**removed, **announced}
        return [
            number for number in own.numbers if number in newest and newest[number].seq == own.seq
        ]

    def _append(
        self,
        action: Action,
        model: str,
        numbers: Sequence[int],
        note: str,
        check: Callable[[], None],
    ) -> tuple[RefEntry, NotDurable | None]:
        """Append an entry behind a log that ``check`` has read to its end, and allows that."""

        def target(last: RefEntry | None) -> RefTarget:
            check()
            return NOWHERE

        log = self._home.log(model, REMOVED_LOG)
        try:
            return appended(
                lambda: with_reserve(
                    self._home.blobs, lambda: log.append(action, target, note, numbers)
                ),
                log.own,
            )
        except OutOfSpace as full:
            raise OutOfSpace(f"{full}. {NO_RESERVE}") from full


def purge_lost(home: Home, model: str, number: int, note: str) -> None:
    """Remove a version for good, as what it needs was purged and is gone.

    Whoever was to look at it and does not know that yet finds it out by that look.
    """
    log = home.log(model, REMOVED_LOG)
    with_reserve(home.blobs, lambda: log.append("purge", lambda last: NOWHERE, note, [number]))


def gone_meanwhile(model: str, number: int) -> str:
    """Return what is said where a version was removed since it was found."""
    return (
        f"{model}@{number} was removed by somebody else just now; 'tierstore ls {model} --deleted' "
        "says by whom"
    )


def undone(error: BaseException) -> str:
    """Return the note for the log of an entry that takes another one back."""
    return f"undone: {error}"[:500] if isinstance(error, TierstoreError) else "undone: interrupted"
