"""Shares one read with other processes of the node: each chunk is fetched by one of them.

A chunk that another process has claimed is left to it: it will soon be in the node's hot tier. If
it does not come, because that process died or could not read it or the tier does not take it, it is
claimed and fetched here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tierstore.format.table import ChunkPlace
from tierstore.tiers.node.local import LocalHot

PATIENCE_S = 20.0
"""Seconds to wait while no chunk arrives or is given up; then the rest is fetched here."""

_PAUSES_S = 0.001, 0.02


@dataclass(frozen=True, slots=True)
class Want:
    """A whole chunk, and the buffer its plain bytes go to (``out`` has exactly their length)."""

    place: ChunkPlace
    out: memoryview


ReadHot: TypeAlias = Callable[[Sequence[Want]], Sequence[Want]]


class Sharing:
    """The claims of one read, and the chunks it waits for. Thread-safe.

    Args:
        local: This node's hot tier; without one, every chunk is fetched by this process.
    """

    def __init__(self, local: LocalHot | None) -> None:
        self._local = local
        self._lock = threading.Lock()
        self._ours: set[bytes] = set()
        self._others: dict[bytes, Want] = {}
        self._given_up: set[bytes] = set()

    def claim(self, wants: Sequence[Want], read_hot: ReadHot) -> Sequence[Want]:
        """Return the chunks to fetch here.

        Those that arrived meanwhile are read; those that others have claimed are waited for in
        ``wait``.

        Args:
            wants: The chunks.
            read_hot: Reads the chunks that are in this node's tier, and returns the rest.
        """
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
        return [*alone, *self._still_missing(local, ours, read_hot)]

    def _still_missing(
        self, local: LocalHot, wants: Sequence[Want], read_hot: ReadHot
    ) -> list[Want]:
        """Return those of our claimed chunks that did not arrive between lookup and claim."""
        here = local.resident([want.place.digest for want in wants])
        brought = [want for want, is_here in zip(wants, here, strict=True) if is_here]
        if not brought:
            return list(wants)
        lost = read_hot(brought)
        done = {want.place.digest for want in brought} - {want.place.digest for want in lost}
        self._give_back(local, done)
        return [want for want in wants if want.place.digest not in done]

    def handed_over(self, digest: bytes) -> None:
        """Note that a chunk was offered to the hot tier, which releases its claim."""
        with self._lock:
            self._ours.discard(digest)

    def wait(self, read_hot: ReadHot) -> list[Want]:
        """Wait for chunks that other processes fetch.

        Args:
            read_hot: The same as for ``claim``.

        Returns:
            Chunks that have to be fetched here after all, or nothing when all have arrived.
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
                left = self._still_missing(local, wants, read_hot)
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
        """Release the claims of chunks that were not fetched."""
        if self._local is not None:
            self._give_back(self._local, set(self._ours))

    def _give_back(self, local: LocalHot, digests: set[bytes]) -> None:
        with self._lock:
            self._ours -= digests
        local.unclaim(digests)
