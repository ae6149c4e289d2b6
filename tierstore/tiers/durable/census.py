"""Which packs lie in which tiers: by listing them, for that is recorded nowhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tierstore.errors import BackendError, NotFound
from tierstore.format.keys import PACKS
from tierstore.tiers.base import DurableTier


@dataclass(frozen=True, slots=True)
class Holding:
    """The packs of one tier.

    Attributes:
        packs: bytes by key.
        only: keys of those that no other tier has.
    """

    packs: dict[str, int]
    only: frozenset[str]

    @property
    def used(self) -> int:
        """Bytes of all packs."""
        return sum(self.packs.values())

    @property
    def only_bytes(self) -> int:
        """Bytes of those that no other tier has."""
        return sum(self.packs[key] for key in self.only)


def packs_of(tier: DurableTier) -> dict[str, int]:
    """Bytes by key of what a tier holds.

    Raises:
        Unreachable: it cannot be asked, or what is there is not this tier.
    """
    tier.verify()
    return {info.key: info.size for info in tier.store.list(PACKS)}


def holding(tiers: Iterable[DurableTier], name: str) -> Holding:
    """What the tier of this name holds, and what it alone holds.

    Raises:
        NotFound: there is no such tier.
        BackendError: a tier cannot be asked, so nobody knows; the message names it.
    """
    found: dict[str, dict[str, int]] = {}
    for tier in tiers:
        try:
            found[tier.name] = packs_of(tier)
        except BackendError as error:
            raise type(error)(
                f"tier {tier.name!r} cannot be asked what it holds: {error}"
            ) from error
    if name not in found:
        raise NotFound(f"there is no durable tier {name!r}; there are {', '.join(found)}")
    packs = found.pop(name)
    elsewhere = set().union(*found.values())
    return Holding(packs, frozenset(packs.keys() - elsewhere))
