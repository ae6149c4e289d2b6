"""Opening stores: the place where configuration, backends and the model store meet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

from tierstore import config
from tierstore.arguments import as_path
from tierstore.blobs.base import BlobStore
from tierstore.codecs.choice import choice
from tierstore.folders import absolute
from tierstore.format.chunking import DEFAULT_CHUNK
from tierstore.format.keys import CONFIG, IDENTITY
from tierstore.format.tiers import FEATURE, TierSpec, tiers_key
from tierstore.modelstore.home.home import create_config, read_config
from tierstore.modelstore.home.identity import Identity
from tierstore.modelstore.home.tierlist import TierLog
from tierstore.modelstore.store import Store
from tierstore.tiers.activity import Activity
from tierstore.tiers.durable.tiers import DurableTiers
from tierstore.tiers.guard.deadline import DeadlineStore, within
from tierstore.wiring.backends import open_blobs
from tierstore.wiring.tiers import Tiers, activity_folder, counters

__all__ = [
    "backends",
    "below",
    "init_as",
    "open_as",
    "open_blobs",
    "open_home",
    "places",
    "tiers",
]

_S = TypeVar("_S", bound=Store)
_IN_MEMORY = ("memory://", "fsspec+memory://")

HOME_LIMIT_S = 15.0
"""Seconds after which a call of home without an answer has failed, as in an object store; with the
tiers that are asked before it, a read waits for 30 seconds at most.
"""


def init_as(
    kind: type[_S],
    url: str | os.PathLike[str] | None = None,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    tiers: Sequence[TierSpec] = (),
) -> _S:
    """Make an empty store and open it.

    Args:
        kind: Class of the store that is returned.
        url: Directory or URL, as for ``open_as``; a local directory is made if it is missing.
        chunk_size: Size of chunks in bytes, a power of two from 1 to 16 MiB; it never changes.
        tiers: Tiers beside home. Each is tried first, and nothing is made if one does not work.

    Raises:
        ConfigError: A tier is invalid.
        Conflict: There is a store already, or a tier belongs to another store.
        BackendError: The storage lacks what a store needs, or a tier cannot be used.
    """
    from tierstore.wiring.places import fresh_place, ordered, proved

    specs = ordered(tiers)
    home_url = config.store_url(_text(url))
    with fresh_place(home_url):
        blobs = open_home(home_url, create=True)
        try:
            with proved(specs, blobs.url):
                create_config(blobs, chunk_size)
                try:
                    _take_tiers(blobs, specs)
                except BaseException:
                    blobs.delete([CONFIG, IDENTITY, tiers_key(1)])
                    raise
        except BaseException:
            blobs.close()
            raise
    return _store(kind, blobs, home_url)


def _take_tiers(blobs: BlobStore, specs: Sequence[TierSpec]) -> None:
    """Mark the tiers of a new store as its own, and list them; if that fails, none is marked."""
    from tierstore.wiring.places import claim_tiers, release_tiers

    identity, store_id = Identity(blobs), read_config(blobs).store_id
    claim_tiers(specs, identity, store_id)
    try:
        if specs:
            TierLog(blobs).change(lambda _: specs, "init")
    except BaseException:
        release_tiers(specs, identity, store_id)
        raise


def open_as(kind: type[_S], url: str | os.PathLike[str] | None = None) -> _S:
    """Open a store.

    Its tiers are opened when they are needed.

    Args:
        kind: Class of the store that is returned.
        url: A directory, ``s3://bucket/prefix`` or another URL that ``open_blobs`` takes; by
            default the one that ``TIERSTORE_STORE`` or the node's file names.

    Raises:
        NotFound: There is no store.
        UnsupportedFormat: The store was made by a newer tierstore.
    """
    home_url = config.store_url(_text(url))
    return _store(kind, open_home(home_url), home_url)


_unpickled: WeakValueDictionary[tuple[type[Store], str], Store] = WeakValueDictionary()
"""One store by class and URL for all that is unpickled in this process."""


def _unpickle(kind: type[_S], url: str) -> _S:
    found = _unpickled.get((kind, url))
    if not isinstance(found, kind):
        found = open_as(kind, url)
        _unpickled[kind, url] = found
    return found


def _text(url: str | os.PathLike[str] | None) -> str | None:
    return None if url is None else as_path("url", url, "a path or a URL")


def open_home(url: str, *, create: bool = False) -> BlobStore:
    """Open the place of a store's home, whatever is there.

    Its calls are limited: a mount whose server is gone would hang.
    """
    blobs = within(HOME_LIMIT_S, "opening the store's home", lambda: open_blobs(url, create=create))
    return blobs if blobs.bounded else DeadlineStore(blobs, HOME_LIMIT_S)


def _store(kind: type[_S], blobs: BlobStore, url: str) -> _S:
    try:
        choice.wanted = config.native_wanted()
        settings, node = config.settings_from(), config.node_config()
        own = read_config(blobs)
        current = TierLog(blobs).current() if FEATURE in own.features.read else None
        tiers = Tiers(blobs, own, node, current)
        heat = tiers.heat(settings)
        packs, hot = DurableTiers(tiers.durable(), tiers.reload), tiers.hot(settings, heat)
        folder = activity_folder(settings, own.store_id)
        hot.activity = Activity(folder, lambda: counters(packs, hot))
        store = kind(
            blobs,
            settings,
            packs=packs,
            hot=hot,
            heat=heat,
            config=own,
            tier_places=tiers.store_places,
        )
        store._parts.home.news = tiers.news()
        if not url.startswith(_IN_MEMORY):
            where = url if "://" in url else str(absolute(url))
            store._parts.reopen = _unpickle, (kind, where)
        return store
    except BaseException:
        blobs.close()
        raise
