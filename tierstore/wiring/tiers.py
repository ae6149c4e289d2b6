"""The tiers of a store on this node: opened when needed, with guards and counters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from tierstore.blobs.base import BlobStore
from tierstore.config import NodeConfig
from tierstore.errors import ConfigError, NotFound, Unreachable
from tierstore.format.storeconfig import StoreConfig
from tierstore.format.tiers import DURABLE, TierList, TierSpec
from tierstore.modelstore.home.tierlist import TierLog, check_tier
from tierstore.modelstore.places import HOME, StorePlace, first_overlap
from tierstore.modelstore.settings import Settings
from tierstore.tiers.durable.marker import verify
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier
from tierstore.tiers.guard.deadline import DeadlineStore, within
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.stats import TierStats
from tierstore.wiring.backends import (
    OptionParsers,
    Place,
    counts_heat,
    hot_directory,
    open_archive,
    open_heat,
    open_tier,
    read_options,
)

if TYPE_CHECKING:  # what opens a kind of tier is imported where one is opened
    from tierstore.tiers.base import HeatSink
    from tierstore.tiers.heat.recorder import HeatLedger, HeatRecorder
    from tierstore.tiers.node.local import LocalHot
    from tierstore.wiring.news import RedisNews

_log = logging.getLogger("tierstore.wiring")
_LONGEST_WAIT_MS = 30_000
_TELLING = {"prefix": "tier:", "endpoint": ""}
"""Options that tell places at one URL apart, with their defaults."""


def _verify(text: str) -> str:
    from tierstore.tiers.node.local import Verify

    if text not in get_args(Verify):
        raise ConfigError(f"{text!r} must be boot, first or always")
    return text


def _policy(text: str) -> str:
    from tierstore.placement import policies

    policies.make(text, 0)
    return text


def _group(text: str) -> int:
    try:
        import grp

        return int(text) if text.isascii() and text.isdigit() else grp.getgrnam(text).gr_gid
    except (ImportError, KeyError):
        raise ConfigError(f"{text!r} is no group of this machine") from None


_HOT_OPTIONS: OptionParsers = {"policy": _policy, "verify": _verify, "group": _group}


class Tiers:
    """The tiers of one open store, from its list and this node's file."""

    def __init__(
        self, home_blobs: BlobStore, own: StoreConfig, node: NodeConfig, current: TierList | None
    ) -> None:
        self._home_blobs, self._store_id, self._node = home_blobs, own.store_id, node
        self._current = current
        self._made: dict[str, DurableTier] = {}
        for name in node.tiers.keys() - {spec.name for spec in self._specs()}:
            _log.warning("this node's file names a tier %r that the store does not have", name)

    def _specs(self) -> Sequence[TierSpec]:
        return self._current.tiers if self._current else ()

    def _places(self) -> list[Place]:
        return [placed(spec, self._node, self._store_id) for spec in self._specs()]

    def store_places(self) -> list[StorePlace]:
        """Return where this node has its tiers."""
        own = self._own_hot()
        return [store_place(place.spec) for place in [*self._places(), *([own] if own else [])]]

    def durable(self) -> list[DurableTier]:
        """Return the durable tiers, home's own packs last."""
        places = [place for place in self._places() if place.spec.role in DURABLE]
        # a read may wait for every one of them, twice its timeout each
        longest = max(1, _LONGEST_WAIT_MS // 2 // (len(places) + 1))
        found = []
        for place in places:
            spec = msgspec.structs.replace(
                place.spec, timeout_ms=min(place.spec.timeout_ms, longest)
            )
            made = self._made.get(spec.name)
            if made is None or made.spec != spec:
                stats = TierStats()
                here = Place(spec, place.node, self._store_id)
                made = self._made[spec.name] = DurableTier(
                    spec, _stacked(here, stats), stats, self._store_id, open_archive(here)
                )
            found.append(made)
        return [*found, home_tier(self._home_blobs)]

    def reload(self) -> list[DurableTier] | None:
        """Return the durable tiers if the list has changed since, else ``None``."""
        current = TierLog(self._home_blobs).current()
        if current is None or (self._current and current.seq == self._current.seq):
            return None
        self._current = current
        return self.durable()

    def heat(self, settings: Settings) -> HeatRecorder | None:
        """Make the recorder of this node's reads, in a Redis or home; none without tiers."""
        ledger: HeatLedger | None = None
        if (place := self._redis()) is not None:
            from tierstore.tiers.heat.recorder import SumsLedger

            try:
                ledger = SumsLedger(open_heat(place))
            except ConfigError as error:  # as for its chunks: it is not used
                _log.warning("reads are not counted: %s", error)
        elif self._specs():
            from tierstore.tiers.heat.home import HomeLedger

            lock = settings.cache_dir / self._store_id / "heat.lock"
            ledger = HomeLedger(self._home_blobs, settings.node, lock)
        if ledger is None:
            return None
        from tierstore.tiers.heat.recorder import HeatRecorder

        return HeatRecorder(ledger)

    def news(self) -> RedisNews | None:
        """Make the channel by which nodes tell each other of changes; none without a Redis."""
        place = self._redis()
        if place is None:
            return None
        from tierstore.wiring.news import RedisNews

        return RedisNews(place)

    def _redis(self) -> Place | None:
        """Return the first Redis that nodes share."""
        return next((place for place in self._used() if counts_heat(place.spec)), None)

    def _used(self) -> list[Place]:
        return [p for p in self._places() if p.node.enabled and p.spec.state == "active"]

    def hot(self, settings: Settings, heat: HeatSink | None) -> HotTiers:
        """Return the hot tiers of this node; one that cannot be opened is no error.

        A tier that is being drained is left out, since nothing in it is the only copy.
        """
        used = self._used()
        shared = []
        for place in used:
            if place.spec.role == "shared":
                from tierstore.tiers.hot.shared import SharedHot

                stats = TierStats()
                shared.append(SharedHot(place.spec, _stacked(place, stats), stats))
        budget = min(64 << 20, settings.memory_limit_bytes // 8)
        return HotTiers(self._local(used), shared, heat=heat, budget_bytes=budget)

    def _local(self, used: Sequence[Place]) -> LocalHot | None:
        place = next((place for place in used if place.spec.role == "hot"), self._own_hot())
        if place is None:
            return None
        if place.spec.size is None:
            _log.warning("%s; it is not used", _no_size(place.spec))
            return None
        home = StorePlace(HOME, self._home_blobs.url)
        if found := first_overlap(store_place(place.spec), [home]):
            _log.warning("tier %r: %s; it is not used", place.spec.name, found)
            return None
        return open_hot(place)

    def _own_hot(self) -> Place | None:
        """Return the hot tier that only this node's file names."""
        own = self._node.hot
        if own is None or own.url is None or any(s.role == "hot" for s in self._specs()):
            return None
        spec = TierSpec(name="hot", role="hot", url=own.url)
        return placed(spec, self._node, self._store_id) if own.enabled else None


def counters(packs: DurableTiers, hot: HotTiers) -> dict[str, TierStats]:
    """Return the counters of a process's tiers by name, in the order in which they are read."""
    found = {} if hot.local is None else {hot.local.name: hot.local.stats}
    found |= {tier.name: tier.stats for tier in hot.shared}
    return found | {tier.name: tier.stats for tier in packs.tiers}


def activity_folder(settings: Settings, store_id: str) -> Path:
    """Return the folder in which this node's processes report their reads of a store."""
    return settings.cache_dir / store_id / "activity"


def store_place(spec: TierSpec) -> StorePlace:
    """Return a tier, with the settings of this node, as a place that nothing may overlap with."""
    options = [spec.options.get(name, default) for name, default in _TELLING.items()]
    return StorePlace(f"tier {spec.name!r}", spec.url, tuple(options))


def placed(spec: TierSpec, node: NodeConfig, store_id: str) -> Place:
    """Return a tier of the list with the settings of this node's file."""
    own = node.tier(spec.name, spec.role)
    fields: dict[str, Any] = {"options": {**spec.options, **own.options}}
    if own.url is not None:
        fields["url"] = own.url
    if own.size is not None:
        fields["size"] = own.size
    if own.timeout_ms is not None:
        fields["timeout_ms"] = own.timeout_ms
    merged = msgspec.structs.replace(spec, **fields)
    check_tier(merged)
    return Place(merged, own, store_id)


def _stacked(place: Place, stats: TierStats) -> BlobStore:
    """Return a tier's store as it is used.

    It is opened and verified at its first use, counted, and skipped while it fails.
    """

    from tierstore.tiers.guard.guarded import GuardedStore
    from tierstore.tiers.guard.lazy import LazyStore

    def opener() -> BlobStore:
        if not place.node.enabled:
            raise Unreachable(f"tier {place.spec.name} is not enabled on this node")
        limit_s = place.spec.timeout_ms / 1000
        try:
            store = within(limit_s, f"opening {place.spec.url}", lambda: _opened(place, limit_s))
        except NotFound:
            raise Unreachable(
                f"there is no directory {place.spec.url}: see that it is mounted"
            ) from None
        try:
            if place.spec.role in DURABLE:
                verify(store, place.spec.name, place.store_id)
        except BaseException:
            store.close()
            raise
        return store

    name = place.spec.name
    return GuardedStore(LazyStore(place.spec.url, opener, name), name, stats)


def _opened(place: Place, limit_s: float) -> BlobStore:
    store = open_tier(place)
    if place.spec.role in DURABLE and not store.bounded:
        return DeadlineStore(store, limit_s)
    return store


def open_hot(place: Place) -> LocalHot:
    """Open this node's hot tier; on the disk only its folders are made.

    Raises:
        ConfigError: An option is not known, or the tier has no size.
    """
    from tierstore.placement import policies
    from tierstore.tiers.node.local import LocalHot

    spec = place.spec
    chosen = hot_options(spec)
    assert spec.size is not None
    policy = chosen.pop("policy", policies.DEFAULT_POLICY)
    return LocalHot(
        hot_directory(spec),
        place.store_id,
        spec.size,
        partial(policies.make, policy),
        name=spec.name,
        high_percent=spec.high,
        low_percent=spec.low,
        **chosen,
    )


def hot_options(spec: TierSpec) -> dict[str, Any]:
    """Parse the options of a hot tier; ``ConfigError`` if one is invalid or the size is missing."""
    if spec.size is None:
        raise ConfigError(_no_size(spec))
    return read_options(f"tier {spec.name!r}", spec.options, _HOT_OPTIONS)


def _no_size(spec: TierSpec) -> str:
    return (
        f"the hot tier {spec.name!r} has no size; give it one (--size 50GB, in 'tierstore init' "
        "--hot-size 50GB), or with 'size' under [hot] in this node's tierstore.toml"
    )
