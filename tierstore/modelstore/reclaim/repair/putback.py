"""Puts good bytes over a bad copy of a pack (SPEC.md 10.2)."""

from __future__ import annotations

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.checks import digest_of
from tierstore.format.keys import pack_key
from tierstore.modelstore.chunks.copies import Copy
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.placing.moverlease import HeldLease


def put_back(home: Home, copy: Copy, pack: bytes, data: memoryview, right: HeldLease) -> str:
    """Write good bytes over a bad copy, and read them back; return why that failed, or ``""``.

    Args:
        home: The store's home.
        copy: The bad copy.
        pack: The id of the pack.
        data: All bytes of the pack, which were checked.
        right: The right of a mover, so that no other copy is dropped meanwhile.

    Raises:
        Conflict: Another process has that right now.
    """
    key, tier = pack_key(pack), copy.tier
    try:
        if home.condemned.among([pack]):
            return "garbage collection deletes the pack from every tier"
        right.check()
        tier.verify()
        tier.blobs.put(key, data)
        home.packs.room(tier).add(len(data) - len(copy.data))
        if digest_of(tier.blobs.get(key)) != digest_of(data):
            return f"tier {tier.name} does not keep what is written to it; look after it"
    except (BackendError, Damaged, NotFound, UnsupportedFormat) as error:
        return str(error)
    tier.stats.count(admitted=1, admitted_bytes=len(data))
    return ""
