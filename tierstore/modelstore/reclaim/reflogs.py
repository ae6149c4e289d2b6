"""All ref logs of a store, as a collector reads them: each entry once, as none ever changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tierstore.blobs.base import BlobStore
from tierstore.format.checks import damaged
from tierstore.format.keys import REFS, entry_key, unsegment
from tierstore.format.reflog import RefEntry, parse_entry

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
    """

    def __init__(self, home_blobs: BlobStore) -> None:
        self._home_blobs = home_blobs
        self._entries: dict[tuple[str, str], list[RefEntry]] = {}

    def read(self) -> Iterator[Log]:
        """Return every log as it is now; costs one LIST of keys, and reads what is new.

        Raises:
            Damaged: An entry is damaged, or missing though later ones are there.
        """
        highest: dict[tuple[str, str], int] = {}
        for info in self._home_blobs.list(REFS):
            if match := _ENTRY.match(info.key):
                log = match[1], match[2]
                highest[log] = max(highest.get(log, 0), int(match[3]))
        new = [
            (log, seq)
            for log, last in highest.items()
            for seq in range(len(self._entries.get(log, ())) + 1, last + 1)
        ]
        for at in range(0, len(new), _PAGE):
            self._take_in(new[at : at + _PAGE])
        # entries are appended to these lists, but those that were given out stay as they are
        return iter(
            [
                Log(model, name.removesuffix("/"), list(entries))
                for (model, name), entries in self._entries.items()
            ]
        )

    def _take_in(self, new: Sequence[tuple[tuple[str, str], int]]) -> None:
        keys = [entry_key(f"{REFS}{model}/{name}", seq) for (model, name), seq in new]
        found = self._home_blobs.get_many(keys)
        for (log, seq), key in zip(new, keys, strict=True):
            if key not in found:
                damaged(key, "it is missing, but later entries of this log are there")
            entry = parse_entry(found[key], seq, f"ref entry {key}")
            self._entries.setdefault(log, []).append(entry)
