"""A recorder of reads, which counts in memory and hands over to a ledger in batches.

All nodes share the ledger. Reads are timed by this process's monotonic clock and brought to the
ledger's own clock when they are handed over, so a node whose clock is wrong counts like any other.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tierstore.errors import BackendError
from tierstore.forks import begin
from tierstore.format.heat import CHUNK, PACK
from tierstore.ids import DIGEST_BYTES
from tierstore.placement.heat import HALF_LIFE_S, REMEMBERED, HeatMap
from tierstore.tiers.base import ChunkRead

_MAX_KEYS = 1 << 16
"""The most keys in memory until they are handed over; the coldest are forgotten."""

_log = logging.getLogger("tierstore.heat")


def chunk_key(digest: bytes) -> bytes:
    """Return the key of a chunk in a heat map; its heat is a count of reads."""
    return bytes((CHUNK,)) + digest


def pack_key(pack: bytes) -> bytes:
    """Return the key of a pack in a heat map; its heat is bytes of its frames that were read."""
    return bytes((PACK,)) + pack


class HeatLedger(Protocol):
    """The heat that nodes add to and read; its times are seconds by its own clock."""

    def now(self) -> float:
        """Return the time by the ledger's clock, the same for all nodes.

        Raises ``BackendError`` when it cannot be asked.
        """

    def add(self, heat: HeatMap) -> None:
        """Add what was read since the last call. After an error some of it may be counted."""

    def load(self) -> HeatMap:
        """Return the sum of all nodes, at least for the hottest keys."""


@dataclass(frozen=True, slots=True)
class HeatView:
    """The heat of all nodes at one moment.

    Attributes:
        heat: The heat by ``chunk_key`` and ``pack_key``.
        now: The moment, by the ledger's clock.
    """

    heat: HeatMap
    now: float

    def chunk(self, digest: bytes) -> float:
        """Return the decayed count of reads of a chunk."""
        return self.heat.value(chunk_key(digest), self.now)

    def pack(self, pack: bytes) -> float:
        """Return the decayed bytes read of a pack; divided by its size, how often it is read."""
        return self.heat.value(pack_key(pack), self.now)

    def packs(self) -> dict[bytes, float]:
        """Return the heat of every pack that has any."""
        return {key[1:]: value for key, value in self.heat.items(self.now) if key[0] == PACK}

    def chunks(self) -> dict[bytes, float]:
        """Return the heat of every chunk that has any."""
        return {key[1:]: value for key, value in self.heat.items(self.now) if key[0] == CHUNK}


NO_HEAT = HeatView(HeatMap(HALF_LIFE_S, 0.0), 0.0)
"""The view where nothing is counted."""


@dataclass(slots=True)
class HeatStats:
    """Counts of a recorder: batches and keys that were handed over, and batches that failed."""

    flushes: int = 0
    keys: int = 0
    failures: int = 0


class HeatRecorder:
    """Counts the reads of one process; a ``HeatSink``. Thread-safe, fork-safe.

    Args:
        ledger: The ledger that all nodes add to.
        clock: Returns seconds that never run backwards.
        max_keys: The most keys that are kept until they are handed over.
    """

    def __init__(
        self,
        ledger: HeatLedger,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = _MAX_KEYS,
    ) -> None:
        self.ledger, self._clock, self._max_keys = ledger, clock, max_keys
        self.stats = HeatStats()
        begin(self._begin)

    def _begin(self) -> None:
        # the parent hands over what it counted
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._heat = HeatMap(HALF_LIFE_S, self._clock())

    def record(self, reads: Sequence[ChunkRead]) -> None:
        """Count these reads as happening now, as a ``HeatSink`` does."""
        now = self._clock()
        with self._lock:
            for read in reads:
                self._heat.add(chunk_key(read.digest), now)
                if read.read_bytes:
                    self._heat.add(pack_key(read.pack), now, read.read_bytes)
            if len(self._heat) > 2 * self._max_keys:
                self._heat.prune(self._max_keys)

    def flush(self) -> bool:
        """Hand over what was counted; return ``False`` when that failed. Never raises.

        What could not be sent is sent the next time. What was sent without an answer is not sent
        again, since it would count twice.
        """
        with self._flushing:
            if not len(self._heat):
                return True
            try:
                now = self.ledger.now()
            except BackendError as error:
                return self._failed(error)
            with self._lock:
                counted, moment = self._heat, self._clock()
                self._heat = HeatMap(HALF_LIFE_S, moment)
            landmark = now - (moment - counted.landmark)
            try:
                self.ledger.add(HeatMap.from_scores(HALF_LIFE_S, landmark, counted.scores()))
            except BackendError as error:
                return self._failed(error)
            self.stats.flushes += 1
            self.stats.keys += len(counted)
            return True

    def _failed(self, error: BackendError) -> bool:
        self.stats.failures += 1
        _log.debug("heat cannot be handed over: %s", error)
        return False

    def view(self) -> HeatView:
        """Return the heat of all nodes now, including what this process has counted.

        Raises:
            BackendError: The ledger cannot be asked.
        """
        self.flush()
        return HeatView(self.ledger.load(), self.ledger.now())


class HeatSums(Protocol):
    """Sums by name, separate for each period, in a server that all nodes share, such as Redis."""

    def time(self) -> float:
        """Return the seconds since the epoch by the server's clock."""

    def add(self, increments: dict[str, float], period: int) -> None:
        """Add to the sums of a period."""

    def top(self, count: int, period: int) -> list[tuple[str, float]]:
        """Return the ``count`` largest sums of a period, by name."""

    def trim(self, keep: int, period: int) -> int:
        """Forget all but the ``keep`` largest sums of a period; return how many were forgotten."""

    def drop(self, period: int) -> None:
        """Forget all sums of a period."""


_PERIOD_S = REMEMBERED * HALF_LIFE_S
"""How long one landmark is used: so sums, also of bytes, stay below 2^1024, a double's limit."""

_KEPT = 1 << 17  # keys in the server: about 20 MB
_LOADED = 1 << 16
_KINDS = {CHUNK: "c", PACK: "p"}
_HEX = re.compile(rf"[0-9a-f]{{{2 * DIGEST_BYTES}}}\Z")
_LETTERS = {letter: kind for kind, letter in _KINDS.items()}


class SumsLedger:
    """A ledger that keeps heat as plain sums in a server.

    The landmark of a sum is the beginning of its period, so nodes need not agree on one. Sums of
    the previous period are still read, and added with their own landmark.
    """

    def __init__(self, sums: HeatSums) -> None:
        self._sums = sums

    def now(self) -> float:
        return self._sums.time()

    def add(self, heat: HeatMap) -> None:
        period = self._period()
        scores = heat.scores(period * _PERIOD_S)
        self._sums.add({_name(key): 2.0**score for key, score in scores.items()}, period)
        self._sums.trim(_KEPT, period)
        self._sums.drop(period - 2)

    def load(self) -> HeatMap:
        period = self._period()
        found = HeatMap(HALF_LIFE_S, period * _PERIOD_S)
        for number in (period - 1, period):
            landmark = number * _PERIOD_S
            for name, total in self._sums.top(_LOADED, number):
                key = _key(name)
                if key is not None and 0.0 < total < math.inf:
                    found.add(key, landmark, total)
        return found

    def _period(self) -> int:
        return int(self._sums.time() // _PERIOD_S)


def _name(key: bytes) -> str:
    return _KINDS[key[0]] + key[1:].hex()


def _key(name: str) -> bytes | None:
    """Return the key that a name stands for; ``None`` for what others put into the server."""
    kind = _LETTERS.get(name[:1])
    if kind is None or not _HEX.match(name, 1):
        return None
    return bytes((kind,)) + bytes.fromhex(name[1:])
