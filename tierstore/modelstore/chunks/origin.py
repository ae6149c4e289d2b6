"""Where an opened version came from, so that what reads it can be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tierstore.errors import UsageError
from tierstore.modelstore.version import Version


class Source(Protocol):
    """What opens versions: a ``Store``."""

    def load(self, ref: Version) -> Any:
        """Return a ``Model`` of a version."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The store that a version was opened from, and the version.

    Pickled, it is what opens the version again, by its digest; unpickled, the ``Model``. All that
    reads one version shares its origin, and so shares one model where it is unpickled.
    """

    store: Source
    version: Version

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded, (self.store, self.version)


def _loaded(store: Source, version: Version) -> Any:
    return store.load(version)


def pickled(what: str, origin: Origin | None) -> Origin:
    """Return the origin of something that is pickled; ``UsageError`` if there is none.

    Args:
        what: Names it in the message.
        origin: Its origin.
    """
    if origin is None:
        raise UsageError(
            f"{what} cannot be pickled: Store.load did not open it; give its reference instead"
        )
    return origin
