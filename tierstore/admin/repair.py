"""Repairs a store from where it cannot even be opened (format/SPEC.md 10.2)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tierstore import config
from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, ConfigError, NotFound
from tierstore.format.storeconfig import StoreConfig
from tierstore.format.tiers import DURABLE, TierList, TierSpec
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.repair.objects import Objects
from tierstore.modelstore.reclaim.repair.repairing import repair_store
from tierstore.modelstore.reclaim.repair.report import RepairReport
from tierstore.modelstore.reclaim.repair.start import repair_config, repair_tier_list
from tierstore.tiers.durable.marker import owner_of
from tierstore.tiers.durable.tiers import DurableTiers
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.wiring import open_home
from tierstore.wiring.backends import open_tier
from tierstore.wiring.tiers import Tiers, placed


def repair_home(
    url: str | os.PathLike[str] | None = None, *, store_id: str | None = None, dry_run: bool = False
) -> RepairReport:
    """Make a store's config and list of tiers anew where they are damaged or gone.

    After that it can be opened, and ``Store.repair`` makes the rest anew: from packs, manifests and
    the logs of versions. Manifests and entries of versions can be made from nothing else.

    Args:
        url: The store's home; by default the one that ``TIERSTORE_STORE`` or the node's file names.
        store_id: The id of the store; by default the one that its tiers name, or else a new one.
        dry_run: Whether nothing is changed: the report says what would be, by ``Store.repair`` as
            well where the store cannot be opened now.

    Raises:
        NotFound: There is nothing of a store.
        UsageError: It is not clear which store this is.
        UnsupportedFormat: The store was made by a newer version.
    """
    report = RepairReport(dry_run=dry_run)
    blobs = open_home(config.store_url(None if url is None else os.fspath(url)))
    try:
        objects = Objects(blobs, report)
        tiers = repair_tier_list(objects)
        ids = _owners(tiers.tiers if tiers is not None else ())
        own = repair_config(objects, ids, store_id)
        if dry_run and report.objects:  # it cannot be opened as it is
            return _tried(blobs, own, tiers, report)
    finally:
        blobs.close()
    return report


def _tried(
    blobs: BlobStore, own: StoreConfig, listed: TierList | None, report: RepairReport
) -> RepairReport:
    """Return what a repair would find once the config and the list of tiers are what they will be.

    Args:
        blobs: The store's home.
        own: The config.
        listed: The list of tiers, if there is one.
        report: What was found until now.
    """
    tiers = Tiers(blobs, own, config.node_config(), listed)
    home = Home(blobs, DurableTiers(tiers.durable()), own)
    try:
        found = repair_store(home, HotTiers(), dry_run=True)
    finally:
        home.close()
    found.objects[:0] = report.objects
    return found


def _owners(specs: Iterable[TierSpec]) -> list[str]:
    """Return the ids of the stores that tiers say they are of, as far as they can be asked."""
    found: list[str] = []
    node = config.node_config()
    for spec in specs:
        if spec.role not in DURABLE:
            continue
        try:
            blobs = open_tier(placed(spec, node, ""))
        except (BackendError, ConfigError, NotFound):
            continue
        try:
            owner = owner_of(blobs)
        except BackendError:
            owner = None
        finally:
            blobs.close()
        if owner is not None and owner not in found:
            found.append(owner)
    return found
