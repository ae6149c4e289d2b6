"""Takes chunks into this node's hot tier.

First it is decided, under the node's lock, what comes in and what goes out; victims are removed and
the unfinished files made. The bytes are written without the lock. Then, under the lock again, files
that nobody evicted meanwhile get their names.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from tierstore import locks
from tierstore.ids import Buffer
from tierstore.placement.base import Access
from tierstore.tiers.node.directory import HotDirectory

Offer: TypeAlias = tuple[Access, Buffer]
"""A verified chunk: the read that brought it, and its bytes.

The read has the chunk's digest, its plain size, and the time in seconds since the epoch.
"""

_GROUP = 64  # unfinished files that are open at once
_SPARE = 16  # a full disk is emptied by this fraction more, so as not to be full again at once
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _Taken(NamedTuple):
    """An offer that is being written."""

    number: int
    digest: bytes
    plain: Buffer
    fd: int


class HotFill:
    """Writes chunks to one directory; failures are counted there."""

    def __init__(self, directory: HotDirectory) -> None:
        self._dir = directory

    def offer(self, offers: Sequence[Offer], force: bool) -> list[bool]:
        """Take in chunks, as ``LocalHot.offer`` does."""
        here = [False] * len(offers)
        for at in range(0, len(offers), _GROUP):
            group = range(at, min(at + _GROUP, len(offers)))
            full = self._fill(offers, group, here, force)
            if full and self._shrink(sum(len(offers[number][1]) for number in full)):
                self._fill(offers, full, here, True)  # admitted once already
        self._dir.stats.count(rejected=here.count(False))
        return here

    def _fill(
        self, offers: Sequence[Offer], numbers: Sequence[int], here: list[bool], force: bool
    ) -> list[int]:
        """Take in some of the offers and return those for which the disk was full."""
        if not self._dir.ready(self._dir.filling):
            return []
        started = time.perf_counter()
        taken: list[_Taken] = []
        errors: dict[int, OSError] = {}
        try:
            for number in self._dir.transact(lambda: self._admit(offers, numbers, taken, force)):
                here[number] = True
            errors = self._write(taken)
            for number in self._dir.transact(lambda: self._publish(taken, errors)):
                here[number] = True
        except OSError as error:
            errors |= dict.fromkeys((n for n in numbers if not here[n]), error)
        finally:
            _close(taken)
        for failure in errors.values():
            self._dir.fill_failed(failure)
        if not errors:
            self._dir.refused = None
            self._dir.filling.worked()
        written = [len(one.plain) for one in taken if here[one.number]]
        self._dir.stats.count(admitted=len(written), admitted_bytes=sum(written))
        self._dir.stats.record(
            "put", time.perf_counter() - started, sum(written), failed=bool(errors)
        )
        return [number for number, failure in errors.items() if failure.errno in _FULL]

    def _admit(
        self, offers: Sequence[Offer], numbers: Sequence[int], taken: list[_Taken], force: bool
    ) -> list[int]:
        """Decide, make room and unfinished files, and return the offers that are here already."""
        _close(taken)  # of an attempt before
        taken.clear()
        known = []
        for number in numbers:
            access, plain = offers[number]
            is_known, fd = self._dir.book.admit(access, force)
            if fd is not None:
                taken.append(_Taken(number, access.key, plain, fd))
            elif is_known:
                known.append(number)
        return known

    def _write(self, taken: Sequence[_Taken]) -> dict[int, OSError]:
        errors = {}
        for one in taken:
            try:
                self._dir.files.write(one.fd, one.plain)
            except OSError as error:
                errors[one.number] = error
        return errors

    def _publish(self, taken: Sequence[_Taken], errors: Mapping[int, OSError]) -> list[int]:
        """Give the written files their names and return their numbers."""
        published = []
        for one in taken:
            if one.number in errors:
                self._dir.book.discard(one.digest)
            elif self._dir.book.publish(one.digest, one.fd):
                published.append(one.number)
        return published

    def _shrink(self, nbytes: int) -> bool:
        """Evict ``nbytes``, and some more, from a disk that is full below the quota."""
        spare = sum(self._dir.book.sizes.values()) // _SPARE
        return self._dir.manage(lambda: self._dir.book.make_room(nbytes + spare), 0) > 0


def _close(taken: Sequence[_Taken]) -> None:
    """Close files; those that were not published are empty, and removed by the next writer."""
    for one in taken:
        with contextlib.suppress(OSError):
            locks.close(one.fd)
