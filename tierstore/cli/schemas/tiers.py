"""Output of commands on tiers with ``--json``; the rules are those of ``core``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from tierstore.cli.schemas.core import LastGc, Schema


class TierJson(Schema):
    """A tier as the store's list has it.

    ``role`` is ``hot`` (this node's disk), ``shared`` (Redis or Memcached), ``warm`` or ``cold``.
    Watermarks are percent of the quota ``size_bytes``, which is null for no limit. ``options`` and
    ``prices`` are text. ``enabled``, ``node_url`` and ``node_size_bytes`` come from this node's
    tierstore.toml; the latter two are null where the list's URL and size hold.
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
    node_size_bytes: int | None


class Init(Schema):
    """The new store; ``tiers`` does not list home, the store itself."""

    url: str
    store_id: str
    chunk_bytes: int
    tiers: list[TierJson]


class TiersJson(Schema):
    """The tiers in the order in which they are read; ``home``, the store itself, comes last."""

    home: str
    tiers: list[TierJson]


class DiskJson(Schema):
    """The file system below a directory; ``kind`` is its type, such as ``ext4``, or null."""

    kind: str | None
    network: bool
    total_bytes: int
    free_bytes: int


class ServerJson(Schema):
    """One Redis or Memcached server; a field is null where the server did not say.

    ``used_bytes`` and ``evicted`` count everything that it holds, of other programs too. A
    ``limit_bytes`` of 0 is no limit. ``max_value_bytes`` bounds one value.
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
    """The content of a tier; a field is null where that is not known.

    ``used_bytes`` counts this store's ``objects``, packs or chunks (in Memcached, which cannot tell
    them apart, everything). ``pinned_bytes`` may not be evicted or moved. ``disk`` is the file
    system of a tier in a directory. ``error`` says why the tier could not be asked.
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
    disk: DiskJson | None
    servers: list[ServerJson]
    error: str | None


class Df(Schema):
    """The content of every tier, ``home`` last; and what garbage there was, if any was collected.

    ``last_gc`` is null where no garbage was collected yet.
    """

    tiers: list[TierUsageJson]
    last_gc: LastGc | None


class TierDrained(Schema):
    """The packs that were moved out of a tier, and those left in it.

    No other tier has the packs counted by ``only``. ``problems`` say which packs could not be
    moved, and why. With ``dry_run`` nothing was moved, and ``moved`` counts what would be.
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
    """A tier that was removed from the list.

    ``left_packs`` and ``left_bytes`` count what is still in it; other tiers have it too. They are
    null for a tier that holds no packs or could not be asked.
    """

    name: str
    url: str
    left_packs: int | None
    left_bytes: int | None


class TierExample(Schema):
    """An example of a node's tierstore.toml, with comments."""

    text: str


Use = Literal["home", "warm", "cold", "shared"]


class ValidationCheck(Schema):
    """One thing that was tried; ``ok`` is null if the storage does not claim to do it."""

    what: str
    ok: bool | None
    detail: str


class Validation(Schema):
    """The results of trying a storage, and its claims.

    ``can_be`` lists what the storage can be used for: ``home``, ``warm``, ``cold`` or ``shared``.
    ``max_object_bytes`` is null for no limit.
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
    """The use of one tier by this node's processes in the last hour; null where not known.

    ``hit_ratio`` is the share of requests for chunks or packs that the tier answered, and
    ``served_share`` the share of all bytes that came from it, both from 0 to 1. ``served_bytes``
    counts plain bytes in hot tiers and bytes of frames in others. A ``skipped`` tier failed and is
    tried again later. ``error`` says why it could not be asked for its content.
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
    """A pack that is read often, with the tiers that have it and the versions that need it.

    ``heat_bytes`` were read of it by all nodes, where reads count half after four hours. ``bytes``
    is its size, or null if no tier has it that could be asked.
    """

    pack: str
    heat_bytes: int
    bytes: int | None
    tiers: list[str]
    versions: list[str]


class Top(Schema):
    """Reads by tier and by pack; ``processes`` read in the last hour, ``running`` of them now."""

    store: str
    node: str
    time: datetime
    running: int
    processes: int
    served_bytes: int
    tiers: list[TierActivityJson]
    leaders: list[LeaderJson]
