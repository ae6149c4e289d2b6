"""What operations ask of home as a store grows: no request count grows where it did not.

Each is run on stores of two sizes, with everything that it asks counted. A listing takes a request
for each ten keys here, so that one that grows is seen in small stores. ``MOST`` is a ratchet: what
an operation asks for each further model, version or patch today it may ask, and no more; a number
that was cured is lowered here. ``benchmarks.bench_growth`` tells exponents, in large stores.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.generated import Shape
from benchmarks.growth import OPERATIONS, Place, cost_of, make

GROWN = "model-00000"
SIZES = {"models": (80, 240), "versions": (20, 80), "patches": (2, 14)}
_PAGE = 10

MOST: dict[str, dict[str, float]] = {
    "models": {
        "first ls": 1.2, "ls": 0.2, "du": 2.2, "df": 0.1, "check": 7.6, "gc, nothing new": 0.6,
        "forget --dry-run": 1.1, "gateway's models": 4.2, "gateway's models, again": 0.2,
        "agent, first round": 7.3, "agent, later round": 0.2, "save, new model": 0.1,
    },
    "versions": {
        "first ls": 0.1, "ls": 0.1, "ls MODEL": 0.1, "du": 2.1, "df": 0.1, "check": 5.4,
        "gc, nothing new": 0.4,
        "forget --dry-run": 2.0, "agent, first round": 3.1, "agent, later round": 0.1,
        "gateway's models": 0.1, "gateway's models, again": 0.1,
    },
    "patches": {
        "first ls": 0.1, "ls": 0.1, "load": 4.0, "ls MODEL": 1.1, "du": 22.1, "df": 0.1,
        "check": 25.4,
        "gc, nothing new": 0.4, "forget --dry-run": 14.5, "agent, first round": 17.4,
        "agent, later round": 0.6, "first save": 1.0, "gateway's models": 0.1,
        "gateway's models, again": 0.1,
    },
}  # fmt: skip
"""The most requests for each further model, version or patch; ``_NONE`` for what is not named."""
_NONE = 0.05
"""Half of what a listing takes."""


def store_of(kind: str, size: int, folder: Path) -> Place:
    """A store of so many models, versions of one, or patches."""
    if kind == "models":
        place = make(folder, Shape(size, 1, chunks=4, fresh=4))
    elif kind == "versions":
        place = make(folder, Shape(1, size, chunks=4, fresh=1), model=GROWN)
    else:
        place = make(folder, Shape(0), patches=size)
    place.page = _PAGE
    return place


def grown_of(kind: str, folder: Path) -> dict[str, tuple[float, ...]]:
    """What asks more in the larger store than it may: both counts, and how much more for each."""
    small, large = SIZES[kind]
    counts: dict[str, list[int]] = {name: [] for name in OPERATIONS}
    for size in (small, large):
        place = store_of(kind, size, folder / str(size))
        for name, operation in OPERATIONS.items():
            counts[name].append(cost_of(operation, place).requests)
    more = {name: (after - before) / (large - small) for name, (before, after) in counts.items()}
    return {
        name: (*counts[name], round(each, 2))
        for name, each in more.items()
        if each > MOST[kind].get(name, _NONE)
    }


@pytest.mark.parametrize("kind", SIZES)
def test_no_request_count_grows_where_it_did_not(kind: str, tmp_path: Path) -> None:
    grown = grown_of(kind, tmp_path / "first")
    if grown:  # what grows, grows each time: a lease that a slow machine renews does not
        again = grown_of(kind, tmp_path / "again")
        grown = {name: counts for name, counts in grown.items() if name in again}
    assert not grown, f"these ask more as there are more {kind}"
