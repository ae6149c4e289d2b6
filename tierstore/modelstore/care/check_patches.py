"""Checks the chains of patch versions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.manifest import patch_info
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import (
    Chain,
    find_chain,
    patch_manifests,
    readable_chain,
)
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.patchparts import fitting_parts


@dataclass(frozen=True, slots=True)
class Below:
    """What reading a version needs besides its own manifest.

    Attributes:
        read: The other manifests that are read, with their layouts; none for a full version.
        folded: The patch version whose fold is read in its place, unless it is the version itself.
        fold: The full manifest of the fold that is read, if one is.
        unread: The full manifests of nearer folds, which cannot be read.
    """

    read: tuple[Digest, ...] = ()
    folded: Digest | None = None
    fold: Digest | None = None
    unread: tuple[Digest, ...] = ()


def needed_below(home: Home, digest: Digest) -> Below:
    """Return what a version lies on.

    Raises:
        Damaged, NotFound, UnsupportedFormat: A manifest of it cannot be read, or they do not fit
            together.
    """
    chain, full = readable_chain(home, digest)
    patches = patch_manifests(home, chain.patches)
    titles = [f"patch {version_key(one)}" for one in chain.patches]
    if patches:
        for _ in fitting_parts(full, list(zip(titles, patches, strict=True))):
            pass  # it is the looking that tells
    needed = dict.fromkeys([chain.full, *chain.patches])
    fold = chain.full if chain.start != chain.full else None
    folded = chain.start if fold is not None and chain.start != digest else None
    read = tuple(one for one in needed if one != digest)
    return Below(read, folded, fold, tuple(chain.ignored))


def named_below(home: Home, digest: Digest) -> Below:
    """Return what ``needed_below`` does, or if that is damaged what the patches themselves name."""
    try:
        return needed_below(home, digest)
    except (Damaged, NotFound, UnsupportedFormat):
        pass
    named: dict[Digest, None] = {}
    with suppress(Damaged, NotFound, UnsupportedFormat):
        while (info := patch_info(home.manifest(digest))) is not None:
            named.update(dict.fromkeys(info.digests))
            digest = info.digests[0]
    return Below(tuple(named))


def is_readable(home: Home, digest: Digest) -> bool:
    """Return whether a manifest can be read."""
    with suppress(Damaged, NotFound, UnsupportedFormat):
        home.manifest(digest)
        return True
    return False


def unread_because_of(
    home: Home,
    digest: Digest,
    is_lost: Callable[[Digest], bool],
    first: Chain | None = None,
) -> set[Digest] | None:
    """Return the manifests because of which a version cannot be read; none if it can.

    As in a load, what lies below a fold is read where something of the fold is lost.

    Args:
        home: The store's home.
        digest: The digest of the version's manifest.
        is_lost: Returns whether something of a manifest is lost.
        first: What ``chain_of`` returned, where it was asked.

    Returns:
        These manifests; ``None`` if what the version lies on cannot be read.
    """
    found, ignored = set[Digest](), frozenset[Digest]()
    chain = first or chain_of(home, digest, ignored)
    while True:
        if chain is None:
            return found or None
        lost = {one for one in (chain.full, *chain.patches) if is_lost(one)}
        if not lost:
            return set()
        found |= lost
        if lost != {chain.full} or chain.full == chain.start:
            return found
        ignored |= lost
        chain = chain_of(home, digest, ignored)


def chain_of(home: Home, digest: Digest, ignored: frozenset[Digest] = frozenset()) -> Chain | None:
    """Return what ``find_chain`` does; ``None`` if a manifest on the way cannot be read."""
    try:
        return find_chain(home, digest, ignored)
    except (Damaged, NotFound, UnsupportedFormat):
        return None
