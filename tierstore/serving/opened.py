"""The stores and versions that this process reads through URLs, each opened once."""

from __future__ import annotations

import threading
from collections import OrderedDict

from tierstore import config
from tierstore.errors import TierstoreError
from tierstore.forks import at_end, begin
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.serving.observe import open_store

_MODELS = 8
"""Versions that are kept open: their manifests and layouts, no weights."""


class _Opened:
    """Stores and versions by URL; thread-safe. A forked child opens its own connections."""

    def __init__(self) -> None:
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}
        self._models: OrderedDict[tuple[str, str, str], Model] = OrderedDict()

    def store(self, url: str) -> Store:
        with self._lock:
            found = self._stores.get(url)
            if found is None:
                found = self._stores[url] = open_store(url)
            at_end(self.close)
            return found

    def model(self, url: str, ref: str | Version) -> Model:
        store = self.store(url)
        version = store.choose(ref)
        key = (url, str(version), version.digest.hex)
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key]
        model = store.load(version)
        with self._lock:
            self._models[key] = model
            while len(self._models) > _MODELS:
                self._models.popitem(last=False)
        return model

    def close(self) -> None:
        with self._lock:
            stores = list(self._stores.values())
            self._stores.clear()
            self._models.clear()
        for store in stores:
            try:
                store.close()
            except TierstoreError:  # at exit: its lease ends by itself
                continue


_opened = _Opened()


def open_shared(url: str | None) -> Store:
    """Return the store at ``url``, or the configured one, which is opened once per process.

    It is closed when the process ends.

    Raises:
        UsageError: No store is named.
        NotFound: There is no store.
    """
    return _opened.store(config.store_url(url))


def open_model(url: str | None, ref: str | Version) -> Model:
    """Open the version that ``ref`` points to now in ``open_shared(url)``; the last 8 stay open."""
    return _opened.model(config.store_url(url), ref)
