"""Why every byte of every durable tier is there: each has exactly one reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from tierstore.blobs.base import BlobInfo
from tierstore.errors import BackendError, Damaged, NotFound
from tierstore.format import keys
from tierstore.format.tiers import HEAT, HOME_NAME, MOVERS, PINS, TIERS, TierSpec
from tierstore.modelstore.reclaim.collector import Collector
from tierstore.modelstore.reclaim.mark import Mark, Marker
from tierstore.modelstore.reclaim.report import Report, State
from tierstore.modelstore.reclaim.waste import find_waste, needed_frames
from tierstore.placement.cost import DAY_S, GB, MONTH_S, Prices
from tierstore.tiers.durable.marker import MARKER
from tierstore.tiers.durable.tier import DurableTier

_log = logging.getLogger("tierstore.gc")

ShareKind = State | Literal["waste", "metadata", "new", "foreign"]
"""What bytes are: of packs by what becomes of them, and

* ``waste``: in packs that stay, but nothing needs these frames;
* ``metadata``: of the store or the tier, by kind;
* ``new``: packs that came since the store was looked at;
* ``foreign``: not of tierstore.
"""

_METADATA = {
    keys.CONFIG: "settings of the store",
    keys.IDENTITY: "what tells this home from a copy",
    keys.COLLECTED: "note of the last collection",
    keys.REFS: "logs of versions, names and removals",
    keys.VERSIONS: "manifests",
    keys.LAYOUTS: "layouts",
    keys.FOLDS: "folds",
    keys.MOVES: "moves",
    keys.INDEX: "index of chunks",
    keys.LEASES: "leases of readers and writers",
    keys.GC: "condemned lists",
    keys.CONDEMNED: "condemned lists",
    keys.SWEEPS: "leases of movers and collectors",
    MOVERS: "leases of movers and collectors",
    keys.RESERVE: "reserve, to delete when the disk is full",
    keys.GROWTH: "notes of what agents rewrote",
    keys.SCRUBS: "leases of scrubs",
    keys.PROBES: "probes",
    keys.REPORTS: "reports of rollouts",
    keys.QUARANTINE: "marks of damaged packs",
    keys.RETENTION: "retention",
    keys.PURGES: "receipts of purges",
    keys.PURGED: "receipts of purges",
    keys.PURGE_PARTS: "receipts of purges",
    keys.ACKS: "receipts of purges",
    keys.NODES: "notes of nodes",
    TIERS: "list of tiers",
    PINS: "pins",
    HEAT: "heat",
}
_IN_A_TIER = {MARKER: "marker of the tier"}

_MIN_DAYS = {
    "STANDARD_IA": 30, "ONEZONE_IA": 30, "GLACIER_IR": 90, "GLACIER": 90, "DEEP_ARCHIVE": 180,
}  # fmt: skip
"""Days that a storage class of S3 charges for what is deleted sooner, where a tier has no price.

Source: Amazon S3 User Guide, "Understanding and managing Amazon S3 storage classes".
"""

_ORDER: Sequence[ShareKind] = (
    "live", "chain", "base", "leased", "window", "waiting", "writing", "down", "condemned",
    "deleted", "new", "waste", "metadata", "foreign",
)  # fmt: skip
_TOLD = 0.01
"""The share of a pack from which on its waste is told apart; it was looked into then."""

_STAYS = frozenset({"live", "chain", "base", "leased"})


@dataclass(slots=True)
class Share:
    """Bytes of one tier that have one reason.

    Attributes:
        tier: The tier's name.
        kind: What they are.
        why: The reason in words: the version, the reader, the time, the kind of object.
        objects: How many objects these are; 0 for the waste in packs.
        bytes: Their bytes.
        unpaid_gb_months: What is still charged for if they are deleted now, by the tier's storage
            class or its price ``min_days``: GB (2^30 bytes) times months of 30 days. 0 for what
            stays.
        fee: The same in the currency of the tier's prices; ``None`` without ``gb_month``.
    """

    tier: str
    kind: ShareKind
    why: str
    objects: int = 0
    bytes: int = 0
    unpaid_gb_months: Decimal = Decimal(0)
    fee: Decimal | None = None


@dataclass(slots=True)
class Explanation:
    """Every byte of every durable tier, by tier and reason.

    Attributes:
        shares: The bytes, the fastest tier first, by reason; those of a tier add up to what it
            holds.
        down: Why tiers could not be asked, by name.
        report: What a collection would do now.
    """

    shares: list[Share]
    down: Mapping[str, str]
    report: Report

    def of(self, tier: str) -> list[Share]:
        """Return the shares of one tier."""
        return [one for one in self.shares if one.tier == tier]


@dataclass(slots=True)
class _Reasons:
    """What is known of the packs: the state and reason of each, and its waste in bytes."""

    packs: dict[bytes, tuple[State, str]]
    waste: Mapping[bytes, int]
    found: dict[tuple[str, str, str], Share] = field(default_factory=dict)

    def add(self, tier: str, kind: ShareKind, why: str, objects: int, size: int) -> Share:
        share = self.found.setdefault((tier, kind, why), Share(tier, kind, why))
        share.objects += objects
        share.bytes += size
        return share


def explain(
    collector: Collector, tiers: Sequence[DurableTier], grace_s: float, window_s: float | None
) -> Explanation:
    """Say why every byte of every durable tier is there.

    Costs a whole mark, one LIST of every tier, and the footers of packs with waste.
    """
    report = collector.run(dry_run=True, grace_s=grace_s, window_s=window_s)
    assert collector.mark is not None  # ``run`` has made it
    packs = {one.pack: (one.state, one.why) for one in report.packs}
    reasons = _Reasons(packs, _waste(collector.mark, collector.marker))
    down = dict(report.down)
    for tier in tiers:
        if tier.name in down:
            continue
        try:
            tier.verify()
            for info in tier.blobs.list():
                _account(tier, info, reasons)
        except BackendError as error:
            _log.warning(
                "tier %s cannot be listed: %s", tier.name, error, extra={"tier": tier.name}
            )
            down[tier.name] = str(error)
    order = {tier.name: at for at, tier in enumerate(tiers)}
    shares = sorted(
        reasons.found.values(),
        key=lambda one: (
            order[one.tier],
            _ORDER.index(one.kind),
            0 if one.kind == "metadata" else -one.bytes,
            one.why,
        ),
    )
    return Explanation(shares, down, report)


def _account(tier: DurableTier, info: BlobInfo, reasons: _Reasons) -> None:
    pack = keys.pack_of(info.key) if info.key.startswith(keys.PACKS) else None
    if pack is None or keys.pack_key(pack) != info.key:
        what = _kind_of(tier, info.key)
        kind: ShareKind = "metadata" if what else "foreign"
        reasons.add(tier.name, kind, what or "not of tierstore", 1, info.size)
        return
    if pack not in reasons.packs:
        reasons.add(tier.name, "new", "it came since the store was looked at", 1, info.size)
        return
    state, why = reasons.packs[pack]
    waste = min(reasons.waste.get(pack, 0), info.size) if state in _STAYS else 0
    share = reasons.add(tier.name, state, why, 1, info.size - waste)
    if waste:
        reasons.add(tier.name, "waste", "in packs that stay, nothing needs it", 0, waste)
    if state not in _STAYS:
        _add_unpaid(share, tier.spec, info)


def _kind_of(tier: DurableTier, key: str) -> str | None:
    known = _METADATA if tier.name == HOME_NAME else _IN_A_TIER
    return known.get(key) or known.get(key.partition("/")[0] + "/")


def _add_unpaid(share: Share, spec: TierSpec, info: BlobInfo) -> None:
    """Add what the storage still charges for a pack that is deleted now."""
    prices = Prices.of(spec.prices)
    if not prices.min_days:
        days = _MIN_DAYS.get(spec.options.get("storage_class", ""), 0)
        prices = replace(prices, min_days=Decimal(days))
    age_s = max(0.0, time.time() - info.mtime)
    left_s = max(Decimal(0), prices.min_days * DAY_S - Decimal(age_s))
    share.unpaid_gb_months += info.size * left_s / MONTH_S / GB
    if prices.gb_month and left_s:
        share.fee = prices.unpaid(info.size, age_s) + (share.fee or Decimal(0))


def _waste(mark: Mark, marker: Marker) -> dict[bytes, int]:
    """Return the bytes that nothing needs, by the packs that stay and can be read.

    Packs that readers hold are taken to have none.
    """
    packs = [pack for pack in mark.live.keys() - mark.held if mark.holdings.is_readable(pack)]
    try:
        found = find_waste(mark, marker.ways, needed_frames(mark, packs))
    except (BackendError, Damaged, NotFound) as error:
        _log.warning("%s; what of packs nothing needs is not known", error)
        return {}
    return {one.pack: one.waste_bytes for one in found if one.share > _TOLD}
