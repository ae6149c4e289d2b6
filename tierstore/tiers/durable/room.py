"""The room that a durable tier has left in its quota."""

from __future__ import annotations

import threading
import time

from tierstore.forks import begin
from tierstore.format.keys import PACKS
from tierstore.tiers.durable.tier import DurableTier

_ASK_AGAIN_S, _NEARLY_FULL_S = 3600.0, 60.0
_SPARE = 10
"""With less than one part in so many free, a tier is nearly full."""


class Room:
    """The bytes in a tier compared with its quota: a listing, and what this process did since.

    A listing costs a request for each thousand packs. It is renewed after an hour, and after a
    minute where the tier is nearly full: so late is seen what others write and delete. Thread-safe.
    """

    def __init__(self, tier: DurableTier) -> None:
        self._tier = tier
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._used = 0
        self._asked: float | None = None
        self._refused = False

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
            nearly_full = self._used + nbytes > quota - quota // _SPARE
            lasts_s = _NEARLY_FULL_S if nearly_full else _ASK_AGAIN_S
            if self._asked is None or now - self._asked > lasts_s:
                self._used = sum(info.size for info in self._tier.blobs.list(PACKS))
                self._asked = now
            self._refused = self._used + nbytes > quota
            return not self._refused

    def add(self, nbytes: int) -> None:
        """Count bytes that this process has written (or, if negative, deleted)."""
        with self._lock:
            self._used += nbytes

    def look_again(self) -> None:
        """List the tier again at the next question if it had no room: it may have some by now."""
        with self._lock:
            if self._refused:
                self._asked = None
