"""Confirms that a save can rely on packs that are there already (format/SPEC.md 11, step 4)."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tierstore.blobs.base import BlobStore
from tierstore.errors import NotFound
from tierstore.format.keys import GC, pack_key
from tierstore.format.layout import Condemned
from tierstore.format.sealed import Kind, unseal_body
from tierstore.modelstore.home.home import Home


def unfit_packs(home: Home, sizes: Mapping[bytes, int]) -> set[bytes]:
    """Return those of the packs that are missing, of another size, condemned or quarantined.

    Args:
        home: The store's home.
        sizes: The expected size of each pack in bytes, by pack id.
    """
    if not sizes:
        return set()
    refused = _condemned(home.blobs) | home.quarantine.packs()

    def is_there(pack: bytes) -> bool:
        try:
            return home.packs.info(pack_key(pack)).size == sizes[pack]
        except NotFound:
            return False

    with ThreadPoolExecutor(8, "tierstore-confirm") as pool:
        there = pool.map(is_there, sizes)
    return {pack for pack, has in zip(sizes, there, strict=True) if not has or pack in refused}


def _condemned(home_blobs: BlobStore) -> set[bytes]:
    newest = max((info.key for info in home_blobs.list(GC)), default=None)
    if newest is None:
        return set()
    listed = unseal_body(Kind.CONDEMNED, home_blobs.get(newest), Condemned, newest)
    return {bytes.fromhex(pack) for pack in listed.packs}
