"""Flips bits of a world one by one, reads it in the public ways, and counts what came of it."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from tests.flips.places import Place
from tests.flips.probes import DATA, METADATA, REFS, WAYS
from tests.flips.world import World
from tierstore.errors import TierstoreError

Outcome = Literal["not needed", "healed", "refused", "changed after its check", "WRONG", "CRASHED"]
"""What came of one flip:

* ``not needed``: the right bytes, and nothing was said: these were not looked at, or hints;
* ``healed``: the right bytes, from elsewhere, and a warning in the log;
* ``refused``: an error of tierstore;
* ``changed after its check``: other bytes, from a hot file that changed after it was verified,
  where the tier's ``verify`` allows that;
* ``WRONG``: other bytes; ``CRASHED``: an error of another kind.
"""

OUTCOMES: tuple[Outcome, ...] = (
    "not needed", "healed", "refused", "changed after its check", "WRONG", "CRASHED",
)  # fmt: skip
_HINTS = frozenset({"heat", "reports", "leases", "movers", "gc"})
"""Kinds of objects that may be lost: what is said without them is right, too."""

_OF_DATA = frozenset({"packs", "frames", "hot files"})
_STORED_AGAIN = frozenset({"export"})
"""Ways of reading that verify everything, whatever was verified before."""


@dataclass(frozen=True)
class Failure:
    """A flip that must not be: bytes that are wrong, or an error that is none of tierstore's."""

    place: str
    key: str
    bit: int
    way: str
    outcome: Outcome
    said: str


@dataclass
class Tally:
    """Counts by place, kind of object and outcome."""

    counts: Counter[tuple[str, str, Outcome]] = field(default_factory=Counter)
    ways: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def total(self, outcome: Outcome) -> int:
        return sum(count for (_, _, one), count in self.counts.items() if one == outcome)

    def table(self) -> str:
        """The counts as a table."""
        rows = sorted({(place, kind) for place, kind, _ in self.counts})
        lines = [f"{'place':20} {'kind':18}" + "".join(f"{name:>25}" for name in OUTCOMES)]
        for place, kind in rows:
            counts = [self.counts[place, kind, name] for name in OUTCOMES]
            lines.append(f"{place:20} {kind:18}" + "".join(f"{count:25}" for count in counts))
        totals = "".join(f"{self.total(name):25}" for name in OUTCOMES)
        return "\n".join([*lines, f"{'all':39}" + totals])


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Yield a list of what tierstore warns of meanwhile; none of it goes elsewhere."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tierstore")
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


class Campaign:
    """Flips bits of one world; each time the store is opened anew, so nothing is in memory."""

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._random = world, random.Random(seed)
        self.tally = Tally()
        self._good = {place.name: place.objects() for place in world.places}
        self._right: dict[tuple[str, str], str] = {}
        self._without: dict[tuple[str, ...], str | None] = {}
        self._targets = [
            (place, kind, [key for key in keys if place.kind(key) == kind])
            for place in world.places
            for keys in [self._good[place.name]]
            for kind in sorted({place.kind(key) for key in keys})
        ]

    @property
    def kinds(self) -> set[tuple[str, str]]:
        """Every place with the kinds of objects that are flipped there."""
        return {(place.name, kind) for place, kind, _ in self._targets}

    def keep_targets(self, place: str) -> None:
        """Flip bits of one place alone."""
        self._targets = [target for target in self._targets if target[0].name == place]

    def run(self, flips: int, goes_on: Callable[[int], bool] = lambda _: True) -> Tally:
        """Flip ``flips`` bits, as many in each kind of each place, while ``goes_on``."""
        for number in range(flips):
            if not goes_on(number):
                break
            place, kind, keys = self._targets[number % len(self._targets)]
            ways = DATA if kind in _OF_DATA else METADATA
            key, way = self._random.choice(keys), self._random.choice([*ways])
            self._flip(place, kind, key, way, self._random.choice(REFS))
        return self.tally

    def _flip(self, place: Place, kind: str, key: str, way: str, ref: str) -> None:
        """Flip one bit of an object, read, and put it back."""
        right = self._read(way, ref)
        good = self._good[place.name]
        bit = self._random.randrange(8 * len(good[key]))
        data = bytearray(good[key])
        data[bit // 8] ^= 1 << bit % 8
        place.put(key, bytes(data))
        outcome: Outcome = "refused"
        try:
            with _warnings() as warnings:
                said = self._said(place, way, ref)
        except TierstoreError as error:
            said = str(error)
        except Exception as error:
            outcome, said = "CRASHED", repr(error)
        else:
            outcome = "WRONG" if said != right else "healed" if warnings else "not needed"
        finally:
            place.restore(good, key)
        if outcome == "WRONG" and place.lies and way not in _STORED_AGAIN:
            outcome = "changed after its check"
        if outcome == "WRONG" and kind in _HINTS and said == self._lost(place, key, way, ref):
            outcome = "healed" if warnings else "not needed"
        self.tally.counts[place.name, kind, outcome] += 1
        self.tally.ways[way, outcome] += 1
        if outcome in ("WRONG", "CRASHED"):
            failure = Failure(place.name, key, bit, f"{way} {ref}", outcome, said[:2000])
            self.tally.failures.append(failure)

    def _read(self, way: str, ref: str) -> str:
        """What the store says when nothing is flipped, wherever it is read."""
        if (way, ref) not in self._right:
            self._right[way, ref] = self._said(self._world.places[0], way, ref)
        return self._right[way, ref]

    def _lost(self, place: Place, key: str, way: str, ref: str) -> str | None:
        """What the store says without an object."""
        asked = (place.name, key, way, ref)
        if asked not in self._without:
            place.remove(key)
            try:
                self._without[asked] = self._said(place, way, ref)
            except TierstoreError:
                self._without[asked] = None
            finally:
                place.restore(self._good[place.name], key)
        return self._without[asked]

    def _said(self, place: Place, way: str, ref: str) -> str:
        with self._world.opened(place.node) as store:
            return WAYS[way](store, ref)
