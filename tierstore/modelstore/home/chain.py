"""What a version lies on: the full manifest below, and the patches between (format/SPEC.md 7.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.checks import damaged
from tierstore.format.keys import fold_key, version_key
from tierstore.format.layout import parse_fold
from tierstore.format.manifest import Manifest, patch_info
from tierstore.format.table import ChunkTable, join_tables
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home

_T = TypeVar("_T")
_R = TypeVar("_R")
_log = logging.getLogger("tierstore.patches")


@dataclass(frozen=True, slots=True)
class Chain:
    """How a version is read.

    Attributes:
        top: the version's own manifest.
        start: the version whose full content is known: a full one, or a patch version's fold.
        full: digest of the full manifest of ``start``; the same, unless it is a fold.
        patches: manifests of kind ``patch`` that lie on ``start``, the oldest first; the last is
            the version itself. Empty when the version is full or folded.
        bottom: the full manifest, unless it is a fold's, which finding the chain did not read.
    """

    top: Manifest
    start: Digest
    full: Digest
    patches: tuple[Digest, ...]
    bottom: Manifest | None = None


def find_chain(home: Home, digest: Digest) -> Chain:
    """Find what a version lies on, down to the nearest full manifest or fold.

    Raises:
        NotFound: a manifest of the chain is missing, and no fold makes up for it.
        Damaged: one is damaged.
    """
    top = manifest = home.manifest(digest)
    patches: list[Digest] = []  # the newest first
    while (info := patch_info(manifest)) is not None:
        below = [digest, *reversed(info.digests)]
        folds = parallel(lambda one: fold_of(home, one), below)
        for at, fold in enumerate(folds):
            if fold is not None:
                newer = [*patches, *below[:at]]
                return Chain(top, below[at], fold, tuple(reversed(newer)))
        patches += below[:-1]
        digest = below[-1]
        manifest = home.manifest(digest)
    return Chain(top, digest, digest, tuple(reversed(patches)), manifest)


def unfolded(home: Home, digest: Digest) -> Chain:
    """What a version lies on down to a full manifest of its own, whatever was folded."""
    top = manifest = home.manifest(digest)
    patches: list[Digest] = []  # the newest first
    while (info := patch_info(manifest)) is not None:
        patches += [digest, *reversed(info.digests[1:])]
        digest = info.digests[0]
        manifest = home.manifest(digest)
    return Chain(top, digest, digest, tuple(reversed(patches)), manifest)


def fold_of(home: Home, digest: Digest) -> Digest | None:
    """The full manifest that equals a patch version, if it was folded.

    A fold that cannot be read counts as none, as what it lies on says the same.
    """
    key = fold_key(digest)
    try:
        return parse_fold(home.blobs.get(key), digest, f"fold {key}")
    except NotFound:
        return None
    except (Damaged, UnsupportedFormat) as error:
        _log.warning("%s; the patches below are read instead", error)
        return None


def full_manifest(home: Home, chain: Chain) -> Manifest:
    """The manifest of kind ``full`` that a chain must end with; read, if it was not yet."""
    if chain.bottom is not None:
        return chain.bottom
    manifest = home.manifest(chain.full)
    if patch_info(manifest) is not None:
        damaged(f"the fold at manifest {version_key(chain.full)}", "it is a patch itself")
    return manifest


def bottom_manifest(home: Home, digest: Digest) -> Manifest:
    """The full manifest below a version: its own, unless patches lie between."""
    return full_manifest(home, find_chain(home, digest))


def patch_manifests(home: Home, patches: Sequence[Digest]) -> list[Manifest]:
    """The manifests of patches, in their order."""
    return parallel(home.manifest, patches)


def chain_table(
    home: Home, chain: Chain, full: Manifest, patches: Sequence[Manifest]
) -> ChunkTable:
    """One table of where all chunks of a version lie: of its full manifest and its patches."""
    pairs = [(chain.full, full), *zip(chain.patches, patches, strict=True)]
    tables = parallel(lambda pair: home.layout(*pair), pairs)
    return join_tables(tables, f"the layouts of version b3:{chain.full.hex}")


def version_table(home: Home, digest: Digest) -> ChunkTable:
    """Where all chunks lie that reading a version needs, and their bases."""
    chain = find_chain(home, digest)
    full = full_manifest(home, chain)
    return chain_table(home, chain, full, patch_manifests(home, chain.patches))


def parallel(work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """What ``work`` gives for every item; small reads of home, several at once."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(8, "tierstore-chain") as pool:
        return list(pool.map(work, items))
