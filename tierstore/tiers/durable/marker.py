"""The marker of a durable tier, which says whose tier it is (format/SPEC.md section 13).

Without it a missing mount would look like an empty tier: packs would seem to be gone, and new ones
would be written where they are hidden once it is mounted again. And were two tiers the same place,
moving a pack from one to the other would delete it.

It also says which home deletes here: a home that was copied knows nothing of what is saved in the
other one from then on, and would take it for garbage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from tierstore.blobs.base import BlobStore
from tierstore.errors import Conflict, NotFound, Unreachable
from tierstore.format.keys import CONFIG

MARKER = "tier.json"
_SOMEWHERE = "an unknown place"


@dataclass(frozen=True, slots=True)
class Keeper:
    """The home that deletes in a tier.

    Attributes:
        signs: What its storage says of its object ``identity``; see ``BlobStore.signs``.
        url: Where it was, as the node saw it that wrote this.
        who: Who wrote this, as ``user@host``.
        time_us: When, in microseconds since the epoch by that node's clock.
    """

    signs: frozenset[str]
    url: str
    who: str
    time_us: int


def check_free(store: BlobStore, name: str, store_id: str, taken: Collection[str] = ()) -> bool:
    """Return whether a place must still be marked as this tier; it may be marked already.

    Args:
        store: The blob store of the place.
        name: The name of the tier.
        store_id: The id of the store.
        taken: The names of the tiers that the store has.

    Raises:
        Conflict: The place is a store itself, or it holds the packs of another store, whose garbage
            collection would delete ours, or it is another tier of this store.
    """
    try:
        store.info(CONFIG)
    except NotFound:
        pass
    else:
        raise Conflict(f"{store.url} is a store itself; choose another place for tier {name!r}")
    try:
        said = _said(bytes(store.get(MARKER)))
    except NotFound:
        return True
    tier = said.get("tier")
    if said.get("store_id") != store_id:
        raise Conflict(
            f"{store.url} is a tier of another store (its {MARKER} says so); choose another place"
        )
    if tier != name and tier in taken:
        raise Conflict(f"{store.url} is the tier {tier!r} of this store; choose another place")
    return tier != name


def claim(
    store: BlobStore,
    name: str,
    store_id: str,
    taken: Collection[str],
    keeper: Callable[[], Keeper],
) -> None:
    """Mark a place as a tier of a store, in which this home deletes; else as ``check_free``.

    Where it is marked as this tier already, the home that deletes there stays. ``keeper`` is called
    for this one only where it is written.
    """
    if check_free(store, name, store_id, taken):
        _write(store, name, store_id, keeper())


def keep(store: BlobStore, name: str, store_id: str, keeper: Keeper) -> None:
    """Write down that this home deletes in a tier from now on.

    Raises:
        Unreachable: The place is not this tier.
    """
    verify(store, name, store_id)
    _write(store, name, store_id, keeper)


def _write(store: BlobStore, name: str, store_id: str, keeper: Keeper) -> None:
    home = {
        "signs": sorted(keeper.signs),
        "url": keeper.url,
        "who": keeper.who,
        "time_us": keeper.time_us,
    }
    said = {"store_id": store_id, "tier": name, "home": home}
    store.put(MARKER, json.dumps(said).encode() + b"\n")


def release(store: BlobStore, store_id: str, signs: frozenset[str]) -> None:
    """Undo ``claim``: clients that still use the place as a tier find that it is none.

    A marker of another store stays, and one of another home.

    Args:
        store: The blob store of the place.
        store_id: The id of the store.
        signs: The signs of its home.
    """
    try:
        said = _said(bytes(store.get(MARKER)))
    except NotFound:
        return
    keeper = _keeper(said)
    if said.get("store_id") == store_id and (keeper is None or keeper.signs & signs):
        store.delete([MARKER])


def verify(store: BlobStore, name: str, store_id: str) -> Keeper | None:
    """Return which home deletes in a tier; ``None`` where that was never written down.

    Raises:
        Unreachable: The place is not marked as this tier of this store.
    """
    try:
        said = _said(bytes(store.get(MARKER)))
    except NotFound:
        raise Unreachable(
            f"there is no {MARKER} at {store.url}: see that it is mounted; if it was emptied, run "
            f"'tierstore tier rm {name} --force' and add it again"
        ) from None
    if said.get("store_id") != store_id:
        raise Unreachable(f"the {MARKER} at {store.url} is another store's, not of tier {name}")
    if said.get("tier") != name:
        raise Unreachable(
            f"{store.url} is the tier {said.get('tier')!r} of the store, not {name!r}"
        )
    return _keeper(said)


def owner_of(store: BlobStore) -> str | None:
    """Return the id of the store that a place says it is a tier of; ``None`` if it says none."""
    try:
        owner = _said(bytes(store.get(MARKER))).get("store_id")
    except NotFound:
        return None
    return owner if isinstance(owner, str) else None


def _said(data: bytes) -> Mapping[str, object]:
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _keeper(said: Mapping[str, object]) -> Keeper | None:
    """Return the home that a marker names; one that cannot be read is of no home that there is."""
    home = said.get("home")
    if home is None:
        return None
    fields = home if isinstance(home, dict) else {}
    signs, time_us = fields.get("signs"), fields.get("time_us")
    return Keeper(
        frozenset(sign for sign in signs if isinstance(sign, str))
        if isinstance(signs, list)
        else frozenset(),
        str(fields.get("url", _SOMEWHERE)),
        str(fields.get("who", "somebody")),
        time_us if isinstance(time_us, int) else 0,
    )
