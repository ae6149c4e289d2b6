"""Which records of purges were lost: an order and the log of removals each say what the other does.

SPEC.md section 10.3.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import blake3

from tierstore.format.keys import PURGED, PURGES
from tierstore.format.purge import PurgedContent, PurgeOrder
from tierstore.format.reflog import RefEntry
from tierstore.format.sealed import Body, Kind, seal_body
from tierstore.ids import split_digests
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.once import create_once
from tierstore.modelstore.home.readable import read_readable
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.names.removed import PURGE, Removals

_B = TypeVar("_B", bound=Body)


@dataclass(slots=True)
class LostRecords:
    """What was lost of the records of a store's purges, and what takes its place.

    Attributes:
        entries: Orders that were gone on with, of versions that the logs do not call purged.
        orders: New orders for purged versions of which no order can be read.
        unordered: When content was written that has no order, in seconds since the epoch, by its
            name: whoever gave that order ended before it was there, or is about to write it.
            Nobody has carried it out, and it is of no purged version that needs an order.
    """

    entries: list[PurgeOrder] = field(default_factory=list)
    orders: list[PurgeOrder] = field(default_factory=list)
    unordered: dict[str, float] = field(default_factory=dict)


def read_orders(home: Home) -> list[PurgeOrder]:
    """Return the purge orders of a store that can be read."""
    return list(_readable(home, _names(home, PURGES), PURGES, Kind.PURGE, PurgeOrder).values())


def unordered(home: Home) -> dict[str, float]:
    """Return when contents of purges were written that have no order, by their names.

    In seconds since the epoch by the storage's own clock. Whoever gave such an order ended before
    it was there, or is about to write it, or it is lost: ``find_lost_records`` tells.
    """
    contents = _names(home, PURGED)  # first, as each is written before its order
    given = _names(home, PURGES) if contents else {}
    return {name: written_s for name, written_s in contents.items() if name not in given}


def find_lost_records(home: Home, removals: Removals) -> LostRecords:
    """Return what was lost of the records of a store's purges.

    The logs are read first, as each version has its order before it is purged, and contents are
    listed before orders, as each is written before its order.

    Args:
        home: The store's home.
        removals: Its removed versions.

    Raises:
        Damaged, UnsupportedFormat: A log of removals cannot be read.
        NotFound: The entry of a purged version is gone.
    """
    purged = {
        (model, number): entry
        for model in (home.models() if home.reclaims else ())
        for number, entry in removals.of(model).items()
        if entry.action == PURGE
    }
    contents, given = _names(home, PURGED), _names(home, PURGES)
    orders = list(_readable(home, given, PURGES, Kind.PURGE, PurgeOrder).values())
    lost = LostRecords()
    for order in orders:
        now = removals.of(order.model).get(order.version) if order.updated_us else None
        if order.updated_us and (now is None or now.action != PURGE):
            lost.entries.append(order)
    missing = purged.keys() - {(order.model, order.version) for order in orders}
    if missing:
        found = _readable(home, contents, PURGED, Kind.PURGED, PurgedContent)
        lost.orders = list(_made_anew(home, {key: purged[key] for key in missing}, orders, found))
    alone = contents.keys() - given.keys() - {order.id for order in lost.orders}
    new = _readable(home, alone, PURGED, Kind.PURGED, PurgedContent)
    lost.unordered = {name: contents[name] for name, one in new.items() if not one.sweep}
    return lost


def _made_anew(
    home: Home,
    missing: dict[tuple[str, int], RefEntry],
    orders: list[PurgeOrder],
    contents: Mapping[str, PurgedContent],
) -> Iterator[PurgeOrder]:
    """Yield orders for versions without one, but for those that were purged with another's content.

    One whose content is there has the name of that again, so that nodes drop what it lists.
    """
    manifests = {bytes.fromhex(order.manifest) for order in orders}
    names = {order.id for order in orders}
    unnamed = dict[bytes, str]()
    for name, content in contents.items():
        digests = split_digests(content.manifests)
        if name in names:
            manifests.update(digests)
        else:
            unnamed.update(dict.fromkeys(digests, name))
    for (model, number), entry in sorted(missing.items()):
        manifest = home.log(model).entry(number).manifest
        if manifest is None or bytes.fromhex(manifest) in manifests:
            continue
        yield PurgeOrder(
            id=unnamed.pop(bytes.fromhex(manifest), _name_of(model, number)),
            time_us=entry.time_us,
            who=entry.who,
            message=entry.message,
            model=model,
            version=number,
            manifest=manifest,
        )


def give_order(home: Home, model: str, number: int, note: str) -> None:
    """Write the order of a version that is removed for good and that nobody asked to purge.

    It was published on what was purged, and its writer, or who collects behind that, ends it. Both
    give the same order.
    """
    manifest = home.log(model).entry(number).manifest
    assert manifest is not None  # who removes a version knows that
    order = PurgeOrder(
        id=_name_of(model, number),
        time_us=time.time_ns() // 1000,
        who=whoami(),
        message=note,
        model=model,
        version=number,
        manifest=manifest,
    )
    sealed = seal_body(Kind.PURGE, order)
    with_reserve(home.blobs, lambda: create_once(home.blobs, PURGES + order.id, sealed))


def take_order_back(home: Home, model: str, number: int) -> None:
    """Delete the order of ``give_order``, as the version stays."""
    home.blobs.delete([PURGES + _name_of(model, number)])


def _name_of(model: str, number: int) -> str:
    """Return the name of an order that is made of its version."""
    return blake3.blake3(f"{model}\n{number}".encode()).hexdigest()[:32]


def _names(home: Home, prefix: str) -> dict[str, float]:
    """Return the names below a prefix, and when each was written, in seconds since the epoch."""
    return {info.key.removeprefix(prefix): info.mtime for info in home.blobs.list(prefix)}


def _readable(
    home: Home, names: Iterable[str], prefix: str, kind: Kind, body: type[_B]
) -> dict[str, _B]:
    found = read_readable(home.blobs, (prefix + name for name in names), kind, body)
    return {key.removeprefix(prefix): one for key, one in found.items()}
