"""The mover carries out planned moves: copy, read back, verify, and only then drop.

It may be killed at any point. What it leaves behind then is at most one copy too many, which the
next plan sees, and never a copy too few:

1. The pack is read from the source, or where that copy is damaged from another, and checked: its
   id, its index, every frame's head and payload.
2. It is written to the target unless that has a good copy already.
3. The target's copy is read back whole, and must have the digest of what was read.
4. The lease is looked at, and so is what may have changed since the plan: pins, the target's
   marker, and whether the pack is condemned by now: then the collector deletes every copy. Else the
   source's copy is deleted.
5. The target is asked once more. Should its copy be gone after all (another mover that took this
   one for dead), the pack goes back to where it was: its bytes are still at hand.

At most one pack is in memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, Protocol

import blake3

from tierstore.blobs.base import RangeRead
from tierstore.errors import (
    Archived,
    BackendError,
    Damaged,
    NotFound,
    OutOfSpace,
    TierstoreError,
    UnsupportedFormat,
)
from tierstore.format.keys import pack_key
from tierstore.format.tiers import HOME_NAME
from tierstore.placement.scene import PlannedMove
from tierstore.tiers.durable.budget import Budget
from tierstore.tiers.durable.marker import Keeper
from tierstore.tiers.durable.packcheck import check_pack
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers

_log = logging.getLogger("tierstore.mover")
_LONGEST_SLEEP_S = 5.0

Status = Literal["done", "skipped", "failed"]


class MoveRight(Protocol):
    """The right to move the packs of a store, as ``modelstore.placing.moverlease`` gives it."""

    def keep(self) -> None:
        """Renew the lease if it is time to; ``Conflict`` when another mover has it."""

    def check(self) -> None:
        """Raise ``Conflict`` unless the lease holds now; called before anything is deleted."""


class _Stopped(Exception):
    """The mover was asked to stop."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of one planned move.

    Attributes:
        move: The move that was planned.
        status: ``skipped`` when the move is not wanted or not possible any more.
        why: The reason why it was not done; empty when it was.
        copied_bytes: Bytes that were written to the target.
        seconds: How long it took.
    """

    move: PlannedMove
    status: Status
    why: str = ""
    copied_bytes: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class MoverStats:
    """Totals of a mover since it was made.

    Attributes:
        moves: Moves that were done.
        skipped: Moves that were not wanted or not possible any more.
        failed: Moves that failed.
        moved_bytes: Bytes written to targets.
        dropped_bytes: Bytes deleted from sources.
        damaged: Copies that were found to be damaged.
    """

    moves: int = 0
    skipped: int = 0
    failed: int = 0
    moved_bytes: int = 0
    dropped_bytes: int = 0
    damaged: int = 0


class Mover:
    """Moves packs between durable tiers, one at a time. For one thread.

    Args:
        tiers: The tiers of the store, the fastest first.
        lease: The lease that this process holds.
        budget: The limits of its bandwidth.
        stop: Ends the run between two pieces of work once it is set.
        may_leave: Asked right before a copy is dropped from a warm tier; returns whether nobody has
            pinned the pack since the plan was made.
        check_home: Called with a tier, and the home that its marker names, before a copy is dropped
            from it, or from another one because of it; raises ``OtherHome`` unless this home is
            the one that deletes there.
        is_condemned: Asked after a copy was made, and before one is put back; returns whether
            garbage collection deletes the pack from every tier.
        on_damage: Told of a pack of which no tier has a good copy.
        stats: Receives the counts.
    """

    def __init__(
        self,
        tiers: DurableTiers,
        lease: MoveRight,
        *,
        budget: Budget | None = None,
        stop: threading.Event | None = None,
        may_leave: Callable[[PlannedMove], bool] = lambda move: True,
        check_home: Callable[[DurableTier, Keeper | None], None] = lambda tier, keeper: None,
        is_condemned: Callable[[bytes], bool] = lambda pack: False,
        on_damage: Callable[[bytes], None] = lambda pack: None,
        stats: MoverStats | None = None,
    ) -> None:
        self._all, self._tiers = tiers, {tier.name: tier for tier in tiers.tiers}
        self._rank = {name: rank for rank, name in enumerate(self._tiers)}
        self._lease, self._budget = lease, budget or Budget()
        self._stop = stop or threading.Event()
        self._may_leave, self._on_damage = may_leave, on_damage
        self._check_home, self._is_condemned = check_home, is_condemned
        self._down: dict[str, str] = {}
        """Tiers that failed in this run, and why: what needs them is skipped."""
        self._full: set[str] = set()
        """Tiers that had no room in this run."""
        self.stopped = False
        """Whether it ended before the last move."""
        self.stats = stats or MoverStats()

    def run(self, moves: Iterable[PlannedMove]) -> Iterator[Moved]:
        """Carry out moves in order and yield their results; a failed one does not stop the others.

        Ends early, with nothing half done, once ``stop`` is set.

        Raises:
            Conflict: The lease is lost; nothing was deleted without it.
            OtherHome: Another home deletes in a tier.
        """
        self._down.clear()
        self._full.clear()
        for move in moves:
            began = time.monotonic()
            status: Status = "failed"
            why, copied = "", 0
            try:
                self._pause(0)
                why, copied = self._carry_out(move)
                status = "skipped" if why else "done"
            except _Stopped:
                self.stopped = True
                return
            except (BackendError, Damaged, NotFound, UnsupportedFormat) as error:
                why = str(error)
            moved = Moved(move, status, why, copied, time.monotonic() - began)
            self._tell(moved)
            yield moved

    def _tell(self, moved: Moved) -> None:
        move, stats = moved.move, self.stats
        stats.moved_bytes += moved.copied_bytes
        if moved.status == "done":
            stats.moves += 1
            stats.dropped_bytes += move.bytes if move.drops else 0
        elif moved.status == "skipped":
            stats.skipped += 1
        else:
            stats.failed += 1
        fields = {
            "event": "move",
            "kind": move.kind,
            "pack": move.pack.hex(),
            "source": move.source,
            "target": move.target,
            "bytes": move.bytes,
            "copied_bytes": moved.copied_bytes,
            "status": moved.status,
            "seconds": round(moved.seconds, 3),
            "reason": move.why,
        }
        _log.log(
            logging.WARNING if moved.status == "failed" else logging.INFO,
            "%s of pack %s from %s to %s: %s%s",
            move.kind,
            move.pack.hex()[:12],
            move.source,
            move.target,
            moved.status,
            f": {moved.why}" if moved.why else "",
            extra={"fields": fields},
        )

    def _carry_out(self, move: PlannedMove) -> tuple[str, int]:
        """Carry out one move; return why it was skipped, or ``""``, and the bytes copied."""
        source, target = self._tiers[move.source], self._tiers[move.target]
        for tier in (source, target):
            if tier.name in self._down:
                return f"tier {tier.name} failed before: {self._down[tier.name]}", 0
        self._refuse(move, source, target)
        key = pack_key(move.pack)
        with self._asking(target):
            target.verify()
            there = _size(target, key)
        if there == move.bytes and not move.drops:
            return "it is there already", 0
        if there is None and target.name in self._full:
            return f"tier {target.name} has no room", 0
        data = self._kept(target, key) if there is not None else None
        copied = 0
        if data is None:
            data = self._read_good(move.pack, source, target)
            if data is None:
                return "the pack is gone: nothing needs it any more", 0
            self._copy(target, key, data)
            copied = len(data)
        if move.drops:
            if self._is_condemned(move.pack):
                return "it is condemned: garbage collection deletes it", copied
            if not self._may_leave(move):
                return "it was pinned since the plan was made", copied
            self._drop(move.pack, source, target, data)
        return "", copied

    def _refuse(self, move: PlannedMove, source: DurableTier, target: DurableTier) -> None:
        """Refuse a move that no plan may ask for: a second check."""
        colder = self._rank[target.name] > self._rank[source.name]
        if source is target or (move.drops and not colder and move.kind != "drain"):
            raise BackendError(
                f"pack {move.pack.hex()} is not dropped from {source.name}: tier {target.name} is "
                "no colder one"
            )
        if move.kind == "drain" and source.takes_writes and source.name != HOME_NAME:
            raise BackendError(f"tier {source.name} is not being drained")
        if not target.takes_writes:
            raise BackendError(f"tier {target.name} is being drained: nothing is moved to it")

    # Reading and checking

    def _kept(self, target: DurableTier, key: str) -> bytearray | None:
        """Return the bytes of the target's own copy; ``None`` when it is damaged or frozen."""
        if target.archive is not None:  # it cannot be read back, so it cannot be relied on
            return None
        try:
            return self._read(target, key)
        except Damaged as error:
            self._note_damage(target, key, error)
        except NotFound:  # deleted since
            pass
        return None

    def _read_good(self, pack: bytes, source: DurableTier, target: DurableTier) -> bytearray | None:
        """Return a pack's bytes from the source, or else from another tier with a good copy.

        ``None`` when no tier has it.
        """
        key = pack_key(pack)
        others = [tier for tier in self._tiers.values() if tier not in (source, target)]
        failure: TierstoreError | None = None
        for tier in (source, *others):
            if tier.name in self._down:
                failure = failure or BackendError(self._down[tier.name])
                continue
            try:
                return self._read(tier, key)
            except NotFound:
                continue
            except Damaged as error:
                self._note_damage(tier, key, error)
                failure = error
            except BackendError as error:
                failure = failure or error
        if isinstance(failure, Damaged):
            self._on_damage(pack)
        if failure is not None:
            raise failure
        return None

    def _read(self, tier: DurableTier, key: str) -> bytearray:
        with self._asking(tier):
            tier.verify()
            data = bytearray(tier.blobs.info(key).size)
            view = memoryview(data)
            for start in range(0, len(data), self._budget.piece_bytes):
                out = view[start : start + self._budget.piece_bytes]
                began = time.monotonic()
                tier.blobs.get_ranges([RangeRead(key, start, out)])
                self._spend(len(out), began)
        check_pack(key, view)
        return data

    def _note_damage(self, tier: DurableTier, key: str, error: Damaged) -> None:
        self.stats.damaged += 1
        tier.stats.count(damaged=1)
        _log.error("the copy of %s in tier %s is damaged: %s", key, tier.name, error)

    # Writing

    def _copy(self, target: DurableTier, key: str, data: bytearray) -> None:
        """Write a pack and read it back."""
        room = self._all.room(target)
        with self._asking(target):
            if not room.fits(len(data)):
                self._full.add(target.name)
                raise OutOfSpace(f"tier {target.name} has no room left in its quota for {key}")
            began = time.monotonic()
            target.blobs.put(key, data)
            room.add(len(data))
            target.stats.count(admitted=1, admitted_bytes=len(data))
            self._spend(len(data), began)
            why = self._differs(target, key, data)
            if not why and target.archive is not None:
                target.archive.freeze(key)
        if why:
            # it replaced nothing good: either there was no copy, or a damaged one
            with suppress(BackendError):
                self._lease.check()
                target.blobs.delete([key])
                room.add(-len(data))
            self.stats.damaged += 1
            raise Damaged(
                f"the copy of {key} in tier {target.name} is not what was written to it ({why}); "
                f"it was removed, and tier {target.name} must be looked after"
            )

    def _differs(self, target: DurableTier, key: str, data: bytearray) -> str:
        """Read a copy back and return how it differs from ``data``; ``""`` when it does not."""
        if _size(target, key) != len(data):
            return "its size differs"
        digest = blake3.blake3()
        piece = bytearray(min(self._budget.piece_bytes, len(data)))
        for start in range(0, len(data), len(piece)):
            out = memoryview(piece)[: len(data) - start]
            began = time.monotonic()
            try:
                target.blobs.get_ranges([RangeRead(key, start, out)])
            except (Damaged, NotFound) as error:
                return str(error)
            digest.update(out)
            self._spend(len(out), began)
        return "" if digest.digest() == blake3.blake3(data).digest() else "its bytes differ"

    def _drop(self, pack: bytes, source: DurableTier, target: DurableTier, data: bytearray) -> None:
        """Delete the source's copy, now that another one was verified."""
        key = pack_key(pack)
        for tier in (target, source):
            with self._asking(tier):
                keeper = tier.verify()
            self._check_home(tier, keeper)
        with self._asking(source):
            self._lease.check()
            source.blobs.delete([key])
        self._all.room(source).add(-len(data))
        source.stats.count(evicted=1, evicted_bytes=len(data))
        with self._asking(target):
            if _size(target, key) is None and not self._is_condemned(pack):
                source.blobs.put(key, data)
                raise Damaged(
                    f"{key} vanished from tier {target.name} while its copy in {source.name} was "
                    "dropped; it was put back there; see whether another mover is at work"
                )

    # Between the pieces

    @contextmanager
    def _asking(self, tier: DurableTier) -> Iterator[None]:
        """Remember when a tier fails, so that the rest of the plan does not wait for it again."""
        try:
            yield
        except Archived:
            raise
        except OutOfSpace:
            self._full.add(tier.name)
            raise
        except BackendError as error:
            self._down.setdefault(tier.name, str(error))
            raise

    def _spend(self, nbytes: int, began: float) -> None:
        self._pause(self._budget.wait_s(nbytes, time.monotonic() - began))

    def _pause(self, seconds: float) -> None:
        """Wait while keeping the lease; raises ``_Stopped`` when the mover is to stop."""
        until = time.monotonic() + seconds
        while True:
            if self._stop.is_set():
                raise _Stopped
            self._lease.keep()
            left = until - time.monotonic()
            if left <= 0:
                return
            self._stop.wait(min(left, _LONGEST_SLEEP_S))


def _size(tier: DurableTier, key: str) -> int | None:
    """Return the bytes of a tier's copy; ``None`` when it has none."""
    try:
        return tier.blobs.info(key).size
    except NotFound:
        return None
