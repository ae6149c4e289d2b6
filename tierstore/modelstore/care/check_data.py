"""Reads the data that versions need from every tier's copies of packs, the longest unread first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

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
from tierstore.modelstore.care.check_copies import Copies, Suspects, why_unread
from tierstore.modelstore.care.check_findings import Problems, brief
from tierstore.modelstore.care.check_parts import NeededParts, Part, distinct
from tierstore.modelstore.care.readtimes import Copy, ReadTimes
from tierstore.modelstore.chunks.plan import batches
from tierstore.modelstore.chunks.pool import ReadPool
from tierstore.modelstore.chunks.reader import ChunkReader
from tierstore.modelstore.chunks.sharing import Want
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.settings import Settings
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers

_BATCH_BYTES = 64 << 20

Read = Callable[[Callable[[int], None]], bool | None]
"""Reads one item, and tells the plain bytes of each piece; returns whether all of it is good.

``None`` if it could not be read now, because of a tier.
"""


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


class ItemReader:
    """Reads items, those first that were not read for longest, as far as the limits allow.

    What was found good is noted at once, so that another run goes on from there however this one
    ends. What is damaged comes first again. What is in a tier that fails is left.

    Args:
        times: When each item was read.
        limits: How much is read.
        progress: Called with plain bytes read and in all.
        result: Gets how much was read.
        down: The names of tiers that are not asked any more.
    """

    def __init__(
        self,
        times: ReadTimes,
        limits: Limits,
        progress: Callable[[int, int], None] | None,
        result: DataRead,
        down: Mapping[str, str],
    ) -> None:
        self._times, self._limits, self._progress = times, limits, progress
        self._result, self._down = result, down
        self._known: set[Copy] = set()
        self._done = self._total = 0

    def read(self, items: Sequence[Item]) -> None:
        """Read items, or as many of them as the limits allow, and at least one.

        What cannot be read, as in a tier that is down, takes nothing of the share.

        Raises:
            KeyboardInterrupt: With a message that says what was read.
        """
        self._known |= {item.copy for item in items}
        last = self._times.of(self._known)
        order = sorted(items, key=lambda item: last[item.copy])
        share, stored = self._limits.share, sum(item.stored_bytes for item in items)
        self._total += round(share * sum(item.plain_bytes for item in items))
        self._result.copies_left += len(items)
        self._result.left_bytes += stored
        before, copies = self._result.stored_bytes, self._result.copies
        try:
            for item in order:
                taken, is_begun = self._result.stored_bytes - before, self._result.copies > copies
                if share < 1 and is_begun and taken >= share * stored:
                    break
                if time.monotonic() >= self._limits.until:
                    break
                if item.copy[0] not in self._down:
                    self._read(item)
        except KeyboardInterrupt as error:
            raise type(error)(self._result.summary) from None

    def _read(self, item: Item) -> None:
        good = item.read(self._count)
        if good is None:
            return
        (self._times.note if good else self._times.forget)(item.copy)
        self._result.copies += 1
        self._result.copies_left -= 1
        self._result.stored_bytes += item.stored_bytes
        self._result.left_bytes -= item.stored_bytes

    def _count(self, plain_bytes: int) -> None:
        self._done += plain_bytes
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total))


class _WatchedTiers(DurableTiers):
    """Tiers that keep which copies could not be read, and why.

    Attributes:
        failed: The tiers and errors, by the tier's name and the key.
    """

    def __init__(self, tiers: Sequence[DurableTier]) -> None:
        super().__init__(tiers)
        self.failed: dict[Copy, tuple[DurableTier, BackendError]] = {}

    def report(self, tier: DurableTier, key: str, error: BackendError | Damaged) -> None:
        if isinstance(error, BackendError) and not isinstance(error, Archived):
            copied = type(error)(str(error))  # its traceback would hold the buffers of the read
            self.failed.setdefault((tier.name, key), (tier, copied))
        super().report(tier, key, error)


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
        problems: Problems,
        suspects: Suspects,
    ) -> None:
        self._home, self._settings, self._copies = home, settings, copies
        self._parts, self._problems, self._suspects = parts, problems, suspects
        self._tiers = [tier for tier in home.packs.tiers if tier.archive is None]
        every = home.packs.tiers
        self._first = [_WatchedTiers([t, *(o for o in every if o is not t)]) for t in self._tiers]
        self.decoded_bytes = 0
        self.bad: set[bytes] = set()
        self._good = True
        self._lost: set[str] = set()
        """Packs of which something could be read from no copy of this item's."""

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
        def read(count: Callable[[int], None]) -> bool | None:
            self._good = True
            self._lost.clear()
            tier, tiers = self._tiers[number], self._first[number]
            tiers.failed.clear()
            try:
                for part, places in distinct(self._parts.of(pack)):
                    if places:
                        self._read_part(part, places, tiers, count)
            except OutOfSpace:  # of the check itself
                raise
            except BackendError:
                if not tiers.failed:  # it was home
                    raise
                self._tell_failed(tiers)
                return None
            if (tier.name, keys.pack_key(pack)) in self._tell_failed(tiers):
                self._good = False
            return None if tier.name in self._copies.down else self._good

        return read

    def _tell_failed(self, tiers: _WatchedTiers) -> set[Copy]:
        """Say which copies cannot be read while another one is, or may be; return these."""
        found: set[Copy] = set()
        for (name, key), (tier, error) in tiers.failed.items():
            pack = keys.pack_of(key)
            if pack is not None and self._copies.is_of_copy(tier, key, error):
                found.add((name, key))
                if key not in self._lost and pack not in self.bad:
                    self._problems.bad_copy(pack, name, error, self._copies.other(key))
        return found

    def _are_of_copies(self, tiers: _WatchedTiers) -> bool:
        """Return whether all that failed were single copies, and no tier as such."""
        failed = [(tier, key, error) for (_, key), (tier, error) in tiers.failed.items()]
        single = [one for one in failed if self._copies.is_of_copy(*one)]
        return bool(failed) and len(single) == len(failed)

    def _read_part(
        self,
        part: Part,
        places: list[ChunkPlace],
        tiers: _WatchedTiers,
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
            self._read_batch(reader, table, batch, tiers)
            count(sum(place.plain_bytes for place in batch))
        for bad in pool.bad_copies:
            self._good = False
            if bad.moved:  # damaged in every tier, and stored again since
                self._suspects.add(pool.moves.way(bad.place)[:-1], table)
            else:
                where = ", ".join(bad.tiers)
                self._problems.bad_copy(bad.place.pack, where, bad.why, "another one is good")
        self.decoded_bytes += pool.bytes_decoded

    def _read_batch(
        self,
        reader: ChunkReader,
        table: ChunkTable,
        batch: list[ChunkPlace],
        tiers: _WatchedTiers,
    ) -> None:
        wants = [Want(place, memoryview(bytearray(place.plain_bytes))) for place in batch]
        try:
            reader.read(wants, own=True)
            reader.check_proofs(batch)
            return
        except (Archived, Damaged, NotFound, UnsupportedFormat):
            pass
        except OutOfSpace:  # of the check itself
            raise
        except BackendError:
            if not self._are_of_copies(tiers):
                raise
        self._good = False
        for want in wants:  # one by one, to name each chunk
            place = want.place
            if place.pack in self.bad and self._problems.ways.lost(place, table) is not None:
                continue
            with suppress(Archived):
                self._read_one(reader, table, want, tiers)

    def _read_one(
        self, reader: ChunkReader, table: ChunkTable, want: Want, tiers: _WatchedTiers
    ) -> None:
        try:
            reader.read([want], own=True)
            reader.check_proofs([want.place])
        except (Archived, OutOfSpace):
            raise
        except (Damaged, NotFound, UnsupportedFormat) as error:
            self._tell_lost(reader, table, want.place, error)
        except BackendError as error:
            if not self._are_of_copies(tiers):
                raise
            key = keys.pack_key(want.place.pack)
            own = [(t, why) for (t, of), (_, why) in tiers.failed.items() if of == key]
            self._tell_lost(reader, table, want.place, why_unread(*own[0]) if own else error)

    def _tell_lost(
        self, reader: ChunkReader, table: ChunkTable, place: ChunkPlace, why: object
    ) -> None:
        """Say that a chunk is lost, unless a tier that cannot be asked now may have it good."""
        packs = [one.pack for one in (place, *filter(None, map(table.find, place.bases)))]
        needed = list(map(keys.pack_key, packs))
        there = list(map(self._copies.now, needed))  # all: who fails is down from now on
        self._lost.update(needed)
        if down := sorted({name for key in needed for name in self._copies.unread(key)}):
            may = f"tier {', '.join(down)} may have it good and could not be asked"
            self._problems.unsure(place.pack, f"{brief(why, needed[0])}; {may}")
            return
        way = reader.pool.moves.way(place)
        self._problems.lost(place.pack, why, way, is_gone=not all(there))
        self._suspects.add(way, table)
