"""Which versions need which manifests, as far as what is left of a store tells.

Unlike a collector, which stops where it cannot read, this leaves out what is damaged: the repair
of that object speaks of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import VARIANTS, VERSION_LOG, ref_prefix, seq_of
from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.modelstore.care.check_patches import named_below
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.removed import Removals
from tierstore.modelstore.version import Version

_log = logging.getLogger("tierstore.repair")


class Users(dict[Digest, list[str]]):
    """The names of the versions that need a manifest, by its digest; those in force come first.

    Attributes:
        removed: Manifests that removed versions alone need. What is gone of these was collected.
    """

    def __init__(self) -> None:
        self.removed: set[Digest] = set()


def read_users(home: Home, versions: Iterable[Version] | None = None) -> Users:
    """Return the manifests that versions need, their own and those that they lie on.

    Args:
        home: The store's home.
        versions: The versions; ``None`` for all that are not removed, or can be undeleted.
    """
    if versions is not None:
        named = [_Named(str(one), one.digest) for one in versions]
    else:
        named = sorted(_all(home), key=lambda one: one.is_removed)
    users = Users()
    for one in named:
        name = f"{one.name} (removed)" if one.is_removed else one.name
        for needed in (one.digest, *named_below(home, one.digest).read):
            if one.is_removed and needed not in users:
                users.removed.add(needed)
            names = users.setdefault(needed, [])
            if name not in names:
                names.append(name)
    return users


class _Named(NamedTuple):
    name: str
    digest: Digest
    is_removed: bool = False


def _all(home: Home) -> Iterator[_Named]:
    removals = Removals(home)
    for model in home.models():
        removed, expired = set[int](), set[int]()
        with suppress(Damaged, UnsupportedFormat):  # what is unknown counts as not removed
            removed, expired = set(removals.of(model)), removals.expired(model)
        for name in [VERSION_LOG, *(VARIANTS + variant for variant in home.variants(model))]:
            suffix = f"+{name.removeprefix(VARIANTS)}" if name != VERSION_LOG else ""
            for entry in readable_entries(home, model, name):
                if entry.manifest is None or entry.version in expired:
                    continue
                full, digest = f"{model}@{entry.version}{suffix}", Digest.from_hex(entry.manifest)
                yield _Named(full, digest, entry.version in removed)


def readable_entries(home: Home, model: str, name: str) -> Iterator[RefEntry]:
    """Yield the entries of a ref log that can be read, the oldest first."""
    log = home.log(model, name)
    for seq in sorted(numbers(home, model, name)):
        try:
            yield log.entry(seq)
        except (Damaged, NotFound, UnsupportedFormat) as error:
            _log.debug("left out: %s", error)


def numbers(home: Home, model: str, name: str) -> set[int]:
    """Return the numbers of the entries of a ref log that are there, whatever is in them."""
    prefix = ref_prefix(model, name)
    found = (seq_of(info.key, prefix) for info in home.blobs.list(prefix))
    return {seq for seq in found if seq is not None}
