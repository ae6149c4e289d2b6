"""Runs one schedule from its seed."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass

from tests.schedules.acts import Chooser, Party, parties, play
from tests.schedules.scheduler import Hung, Process, Scheduler
from tests.schedules.world import DAY_S, STARTS, world
from tierstore.modelstore.home import readerlease
from tierstore.testing.faulty import Crashed

_LAPSE_S = 9 * 3600.0
_JUMPS = (
    (),
    (0.0, 1.0, 90.0),
    (_LAPSE_S,),
    (_LAPSE_S,),
    (0.0, _LAPSE_S),
    (90.0, 5 * 3600.0, _LAPSE_S),
    (90.0, _LAPSE_S, 8 * DAY_S, 31 * DAY_S),
)


@dataclass
class Outcome:
    """What became of a schedule.

    Attributes:
        seed: Its seed.
        start: How the store began.
        parties: Who did what.
        steps: How many calls of the storage were made.
        failure: What is wrong; ``None`` if nothing is.
        trace: All calls, if they were asked for.
    """

    seed: int
    start: str
    parties: list[Party]
    steps: int = 0
    failure: BaseException | None = None
    trace: list[tuple[str, str, str]] | None = None


def run(seed: int, *, trace: bool = False) -> Outcome:
    """Run the schedule of a seed."""
    rng = Chooser(seed)
    random.seed(seed)
    start = rng.choice(STARTS)
    jumps = rng.choice(_JUMPS)
    scheduler = Scheduler(
        seed,
        changes=rng.choice((1, 2, 2, 3, 4)),
        within=rng.choice((60, 150, 400)),
        burst=rng.choice((0, 0, 0, 5, 40)),
        jumps=jumps,
    )
    scheduler.storage_skew_s = rng.choice((0.0, 0.0, 1800.0))
    found = Outcome(seed, start, parties(rng, start))
    if start == "tiers" and rng.random() < 0.4:
        begin = rng.randint(1, 300)
        scheduler.down["warm"] = (begin, begin + rng.randint(1, 300))
    was_on = gc.isenabled()
    gc.disable()
    try:
        _play(found, scheduler, jumps, trace)
    finally:
        readerlease._held.clear()
        if was_on:
            gc.enable()
    return found


def _play(found: Outcome, scheduler: Scheduler, jumps: tuple[float, ...], trace: bool) -> None:
    with world(found.start, scheduler) as one:
        was_whole = found.start not in ("listed", "collected", "broken")
        one.promises.is_kept = was_whole and sum(jumps) < 2 * DAY_S
        if trace:
            scheduler.trace = found.trace = []
        tasks = [
            scheduler.start(party.process, lambda party=party: play(one, party))  # type: ignore[misc]
            for party in found.parties
        ]
        try:
            scheduler.run()
            found.steps = scheduler.steps
            for task in tasks:
                if task.error is not None and not isinstance(task.error, Crashed):
                    raise task.error
            last = Process("last", pid=99)
            end = scheduler.start(last, lambda: one.settle(last))
            scheduler.run()
            if end.error is not None:
                raise end.error
        except (Hung, Exception) as error:
            found.failure = error
