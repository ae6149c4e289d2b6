"""How much a durable tier may still take by its quota."""

from __future__ import annotations

import threading
import time

from tierstore.format.keys import PACKS
from tierstore.tiers.base import DurableTier

_ASK_AGAIN_S = 60.0


class Room:
    """Bytes in a tier against its quota: a listing that is renewed, and what we did since.

    What others write is seen within a minute. Thread-safe.
    """

    def __init__(self, tier: DurableTier) -> None:
        self._tier = tier
        self._lock = threading.Lock()
        self._used = 0
        self._asked: float | None = None

    def fits(self, nbytes: int) -> bool:
        """Whether so many bytes more stay within the quota.

        Raises:
            BackendError: the tier could not be listed.
        """
        quota = self._tier.spec.size
        if quota is None:
            return True
        with self._lock:
            now = time.monotonic()
            if self._asked is None or now - self._asked > _ASK_AGAIN_S:
                self._used = sum(info.size for info in self._tier.store.list(PACKS))
                self._asked = now
            return self._used + nbytes <= quota

    def add(self, nbytes: int) -> None:
        """So many bytes were written, or with a minus deleted, by us."""
        with self._lock:
            self._used += nbytes

    def forget(self) -> None:
        """Ask again at the next time."""
        with self._lock:
            self._asked = None
