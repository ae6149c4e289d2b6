"""Changing which tiers a store has: proved first, written then, all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import msgspec

from tierstore import config
from tierstore.blobs.base import BlobStore
from tierstore.errors import Conflict, Unreachable, UsageError
from tierstore.format.tiers import DURABLE, TierList, TierSpec
from tierstore.modelstore.home.leases import writers
from tierstore.modelstore.home.tierlist import TierLog, added, changed, check_tier, find, removed
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.store import Store
from tierstore.placement.scene import Plan
from tierstore.shown import size
from tierstore.tiers.base import DurableTier
from tierstore.tiers.durable.budget import Budget
from tierstore.tiers.durable.census import Holding, holding, packs_of
from tierstore.tiers.durable.marker import verify
from tierstore.tiers.durable.mover import Moved
from tierstore.wiring.backends import open_tier
from tierstore.wiring.places import canonical, claim_tiers, named, proved, release_tiers
from tierstore.wiring.tiers import placed

_POLL_S = 0.5
WAIT_S = 60.0
"""How long removing a tier waits for saves that may still write to it."""

_PLACE = ("url", "options")
"""The fields that say where a tier is."""


@dataclass(frozen=True, slots=True)
class Removed:
    """A tier that is gone from the list.

    Attributes:
        spec: as it was.
        left: the packs that are still there, each of them in another tier as well; ``None`` for a
            tier that holds no packs, or could not be asked.
    """

    spec: TierSpec
    left: Holding | None


@dataclass(frozen=True, slots=True)
class Drained:
    """How far the draining of a tier has come.

    Attributes:
        spec: The tier as it is now.
        plan: The moves that were planned.
        moved: What became of those that were tried.
        left: The packs that are still there.
    """

    spec: TierSpec
    plan: Plan
    moved: tuple[Moved, ...]
    left: Holding


def add_tier(store: Store, spec: TierSpec, message: str = "") -> TierList:
    """Add a tier to a store, once it has proved itself; the store must be opened anew to use it.

    Raises:
        ConfigError: it is not as a tier must be.
        Conflict: its name is taken, its place is another store's or another tier, or somebody else
            changed the tiers at the same time.
        BackendError: it cannot be written to, read or cleaned.
    """
    spec, own = canonical(spec), store._parts.home.config.store_id
    check_tier(spec)
    known = store.tiers()
    added(known, spec)  # before anything is written: the name may be taken
    with proved([spec], store.url, own):
        claim_tiers([spec], own, [tier.name for tier in known])
        try:
            return TierLog(store._parts.home.blobs).change(
                lambda tiers: added(tiers, spec), message
            )
        except Conflict:
            if all(tier.name != spec.name for tier in store.tiers()):  # nobody else added it
                release_tiers([spec], own)
            raise


class TierFields(TypedDict, total=False):
    """What can be changed of a tier, as ``TierSpec`` has it; what is left out stays."""

    url: str
    size: int | None
    high: int
    low: int
    timeout_ms: int
    options: dict[str, str]
    prices: dict[str, str]


def set_tier(
    store: Store,
    name: str,
    message: str = "",
    *,
    force: bool = False,
    **fields: Unpack[TierFields],
) -> TierSpec:
    """Change some fields of a tier; returns it as it is then.

    Args:
        store: The store whose tier it is.
        name: The tier's name.
        message: Why; kept in the list.
        force: Allow a quota below what a durable tier holds.
        fields: The new values; name and role stay.

    Raises:
        UsageError: There is nothing to change, or the tier holds more than its new quota.
        ConfigError: It would not be as a tier must be.
        Unreachable: What is at its new place is not this tier.
    """
    old = find(store.tiers(), name)
    if not fields:
        raise UsageError("nothing to change: give --size, --url, --option ...")
    most = fields.get("size")
    if most is not None and old.role in DURABLE and not force:
        used = held(store, name)
        if used > most:
            raise UsageError(
                f"tier {name!r} holds {size(used)}, more than a quota of {size(most)}; "
                "--force sets it, and the mover then moves packs out of it"
            )
    return _change(store, old, message, **fields)


def _change(store: Store, old: TierSpec, message: str, **fields: Any) -> TierSpec:
    name = old.name
    new = canonical(msgspec.structs.replace(old, **fields))
    fields = {field: getattr(new, field) for field in fields}
    check_tier(new)
    if any(getattr(old, field) != getattr(new, field) for field in _PLACE):
        own = store._parts.home.config.store_id
        with proved([new], store.url, own), named(name):
            if new.role in DURABLE:
                with open_tier(placed(new, config.node_config(), own)) as there:
                    verify(there, name, own)
    log = TierLog(store._parts.home.blobs)
    return find(log.change(lambda tiers: changed(tiers, name, **fields), message).tiers, name)


def held(store: Store, name: str) -> int:
    """Bytes of the packs in a durable tier."""
    with named(name):
        return sum(packs_of(_durable(store, name)).values())


def contents(store: Store, name: str) -> Holding:
    """What a durable tier holds.

    Raises:
        UsageError: it is a hot tier, which holds copies only.
    """
    if find(store.tiers(), name).role not in DURABLE:
        raise UsageError(
            f"tier {name!r} holds copies only: there is nothing to drain; "
            f"'tierstore tier rm {name}' removes it"
        )
    store._parts.home.packs.refresh()
    return holding(store._parts.home.packs.tiers, name)


def drain_tier(store: Store, name: str, message: str = "") -> None:
    """Have nothing new written to a durable tier; ``Store.placement`` moves what is in it."""
    contents(store, name)
    spec = find(store.tiers(), name)
    if spec.state != "draining":
        _change(store, spec, message, state="draining")


def drain(
    store: Store,
    name: str,
    message: str = "",
    *,
    dry_run: bool = False,
    budget: Budget | None = None,
    progress: Callable[[Moved], None] | None = None,
) -> Drained:
    """Move all packs out of a durable tier, and have nothing new written to it.

    What was moved stays so when this is stopped; call it again to go on.

    Args:
        store: The store whose tier it is.
        name: The tier's name.
        message: Why; kept in the list.
        dry_run: Only say what would be moved.
        budget: What it may take of the bandwidth.
        progress: Is called with each move that was tried.

    Raises:
        UsageError: It is a hot tier, which holds copies only.
        Conflict: Another mover is at work.
        BackendError: A tier cannot be asked what it holds.
    """
    if dry_run:
        left, plan = contents(store, name), store.placement.plan_drain(name)
        return Drained(find(store.tiers(), name), plan, (), left)
    drain_tier(store, name, message)
    report = store.placement.drain(name, budget=budget, progress=progress)
    left = contents(store, name)
    return Drained(find(store.tiers(), name), report.plan, tuple(report.moved), left)


def undrain(store: Store, name: str, message: str = "") -> Drained:
    """Have new packs written to a tier again.

    Args:
        store: The store whose tier it is.
        name: The tier's name.
        message: Why; kept in the list.

    Raises:
        UsageError: It is not being drained.
    """
    left, spec = contents(store, name), find(store.tiers(), name)
    if spec.state == "active":
        raise UsageError(f"tier {name!r} is not being drained")
    return Drained(_change(store, spec, message, state="active"), Plan(), (), left)


def remove_tier(
    store: Store,
    name: str,
    message: str = "",
    *,
    force: bool = False,
    waiting: Callable[[Sequence[str]], None] = lambda _: None,
) -> Removed:
    """Take a tier off the list; no pack is deleted.

    Args:
        store: whose tier it is.
        name: of the tier.
        message: why; kept in the list.
        force: also when a durable tier cannot be asked, and what only it holds is lost.
        waiting: told who saves, while it waits for saves that may still write to the tier.

    Raises:
        Conflict: it still takes packs, it holds the only copy of one, or a mover is at work.
        Unreachable: a durable tier cannot be asked what it holds.
    """
    spec = find(store.tiers(), name)
    log = TierLog(store._parts.home.blobs)
    if spec.role not in DURABLE:
        log.change(lambda tiers: removed(tiers, name), message)
        return Removed(spec, None)
    with HeldLease(store._parts.home.blobs) as lease:  # a mover may be dropping what this tier has
        left = _left(store, spec, force, waiting, lease.keep)
        lease.check()
        log.change(lambda tiers: removed(tiers, name), message)
    if left is not None:
        # a writer with the old list sees by this that its pack went to the wrong place
        release_tiers([spec], store._parts.home.config.store_id)
    return Removed(spec, left)


def _left(
    store: Store,
    spec: TierSpec,
    force: bool,
    waiting: Callable[[Sequence[str]], None],
    keep: Callable[[], None],
) -> Holding | None:
    """What a durable tier holds, once nobody writes to it; ``Conflict`` if that is a last copy."""
    try:
        packs_of(_durable(store, spec.name))
    except Unreachable as error:
        if force:
            return None
        raise Unreachable(
            f"tier {spec.name!r} cannot be asked whether it has the only copy of a pack: {error}. "
            "If it is gone for good, --force removes it, with what only it holds"
        ) from error
    if spec.state == "active":
        raise Conflict(
            f"tier {spec.name!r} takes new packs; run 'tierstore tier drain {spec.name}' first"
        )

    def waits(who: Sequence[str]) -> None:
        keep()
        waiting(who)

    _wait_for_saves(store._parts.home.blobs, waits)
    found = holding(store._parts.home.packs.tiers, spec.name)
    if found.only:
        packs = "1 pack" if len(found.only) == 1 else f"{len(found.only)} packs"
        raise Conflict(
            f"tier {spec.name!r} holds {packs} that no other tier has; run "
            f"'tierstore tier drain {spec.name}' until there are none"
        )
    return found


def _durable(store: Store, name: str) -> DurableTier:
    store._parts.home.packs.refresh()
    return next(tier for tier in store._parts.home.packs.tiers if tier.name == name)


def _wait_for_saves(home: BlobStore, waiting: Callable[[Sequence[str]], None]) -> None:
    """Wait for the saves that run now: they may have begun before the tier was drained.

    A save reads the list of tiers after it took its lease, so one that begins later knows.
    """
    until = time.monotonic() + WAIT_S
    first = writers(home)
    running = dict(first)
    while running:
        if time.monotonic() > until:
            who = ", ".join(sorted({lease.who for lease in running.values()}))
            raise Conflict(
                f"saves by {who} are under way, and may have begun before the tier was drained; "
                "try again when they have ended"
            )
        waiting(sorted({lease.who for lease in running.values()}))
        time.sleep(_POLL_S)
        running = {key: lease for key, lease in writers(home).items() if key in first}
