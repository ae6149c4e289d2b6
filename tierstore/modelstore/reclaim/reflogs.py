"""All ref logs of a store, as a collector reads them: each entry once, unless it changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tierstore.blobs.base import BlobInfo, BlobStore
from tierstore.errors import Damaged, UnsupportedFormat
from tierstore.format.checks import damaged
from tierstore.format.keys import HEAD, REFS, entry_key, model_prefix, unsegment
from tierstore.format.reflog import Hint, RefEntry, parse_entry
from tierstore.format.sealed import Kind, unseal_body
from tierstore.ids import Buffer
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.home.refs import MOST_MISSING, highest_of
from tierstore.modelstore.reclaim.lostlogs import LostEntries, refuse_lost

_LOG = re.escape(REFS) + r"([^/]+)/((?:[^/]+/){1,2})"
_ENTRY = re.compile(_LOG + r"[0-9]{6}/([0-9]{9})\Z")
_HINT = re.compile(_LOG + HEAD + r"\Z")
_PAGE = 256
_NONE: tuple[BlobInfo | None, int] = None, 0

_Name: TypeAlias = tuple[str, str]
"""A log: its model, as one segment of a key, and what it is, with a slash at its end."""


@dataclass(frozen=True, slots=True)
class Log:
    """One log.

    Attributes:
        model: Its model, as one segment of a key.
        name: What it is, as in its key: ``versions``, ``alias/<segment>``.
        entries: Its entries, the oldest first: entry n is at n - 1.
    """

    model: str
    name: str
    entries: Sequence[RefEntry]

    @property
    def title(self) -> str:
        """The model's name."""
        try:
            return unsegment(self.model)
        except UnicodeDecodeError:  # of no model of ours
            return self.model


class RefLogs:
    """Reads all ref logs of a store.

    Args:
        home_blobs: The store's home.
        cache: Where entries are kept for the next process.
    """

    def __init__(self, home_blobs: BlobStore, cache: ReadCache) -> None:
        self._home_blobs, self._cache = home_blobs, cache
        self._entries: dict[str, tuple[BlobInfo | None, RefEntry]] = {}
        self._hints: dict[str, tuple[BlobInfo, int]] = {}

    def read(self, now_s: float, model: str | None = None) -> list[Log]:
        """Return every log as it is now; costs one LIST of keys, and reads what is new.

        Args:
            now_s: Seconds since the epoch by home's clock, or earlier.
            model: The model whose logs are read, and kept until another is; ``None`` for all.

        Raises:
            Damaged: An entry is damaged, or missing though later ones are there, or the log's hint
                names it.
        """
        listed, hints = dict[str, BlobInfo](), dict[_Name, BlobInfo]()
        numbers = dict[_Name, list[int]]()
        for info in self._home_blobs.list(REFS if model is None else model_prefix(model)):
            if match := _ENTRY.match(info.key):
                name, number = (match[1], match[2]), int(match[3])
                if number and info.key == entry_key(_prefix(name), number):
                    listed[info.key] = info
                    numbers.setdefault(name, []).append(number)
            elif match := _HINT.match(info.key):
                hints[match[1], match[2]] = info
        hinted = self._hinted(hints, now_s)
        lost = list[LostEntries]()
        keys = {
            name: _keys(name, numbers.get(name, []), hinted.get(name, 0), lost)
            for name in numbers.keys() | hinted.keys()
        }
        every = [key for of_log in keys.values() for key in of_log]
        self._take_in([listed[key] for key in every if key in listed], now_s)
        unlisted = {  # written while keys were listed, unless they are lost
            name: [key for key in of_log if key not in listed] for name, of_log in keys.items()
        }
        for name, of_log in unlisted.items():
            lost += self._read_unlisted(name, of_log, hinted.get(name, 0))
        refuse_lost(lost)
        if len(self._entries) > len(every):  # a copy of the store was restored
            self._entries = {key: self._entries[key] for key in every}
        return [
            Log(of, name.removesuffix("/"), [self._entries[key][1] for key in of_log])
            for (of, name), of_log in sorted(keys.items())
            if of_log
        ]

    def _hinted(self, hints: Mapping[_Name, BlobInfo], now_s: float) -> dict[_Name, int]:
        """Return the numbers in the hints of logs; one that cannot be read says nothing."""
        changed = [info for info in hints.values() if self._hints.get(info.key, _NONE)[0] != info]
        cached = self._cache.get(changed)
        for info in changed:
            if info.key in cached:
                self._hints[info.key] = info, int(cached[info.key])
        left = {info.key: info for info in changed if info.key not in cached}
        names = sorted(left)
        for at in range(0, len(names), _PAGE):
            page = names[at : at + _PAGE]
            found = self._home_blobs.get_many(page)
            for key in page:
                self._hints[key] = left[key], _number_in(found.get(key), key)
        values = [(info, str(self._hints[key][1]).encode()) for key, info in left.items()]
        self._cache.put(values, now_s)
        return {name: self._hints[info.key][1] for name, info in hints.items()}

    def _take_in(self, listed: Sequence[BlobInfo], now_s: float) -> None:
        """Read those of the listed entries that are new, or others than they were."""
        new = [info for info in listed if not self._is_known(info)]
        cached = self._cache.get(new)
        for info in new:
            if info.key in cached:
                self._know(info.key, info, cached[info.key])
        left = [info for info in new if info.key not in cached]
        for at in range(0, len(left), _PAGE):
            page = {info.key: info for info in left[at : at + _PAGE]}
            found = self._read(list(page), page)
            self._cache.put([(info, bytes(found[key])) for key, info in page.items()], now_s)

    def _read(self, keys: Sequence[str], listed: Mapping[str, BlobInfo]) -> dict[str, memoryview]:
        found = self._home_blobs.get_many(keys)
        for key in keys:
            if key not in found:
                damaged(key, "it was deleted just now, and nothing may delete an entry")
            self._know(key, listed.get(key), found[key])
        return found

    def _read_unlisted(
        self, name: _Name, keys: Sequence[str], hinted: int
    ) -> Iterator[LostEntries]:
        """Read entries of a log that were not listed; yield those that are not there."""
        missing = list[int]()
        for at in range(0, len(keys), _PAGE):
            page = keys[at : at + _PAGE]
            found = self._home_blobs.get_many(page)
            for key in page:
                if key in found:
                    self._know(key, None, found[key])
                else:
                    missing.append(int(key.rpartition("/")[2]))
        if missing:
            yield _lost(name, missing, hinted)

    def _is_known(self, info: BlobInfo) -> bool:
        return info.key in self._entries and self._entries[info.key][0] == info

    def _know(self, key: str, info: BlobInfo | None, data: Buffer) -> None:
        entry = parse_entry(data, int(key.rpartition("/")[2]), f"ref entry {key}")
        self._entries[key] = info, entry


def _number_in(data: Buffer | None, key: str) -> int:
    if data is None:
        return 0
    try:
        return unseal_body(Kind.HINT, data, Hint, key).seq
    except (Damaged, UnsupportedFormat):
        return 0


def _prefix(name: _Name) -> str:
    return f"{REFS}{name[0]}/{name[1]}"


def _lost(name: _Name, missing: Sequence[int], hinted: int) -> LostEntries:
    why = "later ones are there"
    if missing[-1] <= hinted:
        why = f"the hint of this log says that there were {hinted}"
    return LostEntries(name[0], name[1].removesuffix("/"), missing, why)


def _keys(
    name: _Name, numbers: Sequence[int], hinted: int, lost: list[LostEntries]
) -> Sequence[str]:
    """Return the keys of all entries of a log, in order.

    An entry that lies far ahead is a stray one, or what is left of a log: nobody can tell. Unless
    its hint says so: then more are lost than are looked for.

    Args:
        name: The log.
        numbers: The numbers of the entries that are there.
        hinted: The number in its hint.
        lost: Gets the entries of a log of which so many are lost.
    """
    highest = highest_of(numbers)
    if (ahead := max(numbers, default=0)) > max(highest, hinted):
        raise Damaged(
            f"{entry_key(_prefix(name), ahead)} lies far ahead of entry {highest}, the last one of "
            "its log before it. If something else has written it, move it away; if entries are "
            "missing, restore them from a copy. Nothing was deleted"
        )
    highest = max(highest, hinted)
    if highest - len(numbers) > MOST_MISSING:
        there = set(numbers)
        first = next(one for one in range(1, highest + 1) if one not in there)
        lost.append(_lost(name, range(first, highest + 1), hinted))
        return []
    return [entry_key(_prefix(name), number) for number in range(1, highest + 1)]
