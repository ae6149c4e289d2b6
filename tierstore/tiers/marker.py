"""What a durable tier says of itself: which store's it is (format/SPEC.md section 13).

Without it a mount that is missing would look like an empty tier: packs would seem to be gone, and
new ones would be written where they are hidden once it is mounted again.
"""

from __future__ import annotations

import json

from tierstore.blobs.base import BlobStore
from tierstore.errors import Conflict, NotFound, Unreachable

MARKER = "tier.json"


def claim(store: BlobStore, name: str, store_id: str) -> None:
    """Mark a tier as one of a store's.

    Raises:
        Conflict: it holds the packs of another store, whose garbage collection would delete ours.
    """
    try:
        owner = _owner(bytes(store.get(MARKER)))
    except NotFound:
        store.put(MARKER, json.dumps({"store_id": store_id, "tier": name}).encode() + b"\n")
        return
    if owner != store_id:
        raise Conflict(
            f"{store.url} is a tier of another store (its {MARKER} says so); choose another place"
        )


def verify(store: BlobStore, name: str, store_id: str) -> None:
    """Raise ``Unreachable`` unless the tier is there and is this store's."""
    try:
        owner = _owner(bytes(store.get(MARKER)))
    except NotFound:
        raise Unreachable(
            f"tier {name} has no {MARKER} at {store.url}: is it mounted? If it was emptied, run "
            f"'tierstore tier add' again"
        ) from None
    if owner != store_id:
        raise Unreachable(f"the {MARKER} at {store.url} is another store's, not of tier {name}")


def _owner(data: bytes) -> object:
    try:
        fields = json.loads(data)
    except ValueError:
        return None
    return fields.get("store_id") if isinstance(fields, dict) else None
