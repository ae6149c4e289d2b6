"""Opening stores: the one place where configuration, backends and the model store meet."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tierstore import codecs, config
from tierstore.blobs.base import BlobStore
from tierstore.format.manifest import DEFAULT_CHUNK
from tierstore.format.tiers import FEATURE, TierList, TierSpec
from tierstore.modelstore.home import create_config, read_config
from tierstore.modelstore.store import Store
from tierstore.modelstore.tierlist import TierLog, added
from tierstore.tiers.durable import DurableTiers
from tierstore.wiring.backends import open_blobs
from tierstore.wiring.tiers import Tiers, claim_tier, placed, prove_tier

__all__ = ["add_tier", "init_store", "open_blobs", "open_store"]


def init_store(
    url: str | os.PathLike[str] | None = None,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    tiers: Sequence[TierSpec] = (),
) -> Store:
    """Make an empty store and open it.

    Args:
        url: as for ``open_store``; a local directory is made if it is missing.
        chunk_size: bytes of a chunk, a power of two from 1 to 16 MiB; fixed for ever.
        tiers: beside home; each must prove itself first.

    Raises:
        Conflict: there is a store already, or a tier is another store's.
        BackendError: the storage lacks what a store needs.
    """
    blobs = open_blobs(config.store_url(_text(url)), create=True)
    try:
        node = config.node_config()
        for spec in tiers:
            prove_tier(placed(spec, node, ""), blobs.url)
        create_config(blobs, chunk_size)
        store_id = read_config(blobs).store_id
        for spec in tiers:
            claim_tier(placed(spec, node, store_id))
        if tiers:
            TierLog(blobs).change(lambda _: _sorted(tiers), "init")
    except BaseException:
        blobs.close()
        raise
    return _store(blobs)


def _sorted(tiers: Sequence[TierSpec]) -> list[TierSpec]:
    found: list[TierSpec] = []
    for spec in tiers:
        found = added(found, spec)
    return found


def add_tier(store: Store, spec: TierSpec, message: str = "") -> TierList:
    """Add a tier to a store, once it has proved itself; the store must be opened anew to use it.

    Raises:
        ConfigError: it is not as a tier must be.
        Conflict: its name is taken, its place is another store's, or somebody else changed the
            tiers at the same time.
        BackendError: it cannot be written to, read or cleaned.
    """
    place = placed(spec, config.node_config(), store.home.config.store_id)
    prove_tier(place, store.url)
    claim_tier(place)
    return TierLog(store.home.blobs).change(lambda tiers: added(tiers, spec), message)


def open_store(url: str | os.PathLike[str] | None = None) -> Store:
    """Open a store.

    Its tiers are opened when they are needed.

    Args:
        url: a directory, ``s3://bucket/prefix`` or what else ``open_blobs`` takes; by default what
            ``TIERSTORE_STORE`` or the node's file says.

    Raises:
        NotFound: there is no store.
        UnsupportedFormat: it was made by a newer tierstore.
    """
    return _store(open_blobs(config.store_url(_text(url))))


def _text(url: str | os.PathLike[str] | None) -> str | None:
    return None if url is None else os.fspath(url)


def _store(blobs: BlobStore) -> Store:
    try:
        codecs.use_native(config.native_wanted())
        settings, node = config.settings_from(), config.node_config()
        own = read_config(blobs)
        current = TierLog(blobs).current() if FEATURE in own.features.read else None
        tiers = Tiers(blobs, own, node, current)
        heat = tiers.heat(settings)
        return Store(
            blobs, settings, packs=DurableTiers(tiers.durable(), tiers.reload),
            hot=tiers.hot(settings, heat), heat=heat, config=own,
        )  # fmt: skip
    except BaseException:
        blobs.close()
        raise
