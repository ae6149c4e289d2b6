"""Where all ref logs of a store end, by one listing: what moved since somebody looked last.

An entry is created once, under a key of its own, so that the keys alone say which logs have grown,
whoever wrote to them: nothing need be announced, and no log that stayed as it is need be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from tierstore.blobs.base import BlobInfo, BlobStore
from tierstore.errors import InvalidName
from tierstore.format.keys import (
    ALIASES,
    REFS,
    REMOVED_LOG,
    VARIANTS,
    VERSION_LOG,
    model_prefix,
    ref_prefix,
    seq_of,
    unsegment,
)
from tierstore.modelstore.home.home import names_in
from tierstore.modelstore.home.refs import follows

_LOG = re.compile(re.escape(REFS) + r"([^/]+)/((?:(?:alias|variant)/)?[^/]+)/[0-9]{6}/[0-9]{9}\Z")


class End(NamedTuple):
    """The last entry of a log; without one both are 0.

    Attributes:
        seq: Its number.
        mtime: When it was written, in seconds since the epoch by the storage's own clock: where a
            copy of a store is put back, a number may be given a second time.
        size: Its size in bytes.
    """

    seq: int
    mtime: float
    size: int


_NONE = End(0, 0.0, 0)


class Heads:
    """The last entries of all ref logs, as they were at one moment or later.

    An entry that is written while keys are listed may be left out: it is there at the next look.

    Args:
        home_blobs: The store's home. A request lists a thousand entries.
        model: Name of the only model whose logs are listed; ``None`` for all.
        seen: Told of every entry.

    Attributes:
        newest_s: When the newest of all keys that were listed was written, in seconds since the
            epoch by the storage's own clock; 0 without any.
    """

    def __init__(
        self,
        home_blobs: BlobStore,
        model: str | None = None,
        seen: Callable[[BlobInfo], None] = lambda info: None,
    ) -> None:
        self._ends: dict[str, dict[str, End]] = {}
        self._folders = dict[str, None]()
        self.newest_s = 0.0
        of_log, prefix, ends, name = ("", ""), "", dict[str, End](), ""
        for info in home_blobs.list(REFS if model is None else model_prefix(model)):
            self.newest_s = max(self.newest_s, info.mtime)
            match = _LOG.match(info.key)
            if match is None:
                folder, slash, _ = info.key.removeprefix(REFS).partition("/")
                self._folders |= {folder: None} if slash else {}
                continue
            if of_log != match.groups():
                of_log = match[1], match[2]
                try:
                    of, name = unsegment(match[1]), unsegment(match[2])
                    prefix = ref_prefix(of, name)
                except (UnicodeDecodeError, InvalidName):  # no log of ours
                    prefix = "/"
                else:
                    ends = self._ends.setdefault(of, {})
            seq = seq_of(info.key, prefix)
            if seq is not None and follows(seq, ends.get(name, _NONE).seq):
                ends[name] = End(seq, info.mtime, info.size)
                seen(info)

    def of(self, model: str, name: str) -> End:
        """Return the last entry of a log.

        Args:
            model: Name of the model.
            name: What the log is: ``versions``, ``removed``, ``alias/<alias>``.
        """
        return self._ends.get(model, {}).get(name, _NONE)

    def versions(self) -> Iterator[tuple[str, tuple[End, End]]]:
        """Yield all models with the last entries of their versions and of their removals."""
        for model in sorted(self._ends):
            last = self.of(model, VERSION_LOG)
            if last.seq:
                yield model, (last, self.of(model, REMOVED_LOG))

    def strays(self) -> Iterator[str]:
        """Yield the names of folders of models without any version: strangers', or what is left."""
        named = chain(names_in(self._folders), self._ends)
        return (name for name in dict.fromkeys(named) if not self.of(name, VERSION_LOG).seq)

    def aliases(self) -> Iterator[tuple[str, str, End]]:
        """Yield all aliases, removed ones too: the model, the alias and the last entry."""
        return self._below(ALIASES)

    def variants(self) -> Iterator[tuple[str, str, End]]:
        """Yield all names of variants: the model, the name and the last entry."""
        return self._below(VARIANTS)

    def _below(self, folder: str) -> Iterator[tuple[str, str, End]]:
        for model in sorted(self._ends):
            for name, last in sorted(self._ends[model].items()):
                if name.startswith(folder) and last.seq:
                    yield model, name.removeprefix(folder), last
