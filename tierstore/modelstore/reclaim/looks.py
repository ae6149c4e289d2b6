"""What names ask of this folder as they look at versions; it is imported when they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.version import Version

if TYPE_CHECKING:
    from tierstore.modelstore.home.chain import Chain
    from tierstore.modelstore.reclaim.keeping import Keeping


class Looks:
    """Sees to it that packs stay, and who needs a version.

    Args:
        home: The store's home.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._keeping: Keeping | None = None

    def keep(self, what: str, find: Callable[[], Iterable[Chain]], were_removed: bool) -> None:
        """See to it that packs stay which a name relies on; see ``Keeping.keep``."""
        from tierstore.modelstore.reclaim.keeping import Keeping

        self._keeping = self._keeping or Keeping(self._home)
        self._keeping.keep(what, find, were_removed)

    def is_needed(self, version: Version) -> bool:
        """Return whether anything but a reader needs a version; see ``Removing.is_needed``."""
        from tierstore.modelstore.reclaim.removal import Removing

        return Removing(Names(self._home, "", {})).is_needed(version)
