"""Durable tiers as one blob store: a pack is read from the fastest tier that has it.

Which tier has a pack is found out by asking and remembered for a while. The memory only decides the
order in which tiers are asked: a tier that says ``NotFound`` is followed by the next one, and so is
one that fails or whose copy is cut short. A pack that is absent is distinguished from one that
could not be asked for.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from types import TracebackType

from tierstore.blobs.base import BlobInfo, BlobStore, Capabilities, RangeRead
from tierstore.errors import Archived, BackendError, Damaged, NotFound, OutOfSpace, Unreachable
from tierstore.forks import begin
from tierstore.format.tiers import HOME_NAME, TierSpec
from tierstore.ids import Buffer, ByteRange
from tierstore.tiers.durable.room import Room
from tierstore.tiers.durable.tier import DurableTier

_log = logging.getLogger("tierstore.tiers")
_REMEMBERED = 1 << 16
_ASK_AGAIN_S = 60.0
"""Seconds after which a pack found in a slow tier is looked for in the faster ones again."""


def home_tier(store: BlobStore) -> DurableTier:
    """Return home's own packs as the last tier."""
    return DurableTier(TierSpec(name=HOME_NAME, role="cold", url=store.url), store)


class DurableTiers(BlobStore):
    """Packs in an ordered list of tiers, the fastest first; only for keys below ``packs/``.

    A pack is written to the first tier that takes writes, or to the next one when that fails.

    Args:
        tiers: The tiers, at least one.
        reload: Returns the new tiers when the store's list of them has changed, otherwise ``None``.
    """

    def __init__(
        self,
        tiers: Sequence[DurableTier],
        reload: Callable[[], Sequence[DurableTier] | None] = lambda: None,
    ) -> None:
        self.tiers = tuple(tiers)
        self._reload = reload
        self._opened = list(tiers)
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._where: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._failing: set[str] = set()
        self._rooms: dict[str, Room] = {}

    @property
    def url(self) -> str:
        if len(self.tiers) == 1:
            return self.tiers[0].blobs.url
        return f"the tiers {', '.join(tier.name for tier in self.tiers)}"

    @property
    def capabilities(self) -> Capabilities:
        if len(self.tiers) == 1:
            return self.tiers[0].blobs.capabilities
        # not asked of the tiers: that could open them
        return Capabilities(put_if_absent=False, durable=True)

    @property
    def local(self) -> bool:
        return len(self.tiers) == 1 and self.tiers[0].blobs.local

    def read(self, reads: Sequence[RangeRead], avoid: frozenset[str] = frozenset()) -> str:
        """Fill every ``out``, all of one pack, and return the name of the tier that gave it.

        Args:
            reads: Ranges of one key.
            avoid: The names of tiers whose copy is known to be bad.

        Raises:
            NotFound: Every tier was asked, and none has it.
            Damaged: All copies of it are cut short.
            BackendError: No tier gave it, and not all could be asked.
        """
        search = _Search(self, reads[0].key, avoid)
        for tier in search:
            with search:
                tier.blobs.get_ranges(reads)
                tier.stats.count(hits=1, hit_bytes=sum(read.out.nbytes for read in reads))
                return tier.name
        raise search.failure()

    def room(self, tier: DurableTier) -> Room:
        """Return the room that one of the tiers has left."""
        with self._lock:
            return self._rooms.setdefault(tier.name, Room(tier))

    def refresh(self) -> bool:
        """Reload the store's list of tiers, and return whether it has changed.

        The room of a tier that had none is asked for again.
        """
        with self._lock:
            rooms = list(self._rooms.values())
        for room in rooms:
            room.look_again()
        tiers = self._reload()
        if tiers is None:
            return False
        with self._lock:
            self._rooms.clear()
            self.tiers = tuple(tiers)
            self._opened += [tier for tier in tiers if tier not in self._opened]
            self._where.clear()
        return True

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        search = _Search(self, key)
        for tier in search:
            with search:
                found = tier.blobs.get(key, byte_range)
                tier.stats.count(hits=1, hit_bytes=found.nbytes)
                return found
        raise search.failure()

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        for key in dict.fromkeys(read.key for read in reads):
            self.read([read for read in reads if read.key == key])

    def info(self, key: str) -> BlobInfo:
        """Return size and time of a copy that can be read now, and so of none in an archive."""
        return self._info(key, {tier.name for tier in self.tiers if tier.archive is not None})

    def size(self, key: str) -> int:
        """Return the bytes of a pack in whatever tier, also in an archive."""
        return self._info(key).size

    def _info(self, key: str, avoid: Set[str] = frozenset()) -> BlobInfo:
        search = _Search(self, key, frozenset(avoid))
        for tier in search:
            with search:
                return tier.blobs.info(key)
        raise search.failure()

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        """Write to the first tier that has room and takes it; each tier that fails is logged."""
        failed: BackendError | None = None
        parts = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
        size = sum(memoryview(part).nbytes for part in parts)
        for number, tier in enumerate(self.tiers):
            if not tier.takes_writes or tier.archive is not None:
                continue
            try:
                if not self.room(tier).fits(size):
                    continue
                tier.blobs.put(key, data)
                self.room(tier).add(size)
                tier.verify()  # it is safe only if the tier was there while it was written
            except BackendError as error:
                failed = failed or error
                self.report(tier, key, error)
            else:
                self.mark(key, tier, number)
                return
        raise failed or OutOfSpace(f"no tier takes {key!r}: {self.url} are full or draining")

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        if len(self.tiers) > 1:
            raise BackendError(f"{self.url} cannot create a blob only if it is absent from all")
        return self.tiers[0].blobs.put_if_absent(key, data)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete from every tier; raises the first tier's error after all others were asked."""
        gone = list(keys)
        failed: BackendError | None = None
        for tier in self.tiers:
            try:
                tier.blobs.delete(gone)
            except BackendError as error:
                failed = failed or error
        with self._lock:
            for key in gone:
                self._where.pop(key, None)
        if failed is not None:
            raise failed

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        last = ""
        listings = [tier.blobs.list(prefix) for tier in self.tiers]
        for info in heapq.merge(*listings, key=lambda info: info.key):
            if info.key != last:
                yield info
            last = info.key

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        return iter(sorted({one for tier in self.tiers for one in tier.blobs.list_folders(prefix)}))

    def close(self) -> None:
        for tier in self._opened:
            tier.blobs.close()

    def order_of(self, key: str, count: int) -> Iterable[int]:
        """Return the numbers of the tiers in the order in which to ask them."""
        with self._lock:
            first, seen = self._where.get(key, (0, 0.0))
        if not 0 < first < count or time.monotonic() - seen > _ASK_AGAIN_S:
            return range(count)
        return (first, *(n for n in range(count) if n != first))

    def mark(self, key: str, tier: DurableTier, number: int) -> None:
        """Remember that a tier has a blob, and that it works."""
        now = time.monotonic()
        with self._lock:
            self._failing.discard(tier.name)
            known, seen = self._where.get(key, (-1, 0.0))
            if known != number or now - seen > _ASK_AGAIN_S:
                self._where[key] = number, now
            self._where.move_to_end(key)
            if len(self._where) > _REMEMBERED:
                self._where.popitem(last=False)

    def forget(self, key: str, tier: DurableTier, number: int) -> None:
        """Forget that a tier has a blob, and count a miss: the tier says that it lacks it."""
        tier.stats.count(misses=1)
        with self._lock:
            if self._where.get(key, (-1, 0.0))[0] == number:
                del self._where[key]

    def report(self, tier: DurableTier, key: str, error: BackendError | Damaged) -> None:
        """Log that a tier failed while others stand in for it, once until it works again."""
        if len(self.tiers) == 1:  # nothing stands in for it: the error itself reaches the caller
            return
        if isinstance(error, Damaged):
            _log.error("the copy of %s in tier %s is damaged: %s", key, tier.name, error)
            return
        if isinstance(error, Archived):
            return
        with self._lock:
            known = tier.name in self._failing
            self._failing.add(tier.name)
        # one line when it begins to fail: a tier that is down fails every read
        _log.log(
            logging.DEBUG if known else logging.WARNING,
            "tier %s failed: %s",
            tier.name,
            error,
            extra={"tier": tier.name},
        )


class _Search:
    """One blob asked for in tier after tier: ``for tier in search: with search: ask(tier)``.

    Inside of ``with`` a tier may fail: what it raised is kept, and the next one is asked. That is
    dropped at the end: by its traceback it holds whoever asked, and with it this object.

    Args:
        tiers: The tiers.
        key: The blob's key.
        avoid: Names of tiers that are not asked.
    """

    def __init__(self, tiers: DurableTiers, key: str, avoid: frozenset[str] = frozenset()) -> None:
        self._tiers, self._key, self._avoid = tiers, key, avoid
        self._asked: tuple[DurableTier, int] | None = None
        self._missing: NotFound | None = None
        self._failures: list[tuple[DurableTier, BackendError | Damaged]] = []

    def __iter__(self) -> Iterator[DurableTier]:
        yield from self._all()
        while not self._failures and self._tiers.refresh():
            yield from self._all()

    def _all(self) -> Iterator[DurableTier]:
        tiers = self._tiers.tiers
        # twice: a pack that moves up can be missed by one look from the fastest tier down, and
        # before a pack counts as missing, each tier must prove that it is that tier
        for again in (False, True)[: len(tiers)]:
            for number in self._tiers.order_of(self._key, len(tiers)):
                tier = tiers[number]
                if tier.name in self._avoid:
                    continue
                self._asked = tier, number
                if again and not self._is_itself(tier):
                    continue
                yield tier
            if self._failures:
                return

    def _is_itself(self, tier: DurableTier) -> bool:
        try:
            tier.verify()
        except (NotFound, BackendError, Damaged) as error:
            self._failed(error)
            return False
        return True

    def __enter__(self) -> None:
        """Ask the tier that was given last."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, NotFound | BackendError | Damaged):
            self._failed(error)
            return True
        if error is None and self._asked is not None:
            self._tiers.mark(self._key, *self._asked)
            self._failures, self._missing = [], None
        return False

    def _failed(self, error: NotFound | BackendError | Damaged) -> None:
        assert self._asked is not None
        tier, number = self._asked
        if isinstance(error, NotFound):
            self._tiers.forget(self._key, tier, number)
            self._missing = error
        else:
            self._failures.append((tier, error))
            self._tiers.report(tier, self._key, error)

    def failure(self) -> BackendError | Damaged | NotFound:
        """Return what to raise once no tier is left to ask, and drop it here."""
        alone = len(self._tiers.tiers) == 1
        failures, missing = self._failures, self._missing
        self._failures, self._missing = [], None
        if not failures:
            if alone and missing is not None:
                return missing
            return NotFound(f"blob {self._key!r} is in none of {self._tiers.url}")
        unasked = [(t, error) for t, error in failures if isinstance(error, BackendError)]
        if unasked and all(isinstance(error, Archived) for _, error in unasked):
            return unasked[0][1]
        if alone or not unasked:
            return failures[0][1]
        kinds = {type(error) for _, error in unasked}
        kind = kinds.pop() if len(kinds) == 1 else Unreachable
        why = "; ".join(f"tier {tier.name} could not be asked: {error}" for tier, error in unasked)
        failed = kind(f"blob {self._key!r} was not found, but it may exist: {why}")
        failed.__cause__ = unasked[0][1]
        return failed
