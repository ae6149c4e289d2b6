"""Prints stored objects for people: their keys cut short, and how many there are of each kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tierstore.shown import counted

MANY = 10
"""More lines than this are added up by kind."""

_ID = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_NAMES = 5
_KINDS = {
    "refs": "entry of a log",
    "versions": "manifest",
    "condemned": "condemned segment",
    "gc": "condemned list",
    "quarantine": "quarantine mark",
    "index": "index segment",
    "heat": "heat record",
    "retention": "retention",
    "collected": "note of a collection",
}
_PLURALS = {"entry of a log": "entries of logs", "note of a collection": "notes of collections"}


def short_ids(text: str) -> str:
    """Return a text in which each id of 64 hex digits is cut to its first 12."""
    return _ID.sub(r"\1…", text)


def some_of(names: Sequence[str]) -> str:
    """Return the first names of many, and how many others there are."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES + 1 else ""
    return ", ".join(names[:_NAMES] if more else names) + more


def by_kind(keys: Iterable[str]) -> str:
    """Return how many objects there are of each kind: ``298 manifests, 1 layout``."""
    counts = Counter(_kind(key) for key in keys)
    return ", ".join(
        f"{count} {_PLURALS[kind]}" if count > 1 and kind in _PLURALS else counted(count, kind)
        for kind, count in counts.most_common()
    )


def _kind(key: str) -> str:
    folder = key.partition("/")[0]
    return _KINDS.get(folder, folder.removesuffix("s"))
