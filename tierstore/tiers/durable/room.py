"""The room that a durable tier has left in its quota."""

from __future__ import annotations

import threading
import time

from tierstore.forks import begin
from tierstore.format.keys import PACKS
from tierstore.tiers.durable.tier import DurableTier

_ASK_AGAIN_S = 60.0


class Room:
    """The bytes in a tier compared with its quota: a listing, and what this process did since.

    The listing is renewed, so that what others write is seen within a minute. Thread-safe.
    """

    def __init__(self, tier: DurableTier) -> None:
        self._tier = tier
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._used = 0
        self._asked: float | None = None

    def fits(self, nbytes: int) -> bool:
        """Return whether ``nbytes`` more stay within the quota.

        Raises:
            BackendError: The tier could not be listed.
        """
        quota = self._tier.spec.size
        if quota is None:
            return True
        with self._lock:
            now = time.monotonic()
            if self._asked is None or now - self._asked > _ASK_AGAIN_S:
                self._used = sum(info.size for info in self._tier.blobs.list(PACKS))
                self._asked = now
            return self._used + nbytes <= quota

    def add(self, nbytes: int) -> None:
        """Count bytes that this process has written (or, if negative, deleted)."""
        with self._lock:
            self._used += nbytes

    def forget(self) -> None:
        """List the tier again at the next question."""
        with self._lock:
            self._asked = None
