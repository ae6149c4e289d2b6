"""Snapshots of the durable tiers, to plan from: what they hold, how hot it is, what must stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tierstore.errors import BackendError, ConfigError, NotFound
from tierstore.format.keys import PACKS, pack_of
from tierstore.format.tiers import HOME_NAME
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.tierlist import MIN_HEAT, TTL, mover_option
from tierstore.modelstore.placing.packgraph import PackGraph
from tierstore.placement.cost import Prices
from tierstore.placement.scene import DEFAULT_MIN_HEAT, PackState, Rules, Scene, TierState
from tierstore.tiers.durable.tier import DurableTier

_log = logging.getLogger("tierstore.mover")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of the durable tiers at one moment, without condemned packs.

    Attributes:
        packs: The state of every pack that is not condemned.
        tiers: The state of every tier, in the order of reading.
        now: Time of the snapshot, in seconds since the epoch.
        pinned: Packs that stay in warm tiers.
        bases: For each pack, the packs that hold bases of its deltas.
        notes: Messages about tiers that could not be reached.
    """

    packs: Sequence[PackState]
    tiers: Sequence[TierState]
    now: float
    pinned: frozenset[bytes]
    bases: Mapping[bytes, Iterable[bytes]]
    notes: tuple[str, ...] = ()

    def scene(self) -> Scene:
        """Return a scene to plan in; planning changes it."""
        return Scene(
            self.packs,
            self.tiers,
            now=self.now,
            pinned=self.pinned,
            bases=self.bases,
            rules=Rules(),
        )


def snapshot(
    home: Home,
    graph: PackGraph,
    pinned: frozenset[bytes],
    read: Mapping[bytes, float],
    draining: str | None = None,
) -> Snapshot:
    """List every durable tier and return what it holds.

    Args:
        home: The store's home.
        graph: The references between its packs.
        pinned: Packs that stay in warm tiers.
        read: Bytes read of each pack, decayed to now.
        draining: Name of a tier that counts as one that drains.

    Raises:
        ConfigError: An option or price of a tier is invalid.
        Damaged: It is unknown which packs are condemned.
    """
    home.packs.refresh()
    durable = home.packs.tiers
    tiers: list[TierState] = []
    notes: list[str] = []
    copies: dict[bytes, dict[str, float]] = {}
    sizes: dict[bytes, int] = {}
    for tier in durable:
        state = _state(tier, durable, draining, reachable=True)
        try:
            found = _listed(tier)
        except BackendError as error:
            notes.append(f"tier {tier.name} could not be asked, its packs are left alone: {error}")
            state, found = _state(tier, durable, draining, reachable=False), []
        tiers.append(state)
        for pack, size, mtime in found:
            copies.setdefault(pack, {})[tier.name] = mtime
            sizes[pack] = max(size, sizes.get(pack, 0))
    condemned = home.condemned.among(sizes)
    if condemned:
        notes.append(f"{len(condemned)} packs are condemned: garbage collection deletes them")
    packs = [
        PackState(pack, sizes[pack], read.get(pack, 0.0) / max(1, sizes[pack]), have)
        for pack, have in copies.items()
        if pack not in condemned
    ]
    return Snapshot(packs, tiers, time.time(), pinned, graph.bases(), tuple(notes))


def pinned_packs(pins: Pins, graph: PackGraph) -> frozenset[bytes]:
    """Return the packs of versions that are pinned in warm tiers.

    Raises:
        Damaged, BackendError: A pin, or the layout of a pinned version, cannot be read.
    """
    found: set[bytes] = set()
    for pin in pins.active():
        if "warm" not in pin.roles:
            continue
        try:
            found.update(graph.packs_of(pin.version))
        except NotFound as error:
            _log.warning("the pin of %s holds nothing: %s", pin.ref, error)
    return frozenset(found)


def _listed(tier: DurableTier) -> list[tuple[bytes, int, float]]:
    tier.verify()
    found = []
    for info in tier.blobs.list(PACKS):
        pack = pack_of(info.key)
        if pack is not None:  # anything else is nobody's pack: 'check' calls it garbage
            found.append((pack, info.size, info.mtime))
    return found


def _state(
    tier: DurableTier, tiers: Sequence[DurableTier], draining: str | None, *, reachable: bool
) -> TierState:
    spec = tier.spec
    cold = [t for t in tiers if t.role == "cold" and t.name != HOME_NAME and t.takes_writes]
    min_heat = mover_option(spec, MIN_HEAT)
    try:
        return TierState(
            name=spec.name,
            warm=spec.role == "warm",
            quota_bytes=spec.size,
            high_percent=spec.high,
            low_percent=spec.low,
            prices=Prices.of(spec.prices),
            draining=not tier.takes_writes or spec.name == draining,
            # home holds the metadata: it takes packs only when no other tier is for keeping them
            takes=spec.name != HOME_NAME or all(t.archive is not None for t in cold),
            reachable=reachable,
            archive=tier.archive is not None,
            min_heat=DEFAULT_MIN_HEAT if min_heat is None else min_heat,
            ttl_s=mover_option(spec, TTL),
        )
    except ValueError as error:
        raise ConfigError(f"tier {spec.name!r}: {error}") from None
