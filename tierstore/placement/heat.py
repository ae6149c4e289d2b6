"""Heat: how often each key was read recently, as sums that nodes can add up.

A read of weight w at time t counts w x 2^-((now - t) / H) at the time ``now``: half of it is gone
after every half-life H. Written about a fixed landmark L instead of about ``now``, the same sum is

    value(now) = 2^-((now - L) / H) x score,    score = sum of w x 2^((t - L) / H)

so a read adds one number to one score and no score ever needs to be touched again as time passes.
Two things follow. The order of keys by heat is the order of their scores: it never changes with
time. And scores about one landmark are plain sums: heat that several nodes have counted, in any
order, late or early, merges by addition. Moving the landmark multiplies every score by one factor.

A score grows without bound, so it is kept about a moving landmark, L + n x H with a whole n: moving
it multiplies by a power of two, which is exact. What falls 2^-1000 below a read of weight one at
the newest time underflows and is forgotten.

Source: Cormode, Shkapenyuk, Srivastava, Xu, "Forward Decay: A Practical Time Decay Model for
Streaming Systems", ICDE 2009, section III (forward exponential decay equals backward exponential
decay) and section VI.A (rescaling).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from math import exp2

HALF_LIFE_S = 4 * 3600
"""The half-life of the heat that nodes share and by which packs are placed.

With it, what is read every few hours stays known, while a nightly scan of everything, or what was
popular the day before, soon counts no more. On the synthetic serving workload a day gave hit ratios
of .28, twelve hours .33, four hours .43.
"""

REMEMBERED = 900
"""Half-lives after which a read may be forgotten: 2^900 is not far from the largest double."""

_RESCALE = 256.0
"""Half-lives after which the moving landmark moves; so weights stay far below 2^1023."""


class HeatMap:
    """Decayed counts of reads by key. Not thread-safe; it has no clock.

    One ``add`` costs about 0.4 us.

    Args:
        half_life_s: Seconds after which a read counts half.
        landmark: Seconds; close to the times that will be used, for precision: a value's relative
            error is about 1e-16 for each half-life between the landmark and the time it is asked
            for.
    """

    __slots__ = ("_scores", "_shift", "half_life_s", "landmark")

    def __init__(self, half_life_s: float, landmark: float) -> None:
        if not (math.isfinite(half_life_s) and half_life_s > 0 and math.isfinite(landmark)):
            raise ValueError(f"no half-life and landmark: {half_life_s} s, {landmark} s")
        self.half_life_s = half_life_s
        self.landmark = landmark
        self._shift = 0.0
        self._scores: dict[bytes, float] = {}

    @classmethod
    def from_scores(
        cls, half_life_s: float, landmark: float, scores: Mapping[bytes, float]
    ) -> HeatMap:
        """Make a heat map from what ``scores`` returned."""
        heat = cls(half_life_s, landmark)
        heat._move(math.floor(max(scores.values(), default=0.0)))
        for key, score in scores.items():
            heat._put(key, exp2(score - heat._shift))
        return heat

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, key: bytes) -> bool:
        return key in self._scores

    def add(self, key: bytes, time: float, weight: float = 1.0) -> None:
        """Count a read of ``weight`` at ``time``; times may come in any order."""
        exponent = (time - self.landmark) / self.half_life_s - self._shift
        if exponent > _RESCALE:
            if exponent == math.inf:
                raise ValueError(f"no read: at {time} s")
            self._move(math.floor(exponent + self._shift))
            exponent = (time - self.landmark) / self.half_life_s - self._shift
        score = weight * exp2(exponent)
        if not score >= 0.0 or score == math.inf:
            raise ValueError(f"no read: weight {weight} at {time} s")
        self._put(key, score)

    def value(self, key: bytes, time: float) -> float:
        """Return the decayed count at ``time``; 0.0 for a key that is not known."""
        score = self._scores.get(key)
        return 0.0 if score is None else score * self._factor(time)

    def merge(self, other: HeatMap) -> None:
        """Add the counts of another map, whatever its landmark.

        Raises:
            ValueError: Its half-life differs, so the two do not add up.
        """
        if other.half_life_s != self.half_life_s:
            raise ValueError(
                f"heat with a half-life of {other.half_life_s} s cannot be added to heat with one "
                f"of {self.half_life_s} s"
            )
        apart = (other.landmark - self.landmark) / self.half_life_s + other._shift
        if apart > self._shift:
            self._move(math.floor(apart))
        factor = exp2(apart - self._shift)
        for key, score in list(other._scores.items()):
            self._put(key, score * factor)

    def items(self, time: float) -> Iterator[tuple[bytes, float]]:
        """Return keys and their decayed counts at ``time``, in no particular order."""
        factor = self._factor(time)
        return ((key, score * factor) for key, score in self._scores.items())

    def top(self, n: int, time: float) -> list[tuple[bytes, float]]:
        """Return the ``n`` hottest keys and their decayed counts, hottest first; ties by key."""
        factor = self._factor(time)
        best = heapq.nsmallest(n, self._scores.items(), key=lambda item: (-item[1], item[0]))
        return [(key, score * factor) for key, score in best]

    def discard(self, key: bytes) -> None:
        """Forget one key."""
        self._scores.pop(key, None)

    def prune(self, max_keys: int) -> int:
        """Forget all but the ``max_keys`` hottest keys (ties by key); return how many are gone.

        Which keys these are does not depend on the time.
        """
        excess = len(self._scores) - max_keys
        if excess <= 0:
            return 0
        coldest = heapq.nsmallest(excess, self._scores.items(), key=lambda item: (item[1], item[0]))
        for key, _ in coldest:
            del self._scores[key]
        return excess

    def scores(self, landmark: float | None = None) -> dict[bytes, float]:
        """Return log2 of each key's score about ``landmark`` (default: its own), for serialisation.

        2^score is a plain sum about that landmark, which a server can add up; as long as they are
        taken about the same landmark, the scores of several nodes merge by adding those powers.
        """
        moved = 0.0 if landmark is None else (self.landmark - landmark) / self.half_life_s
        offset = self._shift + moved
        return {key: math.log2(score) + offset for key, score in self._scores.items()}

    def _factor(self, time: float) -> float:
        """Return the factor that turns a score into the decayed count at ``time``."""
        return exp2(min(1000.0, self._shift - (time - self.landmark) / self.half_life_s))

    def _put(self, key: bytes, score: float) -> None:
        total = self._scores.get(key, 0.0) + score
        if total > 0.0:
            self._scores[key] = total

    def _move(self, shift: int) -> None:
        """Keep the scores about ``landmark + shift x half_life_s`` from now on."""
        factor = exp2(self._shift - shift)
        self._shift = float(shift)
        pairs = ((key, score * factor) for key, score in self._scores.items())
        self._scores = {key: score for key, score in pairs if score > 0.0}
