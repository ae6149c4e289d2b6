"""Which packs lie in which durable tier, by listing all of them: no object records it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tierstore.errors import BackendError, NotFound
from tierstore.format.keys import PACKS, pack_key
from tierstore.tiers.durable.census import listed, packs_of
from tierstore.tiers.durable.marker import Keeper
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers

_KEY = re.compile(re.escape(PACKS) + r"[0-9a-f]{2}/([0-9a-f]{64})\Z")
_log = logging.getLogger("tierstore.gc")


@dataclass(slots=True)
class Holdings:
    """The packs in the tiers of a store.

    Attributes:
        packs: The tiers.
        by_tier: The bytes of each pack by its id, by the tier's name; the fastest tier first.
        down: Why tiers could not be listed, by name: they may have any pack.
        archives: The names of tiers whose packs must be restored before they are read.
        keepers: Which home deletes in a tier, by the tier's name, where that is written down.
    """

    packs: DurableTiers
    by_tier: Mapping[str, Mapping[bytes, int]]
    down: Mapping[str, str]
    archives: Set[str]
    keepers: Mapping[str, Keeper]
    _asked: dict[bytes, bool] = field(default_factory=dict)
    _distrusted: set[bytes] = field(default_factory=set)

    def every(self) -> set[bytes]:
        """Return the ids of all packs that were listed."""
        return set().union(*self.by_tier.values())

    def is_there(self, pack: bytes) -> bool:
        """Return whether a tier has a pack, or may have it: one that cannot be asked may."""
        if pack not in self._distrusted and any(pack in held for held in self.by_tier.values()):
            return True
        if pack not in self._asked:  # it may have come, or moved, since the tiers were listed
            try:
                self.packs.size(pack_key(pack))
                self._asked[pack] = True
            except NotFound:
                self._asked[pack] = False
            except BackendError:
                self._asked[pack] = True
        return self._asked[pack]

    def distrust(self, pack: bytes) -> None:
        """Note that a pack was deleted or archived since the tiers were listed."""
        self._distrusted.add(pack)

    def is_readable(self, pack: bytes) -> bool:
        """Return whether a tier has a pack that needs no restore first."""
        held = (packs for name, packs in self.by_tier.items() if name not in self.archives)
        return pack not in self._distrusted and any(pack in packs for packs in held)

    def is_archived(self, pack: bytes) -> bool:
        """Return whether archives alone have a pack, as far as the tiers could be asked."""
        return not self.is_readable(pack) and any(
            pack in self.by_tier.get(name, ()) for name in self.archives
        )

    def bytes_of(self, pack: bytes) -> dict[str, int]:
        """Return the bytes of a pack by the name of the tier that has it."""
        return {name: held[pack] for name, held in self.by_tier.items() if pack in held}


def held_by(tier: DurableTier) -> dict[bytes, int]:
    """Return the bytes of each pack in a tier by its id.

    Raises:
        Unreachable: The tier cannot be asked, or what is there is not this tier.
    """
    return _ids(packs_of(tier))


def _ids(sizes: Mapping[str, int]) -> dict[bytes, int]:
    found = ((_KEY.match(key), size) for key, size in sizes.items())
    return {bytes.fromhex(match[1]): size for match, size in found if match}


def read_holdings(packs: DurableTiers) -> Holdings:
    """List all tiers at once."""
    tiers = packs.tiers
    down: dict[str, str] = {}
    by_tier: dict[str, dict[bytes, int]] = {}
    keepers: dict[str, Keeper] = {}
    with ThreadPoolExecutor(len(tiers), "tierstore-holdings") as pool:
        asked = {tier.name: pool.submit(listed, tier) for tier in tiers}
    for name, answer in asked.items():
        try:
            keeper, sizes = answer.result()
            by_tier[name] = _ids(sizes)
            if keeper is not None:
                keepers[name] = keeper
        except BackendError as error:
            _log.warning("tier %s cannot be listed: %s", name, error, extra={"tier": name})
            down[name] = str(error)
    archives = frozenset(tier.name for tier in tiers if tier.archive is not None)
    return Holdings(packs, by_tier, down, archives, keepers)
