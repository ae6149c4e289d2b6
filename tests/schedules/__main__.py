"""Runs schedules of the real code: ``python -m tests.schedules FIRST [LAST] [--trace]``.

Prints the seed of each one that fails, and how to run it again. The process begins anew with
``PYTHONHASHSEED=0``, as the order of sets is part of a schedule.
"""

from __future__ import annotations

import argparse
import collections
import gc
import logging
import os
import sys
import time
import traceback

from tests.schedules.faults import check
from tests.schedules.kill import kill_many, pause_many
from tests.schedules.places import PLACES
from tests.schedules.run import Outcome, run


def main() -> int:
    """Run what the arguments ask for; return 1 when a schedule has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.schedules", description=__doc__)
    parser.add_argument(
        "first", type=int, nargs="?", default=1, help="the first seed, or the only one"
    )
    parser.add_argument("last", type=int, nargs="?", help="the last seed")
    parser.add_argument("--trace", action="store_true", help="print every call of the storage")
    parser.add_argument("--stats", action="store_true", help="print what became of all acts")
    parser.add_argument("--most", type=int, default=1, help="stop after so many failures")
    parser.add_argument("--faults", nargs="+", help="fail every call of some of faults.CASES")
    parser.add_argument("--kills", type=int, help="kill so many processes instead")
    parser.add_argument("--pauses", type=int, help="pause so many processes instead")
    parser.add_argument("--on", choices=PLACES, default="disk", help="where it is they work on")
    given = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.schedules", *sys.argv[1:]], environ)
    logging.disable(logging.CRITICAL)
    if given.kills:
        print(kill_many(given.first, given.kills, given.on))
        return 0
    if given.pauses:
        print(pause_many(given.first, given.pauses, given.on))
        return 0
    if given.faults:
        print(f"{sum(map(check, given.faults))} faults, {time.process_time():.1f} s of CPU")
        return 0
    failed, steps, became = 0, 0, collections.Counter[str]()
    last = given.first if given.last is None else given.last
    for seed in range(given.first, last + 1):
        found = run(seed, trace=given.trace)
        steps += found.steps
        for party in found.parties:
            became.update(": ".join(one.split(": ")[:2]) for one in party.done)
        if found.failure is not None:
            failed += 1
            print(_described(found), flush=True)
        elif given.trace:
            print(_described(found), flush=True)
        if failed >= given.most:
            break
        if seed % 50 == 0:
            gc.collect()
    if given.stats:
        for text, count in sorted(became.items()):
            print(f"{count:6} {text}")
    print(f"{seed - given.first + 1} schedules, {steps} calls, {failed} failed, "
          f"{time.process_time():.1f} s of CPU")  # fmt: skip
    return 1 if failed else 0


def _described(found: Outcome) -> str:
    lines = [f"schedule {found.seed}, which starts with the store {found.start!r}"]
    for party in found.parties:
        one = party.process
        lines.append(f"  {one.name} (clock {one.skew_s:+.0f} s, {one.calls} calls, "
                     f"{'dead' if one.is_dead else 'alive'})")  # fmt: skip
        lines += [f"    {text[:300]}" for text in party.done]
    lines += [f"  {name} {op} {key}" for name, op, key in found.trace or ()]
    if found.failure is not None:
        lines.append("".join(traceback.format_exception(found.failure)))
        lines.append(f"again: python -m tests.schedules {found.seed} --trace")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
