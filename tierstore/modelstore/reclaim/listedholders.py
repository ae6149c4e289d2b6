"""Who names the versions of many models, for those who only report: one listing for each model.

Who removes versions reads what names mean right before and after (``holders``). Who only says what
rules would remove reads, model by model, the keys of the model's logs by one LIST, and of the
entries those that no process of this node has read before: entries never change. Pins, leases and
releases are read once.

Of a model nothing stays in memory once the next one is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from tierstore.format.keys import REMOVED_LOG, VERSION_LOG, segment
from tierstore.format.reflog import RefEntry
from tierstore.modelstore.home.home import names_in
from tierstore.modelstore.home.retention import SetRetentions
from tierstore.modelstore.names.aliaslog import goes_back_to
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.removed import apply_removal
from tierstore.modelstore.reclaim.holders import Holder, Holders
from tierstore.modelstore.reclaim.reflogs import RefLogs


class ListedHolders(Holders):
    """Finds who names the versions of one model after another, as it was when each was begun.

    Args:
        names: The names of the store.
        stored: What is set in it.
        cache_path: A local file that can be lost, where what was read of home is kept; ``None``
            keeps nothing.
    """

    def __init__(self, names: Names, stored: SetRetentions, cache_path: Path | None) -> None:
        super().__init__(names, cache_path)
        self._stored = stored
        self._reflogs = RefLogs(self._home.blobs, self._cache)
        self._listed: dict[str, Sequence[RefEntry]] = {}
        self._by_digest: Mapping[str, list[Holder]] | None = None
        self._by_model: dict[str, list[tuple[int, Holder]]] | None = None

    def begin(self, model: str) -> None:
        """Look at a model, by one LIST; what was read of the one before is let go.

        Raises:
            Damaged: An entry of one of its logs is damaged or missing.
        """
        self._is_patch.clear()
        self._below.clear()
        self._listed = {log.name: log.entries for log in self._reflogs.read(self.now_s(), model)}

    def in_force(self, model: str) -> tuple[list[int], set[int]]:
        removed, announced = dict[int, RefEntry](), dict[int, RefEntry]()
        for entry in self._listed.get(REMOVED_LOG, ()):
            apply_removal(entry, removed, announced)
        top = len(self._listed.get(VERSION_LOG, ()))
        return [number for number in range(top, 0, -1) if number not in removed], set(announced)

    def removals(self, model: str) -> list[RefEntry]:
        return list(reversed(self._listed.get(REMOVED_LOG, ())))

    def _folders(self, model: str, folder: str) -> list[str]:
        segments = [name.removeprefix(folder) for name in self._listed if name.startswith(folder)]
        return sorted(names_in(segments))

    def _last(self, model: str, name: str) -> RefEntry | None:
        entries = self._entries_of(name)
        return entries[-1] if entries else None

    def _read(self, model: str, name: str, numbers: Sequence[int]) -> list[RefEntry]:
        entries = self._entries_of(name)
        return [entries[number - 1] for number in numbers]

    def _older(self, model: str, name: str, last: RefEntry) -> Iterable[RefEntry]:
        return reversed(self._entries_of(name)[: last.seq - 1])

    def _alias_history_s(self, model: str) -> int:
        return self._stored.of(model).alias_history_s()

    def _entries_of(self, name: str) -> Sequence[RefEntry]:
        folder, slash, rest = name.partition("/")
        return self._listed.get(f"{folder}/{segment(rest)}" if slash else name, ())

    def _back(self, model: str, name: str, newest: Sequence[RefEntry]) -> RefEntry | None:
        return goes_back_to(newest[-1], lambda seq: self._read(model, name, [seq])[0])

    def _releases(self, model: str, going: Set[tuple[str, int]]) -> list[tuple[int, Holder]]:
        if self._by_model is None:
            by_model: dict[str, list[tuple[int, Holder]]] = {}
            for name, number, member in Holders(self._names)._released():
                of_model = by_model.setdefault(member.model, [])
                of_model.append((member.version, Holder("release", f"release {name}@{number}")))
            self._by_model = by_model
        return self._by_model.get(model, [])

    def _pinned_and_read(self, *, readers: bool) -> Mapping[str, list[Holder]]:
        if self._by_digest is None:
            self._by_digest = super()._pinned_and_read(readers=True)
        return self._by_digest
