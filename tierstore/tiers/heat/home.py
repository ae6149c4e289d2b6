"""Heat shared through home, where there is no Redis: a small object for each node.

SPEC.md section 13 has its format. Only a node writes its own object, and its processes do so one
after the other. Times are by home's clock, as its storage stamps what is written.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tierstore import locks
from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.folders import ALONE
from tierstore.format import keys
from tierstore.format.heat import (
    CHUNK,
    PACK,
    HeatBody,
    heat_columns,
    heat_entries,
    heat_key,
    parse_heat,
    seal_heat,
)
from tierstore.format.tiers import HEAT
from tierstore.placement.heat import HALF_LIFE_S, HeatMap

_KEPT = {PACK: 8192, CHUNK: 4096}
"""How many of the hottest entries of each kind a node's object keeps: at most 450 KB."""

_log = logging.getLogger("tierstore.heat")


class HomeLedger:
    """A ledger that keeps every node's heat as an object of its own in home.

    Args:
        home_blobs: The blob store of home.
        node: This node's name.
        lock: A file on this node that its processes lock while they write.
        clock: Returns seconds that never run backwards.
    """

    def __init__(
        self,
        home_blobs: BlobStore,
        node: str,
        lock: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home_blobs, self._node, self._lock = home_blobs, node, lock
        self._key = heat_key(keys.segment(node))
        self._clock = clock
        self._ahead: float | None = None

    def now(self) -> float:
        """Return the time by home's clock, asked once by a write and counted on from there."""
        if self._ahead is None:
            probe = keys.PROBES + secrets.token_hex(16)
            try:
                self._home_blobs.put(probe, b"")
                self._ahead = self._home_blobs.info(probe).mtime - self._clock()
            except NotFound as error:
                raise BackendError(f"{probe} was written to home and is not there") from error
            finally:
                with contextlib.suppress(BackendError):
                    self._home_blobs.delete([probe])
        return self._clock() + self._ahead

    def add(self, heat: HeatMap) -> None:
        with self._alone():
            now = self.now()
            total = HeatMap(HALF_LIFE_S, now)
            own = self._read(self._key)
            if own is not None:
                total.merge(own)
            total.merge(heat)
            self._home_blobs.put(self._key, seal_heat(self._body(total, now)))

    def _body(self, total: HeatMap, now: float) -> HeatBody:
        entries: dict[tuple[int, bytes], float] = {}
        scores = total.scores(now)
        for kind, limit in _KEPT.items():
            of_kind = [key for key in scores if key[0] == kind]
            of_kind.sort(key=lambda key: (-scores[key], key))
            entries |= {(kind, key[1:]): scores[key] for key in of_kind[:limit]}
        kinds, names, values = heat_columns(entries)
        offset_us = round((time.time() - now) * 1e6)
        return HeatBody(
            node=self._node,
            half_life_s=HALF_LIFE_S,
            landmark_us=round(now * 1e6) + offset_us,
            offset_us=offset_us,
            kinds=kinds,
            keys=names,
            scores=values,
        )

    def load(self) -> HeatMap:
        total = HeatMap(HALF_LIFE_S, self.now())
        for info in self._home_blobs.list(HEAT):
            heat = self._read(info.key)
            if heat is not None:
                total.merge(heat)
        return total

    def _read(self, key: str) -> HeatMap | None:
        """Return a node's heat by home's clock; ``None`` when it is missing or cannot be read."""
        try:
            body = parse_heat(self._home_blobs.get(key), f"heat {key}")
        except NotFound:
            return None
        except (Damaged, UnsupportedFormat) as error:
            _log.warning("%s; it is not counted", error)
            return None
        if body.half_life_s != HALF_LIFE_S:
            return None
        landmark = (body.landmark_us - body.offset_us) / 1e6
        scores = {bytes((kind,)) + name: one for (kind, name), one in heat_entries(body).items()}
        return HeatMap.from_scores(HALF_LIFE_S, landmark, scores)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process of this node in at a time."""
        try:
            ALONE.make(self._lock.parent, above=1)
            fd = ALONE.open(self._lock)
        except OSError as error:
            raise BackendError(f"{self._lock} cannot be locked: {error}") from None
        try:
            locks.wait_lock(fd)
            yield
        finally:
            locks.close(fd)
