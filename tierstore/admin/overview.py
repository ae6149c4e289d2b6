"""The activity of tiers on this node, and the packs that all nodes read most."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from tierstore.admin.survey import TierReport, survey
from tierstore.errors import TierstoreError
from tierstore.format.keys import pack_key
from tierstore.format.tiers import HOME_NAME, Role
from tierstore.modelstore.store import Store
from tierstore.shown import counted, size
from tierstore.tiers.activity import COUNTERS, EVERY_S, ProcessActivity, TierCounts, activities
from tierstore.wiring.tiers import activity_folder

_SURVEY_S = 30.0
_WINDOW_S = 3600.0
"""Seconds for which the reports of a process are counted."""


@dataclass(frozen=True, slots=True)
class TierActivity:
    """The activity of this node's processes in one tier.

    Attributes:
        name: Name of the tier.
        role: Role of the tier; ``home`` for the packs in home.
        counts: Sums of the counters of all processes.
        bytes_per_s: Bytes per second that are read from it now.
    """

    name: str
    role: Role | Literal["home"]
    counts: TierCounts
    bytes_per_s: float

    @property
    def hit_ratio(self) -> float | None:
        """Share of requests that were hits, from 0 to 1; ``None`` without any request."""
        asked = self.counts.hits + self.counts.misses
        return self.counts.hits / asked if asked else None


@dataclass(frozen=True, slots=True)
class PackHeat:
    """A pack, and how much of it is read.

    Attributes:
        pack: Id of the pack.
        heat_bytes: Bytes of it that all nodes read, where reads count half after four hours.
        size_bytes: Size; ``None`` if no tier has it.
        tiers: Names of the durable tiers that have it.
        versions: Versions that need it, as ``model@number``, the newest of each model first.
    """

    pack: bytes
    heat_bytes: float
    size_bytes: int | None
    tiers: tuple[str, ...]
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """The activity of this node at one time.

    Attributes:
        alive: Number of processes that run now.
        processes: Number of processes that reported within the window.
        tiers: Tiers in the order in which they are read.
    """

    alive: int
    processes: int
    tiers: tuple[TierActivity, ...]

    @property
    def served_bytes(self) -> int:
        """Bytes of the hits in all tiers."""
        return sum(tier.counts.hit_bytes for tier in self.tiers)


def overview(store: Store) -> Overview:
    """Sum up the activity of this node's processes that read a store; reads local files only."""
    now = time.time()
    folder = activity_folder(store._parts.settings, store._parts.home.config.store_id)
    seen = list(activities(folder, now - _WINDOW_S))
    roles: dict[str, Role | Literal["home"]] = {}
    if store._parts.hot.local is not None:  # it may be one that only this node's file knows
        roles[store._parts.hot.local.name] = "hot"
    roles |= {spec.name: spec.role for spec in store.tiers()}
    roles[HOME_NAME] = "home"
    tiers = [_summed(name, role, seen, now) for name, role in roles.items()]
    return Overview(sum(one.alive(now) for one in seen), len(seen), tuple(tiers))


def _summed(
    name: str, role: Role | Literal["home"], seen: Sequence[ProcessActivity], now: float
) -> TierActivity:
    total, rate = TierCounts(), 0.0
    for process in seen:
        counts = process.tiers.get(name)
        if counts is None:
            continue
        for field in COUNTERS:
            setattr(total, field, getattr(total, field) + getattr(counts, field))
        if not process.ended and counts.recent_s and now - process.updated < 2 * EVERY_S:
            rate += counts.recent_bytes / counts.recent_s
        total.breaker_open |= counts.breaker_open and process.alive(now)
    return TierActivity(name, role, total, rate)


class HottestPacks:
    """Finds the packs that are read most and the versions that need them. For one thread.

    Args:
        store: Store of the packs.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packs: dict[str, frozenset[bytes]] = {}

    def top(self, count: int) -> list[PackHeat]:
        """Return the ``count`` hottest packs; the layout of every version is read once."""
        heat = self._store.heat().packs()
        hottest = heapq.nsmallest(count, heat.items(), key=lambda item: (-item[1], item[0]))
        users: dict[bytes, list[str]] = {pack: [] for pack, _ in hottest}
        if users:
            self._note_users(users)
        return [self._pack_heat(pack, value, users[pack]) for pack, value in hottest]

    def _note_users(self, users: dict[bytes, list[str]]) -> None:
        for model in self._store.models():
            for version in self._store.versions(model):
                packs = self._packs.get(version.digest.hex)
                if packs is None:
                    try:
                        packs = frozenset(self._store.placement.packs_of(version.digest))
                    except TierstoreError:
                        packs = frozenset()
                    self._packs[version.digest.hex] = packs
                for pack in packs & users.keys():
                    users[pack].append(str(version))

    def _pack_heat(self, pack: bytes, heat: float, versions: Sequence[str]) -> PackHeat:
        size, tiers = None, []
        for tier in self._store._parts.home.packs.tiers:
            try:
                size = tier.blobs.info(pack_key(pack)).size
                tiers.append(tier.name)
            except TierstoreError:
                continue
        return PackHeat(pack, heat, size, tuple(tiers), tuple(versions))


@dataclass(frozen=True, slots=True)
class Top:
    """The reads of a store at one time, by tier and by pack.

    Attributes:
        time: Time of the look, in UTC.
        overview: Activity of this node's processes in the last hour.
        reports: Content of the tiers, by name.
        hottest: Packs that all nodes together read most.
    """

    time: datetime
    overview: Overview
    reports: Mapping[str, TierReport]
    hottest: tuple[PackHeat, ...]

    def __repr__(self) -> str:
        served = ", ".join(
            f"{tier.name} {size(tier.counts.hit_bytes)}" for tier in self.overview.tiers
        )
        packs = counted(len(self.hottest), "pack")
        return f"<Top at {self.time:%Y-%m-%d %H:%M} UTC: read from {served}; {packs} read most>"


class Watch:
    """Looks at a store again and again, for one thread; costly questions are asked every 30 s.

    Args:
        store: Store to look at.
        count: Number of packs to return.
    """

    def __init__(self, store: Store, count: int) -> None:
        self._store, self._count = store, count
        self._source = HottestPacks(store)
        self._asked = -_SURVEY_S
        self._reports: dict[str, TierReport] = {}
        self._hottest: tuple[PackHeat, ...] = ()

    def look(self) -> Top:
        """Return what is seen now."""
        if time.monotonic() - self._asked >= _SURVEY_S:
            self._reports = {one.spec.name: one for one in survey(self._store)}
            self._hottest = tuple(self._source.top(self._count))
            self._asked = time.monotonic()
        return Top(datetime.now(UTC), overview(self._store), self._reports, self._hottest)
