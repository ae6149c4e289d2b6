"""Which versions need which manifests, as far as what is left of a store tells.

Unlike a collector, which stops where it cannot read, this leaves out what is damaged: the repair
of that object speaks of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import VARIANTS, VERSION_LOG
from tierstore.format.reflog import RefEntry, that_count
from tierstore.ids import Digest
from tierstore.modelstore.care.check_patches import named_below, needed_below
from tierstore.modelstore.home.ahead import ahead
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.removed import Removals, Windows
from tierstore.modelstore.names.witnesses import readable_entries
from tierstore.modelstore.version import Version


class Users(dict[Digest, list[str]]):
    """The names of the versions that need a manifest, by its digest; those in force come first.

    Attributes:
        removed: Manifests that removed versions alone need. What is gone of these was collected.
        own: The manifest of each version, by its name.
    """

    def __init__(self) -> None:
        self.removed: set[Digest] = set()
        self.own: dict[str, Digest] = {}


class UserReader:
    """Reads which versions need which manifests; read again, it asks for what is new alone.

    Args:
        home: The store's home.
        versions: The versions; ``None`` for all that are not removed, or can be undeleted.
    """

    def __init__(self, home: Home, versions: Sequence[Version] | None = None) -> None:
        self._home, self._versions = home, versions
        self._entries: dict[str, RefEntry] = {}
        self._lie_on_nothing: set[Digest] = set()

    def read(self) -> Users:
        """Return the manifests that versions need, their own and those that they lie on."""
        named = sorted(self._named(), key=lambda one: one.is_removed)
        users = Users()
        every = dict.fromkeys(one.digest for one in named)
        below = dict(ahead(self._below, every))
        for one in named:
            name = f"{one.name} (removed)" if one.is_removed else one.name
            users.own[name] = one.digest
            for needed in (one.digest, *below[one.digest]):
                if one.is_removed and needed not in users:
                    users.removed.add(needed)
                names = users.setdefault(needed, [])
                if name not in names:
                    names.append(name)
        return users

    def _below(self, digest: Digest) -> tuple[Digest, ...]:
        """Return what a manifest lies on; of a full one that is nothing for ever."""
        if digest in self._lie_on_nothing:
            return ()
        try:
            below = needed_below(self._home, digest)
        except (Damaged, NotFound, UnsupportedFormat):
            return named_below(self._home, digest).read
        if not below.read:
            self._lie_on_nothing.add(digest)
        return below.read

    def _named(self) -> Iterator[_Named]:
        if self._versions is not None:
            for one in self._versions:
                yield _Named(str(one), one.digest)
            return
        removals = Removals(self._home)
        windows = Windows(self._home, removals)
        for model in self._home.models():
            removed, expired = set[int](), set[int]()
            with suppress(Damaged, UnsupportedFormat):  # what is unknown counts as not removed
                removed, expired = set(removals.of(model)), windows.expired(model)
            for name in [VERSION_LOG, *(VARIANTS + one for one in self._home.variants(model))]:
                suffix = f"+{name.removeprefix(VARIANTS)}" if name != VERSION_LOG else ""
                entries = list(readable_entries(self._home, model, name, self._entries))
                for entry in that_count(reversed(entries)) if suffix else entries:
                    if entry.manifest is None or entry.version in expired:
                        continue
                    full = f"{model}@{entry.version}{suffix}"
                    digest = Digest.from_hex(entry.manifest)
                    yield _Named(full, digest, entry.version in removed)


class _Named(NamedTuple):
    name: str
    digest: Digest
    is_removed: bool = False
