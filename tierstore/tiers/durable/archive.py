"""The interface of archive tiers, whose packs must be restored before they are read.

Storage classes such as GLACIER are archives.
"""

from __future__ import annotations

from typing import Protocol


class Archive(Protocol):
    """Operations of an archive tier that a blob store does not have."""

    def freeze(self, key: str) -> None:
        """Put an object that was written and verified into the archive class."""

    def state(self, key: str) -> tuple[str, str]:
        """Return whether an object can be read, and until when, as the storage says it.

        The state is ``readable`` (not archived), ``archived``, ``restoring``, or ``restored``
        (archived, with a copy that can be read for a while). Raises ``NotFound`` when there is no
        such object.
        """

    def restore(self, key: str, days: int, speed: str) -> None:
        """Ask for a copy that can be read for some days; asking again is fine.

        Args:
            key: The key of the object.
            days: How many days the copy is kept, from 1.
            speed: ``Expedited``, ``Standard`` or ``Bulk``.
        """
