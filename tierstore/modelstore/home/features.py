"""Adds features to a store: names in config.json, which are there for good (SPEC.md 10)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from tierstore.blobs.base import BlobStore
from tierstore.errors import Conflict, NotFound
from tierstore.format import keys
from tierstore.format.storeconfig import (
    RECLAIM_FEATURE,
    Features,
    StoreConfig,
    check_features,
    encode_config,
)
from tierstore.format.tiers import FEATURE as TIERS_FEATURE
from tierstore.format.tiers import TIERS, tiers_seq
from tierstore.modelstore.home.home import read_config

_ATTEMPTS = 5
_NUMBER = re.compile("[0-9]{9}")
_MADE_BY_COLLECTORS = {
    keys.GC: _NUMBER,
    keys.CONDEMNED: re.compile("[0-9a-f]{32}"),
    keys.SWEEPS: _NUMBER,
}
"""What collectors make, by its prefix: anything else below these says nothing of the store."""


def add_features(
    home_blobs: BlobStore,
    *,
    read: Sequence[str] = (),
    write: Sequence[str] = (),
    gc: Sequence[str] = (),
) -> StoreConfig:
    """Add features to a store; return the config that names them.

    config.json is written over as a whole, and another process may be about to write over it what
    it read before. So whoever writes looks again, at the objects of the store as well: those of a
    feature that is lost show it. Who adds a feature whose objects it makes itself calls this once
    more afterwards. So of two at once at least one sees that a feature is lost.

    Args:
        home_blobs: The store's home.
        read: Features that a client must know to read.
        write: Features that it must know to write.
        gc: Features that it must know to delete.

    Raises:
        UnsupportedFormat: The store needs a newer version to be written to.
        Conflict: Others change the features of the store all the time.
    """
    wanted = Features(list(read), list(write), list(gc))
    for _ in range(_ATTEMPTS):
        config = read_config(home_blobs)
        both = _joined(config.features, wanted)
        if both == config.features:
            return config
        check_features(config, "write", home_blobs.url)
        home_blobs.put(keys.CONFIG, encode_config(msgspec.structs.replace(config, features=both)))
        wanted = _joined(wanted, _shown(home_blobs))
    raise Conflict(f"others change the features of {home_blobs.url} at the same time; try again")


def _joined(some: Features, more: Features) -> Features:
    return Features(
        sorted({*some.read, *more.read}),
        sorted({*some.write, *more.write}),
        sorted({*some.gc, *more.gc}),
    )


def _shown(home_blobs: BlobStore) -> Features:
    """Return the features of which a store has objects."""
    tiers = [TIERS_FEATURE] if shows_tiers(home_blobs) else []
    reclaim = [RECLAIM_FEATURE] if shows_reclaim(home_blobs) else []
    return Features(tiers, [*tiers, *reclaim], reclaim)


def shows_tiers(home_blobs: BlobStore) -> bool:
    """Return whether a list of tiers is there."""
    return any(tiers_seq(info.key) is not None for info in home_blobs.list(TIERS))


def shows_reclaim(home_blobs: BlobStore) -> bool:
    """Return whether something is there that only a store has in which garbage was collected."""
    for key in (keys.RESERVE, keys.COLLECTED):
        try:
            home_blobs.info(key)
        except NotFound:
            continue
        return True
    return any(
        any(form.fullmatch(info.key.removeprefix(prefix)) for info in home_blobs.list(prefix))
        for prefix, form in _MADE_BY_COLLECTORS.items()
    )
