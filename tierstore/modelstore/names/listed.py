"""All models with their versions and aliases, as one listing of home shows them.

Who asks name by name looks for the ends of several logs of each. Here one listing of keys says
where all logs end, whoever wrote to them. It is made anew each time, so that nothing is missed that
was there before; what it costs grows with all entries, a thousand a request. Entries never change:
those at the ends are kept in a local file, and count as long as the listing shows the same time and
size. So the next process reads those that are new.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tierstore.blobs.base import BlobInfo
from tierstore.errors import OF_ONE, Damaged, NotFound, TierstoreError, UnsupportedFormat
from tierstore.format.keys import ALIASES, VARIANTS, VERSION_LOG, entry_key, ref_prefix
from tierstore.format.reflog import RefEntry, parse_entry, that_count
from tierstore.ids import Buffer
from tierstore.modelstore.home.ahead import ahead
from tierstore.modelstore.home.heads import End, Heads
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.removed import Removals, Removed
from tierstore.modelstore.version import Version, version_of

_log = logging.getLogger("tierstore.refs")
_PAGE = 256
_FEW = 64
"""So many entries are read sooner than what opens a local file is imported."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One model.

    Attributes:
        newest: Its newest version that is not removed.
        count: How many versions it has that are not removed.
        aliases: The numbers of the versions that its aliases point to, by alias.
    """

    newest: Version
    count: int
    aliases: Mapping[str, int]


def list_names(names: Names, cache_dir: Path) -> ListedNames:
    """Return all names of a store as they are now.

    Args:
        names: The names of the store.
        cache_dir: This node's folder of what can be lost.
    """
    return ListedNames(names.home, names.removals, names.home.read_cache_path(cache_dir))


class ListedNames:
    """The names of a store as they were when this was made, or later. For one thread.

    Args:
        home: The store's home.
        removals: What is removed.
        cache_path: Local file where entries are kept for the next process.
    """

    def __init__(self, home: Home, removals: Removals, cache_path: Path) -> None:
        self._home, self._removals, self._cache_path = home, removals, cache_path
        self._heads = Heads(home.blobs)
        self._ends = dict(self._heads.versions())
        self._aliases: dict[str, dict[str, End]] = {}
        for model, alias, end in self._heads.aliases():
            self._aliases.setdefault(model, {})[alias] = end
        self._variants: dict[str, dict[str, End]] = {}
        for model, variant, end in self._heads.variants():
            self._variants.setdefault(model, {})[variant] = end
        self._at_ends: dict[str, Buffer] = {}
        removals.read_to({model: end.seq for model, (_, end) in self._ends.items() if end.seq})
        for name in self._heads.strays():
            removals.tell_strange(name)

    def models(self) -> list[str]:
        """Return the names of all models that have a version which is not removed, sorted.

        One whose log of removals cannot be read is among them: whoever asks for it is told.
        """
        return [model for model in self._ends if not self._is_gone(model)]

    def _is_gone(self, model: str) -> bool:
        try:
            return not self._numbers(model)
        except (Damaged, UnsupportedFormat) as error:
            _log.warning("whether %s has a version in force is not known: %s", model, error)
            return False

    def _removed(self, model: str) -> Removed:
        last = self._ends[model][1].seq
        return self._removals.as_read(model, last) if last else {}

    def _numbers(self, model: str) -> list[int]:
        """Return the versions of a model that are not removed, newest first."""
        removed = self._removed(model)
        return [one for one in range(self._ends[model][0].seq, 0, -1) if one not in removed]

    def read_ends(self) -> None:
        """Read the entries at the ends of the logs of versions and aliases, for ``model``."""
        infos = [
            BlobInfo(self._key(model, name, end.seq), end.size, end.mtime)
            for model, (last, _) in self._ends.items()
            for name, end in [
                (VERSION_LOG, last),
                *((ALIASES + one, at) for one, at in self._aliases.get(model, {}).items()),
            ]
        ]
        if len(infos) <= _FEW:
            self._at_ends |= self._home.blobs.get_many([info.key for info in infos])
            return
        from tierstore.modelstore.home.readcache import ReadCache

        cache = ReadCache(self._cache_path)
        self._at_ends |= cache.get(infos)
        new = [info for info in infos if info.key not in self._at_ends]
        for at in range(0, len(new), _PAGE):
            page = new[at : at + _PAGE]
            found = self._home.blobs.get_many([info.key for info in page])
            self._at_ends |= found
            values = [(info, bytes(found[info.key])) for info in page if info.key in found]
            cache.put(values, self._heads.newest_s)

    def model(self, model: str) -> ListedModel:
        """Return what ``ls`` says of a model.

        Raises:
            Damaged, NotFound, UnsupportedFormat: An entry cannot be read.
        """
        numbers = self._numbers(model)
        newest = version_of(model, self._entry(model, VERSION_LOG, numbers[0]))
        pointed = {
            alias: self._entry(model, ALIASES + alias, end.seq).version
            for alias, end in self._aliases.get(model, {}).items()
        }
        aliases = {alias: number for alias, number in pointed.items() if number is not None}
        return ListedModel(newest, len(numbers), aliases)

    def _entry(self, model: str, name: str, seq: int) -> RefEntry:
        key = self._key(model, name, seq)
        data = self._at_ends.get(key)
        if data is None:
            return self._home.log(model, name).entry(seq)
        return parse_entry(data, seq, f"ref entry {key}")

    def all_versions(self) -> Iterator[tuple[str, list[Version] | TierstoreError]]:
        """Yield all models with their versions and variants that are not removed, newest first.

        Of a model of which an entry cannot be read it is the error.
        """
        return ahead(self._versions_or_error, self.models())

    def _versions_or_error(self, model: str) -> list[Version] | TierstoreError:
        try:
            return self._versions_of(model)
        except OF_ONE as error:
            return error

    def _versions_of(self, model: str) -> list[Version]:
        removed = self._removed(model)
        own = self._entries(model, VERSION_LOG, self._numbers(model))
        found = [version_of(model, entry) for entry in own]
        for variant, end in self._variants.get(model, {}).items():
            entries = self._entries(model, VARIANTS + variant, range(end.seq, 0, -1))
            found += [
                version_of(model, entry, variant=variant)
                for entry in that_count(entries)
                if entry.version not in removed
            ]
        return found

    def _entries(self, model: str, name: str, seqs: Iterable[int]) -> Iterator[RefEntry]:
        keys = {seq: self._key(model, name, seq) for seq in seqs}
        found = self._home.blobs.get_many(list(keys.values()))
        for seq, key in keys.items():
            if key not in found:
                raise NotFound(self._home.log(model, name).lost(seq))
            yield parse_entry(found[key], seq, f"ref entry {key}")

    def _key(self, model: str, name: str, seq: int) -> str:
        return entry_key(ref_prefix(model, name), seq)
