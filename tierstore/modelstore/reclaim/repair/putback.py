"""Puts good bytes over a bad copy of a pack (SPEC.md 10.2)."""

from __future__ import annotations

from functools import partial

from tierstore.errors import BackendError
from tierstore.format.checks import digest_of
from tierstore.format.keys import pack_key
from tierstore.modelstore.chunks.copies import Copy
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.placing.moverlease import HeldLease


def put_back(home: Home, copy: Copy, pack: bytes, data: memoryview, right: HeldLease) -> None:
    """Write good bytes over a bad copy, and read them back.

    Args:
        home: The store's home.
        copy: The bad copy.
        pack: The id of the pack.
        data: All bytes of the pack, which were checked.
        right: The right of a mover, so that no other copy is dropped meanwhile.

    Raises:
        Conflict: Another process has that right now.
        BackendError: The tier or home cannot be asked, or the pack is condemned, or the tier gives
            other bytes back; ``OutOfSpace`` where it is full.
        Damaged, NotFound, UnsupportedFormat: A condemned list, or what was written, cannot be read.
    """
    key, tier = pack_key(pack), copy.tier
    if home.condemned.among([pack]):
        raise BackendError("garbage collection deletes the pack from every tier")
    right.check()
    tier.verify()
    write = partial(tier.blobs.put, key, data)
    if tier.is_home:
        with_reserve(home.blobs, write)
    else:
        write()
    home.packs.room(tier).add(len(data) - len(copy.data))
    if digest_of(tier.blobs.get(key)) != digest_of(data):
        raise BackendError(f"tier {tier.name} does not keep what is written to it; look after it")
    tier.stats.count(admitted=1, admitted_bytes=len(data))
