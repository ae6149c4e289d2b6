"""The packs that layouts name, and what manifests lie on; each object is read once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from tierstore.errors import Damaged, NotFound
from tierstore.format.checks import damaged
from tierstore.format.keys import FOLDS, LAYOUTS, layout_key
from tierstore.format.layout import missing_chunks, parse_layout
from tierstore.format.manifest import patch_info
from tierstore.format.table import ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import fold_of
from tierstore.modelstore.home.home import Home, chunks_of

SETTLED_S = 10
"""Seconds after which a layout that was written has another time than one written before."""

_log = logging.getLogger("tierstore.gc")


@dataclass(frozen=True, slots=True)
class NamedPacks:
    """The packs that a layout names.

    Attributes:
        own: Those that hold chunks of the version.
        bases: Those that hold nothing but bases of its deltas.
    """

    own: frozenset[bytes]
    bases: frozenset[bytes]


class Layouts:
    """The manifests, folds and layouts of a store, as far as a collector needs them.

    What cannot change is read once. A layout can: it is read again when its time or size is another
    than it was, or when it was written shortly before it was read.

    Args:
        home: The store's home.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._named: dict[Digest, tuple[tuple[int, float], NamedPacks]] = {}
        self._listed: Mapping[str, tuple[int, float]] = {}
        self._folds_listed: set[str] = set()
        self._folds: dict[Digest, Digest] = {}
        self._bases: dict[Digest, Digest | None] = {}
        self._now_s = 0.0

    def look(self, now_s: float) -> None:
        """List what is there now; ``now_s`` is the time by home's clock, or earlier."""
        self._now_s = now_s
        blobs = self._home.blobs
        self._folds_listed = {info.key for info in blobs.list(FOLDS)}
        self._listed = {info.key: (info.size, info.mtime) for info in blobs.list(LAYOUTS)}

    def base_of(self, digest: Digest) -> Digest | None:
        """Return the manifest that a patch was made for; ``None`` for any other manifest."""
        if digest not in self._bases:
            info = patch_info(self._home.manifest(digest))
            self._bases[digest] = None if info is None else info.base
        return self._bases[digest]

    def fold_of(self, digest: Digest) -> Digest | None:
        """Return the full manifest that a patch was folded into, if that can be read."""
        if digest not in self._folds:
            if FOLDS + digest.hex not in self._folds_listed:
                return None
            full = fold_of(self._home, digest)
            if full is None:
                return None
            self._folds[digest] = full
        full = self._folds[digest]
        try:
            if self.base_of(full) is None:
                return full
            _log.warning("the fold of %s is a patch itself; the patches are kept", digest)
        except (Damaged, NotFound) as error:
            _log.warning("%s; the patches below are kept instead of this fold", error)
        return None

    def named(self, digest: Digest) -> NamedPacks | None:
        """Return the packs that the layout of a manifest names; ``None`` when there is no layout.

        Raises:
            Damaged: The layout is damaged, or does not place all chunks.
        """
        stamp = self._listed.get(layout_key(digest))
        known = self._named.get(digest)
        if known is not None and known[0] == stamp:
            return known[1]
        table = self.table(digest)
        if table is None:
            return None
        chunks = chunks_of(self._home.manifest(digest))
        key = layout_key(digest)
        if missing := missing_chunks(table, chunks):
            damaged(f"layout {key}", f"it has no place for {len(missing)} chunks")
        places = (table.find(chunk) for chunk in dict.fromkeys(chunks))
        own = frozenset(place.pack for place in places if place is not None)
        found = NamedPacks(own, frozenset(table.pack_ids) - own)
        if stamp is not None and self._now_s - stamp[1] > SETTLED_S:
            self._named[digest] = stamp, found
        return found

    def table(self, digest: Digest) -> ChunkTable | None:
        """Read the layout of a manifest; ``None`` when there is none."""
        key = layout_key(digest)
        try:
            return parse_layout(self._home.blobs.get(key), digest, f"layout {key}")
        except NotFound:
            return None

    def chunks(self, digest: Digest) -> list[bytes]:
        """Return the digests of a version's chunks, each once."""
        return list(dict.fromkeys(chunks_of(self._home.manifest(digest))))
