"""Skips a directory that fails, for a while."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable

_FAILURES = 3

_log = logging.getLogger("tierstore.tiers")
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC})
"""What says nothing about the disk: this process's or the machine's limits, or a full disk."""


class Breaker:
    """Opens after some failures in a row, and lets one call through again after a while.

    Args:
        what: for the log: "reading tier hot in /nvme/t".
        retry_s: how long calls are skipped.
        changed: called when it opens (``True``) and when it closes.
    """

    def __init__(self, what: str, retry_s: float, changed: Callable[[bool], None]) -> None:
        self._what, self._retry_s, self._changed = what, retry_s, changed
        self.reset()

    def reset(self) -> None:
        """Closed, and usable in a child that was forked."""
        self._lock = threading.Lock()
        self._failures = 0
        self._until: float | None = None

    @property
    def open(self) -> bool:
        """Whether calls are skipped."""
        return self._until is not None

    def ready(self) -> bool:
        """Whether to call: always while it is closed, and once in a while when it is open."""
        if self._until is None:
            return True
        with self._lock:
            now = time.monotonic()
            if self._until is not None and now < self._until:
                return False
            if self._until is not None:
                self._until = now + self._retry_s  # one tries, the others wait for it
            return True

    def worked(self) -> None:
        """A call succeeded."""
        if not self._failures and self._until is None:
            return
        with self._lock:
            self._failures = 0
            if self._until is None:
                return
            self._until = None
        _log.warning("%s works again", self._what)
        self._changed(False)

    def failed(self, error: OSError) -> None:
        """A call failed: counted, unless it says nothing about the disk."""
        if error.errno in _OURS:
            _log.debug("%s failed: %s", self._what, error)
            return
        with self._lock:
            self._failures += 1
            if self._failures < _FAILURES:
                return
            known = self._until is not None
            self._until = time.monotonic() + self._retry_s
        if not known:
            _log.warning(
                "%s failed, it is skipped and tried again every %g s: %s; check that the disk is "
                "mounted and may be written",
                self._what,
                self._retry_s,
                error,
            )
            self._changed(True)
