"""Checks what home has besides logs, manifests and layouts: what a store is run with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format import keys
from tierstore.format.collected import Collected
from tierstore.format.condemned import parse_list, parse_segment
from tierstore.format.heat import parse_heat
from tierstore.format.layout import parse_mark, parse_move
from tierstore.format.purge import Acknowledgement, NodeNote, PurgedContent, PurgeOrder, PurgePart
from tierstore.format.reflog import Lease, Report
from tierstore.format.retention import Retention
from tierstore.format.sealed import Body, Kind, unseal_body
from tierstore.format.segments import parse_any_segment
from tierstore.format.storeconfig import RECLAIM_FEATURE
from tierstore.format.tiers import HEAT, PINS, Pin, pinned_version
from tierstore.ids import Buffer
from tierstore.modelstore.care.check_findings import Finding, brief
from tierstore.modelstore.home.features import shows_reclaim
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.leases import is_lease
from tierstore.modelstore.names.purgerecords import find_lost_records
from tierstore.modelstore.names.removed import Removals

_PAGE = 256
_PAGE_BYTES = 16 << 20
_Parse = Callable[[Buffer, str], object]
"""Parses an object, by its bytes and key."""


def _move(data: Buffer, key: str) -> object:
    pack = keys.moved_pack(key)
    return None if pack is None else parse_move(data, pack, key)


def _mark(data: Buffer, key: str) -> object:
    pack = keys.pack_of(key)
    return None if pack is None else parse_mark(data, pack, key)


def _pin(data: Buffer, key: str) -> object:
    return None if pinned_version(key) is None else unseal_body(Kind.PIN, data, Pin, key)


def _lease(data: Buffer, key: str) -> object:
    return unseal_body(Kind.LEASE, data, Lease, key) if is_lease(key) else None


def _sealed(kind: Kind, body: type[Body]) -> _Parse:
    return lambda data, key: unseal_body(kind, data, body, key)


_NEEDED: list[tuple[str, _Parse, str]] = [
    (keys.MOVES, _move, "no reader finds what was moved by it"),
    (keys.QUARANTINE, _mark, "its pack counts as damaged"),
    (
        keys.RETENTION,
        _sealed(Kind.RETENTION, Retention),
        "nothing of it is removed or collected until 'tierstore retention set' sets it again",
    ),
    (
        keys.PURGES,
        _sealed(Kind.PURGE, PurgeOrder),
        "'tierstore purge run' begins that purge anew, and what it said of what went is lost",
    ),
    (
        keys.PURGED,
        _sealed(Kind.PURGED, PurgedContent),
        "nodes do not know what to drop until 'tierstore purge run' found it again",
    ),
    (
        keys.PURGE_PARTS,
        _sealed(Kind.PURGE_PART, PurgePart),
        "what one run found or did for that purge may be missing where another one wrote over it",
    ),
    (PINS, _pin, "it pins without end"),
    (
        keys.LEASES,
        _lease,
        "no garbage is collected until it ends, in some hours",
    ),
]
"""Objects that something depends on, and what becomes of it."""

_HINTS: list[tuple[str, _Parse, str]] = [
    (keys.INDEX, parse_any_segment, "a damaged index segment: duplicates may be missed"),
    (HEAT, parse_heat, "damaged heat: what a node has read is forgotten"),
    (
        keys.REPORTS,
        _sealed(Kind.REPORT, Report),
        "a damaged report of a node: it reports again",
    ),
    (
        keys.COLLECTED,
        _sealed(Kind.COLLECTED, Collected),
        "a damaged note of the last collection: times that garbage has waited begin anew",
    ),
    (
        keys.ACKS,
        _sealed(Kind.ACKNOWLEDGEMENT, Acknowledgement),
        "a damaged acknowledgement of a purge: the node drops what was purged once more",
    ),
    (
        keys.NODES,
        _sealed(Kind.NODE, NodeNote),
        "a damaged note of a node: its agent writes it anew within an hour",
    ),
]
"""Objects that only save work."""


def check_home(home: Home) -> Iterator[Finding]:
    """Yield what is damaged of what a store is run with, from moves to hints."""
    yield from _config(home)
    for prefix, parse, becomes in _NEEDED:
        for key, error in _broken(home, prefix, parse):
            yield Finding("damage", key, f"{brief(error, key)}: {becomes}")
    for prefix, parse, what in _HINTS:
        for key, _ in _broken(home, prefix, parse):
            yield Finding("garbage", key, f"{what}; it can be deleted")
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


def _broken(
    home: Home, prefix: str, parse: _Parse
) -> Iterator[tuple[str, Damaged | UnsupportedFormat]]:
    """Yield the objects below a prefix, or of that key, that cannot be read, and why."""
    for page in _pages(home, prefix):
        for key, data in home.blobs.get_many(page).items():  # others may be gone by now
            try:
                parse(data, key)
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
