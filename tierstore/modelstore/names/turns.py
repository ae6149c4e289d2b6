"""Which node's turn it is in a rollout: pure, the same answer on every machine.

A node's place is ``BLAKE3(salt, NUL, node)``, read as a fraction of 2**64. A node gets the new
version once its place lies below the share of the rollout's stage. Places never change during a
rollout and shares only rise, so no node flips back; each rollout has its own salt, so that not
always the same nodes come first. With n nodes the actual share has a standard deviation of ``sqrt(p
(1 - p) / n)``: 0.5 points for half of 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, time
from fractions import Fraction

from blake3 import blake3

from tierstore.format.reflog import FULL_SHARE, Gate, Rollout


def place_of(salt: str, node: str) -> int:
    """Return a node's place in the rollout with this salt: 0 to 9,999 hundredths of a percent."""
    digest = blake3(f"{salt}\0{node}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * FULL_SHARE >> 64


def takes_new(rollout: Rollout, node: str, labels: Mapping[str, str]) -> bool:
    """Return whether this node gets the new version in the rollout's present stage.

    Args:
        rollout: The rollout in the alias's current entry.
        node: The node's name, the same after a restart.
        labels: The node's labels; without those that the rollout asks for, the node waits for the
            last stage.
    """
    share = rollout.stages[rollout.stage]
    if share == FULL_SHARE:
        return True
    if any(labels.get(name) != value for name, value in rollout.labels.items()):
        return False
    return place_of(rollout.salt, node) < share


def next_window(windows: list[str], now: datetime) -> tuple[bool, str]:
    """Return whether a step may happen at ``now`` (UTC), and the present or next window."""
    if not windows:
        return True, ""
    clock = now.astimezone(UTC).time()
    for window in windows:
        start, end = map(time.fromisoformat, window.split("-"))
        inside = start <= clock < end if start < end else clock >= start or clock < end
        if inside:
            return True, window
    return False, min(windows, key=lambda window: _until(window, clock))


def _until(window: str, clock: time) -> int:
    start = time.fromisoformat(window.split("-")[0])
    minutes = start.hour * 60 + start.minute - clock.hour * 60 - clock.minute
    return minutes % (24 * 60)


def holds(gate: Gate, values: list[str]) -> bool:
    """Return whether the mean of the reported values, at least one, is within the gate's bound."""
    mean = sum(map(Fraction, values), Fraction()) / len(values)
    limit = Fraction(gate.limit)
    return mean <= limit if gate.op == "<=" else mean >= limit
