"""Metrics and logs of a process that loads models, if its environment asks for them.

``TIERSTORE_METRICS=[HOST:]PORT`` serves ``/metrics`` of all stores that the process opens, for
Prometheus; ``TIERSTORE_LOG=json`` (or ``text``) writes the package's log to stderr, as one JSON
object per line or as text. Without them nothing is imported, served or written. Neither makes a
load fail: an address that is taken is a warning.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tierstore import config
from tierstore import store as stores
from tierstore.errors import TierstoreError
from tierstore.forks import begin
from tierstore.modelstore.store import Store

if TYPE_CHECKING:
    from tierstore.serving.follower import Follower
    from tierstore.serving.metrics import Gauge, TierSample

_log = logging.getLogger("tierstore.metrics")


class _Observed:
    """The stores and followers of this process, and its metrics server and log handler."""

    def __init__(self) -> None:
        self.stores: weakref.WeakSet[Store] = weakref.WeakSet()
        self.followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._handler: logging.Handler | None = None
        begin(self._begin)

    def _begin(self) -> None:
        # the thread and the port of the server are the parent's
        self._lock = threading.Lock()
        self.address: tuple[str, int] | None = None

    def add(self, store: Store, wanted: config.Observing) -> None:
        with self._lock:
            self.stores.add(store)
            if wanted.log is not None and self._handler is None:
                self._handler = _handler(wanted.log)
                logger = logging.getLogger("tierstore")
                logger.addHandler(self._handler)
                logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
                logger.propagate = False
            if wanted.metrics is not None and self.address is None:
                self.address = self._serve(*wanted.metrics)

    def _serve(self, host: str, port: int) -> tuple[str, int]:
        try:
            from tierstore.serving.metrics import TierCollector, serve

            server, _ = serve(TierCollector(self.samples, self.counters, self.gauges), host, port)
        except TierstoreError as error:
            _log.warning("%s", error)
            return host, 0
        _log.info("metrics at http://%s:%d/metrics", host, server.server_port)
        return host, server.server_port

    def samples(self) -> list[TierSample]:
        """Return every tier of every open store."""
        from tierstore.serving.metrics import TierSample, samples

        found: dict[tuple[str, str], TierSample] = {}
        for store in list(self.stores):
            for one in samples(store):
                name = one.name
                if (name, one.role) in found:  # of another store in this process
                    name = f"{name}@{store._parts.home.config.store_id[:8]}"
                found[name, one.role] = TierSample(name, one.role, one.stats)
        return list(found.values())

    def counters(self) -> dict[str, float]:
        """Return totals of all open stores, by name."""
        return heat_counters(list(self.stores))

    def gauges(self) -> list[Gauge]:
        """Return the gauges of all followers."""
        from tierstore.serving.metrics import Gauge
        from tierstore.serving.node import follow_values

        return [Gauge(*values) for values in follow_values(list(self.followers))]


OBSERVED = _Observed()


def open_store(url: str | os.PathLike[str] | None = None) -> stores.Store:
    """Open a store.

    Its tiers are opened when they are needed. With ``TIERSTORE_METRICS`` and ``TIERSTORE_LOG`` the
    process also serves metrics and writes a log; see ``tierstore.serving.observe``.

    Args:
        url: A directory, ``s3://bucket/prefix`` or what else ``tierstore.wiring.open_blobs`` takes;
            by default what ``TIERSTORE_STORE`` or the node's file says.

    Raises:
        NotFound: There is no store.
        UnsupportedFormat: It was made by a newer tierstore.
        ConfigError: A variable has a value that means nothing.

    Examples:
        >>> tierstore.init("store").close()
        >>> with tierstore.open("store") as store:
        ...     store.models()
        []
    """
    wanted = config.observing()
    store = stores.open_store(url)
    if wanted.metrics is not None or wanted.log is not None:
        OBSERVED.add(store, wanted)
    return store


def heat_counters(stores: Iterable[Store]) -> dict[str, float]:
    """Return counts of the flushes of heat to all nodes, and of the chunks and packs in them."""
    stats = [store._parts.recorder.stats for store in stores if store._parts.recorder is not None]
    return {
        "heat_flushes": sum(one.flushes for one in stats),
        "heat_flush_failures": sum(one.failures for one in stats),
        "heat_keys": sum(one.keys for one in stats),
    }


def _handler(form: str) -> logging.Handler:
    from tierstore.serving.agent import JsonLines, TextLines

    handler = logging.StreamHandler(sys.stderr)
    text = TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    return handler
