"""The content of every tier of a store, asked of the tiers themselves."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from tierstore import config
from tierstore.errors import TierstoreError
from tierstore.format.keys import pack_key
from tierstore.format.tiers import DURABLE, HOME_NAME, TierSpec
from tierstore.modelstore.placing.packgraph import PackGraph
from tierstore.modelstore.placing.snapshot import pinned_packs
from tierstore.modelstore.store import Store
from tierstore.shown import counted, size
from tierstore.tiers.durable.census import packs_of
from tierstore.wiring.backends import Place, open_tier
from tierstore.wiring.below import Disk, Server, ask_servers, disk_of
from tierstore.wiring.tiers import placed


@dataclass(frozen=True, slots=True)
class TierReport:
    """The content of one tier; a field is ``None`` where that is not known.

    Attributes:
        spec: The tier with the settings of this node.
        enabled: Whether this node uses it.
        used_bytes: Bytes that it holds of this store; in Memcached, of all its users.
        objects: Number of packs or chunks.
        pinned_bytes: Bytes that may not be evicted or moved.
        quota_bytes: Quota; for a cache, the limits of all servers together.
        disk: File system of a tier in a directory of this node.
        servers: Servers of a cache.
        error: Why the tier could not be asked.
    """

    spec: TierSpec
    enabled: bool = True
    used_bytes: int | None = None
    objects: int | None = None
    pinned_bytes: int | None = None
    quota_bytes: int | None = None
    disk: Disk | None = None
    servers: tuple[Server, ...] = ()
    error: str | None = None

    def __repr__(self) -> str:
        used, quota = (
            "?" if count is None else size(count) for count in (self.used_bytes, self.quota_bytes)
        )
        said = f"{used} of {quota}" if self.quota_bytes is not None else used
        noun = "pack" if self.spec.role in DURABLE else "chunk"
        said += "" if self.objects is None else f" in {counted(self.objects, noun)}"
        return f"<TierReport {self.spec.name}: {self.error or said}>"


def survey(store: Store) -> list[TierReport]:
    """Ask every tier for its content; home's own packs come last.

    Durable tiers and Redis are listed object by object: the larger they are, the longer it takes.
    """
    store._parts.home.packs.refresh()
    pinned = {pack_key(pack) for pack in pinned_packs(store.pins, PackGraph(store._parts.home))}
    node, own = config.node_config(), store._parts.home.config.store_id
    reports = []
    for spec in store.tiers():
        place = placed(spec, node, own)
        if not place.node.enabled:
            reports.append(TierReport(place.spec, enabled=False, quota_bytes=place.spec.size))
            continue
        try:
            reports.append(_held(store, place, pinned))
        except TierstoreError as error:
            reports.append(TierReport(place.spec, quota_bytes=place.spec.size, error=str(error)))
    return [*reports, _durable(store, home_spec(store), pinned)]


def home_spec(store: Store) -> TierSpec:
    """Return home as a tier like the others, which hold packs alone."""
    return TierSpec(name=HOME_NAME, role="cold", url=store.url)


def _held(store: Store, place: Place, pinned: Collection[str]) -> TierReport:
    if place.spec.role in DURABLE:
        return _durable(store, place.spec, pinned)
    if place.spec.role == "hot":
        return _hot(store, place.spec)
    return _shared(place)


def _durable(store: Store, spec: TierSpec, pinned: Collection[str]) -> TierReport:
    (tier,) = (tier for tier in store._parts.home.packs.tiers if tier.name == spec.name)
    packs = packs_of(tier)
    stay = sum(size for key, size in packs.items() if key in pinned) if spec.role == "warm" else 0
    return TierReport(
        spec,
        used_bytes=sum(packs.values()),
        objects=len(packs),
        pinned_bytes=stay,
        quota_bytes=spec.size,
        disk=disk_of(spec),
    )


def _hot(store: Store, spec: TierSpec) -> TierReport:
    local = store._parts.hot.local
    if local is None:  # a tier that drains is not used
        return TierReport(spec, quota_bytes=spec.size)
    usage = local.usage()
    error = f"{local.root} cannot be read or written" if local.stats.breaker_open else None
    return TierReport(
        spec,
        used_bytes=usage.used_bytes,
        objects=usage.objects,
        pinned_bytes=usage.pinned_bytes,
        quota_bytes=usage.quota_bytes,
        disk=disk_of(spec),
        error=error,
    )


def _shared(place: Place) -> TierReport:
    servers = ask_servers(place)
    limits = [server.limit_bytes or 0 for server in servers]
    report = TierReport(
        place.spec,
        servers=servers,
        pinned_bytes=0,
        quota_bytes=sum(limits) if all(limits) else None,
    )
    with open_tier(place) as store:
        if store.capabilities.listable:
            sizes = [info.size for info in store.list()]
            return replace(report, used_bytes=sum(sizes), objects=len(sizes))
    used = [server.used_bytes for server in servers if server.used_bytes is not None]
    return replace(report, used_bytes=sum(used))
