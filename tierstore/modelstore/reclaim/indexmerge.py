"""Merges index segments: of many small ones few are made (SPEC.md section 8).

A save writes a segment of its own. Sixteen of about one size become one, so that a row is written
anew a few times in all, and a store of any number of saves has some dozens. Only the keys are
listed when there is nothing to do.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from tierstore.blobs.base import BlobInfo
from tierstore.errors import Damaged, NotFound, TierstoreError, UnsupportedFormat
from tierstore.format.keys import INDEX
from tierstore.format.segments import (
    Segment,
    is_segment_key,
    merge_tables,
    parse_any_segment,
    seal_merged,
)
from tierstore.format.table import ChunkTable
from tierstore.modelstore.home.condemned import Condemned
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.reclaim.holdings import Holdings

MERGED_AT = 16
"""So many segments of one class of sizes are merged; a class spans a factor of sixteen."""

FULL_BYTES = 24 << 20
"""A segment of this size has about 10^6 rows; merging it with others gives no fewer segments."""

_BATCH_BYTES = 64 << 20
_BATCH = 4096
_MONTH_S = 30 * 24 * 3600
_THREADS = 8
_log = logging.getLogger("tierstore.gc")


def tidy_index(
    home: Home,
    condemned: Condemned,
    holdings: Holdings,
    lease: HeldLease,
    now_s: float,
    is_over: Callable[[], bool],
) -> None:
    """Merge index segments as ``merge_index``; what cannot be done now is left to the next run."""
    try:
        merge_index(home, condemned, holdings, lease, now_s, is_over)
    except TierstoreError as error:
        _log.warning("index segments were not merged: %s", error)


def merge_index(
    home: Home,
    condemned: Condemned,
    holdings: Holdings,
    lease: HeldLease,
    now_s: float,
    is_over: Callable[[], bool],
) -> int:
    """Merge index segments, and leave out what lies in packs that nothing may rely on.

    New segments are there before old ones are deleted, so nothing is lost whatever is stopped, or
    merges at the same time: at worst some rows are there twice.

    Args:
        home: The store's home.
        condemned: What is condemned.
        holdings: What the tiers have.
        lease: The right of the collector.
        now_s: Seconds since the epoch by home's clock, or earlier.
        is_over: Asked before each batch: whether the time is over.

    Returns:
        How many segments were merged into others.

    Raises:
        Conflict: The right is lost.
        BackendError: Home cannot be asked.
    """
    work = _Merging(home, condemned, holdings, lease)
    classes: dict[int, list[BlobInfo]] = {}
    stale = list[BlobInfo]()
    for info in home.blobs.list(INDEX):
        if not is_segment_key(info.key):
            continue
        if info.size < FULL_BYTES:
            classes.setdefault(_class_of(info.size), []).append(info)
        elif _is_stale(info, condemned, now_s):
            stale.append(info)
    for number in range(max(classes, default=0) + 1):
        found = classes.get(number, [])
        for batch in _batches(found) if len(found) >= MERGED_AT else ():
            if is_over():
                return work.done
            for info in work.merge(batch):  # they may be enough for the next class
                classes.setdefault(_class_of(info.size), []).append(info)
    for info in stale:
        if is_over():
            break
        work.merge([info])
    return work.done


def _class_of(size: int) -> int:
    return size.bit_length() // 4


def _is_stale(info: BlobInfo, condemned: Condemned, now_s: float) -> bool:
    """Whether a segment is a month old, and packs were condemned since it was written."""
    times = (time_us / 1e6 for time_us, _ in condemned.segments.values())
    return now_s - info.mtime > _MONTH_S and any(time_s > info.mtime for time_s in times)


def _batches(found: Iterable[BlobInfo]) -> Iterator[list[BlobInfo]]:
    """Cut segments into batches of at most ``_BATCH_BYTES``; one alone is left as it is."""
    batch, size = list[BlobInfo](), 0
    for info in found:
        if batch and (size + info.size > _BATCH_BYTES or len(batch) == _BATCH):
            yield batch
            batch, size = [], 0
        batch.append(info)
        size += info.size
    if len(batch) > 1:
        yield batch


class Fitness:
    """Which packs the index may lead to, at one time.

    Args:
        home: The store's home.
        condemned: The ids of all condemned packs.
        holdings: What the tiers have.

    Attributes:
        last: Ids of packs that no save reuses as long as they have a mark.
    """

    def __init__(self, home: Home, condemned: Set[bytes], holdings: Holdings) -> None:
        self._condemned, self._holdings = condemned, holdings
        self._there = holdings.every()
        self.last = home.quarantine.packs()

    def merge(self, tables: Sequence[ChunkTable]) -> ChunkTable:
        """Return one table of what these hold in packs that saves may rely on."""
        packs = {pack for table in tables for pack in table.pack_ids}
        return merge_tables(tables, without=self._gone(packs), last=self.last)

    def _gone(self, packs: Set[bytes]) -> set[bytes]:
        unknown = list(packs - self._condemned - self._there)
        with ThreadPoolExecutor(_THREADS, "tierstore-index") as pool:
            there = pool.map(self._holdings.is_there, unknown)
            gone = {pack for pack, has in zip(unknown, there, strict=True) if not has}
        return gone.union(self._condemned & packs)


class _Merging:
    """Merges segments at the time of one mark.

    Attributes:
        done: How many were merged into others.
    """

    def __init__(
        self, home: Home, condemned: Condemned, holdings: Holdings, lease: HeldLease
    ) -> None:
        self._home, self._lease = home, lease
        self._condemned, self._holdings = condemned, holdings
        self.done = 0

    @cached_property
    def _fitness(self) -> Fitness:
        return Fitness(self._home, self._condemned.packs, self._holdings)

    def merge(self, batch: Sequence[BlobInfo]) -> list[BlobInfo]:
        """Write what some segments hold into new ones, and delete these.

        One that cannot be read stays where it is.

        Returns:
            The new segments.
        """
        self._lease.keep()
        read = self._read([info.key for info in batch])
        if not read or (len(read) == 1 < len(batch)):
            return []
        table = self._fitness.merge([segment.table for segment in read.values()])
        new = write_merged(self._home, table, replaces=read.keys())
        self._lease.check()
        self._home.blobs.delete(list(read))
        _log.info("%d index segments are merged into %d", len(read), len(new))
        self.done += len(read)
        return new

    def _read(self, keys: Sequence[str]) -> dict[str, Segment]:
        def read(key: str) -> Segment | None:
            try:
                return parse_any_segment(self._home.blobs.get(key), f"index segment {key}")
            except NotFound:  # another collector has merged it
                return None
            except (Damaged, UnsupportedFormat) as error:
                _log.warning("left as it is: %s", error)
                return None

        with ThreadPoolExecutor(_THREADS, "tierstore-index") as pool:
            found = zip(keys, pool.map(read, keys), strict=True)
            return {key: segment for key, segment in found if segment is not None}


def write_merged(home: Home, table: ChunkTable, *, replaces: Set[str]) -> list[BlobInfo]:
    """Write a merged table as new segments; see ``seal_merged``.

    Returns:
        Their keys and sizes, without a time.
    """
    new = []
    for data in seal_merged(table, replaces):
        key = INDEX + uuid.uuid4().hex
        home.blobs.put(key, data)
        new.append(BlobInfo(key, len(data), 0.0))
    return new
