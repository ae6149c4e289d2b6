"""The receipt of a purge: what went, what is left and why, and who has not answered yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tierstore.format.purge import Acknowledgement, PurgeOrder
from tierstore.modelstore.reclaim.purge.orders import Nodes

STAYS: Sequence[tuple[str, str]] = (
    (
        "entries in the logs",
        "refs/: model, number, digest of the manifest, who, when and why, of versions, aliases and "
        "removals; names of variants: numbers are never given again",
    ),
    (
        "digests of chunks",
        "index/ until segments are merged, quarantine/, heat/, indexes of nodes, and purged/, by "
        "which nodes drop: no bytes, but who has a chunk can tell that it was here",
    ),
    ("digests of manifests", "condemned/, so that none of these names comes back"),
    ("ids of packs", "moves/, gc/ and condemned/: random numbers that nothing new may have"),
    ("this receipt", "purges/, purged/, purgeparts/ and acks/"),
    (
        "copies that a tier cannot delete",
        "older versions of objects and snapshots, unfinished uploads to a bucket, .tmp~ folders "
        "until the next write, journals and replicas of Redis, swap",
    ),
    (
        "copies that the store does not know",
        "what programs hold in memory, exported files, uploads that a gateway has not published, "
        "caches without an agent, backups, tiers that were taken off the list",
    ),
)
"""What a purge leaves, and where or why."""


@dataclass(frozen=True, slots=True)
class PurgedTier:
    """What a purge did to one durable tier.

    Attributes:
        name: The tier's name.
        packs: How many packs with purged frames were deleted from it.
        bytes: Their bytes.
        left_packs: How many it has still.
        left_bytes: Their bytes.
        kept_bytes: Bytes of what was deleted that it keeps as older versions of objects.
        error: Why it could not be asked; ``None`` if it was.
    """

    name: str
    packs: int
    bytes: int
    left_packs: int
    left_bytes: int
    kept_bytes: int
    error: str | None


@dataclass(frozen=True, slots=True)
class LeftPack:
    """A pack with purged frames that is still there.

    Attributes:
        pack: Its id, in hex.
        tier: The tier that has it.
        bytes: Its bytes.
        why: Why it is there still.
    """

    pack: str
    tier: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Sharing:
    """Chunks of what was purged that stay, as somebody else needs them.

    Attributes:
        why: Who: a version, or why it stays.
        chunks: How many of them it needs.
        plain_bytes: Their bytes.
    """

    why: str
    chunks: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class NodeState:
    """What was said to a purge for one place: the caches of a node that one agent has.

    Attributes:
        node: The node's name.
        place: The name of these caches, 32 hex digits; ``None`` where nobody has spoken for the
            node yet, which is known by what it wrote, or by a reader's lease.
        acknowledged: When all that was there by then was dropped, by its own clock; ``None``: not
            yet.
        dropped: How many chunks, frames or folders were dropped, by the tier or cache.
        failed: Why a tier or cache could not be asked, by its name.
        seen: When the store last saw the node; ``None`` for one that a reader's lease alone names.
        gone: Since when it is said that the node will not come back, if it was not seen since.
        gone_by: Who said so: ``user@host``; ``None`` where ``gone`` is, or nobody knows.
        gone_reason: Why, in the words of that one; ``None`` likewise.
    """

    node: str
    place: str | None
    acknowledged: datetime | None
    dropped: Mapping[str, int]
    failed: Mapping[str, str]
    seen: datetime | None
    gone: datetime | None
    gone_by: str | None = None
    gone_reason: str | None = None

    @property
    def is_outstanding(self) -> bool:
        """Whether it has to acknowledge yet."""
        return self.acknowledged is None and self.gone is None


@dataclass(frozen=True, slots=True)
class PurgeReceipt:
    """What a purge did, and what is left; obtained from ``Store.purge`` and ``Store.purges``.

    Attributes:
        id: Its name.
        time: When the purge was asked for, in UTC.
        who: Who asked: ``user@host``.
        message: Why.
        version: The version that was purged.
        variants: Its variants, which went along.
        digests: The digests of the manifests of all these, in hex, by their references. A variant
            that was made several times has several, and all were purged.
        is_done: Whether what nothing else needs is in no durable tier any more, and no manifest.
            What nodes keep is told by ``nodes``.
        updated: When somebody last went on with it.
        chunks: How many distinct chunks it had.
        plain_bytes: Their bytes, as far as these are known.
        shared_chunks: How many of them stay, as somebody else needs them.
        shared_plain_bytes: Their bytes.
        shared: Who needs these; a chunk counts for each.
        shared_digests: Their digests in hex, rising, with those that somebody needs for a while;
            ``None`` where a list of receipts was asked for, or their record is damaged.
        tiers: What was deleted from each durable tier, and what is left.
        left: Every pack with purged chunks that is still there, with the reason.
        rewritten_bytes: Bytes that were written anew because they lay beside or on what went.
        deleted_objects: The keys of manifests, layouts, folds and reports that were deleted.
        manifests_left: Why manifests stay, by their digests in hex: another version has the same
            content, or lies on it; empty for one that waits.
        unread_packs: Packs in archives, or damaged ones, that could not be looked into.
        waits: Whom it waits for.
        nodes: All nodes of the store with their caches, those first that have not acknowledged.
        stays: What stays for good, and where.
    """

    id: str
    time: datetime
    who: str
    message: str
    version: str
    variants: Sequence[str]
    digests: Mapping[str, Sequence[str]]
    is_done: bool
    updated: datetime
    chunks: int
    plain_bytes: int
    shared_chunks: int
    shared_plain_bytes: int
    shared: Sequence[Sharing]
    shared_digests: Sequence[str] | None
    tiers: Sequence[PurgedTier]
    left: Sequence[LeftPack]
    rewritten_bytes: int
    deleted_objects: Sequence[str]
    manifests_left: Mapping[str, str]
    unread_packs: int
    waits: Sequence[str]
    nodes: Sequence[NodeState]
    stays: Sequence[tuple[str, str]] = tuple(STAYS)

    @property
    def outstanding(self) -> list[str]:
        """The nodes that have not acknowledged yet, but for those that are said to be gone."""
        return sorted({one.node for one in self.nodes if one.is_outstanding})

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left anywhere that the store knows of."""
        return self.is_done and not self.outstanding


def receipt_of(
    order: PurgeOrder,
    said: Mapping[str, Acknowledgement],
    nodes: Nodes,
    waits: str | None = None,
    shared_digests: Sequence[str] | None = None,
) -> PurgeReceipt:
    """Return the receipt of an order.

    Args:
        order: The order.
        said: What was said to it, by the place.
        nodes: The nodes of the store.
        waits: Why nobody could go on with it just now.
        shared_digests: The digests of its chunks that stay, in hex.
    """
    ref = f"{order.model}@{order.version}"
    left = [one for one in order.packs if not one.gone]
    return PurgeReceipt(
        id=order.id,
        time=_time(order.time_us),
        who=order.who,
        message=order.message,
        version=ref,
        variants=[f"{ref}+{name}" for name in order.variants],
        digests={
            f"{ref}+{name}" if name else ref: digests
            for name, digests in sorted({**order.digests, "": [order.manifest]}.items())
        },
        is_done=order.done,
        updated=_time(order.updated_us or order.time_us),
        chunks=order.chunks,
        plain_bytes=order.plain_bytes,
        shared_chunks=order.shared_chunks,
        shared_plain_bytes=order.shared_plain_bytes,
        shared=[Sharing(one.why, one.chunks, one.plain_bytes) for one in order.shared],
        shared_digests=shared_digests,
        tiers=_tiers(order),
        left=[LeftPack(one.pack, one.tier, one.bytes, one.why) for one in left],
        rewritten_bytes=order.rewritten_bytes,
        deleted_objects=order.objects,
        manifests_left=order.manifests_left,
        unread_packs=order.unread,
        waits=[*order.waits, *([waits] if waits and not order.done else [])],
        nodes=_nodes(order, said, nodes),
    )


def _tiers(order: PurgeOrder) -> list[PurgedTier]:
    found = []
    for name in sorted({*order.tiers, *(one.tier for one in order.packs), *order.down}):
        gone = [one.bytes for one in order.packs if one.tier == name and one.gone]
        left = [one.bytes for one in order.packs if one.tier == name and not one.gone]
        found.append(
            PurgedTier(
                name=name,
                packs=len(gone),
                bytes=sum(gone),
                left_packs=len(left),
                left_bytes=sum(left),
                kept_bytes=order.kept_bytes.get(name, 0),
                error=order.down.get(name),
            )
        )
    return found


def _nodes(order: PurgeOrder, said: Mapping[str, Acknowledgement], nodes: Nodes) -> list[NodeState]:
    """Return all places, and the nodes for which nobody has spoken."""
    every: dict[str, str] = nodes.places | {place: one.node for place, one in said.items()}
    rows: list[tuple[str, str | None]] = [(node, place) for place, node in every.items()]
    rows += [(node, None) for node in nodes.seen.keys() - set(every.values())]
    found = []
    for node, place in rows:
        one = said.get(place or "")
        when = None
        if one is not None and not one.failed and one.sweep == order.sweep:
            when = _time(one.time_us)
        dropped = {} if one is None else one.dropped
        failed = {} if one is None else one.failed
        seen, gone = nodes.seen.get(node), nodes.gone.get(node) or nodes.given_up.get(place or "")
        told = (gone.since, gone.who or None, gone.reason or None) if gone else (None, None, None)
        found.append(NodeState(node, place, when, dropped, failed, seen, *told))
    return sorted(found, key=lambda one: (not one.is_outstanding, one.node, one.place or ""))


def _time(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / 1e6, UTC)
