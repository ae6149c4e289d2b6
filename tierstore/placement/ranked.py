"""A cache ranked by heat: the coldest leaves first, and what enters must be worth what leaves.

This is the mechanism of value density under fixed knobs; ``density.py`` chooses the knobs.

Every known object has a heat: reads, each weighted with what a hit saves per byte, halved with
every half-life. Heat is value per byte, so the order of eviction is the order of heat; written as
log2(heat) + last read / half-life it does not change as time passes (forward decay, ``heat.py``). A
heap holds the residents by the score that they had when they were pushed. Scores only grow, so an
entry that is out of date is found when it reaches the top, and pushed again with its current score:
a hit never touches the heap.

Aggregate victims: a newcomer replaces the coldest residents in whose place it fits only if its own
value, heat x bytes, is at least ``admission_factor`` times the sum of theirs. With a factor of 0
everything enters; with a factor of 0 and a half-life that is short compared with the time between
reads, this is LRU.

Sources: Einziger, Eytan, Friedman, Manes, "Lightweight Robust Size Aware Cache Management", ACM
Transactions on Storage 18(3), 2022, for the admission, there by counts of reads; Lee et al., "LRFU:
A Spectrum of Policies that Subsumes the Least Recently Used and Least Frequently Used Policies",
IEEE Transactions on Computers 50(12), 2001, for the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from math import exp2, log2

_COLDEST = 1e-300
"""The heat of an object that was never read; not zero, so that it has a logarithm."""

REMEMBERED = 16384
"""How many objects that are not resident keep their heat, if there are not more residents."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """The parameters of a ranked cache.

    Attributes:
        half_life_s: Seconds after which a read weighs half.
        admission_factor: A newcomer enters when its value is at least this many times its victims'.
    """

    half_life_s: float
    admission_factor: float


@dataclass(slots=True)
class CacheEntry:
    """One known object, resident or not.

    Attributes:
        heat: The heat at the time ``last``.
        last: The time of the newest read, in seconds.
        size: Bytes; 0 while the object is not resident.
        ticket: The number of its place in the heap; 0 while it is not resident.
    """

    heat: float
    last: float
    size: int = 0
    ticket: int = 0


class RankedCache:
    """The cache of this module. Times are seconds since any origin that is not too far away."""

    def __init__(self, capacity_bytes: int, knobs: Knobs, remembered: int = REMEMBERED) -> None:
        self.capacity_bytes = capacity_bytes
        self._remembered = remembered
        self.knobs = knobs
        self.used_bytes = 0
        self.count = 0
        self._half_life_s = knobs.half_life_s
        self._entries: dict[bytes, CacheEntry] = {}
        self._heap: list[tuple[float, int, bytes]] = []
        self._tickets = 0
        self._pins: set[bytes] = set()
        self._held = 0
        self._limit = 2 * remembered

    def read(self, key: bytes, time: float, weight: float) -> CacheEntry:
        """Count a read of the given weight; times may come late."""
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= self._limit:
                self._prune()
            entry = self._entries[key] = CacheEntry(weight, time)
            return entry
        age = time - entry.last
        if age >= 0.0:
            entry.heat = weight + entry.heat * exp2(-age / self._half_life_s)
            entry.last = time
        else:
            entry.heat += weight * exp2(age / self._half_life_s)
        return entry

    def known_entry(self, key: bytes, time: float, weight: float) -> CacheEntry:
        """Return the entry of an object; count a first read of it if it is not known."""
        return self._entries.get(key) or self.read(key, time, weight)

    def resident(self, key: bytes) -> bool:
        """Return whether the object is counted as resident."""
        entry = self._entries.get(key)
        return entry is not None and entry.ticket > 0

    def heat(self, key: bytes, time: float) -> float:
        """Return the heat at ``time``; 0.0 for an unknown object."""
        entry = self._entries.get(key)
        return 0.0 if entry is None else self._decayed(entry, time)

    def threshold(self, time: float) -> float:
        """Return the heat above which a small newcomer would enter now; 0.0 while there is room."""
        if self.used_bytes < self.capacity_bytes:
            return 0.0
        coldest = self._coldest()
        if coldest is None:
            return 0.0
        return self.knobs.admission_factor * self._value(coldest[0], time)

    def fits(self, size: int) -> bool:
        """Return whether an object of ``size`` bytes fits beside what is pinned."""
        return self._held + size <= self.capacity_bytes

    def admit(
        self, key: bytes, entry: CacheEntry, size: int, time: float
    ) -> tuple[bytes, ...] | None:
        """Take in an object that fits and is not resident, if it is worth its victims.

        Returns:
            The victims, or ``None`` when the object stays out.
        """
        room = self.capacity_bytes - self.used_bytes
        if room >= size:
            self._enter(key, entry, size)
            return ()
        factor, heap, entries = self.knobs.admission_factor, self._heap, self._entries
        budget = self._decayed(entry, time) * size
        cost = 0.0
        victims: list[tuple[float, int, bytes]] = []
        while room < size:
            coldest = self._coldest()
            assert coldest is not None, "all but the pinned is in the heap"
            victim = entries[coldest[2]]
            if factor:
                cost += factor * self._value(coldest[0], time) * victim.size
                if cost > budget:
                    for item in victims:
                        heappush(heap, item)
                    return None
            victims.append(heappop(heap))
            room += victim.size
        for _, _, gone in victims:
            self._leave(entries[gone])
        self._enter(key, entry, size)
        return tuple(gone for _, _, gone in victims)

    def evict(self, nbytes: int) -> tuple[bytes, ...]:
        """Remove the coldest residents: ``nbytes`` of them, or all that are not pinned."""
        gone = []
        while nbytes > 0 and self._coldest() is not None:
            key = heappop(self._heap)[2]
            entry = self._entries[key]
            nbytes -= entry.size
            self._leave(entry)
            gone.append(key)
        return tuple(gone)

    def place(self, key: bytes, size: int, heat: float, time: float) -> None:
        """Count an object as resident, known or not, with at least the given heat at ``time``."""
        self.forget(key)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = CacheEntry(max(heat, _COLDEST), time)
        elif heat > self._decayed(entry, time):
            entry.heat, entry.last = heat, time
        self._enter(key, entry, size)

    def forget(self, key: bytes) -> None:
        """Count an object as no longer resident; its heat stays known."""
        entry = self._entries.get(key)
        if entry is not None and entry.ticket:
            if key in self._pins:
                self._held -= entry.size
            self._leave(entry)

    def pin(self, key: bytes) -> None:
        """Take an object out of the ranking, resident or not."""
        if key not in self._pins:
            self._pins.add(key)
            entry = self._entries.get(key)
            if entry is not None:
                self._held += entry.size

    def unpin(self, key: bytes) -> None:
        """Undo ``pin``."""
        if key in self._pins:
            self._pins.remove(key)
            entry = self._entries.get(key)
            if entry is not None and entry.ticket:
                self._held -= entry.size
                self._push(key, entry)

    def retune(self, knobs: Knobs) -> None:
        """Change the knobs; a new half-life costs a new heap."""
        moved = knobs.half_life_s != self._half_life_s
        self.knobs, self._half_life_s = knobs, knobs.half_life_s
        if moved:
            self._heap = [
                (self._score(entry), entry.ticket, key)
                for key, entry in self._entries.items()
                if entry.ticket and key not in self._pins
            ]
            heapify(self._heap)

    def known(self) -> Iterator[tuple[bytes, CacheEntry]]:
        """Return all objects whose heat is known."""
        return iter(self._entries.items())

    def adopt(self, key: bytes, entry: CacheEntry) -> None:
        """Take over the heat that another cache knows of an object, and whether it is resident."""
        own = self._entries[key] = CacheEntry(entry.heat, entry.last)
        if entry.ticket:
            self._enter(key, own, entry.size)

    def _score(self, entry: CacheEntry) -> float:
        return log2(entry.heat) + entry.last / self._half_life_s

    def _value(self, score: float, time: float) -> float:
        return exp2(min(1000.0, score - time / self._half_life_s))

    def _decayed(self, entry: CacheEntry, time: float) -> float:
        return entry.heat * exp2(min(0.0, entry.last - time) / self._half_life_s)

    def _enter(self, key: bytes, entry: CacheEntry, size: int) -> None:
        entry.size = size
        self.used_bytes += size
        self.count += 1
        if key in self._pins:
            self._held += size
        self._push(key, entry)

    def _leave(self, entry: CacheEntry) -> None:
        self.used_bytes -= entry.size
        self.count -= 1
        entry.size = entry.ticket = 0

    def _push(self, key: bytes, entry: CacheEntry) -> None:
        """Give a resident a place in the heap, which replaces the one it had before."""
        self._tickets += 1
        entry.ticket = self._tickets
        heappush(self._heap, (self._score(entry), entry.ticket, key))

    def _coldest(self) -> tuple[float, int, bytes] | None:
        """Return the coldest resident that is not pinned (the top of the heap), with its score."""
        heap, entries, half_life_s = self._heap, self._entries, self._half_life_s
        while heap:
            score, ticket, key = top = heap[0]
            entry = entries.get(key)
            if entry is None or entry.ticket != ticket or key in self._pins:
                heappop(heap)
                continue
            now = log2(entry.heat) + entry.last / half_life_s
            if now == score:
                return top
            heapreplace(heap, (now, ticket, key))
        return None

    def _prune(self) -> None:
        """Forget the coldest objects that are not resident."""
        keep = max(self._remembered, self.count)
        gone = sorted(
            (self._score(entry), key) for key, entry in self._entries.items() if not entry.ticket
        )
        for _, key in gone[: max(0, len(gone) - keep)]:
            del self._entries[key]
        self._limit = self.count + 2 * keep
