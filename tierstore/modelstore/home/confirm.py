"""Confirms that what is written can rely on packs that are there already (format/SPEC.md 10, 11).

What is *unfit* no save reuses, and moves heal it; what is *gone* no layout may name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from tierstore.blobs.base import BlobStore
from tierstore.errors import NotFound
from tierstore.format.keys import GC, pack_key
from tierstore.format.layout import Condemned
from tierstore.format.sealed import Kind, unseal_body
from tierstore.modelstore.home.home import Home


def unfit_packs(home: Home, sizes: Mapping[bytes, int]) -> set[bytes]:
    """Return those of the packs that nothing new may rely on.

    They are condemned or quarantined, or no tier but archives has them in their size.

    Args:
        home: The store's home.
        sizes: The expected size of each pack in bytes, by pack id.
    """
    unfit = _refused(home, sizes, lambda key: home.packs.info(key).size)
    return unfit | (home.quarantine.packs() & sizes.keys() if sizes else set())


def gone_packs(home: Home, sizes: Mapping[bytes, int]) -> set[bytes]:
    """Return those of the packs that are condemned, or that no tier has in their size.

    Args:
        home: The store's home.
        sizes: The expected size of each pack in bytes, by pack id.
    """
    return _refused(home, sizes, home.packs.size)


def _refused(home: Home, sizes: Mapping[bytes, int], size_of: Callable[[str], int]) -> set[bytes]:
    if not sizes:
        return set()
    condemned = _condemned(home.blobs)

    def is_there(pack: bytes) -> bool:
        try:
            return size_of(pack_key(pack)) == sizes[pack]
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
