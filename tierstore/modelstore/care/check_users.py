"""Which versions need what a check looks at, as refs say it at first, and when damage was found.

Removed versions are among them as long as they can be brought back. What is damaged of one it would
have then, and nobody would know; what is gone of it was collected, and who brings it back is told.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.ids import Digest
from tierstore.modelstore.care.check_patches import Below, chain_of, unread_because_of
from tierstore.modelstore.home.ahead import parallel
from tierstore.modelstore.home.home import Home, read_config
from tierstore.modelstore.names.removed import Removals, Windows

_REMOVED = " (removed)"
_AT_ONCE = 64
"""Chains that are found and kept at a time."""


@dataclass(frozen=True, slots=True)
class Named:
    """The versions that need a manifest.

    Attributes:
        in_force: Those that are not removed.
        removed: Those that are removed, and can be brought back.
    """

    in_force: list[str]
    removed: list[str]

    @property
    def every(self) -> list[str]:
        """All of them."""
        return self.in_force + self.removed


class Users:
    """The names of the versions and variants that need each manifest.

    Args:
        home: The store's home.

    Attributes:
        folds: The full manifests of folds that are read.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._own: dict[Digest, list[str]] = {}
        self._below: dict[Digest, list[str]] = {}
        self._above: dict[Digest, list[Digest]] = {}
        """The manifests that lie on one: those that have it in their chain."""
        self._folded: dict[Digest, list[str]] = {}
        self.folds: set[Digest] = set()
        self._now: _RemovedNow | None = None

    def add(self, digest: Digest, name: str) -> None:
        """Note that a version or variant is this manifest."""
        self._own.setdefault(digest, []).append(name)

    def knows(self, digest: Digest) -> bool:
        """Return whether a version or variant is this manifest."""
        return digest in self._own

    def add_below(self, digest: Digest, below: Below) -> None:
        """Note what a manifest lies on."""
        for one in (*below.read, *below.unread):
            _extend(self._below.setdefault(one, []), self._own.get(digest, []))
            self._above.setdefault(one, []).append(digest)
        if below.fold is not None:
            self.folds.add(below.fold)
        if below.folded is not None:
            _extend(self._folded.setdefault(below.folded, []), self._own.get(digest, []))

    def each(self) -> Iterator[Digest]:
        """Yield each manifest that readers of versions read, also those added meanwhile."""
        yield from self._own
        yield from [digest for digest in self._below if digest not in self._own]

    @property
    def named(self) -> set[Digest]:
        """The manifests that are kept: those that are read, and those that have a fold in use."""
        return {*self._own, *self._below, *self._folded}

    def of(self, digest: Digest) -> Named:
        """Return the versions that need a manifest or its fold."""
        every = (self._own, self._below, self._folded)
        names = dict.fromkeys(name for names in every for name in names.get(digest, ()))
        return self._named_now(names)

    def forget_removals(self) -> None:
        """Have removals read anew when versions are named next."""
        self._now = None

    def hit(
        self, digests: Iterable[Digest], is_lost: Callable[[Digest], bool]
    ) -> Iterator[tuple[Named, set[Digest], set[Digest]]]:
        """Yield the versions that may read any of these manifests, as refs say it now.

        A collector deletes a pack only after the removal of whatever needs it is in the log: who
        has found a pack missing, and has removals read anew then, knows whether that is damage.

        Args:
            digests: Manifests of which something is lost.
            is_lost: Returns whether something of a manifest is lost, and it cannot be read in full.

        Yields:
            The versions; those of ``digests`` that they have in their chain; and those manifests
            because of which they cannot be read, none if the lost ones are not needed for it.
        """
        near: dict[Digest, set[Digest]] = {}
        for digest in digests:
            for owner in (digest, *self._above.get(digest, ())):
                near.setdefault(owner, set()).add(digest)
        named = {owner: self._named_now(self._own.get(owner, ())) for owner in near}
        left = [owner for owner in near if named[owner].every]
        for at in range(0, len(left), _AT_ONCE):
            some = left[at : at + _AT_ONCE]
            chains = parallel(lambda owner: chain_of(self._home, owner), some)
            for owner, chain in zip(some, chains, strict=True):
                because = unread_because_of(self._home, owner, is_lost, chain)
                yield named[owner], near[owner], near[owner] if because is None else because

    def _named_now(self, names: Iterable[str]) -> Named:
        if self._now is None:
            self._home.config = read_config(self._home.blobs)
            self._now = _RemovedNow(self._home)
        found = Named([], [])
        for name in names:
            model, _, number = name.rpartition("@")
            version = int(number.partition("+")[0])
            removed, expired = self._now.of(model)
            if version not in removed:
                found.in_force.append(name)
            elif version not in expired:
                found.removed.append(name + _REMOVED)
        return found


class _RemovedNow:
    """What is removed of each model when it is asked for first."""

    def __init__(self, home: Home) -> None:
        self._removals = Removals(home)
        self._windows = Windows(home, self._removals)
        self._known: dict[str, tuple[Container[int], Container[int]]] = {}

    def of(self, model: str) -> tuple[Container[int], Container[int]]:
        """Return the versions that are removed, and of these those that may be gone."""
        if model not in self._known:
            self._known[model] = (), ()
            with suppress(Damaged, UnsupportedFormat):  # the check of the log says so
                self._known[model] = self._removals.of(model), self._windows.expired(model)
        return self._known[model]


def _extend(names: list[str], more: list[str]) -> None:
    names += [name for name in more if name not in names]
