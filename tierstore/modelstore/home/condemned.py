"""Condemned packs: those that are deleted or will be, which nothing new may rely on (SPEC.md 10).

The highest list says all that holds. Its filter tells of most packs that they are not condemned, so
that a writer of little reads the list alone, and the segments only when the filter has one of its
packs.

Manifests are named by their content, so one that is about to be condemned may be published again
just then. A notice tells who publishes it to take another name; only after that it is looked for
whoever did so before, and then it is condemned (SPEC.md 10.3)::

    number of the highest list -> notice -> look -> list behind that number -> notice is deleted

Notices are deleted behind a list that was put since, by anybody. So whoever slept between its
notice and its list finds the number taken, and begins again.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tierstore.blobs.base import BlobInfo, BlobStore
from tierstore.errors import Conflict, Damaged, NotFound, TierstoreError, UnsupportedFormat
from tierstore.forks import begin
from tierstore.format.condemned import (
    CondemnedList,
    CondemnedSegment,
    EarlyCondemned,
    Ids,
    SegmentOfList,
    filter_of,
    parse_list,
    parse_segment,
)
from tierstore.format.keys import CONDEMNED, GC, NOTICE, list_key
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.modelstore.home.once import create_once

LISTED_S = 30 * 24 * 3600
"""Seconds for which a condemned pack stays listed, at least."""

GRACE_S = 24 * 3600
"""Seconds for which a pack is seen not live before it is condemned, unless something else is said.

Packs that removed versions named do not wait: they have waited for their window.
"""

_log = logging.getLogger("tierstore.gc")
_NUMBER = re.compile(re.escape(GC) + r"([0-9]{9})\Z")
_ROUNDS = 5
_ATTEMPTS = 100
_DAY_US = 24 * 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Condemned:
    """All that is condemned.

    Attributes:
        segments: When the packs of each segment were condemned, in microseconds since the epoch by
            home's clock, and their ids; by the random part of the segment's key.
        early: The ids in lists of an early form.
        manifests: The digests of condemned manifests.
        of_manifests: The random parts of the keys of the segments that hold these.
    """

    segments: Mapping[str, tuple[int, frozenset[bytes]]]
    early: Set[bytes]
    manifests: Set[bytes] = frozenset()
    of_manifests: Sequence[str] = ()

    @property
    def listed(self) -> set[bytes]:
        """The ids that the highest list names."""
        return set().union(*(packs for _, packs in self.segments.values()))

    @property
    def packs(self) -> set[bytes]:
        """The ids of all packs that nothing new may rely on."""
        return self.listed | self.early


@dataclass(frozen=True, slots=True)
class Glance:
    """What is condemned, as far as a list alone tells.

    Attributes:
        early: The ids of packs that early lists condemn.
        newest: The highest list; ``None`` when there is none.
    """

    early: Set[bytes]
    newest: CondemnedList | None

    def may_hold(self, pack: bytes) -> bool:
        """Return whether a pack may be condemned: of some others it says so, too."""
        return pack in self.early or (self.newest is not None and self.newest.may_hold(pack))

    @property
    def segments(self) -> Set[str]:
        """The random parts of the keys of the segments that the list names."""
        return {one.key for one in self.newest.segments} if self.newest else set()


@dataclass(frozen=True, slots=True)
class _There:
    """What lies below ``gc/``.

    Attributes:
        number: The number of the highest list; 0: there is none.
        early: The ids of packs that early lists condemn.
        notices: The keys of notices.
    """

    number: int
    early: Set[bytes]
    notices: Sequence[str]


_NOTHING = _There(0, frozenset(), ())


class CondemnedPacks:
    """The condemned packs of one store. Thread-safe.

    Lists and segments never change, so each is read once; but where a copy of home was put back, a
    number is given a second time, to another list.

    Args:
        home_blobs: The store's home, where the lists lie.
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs
        self._newest: CondemnedList | None = None
        self._highest: BlobInfo | None = None
        self._segments: dict[str, Ids] = {}
        self._early_lists: dict[str, frozenset[bytes]] = {}
        begin(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def among(self, packs: Collection[bytes], published: Set[bytes] = frozenset()) -> set[bytes]:
        """Return those of the packs that are condemned by the list that is the highest now.

        Costs one LIST of keys, and one read where this process has not seen that list yet.

        Args:
            packs: The ids of packs, or the digests of manifests that somebody else published.
            published: The digests of manifests that the caller publishes: they are returned where
                they are about to be condemned, too.

        Raises:
            Damaged: It is unknown what is condemned: a segment of the list cannot be read.
            BackendError: Home cannot be asked.
        """
        return self.among_those(lambda: packs, published)

    def among_those(
        self, find: Callable[[], Collection[bytes]], published: Set[bytes] = frozenset()
    ) -> set[bytes]:
        """Return what ``among`` does, of packs that are found only if anything is condemned."""
        wanted: set[bytes] | None = None
        number = 0
        for _ in range(_ROUNDS):
            there = self._look()
            number = there.number
            if there == _NOTHING:
                return set()
            if wanted is None:
                wanted = {*find(), *published}
            try:
                found = wanted & there.early | self._in_list(wanted, number)
                return found | self._noticed(published - found, there.notices)
            except NotFound:  # a newer list has taken the place of it, or of a notice
                continue
        raise self._without_segment(number)

    def _look(self) -> _There:
        number, highest, early, notices = 0, None, set[bytes](), list[str]()
        for info in self._home_blobs.list(GC):
            if match := _NUMBER.match(info.key):
                if int(match[1]) > number:
                    number, highest = int(match[1]), info
            elif info.key.startswith(NOTICE):
                notices.append(info.key)
            else:
                early |= self._early(info.key)
        with self._lock:
            if self._highest != highest:
                self._highest, self._newest = highest, None
        return _There(number, early, tuple(notices))

    def _noticed(self, manifests: Set[bytes], notices: Sequence[str]) -> set[bytes]:
        """Return those of the manifests that are about to be condemned.

        Raises:
            NotFound: A notice is gone, behind a list that is newer than the one that was read.
        """
        found = set[bytes]()
        for key in notices if manifests else ():
            data = self._home_blobs.get(key)
            try:
                names = unseal_body(Kind.CONDEMNED, data, EarlyCondemned, key).packs
            except (Damaged, UnsupportedFormat) as error:
                _log.warning("ignored: %s", error)
                continue
            found |= manifests & set(map(bytes.fromhex, names))
        return found

    def _in_list(self, wanted: set[bytes], number: int) -> set[bytes]:
        if not number:
            return set()
        try:
            newest = self._list(number)
        except Damaged as error:
            _log.warning("%s; all that was ever condemned counts as condemned", error)
            return wanted & self.packs_in(self._segments_there())
        found = {pack for pack in wanted if newest.may_hold(pack)}
        return found & self.packs_in([one.key for one in newest.segments]) if found else found

    def may_hold(self, name: bytes) -> bool:
        """Return whether a pack or a manifest may be condemned by the newest list read here so far.

        It asks home for nothing, and tells less than ``among``.

        Args:
            name: The id of a pack, or the digest of a manifest.
        """
        with self._lock:
            newest = self._newest
        return newest is not None and newest.may_hold(name)

    def every(self) -> Condemned:
        """Return all that is condemned by the list that is the highest now, for a collector.

        Raises:
            Damaged: The list or one of its segments cannot be read.
            BackendError: Home cannot be asked.
        """
        number = 0
        for _ in range(_ROUNDS):
            there = self._look()
            number, early = there.number, there.early
            try:
                named = self._list(number).segments if number else []
                ids = self._read([one.key for one in named])
            except NotFound:  # a newer list has taken its place
                continue
            packs = {
                one.key: (one.time_us, ids[one.key].packs) for one in named if ids[one.key].packs
            }
            manifests = set[bytes]().union(*(one.manifests for one in ids.values()))
            of_manifests = [one.key for one in named if ids[one.key].manifests]
            return Condemned(packs, early, manifests, of_manifests)
        raise self._without_segment(number)

    def known(self) -> set[bytes]:
        """Return all that is condemned, as far as that can be read; what cannot is logged.

        For what is only better for knowing it: nothing may be deleted or relied on because of it.
        """
        try:
            return self.every().packs
        except Damaged as error:
            _log.warning("%s", error)
            return set()

    def glance(self) -> Glance:
        """Return what the highest list says, without reading its segments.

        For what is only better for knowing it, as ``known``; what cannot be read is logged.
        """
        try:
            there = self._look()
            newest = self._list(there.number) if there.number else None
        except TierstoreError as error:
            _log.warning("%s", error)
            return Glance(frozenset(), None)
        return Glance(there.early, newest)

    def packs_in(self, segments: Sequence[str]) -> set[bytes]:
        """Return what is in segments, by the random parts of the segments' keys.

        Raises:
            Damaged, NotFound: One of them cannot be read.
            BackendError: Home cannot be asked.
        """
        return set().union(*(one.every for one in self._read(segments).values()))

    def _without_segment(self, number: int) -> Damaged:
        return Damaged(
            f"{list_key(number)} of {self._home_blobs.url} names a segment that is missing; "
            "restore it from a copy. Until then nothing is deleted, and saves reuse nothing"
        )

    def _list(self, number: int) -> CondemnedList:
        with self._lock:
            if self._newest is not None and self._newest.seq == number:
                return self._newest
        key = list_key(number)
        found = parse_list(self._home_blobs.get(key), number, f"condemned list {key}")
        with self._lock:
            if self._newest is None or self._newest.seq < number:
                self._newest = found
        return found

    def _segments_there(self) -> list[str]:
        return [info.key.removeprefix(CONDEMNED) for info in self._home_blobs.list(CONDEMNED)]

    def _read(self, segments: Sequence[str]) -> dict[str, Ids]:
        """Return what is in these segments, of which none but the new ones are read."""
        with self._lock:
            known = {key: self._segments[key] for key in segments if key in self._segments}
        new = [key for key in segments if key not in known]
        if new:
            with ThreadPoolExecutor(min(8, len(new)), "tierstore-condemned") as pool:
                known |= zip(new, pool.map(self._segment, new), strict=True)
        with self._lock:
            newest = self._newest.segments if self._newest else []
            kept = {*segments, *(one.key for one in newest)}
            every = self._segments | known
            self._segments = {key: ids for key, ids in every.items() if key in kept}
        return known

    def _segment(self, name: str) -> Ids:
        key = CONDEMNED + name
        return parse_segment(self._home_blobs.get(key), f"condemned segment {key}")

    def _early(self, key: str) -> frozenset[bytes]:
        with self._lock:
            found = self._early_lists.get(key)
        if found is None:
            try:
                packs = unseal_body(
                    Kind.CONDEMNED, self._home_blobs.get(key), EarlyCondemned, key
                ).packs
                found = frozenset(map(bytes.fromhex, packs))
            except (Damaged, NotFound, UnsupportedFormat) as error:
                _log.warning("ignored: %s", error)
                found = frozenset()
            with self._lock:
                self._early_lists[key] = found
        return found

    def condemn(
        self,
        packs: Iterable[bytes],
        manifests: Iterable[bytes] = (),
        *,
        run: str,
        now_us: int,
        needed: Callable[[], Set[bytes]] = frozenset,
    ) -> CondemnedList:
        """Write the next list, which says all that the highest one says, and these.

        Returns the list that is the highest afterwards, and names these: the number of a collector
        that was paused may have been given out and be free again, and nobody would read a list
        below the highest.

        Args:
            packs: The ids of packs.
            manifests: The digests of manifests, which are condemned for ever.
            run: The run of the collector: 32 hex digits, random.
            now_us: Microseconds since the epoch by home's clock.
            needed: Returns the digests of manifests that something needs by now: these are not
                condemned. It is called once whoever publishes one from then on is told.

        Raises:
            Conflict: Other collectors were faster a hundred times.
        """
        names, of_packs = set(manifests), self._put_segments(packs, (), now_us)
        of_names, going = list[SegmentOfList](), set[bytes]()
        for _ in range(_ATTEMPTS):
            number = self._look().number
            if names:
                self._notice(names)
                if going != (left := names - needed()):
                    self._home_blobs.delete([CONDEMNED + one.key for one in of_names])
                    of_names, going = self._put_segments((), left, now_us), left
            new = [*of_packs, *of_names]
            before = self._list(number).segments if number else []
            if self._put(number + 1, [*before, *new], run, now_us):
                newest = self._list(self._look().number)
                if all(one in newest.segments for one in new):
                    return newest
        raise Conflict(f"other collectors condemned packs first {_ATTEMPTS} times; try again later")

    def _notice(self, manifests: Set[bytes]) -> None:
        """Tell who publishes one of these manifests from now on to take another name.

        Each time by a new notice: somebody may be about to delete those of before.
        """
        run = uuid.uuid4().hex
        body = EarlyCondemned(run=run, packs=sorted(one.hex() for one in manifests))
        self._home_blobs.put(NOTICE + run, seal_body(Kind.CONDEMNED, body))

    def end_notices(self, *, run: str, now_us: int) -> None:
        """Delete all notices, behind a list of its own: whoever relies on one looks once more.

        Args:
            run: The run of the collector: 32 hex digits, random.
            now_us: Microseconds since the epoch by home's clock.
        """
        notices = self._look().notices
        if notices and self._put_next(run, now_us, lambda before: before):
            self._home_blobs.delete(notices)

    def _put_next(
        self,
        run: str,
        now_us: int,
        change: Callable[[list[SegmentOfList]], list[SegmentOfList]],
    ) -> bool:
        """Write the next list with what ``change`` makes of the segments; tell whether it is there.

        It is not when another collector was faster.
        """
        number = self._look().number
        segments = change(self._list(number).segments if number else [])
        return self._put(number + 1, segments, run, now_us)

    def _put(self, number: int, segments: list[SegmentOfList], run: str, now_us: int) -> bool:
        body = CondemnedList(
            seq=number,
            run=run,
            time_us=now_us,
            filter=filter_of(self.packs_in([one.key for one in segments])),
            segments=segments,
        )
        sealed = seal_body(Kind.CONDEMNED_LIST, body)
        return create_once(self._home_blobs, list_key(number), sealed)

    def retire(self, segments: Set[str], *, run: str, now_us: int) -> bool:
        """Write the next list without these segments, of which no tier has a pack any more.

        Args:
            segments: The random parts of their keys.
            run: The run of the collector: 32 hex digits, random.
            now_us: Microseconds since the epoch by home's clock.

        Returns:
            Whether it was written: another collector may have been faster.
        """
        return self._put_next(
            run, now_us, lambda before: [one for one in before if one.key not in segments]
        )

    def merge(
        self, groups: Iterable[Sequence[str]], *, run: str, now_us: int
    ) -> dict[str, Sequence[str]]:
        """Write the next list with one segment instead of those of each group.

        A new segment is as old as the newest of those that it stands for.

        Args:
            groups: The random parts of the segments' keys.
            run: The run of the collector: 32 hex digits, random.
            now_us: Microseconds since the epoch by home's clock.

        Returns:
            The segments of each group by the one that stands for them; nothing when another
            collector was faster.
        """
        times_us = {key: time_us for key, (time_us, _) in self.every().segments.items()}
        merged: dict[str, Sequence[str]] = {}
        new: list[SegmentOfList] = []
        for keys in groups:
            if not times_us.keys() >= set(keys):  # another collector has changed the list
                continue
            ids = sorted(self.packs_in(keys))
            one = SegmentOfList(key=uuid.uuid4().hex, time_us=max(times_us[key] for key in keys))
            self._put_segment(one.key, ids)
            new.append(one)
            merged[one.key] = keys
        if not new:
            return merged
        gone = {key for keys in merged.values() for key in keys}
        done = self._put_next(
            run, now_us, lambda before: [*(one for one in before if one.key not in gone), *new]
        )
        return merged if done else {}

    def replace(
        self,
        segments: Set[str],
        packs: Iterable[bytes],
        manifests: Iterable[bytes] = (),
        *,
        run: str,
        now_us: int,
    ) -> bool:
        """Write the next list with segments of these instead of some that are lost.

        Some of the packs may be condemned only now, so the segment is not older than that.

        Args:
            segments: The random parts of the keys of the segments that are lost.
            packs: The ids of all packs that these may have held; perhaps none.
            manifests: Likewise the digests of manifests.
            run: The run of the repair: 32 hex digits, random.
            now_us: Microseconds since the epoch by home's clock.

        Returns:
            Whether it was written: another process may have replaced them first.
        """
        new = self._put_segments(packs, manifests, now_us)
        return self._put_next(
            run, now_us, lambda before: [*(one for one in before if one.key not in segments), *new]
        )

    def follow(self, number: int, segments: Iterable[str], *, run: str, now_us: int) -> bool:
        """Write the list behind one that is lost.

        Args:
            number: The number of the list that is lost, which is the highest.
            segments: The random parts of the keys of all segments that are there.
            run: The run of the repair: 32 hex digits, random.
            now_us: Microseconds since the epoch by home's clock.

        Returns:
            Whether it was written: another process may have been first.
        """
        named = [SegmentOfList(key=key, time_us=now_us) for key in segments]
        return self._put(number + 1, named, run, now_us)

    def _put_segments(
        self, packs: Iterable[bytes], manifests: Iterable[bytes], now_us: int
    ) -> list[SegmentOfList]:
        """Write a segment of packs and one of manifests, where there are any."""
        new: list[SegmentOfList] = []
        for ids, are_manifests in ((set(packs), False), (set(manifests), True)):
            if ids:
                new.append(SegmentOfList(key=uuid.uuid4().hex, time_us=now_us))
                self._put_segment(new[-1].key, sorted(ids), are_manifests)
        return new

    def _put_segment(self, key: str, ids: Sequence[bytes], are_manifests: bool = False) -> None:
        joined = b"".join(ids)
        segment = CondemnedSegment(packs=joined)
        if are_manifests:
            segment = CondemnedSegment(manifests=joined)
        self._home_blobs.put(CONDEMNED + key, seal_body(Kind.CONDEMNED_SEGMENT, segment))

    def tidy(self, now_us: int) -> None:
        """Delete the lists below the highest one, a day after that was written.

        With them go the segments that they name and the highest one does not. A segment that no
        list names yet may be that of a collector which is just about to write its list.
        """
        number = self._look().number
        if not number:
            return
        highest = self._list(number)
        if now_us - highest.time_us < _DAY_US:
            return
        kept = {one.key for one in highest.segments}
        for info in list(self._home_blobs.list(GC)):
            match = _NUMBER.match(info.key)
            if match is None or int(match[1]) >= number:
                continue
            try:
                old = parse_list(self._home_blobs.get(info.key), int(match[1]), info.key)
            except (Damaged, NotFound, UnsupportedFormat) as error:
                _log.warning("left as it is: %s", error)
                continue
            gone = [CONDEMNED + one.key for one in old.segments if one.key not in kept]
            self._home_blobs.delete([*gone, info.key])
