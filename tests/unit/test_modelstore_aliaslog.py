"""What an alias means, meant and would go back to, by the history of its log."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tierstore.format.reflog import FULL_SHARE, RefEntry, Rollout
from tierstore.modelstore.names.aliaslog import current, goes_back_to, meant_since

DAY_US = 86_400_000_000
NOW_US = 20_000 * DAY_US


class Case(NamedTuple):
    """A log and what it says.

    Attributes:
        log: Its entries: how many days ago each was written by its clock, and what it says:
            ``1`` for version 1, ``1>2`` for a rollout from version 1 to 2, ``-`` for a removal,
            ``back`` for a rollback.
        now: What the alias means, in the same words.
        back: The version that a rollback goes back to.
        meant: What it meant in the last 30 days, newest first; ``>2`` for a rollout to version 2.
    """

    log: list[tuple[float, str]]
    now: str
    back: int | None
    meant: list[str]


CASES = {
    "no entry": Case([], "", None, []),
    "set once": Case([(400, "1")], "1", None, []),
    "set long ago, left lately": Case([(400, "1"), (2, "2"), (1, "3")], "3", 2, ["2", "1"]),
    "left long ago": Case([(400, "1"), (40, "2")], "2", 1, []),
    "removed in between": Case([(400, "1"), (390, "-"), (380, "2")], "2", 1, []),
    "removed twice in between": Case(
        [(400, "1"), (390, "-"), (389, "1"), (388, "-"), (380, "2")], "2", 1, []
    ),
    "removed lately": Case([(400, "1"), (2, "-")], "", 1, ["1"]),
    "removed long ago": Case([(400, "1"), (40, "-")], "", 1, []),
    "removed and brought back": Case([(9, "1"), (8, "2"), (7, "-"), (6, "back")], "2", 1, ["1"]),
    "rolled back": Case([(9, "1"), (8, "2"), (7, "back")], "1", None, ["2"]),
    "rolled back twice": Case(
        [(9, "1"), (8, "2"), (7, "3"), (6, "back"), (5, "back")], "1", None, ["2", "3"]
    ),
    "set to the same again": Case([(400, "1"), (2, "1")], "1", None, []),
    "to and fro": Case([(400, "1"), (2, "2"), (1, "1")], "1", 2, ["2"]),
    "in a rollout": Case([(400, "1"), (2, "1>2")], "1>2", None, []),
    "in a later stage": Case([(400, "1"), (3, "2"), (2, "2>3"), (1, "2>3")], "2>3", 1, ["1"]),
    "a rollout that was aborted": Case([(400, "1"), (3, "1>2"), (2, "1")], "1", None, [">2"]),
    "a rollout that was finished": Case([(400, "1"), (3, "1>2"), (2, "2")], "2", 1, ["1"]),
    "a clock that is months behind": Case([(400, "1"), (3, "2"), (90, "3")], "3", 2, ["2", "1"]),
    "a clock that is ahead": Case([(400, "1"), (-3650, "2")], "2", 1, ["1"]),
    "a clock that was ahead": Case([(400, "1"), (-3650, "2"), (200, "3"), (90, "4")], "4", 3, []),
}


def entries(case: Case) -> list[RefEntry]:
    found: list[RefEntry] = []
    for seq, (days, what) in enumerate(case.log, 1):
        version, _, to = what.partition(">")
        previous = seq - 1 or None
        if what == "back":
            before = goes_back_to(found[-1], lambda seq: found[seq - 1])
            assert before is not None
            version, previous = str(before.version), before.previous
        number = None if version == "-" else int(version)
        found.append(
            RefEntry(
                seq=seq,
                write_id=f"{seq:032x}",
                action="remove" if number is None else "set",
                version=number,
                manifest=None if number is None else manifest(number),
                previous=previous,
                time_us=int(NOW_US - days * DAY_US),
                who="ada@node7",
                tool="tierstore",
                rollout=None if not to else Rollout(
                    version=int(to), manifest=manifest(int(to)), salt="0" * 32,
                    stages=[100, FULL_SHARE],
                ),
            )
        )  # fmt: skip
    return found


def manifest(version: int) -> str:
    return f"{version:064x}"


@pytest.mark.parametrize("name", CASES)
def test_what_the_log_of_an_alias_says(name: str) -> None:
    case = CASES[name]
    log = entries(case)
    now, back = current(log), goes_back_to(log[-1] if log else None, lambda seq: log[seq - 1])
    meant = meant_since(log, NOW_US - 30 * DAY_US, NOW_US)
    assert "".join(">" * one.is_rollout + str(one.version) for one in now) == case.now
    assert (back and back.version) == case.back
    assert [">" * one.is_rollout + str(one.version) for one in meant] == case.meant
    assert {one.manifest for one in (*now, *meant)} == {
        manifest(one.version) for one in (*now, *meant)
    }
    assert meant_since(log, NOW_US, NOW_US) == [], "no history is none"
