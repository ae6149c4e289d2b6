"""A version's chain: the full manifest below, and the patches on it (format/SPEC.md 7.1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.checks import damaged
from tierstore.format.keys import fold_key, layout_key, version_key
from tierstore.format.layout import parse_fold, parse_layout
from tierstore.format.manifest import Manifest, patch_info
from tierstore.format.table import ChunkTable, join_tables
from tierstore.ids import Digest
from tierstore.modelstore.home.ahead import parallel
from tierstore.modelstore.home.home import Home

_log = logging.getLogger("tierstore.patches")


@dataclass(frozen=True, slots=True)
class Chain:
    """How a version is read: a full manifest or a fold, and the patches that lie on it.

    Attributes:
        top: The version's own manifest.
        start: The version whose full content is known: a full one, or a patch version's fold.
        full: Digest of the full manifest of ``start``: equal to ``start`` unless that is a fold.
        patches: Digests of the patch manifests that lie on ``start``, the oldest first; the last is
            the version itself. Empty when the version is full or folded.
        bottom: The full manifest; ``None`` for a fold's, which finding the chain does not read.
        ignored: Full manifests whose folds were not used, because they cannot be read.
    """

    top: Manifest
    start: Digest
    full: Digest
    patches: tuple[Digest, ...]
    bottom: Manifest | None = None
    ignored: frozenset[Digest] = frozenset()

    @property
    def needed(self) -> set[Digest]:
        """The digests of the manifests that it is read by, but for that of a fold."""
        return {*self.patches, *([self.start] if self.start == self.full else [])}


def find_chain(home: Home, digest: Digest, ignored: frozenset[Digest] = frozenset()) -> Chain:
    """Find what a version lies on, down to the nearest full manifest or fold.

    Args:
        home: The store's home.
        digest: Digest of the version's manifest.
        ignored: Full manifests whose folds are not used.

    Raises:
        NotFound: A manifest of the chain is missing, and no fold makes up for it.
        Damaged: A manifest of the chain is damaged.
    """
    top = manifest = home.manifest(digest)
    patches: list[Digest] = []  # the newest first
    while (info := patch_info(manifest)) is not None:
        below = [digest, *reversed(info.digests)]
        folds = parallel(lambda one: fold_of(home, one), below)
        for at, fold in enumerate(folds):
            if fold is not None and fold not in ignored:
                newer = [*patches, *below[:at]]
                return Chain(top, below[at], fold, tuple(reversed(newer)), ignored=ignored)
        patches += below[:-1]
        digest = below[-1]
        manifest = home.manifest(digest)
    return Chain(top, digest, digest, tuple(reversed(patches)), manifest, ignored)


def unfolded(home: Home, digest: Digest) -> Chain:
    """Find the chain of a version down to a manifest of kind ``full``, ignoring folds."""
    top = manifest = home.manifest(digest)
    patches: list[Digest] = []  # the newest first
    while (info := patch_info(manifest)) is not None:
        patches += [digest, *reversed(info.digests[1:])]
        digest = info.digests[0]
        manifest = home.manifest(digest)
    return Chain(top, digest, digest, tuple(reversed(patches)), manifest)


def fold_of(home: Home, digest: Digest) -> Digest | None:
    """Return the digest of the full manifest that a patch version was folded into, if it was.

    A fold that cannot be read is logged and ignored: the chain below says the same.
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
    """Return the manifest of kind ``full`` at the bottom of a chain, reading it if necessary."""
    if chain.bottom is not None:
        return chain.bottom
    manifest = home.manifest(chain.full)
    if patch_info(manifest) is not None:
        damaged(f"the fold at manifest {version_key(chain.full)}", "it is a patch itself")
    return manifest


def readable_chain(home: Home, digest: Digest) -> tuple[Chain, Manifest]:
    """Find what a version lies on, and read the full manifest at its bottom.

    A fold whose manifest cannot be read is ignored where the chain below is whole.

    Raises:
        NotFound, Damaged: Neither can be read; the first thing that was wrong.
    """
    chain = find_chain(home, digest)
    first: NotFound | Damaged | None = None
    while True:
        try:
            return chain, full_manifest(home, chain)
        except (NotFound, Damaged) as error:
            first = first or error
            if chain.full == chain.start:
                raise first from None
            _log.warning("%s; the patches below the fold are read instead", error)
        try:
            chain = find_chain(home, digest, chain.ignored | {chain.full})
        except (NotFound, Damaged):
            raise first from None


def bottom_manifest(home: Home, digest: Digest) -> Manifest:
    """Return the full manifest that a version is or that its patches lie on."""
    return readable_chain(home, digest)[1]


def patch_manifests(home: Home, patches: Sequence[Digest]) -> list[Manifest]:
    """Return the manifests of these patches, in the same order."""
    return parallel(home.manifest, patches)


def chain_table(
    home: Home, chain: Chain, full: Manifest, patches: Sequence[Manifest]
) -> ChunkTable:
    """Return one table of the places of a version's chunks: its full manifest's and patches'."""
    pairs = [(chain.full, full), *zip(chain.patches, patches, strict=True)]
    return join_tables(tables_of(home, pairs), f"the layouts of version b3:{chain.full.hex}")


def version_table(home: Home, digest: Digest) -> ChunkTable:
    """Return the places of all chunks that reading a version needs, bases of deltas included."""
    chain, full = readable_chain(home, digest)
    return chain_table(home, chain, full, patch_manifests(home, chain.patches))


def tables_of(home: Home, manifests: Sequence[tuple[Digest, Manifest]]) -> list[ChunkTable]:
    """Return the places of the chunks of manifests, from their layouts.

    Those that are missing are made anew from the packs, if these are few, and written.

    Raises:
        Damaged: A layout is damaged.
        NotFound: A layout does not list a chunk of its manifest, or a chunk is in no pack; or a
            layout is missing, and there are many packs.
    """
    found = parallel(lambda pair: home.layout_if_there(*pair), manifests)
    lacking = [pair for pair, table in zip(manifests, found, strict=True) if table is None]
    if not lacking:
        return [table for table in found if table is not None]
    from tierstore.modelstore.home.relayout import made_anew

    made = {one.manifest: one for one in made_anew(home, lacking)}
    return [
        parse_layout(made[digest].sealed, digest, layout_key(digest)) if table is None else table
        for (digest, _), table in zip(manifests, found, strict=True)
    ]
