"""Versions that were promised to nobody, as whoever published them ended: a run removes them."""

from __future__ import annotations

import logging

from tierstore.errors import TierstoreError
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import in_force
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.purgerecords import give_order
from tierstore.modelstore.names.removalprotocol import purge_lost
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.reclaim.looks import Looks
from tierstore.modelstore.reclaim.mark import Mark
from tierstore.modelstore.version import version_of

_log = logging.getLogger("tierstore.gc")


def end_orphans(home: Home, mark: Mark, lease: HeldLease | None) -> None:
    """Remove versions for good of which a manifest was purged, and is gone (SPEC.md 10.1).

    Args:
        home: The store's home.
        mark: What was marked.
        lease: The right to collect; ``None`` only says what would be.
    """
    for root in mark.orphans:
        if root.kind != "live" or root.ref or root.variant or not root.number:
            continue
        _log.warning("%s was never whole, as its content was purged: it is removed", root.why)
        if lease is not None:
            lease.check()
            note = "its content was purged while it was published"
            if root.digest.raw not in mark.condemned.manifests:  # else an order has it
                give_order(home, root.model, root.number, note)
            purge_lost(home, root.model, root.number, note)


def end_holders(home: Home, mark: Mark, lease: HeldLease) -> None:
    """Remove entries that have numbers taken for a copy which ended before it could do so.

    Args:
        home: The store's home.
        mark: What was marked.
        lease: The right to collect.
    """
    # writers are looked for behind the logs: whoever wrote one of these has ended
    if not mark.holders or in_force(home.blobs, "writer"):
        return
    named, looks = Names(home, "", {}).named, Looks(home)
    for root in mark.holders:
        lease.check()
        version = version_of(root.model, home.log(root.model).entry(root.number))
        try:
            if not looks.is_needed(version):  # else each run would announce it in vain
                named.remove_own(version, "the copy that it was for has ended")
        except TierstoreError as error:
            _log.warning("%s holds a number only, and stays for now: %s", root.why, error)
