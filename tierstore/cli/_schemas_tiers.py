"""What ``--json`` prints of tiers; the rules are those of ``_schemas``."""

from __future__ import annotations

from typing import Literal

from tierstore.cli._schemas import Schema


class TierJson(Schema):
    """A tier as the store's list has it.

    ``role`` is ``hot`` (this node's disk), ``shared`` (Redis or Memcached), ``warm`` or ``cold``;
    watermarks are percent of the quota ``size_bytes``, which is null for no limit. ``options`` and
    ``prices`` are text. ``enabled`` and ``node_url`` (null: as in the list) are what this node's
    tierstore.toml says of it.
    """

    name: str
    role: Literal["hot", "shared", "warm", "cold"]
    url: str
    size_bytes: int | None
    high_percent: int
    low_percent: int
    timeout_ms: int
    state: Literal["active", "draining"]
    options: dict[str, str]
    prices: dict[str, str]
    enabled: bool
    node_url: str | None


class Init(Schema):
    """The new store; ``tiers`` are those beside home."""

    url: str
    store_id: str
    chunk_bytes: int
    tiers: list[TierJson]


class Tiers(Schema):
    """The tiers beside home, in the order in which they are read; ``home`` is the store itself."""

    home: str
    tiers: list[TierJson]


class TierDrained(Schema):
    """What is still in a tier that takes no more packs; ``only`` is what no other tier has."""

    name: str
    state: Literal["active", "draining"]
    packs: int
    bytes: int
    only_packs: int
    only_bytes: int


class TierRemoved(Schema):
    """A tier that the store no longer has.

    ``left_packs`` and ``left_bytes`` are still there, and in other tiers as well; null for a tier
    that holds no packs or could not be asked.
    """

    name: str
    url: str
    left_packs: int | None
    left_bytes: int | None


class TierExample(Schema):
    """A node's file with comments, as TOML."""

    text: str


Use = Literal["home", "warm", "cold", "shared"]


class ValidationCheck(Schema):
    """One thing that was tried; ``ok`` is null for what the storage does not claim to do."""

    what: str
    ok: bool | None
    detail: str


class Validation(Schema):
    """What storage did when it was tried, what it claims, and what it ``can_be``.

    ``can_be`` holds ``home``, ``warm``, ``cold`` or ``shared``; ``max_object_bytes`` is null for
    no limit.
    """

    url: str
    checks: list[ValidationCheck]
    can_be: list[Use]
    put_if_absent: bool
    durable: bool
    local: bool
    atomic_put: bool
    listable: bool
    max_object_bytes: int | None
