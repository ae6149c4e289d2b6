"""What ``rm --purge`` and ``purge`` print as JSON."""

from __future__ import annotations

from datetime import datetime

from tierstore.cli.schemas.core import Schema


class PurgedTierJson(Schema):
    """What a purge did to one durable tier; ``error`` says why it could not be asked.

    ``kept_bytes`` of what was deleted are there still as older versions of objects.
    """

    tier: str
    deleted_packs: int
    deleted_bytes: int
    left_packs: int
    left_bytes: int
    kept_bytes: int
    error: str | None


class LeftPackJson(Schema):
    """A pack with purged chunks that is still in a tier, and why."""

    pack: str
    tier: str
    bytes: int
    why: str


class SharingJson(Schema):
    """Chunks that stay, as ``why`` needs them."""

    why: str
    chunks: int
    plain_bytes: int


class PurgeNode(Schema):
    """The caches of a node that one agent has; ``place`` is null where none is known.

    ``acknowledged`` is null until it has dropped all that was there, ``seen`` where nobody knows,
    and ``gone`` unless it is said that the node will not come back; ``gone_by`` says who did, and
    ``gone_reason`` why.
    """

    node: str
    place: str | None
    acknowledged: datetime | None
    dropped: dict[str, int]
    failed: dict[str, str]
    seen: datetime | None
    gone: datetime | None
    gone_by: str | None
    gone_reason: str | None


class Stays(Schema):
    """What a purge leaves for good, and where."""

    what: str
    where: str


class Receipt(Schema):
    """The receipt of a purge.

    ``done`` says that what nothing else needs is in no durable tier any more; ``complete`` that all
    nodes have acknowledged, too. ``left`` and ``waits`` say what hinders it. ``manifests_left``
    says why manifests stay, by their digests. ``digests`` has those of the version and its
    variants, by their references; ``shared_digests`` those of the chunks that stay, and is
    null but in what ``purge show`` prints. Bytes of chunks are plain bytes as far as they are
    known; those of packs are stored bytes.
    """

    id: str
    time: datetime
    who: str
    message: str
    version: str
    variants: list[str]
    digests: dict[str, list[str]]
    done: bool
    complete: bool
    updated: datetime
    chunks: int
    plain_bytes: int
    shared_chunks: int
    shared_plain_bytes: int
    shared: list[SharingJson]
    shared_digests: list[str] | None
    tiers: list[PurgedTierJson]
    left: list[LeftPackJson]
    rewritten_bytes: int
    deleted_objects: list[str]
    manifests_left: dict[str, str]
    unread_packs: int
    waits: list[str]
    nodes: list[PurgeNode]
    outstanding: list[str]
    stays: list[Stays]


class PlannedTierJson(Schema):
    """Packs of a tier that hold chunks of what would be purged, as its layouts say."""

    tier: str
    packs: int
    bytes: int


class Plan(Schema):
    """What a purge would do; nothing was changed.

    ``refused`` says why it would be refused, or is null. ``shared`` has who needs chunks that would
    stay, ``nodes`` who would have to acknowledge, ``down`` why tiers could not be asked.
    """

    digests: dict[str, list[str]]
    refused: str | None
    chunks: int
    plain_bytes: int
    shared_chunks: int
    shared_plain_bytes: int
    shared: list[SharingJson]
    tiers: list[PlannedTierJson]
    down: dict[str, str]
    nodes: list[str]


class GoneNodes(Schema):
    """Nodes that are not waited for any more."""

    nodes: list[str]


class Receipts(Schema):
    """The receipts of purges, newest first."""

    receipts: list[Receipt]
