"""All ref logs of a store, as a collector reads them: each entry once, unless it changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tierstore.blobs.base import BlobInfo, BlobStore
from tierstore.errors import Damaged
from tierstore.format.checks import damaged
from tierstore.format.keys import REFS, entry_key, model_prefix, unsegment
from tierstore.format.reflog import RefEntry, parse_entry
from tierstore.ids import Buffer
from tierstore.modelstore.home.refs import highest_of
from tierstore.modelstore.reclaim.readcache import ReadCache

_ENTRY = re.compile(re.escape(REFS) + r"([^/]+)/((?:[^/]+/){1,2})[0-9]{6}/([0-9]{9})\Z")
_PAGE = 256


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

    def read(self, now_s: float, model: str | None = None) -> list[Log]:
        """Return every log as it is now; costs one LIST of keys, and reads what is new.

        Args:
            now_s: Seconds since the epoch by home's clock, or earlier.
            model: The model whose logs are read, and kept until another is; ``None`` for all.

        Raises:
            Damaged: An entry is damaged, or missing though later ones are there.
        """
        listed = dict[str, BlobInfo]()
        numbers = dict[tuple[str, str], list[int]]()
        for info in self._home_blobs.list(REFS if model is None else model_prefix(model)):
            if match := _ENTRY.match(info.key):
                listed[info.key] = info
                numbers.setdefault((match[1], match[2]), []).append(int(match[3]))
        keys = {log: _keys(f"{REFS}{log[0]}/{log[1]}", found) for log, found in numbers.items()}
        every = [key for of_log in keys.values() for key in of_log]
        self._take_in([listed[key] for key in every if key in listed], now_s)
        unlisted = [key for key in every if key not in listed]  # written while keys were listed
        for at in range(0, len(unlisted), _PAGE):
            self._read(unlisted[at : at + _PAGE])
        if len(self._entries) > len(every):  # a copy of the store was restored
            self._entries = {key: self._entries[key] for key in every}
        return [
            Log(model, name.removesuffix("/"), [self._entries[key][1] for key in of_log])
            for (model, name), of_log in keys.items()
        ]

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

    def _read(
        self, keys: Sequence[str], listed: Mapping[str, BlobInfo] = MappingProxyType({})
    ) -> dict[str, memoryview]:
        found = self._home_blobs.get_many(keys)
        for key in keys:
            if key not in found:
                damaged(key, "it is missing, but later entries of this log are there")
            self._know(key, listed.get(key), found[key])
        return found

    def _is_known(self, info: BlobInfo) -> bool:
        return info.key in self._entries and self._entries[info.key][0] == info

    def _know(self, key: str, info: BlobInfo | None, data: Buffer) -> None:
        entry = parse_entry(data, int(key.rpartition("/")[2]), f"ref entry {key}")
        self._entries[key] = info, entry


def _keys(log: str, numbers: Sequence[int]) -> list[str]:
    """Return the keys of all entries of a log, in order, of which these numbers are there.

    An entry that lies far ahead is a stray one, or what is left of a log: nobody can tell.
    """
    highest = highest_of(numbers)
    if (ahead := max(numbers)) > highest:
        raise Damaged(
            f"{entry_key(log, ahead)} lies far ahead of entry {highest}, the last one of its log "
            "before it. If something else has written it, move it away; if entries are missing, "
            "restore them from a copy. Nothing was deleted"
        )
    return [entry_key(log, number) for number in range(1, highest + 1)]
