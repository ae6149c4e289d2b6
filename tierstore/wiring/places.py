"""Trying the places of new tiers and marking them as the store's, before a list names them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence

import msgspec

from tierstore import config
from tierstore.arguments import as_list, as_path
from tierstore.errors import ConfigError, Conflict, TierstoreError
from tierstore.folders import absolute, fresh_folder
from tierstore.format.tiers import DURABLE, TierSpec
from tierstore.modelstore.home.identity import Identity
from tierstore.modelstore.home.probe import prove
from tierstore.modelstore.home.tierlist import added, check_tier, checked
from tierstore.modelstore.places import HOME, StorePlace, first_overlap
from tierstore.tiers.durable.marker import check_free, claim, release
from tierstore.wiring.backends import Place, directory_of, hot_directory, open_tier
from tierstore.wiring.tiers import hot_options, placed, store_place


def canonical(spec: TierSpec) -> TierSpec:
    """Return a tier with its path as an absolute file URL, for any working directory.

    Raises ``ConfigError`` for a tier that no list can have.
    """
    if isinstance(spec, TierSpec) and isinstance(spec.url, str | os.PathLike):
        url = config.expanded(os.fspath(spec.url))
        if "://" not in url:
            url = absolute(as_path("url", url, "a path or a URL")).as_uri()
        spec = msgspec.structs.replace(spec, url=url)
    check_tier(spec)
    return spec


def ordered(specs: Sequence[TierSpec]) -> list[TierSpec]:
    """Return the tiers of a new store in the order in which they are read.

    Raises:
        ConfigError: A store cannot have these tiers.
        Conflict: Two have the same name.
    """
    found: list[TierSpec] = []
    for spec in as_list("tiers", specs, "[tierstore.TierSpec(…)]"):
        found = added(found, canonical(spec))
    return checked(found)


def fresh_place(url: str) -> contextlib.AbstractContextManager[object]:
    """Remove what was made of the directory at ``url`` in the block, if the block failed."""
    folder = directory_of(url) if url else None
    return contextlib.nullcontext() if folder is None else fresh_folder(folder)


@contextlib.contextmanager
def proved(
    specs: Sequence[TierSpec],
    home_url: str,
    store_id: str = "",
    known: Sequence[TierSpec] = (),
) -> Iterator[None]:
    """Write to, read and clean every tier; directories made for it are removed if the block fails.

    Args:
        specs: New tiers, or old ones in new places.
        home_url: URL of the store.
        store_id: Id of the store; empty if it is still to be made.
        known: The other tiers of the store.
    """
    node = config.node_config()
    taken = [StorePlace(HOME, home_url)]
    taken += [store_place(placed(spec, node, store_id).spec) for spec in known]
    places = []
    for spec in specs:
        with named(spec.name):
            place = placed(spec, node, store_id)
            _check_kind(place.spec)
            _check_apart(store_place(place.spec), taken)
        places.append(place)
        taken.append(store_place(place.spec))
    with contextlib.ExitStack() as made:
        for place in places:
            with named(place.spec.name):
                made.enter_context(fresh_place(place.spec.url))
                _prove(place, home_url)
        yield


def _check_kind(spec: TierSpec) -> None:
    if spec.role == "hot":
        hot_directory(spec)
        hot_options(spec)
    if spec.role == "shared" and spec.size is not None:
        raise ConfigError("a shared tier takes no size: Redis has maxmemory, Memcached has -m")


def _prove(place: Place, home_url: str) -> None:
    spec = place.spec
    with open_tier(place, create=True) as store:
        if spec.role in DURABLE:
            if not store.capabilities.durable and not home_url.startswith("memory://"):
                raise ConfigError(
                    f"{store.url} does not keep its data, so it cannot be a {spec.role} tier"
                )
            if not place.store_id:
                check_free(store, spec.name, place.store_id)
        prove(store)


def _check_apart(mine: StorePlace, taken: Sequence[StorePlace]) -> None:
    if found := first_overlap(mine, taken):
        raise Conflict(found)


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Name the tier in errors that are raised in the block."""
    try:
        yield
    except TierstoreError as error:
        if str(error).startswith((f"tier {name!r}", f"tier {name} ")):
            raise
        raise type(error)(f"tier {name!r}: {error}") from error


def claim_tiers(
    specs: Sequence[TierSpec], identity: Identity, store_id: str, taken: Collection[str] = ()
) -> None:
    """Mark durable tiers as this store's, in which its home deletes.

    Args:
        specs: New tiers.
        identity: Tells its home from copies of it.
        store_id: Id of the store.
        taken: Names of the tiers that the store has already.

    Raises:
        Conflict: One is another store's, or another tier of this one; none is marked then.
    """
    node = config.node_config()
    claimed: list[Place] = []
    try:
        for spec in specs:
            if spec.role not in DURABLE:
                continue
            place = placed(spec, node, store_id)
            with named(spec.name), open_tier(place) as store:
                names = [*taken, *(one.spec.name for one in claimed)]
                claim(store, spec.name, store_id, names, identity.made)
            claimed.append(place)
    except BaseException:
        release_tiers([place.spec for place in claimed], identity, store_id)
        raise


def release_tiers(specs: Sequence[TierSpec], identity: Identity, store_id: str) -> None:
    """Undo ``claim_tiers``; tiers that cannot be reached are left as they are."""
    node = config.node_config()
    for spec in specs:
        if spec.role in DURABLE:
            place = placed(spec, node, store_id)
            with contextlib.suppress(TierstoreError), open_tier(place) as store:
                release(store, store_id, identity.signs())
