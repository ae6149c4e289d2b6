"""Changing the tiers of a store: each change is tried first, and then written as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import msgspec

from tierstore import config
from tierstore.arguments import as_message
from tierstore.blobs.base import BlobStore
from tierstore.errors import Conflict, Unreachable, UsageError
from tierstore.format.keys import pack_key
from tierstore.format.tiers import DURABLE, TierList, TierSpec
from tierstore.modelstore.home.identity import asked
from tierstore.modelstore.home.leases import writers
from tierstore.modelstore.home.tierlist import TierLog, added, changed, find, removed
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.placing.packgraph import PackGraph
from tierstore.modelstore.placing.snapshot import pinned_packs
from tierstore.modelstore.store import Store
from tierstore.placement.scene import Plan
from tierstore.shown import counted, nearest, size
from tierstore.tiers.durable.budget import Budget
from tierstore.tiers.durable.census import Holding, holding, packs_of
from tierstore.tiers.durable.marker import MARKER, owner_of, verify
from tierstore.tiers.durable.mover import Moved
from tierstore.tiers.durable.tier import DurableTier
from tierstore.wiring.backends import open_tier
from tierstore.wiring.places import canonical, claim_tiers, named, proved, release_tiers
from tierstore.wiring.tiers import placed

_POLL_S = 0.5
WAIT_S = 60.0
"""Seconds for which removing a tier waits for saves that may still write to it."""

_PLACE = ("url", "options")
"""The fields that determine where a tier is."""


@dataclass(frozen=True, slots=True)
class Removed:
    """A tier that was removed from the list.

    Attributes:
        spec: The tier as it was.
        left: Packs that are still in it, each of them in another tier too; ``None`` for a tier that
            holds no packs, or could not be asked.
    """

    spec: TierSpec
    left: Holding | None


@dataclass(frozen=True, slots=True)
class Drained:
    """The state of draining a tier.

    Attributes:
        spec: The tier as it is now.
        plan: Moves that were planned.
        moved: Moves that were tried, with their outcomes.
        left: Packs that are still in the tier.
    """

    spec: TierSpec
    plan: Plan
    moved: tuple[Moved, ...]
    left: Holding


def add_tier(store: Store, spec: TierSpec, message: str | None = None) -> TierList:
    """Try a tier and add it to a store, which must be opened again to use it.

    Raises:
        ConfigError: The tier is invalid.
        Conflict: Its name is taken, its place belongs to another store or tier, or somebody else
            changed the tiers at the same time.
        BackendError: It cannot be written to, read or cleaned.
    """
    as_message(message)
    home = store._parts.home
    spec, own = canonical(spec), home.config.store_id
    known = store.tiers()
    added(known, spec)  # before anything is written: the name may be taken
    with proved([spec], store.url, own, known):
        claim_tiers([spec], home.identity, own, [tier.name for tier in known])
        try:
            return TierLog(home.blobs).change(lambda tiers: added(tiers, spec), message)
        except Conflict:
            if all(tier.name != spec.name for tier in store.tiers()):  # nobody else added it
                release_tiers([spec], home.identity, own)
            raise


class TierFields(TypedDict, total=False):
    """Fields of ``TierSpec`` that can be changed; those left out stay."""

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
    message: str | None = None,
    *,
    force: bool = False,
    **fields: Unpack[TierFields],
) -> TierSpec:
    """Change fields of a tier and return the changed tier.

    Args:
        store: Store of the tier.
        name: Name of the tier.
        message: Note for the list: why this is done.
        force: Whether to allow a quota below what a durable tier holds.
        fields: Fields of ``TierSpec`` to change; name and role stay.

    Raises:
        UsageError: There is nothing to change, a field is not one that changes, or the tier holds
            more than its new quota.
        ConfigError: The changed tier would be invalid.
        Unreachable: The new place does not hold this tier.
    """
    as_message(message)
    old = find(store.tiers(), name)
    _check_fields(old, fields)
    most = canonical(msgspec.structs.replace(old, **fields)).size
    if "size" in fields and most is not None and old.role in DURABLE and not force:
        used = held(store, name)
        if used > most:
            raise UsageError(
                f"tier {name!r} holds {size(used)}, more than a quota of {size(most)}; "
                "force=True (--force) sets it, and the mover then moves packs out of it"
            )
    return _change(store, old, message, **fields)


def _check_fields(tier: TierSpec, fields: Collection[str]) -> None:
    """Raise ``UsageError`` for a field of a tier that does not change, or that there is not."""
    known = tuple(TierFields.__annotations__)
    if not fields:
        raise UsageError(f"nothing to change: give {', '.join(known)}")
    for field in fields:
        if field in {"name", "role"}:
            raise UsageError(
                f"the {field} of tier {tier.name!r} stays: add another tier, and drain and remove "
                "this one"
            )
        if field == "state":
            raise UsageError(
                f"the state of tier {tier.name!r} is not set: drain and undrain change it"
            )
        if field not in known:
            raise UsageError(f"a tier has no {field!r}: {nearest(field, known)}")


def _change(store: Store, old: TierSpec, message: str | None, **fields: Any) -> TierSpec:
    name = old.name
    new = canonical(msgspec.structs.replace(old, **fields))
    fields = {field: getattr(new, field) for field in fields}
    if any(getattr(old, field) != getattr(new, field) for field in _PLACE):
        own = store._parts.home.config.store_id
        known = [tier for tier in store.tiers() if tier.name != name]
        with proved([new], store.url, own, known), named(name):
            if new.role in DURABLE:
                with open_tier(placed(new, config.node_config(), own)) as there:
                    _look_for(name, there, own)
    log = TierLog(store._parts.home.blobs)
    return find(log.change(lambda tiers: changed(tiers, name, **fields), message).tiers, name)


def _look_for(name: str, there: BlobStore, own: str) -> None:
    """Raise ``Unreachable`` unless a place that a tier is said to have moved to is that tier."""
    if owner_of(there) is None:
        raise Unreachable(
            f"there is no {MARKER} at {there.url}: copy all of the tier there first, its {MARKER} "
            "too, or see that it is mounted; nothing was changed"
        )
    verify(there, name, own)


def held(store: Store, name: str) -> int:
    """Return the bytes of the packs in a durable tier."""
    with named(name):
        return sum(packs_of(_durable(store, name)).values())


def contents(store: Store, name: str) -> Holding:
    """Return the packs in a durable tier.

    Raises:
        UsageError: It is a hot or shared tier, which holds copies only.
    """
    if find(store.tiers(), name).role not in DURABLE:
        raise UsageError(
            f"tier {name!r} only holds copies, so there is nothing to drain; "
            f"'tierstore tier rm {name}' removes it"
        )
    store._parts.home.packs.refresh()
    return holding(store._parts.home.packs.tiers, name)


def drain_tier(store: Store, name: str, message: str | None = None) -> None:
    """Stop new packs from a durable tier; ``Store.placement`` moves those that are in it."""
    contents(store, name)
    spec = find(store.tiers(), name)
    if spec.state != "draining":
        _change(store, spec, message, state="draining")


def drain(
    store: Store,
    name: str,
    message: str | None = None,
    *,
    dry_run: bool = False,
    budget: Budget | None = None,
    progress: Callable[[Moved], None] | None = None,
) -> Drained:
    """Move all packs out of a durable tier, and put no new ones into it.

    It may be stopped at any time; call it again to go on.

    Args:
        store: Store of the tier.
        name: Name of the tier.
        message: Note for the list: why this is done.
        dry_run: Whether to move nothing and only return the plan.
        budget: Bandwidth that moves may use; ``None`` for no limit.
        progress: Called with each move that was tried.

    Raises:
        UsageError: It is a hot or shared tier, which holds copies only.
        Conflict: Another mover is at work.
        BackendError: A tier cannot be asked for its packs.
    """
    if dry_run:
        left, plan = contents(store, name), store.placement.plan_drain(name)
        return Drained(find(store.tiers(), name), plan, (), left)
    drain_tier(store, name, message)
    report = store.placement.drain(name, budget=budget, progress=progress)
    left = contents(store, name)
    return Drained(find(store.tiers(), name), report.plan, tuple(report.moved), left)


def undrain(store: Store, name: str, message: str | None = None) -> Drained:
    """Let a tier take new packs again.

    Args:
        store: Store of the tier.
        name: Name of the tier.
        message: Note for the list: why this is done.

    Raises:
        UsageError: The tier is not being drained.
    """
    left, spec = contents(store, name), find(store.tiers(), name)
    if spec.state == "active":
        raise UsageError(f"tier {name!r} is not being drained")
    return Drained(_change(store, spec, message, state="active"), Plan(), (), left)


def remove_tier(
    store: Store,
    name: str,
    message: str | None = None,
    *,
    force: bool = False,
    waiting: Callable[[Sequence[str]], None] = lambda _: None,
) -> Removed:
    """Remove a tier from the list; no pack is deleted.

    Args:
        store: Store of the tier.
        name: Name of the tier.
        message: Note for the list: why this is done.
        force: Whether to remove a durable tier that cannot be asked, and lose what only it holds.
        waiting: Called with the users whose saves are waited for, which may still write to it.

    Raises:
        Conflict: The tier still takes packs, holds a pack that is pinned or the only copy of one,
            or a mover is at work.
        Unreachable: A durable tier cannot be asked for its packs.
        OtherHome: Another home of the store deletes in it, and would find it marked no more.
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
        home = store._parts.home
        release_tiers([spec], home.identity, home.config.store_id)
    return Removed(spec, left)


def _left(
    store: Store,
    spec: TierSpec,
    force: bool,
    waiting: Callable[[Sequence[str]], None],
    keep: Callable[[], None],
) -> Holding | None:
    """Wait for writers and return a durable tier's packs; ``Conflict`` if one must stay."""
    try:
        packs_of(_durable(store, spec.name))
    except Unreachable as error:
        if force:
            return None
        raise Unreachable(
            f"tier {spec.name!r} cannot be asked whether it has the only copy of a pack: {error}. "
            "If it is gone for good, force=True (--force) removes it; what only it holds is lost"
        ) from error
    home = store._parts.home
    home.identity.confirm(asked(home.packs.tiers))
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
        packs = counted(len(found.only), "pack")
        raise Conflict(
            f"tier {spec.name!r} holds {packs} that no other tier has; run "
            f"'tierstore tier drain {spec.name}' until there are none"
        )
    pinned = pinned_packs(store.pins, PackGraph(store._parts.home)) if spec.role == "warm" else ()
    stay = found.packs.keys() & map(pack_key, pinned)
    if stay:
        packs = counted(len(stay), "pack")
        raise Conflict(
            f"tier {spec.name!r} holds {packs} of {size(sum(found.packs[pack] for pack in stay))} "
            "that pins keep in warm tiers; add another warm tier and drain this one, or unpin "
            "('tierstore pins' lists the pins)"
        )
    return found


def _durable(store: Store, name: str) -> DurableTier:
    store._parts.home.packs.refresh()
    return next(tier for tier in store._parts.home.packs.tiers if tier.name == name)


def _wait_for_saves(home_blobs: BlobStore, waiting: Callable[[Sequence[str]], None]) -> None:
    """Wait for the saves that are in progress, which may have begun before the tier was drained.

    A save reads the list of tiers after it took its lease, so one that begins later knows it.
    """
    until = time.monotonic() + WAIT_S
    first = writers(home_blobs)
    running = dict(first)
    while running:
        if time.monotonic() > until:
            who = ", ".join(sorted({lease.who for lease in running.values()}))
            raise Conflict(
                f"saves by {who} are in progress, and may have begun before the tier was drained; "
                "try again when they have ended"
            )
        waiting(sorted({lease.who for lease in running.values()}))
        time.sleep(_POLL_S)
        running = {key: lease for key, lease in writers(home_blobs).items() if key in first}
