"""Confirms that the packs a save relies on are still there (format/SPEC.md 11, step 4)."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tierstore.blobs.base import BlobStore
from tierstore.errors import NotFound
from tierstore.format.keys import GC, pack_key
from tierstore.format.layout import Condemned
from tierstore.format.sealed import Kind, unseal_body


def gone_packs(home_blobs: BlobStore, packs: BlobStore, sizes: Mapping[bytes, int]) -> set[bytes]:
    """Return those of the packs that are condemned, missing or of another size.

    Args:
        home_blobs: The store's home, where the condemned lists are.
        packs: The tiers, where packs are.
        sizes: The expected size of each pack in bytes, by pack id.
    """
    condemned = _condemned(home_blobs) if sizes else set()

    def is_there(pack: bytes) -> bool:
        try:
            return packs.info(pack_key(pack)).size == sizes[pack]
        except NotFound:
            return False

    with ThreadPoolExecutor(8, "tierstore-confirm") as pool:
        there = pool.map(is_there, sizes)
    return {pack for pack, has in zip(sizes, there, strict=True) if not has or pack in condemned}


def _condemned(home_blobs: BlobStore) -> set[bytes]:
    newest = max((info.key for info in home_blobs.list(GC)), default=None)
    if newest is None:
        return set()
    listed = unseal_body(Kind.CONDEMNED, home_blobs.get(newest), Condemned, newest)
    return {bytes.fromhex(pack) for pack in listed.packs}
