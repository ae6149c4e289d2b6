"""All models with their versions and aliases, as one listing of home shows them.

Who asks name by name looks for the ends of several logs of each. Here one listing of keys says
where all logs end, whoever wrote to them. It is made anew each time, so that nothing is missed that
was there before; what it costs grows with all entries, a thousand a request. Entries never change:
those that were read are kept in a local file, and count as long as the listing shows the same time
and size. So the next process reads those that are new.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tierstore.blobs.base import BlobInfo
from tierstore.errors import OF_ONE, Damaged, NotFound, TierstoreError, UnsupportedFormat
from tierstore.format.keys import ALIASES, VARIANTS, VERSION_LOG, entry_key, ref_prefix
from tierstore.format.reflog import RefEntry, parse_entry, that_count
from tierstore.ids import Buffer
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


def list_names(names: Names, cache_dir: Path, model: str | None = None) -> ListedNames:
    """Return all names of a store as they are now.

    Args:
        names: The names of the store.
        cache_dir: This node's folder of what can be lost.
        model: The only model that is listed; ``None`` for all.
    """
    home = names.home
    return ListedNames(home, names.removals, home.read_cache_path(cache_dir), model)


class ListedNames:
    """The names of a store as they were when this was made, or later. For one thread.

    Args:
        home: The store's home.
        removals: What is removed.
        cache_path: Local file where entries are kept for the next process.
        model: The only model that is listed; ``None`` for all.
    """

    def __init__(
        self, home: Home, removals: Removals, cache_path: Path, model: str | None = None
    ) -> None:
        self._home, self._removals, self._cache_path = home, removals, cache_path
        self._infos: dict[str, BlobInfo] = {}
        """All entries, by key."""
        self._heads = Heads(home.blobs, model, lambda info: self._infos.update({info.key: info}))
        self._ends = dict(self._heads.versions())
        self._aliases: dict[str, dict[str, End]] = {}
        for model, alias, end in self._heads.aliases():
            self._aliases.setdefault(model, {})[alias] = end
        self._variants: dict[str, dict[str, End]] = {}
        for model, variant, end in self._heads.variants():
            self._variants.setdefault(model, {})[variant] = end
        self._read: dict[str, Buffer] = {}
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
        self._read_in(
            self._key(model, name, end.seq)
            for model, (last, _) in self._ends.items()
            for name, end in [
                (VERSION_LOG, last),
                *((ALIASES + one, at) for one, at in self._aliases.get(model, {}).items()),
            ]
        )

    def _read_in(self, keys: Iterable[str]) -> None:
        """Read entries, those that are new from home; what is lost is not read."""
        infos = [self._infos[key] for key in keys if key in self._infos]
        if len(infos) <= _FEW:
            self._read |= self._home.blobs.get_many([info.key for info in infos])
            return
        from tierstore.modelstore.home.readcache import ReadCache

        cache = ReadCache(self._cache_path)
        self._read |= cache.get(infos)
        new = [info for info in infos if info.key not in self._read]
        for at in range(0, len(new), _PAGE):
            page = new[at : at + _PAGE]
            found = self._home.blobs.get_many([info.key for info in page])
            self._read |= found
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
        data = self._read.get(key)
        if data is None:
            return self._home.log(model, name).entry(seq)
        return parse_entry(data, seq, f"ref entry {key}")

    def versions(self, model: str) -> list[Version]:
        """Return the versions of a model that are not removed, newest first.

        Raises:
            Damaged, NotFound, UnsupportedFormat: An entry cannot be read.
        """
        numbers = self._numbers(model)
        self._read_in(self._key(model, VERSION_LOG, number) for number in numbers)
        return [version_of(model, one) for one in self._entries(model, VERSION_LOG, numbers)]

    def all_versions(self) -> Iterator[tuple[str, list[Version] | TierstoreError]]:
        """Yield all models with their versions and variants that are not removed, newest first.

        Of a model of which an entry cannot be read it is the error.
        """
        some, keys = list[str](), list[str]()
        for model in [*self.models(), ""]:  # "" ends the last page
            if model:
                some.append(model)
                with suppress(*OF_ONE):  # it is raised below
                    keys += self._keys_of(model)
            if len(keys) >= _PAGE or not model:
                self._read_in(keys)
                yield from [(one, self._versions_or_error(one)) for one in some]
                some, keys = [], []
                self._read.clear()

    def _keys_of(self, model: str) -> list[str]:
        """Return the keys of the entries of a model's versions in force and of its variants."""
        variants = self._variants.get(model, {}).items()
        return [
            *(self._key(model, VERSION_LOG, number) for number in self._numbers(model)),
            *(
                self._key(model, VARIANTS + name, seq)
                for name, end in variants
                for seq in range(1, end.seq + 1)
            ),
        ]

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
        """Yield entries that were read in."""
        for seq in seqs:
            key = self._key(model, name, seq)
            if key not in self._read:
                raise NotFound(self._home.log(model, name).lost(seq))
            yield parse_entry(self._read[key], seq, f"ref entry {key}")

    def _key(self, model: str, name: str, seq: int) -> str:
        return entry_key(ref_prefix(model, name), seq)
