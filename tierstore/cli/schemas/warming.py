"""Output of ``warmup``, ``evict``, ``pin``, ``unpin`` and ``pins`` with ``--json``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from tierstore.cli.schemas.core import Schema


class Warmup(Schema):
    """The part of a version that a tier holds now, and the bytes that were fetched for it.

    ``objects`` are chunks in a hot tier and packs in warm tiers. Of the plain bytes,
    ``reused_bytes`` were near already, ``delta_bytes`` were decoded from deltas and ``full_bytes``
    from standalone frames; ``fetched_bytes`` were read from durable tiers. All four are 0 with
    ``--check``; for warm tiers only ``fetched_bytes``, the bytes copied, is known.
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
    """The bytes that were freed in a hot tier; ``ref`` is null if every version was evicted."""

    ref: str | None
    tier: str
    freed_bytes: int


class PinJson(Schema):
    """A version that is kept in fast tiers ``until`` a time, or for good if that is null."""

    ref: str
    digest: str
    tiers: list[Literal["hot", "warm"]]
    until: datetime | None
    who: str


class Unpinned(Schema):
    """The version whose pin was removed."""

    ref: str
    digest: str


class PinsJson(Schema):
    """The pins that have not ended."""

    pins: list[PinJson]
