"""The list of a store's tiers: numbered revisions in home (format/SPEC.md section 13)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from math import inf
from typing import Any

import msgspec

from tierstore.arguments import as_message, as_text, check_choice, shown
from tierstore.blobs.base import BlobStore
from tierstore.errors import ConfigError, Conflict, NotFound, UsageError
from tierstore.format.checks import Broken
from tierstore.format.readback import read_back
from tierstore.format.tiers import (
    DURABLE,
    FEATURE,
    HOME_NAME,
    TIERS,
    Role,
    TierList,
    TierSpec,
    check_spec,
    has_secret,
    is_tier_name,
    parse_tiers,
    seal_tiers,
    tiers_key,
    tiers_seq,
)
from tierstore.modelstore.home.features import add_features
from tierstore.modelstore.home.once import create_once
from tierstore.modelstore.home.refs import whoami
from tierstore.shown import nearest

ROLES: tuple[Role, ...] = ("hot", "shared", "warm", "cold")
"""The roles of tiers from the fastest to the slowest: the order in which they are read."""

MIN_HEAT, TTL = "min_heat", "ttl_s"
MOVER_OPTIONS = (MIN_HEAT, TTL)
"""Options of a durable tier for the mover: the least heat of its packs, and the seconds after which
a pack that nobody reads leaves it.
"""

STATES = ("active", "draining")
PRICES = ("gb_month", "put_1000", "get_1000", "retrieve_gb", "egress_gb", "min_days")
TierChange = Callable[[Sequence[TierSpec]], Sequence[TierSpec]]


class TierLog:
    """The revisions of a store's list of tiers.

    Args:
        home_blobs: The store's home.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs

    def current(self) -> TierList | None:
        """Return the newest revision; ``None`` when there has never been one."""
        numbers = (tiers_seq(info.key) for info in self._home_blobs.list(TIERS))
        newest = max(filter(None, numbers), default=None)  # what is not ours is no list
        if newest is None:
            return None
        key = tiers_key(newest)
        return parse_tiers(self._home_blobs.get(key), newest, f"list of tiers {key}")

    def change(self, change: TierChange, message: str | None = None) -> TierList:
        """Write a new revision, made by calling ``change`` with the current tiers.

        Raises:
            Conflict: Another process changed the tiers at the same time; nothing was changed.
            ConfigError: A tier of the new list is not valid.
        """
        note = as_message(message)
        self._announce()
        current = self.current()
        old = current.tiers if current else []
        revision = TierList(
            seq=current.seq + 1 if current else 1,
            write_id=uuid.uuid4().hex,
            tiers=checked(change(old)),
            time_us=time.time_ns() // 1000,
            who=whoami(),
            message=note,
        )
        key = tiers_key(revision.seq)
        if not create_once(self._home_blobs, key, seal_tiers(revision)):
            raise Conflict(
                f"the tiers of {self._home_blobs.url} were changed by somebody else at the same "
                "time; look at 'tierstore tier ls', then try again"
            )
        self._announce()  # again: who wrote config.json over meanwhile saw no list of tiers
        return revision

    def _announce(self) -> None:
        """Make older versions refuse the store before packs lie where they do not look."""
        add_features(self._home_blobs, read=[FEATURE], write=[FEATURE])


def added(tiers: Sequence[TierSpec], spec: TierSpec) -> list[TierSpec]:
    """Return the tiers with ``spec`` added behind those of its role.

    Raises:
        Conflict: The name is taken.
    """
    if any(tier.name == spec.name for tier in tiers):
        raise Conflict(f"there is a tier {spec.name!r} already; choose another name")
    ranks = [ROLES.index(tier.role) for tier in tiers]
    at = sum(rank <= ROLES.index(spec.role) for rank in ranks)
    return [*tiers[:at], spec, *tiers[at:]]


def changed(tiers: Sequence[TierSpec], name: str, **fields: Any) -> list[TierSpec]:
    """Return the tiers with some fields of the tier ``name`` replaced."""
    found = find(tiers, name)
    new = msgspec.structs.replace(found, **fields)
    return [new if tier.name == name else tier for tier in tiers]


def removed(tiers: Sequence[TierSpec], name: str) -> list[TierSpec]:
    """Return the tiers without the tier ``name``."""
    gone = find(tiers, name)
    return [tier for tier in tiers if tier is not gone]


def find(tiers: Iterable[TierSpec], name: str) -> TierSpec:
    """Return the tier of this name; the message of ``NotFound`` lists those there are."""
    as_text("name", name, "the name of a tier")
    known = {tier.name: tier for tier in tiers}
    if name == HOME_NAME:
        raise NotFound(
            "home is the store itself and not a tier that can be changed: it has no quota, options "
            "or prices of its own; 'tierstore tier add' adds a tier that packs go to instead"
        )
    if name not in known:
        names = ", ".join(known) or "none"
        raise NotFound(f"there is no tier {name!r}; the store's tiers are: {names}")
    return known[name]


def checked(tiers: Sequence[TierSpec]) -> list[TierSpec]:
    """Return the tiers if a store may have them; raise ``ConfigError`` if not."""
    for spec in tiers:
        check_tier(spec)
    hot = [tier.name for tier in tiers if tier.role == "hot"]
    if len(hot) > 1:
        raise ConfigError(f"a node can have one hot tier, not {len(hot)}: {', '.join(hot)}")
    return list(tiers)


def check_tier(spec: TierSpec) -> None:
    """Raise ``ConfigError`` for a tier that a list cannot have, ``UsageError`` for no tier."""
    if not isinstance(spec, TierSpec):
        raise UsageError(
            f"a tier is a tierstore.TierSpec(name=…, role=…, url=…), not {shown(spec)}"
        )
    check_choice("role", spec.role, ROLES)
    check_choice("state", spec.state, STATES)
    try:
        read_back(spec)
    except Broken as error:
        raise ConfigError(f"tier {shown(spec.name)}: {error}") from None
    if has_secret(spec.url):  # the URL is not repeated: it holds a secret
        raise ConfigError(
            f"the URL of tier {spec.name!r} holds a password or key, and every node would read it; "
            "leave it out, and give 'username' and 'password_env' or 'password_file' under "
            f"[tiers.{spec.name}] in each node's tierstore.toml, or the usual AWS_* variables"
        )
    if not is_tier_name(spec.name):
        raise ConfigError(
            f"{spec.name[:40]!r} is not a valid name of a tier: use up to 32 of a-z, 0-9 and -, a "
            "letter first, and not 'home', which is the store itself"
        )
    if not 0 < spec.low <= spec.high <= 100:
        raise ConfigError(
            f"tier {spec.name!r}: its watermarks must be percent of its quota, the low one "
            f"({spec.low}) not above the high one ({spec.high})"
        )
    try:
        check_spec(spec)
    except Broken as error:
        raise ConfigError(f"tier {spec.name!r}: {error}") from None
    if spec.role in DURABLE:
        for option in MOVER_OPTIONS:
            mover_option(spec, option)
    for price, value in spec.prices.items():
        if price not in PRICES:
            raise ConfigError(
                f"tier {spec.name!r} has no price {price!r}: {nearest(price, PRICES)}"
            )
        try:
            bad = not (Decimal(value).is_finite() and Decimal(value) >= 0)
        except InvalidOperation:
            bad = True
        if bad:
            raise ConfigError(f"tier {spec.name!r}: {price}={value!r} is not a price such as 0.023")


def mover_option(spec: TierSpec, name: str) -> float | None:
    """Return the value of a mover option; ``ConfigError`` unless it is a number of at least 0."""
    text = spec.options.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < inf:
        raise ConfigError(f"tier {spec.name!r}: {name}={text!r} is not a number such as 2.5")
    return value
