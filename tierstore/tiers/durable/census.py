"""A census of the packs in each tier, by listing them: no object records where packs are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tierstore.errors import BackendError, NotFound
from tierstore.format.keys import PACKS
from tierstore.tiers.durable.marker import Keeper
from tierstore.tiers.durable.tier import DurableTier


@dataclass(frozen=True, slots=True)
class Holding:
    """The packs of one tier.

    Attributes:
        packs: The bytes of each pack by its key.
        only: The keys of packs that no other tier has.
    """

    packs: dict[str, int]
    only: frozenset[str]

    @property
    def used_bytes(self) -> int:
        """The bytes of all packs."""
        return sum(self.packs.values())

    @property
    def only_bytes(self) -> int:
        """The bytes of the packs that no other tier has."""
        return sum(self.packs[key] for key in self.only)


def packs_of(tier: DurableTier) -> dict[str, int]:
    """Return the bytes of each pack in a tier, by its key.

    Raises:
        Unreachable: The tier cannot be asked, or what is there is not this tier.
    """
    return listed(tier)[1]


def listed(tier: DurableTier) -> tuple[Keeper | None, dict[str, int]]:
    """Return which home deletes in a tier, and the same as ``packs_of``."""
    keeper = tier.verify()
    return keeper, {info.key: info.size for info in tier.blobs.list(PACKS)}


def holding(tiers: Iterable[DurableTier], name: str) -> Holding:
    """Return the packs of the named tier, and which of them no other tier has.

    Raises:
        NotFound: There is no such tier.
        BackendError: A tier cannot be asked, so the answer is not known; the message names the
            tier.
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
