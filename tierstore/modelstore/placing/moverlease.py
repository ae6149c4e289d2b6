"""The lease of a store's only mover, or its only collector: numbered objects in home (SPEC.md 13).

A lease that was not renewed in time is not lost for that alone: its holder takes the next number,
unless another one has it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from tierstore.blobs.base import BlobStore
from tierstore.errors import (
    BackendError,
    Conflict,
    Damaged,
    NotFound,
    TierstoreError,
    UnsupportedFormat,
)
from tierstore.forks import begin
from tierstore.format.keys import SWEEPS
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.format.tiers import MOVERS, MoverLease
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.once import create_once
from tierstore.modelstore.home.probe import home_now_s
from tierstore.modelstore.home.refs import whoami

TTL_S = 60
_GRACE_S = 2
"""Seconds; more than the resolution of a storage's times."""

_HANGING_S = 8 * 3600
"""After so many seconds without a check whoever holds a right is taken to hang."""

_log = logging.getLogger("tierstore.mover")


@dataclass(frozen=True, slots=True)
class Right:
    """What only one process of a store does at a time.

    Attributes:
        prefix: Where its leases lie.
        who: How messages call who does it.
        ttl_s: Seconds after which the right ends unless it is renewed.
    """

    prefix: str
    who: str
    ttl_s: int = TTL_S


MOVER = Right(MOVERS, "mover")
COLLECTOR = Right(SWEEPS, "garbage collection")


def mover_at_work(home_blobs: BlobStore) -> str | None:
    """Return who moves packs now, in words; ``None`` if nobody does for certain."""
    try:
        HeldLease(home_blobs).look()
    except Conflict as error:
        return str(error)
    return None


class HeldLease:
    """The right to move packs, or to collect garbage; a context manager.

    It ends after a minute, or what the right says, unless it is renewed. Thread-safe once it is
    held.

    Args:
        home_blobs: The store's home.
        right: What it is the right to do.
        clock: Returns seconds, never goes backwards, and counts the time asleep.

    Raises (on entering):
        Conflict: Another one is at work; the message says who, and for how long at most.
    """

    def __init__(
        self,
        home_blobs: BlobStore,
        right: Right = MOVER,
        *,
        clock: Callable[[], float] = running_s,
    ) -> None:
        self._home_blobs, self._clock = home_blobs, clock
        self._prefix, self._who = right.prefix, right.who
        self._lease = MoverLease(
            seq=0,
            id=uuid.uuid4().hex,
            who=whoami(),
            host=socket.gethostname(),
            pid=os.getpid(),
            ttl_s=right.ttl_s,
        )
        self._renewed = self._checked = 0.0
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self._take(self.look() + 1)
        try:
            self._tidy()
        except BackendError as error:  # the next one tries again
            _log.info("older leases of a %s were not removed: %s", self._who, error)
        return self

    def look(self) -> int:
        """Return the highest number, 0 for none; ``Conflict`` when another one is at work."""
        highest = self._highest()
        if highest:
            self._refuse_if_held(highest)
        return highest

    def keep(self) -> None:
        """Renew the lease when a third of its time has passed.

        Raises:
            Conflict: The lease is lost: another process has it, or home could not be reached for as
                long.
        """
        with self._lock:
            since = self._clock() - self._renewed
            if since < self._lease.ttl_s / 3:
                return
            try:
                self._renew(since)
            except BackendError as error:
                if since >= self._lease.ttl_s:
                    raise Conflict(
                        f"the lease of this {self._who} ended, as home could not be reached: "
                        f"{error}"
                    ) from error
                _log.debug("the lease is renewed later: %s", error)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease while the block runs, in a thread of its own, however long that takes.

        Before a step that cannot be undone it is to be checked all the same: the whole process may
        have been suspended. After 8 hours without a check it is renewed no more, until the next
        one: the block may hang, as on a file server that is gone, and others can go on then.
        """
        is_over = threading.Event()
        self._checked = self._clock()

        def renew() -> None:
            while not is_over.wait(self._lease.ttl_s / 6):
                if self._clock() - self._checked > _HANGING_S:
                    continue
                try:
                    self.keep()
                except TierstoreError as error:  # ``check`` says so where it matters
                    _log.debug("the lease was not renewed: %s", error)

        thread = threading.Thread(target=renew, name="tierstore-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _renew(self, since: float) -> None:
        self._refuse_if_followed()
        if since < self._lease.ttl_s:
            began = self._clock()
            self._home_blobs.put(self._key, seal_body(Kind.MOVER, self._lease))
            self._renewed = began
        else:
            self._take(self._lease.seq + 1)

    def check(self) -> None:
        """Make sure that the lease holds now, before a step that cannot be undone.

        Raises:
            Conflict: The lease is lost, or home cannot be asked.
        """
        with self._lock:
            self._checked = self._clock()
            self.keep()
            try:
                self._refuse_if_followed()
                if self._clock() - self._renewed >= self._lease.ttl_s:  # asking took so long
                    self._take(self._lease.seq + 1)
            except BackendError as error:
                raise Conflict(
                    f"it is unknown whether the lease of this {self._who} still holds: {error}"
                ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.give_back()
        except BackendError as failure:  # it ends by itself
            _log.warning("the lease of this %s was not given back: %s", self._who, failure)

    def give_back(self) -> None:
        """End the right now, and not only when the block ends."""
        with self._lock:
            if not self._lease.done:
                given = msgspec.structs.replace(self._lease, done=True)
                self._home_blobs.put(self._key, seal_body(Kind.MOVER, given))
                self._lease = given

    @property
    def _key(self) -> str:
        return self._key_of(self._lease.seq)

    def _key_of(self, seq: int) -> str:
        return f"{self._prefix}{seq:09d}"

    def _highest(self) -> int:
        names = (
            info.key.removeprefix(self._prefix) for info in self._home_blobs.list(self._prefix)
        )
        return max((int(n) for n in names if n.isascii() and n.isdigit()), default=0)

    def _refuse_if_held(self, seq: int) -> None:
        key = self._key_of(seq)
        try:
            info = self._home_blobs.info(key)
            held = unseal_body(Kind.MOVER, self._home_blobs.get(key), MoverLease, key)
        except NotFound:  # removed by whoever has the next one
            raise Conflict(f"another {self._who} has just begun; try again in a minute") from None
        except (Damaged, UnsupportedFormat) as error:
            # nobody can tell whose it is: it holds for as long as any may
            _log.warning("%s", error)
            held = MoverLease(seq=seq, id="", who="somebody", host="?", pid=0, ttl_s=TTL_S)
        if held.done:
            return
        age = home_now_s(self._home_blobs) - info.mtime
        left = held.ttl_s + _GRACE_S - age
        if left > 0:
            raise Conflict(
                f"another {self._who} is at work: {held.who}, process {held.pid} on {held.host}; "
                f"if it is gone its lease ends in {left:.0f} s"
            )
        _log.warning(
            "the %s of %s, process %d, ended without giving back its lease",
            self._who,
            held.who,
            held.pid,
        )

    def _refuse_if_followed(self) -> None:
        # whoever is highest removes all others, so the next number alone says nothing
        if self._highest() > self._lease.seq:
            raise Conflict(f"another {self._who} has taken over: this one stops")

    def _take(self, seq: int) -> None:
        """Create the lease of this number; ``Conflict`` when another process has it."""
        self._lease = msgspec.structs.replace(self._lease, seq=seq)
        began = self._clock()
        if not create_once(self._home_blobs, self._key, seal_body(Kind.MOVER, self._lease)):
            raise Conflict(f"another {self._who} has taken over: this one stops")
        self._refuse_if_followed()  # the number was free again, if others came and went
        self._renewed = began

    def _tidy(self) -> None:
        old = [info.key for info in self._home_blobs.list(self._prefix) if info.key < self._key]
        self._home_blobs.delete(old)
