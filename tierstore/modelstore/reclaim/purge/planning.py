"""What a purge would do, by reading alone (SPEC.md 10.3)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from tierstore.errors import Damaged
from tierstore.format.purge import PurgeOrder
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import fold_of
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.reclaim.holdings import read_holdings
from tierstore.modelstore.reclaim.layouts import Layouts
from tierstore.modelstore.reclaim.purge.content import chunks_in, find, layout_of
from tierstore.modelstore.reclaim.purge.receipt import Sharing
from tierstore.modelstore.reclaim.roots import Roots

_log = logging.getLogger("tierstore.purge")


@dataclass(frozen=True, slots=True)
class PlannedTier:
    """Packs of one durable tier that hold chunks of what would be purged.

    Attributes:
        name: The tier's name.
        packs: How many. What others need of them would be copied first.
        bytes: Their bytes.
    """

    name: str
    packs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PurgePlan:
    """What a purge would do; obtained from ``Store.purges.plan``.

    Attributes:
        digests: The digests of the manifests that would go, in hex, by the references of versions
            and variants.
        refused: Why it would be refused; ``None`` if it would not.
        chunks: How many distinct chunks these have.
        plain_bytes: Their bytes.
        shared_chunks: How many of them would stay, as somebody else needs them.
        shared_plain_bytes: Their bytes.
        shared: Who needs these; a chunk counts for each.
        tiers: The packs that their layouts name. A purge looks into all others as well.
        down: Why tiers could not be asked, by name.
        nodes: The nodes that would have to acknowledge it.
    """

    digests: Mapping[str, Sequence[str]]
    refused: str | None
    chunks: int
    plain_bytes: int
    shared_chunks: int
    shared_plain_bytes: int
    shared: Sequence[Sharing]
    tiers: Sequence[PlannedTier]
    down: Mapping[str, str]
    nodes: Sequence[str]


def plan_of(
    home: Home, orders: Sequence[PurgeOrder], refused: str | None, nodes: Sequence[str]
) -> PurgePlan:
    """Return what orders would do that were not given.

    Args:
        home: The store's home.
        orders: The orders.
        refused: Why the versions cannot be removed now.
        nodes: The nodes that would have to acknowledge it.

    Raises:
        Damaged, NotFound, UnsupportedFormat: Something cannot be read that may need chunks.
        BackendError: Home cannot be asked.
    """
    found = find(home, orders)
    digests: dict[str, list[str]] = {}
    for order in orders:
        ref = f"{order.model}@{order.version}"
        digests[ref] = [order.manifest]
        digests |= {f"{ref}+{name}": own for name, own in sorted(found[order.id][0].items())}
    manifests = set[bytes]().union(*(every for _, every in found.values()))
    chunks = chunks_in(home, manifests, frozenset())[0]
    sizes, packs = _laid_out(home, manifests)

    def nbytes(digests: Set[bytes]) -> int:
        return sum(sizes.get(digest, 0) for digest in digests)

    shared = _shared(home, {(one.model, one.version) for one in orders}, chunks)
    every = set[bytes]().union(*shared.values())
    holdings = read_holdings(home.packs)
    tiers = [
        PlannedTier(name, len(own), sum(held[pack] for pack in own))
        for name, held in holdings.by_tier.items()
        if (own := packs & held.keys())
    ]
    by = [Sharing(why, len(own), nbytes(own)) for why, own in shared.items()]
    return PurgePlan(
        digests=digests,
        refused=refused,
        chunks=len(chunks),
        plain_bytes=nbytes(chunks),
        shared_chunks=len(every),
        shared_plain_bytes=nbytes(every),
        shared=sorted(by, key=lambda one: (-one.plain_bytes, one.why)),
        tiers=tiers,
        down=dict(holdings.down),
        nodes=list(nodes),
    )


def _laid_out(home: Home, manifests: Set[bytes]) -> tuple[dict[bytes, int], set[bytes]]:
    """Return the plain bytes of chunks, and the packs, by the layouts of manifests."""
    sizes: dict[bytes, int] = {}
    packs = set[bytes]()
    for digest in map(Digest, sorted(manifests)):
        table = layout_of(home, digest)
        if table is None:
            continue
        packs |= {bytes(pack) for pack in table.pack_ids}
        sizes |= {place.digest: place.plain_bytes for place in table}
    return sizes, packs


def _shared(home: Home, going: Set[tuple[str, int]], chunks: Set[bytes]) -> dict[str, set[bytes]]:
    """Return which of these chunks others need than what goes, by who does."""
    cache = ReadCache(None)
    layouts = Layouts(home, cache)
    found: dict[str, set[bytes]] = {}
    for root in Roots(home, cache).find(time.time(), None).roots:
        if (root.model, root.number) in going:
            continue
        digest: Digest | None = root.digest
        while digest is not None:
            try:
                if own := chunks & set(layouts.chunks(digest)):
                    found.setdefault(root.why, set()).update(own)
                digest = fold_of(home, digest) or layouts.base_of(digest)
            except Damaged as error:
                if root.is_firm:
                    raise
                _log.warning("%s needs nothing, as it is lost: %s", root, error)
                break
    return found
