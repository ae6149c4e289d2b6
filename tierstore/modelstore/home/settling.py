"""Publishing: an entry that names a manifest, and the look behind it (format/SPEC.md 11, step 7).

Versions, patches, variants, folds and releases are published here. Nobody is promised what is
refused by its look, so its writer takes the entry back, whatever the look ended with. A manifest
whose name was condemned is refused, too, and then published under another name: whoever looked at
what is condemned before each manifest would make one request more for every patch there is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, NoReturn, TypeVar

from tierstore.errors import Conflict, NotDurable, TierstoreError
from tierstore.ids import Digest

_T = TypeVar("_T")
_ROUNDS = 5
_log = logging.getLogger("tierstore.writer")


class Purged(Conflict):
    """A manifest that something published needs was purged.

    Args:
        digest: The digest of that manifest.
        message: What is said of it; by default that it was purged.
    """

    def __init__(self, digest: Digest, message: str = "") -> None:
        default = f"exactly the content b3:{digest.hex} was purged meanwhile"
        super().__init__(message or default)
        self.digest = digest

    def __reduce__(self) -> tuple[type[Purged], tuple[Digest, str]]:
        return Purged, (self.digest, str(self))


def _nothing(entry: object) -> None:
    """Look at nothing more."""


def _none(error: BaseException) -> None:
    """Find nothing that was written all the same."""


@dataclass(frozen=True, slots=True)
class Publication(Generic[_T]):
    """How something is published.

    Attributes:
        append: Writes the entry that names a manifest, and returns it.
        take_back: Takes that entry back; called with it and with why, returns in words what was
            done.
        look: Looks at what else must stay for it, and raises if that does not.
        below: The digests of the manifests that it lies on, but for those of folds.
        own: Finds the entry that ``append`` has written although it ended with this error; ``None``
            where there is none.
    """

    append: Callable[[Digest], _T]
    take_back: Callable[[_T, BaseException], str]
    look: Callable[[_T], None] = _nothing
    below: frozenset[bytes] = frozenset()
    own: Callable[[BaseException], _T | None] = _none


def publish(
    what: Publication[_T], write: Callable[[bool], Digest], look: Callable[[Digest], None]
) -> _T:
    """Publish a manifest, and return its entry once nothing that it needs can go any more.

    Args:
        what: How it is published.
        write: Writes the manifest with all that it needs, and returns its digest; called with
            whether it needs another name than before.
        look: Looks at what is condemned once the entry is there; raises ``Purged`` for a manifest.

    Raises:
        TierstoreError: What the look ended with; the message says what became of the entry.
        Conflict: What it lies on was purged.
        Purged: Its own content was purged each time that it was published.
        NotDurable: The entry is there and stays, but a power loss may take it back.
    """
    for left in reversed(range(_ROUNDS)):
        digest = write(left < _ROUNDS - 1)
        entry, flaw = _append(what, digest, look)
        try:
            what.look(entry)
            look(digest)
        except Purged as error:
            if error.digest != digest:
                _refuse(error, what, entry)
            if not left:
                _refuse(_each_time(digest), what, entry)
            done = taken_back(partial(what.take_back, entry), error)
            _log.warning("%s. %s, and published under another name", error, done)
        except BaseException as error:
            _refuse(error, what, entry)
        else:
            if flaw is not None:
                raise flaw
            return entry
    raise AssertionError("the last round returns or raises")


def appended(
    append: Callable[[], _T], own: Callable[[BaseException], _T | None]
) -> tuple[_T, NotDurable | None]:
    """Append an entry; return it, and what is wrong although it is there.

    One whose answer was lost is there as any other, and so is one that a power loss may take back:
    they are looked at and taken back likewise.

    Args:
        append: Writes the entry, and returns it.
        own: Finds it where that ended with this error; ``None`` where there is none.
    """
    try:
        return append(), None
    except TierstoreError as error:
        entry = None
        with suppress(TierstoreError):
            entry = own(error)
        if entry is None:
            raise
        return entry, error if isinstance(error, NotDurable) else None


def _append(
    what: Publication[_T], digest: Digest, look: Callable[[Digest], None]
) -> tuple[_T, NotDurable | None]:
    """Append the entry that names a manifest; see ``appended``."""
    try:
        return appended(partial(what.append, digest), what.own)
    except TierstoreError:  # nobody knows whether it is there: then at least all that it needs is
        with suppress(TierstoreError):
            look(digest)
        raise


def _each_time(digest: Digest) -> Purged:
    return Purged(
        digest,
        f"exactly this content was purged each of the {_ROUNDS} times that it was published, at "
        f"last as b3:{digest.hex}: somebody purges it just now, 'tierstore purge ls' says who. "
        "Publish it again once that has ended, if it is to be there",
    )


def _refuse(error: BaseException, what: Publication[_T], entry: _T) -> NoReturn:
    """Take an entry back, and raise what its look ended with, which then says what was done."""
    retold(error, taken_back(partial(what.take_back, entry), error))


def taken_back(take_back: Callable[[BaseException], str], why: BaseException) -> str:
    """Take an entry back; return in words what was done, or why it could not be."""
    try:
        return take_back(why)
    except TierstoreError as error:
        return f"Taking that back ended with: {error}"


def retold(error: BaseException, done: str) -> NoReturn:
    """Raise an error again that says what was done about it."""
    if isinstance(error, TierstoreError):
        if isinstance(error, Purged):
            raise Purged(error.digest, f"{error}. {done}") from error
        raise type(error)(f"{error}. {done}") from error
    error.add_note(done)
    raise error
