"""Repairs condemned lists and their segments (SPEC.md 10).

To condemn too much loses nothing: what is needed of it is copied before anything is deleted. So
what a damaged one may have condemned is condemned again, as far as anything leads to it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import TypedDict

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format import keys
from tierstore.format.condemned import parse_list, parse_segment
from tierstore.format.sealed import Kind
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.probe import probe
from tierstore.modelstore.reclaim.holdings import Holdings
from tierstore.modelstore.reclaim.purge.content import FoundContent
from tierstore.modelstore.reclaim.purge.orders import Orders
from tierstore.modelstore.reclaim.repair.objects import Objects
from tierstore.modelstore.reclaim.repair.report import Outcome
from tierstore.modelstore.reclaim.repair.users import Users
from tierstore.modelstore.reclaim.repair.wanted import read_tables
from tierstore.shown import counted

_Unread = (Damaged, NotFound, UnsupportedFormat)


_FOREIGN = 999_000_000
"""Collectors never come to higher numbers of lists."""


class _Now(TypedDict):
    run: str
    now_us: int


class ListRepair:
    """Writes a list that names what a damaged list or segment may have condemned.

    Args:
        home: The store's home.
        objects: Reads and writes the objects.
        holdings: Which packs are there.
        users: The versions by the manifests that they need.
    """

    def __init__(self, home: Home, objects: Objects, holdings: Holdings, users: Users) -> None:
        self._home, self._objects = home, objects
        self._holdings, self._users = holdings, users

    def run(self) -> None:
        """Repair the highest list, and every segment that it names."""
        there = self._objects.listed(keys.CONDEMNED)

        def parse(key: str, data: memoryview) -> object:
            return parse_segment(data, key)

        broken = self._objects.broken(Kind.CONDEMNED_SEGMENT, there, parse)
        bad = {one.key: str(one.why) for one in broken}
        lists = self._lists()
        numbers = {key: int(key.removeprefix(keys.GC)) for key in lists}

        def parse_numbered(key: str, data: memoryview) -> object:
            return parse_list(data, numbers[key], key)

        bad_lists = {
            one.key: str(one.why)
            for one in self._objects.broken(Kind.CONDEMNED_LIST, lists, parse_numbered)
        }
        if not lists:
            return
        highest = max(lists)
        if highest in bad_lists:
            self._replace_list(highest, bad_lists[highest], there, bad)
        else:
            self._replace_segments(highest, numbers[highest], set(there), bad)

    def _lists(self) -> list[str]:
        names = [key.removeprefix(keys.GC) for key in self._objects.listed(keys.GC)]
        return sorted(keys.GC + name for name in names if len(name) == 9 and name.isdigit())

    def _replace_list(self, key: str, why: str, there: list[str], bad: dict[str, str]) -> None:
        """Write the next list with every segment that is there: each of them may hold."""
        segments = [one.removeprefix(keys.CONDEMNED) for one in there if one not in bad]
        note = f"it has {counted(len(segments), 'segment')}, all that are there"
        if bad:
            note += f", but for {len(bad)} that are damaged: what they condemned is lost"
        number = _number(key)
        if number > _FOREIGN:
            self._replace_foreign(key, why, segments, note, "lost" if bad else "repaired")
            return

        def write() -> bool:
            return self._home.condemned.follow(number, segments, **self._now())

        done = f"replaced by list {number + 1}"
        self._objects.change(write, key, why, done, note, "lost" if bad else "repaired")

    def _replace_foreign(
        self, key: str, why: str, segments: list[str], note: str, outcome: Outcome
    ) -> None:
        """Write the list behind the highest one of a number that collectors reach, and delete this.

        None can be written behind it; and until it is gone all segments that are there hold.
        """
        own = map(_number, self._lists())
        last = max((one for one in own if one <= _FOREIGN), default=0)

        def write() -> bool:
            is_written = self._home.condemned.follow(last, segments, **self._now())
            if is_written:
                self._home.blobs.delete([key])
            return is_written

        done = f"deleted, as no collector has come to its number, and replaced by list {last + 1}"
        self._objects.change(write, key, why, done, note, outcome)

    def _replace_segments(
        self, key: str, number: int, there: set[str], bad: dict[str, str]
    ) -> None:
        """Write segments anew, of the packs that the list's filter has and no other segment."""
        with suppress(*_Unread):
            newest = parse_list(self._home.blobs.get(key), number, key)
            named = {one.key: keys.CONDEMNED + one.key for one in newest.segments}
            gone = {
                one: bad.get(name, "it is missing")
                for one, name in named.items()
                if name in bad or name not in there
            }
            if not gone:
                return
            known = self._home.condemned.packs_in([one for one in named if one not in gone])
            found = {pack for pack in self._candidates() if newest.may_hold(pack)} - known
            purged = {one for one in self._purged() if newest.may_hold(one)} - known

            @cache
            def write() -> bool:
                return self._home.condemned.replace(gone.keys(), found, purged, **self._now())

            done = f"replaced by list {number + 1}"
            note = (
                f"it condemns {counted(len(found), 'pack')}: what list {number} has in its filter "
                "and is there, or anything leads to"
            )
            if purged:
                note += f"; and {counted(len(purged), 'manifest')} of purges"
            for one, why in gone.items():
                self._objects.change(write, named[one], why, done, note)

    def _now(self) -> _Now:
        """Return by what name and when a list is written, by home's clock."""
        now_s = time.time() + probe(self._home.blobs).clock_skew_s
        return _Now(run=uuid.uuid4().hex, now_us=int(now_s * 1e6))

    def _purged(self) -> set[bytes]:
        """Return the digests of all manifests that were purged: none of them may come back."""
        orders, found = Orders(self._home.blobs), FoundContent()
        for name in (key.removeprefix(keys.PURGED) for key in self._objects.listed(keys.PURGED)):
            with suppress(*_Unread):  # it is found again by whoever goes on with the purge
                found.manifests |= FoundContent.read(orders.content(name)).manifests
        for name, parts in orders.part_names().items():
            for part in orders.parts(name, parts).values():
                found.add(part)
        return found.manifests

    def _candidates(self) -> Iterator[bytes]:
        """Yield the packs that are there, and those that layouts name: no others can be relied on.

        A pack that is there, and in whose place no move leads, is not condemned if a layout of a
        live version names it: it would have been healed.
        """
        live: set[bytes] = set()
        for _, table in read_tables(self._home, self._users):
            live.update(table.pack_ids)
        moved = {keys.moved_pack(key) for key in self._objects.listed(keys.MOVES)}
        held = self._holdings.every()
        for pack in held | live:
            if pack in moved or pack not in live or pack not in held:
                yield pack


def _number(key: str) -> int:
    return int(key.removeprefix(keys.GC))
