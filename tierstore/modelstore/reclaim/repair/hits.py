"""What versions lack of which chunks are lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.manifest import Manifest, named_tensors
from tierstore.ids import Digest, split_digests
from tierstore.modelstore.care.check_patches import unread_because_of
from tierstore.modelstore.chunks.findlost import LostChunks
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.modelstore.loading.stored import entry_bytes
from tierstore.modelstore.reclaim.repair.report import HitPart, HitVersion
from tierstore.modelstore.reclaim.repair.users import Users
from tierstore.modelstore.reclaim.repair.wanted import read_table, read_tables

Lost = Set[tuple[bytes, bytes]]
"""The pack in which a layout places a chunk, and the digest of the chunk, that are lost."""


@dataclass(slots=True)
class Hits:
    """What lost chunks are needed for.

    Attributes:
        versions: The versions that lack some, by their names.
        needed: Those of the chunks that such a version lacks, and their bases.
    """

    versions: list[HitVersion] = field(default_factory=list)
    needed: set[tuple[bytes, bytes]] = field(default_factory=set)


def find_hits(home: Home, users: Users, lost: Lost, bad: Set[bytes] = frozenset()) -> Hits:
    """Return what lost chunks are needed for.

    Args:
        home: The store's home.
        users: The versions by the manifests that they need.
        lost: The chunks.
        bad: Packs that are damaged or gone. What no version needs by itself was not looked for in
            them, so that it counts as lost.
    """
    found = Hits()
    parts: dict[Digest, tuple[HitPart, ...]] = {}
    chunks: dict[Digest, set[tuple[bytes, bytes]]] = {}
    packs = {pack for pack, _ in lost}
    for digest, table in read_tables(home, users) if lost else ():
        if packs.isdisjoint(table.pack_ids):
            continue
        places = [place for place in table if (place.pack, place.digest) in lost]
        with suppress(Damaged, NotFound, UnsupportedFormat):  # a manifest is spoken of itself
            manifest = home.manifest(digest)
            own = {*chunks_of(manifest)}.intersection(place.digest for place in places)
            if own:  # else what is lost is a base of deltas that were stored anew
                sizes = {place.digest: place.plain_bytes for place in places}
                parts[digest] = tuple(_parts(manifest, sizes))
                needed = own.union(*(place.bases for place in places if place.digest in own))
                every = {place.digest: (place.pack, place.digest) for place in places}
                chunks[digest] = {every[one] for one in needed & every.keys()}

    below = LostChunks(home, {*bad})

    @cache
    def is_lost(digest: Digest) -> bool:
        if digest in parts:
            return True
        if digest in users:  # what versions need of bad packs was looked for: ``lost`` has the rest
            return read_table(home, digest) is None or not _is_readable(home, digest)
        found = below.of(digest)
        return found is None or bool(found.places)

    for name in dict.fromkeys(name for digest in parts for name in users[digest]):
        because = unread_because_of(home, users.own[name], is_lost)
        if because is None:
            because = {digest for digest in parts if name in users[digest]}
        for digest in because & parts.keys():
            found.versions.append(HitVersion(name, version_key(digest), parts[digest]))
            found.needed |= chunks[digest]
    return found


def _is_readable(home: Home, digest: Digest) -> bool:
    try:
        home.manifest(digest)
    except (Damaged, NotFound, UnsupportedFormat):
        return False
    return True


def _parts(manifest: Manifest, sizes: dict[bytes, int]) -> Iterator[HitPart]:
    for name, _, tensor in named_tensors(manifest):
        if lost := _lost_bytes(split_digests(tensor.chunks), sizes):
            yield HitPart(name, lost, entry_bytes(tensor))
    for file in manifest.files:
        if not file.header and (lost := _lost_bytes(split_digests(file.chunks), sizes)):
            yield HitPart(file.path, lost, file.size)


def _lost_bytes(chunks: Iterable[bytes], sizes: dict[bytes, int]) -> int:
    return sum(sizes.get(chunk, 0) for chunk in chunks)
