"""Repairs quarantine marks."""

from __future__ import annotations

from tierstore.format import keys
from tierstore.format.sealed import Kind
from tierstore.modelstore.reclaim.holdings import Holdings
from tierstore.modelstore.reclaim.repair.objects import Objects


def repair_marks(objects: Objects, holdings: Holdings) -> set[bytes]:
    """Delete damaged marks of packs that are gone; return the packs of the others."""
    left: set[bytes] = set()
    for one in list(objects.broken_of(Kind.QUARANTINE)):
        pack = keys.pack_of(one.key)
        if pack is None:
            continue
        if holdings.is_there(pack):
            left.add(pack)
            done = objects.report.did("made anew") + ": its pack is read again"
            objects.report.add("repaired", one.key, one.why, done)
        else:
            objects.delete(one, "its pack is in no tier")
    return left
