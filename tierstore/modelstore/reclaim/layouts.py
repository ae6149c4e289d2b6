"""The packs that layouts name, and what manifests lie on; each object is read once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from tierstore.blobs.base import BlobInfo
from tierstore.errors import Damaged, NotFound
from tierstore.format.checks import damaged
from tierstore.format.keys import FOLDS, LAYOUTS, fold_key, layout_key, version_key
from tierstore.format.layout import missing_chunks, parse_layout
from tierstore.format.manifest import ManifestChunks
from tierstore.format.reflog import LOST_MANIFEST
from tierstore.format.table import ChunkTable
from tierstore.ids import Digest, split_digests
from tierstore.modelstore.home.chain import fold_of
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readcache import ReadCache, is_settled
from tierstore.modelstore.reclaim.unloadable import Unloadable

_KEPT_AT_ONCE = 1000
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
        cache: Where what layouts and folds say is kept for the next process.
    """

    def __init__(self, home: Home, cache: ReadCache) -> None:
        self._home, self._cache = home, cache
        self._named: dict[Digest, tuple[BlobInfo, NamedPacks]] = {}
        self._listed: dict[str, BlobInfo] = {}
        self._folds: dict[Digest, tuple[BlobInfo, Digest]] = {}
        self._bases: dict[Digest, Digest | None] = {}
        self._last: tuple[Digest, ManifestChunks] | None = None
        self._fresh: list[tuple[BlobInfo, bytes]] = []
        self._ids: dict[bytes, bytes] = {}
        self._now_s = 0.0

    def look(self, now_s: float) -> None:
        """List what is there now; ``now_s`` is the time by home's clock, or earlier."""
        self._now_s = now_s
        before = self._listed
        listed = [info for prefix in (FOLDS, LAYOUTS) for info in self._home.blobs.list(prefix)]
        self._listed = {info.key: info for info in listed}
        changed = [info for key, info in self._listed.items() if before.get(key) != info]
        self._forget(before)
        for key, value in self._cache.get(changed).items():
            prefix, _, name = key.rpartition("/")
            if f"{prefix}/" == FOLDS:
                self._folds[Digest.from_hex(name)] = self._listed[key], Digest(value)
            else:
                self._recall(Digest.from_hex(name), self._listed[key], value)

    def _forget(self, before: Mapping[str, BlobInfo]) -> None:
        """Forget what was known of objects that are gone now, or others than they were."""
        if all(self._listed.get(key) == info for key, info in before.items()):
            return
        self._folds = {
            digest: known
            for digest, known in self._folds.items()
            if self._listed.get(fold_key(digest)) == known[0]
        }
        self._named = {
            digest: known
            for digest, known in self._named.items()
            if self._listed.get(layout_key(digest)) == known[0]
        }
        named = self._named.values()
        packs = (pack for _, one in named for ids in (one.own, one.bases) for pack in ids)
        self._ids = {pack: pack for pack in packs}

    def keep(self) -> None:
        """Keep for the next process what was read since the last call."""
        self._cache.put(self._fresh, self._now_s)
        self._fresh = []

    def _recall(self, digest: Digest, info: BlobInfo, value: bytes) -> None:
        base, own, bases = msgspec.msgpack.decode(value, type=tuple[bytes, bytes, bytes])
        self._bases[digest] = Digest(base) if base else None
        self._named[digest] = info, NamedPacks(self._shared(own), self._shared(bases))

    def _shared(self, column: bytes) -> frozenset[bytes]:
        """Return pack ids of which each is in memory once, however many layouts name it."""
        return frozenset(self._ids.setdefault(pack, pack) for pack in split_digests(column))

    def _know(self, digest: Digest, info: BlobInfo, named: NamedPacks) -> None:
        self._named[digest] = info, named
        base = self.base_of(digest)
        packed = (b"" if base is None else base.raw, b"".join(named.own), b"".join(named.bases))
        self._fresh.append((info, msgspec.msgpack.encode(packed)))
        if len(self._fresh) >= _KEPT_AT_ONCE:
            self.keep()

    def base_of(self, digest: Digest) -> Digest | None:
        """Return the manifest that a patch was made for; ``None`` for any other manifest.

        Raises:
            Unloadable: The manifest is missing or damaged.
        """
        if digest not in self._bases:
            self._manifest(digest)
        return self._bases[digest]

    def _manifest(self, digest: Digest) -> ManifestChunks:
        # who asks for a base asks for chunks next
        if self._last is None or self._last[0] != digest:
            try:
                self._last = digest, self._home.manifest_chunks(digest)
            except NotFound as error:
                what = f"manifest {version_key(digest)} is missing"
                if digest.hex == LOST_MANIFEST:
                    what = "its entry was lost, and it is given up, but not removed"
                raise Unloadable(what) from error
            except Damaged as error:
                raise Unloadable(str(error)) from error
            self._bases[digest] = self._last[1].base
        return self._last[1]

    def fold_of(self, digest: Digest) -> Digest | None:
        """Return the full manifest that a patch was folded into, if that can be read."""
        if digest not in self._folds:
            info = self._listed.get(fold_key(digest))
            full = None if info is None else fold_of(self._home, digest)
            if info is None or full is None:
                return None
            self._folds[digest] = info, full
            self._fresh.append((info, full.raw))
        full = self._folds[digest][1]
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
            Unloadable: The manifest is missing or damaged.
        """
        if digest in self._named:
            return self._named[digest][1]
        key = layout_key(digest)
        info = self._listed.get(key)
        table = self.table(digest)
        if table is None:
            return None
        chunks = self._manifest(digest).digests
        if missing := missing_chunks(table, chunks):
            damaged(f"layout {key}", f"it has no place for {len(missing)} chunks")
        own = self._shared(b"".join(table.packs_of(chunks)))
        found = NamedPacks(own, self._shared(b"".join(table.pack_ids)) - own)
        if info is not None and is_settled(info, self._now_s):
            self._know(digest, info, found)
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
        return list(dict.fromkeys(self._manifest(digest).digests))
