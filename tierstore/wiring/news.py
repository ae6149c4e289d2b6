"""News of changed models, through the Redis of a shared tier."""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from tierstore.errors import TierstoreError
from tierstore.forks import begin
from tierstore.wiring.backends import Place, open_heat

if TYPE_CHECKING:
    from tierstore.blobs.redis.heat import Listener, RedisHeat

_log = logging.getLogger("tierstore.news")
_CHANNEL = "news"
_WAITING = 1000


class RedisNews:
    """Sends news from a thread of its own, so that a Redis that is down delays nobody.

    Args:
        place: Place of the tier.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._opened: RedisHeat | None = None
        begin(self._begin)

    def _begin(self) -> None:
        # the parent tells what waits
        self._told: queue.Queue[str] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def _redis(self) -> RedisHeat:
        with self._lock:
            if self._opened is None:  # its client takes a while to import
                self._opened = open_heat(self._place)
            return self._opened

    def tell(self, model: str) -> None:
        """Queue the news that a model changed; it is dropped if 1000 others wait."""
        try:
            self._told.put_nowait(model)
        except queue.Full:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="tierstore-news", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter ends
                    self._thread = None

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._told.empty():
                    self._thread = None
                    return
            try:
                self._redis().publish(_CHANNEL, self._told.get())
            except TierstoreError as error:  # listeners look by themselves, only later
                _log.info("news of a change could not be sent: %s", error)

    def listen(self) -> AbstractContextManager[Listener]:
        """Receive news while the block runs; this holds one connection."""
        return self._redis().listen(_CHANNEL)

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, for at most ``timeout_s`` seconds, and close."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        if self._opened is not None:
            self._opened.close()
