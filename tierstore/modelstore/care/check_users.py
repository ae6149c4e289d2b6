"""Which versions need what a check looks at, as refs say it at first, and when damage was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.ids import Digest
from tierstore.modelstore.care.check_patches import Below, named_below
from tierstore.modelstore.home.home import Home, read_config
from tierstore.modelstore.names.removed import Removals


class Users:
    """The names of the versions and variants that need each manifest.

    Args:
        home: The store's home.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._own: dict[Digest, list[str]] = {}
        self._below: dict[Digest, list[str]] = {}
        self._above: dict[Digest, list[Digest]] = {}
        """The manifests that lie on one: those that have it in their chain."""
        self._folded: dict[Digest, list[str]] = {}
        self._now: Removals | None = None

    def add(self, digest: Digest, name: str) -> None:
        """Note that a version or variant is this manifest."""
        self._own.setdefault(digest, []).append(name)

    def knows(self, digest: Digest) -> bool:
        """Return whether a version or variant is this manifest."""
        return digest in self._own

    def add_below(self, digest: Digest, below: Below) -> None:
        """Note what a manifest lies on."""
        for one in below.read:
            _extend(self._below.setdefault(one, []), self._own.get(digest, []))
            self._above.setdefault(one, []).append(digest)
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

    def of(self, digest: Digest) -> list[str]:
        """Return the versions that need a manifest or its fold."""
        every = (self._own, self._below, self._folded)
        return [*dict.fromkeys(name for names in every for name in names.get(digest, ()))]

    def now(self, digest: Digest) -> list[str]:
        """Return the versions that need a manifest now, sorted.

        Removals are read anew at the first call. A collector deletes a pack only after the removal
        of whatever needs it is in the log: who has found a pack missing and asks then knows whether
        that is damage.
        """
        if self._now is None:
            self._home.config = read_config(self._home.blobs)
            self._now = Removals(self._home)
        found = set[str]()
        for owner in (digest, *self._above.get(digest, ())):
            names = [name for name in self._own.get(owner, ()) if not self._is_removed(name)]
            if names and (owner == digest or digest in named_below(self._home, owner).read):
                found.update(names)
        return sorted(found)

    def _is_removed(self, name: str) -> bool:
        assert self._now is not None
        model, _, number = name.rpartition("@")
        with suppress(Damaged, UnsupportedFormat):  # the check of the log says so
            return int(number.partition("+")[0]) in self._now.of(model)
        return False


def _extend(names: list[str], more: list[str]) -> None:
    names += [name for name in more if name not in names]
