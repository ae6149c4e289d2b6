"""Confirms that what is written can rely on packs that are there already (format/SPEC.md 10, 11).

What is *unfit* no save reuses, and moves heal it; what is *gone* no layout may name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor

from tierstore.errors import Damaged, NotFound
from tierstore.format.keys import pack_key
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.condemned import LISTED_S
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


def lost_since(
    home: Home,
    packs: Set[bytes],
    since_s: float,
    manifests: Set[bytes] = frozenset(),
    published: Set[bytes] = frozenset(),
) -> set[bytes]:
    """Return those of the packs that were condemned, or deleted, since they were all there.

    Lists name a condemned pack for 30 days at least. Whoever was suspended for longer asks for the
    packs themselves.

    Args:
        home: The store's home.
        packs: The ids of the packs.
        since_s: A time by ``running_s`` before anybody looked whether they are there.
        manifests: The digests of manifests; those that are condemned, which they are for ever, are
            returned, too.
        published: The same of the caller's own, which are returned as well where they are about to
            be condemned.

    Raises:
        Damaged: It is unknown what is condemned.
    """
    lost = home.condemned.among(packs | manifests, published)
    if running_s() - since_s > LISTED_S / 2:
        lost |= _missing(packs - lost, lambda pack: home.packs.size(pack_key(pack)) > 0)
    return lost


def _refused(home: Home, sizes: Mapping[bytes, int], size_of: Callable[[str], int]) -> set[bytes]:
    if not sizes:
        return set()
    try:
        condemned = home.condemned.among(sizes)
    except Damaged as error:
        _log.warning("%s. Until then nothing that was stored before is relied on", error)
        return set(sizes)
    return condemned | _missing(sizes.keys(), lambda pack: size_of(pack_key(pack)) == sizes[pack])


def _missing(packs: Set[bytes], is_there: Callable[[bytes], bool]) -> set[bytes]:
    def has(pack: bytes) -> bool:
        try:
            return is_there(pack)
        except NotFound:
            return False

    with ThreadPoolExecutor(8, "tierstore-confirm") as pool:
        return {pack for pack, there in zip(packs, pool.map(has, packs), strict=True) if not there}
