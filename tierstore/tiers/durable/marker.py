"""The marker of a durable tier, which says whose tier it is (format/SPEC.md section 13).

Without it a missing mount would look like an empty tier: packs would seem to be gone, and new ones
would be written where they are hidden once it is mounted again. And were two tiers the same place,
moving a pack from one to the other would delete it.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from tierstore.blobs.base import BlobStore
from tierstore.errors import Conflict, NotFound, Unreachable
from tierstore.format.keys import CONFIG

MARKER = "tier.json"


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
        owner, tier = _said(bytes(store.get(MARKER)))
    except NotFound:
        return True
    if owner != store_id:
        raise Conflict(
            f"{store.url} is a tier of another store (its {MARKER} says so); choose another place"
        )
    if tier != name and tier in taken:
        raise Conflict(f"{store.url} is the tier {tier!r} of this store; choose another place")
    return tier != name


def claim(store: BlobStore, name: str, store_id: str, taken: Collection[str] = ()) -> None:
    """Mark a place as a tier of a store; takes the same arguments as ``check_free``."""
    if check_free(store, name, store_id, taken):
        store.put(MARKER, json.dumps({"store_id": store_id, "tier": name}).encode() + b"\n")


def release(store: BlobStore, store_id: str) -> None:
    """Undo ``claim``: clients that still use the place as a tier find that it is none.

    A marker of another store stays.
    """
    try:
        owner, _ = _said(bytes(store.get(MARKER)))
    except NotFound:
        return
    if owner == store_id:
        store.delete([MARKER])


def verify(store: BlobStore, name: str, store_id: str) -> None:
    """Raise ``Unreachable`` unless the place is marked as this tier of this store."""
    try:
        owner, tier = _said(bytes(store.get(MARKER)))
    except NotFound:
        raise Unreachable(
            f"tier {name} has no {MARKER} at {store.url}: is it mounted? If it was emptied, "
            f"run 'tierstore tier rm {name} --force' and add it again"
        ) from None
    if owner != store_id:
        raise Unreachable(f"the {MARKER} at {store.url} is another store's, not of tier {name}")
    if tier != name:
        raise Unreachable(f"{store.url} is the tier {tier!r} of the store, not {name!r}")


def owner_of(store: BlobStore) -> str | None:
    """Return the id of the store that a place says it is a tier of; ``None`` if it says none."""
    try:
        owner, _ = _said(bytes(store.get(MARKER)))
    except NotFound:
        return None
    return owner if isinstance(owner, str) else None


def _said(data: bytes) -> tuple[object, object]:
    try:
        fields = json.loads(data)
    except ValueError:
        return None, None
    return (
        (fields.get("store_id"), fields.get("tier")) if isinstance(fields, dict) else (None, None)
    )
