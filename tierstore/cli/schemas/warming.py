"""What ``warmup``, ``evict``, ``pin``, ``unpin`` and ``pins`` print with ``--json``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from tierstore.cli.schemas.core import Schema


class Warmup(Schema):
    """How much of a version a tier holds now, and what bringing it there cost.

    ``objects`` are chunks in a hot tier and packs in warm ones. Of the plain bytes ``reused_bytes``
    were near already, ``delta_bytes`` came as deltas and ``full_bytes`` from frames that stand
    alone; ``fetched_bytes`` were read from durable tiers. All four are 0 where only the tier was
    looked at; of warm tiers only ``fetched_bytes``, what was copied, is known.
    """

    ref: str
    version: str
    digest: str
    tier: str
    resident: bool
    objects: int
    missing_objects: int
    fetched_bytes: int
    reused_bytes: int
    delta_bytes: int
    full_bytes: int
    seconds: float


class Evicted(Schema):
    """Bytes that are free now in a hot tier; ``ref`` is null when all was evicted."""

    ref: str | None
    tier: str
    freed_bytes: int


class PinJson(Schema):
    """A version that is kept where it is fast: ``until`` a time, or null for no end."""

    ref: str
    digest: str
    tiers: list[Literal["hot", "warm"]]
    until: datetime | None
    who: str


class Unpinned(Schema):
    """The version whose pin was ended."""

    ref: str
    digest: str


class Pins(Schema):
    """The pins that have not ended."""

    pins: list[PinJson]
