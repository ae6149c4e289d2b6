"""The cost of tiers: storage, requests, retrieval and traffic, in decimals and never in floats.

A month has 30 days and a GB 2^30 bytes, as clouds bill object storage. Prices are data: a tier's
own prices come from its entry in the store's list of tiers, and ``LISTS`` holds what public price
pages said on a date. They change and differ between regions: edit them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import ROUND_HALF_UP, Decimal

GB = 1 << 30
MONTH_S = 30 * 86_400
DAY_S = 86_400
REQUEST_BYTES = 8 << 20
"""The least that one ranged read of a pack asks for, in bytes."""

_NONE = Decimal(0)
_THOUSAND = Decimal(1000)
_CENT, _LEAST = Decimal("0.01"), Decimal("0.0001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The prices of one tier, in the same currency as those of the other tiers.

    Attributes:
        gb_month: Price of storing one GB for a month.
        put_1000: Price of a thousand writes.
        get_1000: Price of a thousand ranged reads.
        retrieve_gb: Price of reading a GB, a charge of the storage class.
        egress_gb: Price of carrying a GB to where it is used.
        min_days: Days that are charged for an object that is deleted sooner.
    """

    gb_month: Decimal = _NONE
    put_1000: Decimal = _NONE
    get_1000: Decimal = _NONE
    retrieve_gb: Decimal = _NONE
    egress_gb: Decimal = _NONE
    min_days: Decimal = _NONE

    @classmethod
    def of(cls, prices: Mapping[str, str]) -> Prices:
        """Parse prices from decimal text by name; ``ValueError`` names one that is not a price."""
        known = {field.name for field in fields(cls)}
        parsed = {}
        for name, text in prices.items():
            try:
                value = Decimal(text) if text.isascii() else Decimal(-1)
            except ArithmeticError:
                value = Decimal(-1)
            if name not in known or not value.is_finite() or value < 0:
                raise ValueError(
                    f"{name}={text!r} is not a price; known prices are {', '.join(known)}"
                )
            parsed[name] = value
        return cls(**parsed)

    def storage(self, nbytes: int) -> Decimal:
        """Return the price of keeping ``nbytes`` for a month."""
        return self.gb_month * nbytes / GB

    def requests(self, nbytes: int) -> Decimal:
        """Return the price of the requests that read one blob of ``nbytes`` whole."""
        return self.get_1000 * max(1, -(-nbytes // REQUEST_BYTES)) / _THOUSAND

    def reading(self, nbytes: int) -> Decimal:
        """Return the price of reading one blob of ``nbytes`` whole, once."""
        traffic = (self.retrieve_gb + self.egress_gb) * nbytes / GB
        return traffic + self.requests(nbytes)

    def writing(self) -> Decimal:
        """Return the price of writing one blob."""
        return self.put_1000 / _THOUSAND

    def unpaid(self, nbytes: int, age_s: float) -> Decimal:
        """Return what is still charged for ``nbytes`` deleted ``age_s`` after they were written."""
        left = self.min_days - Decimal(age_s) / DAY_S
        return self.storage(nbytes) * max(_NONE, left) * DAY_S / MONTH_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """The charges of a month.

    Attributes:
        storage: Charges for the bytes that are kept.
        requests: Charges for the requests that read.
        retrieval: Charges of the storage class for what is read.
        egress: Charges for carrying what is read.
    """

    storage: Decimal = _NONE
    requests: Decimal = _NONE
    retrieval: Decimal = _NONE
    egress: Decimal = _NONE

    @property
    def total(self) -> Decimal:
        """The sum of all charges."""
        return self.storage + self.requests + self.retrieval + self.egress

    def __add__(self, other: Bill) -> Bill:
        return Bill(
            storage=self.storage + other.storage,
            requests=self.requests + other.requests,
            retrieval=self.retrieval + other.retrieval,
            egress=self.egress + other.egress,
        )


def bill(prices: Prices, stored: int, reads: Decimal = _NONE) -> Bill:
    """Return a month's charges for one pack of ``stored`` bytes that is read ``reads`` times."""
    return Bill(
        storage=prices.storage(stored),
        requests=prices.requests(stored) * reads,
        retrieval=prices.retrieve_gb * stored / GB * reads,
        egress=prices.egress_gb * stored / GB * reads,
    )


def shown(money: Decimal) -> str:
    """Format a sum of money: two decimals, or two digits where that would show nothing."""
    if abs(money) >= _CENT or not money:
        return f"{money.quantize(_CENT, ROUND_HALF_UP):,}"
    if abs(money) < _LEAST:
        return f"<{_LEAST}" if money > 0 else f">-{_LEAST}"
    return f"{money:.2g}"


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices that were public on a date.

    Attributes:
        prices: Decimal text by name, as in a tier's entry.
        source: The page that lists them.
        date: The date on which they were known to hold, ISO 8601.
        note: Conditions and charges that the prices leave out.
    """

    prices: Mapping[str, str]
    source: str
    date: str
    note: str = ""


_S3 = "https://aws.amazon.com/s3/pricing/ (US East, N. Virginia, USD, first 50 TB)"
_EFS = "https://aws.amazon.com/efs/pricing/ (US East, N. Virginia, USD, regional)"
_EBS = "https://aws.amazon.com/ebs/pricing/ (US East, N. Virginia, USD)"
_DATE = "2025-01-01"


def _s3(
    gb_month: str,
    put: str,
    get: str,
    retrieve: str = "0",
    min_days: str = "0",
    note: str = "",
    date: str = _DATE,
) -> PriceList:
    prices = {
        "gb_month": gb_month,
        "put_1000": put,
        "get_1000": get,
        "retrieve_gb": retrieve,
        "egress_gb": "0",
        "min_days": min_days,
    }
    return PriceList(prices, _S3, date, note)


LISTS: Mapping[str, PriceList] = {
    "s3-standard": _s3("0.023", "0.005", "0.0004"),
    "s3-express": _s3("0.11", "0.00113", "0.00003", "0.0006", note="and 0.0032 a GB written",
                      date="2025-04-10"),
    "s3-ia": _s3("0.0125", "0.01", "0.001", "0.01", "30"),
    "s3-onezone-ia": _s3("0.01", "0.01", "0.001", "0.01", "30"),
    "s3-glacier-ir": _s3("0.004", "0.02", "0.01", "0.03", "90"),
    "s3-glacier": _s3("0.0036", "0.03", "0.0004", "0.01", "90", "standard retrieval"),
    "s3-deep-archive": _s3("0.00099", "0.05", "0.0004", "0.02", "180", "standard retrieval"),
    "efs": PriceList(
        {"gb_month": "0.30", "retrieve_gb": "0.03"}, _EFS, "2026-06-13",
        "elastic throughput; and 0.06 a GB written",
    ),
    "ebs-gp3": PriceList({"gb_month": "0.08"}, _EBS, _DATE, "3000 IOPS and 125 MB/s included"),
    "self-hosted": PriceList({}, "nobody sends a bill", _DATE),
}  # fmt: skip
"""Public prices by name.

Traffic that leaves the region is not included: about 0.09 a GB to the internet, 0.02 to another
region (``egress_gb``).
"""
