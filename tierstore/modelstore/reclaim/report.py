"""What a collection found and did: every pack of every tier with one reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeVar

from tierstore.shown import time_text

_Key = TypeVar("_Key")
State = Literal[
    "live", "chain", "base", "window", "leased",
    "waiting", "writing", "down", "condemned", "deleted",
]  # fmt: skip
"""What becomes of a pack.

* ``live``: a version that stays has chunks in it;
* ``chain``: a version on which a patch lies has;
* ``base``: it holds bases of deltas alone;
* ``window``: a removed version that can be undeleted needs it;
* ``leased``: a reader holds it;
* ``waiting``: nothing needs it, and it is condemned after a time;
* ``writing``: condemned, and deleted once saves that run now have ended;
* ``down``: condemned, and deleted but in a tier that cannot be asked, or does not delete it;
* ``condemned``: condemned, and deleted by the next run: this one has reached a limit;
* ``deleted``: deleted from every tier; with ``dry_run``: it would be.
"""

GARBAGE: frozenset[State] = frozenset({"waiting", "writing", "down", "condemned"})
"""The states of packs that nothing needs, and that are still there."""

BYTES_REACHED = "the limit of bytes is reached"
"""Why a run ended that may delete or write no more."""


@dataclass(frozen=True, slots=True)
class PackReport:
    """One pack, and why it is there or not.

    Attributes:
        pack: The id of the pack (32 bytes).
        state: What becomes of it.
        why: The reason in words: the version, the reader, the time, the writer or the tier.
        bytes: Its bytes in each tier that had it, by the tier's name; for ``down`` only in those
            that may have it still.
    """

    pack: bytes
    state: State
    why: str
    bytes: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """Its bytes in all tiers together."""
        return sum(self.bytes.values())


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of packs, and their bytes in all tiers together."""

    packs: int
    bytes: int


@dataclass(slots=True)
class Report:
    """What a collection found and did.

    Attributes:
        dry_run: Whether nothing was changed.
        packs: Every pack that was there, with its reason.
        down: Why tiers could not be asked, by name.
        refused: Why tiers did not delete some of the packs that they were asked to, by name.
        condemned: How many packs were condemned by this run.
        healed: How many chunks and layouts were healed.
        repacked: How many packs with waste were given up for new ones; with ``dry_run``: would be.
        rewritten_bytes: The bytes of these new packs, in all tiers together.
        waste_bytes: The bytes in packs that stay which nothing needs, before they were repacked, in
            one tier; 0 where no repack was asked for, or nothing has changed since one found
            little.
        lacking: What a real run would heal first, in words; for ``dry_run``.
        stopped: Why the run ended before all was deleted or repacked: which limit was reached, or
            what failed in a repack; ``None`` if nothing did.
        freed: The bytes that were deleted, by the tier's name; nothing with ``dry_run``.
        kept: The bytes that were deleted and that a tier keeps as older versions, by its name: they
            are not in ``freed``.
    """

    dry_run: bool
    packs: list[PackReport] = field(default_factory=list)
    down: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    condemned: int = 0
    healed: int = 0
    repacked: int = 0
    rewritten_bytes: int = 0
    waste_bytes: int = 0
    lacking: Sequence[str] = ()
    stopped: str | None = None
    freed: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)

    def of(self, state: State) -> list[PackReport]:
        """Return the packs in one state."""
        return [one for one in self.packs if one.state == state]

    def amounts(self) -> dict[State, Amount]:
        """Return how much there is of each state."""
        return _amounts((one.state, one) for one in self.packs)

    def reasons(self) -> dict[tuple[State, str], Amount]:
        """Return how much there is of each state and reason."""
        return _amounts(((one.state, one.why), one) for one in self.packs)

    def garbage(self) -> Amount:
        """Return what nothing needs and is there still; with ``dry_run`` what would be."""
        found = [one for states in self.left().values() for one in states.items()]
        waits = [amount for state, amount in found if state in GARBAGE]
        return Amount(sum(one.packs for one in waits), sum(one.bytes for one in waits))

    def left(self) -> dict[str, dict[State, Amount]]:
        """Return what is left in each tier by its name, by state.

        With ``dry_run`` what would be deleted is in it.
        """
        found: dict[str, dict[State, Amount]] = {}
        for one in self.packs:
            if one.state == "deleted" and not self.dry_run:
                continue
            for tier, size in one.bytes.items():
                of_tier = found.setdefault(tier, {})
                known = of_tier.get(one.state, Amount(0, 0))
                of_tier[one.state] = Amount(known.packs + 1, known.bytes + size)
        return found


def end_text(time_s: float) -> str:
    """Return a time for people: seconds since the epoch, which may be beyond all calendars."""
    with suppress(OverflowError, ValueError):
        return time_text(datetime.fromtimestamp(time_s, UTC))
    return "further notice"


def _amounts(found: Iterator[tuple[_Key, PackReport]]) -> dict[_Key, Amount]:
    amounts: dict[_Key, Amount] = {}
    for key, one in found:
        known = amounts.get(key, Amount(0, 0))
        amounts[key] = Amount(known.packs + 1, known.bytes + one.total_bytes)
    return amounts
