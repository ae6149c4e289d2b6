"""Which versions rules keep, compared with restic's own words for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import UsageError
from tierstore.format.retention import Rules
from tierstore.modelstore.reclaim.rules import Candidate, described, kept_by, rules_of

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)
DAY = timedelta(days=1)


def versions(*ages: float, patches: tuple[int, ...] = ()) -> list[Candidate]:
    """Versions that are so many days old, the last one the newest."""
    return [
        Candidate(number, NOW - age * DAY, (f"run {number}",), number in patches)
        for number, age in enumerate(ages, 1)
    ]


def kept(rules: Rules, candidates: list[Candidate]) -> list[int]:
    return sorted(kept_by(rules, candidates, NOW), reverse=True)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (rules_of(keep_last=2), [8, 7]),
        (rules_of(keep_hourly=2), [8, 6]),
        (rules_of(keep_daily=2), [8, 6]),
        (rules_of(keep_daily=3), [8, 6, 5]),
        (rules_of(keep_weekly=2), [8, 5]),
        (rules_of(keep_monthly=2), [8, 4]),
        (rules_of(keep_monthly=9), [8, 4, 3, 2, 1]),
        (rules_of(keep_yearly=2), [8, 2]),
        (rules_of(keep_within=timedelta(days=1.5)), [8, 7, 6]),
        (rules_of(keep_within=timedelta(seconds=1)), [8]),
        (rules_of(keep_tag=["run [23]", "nothing"]), [3, 2]),
        (rules_of(keep_last=1, keep_yearly=2, keep_tag=["run 4"]), [8, 4, 2]),
    ],
)
def test_rules(rules: Rules, expected: list[int]) -> None:
    # March 10 is a Tuesday; 2 days ago is a Sunday; 20 days ago is in February, 80 in December
    ages = versions(400, 80, 40, 20, 2, 1, 0.01, 0)
    assert kept(rules, ages) == expected


def test_the_rules_that_keep_are_named() -> None:
    rules = rules_of(keep_last=2, keep_daily=1, keep_tag=["run 2"], keep_within=timedelta(days=1))
    assert kept_by(rules, versions(3, 2, 0), NOW) == {
        3: ["last 2", "daily 1", "within 1 d"],
        2: ["last 2", "tag run 2"],
    }


def test_patches_are_not_counted_and_kept_by_rules_of_their_own() -> None:
    """By SPEC 11: younger than 7 days, or among the newest 64 versions."""
    old = versions(*range(100, 0, -1), patches=tuple(range(2, 101)))
    assert kept(rules_of(keep_last=1), old) == [*range(100, 36, -1), 1]
    many = versions(*[6.9] * 100, patches=tuple(range(1, 101)))
    assert len(kept(rules_of(keep_last=1), many)) == 100
    assert kept(rules_of(keep_tag=["run 7"]), old) == [*range(100, 36, -1), 7]
    assert kept_by(rules_of(keep_last=1), versions(9, 8, patches=(2,)), NOW) == {
        1: ["last 1"],
        2: ["patch among the newest 64"],
    }


def rules_with(counts: dict[str, int]) -> Rules:
    return msgspec.convert(counts, Rules)


@given(
    st.lists(st.floats(0, 1000), max_size=30),
    st.lists(st.integers(0, 5) | st.none(), min_size=6, max_size=6),
)
def test_more_of_a_rule_keeps_more(ages: list[float], counts: list[int | None]) -> None:
    candidates = versions(*sorted(ages, reverse=True))
    names = ["keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly"]
    given = {name: count for name, count in zip(names, counts, strict=True) if count is not None}
    found = set(kept_by(rules_with(given), candidates, NOW))
    more = {name: count + 1 for name, count in given.items()}
    assert found <= set(kept_by(rules_with(more), candidates, NOW))
    assert len(found) <= sum(given.values())
    for name, count in given.items():
        assert len(kept_by(rules_with({name: count}), candidates, NOW)) <= count


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({}, "no rule was given"),
        ({"keep_tag": []}, "no rule was given"),
        ({"keep_last": -1}, "keep_last takes a count of versions, 1 or more, not -1"),
        ({"keep_daily": 1.5}, "keep_daily takes a count of versions"),
        ({"keep_last": 10**9}, "such rules cannot be used: keep_last: expected a whole number <="),
        ({"keep_last": 0}, "keep_last of 0 keeps nothing: leave --keep-last out, or give"),
        ({"keep_last": 1, "keep_monthly": 0}, "keep_monthly of 0 keeps nothing: leave --keep-m"),
        ({"keep_within": timedelta(0)}, "keep_within of 0 keeps nothing"),
        ({"keep_within": 30}, "keep_within takes a timedelta"),
        ({"keep_within": timedelta(days=-1)}, "keep_within takes a timedelta"),
        ({"keep_tag": "prod"}, "keep_tag takes a list"),
        ({"keep_tag": [""]}, "such rules cannot be used: keep_tags"),
    ],
)
def test_what_is_no_rule(keep: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        rules_of(**keep)  # type: ignore[arg-type]
    assert str(caught.value).startswith(says)


def test_rules_in_words() -> None:
    rules = rules_of(
        keep_last=3, keep_monthly=2, keep_within=timedelta(hours=36), keep_tag=["v *", "prod"]
    )
    assert described(rules) == (
        "--keep-last 3 --keep-monthly 2 --keep-within 36h --keep-tag 'v *' --keep-tag prod"
    )
    assert described(rules_of(keep_within=timedelta(seconds=61))) == "--keep-within 61s"
    assert described(rules_of(keep_within=timedelta(days=30))) == "--keep-within 30d"
