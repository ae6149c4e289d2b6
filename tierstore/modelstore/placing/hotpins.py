"""Keeps the pins of this node's hot tier in line with the store's pins."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.forks import begin
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import patch_manifests, readable_chain
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.modelstore.home.pins import Pins
from tierstore.tiers.node.local import LocalHot

_log = logging.getLogger("tierstore.pins")


class HotPins:
    """Pins the chunks of versions that are pinned ``hot``. Thread-safe.

    Args:
        home: The store's home.
        local: This node's hot tier; ``None`` when it has none, and then nothing is pinned.
    """

    def __init__(self, home: Home, local: LocalHot | None) -> None:
        self._home, self._local = home, local
        self._chunks: dict[Digest, frozenset[bytes]] = {}
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._held: list[frozenset[bytes]] = []

    def chunks(self) -> set[bytes]:
        """Return the digests of the chunks of all versions that are pinned ``hot``.

        Raises:
            BackendError: Home cannot be read.
        """
        pinned = [pin.version for pin in Pins(self._home.blobs).active() if "hot" in pin.roles]
        found = {version: self._of(version) for version in pinned}
        self._chunks = {one: own for one, own in self._chunks.items() if one in found}
        return set().union(*found.values())

    def _of(self, version: Digest) -> frozenset[bytes]:
        known = self._chunks.get(version)
        if known is not None:
            return known
        try:
            chain, full = readable_chain(self._home, version)
            manifests = [full, *patch_manifests(self._home, chain.patches)]
            found = frozenset(digest for one in manifests for digest in chunks_of(one))
            if not chain.patches:  # else it will be folded some day
                self._chunks[version] = found
            return found
        except (NotFound, Damaged, UnsupportedFormat) as error:
            _log.warning("a pinned version is not kept hot: %s", error)
            return frozenset()

    def sync(self) -> None:
        """Pin on this node exactly what is pinned in the store.

        Raises:
            BackendError: Home cannot be read; this node's pins stay as they are.
        """
        if self._local is None:
            return
        with self._lock:
            wanted = self.chunks().union(*self._held)
            there = self._local.pinned()
            self._local.unpin(list(there - wanted))
            self._local.pin(list(wanted - there))

    @contextmanager
    def holding(self, local: LocalHot, digests: Sequence[bytes]) -> Iterator[None]:
        """Keep these chunks from being evicted while the block runs."""
        held = frozenset(digests)
        with self._lock:
            before = local.pinned()
            self._held.append(held)
            local.pin(digests)
        try:
            yield
        finally:
            with self._lock:
                self._held.remove(held)
                local.unpin(list(held - before))
