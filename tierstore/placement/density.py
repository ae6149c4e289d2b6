"""Value density: keep what has the most recent reads per byte, with knobs chosen by trials.

An object's value per byte is its heat times what a hit saves per byte. The coldest residents leave,
and a newcomer has to be worth what it displaces (``ranked.py``). How fast heat decays and how high
that threshold is decides everything, and the best choice differs between caches: a short half-life
and no threshold are LRU, which is best when all that is alive fits; a long one and a high threshold
keep a stable part of what does not fit. So small trial caches, one for each choice, replay a sample
of the keys at the same share of the capacity, and the cache goes on with the knobs of the trial
that has missed the fewest bytes recently. Heat and residents stay as they are when the knobs
change.

Sampling by key keeps an object's reads together, and the trials' sizes relative to their working
sets: Waldspurger, Saemundsson, Ahmad, Park, "Cache Modeling and Optimization using Miniature
Simulations", USENIX ATC 2017. The sample is as small as leaves 16 objects in each trial.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from tierstore.placement.base import Access, Admission, PlacementPolicy
from tierstore.placement.ranked import REMEMBERED, Knobs, RankedCache

DEFAULT_KNOBS = Knobs(half_life_s=3600.0, admission_factor=0.0)
"""The knobs until the trials have seen enough: quick to follow changes, and nothing stays out."""

TRIED = tuple(
    Knobs(DEFAULT_KNOBS.half_life_s * 2.0 ** (1.5 * step), factor)
    for step in range(-4, 5)
    for factor in (0.0, 1.5)
)
"""The knobs that are tried, with half-lives of 56 seconds to 2.7 days."""

_TRIAL_OBJECTS = 16
_SAMPLED_LEAST = 32
"""The largest sampling interval: in a large cache one key of so many is sampled."""

_MEMORY = 2.0
_MEMORY_LEAST = 500
"""Sampled reads after which a trial's misses weigh half: per resident, and at least."""


class _Trials:
    """One small cache for each choice of knobs, and the bytes that each has missed recently."""

    def __init__(self, main: RankedCache) -> None:
        self._every = _sampling(main.count)
        self._mask = self._every - 1
        every = self._every
        self._caches = [
            RankedCache(main.capacity_bytes // every, knobs, REMEMBERED // every) for knobs in TRIED
        ]
        self._missed = [0.0] * len(TRIED)
        self._weight = 1.0
        self._seen = 0
        self._look_at = 0
        residents = main.count // self._every
        self._memory = max(_MEMORY_LEAST, _MEMORY * residents)
        self._growth = 2.0 ** (1.0 / self._memory)
        self._pause = max(16, residents // 4)
        self._look_at = int(self._memory / 4)
        for key, entry in main.known():
            if not crc32(key) & self._mask:
                for cache in self._caches:
                    cache.adopt(key, entry)
        for cache in self._caches:
            cache.evict(cache.used_bytes - cache.capacity_bytes)

    def suits(self, residents: int) -> bool:
        """Return whether the sample still fits the number of residents."""
        return self._every / 4 <= _sampling(residents) <= self._every * 4

    def read(self, key: bytes, size: int, time: float, weight: float) -> bool:
        """Replay a read in all trials if its key is sampled; return whether to compare them now."""
        if crc32(key) & self._mask:
            return False
        self._weight *= self._growth
        for number, cache in enumerate(self._caches):
            entry = cache.read(key, time, weight)
            if not entry.ticket:
                self._missed[number] += size * weight * self._weight
                if size <= cache.capacity_bytes:
                    cache.admit(key, entry, size, time)
        self._seen += 1
        if self._seen < self._look_at:
            return False
        self._look_at = self._seen + self._pause
        return True

    def best(self, current: Knobs) -> Knobs:
        """Return the knobs of the trial that has missed the fewest bytes recently."""
        missed = [amount / self._weight for amount in self._missed]
        self._missed, self._weight = missed, 1.0
        least = min(missed)
        if current in TRIED and missed[TRIED.index(current)] <= least:
            return current
        return TRIED[missed.index(least)]


def _sampling(residents: int) -> int:
    """Return how many keys there are for each one that is sampled: a power of two."""
    every = 1
    while every < _SAMPLED_LEAST and residents >= 2 * every * _TRIAL_OBJECTS:
        every *= 2
    return every


class ValueDensity(PlacementPolicy):
    """The policy of this module.

    An access costs two to three times what one of S3-FIFO costs: 2 us in a cache of thousands of
    objects that mostly hits, up to 16 us in one of a few hundred, where more keys are sampled.
    """

    name = "density"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._cache = RankedCache(capacity_bytes, DEFAULT_KNOBS)
        self._trials: _Trials | None = None

    def record(self, access: Access) -> None:
        self._cache.read(access.key, access.time_s, access.cost)
        trials = self._trials
        if trials is not None and trials.read(
            access.key, access.size_bytes, access.time_s, access.cost
        ):
            self._look(trials)

    def admit(self, access: Access) -> Admission:
        cache = self._cache
        if cache.resident(access.key):
            return Admission(True)
        if not cache.fits(access.size_bytes):
            return Admission(False)
        if self._trials is None and cache.used_bytes + access.size_bytes > self.capacity_bytes:
            self._trials = _Trials(cache)
        entry = cache.known_entry(access.key, access.time_s, access.cost)
        victims = cache.admit(access.key, entry, access.size_bytes, access.time_s)
        return Admission(False) if victims is None else Admission(True, victims)

    def victims(self, nbytes: int, time: float) -> tuple[bytes, ...]:
        return self._cache.evict(nbytes)

    def seed(self, objects: Iterable[tuple[bytes, int, float]], time: float) -> None:
        for key, size, heat in objects:
            self._cache.place(key, size, heat, time)

    def forget(self, key: bytes) -> None:
        self._cache.forget(key)

    def pin(self, key: bytes) -> None:
        self._cache.pin(key)

    def unpin(self, key: bytes) -> None:
        self._cache.unpin(key)

    @property
    def used_bytes(self) -> int:
        return self._cache.used_bytes

    @property
    def knobs(self) -> Knobs:
        """The knobs in use."""
        return self._cache.knobs

    def explain(self, key: bytes, time: float) -> dict[str, float | str]:
        cache = self._cache
        return {
            "policy": self.name,
            "resident": "yes" if cache.resident(key) else "no",
            "heat": cache.heat(key, time),
            "threshold": cache.threshold(time),
            "half_life_s": cache.knobs.half_life_s,
            "admission_factor": cache.knobs.admission_factor,
        }

    def _look(self, trials: _Trials) -> None:
        knobs = trials.best(self._cache.knobs)
        if knobs != self._cache.knobs:
            self._cache.retune(knobs)
        if not trials.suits(self._cache.count):
            self._trials = _Trials(self._cache)
