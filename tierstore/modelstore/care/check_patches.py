"""Checks the chains of patch versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.manifest import patch_info
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import find_chain, full_manifest, patch_manifests
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.patchparts import fitting_parts


@dataclass(frozen=True, slots=True)
class Below:
    """What reading a version needs besides its own manifest.

    Attributes:
        read: The other manifests that are read, with their layouts; none for a full version.
        folded: The patch version whose fold is read in its place, unless it is the version itself.
    """

    read: tuple[Digest, ...] = ()
    folded: Digest | None = None


def needed_below(home: Home, digest: Digest) -> Below:
    """Return what a version lies on.

    Raises:
        Damaged, NotFound, UnsupportedFormat: A manifest of it cannot be read, or they do not fit
            together.
    """
    chain = find_chain(home, digest)
    patches = patch_manifests(home, chain.patches)
    titles = [f"patch {version_key(one)}" for one in chain.patches]
    full = full_manifest(home, chain)
    if patches:
        for _ in fitting_parts(full, list(zip(titles, patches, strict=True))):
            pass  # it is the looking that tells
    needed = dict.fromkeys([chain.full, *chain.patches])
    folded = chain.start if chain.start not in (chain.full, digest) else None
    return Below(tuple(one for one in needed if one != digest), folded)


def named_below(home: Home, digest: Digest) -> Below:
    """Return what ``needed_below`` does, or if that is damaged what the version itself names."""
    try:
        return needed_below(home, digest)
    except (Damaged, NotFound, UnsupportedFormat):
        pass
    try:
        info = patch_info(home.manifest(digest))
    except (Damaged, NotFound, UnsupportedFormat):
        return Below()
    return Below(tuple(info.digests)) if info else Below()


def unread_because_of(
    home: Home, digest: Digest, is_lost: Callable[[Digest], bool]
) -> set[Digest] | None:
    """Return the manifests because of which a version cannot be read; none if it can.

    As in a load, what lies below a fold is read where something of the fold is lost.

    Args:
        home: The store's home.
        digest: The digest of the version's manifest.
        is_lost: Returns whether something of a manifest is lost.

    Returns:
        These manifests; ``None`` if what the version lies on cannot be read.
    """
    found, ignored = set[Digest](), frozenset[Digest]()
    while True:
        try:
            chain = find_chain(home, digest, ignored)
        except (Damaged, NotFound, UnsupportedFormat):
            return found or None
        lost = {one for one in (chain.full, *chain.patches) if is_lost(one)}
        if not lost:
            return set()
        found |= lost
        if lost != {chain.full} or chain.full == chain.start:
            return found
        ignored |= lost
