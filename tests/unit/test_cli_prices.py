"""Public price lists on the command line."""

from __future__ import annotations

import pytest

from tierstore.cli.tierargs import first_tiers, priced
from tierstore.errors import UsageError


def test_a_list_stands_for_its_prices_and_others_win() -> None:
    assert priced({"list": "s3-ia", "egress_gb": "0.09"}) == {
        "gb_month": "0.0125", "put_1000": "0.01", "get_1000": "0.001", "retrieve_gb": "0.01",
        "egress_gb": "0.09", "min_days": "30",
    }  # fmt: skip
    assert priced({"gb_month": "1"}) == {"gb_month": "1"}
    with pytest.raises(UsageError, match="no price list 's4'; known are s3-standard, "):
        priced({"list": "s4"})


def test_the_tiers_of_a_new_store_take_one() -> None:
    [cold] = first_tiers({"cold": ("s3://bucket/x", None)}, [], ["cold.list=s3-standard"])
    assert cold.prices["gb_month"] == "0.023"
