"""News: tells the nodes of a store which model just changed. A hint, never a promise.

A message may be lost, so whoever depends on it also looks at the ref log now and then.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Listening(Protocol):
    """A subscription to the news of a store."""

    def get(self, timeout_s: float) -> str | None:
        """Return the next model that changed, or ``None`` if none did in ``timeout_s`` seconds."""
        ...


class News(Protocol):
    """A channel on which a store's nodes tell each other that a model's log has a new entry."""

    def tell(self, model: str) -> None:
        """Announce that a model changed. Never raises, never waits."""

    def listen(self) -> AbstractContextManager[Listening]:
        """Receive announcements in the block; ``Unreachable`` when the connection breaks."""
        ...

    def close(self) -> None:
        """Send what is still queued, for a limited time, and close the channel."""
        ...
