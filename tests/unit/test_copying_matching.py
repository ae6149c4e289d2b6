"""Which versions are to be copied, and which are there: by the entries of two logs."""

from __future__ import annotations

import pytest

from tierstore.copying.matching import match, selected
from tierstore.errors import UsageError
from tierstore.format.reflog import RefEntry


def log(*contents: str) -> list[RefEntry]:
    return [
        RefEntry(
            seq=seq, write_id="0" * 32, action="publish", version=seq, manifest=one * 64,
            time_us=0, who="", tool="",
        )
        for seq, one in enumerate(contents, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "found"),
    [
        ("abc", "abc", {1: 1, 2: 2, 3: 3}),
        ("abc", "ab", {1: 1, 2: 2}),
        ("abc", "bc", {2: 1, 3: 2}),
        ("aba", "ab", {1: 1, 2: 2}),
        ("aba", "aba", {1: 1, 2: 2, 3: 3}),
        ("aba", "baa", {1: 2, 2: 1, 3: 3}),
        ("ab", "cd", {}),
        ("b", "ab", {1: 2}),
    ],
)
def test_versions_are_found_by_number_and_then_by_content(
    source: str, target: str, found: dict[int, int]
) -> None:
    assert match(log(*source), log(*target)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, [2, 3, 5, 9]),
        ("3", [3]),
        ("4", []),
        ("3-5", [3, 5]),
        ("5-", [5, 9]),
        ("last:2", [5, 9]),
        ("last:20", [2, 3, 5, 9]),
        ("2, last:1", [2, 9]),
    ],
)
def test_versions_are_chosen(text: str | None, found: list[int]) -> None:
    assert selected(text, [9, 2, 3, 5]) == found


@pytest.mark.parametrize("text", ["", "x", "-5", "1-2-3", "last:", "last:x", "1,,2"])
def test_what_chooses_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="make no sense"):
        selected(text, [1])


def test_no_versions_are_none() -> None:
    assert selected("5-, last:3, 1", []) == []
