"""A circuit breaker: skips a directory or a store for a while after it has failed."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable

from tierstore.forks import begin

_LONGEST_S = 60.0

_log = logging.getLogger("tierstore.tiers")
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC})
"""Errors that say nothing about the disk: limits of this process or machine, or a full disk."""


class Breaker:
    """Opens after some failures in a row, and lets one call through again after a while.

    Args:
        what: The operation, for the log, such as "reading tier hot in /nvme/t".
        tier: The name of the tier, which the records of the log carry as ``tier``.
        retry_s: Seconds that calls are skipped; twice as long each time a retry fails, up to a
            minute.
        changed: Called with ``True`` when it opens and with ``False`` when it closes.
        failures: How many failures in a row open it.
        advice: Advice to the user, for the log.
    """

    def __init__(
        self,
        what: str,
        tier: str,
        retry_s: float,
        changed: Callable[[bool], None],
        *,
        failures: int,
        advice: str,
    ) -> None:
        self._what, self._tier, self._retry_s, self._changed = what, tier, retry_s, changed
        self._limit, self._advice = failures, advice
        begin(self.reset)

    def reset(self) -> None:
        """Close the breaker."""
        self._lock = threading.Lock()
        self._failures = 0
        self._until: float | None = None
        self._pause_s = self._retry_s
        self._trying = False

    @property
    def open(self) -> bool:
        """Whether calls are skipped."""
        return self._until is not None

    def ready(self) -> bool:
        """Return whether to call: always while it is closed, and at times while it is open."""
        if self._until is None:
            return True
        with self._lock:
            now = time.monotonic()
            if self._until is not None and now < self._until:
                return False
            if self._until is not None:
                self._until = now + self._pause_s  # one tries, the others wait for it
                self._trying = True
            return True

    def worked(self) -> None:
        """Count a call that succeeded."""
        if not self._failures and self._until is None:
            return
        with self._lock:
            self._pause_s = self._retry_s
            was_open = self._close(failures=0)
        if was_open:
            self._tell_closed()

    def answered(self) -> None:
        """Count a success that proves little: one more failure opens it again, and for longer."""
        with self._lock:
            self._lengthen()
            was_open = self._close(failures=self._limit - 1)
        if was_open:
            self._tell_closed()

    def _close(self, failures: int) -> bool:
        self._failures, self._trying = failures, False
        was_open, self._until = self._until is not None, None
        return was_open

    def _lengthen(self) -> None:
        self._pause_s = min(2 * self._pause_s, max(_LONGEST_S, self._retry_s))

    def _tell_closed(self) -> None:
        _log.warning("%s works again", self._what, extra={"works": self._tier})
        self._changed(False)

    def failed(self, error: Exception) -> None:
        """Count a call that failed, unless the error says nothing about what was called."""
        if isinstance(error, OSError) and error.errno in _OURS:
            _log.debug("%s failed: %s", self._what, error)
            return
        with self._lock:
            self._failures += 1
            if self._failures < self._limit:
                return
            known = self._until is not None
            if known and self._trying:
                self._lengthen()
            self._trying = False
            pause_s = self._pause_s
            self._until = time.monotonic() + pause_s
        if not known:
            _log.warning(
                "%s failed, it is skipped and tried again after %g s: %s; %s",
                self._what,
                pause_s,
                error,
                self._advice,
                extra={"tier": self._tier},
            )
            self._changed(True)
