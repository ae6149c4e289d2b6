"""BackendOptions that describe tiers, and how their texts become a ``TierSpec``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from tierstore.cli.kit.params import option
from tierstore.cli.schemas import tiers as schemas
from tierstore.errors import UsageError
from tierstore.shown import shown_url

if TYPE_CHECKING:
    from tierstore.format.tiers import Role, TierSpec

BackendOptions = Annotated[
    list[str] | None,
    option(
        "--option",
        metavar="NAME=VALUE",
        help="Option of the backend, such as ttl_s=60; may be repeated.",
    ),
]
PricesOption = Annotated[
    list[str] | None,
    option(
        "--price",
        metavar="NAME=X",
        help="Price, such as gb_month=0.023, or list=s3-standard; may be repeated.",
    ),
]
High = Annotated[
    int | None,
    option(
        metavar="PERCENT",
        min=1,
        max=100,
        help="Packs or chunks leave the tier above this share of its quota (95 unless set).",
    ),
]
Low = Annotated[
    int | None,
    option(
        metavar="PERCENT",
        min=1,
        max=100,
        help="They leave it down to this share of its quota (85 unless set).",
    ),
]


def _text(metavar: str, text: str) -> Any:
    return option(metavar=metavar, help=text)


HotUrl = Annotated[
    str | None, _text("DIR", "Directory of each node for its hot tier, on NVMe or tmpfs.")
]
HotSize = Annotated[
    str | None, _text("SIZE", "Quota of the hot tier, such as 50GB; needed with --hot.")
]
RedisUrl = Annotated[
    str | None, _text("URL", "Redis as a cache of all nodes: redis://host:port/db.")
]
MemcachedUrl = Annotated[
    str | None, _text("URL", "Memcached as a cache of all nodes: memcached://host:port,host:port.")
]
WarmUrl = Annotated[
    str | None, _text("URL", "File system of all nodes for a warm tier: file://, hdfs://.")
]
WarmSize = Annotated[
    str | None, _text("SIZE", "Quota of the warm tier, such as 2TB (default: none).")
]
ColdUrl = Annotated[str | None, _text("URL", "Object storage for a cold tier: s3://bucket/prefix.")]
ColdSize = Annotated[
    str | None, _text("SIZE", "Quota of the cold tier, such as 50TB (default: none).")
]
TierOptions = Annotated[
    list[str] | None,
    option(
        "--option",
        metavar="TIER.NAME=VALUE",
        help="Option of a tier, such as cold.storage_class=STANDARD_IA; may be repeated.",
    ),
]
TierPrices = Annotated[
    list[str] | None,
    option(
        "--price",
        metavar="TIER.NAME=X",
        help="Price of a tier, such as cold.gb_month=0.0125; may be repeated.",
    ),
]
"""From ``HotUrl`` on, the options of ``init``; above, those of ``tier add`` and ``tier set``."""


def pairs(texts: Iterable[str] | None) -> dict[str, str]:
    """Parse texts ``NAME=VALUE``; the last value of a name wins."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            # what follows may be a secret: it is not repeated
            raise UsageError(f"{name[:40]!r} has no value: write NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def by_tier(texts: Iterable[str] | None, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Parse texts ``TIER.NAME=VALUE`` into names and values by tier."""
    known = list(names)
    found: dict[str, dict[str, str]] = {name: {} for name in known}
    for key, value in pairs(texts).items():
        tier, dot, name = key.partition(".")
        if not dot or not name:
            raise UsageError(f"{key!r}: write TIER.NAME=VALUE, such as cold.{key}=...")
        if tier not in found:
            raise UsageError(
                f"{key!r}: no tier {tier!r} is being made; there are: {', '.join(known) or 'none'}"
            )
        found[tier][name] = value
    return found


def priced(prices: Mapping[str, str]) -> dict[str, str]:
    """Return prices by name; those given win over the public price list that ``list`` names."""
    name = prices.get("list")
    if name is None:
        return dict(prices)
    from tierstore.placement.cost import LISTS

    if name not in LISTS:
        raise UsageError(f"there is no price list {name!r}; known are {', '.join(LISTS)}")
    own = {price: value for price, value in prices.items() if price != "list"}
    return {**LISTS[name].prices, **own}


def first_tiers(
    given: Mapping[str, tuple[str | None, str | None]],
    option: Iterable[str] | None,
    price: Iterable[str] | None,
) -> list[TierSpec]:
    """Return the tiers of a new store.

    Args:
        given: URL and size of each tier by its name, which also is its flag.
        option: Texts ``TIER.NAME=VALUE`` of options.
        price: Texts ``TIER.NAME=VALUE`` of prices.
    """
    from tierstore.format.tiers import TierSpec
    from tierstore.wiring.backends import BACKENDS

    made = [name for name, (url, _) in given.items() if url is not None]
    for name, (url, size) in given.items():
        if size is not None and url is None:
            raise UsageError(f"--{name}-size needs --{name}")
    options, prices = by_tier(option, made), by_tier(price, made)
    roles: dict[str, Role] = {"hot": "hot", "warm": "warm", "cold": "cold"}
    starts = {one.name: tuple(f"{scheme}://" for scheme in one.schemes) for one in BACKENDS}
    specs = []
    for name in made:
        url, size = given[name]
        if name not in roles and not (url or "").startswith(starts[name]):
            raise UsageError(f"--{name} needs a URL that begins with {', '.join(starts[name])}")
        specs.append(
            TierSpec(
                name=name,
                role=roles.get(name, "shared"),
                url=url or "",
                size=sized(size),
                options=options[name],
                prices=priced(prices[name]),
            )
        )
    return specs


def sized(text: str | None) -> int | None:
    """Parse a size into bytes; ``None`` without one, or for the word ``none``."""
    from tierstore.config import parse_size

    return None if text is None or text == "none" else parse_size(text)


def updated(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return options with some replaced; an empty value removes one."""
    return {name: value for name, value in {**old, **new}.items() if value}


def tier_json(spec: TierSpec) -> schemas.TierJson:
    """Return a tier as it is printed, with what this node's file says of it."""
    from tierstore.config import node_config
    from tierstore.wiring.tiers import placed

    node = node_config()
    own, here = node.tier(spec.name, spec.role), placed(spec, node, "").spec
    return schemas.TierJson(
        name=spec.name,
        role=spec.role,
        url=spec.url,
        size_bytes=spec.size,
        high_percent=spec.high,
        low_percent=spec.low,
        timeout_ms=spec.timeout_ms,
        state=spec.state,
        options=spec.options,
        prices=spec.prices,
        enabled=own.enabled,
        node_url=None if here.url == spec.url else shown_url(here.url),
        node_size_bytes=None if here.size == spec.size else here.size,
    )


def fields_of(**given: Any) -> dict[str, Any]:
    """Return the arguments that are not ``None``."""
    return {name: value for name, value in given.items() if value is not None}
