"""Makes what purges versions of an open store: see ``modelstore/reclaim/purge``."""

from __future__ import annotations

from tierstore.modelstore.reclaim.purge.dropping import Dropping
from tierstore.modelstore.reclaim.purge.purging import Purges
from tierstore.modelstore.store import Store


def purges_of(store: Store) -> Purges:
    """Return what purges versions of a store, and drops what was purged from its caches."""
    parts = store._parts
    dropping = Dropping(
        parts.home,
        parts.hot,
        parts.hot_pins.sync,
        parts.index,
        parts.settings.cache_dir / parts.home.config.store_id,
        store.node,
    )
    return Purges(
        store._names,
        store._removing,
        store.reclaim,
        parts.rebasing,
        parts.opener.open_alone,
        dropping,
    )
