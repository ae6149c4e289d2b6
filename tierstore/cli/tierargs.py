"""From the words of a command line to a tier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierstore.cli.schemas import tiers as schemas
from tierstore.errors import UsageError

if TYPE_CHECKING:
    from tierstore.format.tiers import Role, TierSpec

Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="Of the backend: storage_class, ttl_s ..."),
]
PricesOption = Annotated[
    list[str] | None,
    typer.Option("--price", metavar="NAME=X", help="gb_month, get_1000 ..., or list=s3-standard."),
]
High = Annotated[
    int | None,
    typer.Option(metavar="PERCENT", min=1, max=100, help="Of the quota; emptied above (95)."),
]
Low = Annotated[
    int | None,
    typer.Option(metavar="PERCENT", min=1, max=100, help="Of the quota; down to this (85)."),
]


def _text(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text)


HotUrl = Annotated[str | None, _text("DIR", "This node's cache: NVMe or tmpfs.")]
HotSize = Annotated[str | None, _text("SIZE", "Bytes of disk that it may take.")]
RedisUrl = Annotated[str | None, _text("URL", "Cache of all nodes: redis://host:port/db.")]
MemcachedUrl = Annotated[str | None, _text("URL", "Or memcached://host:port,host:port.")]
WarmUrl = Annotated[str | None, _text("URL", "File system of all nodes: file://, hdfs://.")]
WarmSize = Annotated[str | None, _text("SIZE", "Quota of the warm tier.")]
ColdUrl = Annotated[str | None, _text("URL", "Object storage: s3://bucket/prefix.")]
ColdSize = Annotated[str | None, _text("SIZE", "Quota of the cold tier.")]
TierOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="TIER.NAME=VALUE", help="As cold.storage_class=STANDARD_IA."),
]
TierPrices = Annotated[
    list[str] | None,
    typer.Option("--price", metavar="TIER.NAME=X", help="As cold.gb_month=0.0125."),
]
"""The options of ``init``; those of ``tier add`` and ``tier set`` are above."""


def pairs(texts: Iterable[str] | None) -> dict[str, str]:
    """Names and values of ``NAME=VALUE``; the last one of a name wins."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            # what follows may be a secret: it is not repeated
            raise UsageError(f"{name[:40]!r} has no value: write NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def by_tier(texts: Iterable[str] | None, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The same of ``TIER.NAME=VALUE``, by tier."""
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
    """Prices by name, where ``list`` stands for a public price list; others win over it."""
    name = prices.get("list")
    if name is None:
        return dict(prices)
    from tierstore.placement.cost import LISTS

    if name not in LISTS:
        raise UsageError(f"there is no price list {name!r}; there are {', '.join(LISTS)}")
    own = {price: value for price, value in prices.items() if price != "list"}
    return {**LISTS[name].prices, **own}


def first_tiers(
    given: Mapping[str, tuple[str | None, str | None]],
    option: Iterable[str] | None,
    price: Iterable[str] | None,
) -> list[TierSpec]:
    """The tiers of a new store.

    Args:
        given: URL and size of each by its name, which also is its flag.
        option: ``TIER.NAME=VALUE``.
        price: the same.
    """
    from tierstore.format.tiers import TierSpec
    from tierstore.wiring.backends import BACKENDS

    made = [name for name, (url, _) in given.items() if url is not None]
    for name, (url, size) in given.items():
        if size is not None and url is None:
            raise UsageError(f"--{name}-size says nothing without --{name}")
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
                name=name, role=roles.get(name, "shared"), url=url or "", size=sized(size),
                options=options[name], prices=priced(prices[name]),
            )
        )  # fmt: skip
    return specs


def sized(text: str | None) -> int | None:
    """Bytes; ``None`` for none, or for the word ``none``."""
    from tierstore.config import parse_size

    return None if text is None or text == "none" else parse_size(text)


def updated(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Options with some replaced; an empty value removes one."""
    return {name: value for name, value in {**old, **new}.items() if value}


def tier_json(spec: TierSpec) -> schemas.TierJson:
    """A tier as it is printed, with what this node's file says of it."""
    from tierstore.config import node_config
    from tierstore.wiring.tiers import placed

    node = node_config()
    own, here = node.tier(spec.name, spec.role), placed(spec, node, "").spec.url
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
        node_url=None if here == spec.url else here,
    )


def fields_of(**given: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in given.items() if value is not None}
