"""One read's part of what the processes of a node fetch together, through their hot tier.

A chunk that another process has claimed is left to it: it will be hot here soon. When it is not, as
its process died, could not read it, or the tier does not take it, we claim it and fetch it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tierstore.format.table import ChunkPlace
from tierstore.tiers.node.local import LocalHot

PATIENCE_S = 20.0
"""How long to wait while no chunk comes or is given up: then we fetch what is left ourselves."""

_PAUSES_S = 0.001, 0.02


@dataclass(frozen=True, slots=True)
class Want:
    """A whole chunk, and where its plain bytes go (``out`` has exactly their length)."""

    place: ChunkPlace
    out: memoryview


class Sharing:
    """The claims of one read, and what it waits for. Thread-safe.

    Args:
        local: this node's hot tier; without one everything is ours.
        read_hot: reads what is hot here, and returns the rest.
    """

    def __init__(
        self, local: LocalHot | None, read_hot: Callable[[Sequence[Want]], Sequence[Want]]
    ) -> None:
        self._local, self._read_hot = local, read_hot
        self._lock = threading.Lock()
        self._ours: set[bytes] = set()
        self._others: dict[bytes, Want] = {}
        self._given_up: set[bytes] = set()

    def claim(self, wants: Sequence[Want]) -> Sequence[Want]:
        """Those that we are to fetch; what was brought meanwhile is read, the rest waited for."""
        local = self._local
        if local is None or not wants:
            return wants
        alone = [want for want in wants if want.place.digest in self._given_up]
        asked = [want for want in wants if want.place.digest not in self._given_up]
        free = local.claim([want.place.digest for want in asked])
        ours = [want for want, is_free in zip(asked, free, strict=True) if is_free]
        with self._lock:
            self._ours.update(want.place.digest for want in ours)
            self._others.update(
                (want.place.digest, want)
                for want, is_free in zip(asked, free, strict=True)
                if not is_free
            )
        return [*alone, *self._still_missing(local, ours)]

    def _still_missing(self, local: LocalHot, wants: Sequence[Want]) -> list[Want]:
        """Of chunks that we claimed, those that nobody brought between our looking and claiming."""
        here = local.resident([want.place.digest for want in wants])
        brought = [want for want, is_here in zip(wants, here, strict=True) if is_here]
        if not brought:
            return list(wants)
        lost = self._read_hot(brought)
        done = {want.place.digest for want in brought} - {want.place.digest for want in lost}
        self._give_back(local, done)
        return [want for want in wants if want.place.digest not in done]

    def handed_over(self, digest: bytes) -> None:
        """A chunk was offered to the hot tier, which gives its claim back."""
        with self._lock:
            self._ours.discard(digest)

    def wait(self) -> list[Want]:
        """Wait for chunks of other processes; returns some that we are to fetch after all, or
        nothing when all have come.
        """
        local = self._local
        until = time.monotonic() + PATIENCE_S
        pause, longest = _PAUSES_S
        while local is not None and self._others:
            digests = list(self._others)
            free = [d for d, is_free in zip(digests, local.claim(digests), strict=True) if is_free]
            if free:
                wants = [self._others.pop(digest) for digest in free]
                with self._lock:
                    self._ours.update(free)
                left = self._still_missing(local, wants)
                if left:
                    return left
                until, pause = time.monotonic() + PATIENCE_S, _PAUSES_S[0]
            elif time.monotonic() >= until:
                left = list(self._others.values())
                self._given_up.update(self._others)
                self._others.clear()
                return left
            else:
                time.sleep(pause)
                pause = min(2 * pause, longest)
        return []

    def end(self) -> None:
        """Give back what was claimed and not fetched."""
        if self._local is not None:
            self._give_back(self._local, set(self._ours))

    def _give_back(self, local: LocalHot, digests: set[bytes]) -> None:
        with self._lock:
            self._ours -= digests
        local.unclaim(digests)
