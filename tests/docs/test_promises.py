"""The page of promises: its tests and guards are there, and what is said of peers was run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mutation_list import MUTATIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/promises.md"
RUN = json.loads((ROOT / "docs/assets/promises-peers.json").read_text("utf-8"))
GUARDS = {mutation.name: mutation for mutation in MUTATIONS}
_CODE = re.compile(r"`([^`]+)`")


class Row(NamedTuple):
    """A row of a table of the page, by the header of its first column."""

    table: str
    line: int
    cells: list[str]


def rows(text: str) -> list[Row]:
    """All rows of all tables, without the headers."""
    found: list[Row] = []
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            table = ""
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not table:
            table = cells[0].strip()
        elif not line.startswith("|---"):
            found.append(Row(table, number, cells))
    return found


ROWS = rows(PAGE.read_text("utf-8"))
PROMISES = [row for row in ROWS if row.table == "tierstore promises"]
CASES = [row for row in ROWS if row.table == "case"]


def wrong(row: Row) -> list[str]:
    """What is wrong with a promise."""
    if len(row.cells) != 3:
        return [f"it has {len(row.cells)} cells"]
    tests, guards = (_CODE.findall(cell) for cell in row.cells[1:])
    found = [] if row.cells[0].endswith(".") and tests and guards else ["it is not complete"]
    for test in tests:
        path, _, name = test.partition("::")
        file = ROOT / "tests" / path
        if not file.is_file() or f"\ndef {name}(" not in file.read_text("utf-8"):
            found.append(f"there is no test {test}")
        if not any(test in _tests(guard) for guard in guards):
            found.append(f"none of its guards names {test}")
    for guard in guards:
        if guard not in GUARDS:
            found.append(f"tests/mutation_list.py has no {guard}")
        elif _tests(guard).isdisjoint(tests):
            found.append(f"{guard} names none of its tests")
    return found


def _tests(guard: str) -> set[str]:
    """The tests that fail without a guard, whatever their parameters."""
    return {test.partition("[")[0] for test in GUARDS[guard].tests} if guard in GUARDS else set()


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: f"line {row.line}")
def test_a_promise_has_its_tests_and_each_a_guard_without_which_it_fails(row: Row) -> None:
    assert wrong(row) == []


def test_a_wrong_promise_is_noticed() -> None:
    good = PROMISES[0].cells
    for cells in (
        good[:2],
        [good[0], "", good[2]],
        [good[0], "`unit/test_ids.py::test_nothing`", good[2]],
        [good[0], "`unit/test_ids.py::test_names_are_composed`", good[2]],
        [good[0], good[1], "`no-such-guard`"],
        [good[0], good[1], good[2] + ", `names-nfc`"],
    ):
        assert wrong(Row("tierstore promises", 1, cells)), cells


def test_each_case_that_was_run_is_on_the_page_and_no_other() -> None:
    told = [name for row in CASES for name in _CODE.findall(row.cells[0])]
    assert told == list(RUN["cases"])
    assert all(len(row.cells) == 4 and all(row.cells) for row in CASES)
    assert all(set(case) == {"restic", "borg"} for case in RUN["cases"].values())


def test_the_versions_that_were_run_are_those_that_are_told() -> None:
    text = PAGE.read_text("utf-8")
    for said in RUN["versions"].values():
        assert f"**{' '.join(said.split()[:2])}**" in text
