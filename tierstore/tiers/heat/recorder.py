"""What is read, counted in memory and handed to a ledger that all nodes share, in batches.

Reads are timed by this process's monotonic clock and brought to the ledger's own clock when they
are handed over, so a node whose clock is wrong counts like any other.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tierstore.errors import BackendError
from tierstore.format.heat import CHUNK, PACK
from tierstore.placement.heat import HALF_LIFE_S, REMEMBERED, HeatMap
from tierstore.tiers.base import ChunkRead

_LIMIT = 1 << 16
"""Keys that are kept in memory until they are handed over; the coldest are forgotten."""

_log = logging.getLogger("tierstore.heat")


def chunk_key(digest: bytes) -> bytes:
    """The key of a chunk in a heat map; its heat is a count of reads."""
    return bytes((CHUNK,)) + digest


def pack_key(pack: bytes) -> bytes:
    """The key of a pack in a heat map; its heat is bytes of its frames that were read."""
    return bytes((PACK,)) + pack


class HeatLedger(Protocol):
    """Heat that nodes add to and read; its times are seconds by its own clock."""

    def now(self) -> float:
        """The ledger's clock, the same for all nodes; ``BackendError`` when it cannot be asked."""

    def add(self, heat: HeatMap) -> None:
        """Add what was read since the last call. After an error some of it may be counted."""

    def load(self) -> HeatMap:
        """The sum of all nodes: the hottest keys at least."""


@dataclass(frozen=True, slots=True)
class HeatView:
    """The heat of all nodes at one moment.

    Attributes:
        heat: by ``chunk_key`` and ``pack_key``.
        now: the moment, by the clock of its ledger.
    """

    heat: HeatMap
    now: float

    def chunk(self, digest: bytes) -> float:
        """Reads of a chunk, decayed."""
        return self.heat.value(chunk_key(digest), self.now)

    def pack(self, pack: bytes) -> float:
        """Bytes read of a pack, decayed; over the pack's own bytes that is how often it is read."""
        return self.heat.value(pack_key(pack), self.now)

    def packs(self) -> dict[bytes, float]:
        """Every pack that has heat."""
        return {key[1:]: value for key, value in self.heat.items(self.now) if key[0] == PACK}

    def chunks(self) -> dict[bytes, float]:
        """Every chunk that has heat."""
        return {key[1:]: value for key, value in self.heat.items(self.now) if key[0] == CHUNK}


NO_HEAT = HeatView(HeatMap(HALF_LIFE_S, 0.0), 0.0)
"""Where nothing is counted."""


@dataclass(slots=True)
class HeatStats:
    """What the recorder has done: handed over in so many batches, keys, and batches that failed."""

    flushes: int = 0
    keys: int = 0
    failures: int = 0


class HeatRecorder:
    """Counts the reads of one process; a ``HeatSink``. Thread-safe, fork-safe.

    Args:
        ledger: what all nodes add to.
        clock: seconds that never run backwards.
        limit: keys that are kept until they are handed over.
    """

    def __init__(
        self,
        ledger: HeatLedger,
        *,
        clock: Callable[[], float] = time.monotonic,
        limit: int = _LIMIT,
    ) -> None:
        self.ledger, self._clock, self._limit = ledger, clock, limit
        self.stats = HeatStats()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._heat = HeatMap(HALF_LIFE_S, self._clock())

    def record(self, reads: Sequence[ChunkRead]) -> None:
        """See ``HeatSink``."""
        if self._pid != os.getpid():  # forked: the parent hands over what it counted
            self._reset()
        now = self._clock()
        with self._lock:
            for read in reads:
                self._heat.add(chunk_key(read.digest), now)
                if read.read_bytes:
                    self._heat.add(pack_key(read.pack), now, read.read_bytes)
            if len(self._heat) > 2 * self._limit:
                self._heat.prune(self._limit)

    def flush(self) -> bool:
        """Hand over what was counted; ``False`` when that failed. Never raises.

        What could not be sent is sent the next time. What was sent without an answer is not: it
        would count twice.
        """
        if self._pid != os.getpid():
            self._reset()
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
        """The heat of all nodes now, what this process has counted included.

        Raises:
            BackendError: the ledger cannot be asked.
        """
        self.flush()
        return HeatView(self.ledger.load(), self.ledger.now())


class HeatSums(Protocol):
    """Sums by name in a server that all nodes share, apart by period; Redis is one."""

    def time(self) -> float:
        """Seconds since the epoch by the server's clock."""

    def add(self, increments: dict[str, float], period: int) -> None:
        """Add to the sums."""

    def top(self, count: int, period: int) -> list[tuple[str, float]]:
        """The largest sums."""

    def trim(self, keep: int, period: int) -> int:
        """Forget all but the largest sums."""

    def drop(self, period: int) -> None:
        """Forget all of a period."""


_PERIOD_S = REMEMBERED * HALF_LIFE_S
"""One landmark for so long: sums, of bytes too, stay below the largest double, 2^1024."""

_KEPT = 1 << 17  # keys in the server: about 20 MB
_LOADED = 1 << 16
_KINDS = {CHUNK: "c", PACK: "p"}
_LETTERS = {letter: kind for kind, letter in _KINDS.items()}


class SumsLedger:
    """Heat as plain sums in a server.

    The landmark of a sum is the beginning of its period, so nodes need not agree on one. Sums of
    the period before are still read, and added with their own landmark.
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
                if total > 0.0:
                    found.add(_key(name), landmark, total)
        return found

    def _period(self) -> int:
        return int(self._sums.time() // _PERIOD_S)


def _name(key: bytes) -> str:
    return _KINDS[key[0]] + key[1:].hex()


def _key(name: str) -> bytes:
    return bytes((_LETTERS[name[0]],)) + bytes.fromhex(name[1:])
