"""Tiers whose packs are read only after they were restored: storage classes such as GLACIER."""

from __future__ import annotations

from typing import Protocol


class Archive(Protocol):
    """What an archive tier can do beside being a blob store."""

    def freeze(self, key: str) -> None:
        """Have the storage keep an object, that was written and verified, in the archive class."""

    def state(self, key: str) -> tuple[str, str]:
        """Whether an object can be read, and until when, as the storage says it.

        ``readable``: it is not archived; ``archived``; ``restoring``; ``restored``: archived, with
        a copy that can be read for a while. Raises ``NotFound`` when there is no such object.
        """

    def restore(self, key: str, days: int, speed: str) -> None:
        """Ask for a copy that can be read for so many days; again asking is fine.

        Args:
            key: of the object.
            days: for which the copy is kept, from 1.
            speed: ``Expedited``, ``Standard`` or ``Bulk``.
        """
