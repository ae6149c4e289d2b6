"""Growth: how much rebases and folds of agents may add until the next collection (SPEC.md 13).

What they write makes reads cheaper, and leaves garbage: the old frames of a rebase, and in time the
patches below a fold. A store must not fill up with that where nobody collects it. The measure is
what the last collection left: what it knew to be garbage counts, and what has been written since.
"""

from __future__ import annotations

import logging
import math
import time

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format import collected, keys
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.holdings import read_holdings
from tierstore.modelstore.reclaim.kept import read_last
from tierstore.shown import size

PERCENT = 5.0
"""Garbage, and what was written since the last collection, in percent of all other bytes."""

_LISTED_FOR_S = 3600.0
_log = logging.getLogger("tierstore.agent")


class Growth:
    """Bytes that an agent may write to make reads cheaper. For one thread.

    Nothing is asked of home before somebody asks what is left.

    Args:
        home: The store's home.
        node: The name of this node; a name that no other node has.
        percent: Garbage and what was written, in percent of all other bytes that are stored.
        round_bytes: Bytes that may be written between two calls of ``begin_round``.
    """

    def __init__(
        self, home: Home, node: str, *, percent: float = PERCENT, round_bytes: float = math.inf
    ) -> None:
        self._home, self._key = home, keys.GROWTH + keys.segment(node)
        self._percent, self._round_bytes = percent, round_bytes
        self._round_left = round_bytes
        self._listed: tuple[float, int] | None = None
        self._told: int | None = None

    def begin_round(self) -> None:
        """Begin a round: what was not written in the last one is not saved up."""
        self._round_left = self._round_bytes

    def left_bytes(self) -> int:
        """Return how many bytes may be written now; 0 if none."""
        since_us, live, garbage = self._stored()
        written = sum(self._written(since_us).values())
        left = int(live * self._percent / 100) - garbage - written
        if left <= 0 and self._told != since_us:
            self._told = since_us
            _log.info(
                "nothing is rebased or folded until garbage is collected: %s of it and %s that "
                "were written since are %g percent of the store or more (--growth)",
                size(garbage),
                size(written),
                self._percent,
            )
        return max(0, int(min(left, self._round_left)))

    def add(self, nbytes: int) -> None:
        """Note that so many bytes of packs were written."""
        self._round_left -= nbytes
        since_us = self._stored()[0]
        before = self._written(since_us).get(self._key, 0)
        body = collected.Growth(since_us=since_us, bytes=before + nbytes)
        self._home.blobs.put(self._key, seal_body(Kind.GROWTH, body))

    def _stored(self) -> tuple[int, int, int]:
        """Return when the last collection ended, and the bytes that it left: of use, and garbage.

        Before the first one, the time is 0, and all bytes are of use that are stored by now.
        """
        last = read_last(self._home.blobs)
        if last is None:
            return 0, self._all_bytes(), 0
        live = [*last.needed.values(), *last.removed.values()]
        garbage = sum(held.bytes for held in last.garbage.values())
        return round(last.time.timestamp() * 1e6), sum(held.bytes for held in live), garbage

    def _all_bytes(self) -> int:
        now = time.monotonic()
        if self._listed is None or now - self._listed[0] > _LISTED_FOR_S:
            by_tier = read_holdings(self._home.packs).by_tier
            self._listed = now, sum(sum(held.values()) for held in by_tier.values())
        return self._listed[1]

    def _written(self, since_us: int) -> dict[str, int]:
        """Return what was written since then, by the key of each node's object."""
        found: dict[str, int] = {}
        listed = [info.key for info in self._home.blobs.list(keys.GROWTH)]
        for key, data in self._home.blobs.get_many(listed).items():
            try:
                growth = unseal_body(Kind.GROWTH, data, collected.Growth, key)
            except (Damaged, NotFound, UnsupportedFormat) as error:
                _log.warning("%s; what it counted is not counted", error)
                continue
            if growth.since_us == since_us:
                found[key] = growth.bytes
        return found
