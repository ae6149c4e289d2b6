"""Warnings of the library on stderr: one for a tier that fails, however many come upon it."""

from __future__ import annotations

import logging
import time
from collections.abc import Container

from tierstore.cli.kit.streams import print_error
from tierstore.shown import printable

_ONCE_S = 60.0
"""Seconds for which a tier that fails is not told of again: a service runs for weeks."""


class Warnings(logging.Handler):
    """Prints warnings in the form of the program's own errors.

    A record about a tier that fails carries its name as ``tier``, and one that says that it works
    again as ``works``: of the former one is printed until the latter, or for a minute.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: dict[str, float] = {}
        self._held: dict[str, str] | None = None

    def begin(self) -> None:
        """Begin a command: nothing was told yet."""
        self._told.clear()
        self._held = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless its tier was told of already; hold it back if that is wanted."""
        line = f"tierstore: {record.levelname.lower()}: {printable(record.getMessage())}"
        self._told.pop(getattr(record, "works", ""), None)
        tier = getattr(record, "tier", None)
        if tier is not None:
            now_s = time.monotonic()
            if now_s - self._told.get(tier, -_ONCE_S) < _ONCE_S:
                return
            self._told[tier] = now_s
            if self._held is not None:
                self._held[tier] = line
                return
        print_error(line)

    def hold(self) -> None:
        """Hold back from now on what is about tiers: the command itself says what it lacks."""
        if self._held is None:
            self._held = {}

    def tell_held(self, told: Container[str] = ()) -> None:
        """Print what was held back, but for the tiers that the command has told of."""
        held, self._held = self._held or {}, None
        for tier, line in held.items():
            if tier not in told:
                print_error(line)


WARNINGS = Warnings()
"""The one handler of this process."""


def show_warnings() -> None:
    """Print warnings of the library from now on, as those of a command that begins."""
    WARNINGS.begin()
    logger = logging.getLogger("tierstore")
    if WARNINGS not in logger.handlers:
        logger.addHandler(WARNINGS)
