"""The health of a store's tiers on this node: each is tried, and what is below it examined."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tierstore import config
from tierstore.errors import NotFound, OtherHome, TierstoreError
from tierstore.format.tiers import DURABLE, TierSpec
from tierstore.modelstore.care.framesizes import frame_sizes
from tierstore.modelstore.home.probe import prove
from tierstore.modelstore.store import Store
from tierstore.shown import counted, size
from tierstore.tiers.activity import activities
from tierstore.tiers.durable.marker import Keeper
from tierstore.tiers.durable.tier import DurableTier
from tierstore.wiring.backends import Place, hot_directory, open_tier
from tierstore.wiring.below import Disk, Server, ask_servers, disk_of
from tierstore.wiring.tiers import activity_folder, placed

_LARGEST_FRAME_BYTES = 17 << 20
"""Bytes of the largest frame: a chunk of 16 MiB and the frame's head."""

_DAMAGE_S = 24 * 3600.0

KEEPS_VERSIONS = (
    "its bucket keeps older versions, so what is deleted there frees no space: switch that off, or "
    "let a lifecycle rule end noncurrent versions"
)


@dataclass(frozen=True, slots=True)
class TierHealth:
    """The health of one tier.

    Attributes:
        spec: The tier with the settings of this node.
        enabled: Whether this node uses it.
        error: Why it cannot be used; ``None`` if one object could be written and read back.
        disk: File system of a tier in a directory of this node.
        servers: Servers of a Redis or Memcached.
        problems: What should be mended, one sentence each.
    """

    spec: TierSpec
    enabled: bool = True
    error: str | None = None
    disk: Disk | None = None
    servers: tuple[Server, ...] = ()
    problems: tuple[str, ...] = ()


def examine_tiers(store: Store) -> list[TierHealth]:
    """Try every tier of a store, and examine its disk or its servers."""
    node, own = config.node_config(), store._parts.home.config.store_id
    damaged = _damaged(store)
    found = []
    for spec in store.tiers():
        place = placed(spec, node, own)
        if not place.node.enabled:
            found.append(TierHealth(place.spec, enabled=False))
            continue
        try:
            health = _examined(store, place)
            problems = (*health.problems, *_of_damage(place.spec, damaged[place.spec.name]))
            found.append(replace(health, problems=problems))
        except TierstoreError as error:
            found.append(TierHealth(place.spec, error=str(error)))
    return found


def _examined(store: Store, place: Place) -> TierHealth:
    spec = place.spec
    if spec.role in DURABLE:
        (tier,) = (tier for tier in store._parts.home.packs.tiers if tier.name == spec.name)
        keeper = tier.verify()
        kept = (KEEPS_VERSIONS,) if prove(tier.blobs) else ()
        disk = disk_of(spec)
        found = (*nearly_full(disk), *kept, *_of_home(store, tier, keeper))
        return TierHealth(spec, disk=disk, problems=found)
    if spec.role == "hot":
        disk = disk_of(spec)
        if disk is None:
            raise NotFound(f"there is no directory {hot_directory(spec)}")
        with open_tier(place) as blobs:
            prove(blobs)
        used = (
            store._parts.hot.local.usage().used_bytes if store._parts.hot.local is not None else 0
        )
        return TierHealth(spec, disk=disk, problems=_hot_problems(spec, disk, used))
    with open_tier(place) as blobs:
        prove(blobs)
        limit = blobs.capabilities.max_blob_bytes
    servers = ask_servers(place)
    problems = [f"{server.node}: {text}" for server in servers for text in server.findings]
    if limit is not None and limit < _LARGEST_FRAME_BYTES:
        problems += _above(store, limit)
    return TierHealth(spec, servers=servers, problems=tuple(problems))


def _of_home(store: Store, tier: DurableTier, keeper: Keeper | None) -> tuple[str, ...]:
    """Return a problem where another home of the store deletes in a tier."""
    if keeper is not None:
        try:
            store._parts.home.identity.check(tier, keeper)
        except OtherHome as error:
            return (str(error),)
    return ()


def _damaged(store: Store) -> Counter[str]:
    """Return how much the processes of this node found damaged in each tier in the last day."""
    folder = activity_folder(store._parts.settings, store._parts.home.config.store_id)
    found: Counter[str] = Counter()
    for process in activities(folder, time.time() - _DAMAGE_S):
        for name, counts in process.tiers.items():
            found[name] += counts.damaged
    return found


def _of_damage(spec: TierSpec, count: int) -> tuple[str, ...]:
    if not count:
        return ()
    what = counted(count, "damaged chunk" if spec.role == "hot" else "damaged object")
    advice = (
        "its disk changes what it holds; see dmesg and smartctl, and run 'tierstore check --hot'"
        if spec.role == "hot"
        else "'tierstore check --read-data' looks at all of it"
    )
    return (f"this node found {what} in it in the last day: {advice}",)


def nearly_full(disk: Disk | None) -> tuple[str, ...]:
    """Return a problem where a file system has less than a twentieth of its space left."""
    if disk is not None and disk.total_bytes and disk.free_bytes * 20 < disk.total_bytes:
        return (
            f"its file system has only {size(disk.free_bytes)} of {size(disk.total_bytes)} left",
        )
    return ()


def _hot_problems(spec: TierSpec, disk: Disk, used: int) -> tuple[str, ...]:
    problems = []
    if disk.network:
        problems.append(
            f"it lies on {disk.kind}, which another machine serves: a hot tier needs a disk of "
            "this node; give it one with 'url' under [hot] in tierstore.toml"
        )
    room = disk.free_bytes + used
    if spec.size is not None and spec.size > room:
        problems.append(
            f"its quota of {spec.size >> 20} MiB is more than the {room >> 20} MiB that its file "
            "system has for it: set 'size' under [hot] in tierstore.toml"
        )
    return tuple(problems)


def _above(store: Store, limit: int) -> Sequence[str]:
    """Return a problem if frames of the store are too large for a cache."""
    sizes = frame_sizes(store._parts.home)
    above = [size for size in sizes if size > limit]
    if not above:
        return []
    return [
        f"{len(above)} of {len(sizes)} frames ({sum(above) >> 20} MiB) are larger than the "
        f"{limit} bytes that its servers take, and are left to other tiers: start memcached with "
        "-I 8m or more"
    ]
