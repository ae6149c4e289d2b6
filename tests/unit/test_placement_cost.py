"""Prices in decimals: what a tier's reads, writes and bytes cost."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tierstore.modelstore.home.tierlist import PRICES
from tierstore.placement.cost import DAY_S, GB, LISTS, Bill, Prices, bill, shown


def test_prices_are_what_a_tier_may_have() -> None:
    prices = Prices.of(dict.fromkeys(PRICES, "0.5"))
    assert prices.gb_month == prices.min_days == Decimal("0.5")
    assert Prices.of({}) == Prices()


@pytest.mark.parametrize("bad", [{"gb_month": "-1"}, {"gb_month": "nan"}, {"gb_month": "1 USD"},
                                 {"gb_months": "1"}])  # fmt: skip
def test_what_is_no_price_is_named(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
        Prices.of(bad)


def test_what_things_cost() -> None:
    prices = Prices.of({
        "gb_month": "0.0125", "put_1000": "0.01", "get_1000": "0.001", "retrieve_gb": "0.01",
        "egress_gb": "0.09", "min_days": "30",
    })  # fmt: skip
    assert prices.storage(2 * GB) == Decimal("0.025")
    assert prices.writing() == Decimal("0.00001")
    assert prices.requests(1) == Decimal("0.000001")
    assert prices.requests(64 << 20) == Decimal("0.000008")
    assert prices.reading(GB) == Decimal("0.1") + Decimal("0.000128")
    assert prices.unpaid(GB, 20 * DAY_S) == Decimal("0.0125") / 3
    assert prices.unpaid(GB, 31 * DAY_S) == 0
    month = bill(prices, GB, Decimal(2))
    assert month == Bill(storage=Decimal("0.0125"), requests=Decimal("0.000256"),
                         retrieval=Decimal("0.02"), egress=Decimal("0.18"))  # fmt: skip
    assert (month + month).total == 2 * month.total


def test_sums_for_people() -> None:
    sums = ("12345.678", "12.345", "0", "-0.5", "0.0031", "0.00000012", "-0.00000012")
    assert [shown(Decimal(text)) for text in sums] == [
        "12,345.68", "12.35", "0.00", "-0.50", "0.0031", "<0.0001", ">-0.0001",
    ]  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_public_prices_are_prices(name: str) -> None:
    assert Prices.of(LISTS[name].prices).gb_month >= 0
    assert LISTS[name].source
    assert LISTS[name].date.startswith("202")
