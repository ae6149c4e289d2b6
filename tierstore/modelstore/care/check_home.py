"""Checks what home has besides logs, manifests and layouts: what a store is run with."""

from __future__ import annotations

from collections.abc import Iterator

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format import keys
from tierstore.format.condemned import parse_list, parse_segment
from tierstore.format.storeconfig import RECLAIM_FEATURE
from tierstore.modelstore.care.check_findings import Finding, brief
from tierstore.modelstore.care.homekinds import HOME_KINDS, HomeKind
from tierstore.modelstore.home.features import shows_reclaim
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.purgerecords import find_lost_records
from tierstore.modelstore.names.removed import Removals

_PAGE = 256
_PAGE_BYTES = 16 << 20


def check_home(home: Home) -> Iterator[Finding]:
    """Yield what is damaged of what a store is run with, from moves to hints."""
    yield from _config(home)
    for one in HOME_KINDS.values():
        for key, error in _broken(home, one):
            if one.is_hint:
                yield Finding("garbage", key, f"{one.damaged}; it can be deleted")
            else:
                yield Finding("damage", key, f"{brief(error, key)}: {one.damaged}")
    yield from _condemned(home)
    yield from _purges(home)


def _config(home: Home) -> Iterator[Finding]:
    """Yield a config of before removal was allowed, which somebody has put back."""
    if not home.reclaims_by_now() and shows_reclaim(home.blobs):
        what = (
            f"it names no feature {RECLAIM_FEATURE}, though garbage was collected: was a copy of "
            "before put back? What was removed or purged counts as in force, collected or not"
        )
        yield Finding("damage", keys.CONFIG, f"{what}: 'tierstore gc --enable' names it again")


def _purges(home: Home) -> Iterator[Finding]:
    """Yield purges of which the order or the entry is gone: each says what the other does."""
    try:
        lost = find_lost_records(home, Removals(home))
    except (Damaged, NotFound, UnsupportedFormat):  # the check of the logs says so
        return
    for one in lost.entries:
        what = f"{one.model}@{one.version} was purged, and its log of removals does not say so"
        yield Finding("damage", keys.PURGES + one.id, f"{what}: it can be loaded again")
    for one in lost.orders:
        what = f"{one.model}@{one.version} was purged, and no order says how far that is"
        key = keys.ref_prefix(one.model, keys.REMOVED_LOG)
        yield Finding("damage", key, f"{what}: 'tierstore purge run' goes on with it")
    for name in lost.unordered:
        what = "a purge ended, or begins, before its order: it has purged nothing"
        way = "'tierstore purge run' deletes this a day after it was written, and agents do so"
        yield Finding("garbage", keys.PURGED + name, f"{what}; {way}")


def _broken(home: Home, one: HomeKind) -> Iterator[tuple[str, Damaged | UnsupportedFormat]]:
    """Yield the keys of objects of a kind that cannot be read, and why."""
    for page in _pages(home, one.prefix):
        for key, data in home.blobs.get_many(page).items():  # others may be gone by now
            try:
                one.parse(key, data)
            except (Damaged, UnsupportedFormat) as error:
                yield key, error


def _pages(home: Home, prefix: str) -> Iterator[list[str]]:
    """Yield the keys below a prefix, or that key, as many at a time as are read at once."""
    if not prefix.endswith("/"):
        yield [prefix]
        return
    page, page_bytes = list[str](), 0
    for info in home.blobs.list(prefix):
        if page and (len(page) == _PAGE or page_bytes + info.size > _PAGE_BYTES):
            yield page
            page, page_bytes = [], 0
        page.append(info.key)
        page_bytes += info.size
    if page:
        yield page


def _condemned(home: Home) -> Iterator[Finding]:
    """Yield what cannot be read of the highest condemned list and its segments."""
    try:
        home.condemned.every()
        return
    except (Damaged, UnsupportedFormat) as error:
        why = brief(error)
    names = [info.key.removeprefix(keys.GC) for info in home.blobs.list(keys.GC)]
    numbers = [int(name) for name in names if len(name) == 9 and name.isdigit()]
    key = keys.list_key(max(numbers)) if numbers else keys.GC
    becomes = "no garbage is collected, and saves store again what it may have condemned"
    found: list[Finding] = []
    try:
        for one in parse_list(home.blobs.get(key), max(numbers, default=0), key).segments:
            segment = keys.CONDEMNED + one.key
            try:
                parse_segment(home.blobs.get(segment), segment)
            except NotFound:
                found.append(Finding("damage", segment, f"it is missing: {becomes}"))
            except (Damaged, UnsupportedFormat) as error:
                found.append(Finding("damage", segment, f"{brief(error, key)}: {becomes}"))
    except (Damaged, NotFound, UnsupportedFormat):  # of the list, or of one of an early form
        pass
    yield from found or [Finding("damage", key, f"{why}: {becomes}")]
