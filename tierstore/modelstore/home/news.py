"""News: who changed which model just now, told to whoever listens. A hint, never a promise.

What is told may be lost; whoever depends on it also looks at the ref log now and then.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Listening(Protocol):
    """What is heard."""

    def get(self, timeout_s: float) -> str | None:
        """The next model that changed, or ``None`` when none did in ``timeout_s`` seconds."""
        ...


class News(Protocol):
    """Where a store's nodes tell each other that a model's log has a new entry."""

    def tell(self, model: str) -> None:
        """Say that a model changed. Never raises, never waits."""

    def listen(self) -> AbstractContextManager[Listening]:
        """Hear what is told while the block runs; ``Unreachable`` when the connection breaks."""
        ...

    def close(self) -> None:
        """Tell what waits, for a while at most."""
        ...
