"""Repairs the objects of home that are no packs (SPEC.md 10.2).

An object whose envelope alone is damaged is written as it was. What says nothing that is not said
elsewhere is made anew, or deleted where it is only a hint. Of the rest this says what is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from tierstore.blobs.base import BlobStore
from tierstore.errors import (
    BackendError,
    Damaged,
    InvalidName,
    NotFound,
    UnsupportedFormat,
)
from tierstore.format import keys
from tierstore.format.purge import (
    PurgeOrder,
)
from tierstore.format.sealed import Kind, mended, seal_body
from tierstore.format.tiers import PINS, Pin
from tierstore.ids import Digest
from tierstore.modelstore.care.homekinds import HOME_KINDS
from tierstore.modelstore.home.ahead import ahead, parallel
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import TTL_S
from tierstore.modelstore.home.pins import holder_mark
from tierstore.modelstore.home.refs import whoami
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.names.purgerecords import find_lost_records, read_orders
from tierstore.modelstore.names.removalprotocol import purge_lost
from tierstore.modelstore.names.removed import Removals
from tierstore.modelstore.names.rollout import HOLDER
from tierstore.modelstore.reclaim.repair.report import Outcome, RepairReport

_PAGE = 64
_KINDS = frozenset(Kind)

Parse = Callable[[str, memoryview], object]
"""Checks an object, by its key and bytes."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An object that cannot be read.

    Attributes:
        key: Its key.
        why: What is wrong with it.
    """

    key: str
    why: Damaged | UnsupportedFormat


class Objects:
    """Reads the objects of home, and writes those that need it.

    Args:
        home_blobs: The store's home.
        report: Gets what was found, and says whether anything may be changed.
    """

    def __init__(self, home_blobs: BlobStore, report: RepairReport) -> None:
        self.blobs, self.report = home_blobs, report

    def broken(self, kind: Kind, found: Iterable[str], parse: Parse) -> Iterator[Broken]:
        """Yield the damaged ones of some objects; those with a bad envelope alone are mended.

        One of a newer version, or of a kind that this version does not know, is left. Several are
        parsed at a time, as that may read other objects.
        """

        def wrong(item: tuple[str, memoryview]) -> Damaged | UnsupportedFormat | None:
            try:
                parse(*item)
            except (Damaged, UnsupportedFormat) as error:
                return error
            return None

        left = iter(found)
        while page := list(islice(left, _PAGE)):
            items = list(self.blobs.get_many(page).items())
            for (key, data), error in zip(items, parallel(wrong, items), strict=True):
                if error is not None and not self._mended(kind, key, data, parse, error):
                    yield Broken(key, error)

    def broken_of(self, kind: Kind) -> Iterator[Broken]:
        """Yield the damaged objects of a kind that a store is run with; see ``broken``."""
        one = HOME_KINDS[kind]
        return self.broken(kind, self.listed(one.prefix), one.parse)

    def _mended(
        self,
        kind: Kind,
        key: str,
        data: memoryview,
        parse: Parse,
        why: Damaged | UnsupportedFormat,
    ) -> bool:
        whole = mended(kind, data)
        if whole is None or whole == data:  # nothing to mend, or well formed
            if isinstance(why, UnsupportedFormat):
                self.report.add("left", key, why, "repair it with that version of tierstore")
                return True
            return whole is not None and self._is_of_others(key, data, why)
        try:
            parse(key, memoryview(whole))
        except (Damaged, UnsupportedFormat):
            return False
        self.put(key, whole, why, "written as it was", "its envelope alone is damaged")
        return True

    def _is_of_others(self, key: str, data: memoryview, why: Damaged) -> bool:
        """Leave an object of a kind that is not known here; another one lies in a wrong place."""
        if data[4] in _KINDS:
            return False
        self.report.add("left", key, why, "of which kind it is only another tierstore knows")
        return True

    def put(
        self,
        key: str,
        data: bytes,
        why: object,
        done: str,
        note: str,
        outcome: Outcome = "repaired",
    ) -> None:
        """Write an object over a damaged one; see ``change``."""

        def act() -> bool:
            self.blobs.put(key, data)
            return True

        self.change(act, key, why, done, note, outcome)

    def delete(self, one: Broken, note: str, outcome: Outcome = "repaired") -> None:
        """Delete a damaged object; see ``change``."""

        def act() -> bool:
            self.blobs.delete([one.key])
            return True

        self.change(act, one.key, one.why, "deleted", note, outcome)

    def change(
        self,
        act: Callable[[], bool],
        key: str,
        why: object,
        done: str,
        note: str,
        outcome: Outcome = "repaired",
    ) -> None:
        """Change home, unless nothing may be changed, and report it, or why it was not possible.

        Args:
            act: Changes it; returns whether it did, or another process was there first.
            key: The key of the object that is damaged.
            why: What is wrong with it.
            done: What is done, as a participle: ``written anew``.
            note: What to know about it.
            outcome: What came of the object then.
        """
        if not self.report.dry_run:
            try:
                is_done = with_reserve(self.blobs, act)
            except (BackendError, Damaged) as error:
                self.report.leave(key, why, done, error)
                return
            if not is_done:
                self.report.add("left", key, why, "another process was there first: repair again")
                return
        self.report.add(outcome, key, why, f"{self.report.did(done)}: {note}")

    def there(self, found: Iterable[str]) -> list[str]:
        """Return those of the objects that are there now, by their keys."""
        return [key for key, is_there in ahead(self.is_there, found) if is_there]

    def is_there(self, key: str) -> bool:
        """Return whether an object is there now."""
        try:
            self.blobs.info(key)
        except NotFound:
            return False
        return True

    def listed(self, prefix: str) -> list[str]:
        """Return the keys below a prefix, or of the one object that it is."""
        if not prefix.endswith("/"):
            return [prefix]
        return [info.key for info in self.blobs.list(prefix)]


def repair_hints(objects: Objects) -> None:
    """Delete what is damaged and only saves work: it is written again by itself."""
    for kind in HOME_KINDS.values():
        for one in list(objects.broken_of(kind.kind)) if kind.is_hint else ():
            objects.delete(one, kind.deleted)


def repair_leases(objects: Objects) -> None:
    """Say which leases are damaged: whose they are nobody can tell, and they end by themselves."""
    for one in objects.broken_of(Kind.LEASE):
        try:
            left_s = objects.blobs.info(one.key).mtime + 2 * TTL_S - time.time()
        except NotFound:  # given back since
            continue
        if left_s <= 0:
            objects.delete(one, "it has ended")
        else:
            done = (
                "whoever holds it writes it again; else it ends in "
                f"{left_s / 3600:.0f} hours, and until then no garbage is collected"
            )
            objects.report.add("left", one.key, one.why, done)


def repair_retention(objects: Objects) -> None:
    """Say what retention is lost: nobody else knows what was set."""
    done = (
        "what was set is lost: 'tierstore retention set' sets it again, and until then nothing of "
        "it is removed or collected"
    )
    for one in objects.broken_of(Kind.RETENTION):
        objects.report.add("lost", one.key, one.why, done)


def repair_purges(objects: Objects, home: Home) -> None:
    """Write records of purges anew by what is left of them, and say what of them is lost."""
    broken = {one.key: one for one in objects.broken_of(Kind.PURGE)}
    try:
        lost = find_lost_records(home, Removals(home))
    except (Damaged, NotFound, UnsupportedFormat) as error:
        done = f"which version it purged is not known before that can be read: {error}"
        for one in broken.values():
            objects.report.add("left", one.key, one.why, done)
        return
    for found in lost.entries:
        _purge_again(objects, home, found)
    note = "'tierstore purge run' goes on with it; what it said of what went is lost"
    for found in lost.orders:
        key = keys.PURGES + found.id
        why = broken.pop(key).why if key in broken else f"no order says how far {_ref(found)} is"
        objects.put(key, seal_body(Kind.PURGE, found), why, "written anew", note, "lost")
    for one in broken.values():
        objects.delete(one, "each version that was purged has another order")
    done = (
        "which chunks were purged is found again as far as their manifests are there: 'tierstore "
        "purge run' does so, and says what is lost"
    )
    for one in objects.broken_of(Kind.PURGED):
        objects.report.add("lost", one.key, one.why, done)
    _repair_parts(objects, home)


def _repair_parts(objects: Objects, home: Home) -> None:
    """Delete damaged parts of purges: what one says is lost unless its order counts it."""
    broken = list(objects.broken_of(Kind.PURGE_PART))
    counted = {
        keys.purge_part_key(order.id, name)
        for order in (read_orders(home) if broken else ())
        for name in order.parts or ()
    }
    lost = (
        "another process wrote over what a run had found for that purge, which this part said: "
        "'tierstore purge run' finds again what is there"
    )
    for one in broken:
        if one.key in counted:
            objects.delete(one, "its order has all that it says")
        else:
            objects.delete(one, lost, "lost")


def _purge_again(objects: Objects, home: Home, order: PurgeOrder) -> None:
    def act() -> bool:
        purge_lost(home, order.model, order.version, order.message)
        return True

    key = keys.ref_prefix(order.model, keys.REMOVED_LOG)
    why = f"it lost the purge of {_ref(order)}"
    objects.change(act, key, why, "purged again", f"the order {order.id[:12]} says so")


def _ref(order: PurgeOrder) -> str:
    return f"{order.model}@{order.version}"


def repair_pins(objects: Objects, home: Home) -> None:
    """Write damaged pins anew: a user's as it counts, a rollout's as it is."""
    found = list(objects.broken_of(Kind.PIN))
    if not found:
        return
    holders = dict(_holders(home))
    for one in found:
        version, _, mark = one.key.removeprefix(PINS).partition("-")
        holder = holders.get(mark)
        if mark and holder is None:
            objects.delete(one, "its rollout is over")
            continue
        ref = holder or f"b3:{version}"
        pin = Pin(version=version, ref=ref, roles=["hot", "warm"], until_us=None, who=whoami())
        note = f"the pin of {holder}"
        if not holder:
            note = (
                "it pins in hot and warm tiers without end, as it did while it could not be read; "
                f"'tierstore unpin b3:{version[:12]}' ends that"
            )
        objects.put(one.key, seal_body(Kind.PIN, pin), one.why, "written anew", note)


def _holders(home: Home) -> Iterator[tuple[str, str]]:
    """Yield what the keys of rollouts' pins end with, and the holders, of all that are running."""
    for model in home.models():
        for alias in home.aliases(model):
            try:
                last = home.log(model, keys.ALIASES + alias).last()
            except (Damaged, UnsupportedFormat):
                continue
            if last is not None and last.rollout is not None:
                holder = f"{HOLDER}{model}@{alias}"
                yield holder_mark(holder), holder


def digest_in(key: str, prefix: str) -> Digest | None:
    """Return the digest that a key ends with; ``None`` if it is no object of ours."""
    try:
        return Digest.from_hex(key.removeprefix(prefix))
    except InvalidName:
        return None
