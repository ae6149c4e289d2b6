"""Reads the data that versions need from every tier's copies of packs, the longest unread first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from tierstore.errors import (
    Archived,
    BackendError,
    Damaged,
    NotFound,
    OutOfSpace,
    UnsupportedFormat,
)
from tierstore.format import keys
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.care.check_copies import Copies, Suspects
from tierstore.modelstore.care.check_findings import PackProblems
from tierstore.modelstore.care.check_parts import NeededParts, Part, distinct
from tierstore.modelstore.care.readtimes import Copy, ReadTimes
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.chunks.pool import ReadPool
from tierstore.modelstore.chunks.reader import ChunkReader
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.chunks.ways import FrameWays
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.settings import Settings
from tierstore.tiers.durable.tiers import DurableTiers

_BATCH_BYTES = 64 << 20

Read = Callable[[Callable[[int], None]], bool]
"""Reads one item, and tells the plain bytes of each piece; returns whether all of it is good."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something to read in full: a tier's copy of a pack, or what a fold is compared with.

    Attributes:
        copy: The name of the tier, or ``""``, and the key of the object.
        stored_bytes: Its share of the store.
        plain_bytes: Plain bytes to compare.
        read: Reads it.
    """

    copy: Copy
    stored_bytes: int
    plain_bytes: int
    read: Read


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the data one check reads.

    Attributes:
        share: The share of the stored bytes that is read, above 0 and up to 1.
        until: The time by ``time.monotonic`` after which nothing more is begun.
    """

    share: float = 1.0
    until: float = float("inf")


@dataclass(slots=True)
class DataRead:
    """How much was read.

    Attributes:
        copies: Number of items that were read in full.
        copies_left: Number of items that were left for another time.
        stored_bytes: Stored bytes of what was read.
        left_bytes: Stored bytes of what was left.
    """

    copies: int = 0
    copies_left: int = 0
    stored_bytes: int = 0
    left_bytes: int = 0

    @property
    def rest(self) -> str:
        """The share that was left, as ``check --subset`` takes it, rounded up: ``62.5%``."""
        left = -(-1000 * self.left_bytes // max(1, self.left_bytes + self.stored_bytes))
        return f"{max(1, left) / 10:g}%"

    @property
    def summary(self) -> str:
        """How much was read, and how to read the rest."""
        every = self.copies + self.copies_left
        return (
            f"{self.copies} of {every} copies of packs were read; "
            f"'tierstore check --subset {self.rest}' reads the rest"
        )


def read_items(
    items: Sequence[Item],
    times: ReadTimes,
    limits: Limits,
    progress: Callable[[int, int], None] | None,
    result: DataRead,
    copies: Copies,
) -> None:
    """Read items, those first that were not read for longest, as far as the limits allow.

    What was found good is noted at once, so that another run goes on from there however this one
    ends. What is damaged comes first again. What is in a tier that fails is left.

    Raises:
        KeyboardInterrupt: With a message that says what was read.
    """
    last = times.of({item.copy for item in items})
    order = sorted(items, key=lambda item: last[item.copy])
    chosen = _first(order, limits.share)
    total, done = sum(item.plain_bytes for item in chosen), 0
    result.copies_left = len(items)
    result.left_bytes = sum(item.stored_bytes for item in items)

    def count(plain_bytes: int) -> None:
        nonlocal done
        done += plain_bytes
        if progress is not None:
            progress(done, total)

    try:
        for item in chosen:
            if time.monotonic() >= limits.until:
                break
            if item.copy[0] in copies.down:
                continue
            try:
                good = item.read(count)
            except OutOfSpace:  # of the check itself
                raise
            except BackendError as error:
                copies.failed(*item.copy, error)
                continue
            (times.note if good else times.forget)(item.copy)
            result.copies += 1
            result.copies_left -= 1
            result.stored_bytes += item.stored_bytes
            result.left_bytes -= item.stored_bytes
    except KeyboardInterrupt as error:
        raise type(error)(result.summary) from None


def _first(items: Sequence[Item], share: float) -> Sequence[Item]:
    """Return as many of the first items as have a share of the bytes, and at least one."""
    if share >= 1:
        return items
    wanted = share * sum(item.stored_bytes for item in items)
    taken = 0
    for number, item in enumerate(items):
        if number and taken >= wanted:
            return items[:number]
        taken += item.stored_bytes
    return items


class PackData:
    """Decodes what layouts need of a tier's copies, and compares each chunk with its digest.

    Args:
        home: The store's home.
        settings: Limits on threads and memory.
        copies: Where packs lie.
        parts: What layouts need of packs.
        problems: Told of damage.
        suspects: Told of packs that may have to be quarantined.

    Attributes:
        decoded_bytes: Plain bytes that were compared.
        bad: Packs whose damage was found already: what is lost with them is not told once more.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        copies: Copies,
        parts: NeededParts,
        problems: PackProblems,
        suspects: Suspects,
    ) -> None:
        self._home, self._settings, self._copies = home, settings, copies
        self._parts, self._problems, self._suspects = parts, problems, suspects
        self._tiers = [tier for tier in home.packs.tiers if tier.archive is None]
        every = home.packs.tiers
        self._first = [DurableTiers([t, *(o for o in every if o is not t)]) for t in self._tiers]
        self.decoded_bytes = 0
        self.bad: set[bytes] = set()
        self._good = True
        self._tiers_read: set[str] = set()

    def items(self, sizes: dict[bytes, tuple[int, int]]) -> list[Item]:
        """Return the copies to read, tier by tier.

        A pack that no tier has is read by its moves. One that an archive alone has is not read,
        unless it was moved.

        Args:
            sizes: Frame bytes and plain bytes that are needed of each pack.
        """
        held = [self._copies.held[tier.name] for tier in self._tiers]
        archived = self._copies.every
        found = []
        for number, tier in enumerate(self._tiers):
            for pack, (frame_bytes, plain_bytes) in sizes.items():
                key = keys.pack_key(pack)
                size = held[number].get(key)
                if size is None:
                    if number or any(key in other for other in held):
                        continue
                    unread = pack in self.bad or key in archived
                    if unread and pack not in self._copies.moves:
                        continue  # nobody can read it
                    size = frame_bytes
                read = self._reader(pack, number)
                found.append(Item((tier.name, key), size, plain_bytes, read))
        return found

    def _reader(self, pack: bytes, number: int) -> Read:
        def read(count: Callable[[int], None]) -> bool:
            self._good = True
            self._tiers_read.clear()
            for part, places in distinct(self._parts.of(pack)):
                if places:
                    self._read_part(part, places, self._first[number], count)
            tier = self._tiers[number]
            if self._tiers_read and tier.name not in self._tiers_read:
                with suppress(NotFound):  # a mover has dropped it; else it fails, and is not read
                    tier.blobs.info(keys.pack_key(pack))
            return self._good

        return read

    def _read_part(
        self,
        part: Part,
        places: list[ChunkPlace],
        tiers: DurableTiers,
        count: Callable[[int], None],
    ) -> None:
        table = part.table
        pool = ReadPool(
            self._home.blobs,
            tiers,
            table,
            threads=self._settings.threads,
            memory_limit_bytes=self._settings.memory_limit_bytes,
        )
        reader = ChunkReader(pool, table)
        for batch in batches(places, lambda place: place.plain_bytes, _BATCH_BYTES):
            self._read_batch(reader, table, batch)
            count(sum(place.plain_bytes for place in batch))
        for bad in pool.bad_copies:
            self._good = False
            if bad.moved:  # damaged in every tier, and stored again since
                self._suspects.add(pool.moves.way(bad.place)[:-1], table)
            else:
                where = ", ".join(bad.tiers)
                self._problems.bad_copy(bad.place.pack, where, bad.why, "another one is good")
        self.decoded_bytes += pool.bytes_decoded
        self._tiers_read.update(pool.bytes_by_tier)

    def _read_batch(self, reader: ChunkReader, table: ChunkTable, batch: list[ChunkPlace]) -> None:
        wants = [Want(place, memoryview(bytearray(place.plain_bytes))) for place in batch]
        try:
            reader.read(wants, own=True)
            reader.check_proofs(batch)
        except (Archived, Damaged, NotFound, UnsupportedFormat):
            self._good = False
            for want in wants:  # one by one, to name each chunk
                place = want.place
                if place.pack in self.bad and self._ways.lost(place, table) is not None:
                    continue
                with suppress(Archived):
                    self._read_one(reader, table, want)

    @cached_property
    def _ways(self) -> FrameWays:
        return self._problems.ways()

    def _read_one(self, reader: ChunkReader, table: ChunkTable, want: Want) -> None:
        try:
            reader.read([want], own=True)
            reader.check_proofs([want.place])
        except (Damaged, NotFound, UnsupportedFormat) as error:
            place = want.place
            self._problems.lost(place.pack, error, place, is_gone=self._is_gone(table, place))
            self._suspects.add(reader.pool.moves.way(want.place), table)

    def _is_gone(self, table: ChunkTable, place: ChunkPlace) -> bool:
        """Return whether the pack of a chunk, or that of a base of it, is in no tier now."""
        found = [place, *filter(None, map(table.find, place.bases))]
        return not all(self._copies.now(keys.pack_key(one.pack)) for one in found)
