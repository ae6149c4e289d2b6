"""Tiers whose packs are read only after they were restored: storage classes such as GLACIER."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

ArchiveState = Literal["readable", "archived", "restoring", "restored"]
"""``readable``: never archived; ``restored``: archived, with a copy to read for a while."""


@dataclass(frozen=True, slots=True)
class ArchiveInfo:
    """One object of an archive tier.

    Attributes:
        state: whether it can be read.
        until: when a restored copy ends, as the storage says it; empty when it does not.
    """

    state: ArchiveState
    until: str = ""


class Archive(Protocol):
    """What an archive tier can do beside being a blob store."""

    def freeze(self, key: str) -> None:
        """Have the storage keep an object, that was written and verified, in the archive class."""

    def state(self, key: str) -> ArchiveInfo:
        """Whether an object can be read; ``NotFound`` when there is none."""

    def restore(self, key: str, days: int, speed: str) -> None:
        """Ask for a copy that can be read for so many days; again asking is fine.

        Args:
            key: of the object.
            days: for which the copy is kept, from 1.
            speed: ``Expedited``, ``Standard`` or ``Bulk``.
        """
