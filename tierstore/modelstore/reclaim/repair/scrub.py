"""The scrub: reads every durable copy of every pack again and again, a little at a time.

One process of a store does it (SPEC.md 13). The copies that it has not read for longest come first;
a local file, which can be lost, keeps when that was. A damaged copy gets the bytes of a good one;
where there is none, the pack is quarantined, so that saving its content again heals it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tierstore.blobs.base import RangeRead
from tierstore.errors import (
    BackendError,
    Conflict,
    Damaged,
    NotFound,
    TierstoreError,
    UnsupportedFormat,
)
from tierstore.format.keys import PACKS, SCRUBS, pack_of
from tierstore.format.storeconfig import check_features
from tierstore.modelstore.care.readtimes import Copy, ReadTimes
from tierstore.modelstore.chunks.copies import read_copies, why_down
from tierstore.modelstore.chunks.examine import quarantine
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.placing.moverlease import HeldLease, Right
from tierstore.modelstore.reclaim.repair.putback import put_back
from tierstore.shown import counted, size, time_text
from tierstore.tiers.durable.budget import Budget
from tierstore.tiers.durable.packcheck import check_pack
from tierstore.tiers.durable.tier import DurableTier

SCRUBBER = Right(SCRUBS, "scrub", ttl_s=4 * 3600)
_SHARE = 0.25
"""The share of the time for which a scrub reads at most."""
_MOST_S = 30.0
"""Seconds that one call reads at most: the agent has other work."""
_LIST_EVERY_S = 3600.0
_ASK_AGAIN_S = 3600.0
_SAVED_UP_S = 24 * 3600.0
_TELL_EVERY_S = 24 * 3600.0
_log = logging.getLogger("tierstore.scrub")


@dataclass(slots=True)
class ScrubStats:
    """Totals of a scrub since it was made.

    Attributes:
        copies: Copies of packs that were read in full.
        bytes: Bytes of these.
        damaged: Copies that were damaged.
        healed: Copies that got the bytes of a good one.
        quarantined: Packs of which no tier had a good copy.
    """

    copies: int = 0
    bytes: int = 0
    damaged: int = 0
    healed: int = 0
    quarantined: int = 0


class Scrub:
    """Reads the copies of a store's packs in turn. For one thread; to be closed.

    Args:
        home: The store's home.
        times: The local file that keeps when copies were read.
        period_s: Seconds in which every copy is to be read once.
        stop: Ends a call between two pieces of work once it is set.
        budget: Limits of its bandwidth; whatever they are, it reads for at most a quarter of the
            time.
        clock: Returns seconds that never run backwards.
    """

    def __init__(
        self,
        home: Home,
        times: Path,
        period_s: float,
        *,
        stop: threading.Event,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home, self._period_s, self._clock = home, period_s, clock
        self._budget = (budget or Budget()).at_most(_SHARE)
        self._stop = stop
        self._times = ReadTimes(times, "scrub")
        self._right: HeldLease | None = None
        self._ask_at = clock()
        self._sizes: dict[Copy, int] = {}
        self._order: deque[Copy] = deque()
        self._listed = float("-inf")
        self._since, self._allowed = clock(), 0.0
        self._told_at, self._told = float("-inf"), ScrubStats()
        self._known_bad: set[Copy] = set()
        self.stats = ScrubStats()

    def close(self) -> None:
        """Let another process go on."""
        if self._right is not None:
            self._right.__exit__(None, None, None)
            self._right = None
        self._times.__exit__(None, None, None)

    def run(self) -> None:
        """Read what is due since the last call, if no other process of the store does.

        What a tier or a copy fails with is logged. Raises ``BackendError`` when home fails.
        """
        if not self._may():
            return
        began = self._clock()
        if began - self._listed >= _LIST_EVERY_S:
            self._list()
        rate = sum(self._sizes.values()) / self._period_s
        earned = (began - self._since) * rate
        self._since, self._allowed = began, min(self._allowed + earned, _SAVED_UP_S * rate)
        while self._allowed > 0 and self._order and not self._stop.is_set():
            copy = self._order.popleft()
            self._allowed -= self._sizes[copy]
            self._look(copy)
            self._order.append(copy)
            if self._clock() - began >= _MOST_S:
                break
        self._tell()

    def _tell(self) -> None:
        """Say once a day what was verified, and since when all of it was."""
        read, nbytes = self.stats.copies - self._told.copies, self.stats.bytes - self._told.bytes
        now = self._clock()
        if not read or now - self._told_at < _TELL_EVERY_S:
            return
        self._told_at, self._told = now, replace(self.stats)
        last = self._times.of(self._sizes.keys())
        unread = sum(not time_us for time_us in last.values())
        every = f"{unread} of {counted(len(last), 'copy')} were never read by this node"
        if last and not unread:
            oldest = time_text(datetime.fromtimestamp(min(last.values()) / 1e6, UTC))
            every = f"all of {counted(len(last), 'copy')} were read since {oldest}"
        fields = {
            "event": "scrub",
            "copies": read,
            "bytes": nbytes,
            "damaged": self.stats.damaged,
            "healed": self.stats.healed,
            "quarantined": self.stats.quarantined,
            "unread_copies": unread,
        }
        _log.info(
            "%s of packs verified, %s; %s",
            counted(read, "copy"),
            size(nbytes),
            every,
            extra={"fields": fields},
        )

    def _may(self) -> bool:
        """Take or keep the right to scrub; return whether this process has it."""
        try:
            if self._right is not None:
                self._right.keep()
            elif self._clock() >= self._ask_at:
                self._right = HeldLease(self._home.blobs, SCRUBBER).__enter__()
                self._since = self._clock()
        except Conflict as error:
            _log.debug("%s", error)
            self._right = None
            self._ask_at = self._clock() + _ASK_AGAIN_S
        return self._right is not None

    def _list(self) -> None:
        """Look which copies there are now; those of tiers that are down stay as they were."""
        sizes: dict[Copy, int] = {}
        for tier in self._home.packs.tiers:
            if tier.archive is not None:  # nothing can be read there
                continue
            try:
                tier.verify()
                found = {(tier.name, i.key): i.size for i in tier.blobs.list(PACKS)}
            except (BackendError, NotFound, Damaged) as error:
                _log.warning("tier %s is not scrubbed now: %s", tier.name, error)
                found = {c: size for c, size in self._sizes.items() if c[0] == tier.name}
            sizes |= found
        packs = {copy: pack for copy in sizes if (pack := pack_of(copy[1])) is not None}
        condemned = self._home.condemned.among(set(packs.values()))
        self._sizes = {copy: sizes[copy] for copy, pack in packs.items() if pack not in condemned}
        last = self._times.of(self._sizes.keys())
        self._order = deque(sorted(self._sizes, key=lambda copy: last[copy]))
        self._listed = self._clock()

    def _look(self, copy: Copy) -> None:
        """Read one copy; see to it when it is damaged."""
        name, key = copy
        tier = next((tier for tier in self._home.packs.tiers if tier.name == name), None)
        if tier is None:  # it was taken off the list
            return
        try:
            nbytes = self._read(tier, key)
            if nbytes is None:
                return
        except NotFound:  # moved or deleted since it was listed
            return
        except Damaged as error:
            nbytes = self._sizes[copy]
            self._times.forget(copy)
            self._see_to(tier, key, error)
        except UnsupportedFormat as error:
            _log.warning("%s in tier %s could not be verified: %s", key, name, error)
            return
        else:
            self._times.note(copy)
            self._known_bad.discard(copy)
        self.stats.copies += 1
        self.stats.bytes += nbytes
        tier.stats.count(scrubbed_bytes=nbytes)

    def _read(self, tier: DurableTier, key: str) -> int | None:
        """Read and verify a copy; return its bytes, or ``None`` where the tier is down.

        A copy that cannot be read although its tier answers is ``Damaged``.
        """
        try:
            return self._verified(tier, key)
        except BackendError as error:
            why = why_down(tier, key, error)
            if why is None:
                raise Damaged(f"{key} cannot be read: {error}") from error
            _log.warning("%s in tier %s could not be verified: %s", key, tier.name, why)
        return None

    def _verified(self, tier: DurableTier, key: str) -> int:
        tier.verify()
        data = memoryview(bytearray(tier.blobs.info(key).size))  # which another may have healed
        for start in range(0, len(data), self._budget.piece_bytes):
            out = data[start : start + self._budget.piece_bytes]
            began = time.monotonic()
            tier.blobs.get_ranges([RangeRead(key, start, out)])
            self._stop.wait(self._budget.wait_s(len(out), time.monotonic() - began))
        check_pack(key, data)
        return len(data)

    def _see_to(self, tier: DurableTier, key: str, error: Damaged) -> None:
        self.stats.damaged += 1
        tier.stats.count(damaged=1)
        is_known = (
            tier.name,
            key,
        ) in self._known_bad  # it is read again and again until it is good
        self._known_bad.add((tier.name, key))
        _log.log(logging.DEBUG if is_known else logging.ERROR, "in tier %s: %s", tier.name, error)
        pack = pack_of(key)
        assert pack is not None
        try:
            check_features(self._home.config, "write", self._home.blobs.url)
            if self._heal(pack) or pack in self._home.quarantine.packs():
                return
            if quarantine(self._home, pack).unfit:
                self.stats.quarantined += 1
                _log.error(
                    "%s is quarantined, as no tier has a good copy: 'tierstore repair' repairs "
                    "what can be repaired, and lists which versions have lost what",
                    key,
                )
        except TierstoreError as failure:
            _log.warning("%s is not healed now, but later: %s", key, failure)

    def _heal(self, pack: bytes) -> bool:
        """Put good bytes over the bad copies of a pack, as far as tiers take them.

        Returns:
            Whether there are good bytes of it anywhere: then the pack need not be quarantined.
        """
        copies = read_copies(self._home, pack)
        data = copies.whole()
        if data is None:
            return False
        with HeldLease(self._home.blobs) as right:
            for bad in copies.bad:
                try:
                    put_back(self._home, bad, pack, data, right)
                except (BackendError, Damaged, NotFound, UnsupportedFormat) as error:
                    _log.warning(
                        "the copy of %s in tier %s is not healed: %s",
                        copies.key,
                        bad.tier.name,
                        error,
                    )
                    continue
                self.stats.healed += 1
                self._times.note((bad.tier.name, copies.key))
                _log.warning(
                    "the copy of %s in tier %s was damaged, and has good bytes again",
                    copies.key,
                    bad.tier.name,
                )
        return True
