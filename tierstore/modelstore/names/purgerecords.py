"""Which records of purges were lost: an order and the log of removals each say what the other does.

SPEC.md section 10.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import blake3

from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.format.keys import PURGED, PURGES
from tierstore.format.purge import PurgedContent, PurgeOrder
from tierstore.format.reflog import RefEntry
from tierstore.format.sealed import Body, Kind, unseal_body
from tierstore.ids import split_digests
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.removed import PURGE, Removals

_B = TypeVar("_B", bound=Body)


@dataclass(slots=True)
class LostRecords:
    """What was lost of the records of a store's purges, and what takes its place.

    Attributes:
        entries: Orders that were gone on with, of versions that the logs do not call purged.
        orders: New orders for purged versions of which no order can be read.
    """

    entries: list[PurgeOrder] = field(default_factory=list)
    orders: list[PurgeOrder] = field(default_factory=list)


def read_orders(home: Home) -> list[PurgeOrder]:
    """Return the purge orders of a store that can be read."""
    return [order for _, order in _readable(home, PURGES, Kind.PURGE, PurgeOrder)]


def find_lost_records(home: Home, removals: Removals) -> LostRecords:
    """Return what was lost of the records of a store's purges.

    The logs are read first, as each version has its order before it is purged.

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
    orders = read_orders(home)
    lost = LostRecords()
    for order in orders:
        now = removals.of(order.model).get(order.version) if order.updated_us else None
        if order.updated_us and (now is None or now.action != PURGE):
            lost.entries.append(order)
    missing = purged.keys() - {(order.model, order.version) for order in orders}
    if missing:
        lost.orders = list(_made_anew(home, {key: purged[key] for key in missing}, orders))
    return lost


def _made_anew(
    home: Home, missing: dict[tuple[str, int], RefEntry], orders: list[PurgeOrder]
) -> Iterator[PurgeOrder]:
    """Yield orders for versions without one, but for those that were purged with another's content.

    One whose content is there has the name of that again, so that nodes drop what it lists.
    """
    manifests = {bytes.fromhex(order.manifest) for order in orders}
    names = {order.id for order in orders}
    unnamed = dict[bytes, str]()
    for key, content in _readable(home, PURGED, Kind.PURGED, PurgedContent):
        name, digests = key.removeprefix(PURGED), split_digests(content.manifests)
        if name in names:
            manifests.update(digests)
        else:
            unnamed.update(dict.fromkeys(digests, name))
    for (model, number), entry in sorted(missing.items()):
        manifest = home.log(model).entry(number).manifest
        if manifest is None or bytes.fromhex(manifest) in manifests:
            continue
        own = blake3.blake3(f"{model}\n{number}".encode()).hexdigest()[:32]
        yield PurgeOrder(
            id=unnamed.pop(bytes.fromhex(manifest), own),
            time_us=entry.time_us,
            who=entry.who,
            message=entry.message,
            model=model,
            version=number,
            manifest=manifest,
        )


def _readable(home: Home, prefix: str, kind: Kind, body: type[_B]) -> Iterator[tuple[str, _B]]:
    listed = [info.key for info in home.blobs.list(prefix)]
    for key, data in home.blobs.get_many(listed).items():
        with suppress(Damaged, UnsupportedFormat):  # whoever checks or repairs it says so
            yield key, unseal_body(kind, data, body, key)
