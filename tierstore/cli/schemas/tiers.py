"""What ``--json`` prints of tiers; the rules are those of ``core``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from tierstore.cli.schemas.core import Schema


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


class ServerJson(Schema):
    """One Redis or Memcached server; null is what it did not say.

    ``used_bytes`` and ``evicted`` are of all that it holds, whoever's it is; a ``limit_bytes`` of 0
    is no limit; ``max_value_bytes`` bounds one value.
    """

    node: str
    version: str | None
    used_bytes: int | None
    limit_bytes: int | None
    evicted: int | None
    max_value_bytes: int | None
    policy: str | None
    persistent: bool | None


class TierUsageJson(Schema):
    """What a tier holds; null is what is not known.

    ``used_bytes`` are of this store (in Memcached, which cannot tell, of all), in ``objects`` packs
    or chunks; ``pinned_bytes`` may not be evicted or moved. ``error`` says why it could not be
    asked. The last one is ``home``.
    """

    name: str
    role: Literal["hot", "shared", "warm", "cold"]
    url: str
    state: Literal["active", "draining"]
    enabled: bool
    used_bytes: int | None
    objects: int | None
    pinned_bytes: int | None
    quota_bytes: int | None
    high_percent: int
    low_percent: int
    servers: list[ServerJson]
    error: str | None


class Df(Schema):
    """What every tier holds."""

    tiers: list[TierUsageJson]


class TierDrained(Schema):
    """What was moved out of a tier and what is in it; ``only`` is what no other tier has.

    ``problems`` say which packs could not be moved, and why. With ``dry_run`` nothing was moved,
    and ``moved`` is what would be.
    """

    name: str
    state: Literal["active", "draining"]
    dry_run: bool
    moved_packs: int
    moved_bytes: int
    problems: list[str]
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


class TierActivityJson(Schema):
    """What this node's processes did in one tier in the last hour; null is what is not known.

    ``hit_ratio`` is of the chunks or packs that were asked for there, ``served_share`` the part of
    all bytes that came from there, both from 0 to 1. ``served_bytes`` are plain bytes of hot and
    frames of other tiers. ``skipped``: it failed, and is tried again later; ``error``: why it could
    not be asked what it holds.
    """

    name: str
    role: Literal["hot", "shared", "warm", "cold", "home"]
    used_bytes: int | None
    quota_bytes: int | None
    hits: int
    misses: int
    hit_ratio: float | None
    served_bytes: int
    served_share: float | None
    bytes_per_second: float
    admitted: int
    evicted: int
    rejected: int
    damaged: int
    errors: int
    skipped: bool
    error: str | None


class LeaderJson(Schema):
    """A pack that is read much: ``heat_bytes`` of it by all nodes, half of them after a day.

    ``bytes`` is its size, null when no tier has it; ``tiers`` have it, ``versions`` need it.
    """

    pack: str
    heat_bytes: int
    bytes: int | None
    tiers: list[str]
    versions: list[str]


class Top(Schema):
    """What is read from where: ``running`` of ``processes`` that read in the last hour still do."""

    store: str
    node: str
    time: datetime
    running: int
    processes: int
    served_bytes: int
    tiers: list[TierActivityJson]
    leaders: list[LeaderJson]
