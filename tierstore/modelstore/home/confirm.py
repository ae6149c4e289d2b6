"""Confirms that what is written can rely on packs that are there already (format/SPEC.md 10, 11).

What is *unfit* no save reuses, and moves heal it; what is *gone* no layout may name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from tierstore.errors import Damaged, NotFound
from tierstore.format.keys import pack_key
from tierstore.modelstore.home.home import Home

_log = logging.getLogger("tierstore.gc")


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
    try:
        condemned = home.condemned.among(sizes)
    except Damaged as error:
        _log.warning("%s. Until then nothing that was stored before is relied on", error)
        return set(sizes)

    def is_there(pack: bytes) -> bool:
        try:
            return size_of(pack_key(pack)) == sizes[pack]
        except NotFound:
            return False

    with ThreadPoolExecutor(8, "tierstore-confirm") as pool:
        there = pool.map(is_there, sizes)
    return {pack for pack, has in zip(sizes, there, strict=True) if not has or pack in condemned}
