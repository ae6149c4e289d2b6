"""Times and numbers as they are given on command lines, and as they are shown."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tierstore.cli.kit.times import duration
from tierstore.config import parse_seconds, parse_share, parse_size
from tierstore.errors import ConfigError, UsageError
from tierstore.lossy.methods import method_of
from tierstore.modelstore.names.reports import parse_stages
from tierstore.placement.cost import Prices
from tierstore.shown import duration_text

ARABIC = "\N{ARABIC-INDIC DIGIT FIVE}"
SQUARE = "\N{SUPERSCRIPT TWO}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), (" 30m ", 1800), ("2h", 7200), ("7d", 604_800), ("007d", 604_800),
     ("36500d", 3_153_600_000), ("876000h", 3_153_600_000)],
)  # fmt: skip
def test_times_have_a_unit(text: str, seconds: int) -> None:
    assert parse_seconds(text) == seconds
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5", "invalid time '5': the unit is missing; expected 90s, 30m, 2h or 7d"),
        ("soon", "expected 90s, 30m, 2h or 7d"),
        ("", "expected 90s"),
        ("-5d", "expected 90s"),
        ("1.5h", "expected 90s"),
        (ARABIC + "d", "expected 90s"),
        (SQUARE + "d", "expected 90s"),
        ("36501d", "invalid time '36501d': the longest possible is 36500d"),
        ("9" * 11 + "d", "the longest possible is 36500d"),
        ("9" * 5000 + "s", "the longest possible is 36500d"),
    ],
)
def test_what_is_no_time(text: str, why: str) -> None:
    for parse in (parse_seconds, duration):
        with pytest.raises(ConfigError, match=why):
            parse(text)


def test_no_time_at_all_is_taken_where_it_is_meant() -> None:
    assert [duration(text) for text in ("0", "00", "0d")] == [timedelta(0)] * 3
    with pytest.raises(ConfigError, match=r"expected more than 0, such as 90s, 30m, 2h or 7d$"):
        parse_seconds("0")
    with pytest.raises(ConfigError, match=r"expected 90s, 30m, 2h or 7d, or 0$"):
        duration("soon")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7200, "2 h"), (5430, "1 h 30 min"),
     (86_400, "1 d"), (129_600, "1 d 12 h"), (86_460, "1 d"), (2_592_000, "30 d")],
)  # fmt: skip
def test_times_are_shown_in_their_two_largest_units(seconds: int, text: str) -> None:
    assert duration_text(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize("digit", [ARABIC, SQUARE])
def test_numbers_have_plain_digits(digit: str) -> None:
    for text in (digit, digit + "GB", "1" * 400):
        with pytest.raises(ConfigError, match="invalid size"):
            parse_size(text)
    with pytest.raises(ConfigError, match="invalid share"):
        parse_share(digit + "%")
    with pytest.raises(UsageError, match="invalid stages"):
        parse_stages(digit + ",100")
    with pytest.raises(ValueError, match="is not a price"):
        Prices.of({"gb_month": digit})
    for method in ("rank:", "energy:0."):
        with pytest.raises(UsageError, match="is not a"):
            method_of({"low-rank": method + digit})
