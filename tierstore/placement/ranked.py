"""A cache ranked by heat: the coldest leaves first, and what comes in must be worth what leaves.

The mechanism of value density under fixed knobs; ``density.py`` chooses the knobs.

Every known object has a heat: reads, each weighted with what a hit saves per byte, halved with
every half-life. Heat is value per byte, so the order of eviction is the order of heat; written as
log2(heat) + last read / half-life it does not change as time passes (forward decay, ``heat.py``). A
heap holds the residents by the score that they had when they were pushed. Scores only grow, so an
entry that is out of date is found when it reaches the top, and pushed again with the score of now:
a hit never touches the heap.

Aggregate victims: a newcomer replaces the coldest residents in whose place it fits only if its own
value, heat x bytes, is at least ``bar`` times the sum of theirs. With a bar of 0 everything enters;
with a bar of 0 and a half-life that is short beside the time between reads, this is LRU.

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
"""The heat of what was never read: it has a logarithm."""

REMEMBERED = 16384
"""Objects that are not resident whose heat is kept, or as many as there are residents."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What can be chosen.

    Attributes:
        half_life_s: seconds after which a read weighs half.
        bar: a newcomer's value, relative to its victims', from which on it enters.
    """

    half_life_s: float
    bar: float


@dataclass(slots=True)
class Entry:
    """One known object.

    Attributes:
        heat: at the time ``last``.
        last: seconds, the newest read.
        size: bytes; 0 while it is not resident.
        ticket: of its place in the heap; 0 while it is not resident.
    """

    heat: float
    last: float
    size: int = 0
    ticket: int = 0


class RankedCache:
    """See the module's docstring. Times are seconds since any origin that is not too far away."""

    def __init__(self, capacity: int, knobs: Knobs, remembered: int = REMEMBERED) -> None:
        self.capacity = capacity
        self._remembered = remembered
        self.knobs = knobs
        self.used = 0
        self.count = 0
        self._half_life_s = knobs.half_life_s
        self._entries: dict[bytes, Entry] = {}
        self._heap: list[tuple[float, int, bytes]] = []
        self._tickets = 0
        self._pins: set[bytes] = set()
        self._held = 0
        self._limit = 2 * remembered

    def read(self, key: bytes, time: float, worth: float) -> Entry:
        """Count a read that is ``worth`` so much; times may come late."""
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= self._limit:
                self._prune()
            entry = self._entries[key] = Entry(worth, time)
            return entry
        age = time - entry.last
        if age >= 0.0:
            entry.heat = worth + entry.heat * exp2(-age / self._half_life_s)
            entry.last = time
        else:
            entry.heat += worth * exp2(age / self._half_life_s)
        return entry

    def known_entry(self, key: bytes, time: float, worth: float) -> Entry:
        """What is known of the object; a first read of it if nothing is."""
        return self._entries.get(key) or self.read(key, time, worth)

    def resident(self, key: bytes) -> bool:
        """Whether the object is counted as resident."""
        entry = self._entries.get(key)
        return entry is not None and entry.ticket > 0

    def heat(self, key: bytes, time: float) -> float:
        """The heat at ``time``; 0.0 for an unknown object."""
        entry = self._entries.get(key)
        return 0.0 if entry is None else self._decayed(entry, time)

    def threshold(self, time: float) -> float:
        """The heat above which a small newcomer would enter now; 0.0 while there is room."""
        if self.used < self.capacity:
            return 0.0
        coldest = self._coldest()
        if coldest is None:
            return 0.0
        return self.knobs.bar * self._value(coldest[0], time)

    def fits(self, size: int) -> bool:
        """Whether it fits beside what is pinned."""
        return self._held + size <= self.capacity

    def admit(self, key: bytes, entry: Entry, size: int, time: float) -> tuple[bytes, ...] | None:
        """Take in an object that fits and is not resident, if it is worth its victims.

        Returns:
            The victims, or ``None`` when it stays out.
        """
        room = self.capacity - self.used
        if room >= size:
            self._enter(key, entry, size)
            return ()
        bar, heap, entries = self.knobs.bar, self._heap, self._entries
        budget = self._decayed(entry, time) * size
        cost = 0.0
        victims: list[tuple[float, int, bytes]] = []
        while room < size:
            coldest = self._coldest()
            assert coldest is not None, "all but the pinned is in the heap"
            victim = entries[coldest[2]]
            if bar:
                cost += bar * self._value(coldest[0], time) * victim.size
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
        """Let the coldest go: ``nbytes`` of them, or all that are not pinned."""
        gone = []
        while nbytes > 0 and self._coldest() is not None:
            key = heappop(self._heap)[2]
            entry = self._entries[key]
            nbytes -= entry.size
            self._leave(entry)
            gone.append(key)
        return tuple(gone)

    def place(self, key: bytes, size: int, heat: float, time: float) -> None:
        """Count an object as resident, known or not, and as at least so hot at ``time``."""
        self.forget(key)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(max(heat, _COLDEST), time)
        elif heat > self._decayed(entry, time):
            entry.heat, entry.last = heat, time
        self._enter(key, entry, size)

    def forget(self, key: bytes) -> None:
        """Count an object as gone; its heat stays known."""
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
        """Go on with other knobs; a new half-life costs a new heap."""
        moved = knobs.half_life_s != self._half_life_s
        self.knobs, self._half_life_s = knobs, knobs.half_life_s
        if moved:
            self._heap = [
                (self._score(entry), entry.ticket, key)
                for key, entry in self._entries.items()
                if entry.ticket and key not in self._pins
            ]
            heapify(self._heap)

    def known(self) -> Iterator[tuple[bytes, Entry]]:
        """All objects whose heat is known."""
        return iter(self._entries.items())

    def adopt(self, key: bytes, entry: Entry) -> None:
        """Begin with what another cache knows about an object."""
        own = self._entries[key] = Entry(entry.heat, entry.last)
        if entry.ticket:
            self._enter(key, own, entry.size)

    def _score(self, entry: Entry) -> float:
        return log2(entry.heat) + entry.last / self._half_life_s

    def _value(self, score: float, time: float) -> float:
        return exp2(min(1000.0, score - time / self._half_life_s))

    def _decayed(self, entry: Entry, time: float) -> float:
        return entry.heat * exp2(min(0.0, entry.last - time) / self._half_life_s)

    def _enter(self, key: bytes, entry: Entry, size: int) -> None:
        entry.size = size
        self.used += size
        self.count += 1
        if key in self._pins:
            self._held += size
        self._push(key, entry)

    def _leave(self, entry: Entry) -> None:
        self.used -= entry.size
        self.count -= 1
        entry.size = entry.ticket = 0

    def _push(self, key: bytes, entry: Entry) -> None:
        """Give a resident a place in the heap; what it had before is void."""
        self._tickets += 1
        entry.ticket = self._tickets
        heappush(self._heap, (self._score(entry), entry.ticket, key))

    def _coldest(self) -> tuple[float, int, bytes] | None:
        """The top of the heap, once it is a resident that is not pinned, at its score of now."""
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
        """Forget the coldest of those that are not resident."""
        keep = max(self._remembered, self.count)
        gone = sorted(
            (self._score(entry), key) for key, entry in self._entries.items() if not entry.ticket
        )
        for _, key in gone[: max(0, len(gone) - keep)]:
            del self._entries[key]
        self._limit = self.count + 2 * keep
