"""Checks the chains of patch versions."""

from __future__ import annotations

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.manifest import patch_info
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import find_chain, full_manifest, patch_manifests
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.patchparts import fitting_parts


def needed_below(home: Home, digest: Digest) -> list[Digest]:
    """Return the other manifests that reading a version needs; none for a full one.

    Raises:
        Damaged, NotFound, UnsupportedFormat: One of them cannot be read, or they do not fit
            together.
    """
    chain = find_chain(home, digest)
    patches = patch_manifests(home, chain.patches)
    titles = [f"patch {version_key(one)}" for one in chain.patches]
    full = full_manifest(home, chain)
    for _ in fitting_parts(full, list(zip(titles, patches, strict=True))):
        pass  # it is the looking that tells
    needed = dict.fromkeys([chain.full, chain.start, *chain.patches])
    return [one for one in needed if one != digest]


def named_below(home: Home, digest: Digest) -> list[Digest]:
    """Return what ``needed_below`` does, or if that is damaged what the version itself names."""
    try:
        return needed_below(home, digest)
    except (Damaged, NotFound, UnsupportedFormat):
        pass
    try:
        info = patch_info(home.manifest(digest))
    except (Damaged, NotFound, UnsupportedFormat):
        return []
    return info.digests if info else []
