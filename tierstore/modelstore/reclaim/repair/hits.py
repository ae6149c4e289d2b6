"""What versions lack of which chunks are lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import suppress

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.manifest import Manifest, named_tensors
from tierstore.ids import split_digests
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.stored import entry_bytes
from tierstore.modelstore.reclaim.repair.report import HitPart, HitVersion
from tierstore.modelstore.reclaim.repair.users import Users
from tierstore.modelstore.reclaim.repair.wanted import read_tables

Lost = Set[tuple[bytes, bytes]]
"""The pack in which a layout places a chunk, and the digest of the chunk, that are lost."""


def find_hits(home: Home, users: Users, lost: Lost) -> list[HitVersion]:
    """Return the versions that lack lost chunks, by their names.

    Args:
        home: The store's home.
        users: The versions by the manifests that they need.
        lost: The chunks.
    """
    if not lost:
        return []
    packs = {pack for pack, _ in lost}
    hits: list[HitVersion] = []
    for digest, table in read_tables(home, users):
        if packs.isdisjoint(table.pack_ids):
            continue
        sizes = {
            place.digest: place.plain_bytes for place in table if (place.pack, place.digest) in lost
        }
        if not sizes:
            continue
        with suppress(Damaged, NotFound, UnsupportedFormat):  # a manifest is spoken of itself
            parts = tuple(_parts(home.manifest(digest), sizes))
            if parts:  # else what is lost is a base of deltas that were stored anew
                hits += [HitVersion(name, version_key(digest), parts) for name in users[digest]]
    return sorted(hits, key=lambda hit: hit.version)


def _parts(manifest: Manifest, sizes: dict[bytes, int]) -> Iterator[HitPart]:
    for name, _, tensor in named_tensors(manifest):
        if lost := _lost_bytes(split_digests(tensor.chunks), sizes):
            yield HitPart(name, lost, entry_bytes(tensor))
    for file in manifest.files:
        if not file.header and (lost := _lost_bytes(split_digests(file.chunks), sizes)):
            yield HitPart(file.path, lost, file.size)


def _lost_bytes(chunks: Iterable[bytes], sizes: dict[bytes, int]) -> int:
    return sum(sizes.get(chunk, 0) for chunk in chunks)
