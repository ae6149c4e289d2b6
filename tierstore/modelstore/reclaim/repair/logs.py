"""Repairs ref logs: what an entry said is taken from other objects of home that say the same.

A version's entry is written anew where an alias, a rollout, a release or a variant says which
manifest it named. What an alias meant, and what was removed, nobody else says. An entry that
removes the alias takes the place of a damaged one; one of a log of removals brings back all that
the lost one may have brought back, as what is removed may be collected at once. What was collected
stays removed: nothing brings it back, and in force it would stop every collection.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import cache
from importlib.metadata import version as package_version
from typing import TypeAlias

from tierstore.errors import Damaged, InvalidName, NotFound, UnsupportedFormat
from tierstore.format import keys
from tierstore.format.reflog import MAX_REMOVED, Action, Hint, RefEntry, parse_entry
from tierstore.format.sealed import Kind, mended, seal_body, unseal_body
from tierstore.ids import Digest
from tierstore.modelstore.care.check_patches import unread_because_of
from tierstore.modelstore.chunks.findlost import LostChunks
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.once import create_once
from tierstore.modelstore.home.refs import MOST_MISSING, highest_of, whoami
from tierstore.modelstore.names.claims import NO_VERSION
from tierstore.modelstore.names.removed import PURGE, apply_removal
from tierstore.modelstore.names.witnesses import Witnesses, numbers, readable_entries
from tierstore.modelstore.reclaim.purge.orders import Orders
from tierstore.modelstore.reclaim.repair.objects import Objects
from tierstore.modelstore.reclaim.repair.report import Outcome
from tierstore.modelstore.version import RELEASED
from tierstore.shown import counted

_Unread = (Damaged, NotFound, UnsupportedFormat)
_MISSING = "it is missing, but later entries are there, or something names it"
_NOTE = "repair: what this entry said was lost"
_MOST_NAMED = 5

_Row: TypeAlias = tuple[Action, list[int]]
"""An entry of a log of removals: its action and its versions."""


class LogRepair:
    """Repairs the ref logs of a store.

    Args:
        home: The store's home.
        objects: Reads and writes their entries.
    """

    def __init__(self, home: Home, objects: Objects) -> None:
        self._home, self._objects = home, objects
        self._witnesses = Witnesses(home)

    def run(self) -> None:
        """Repair every log of every model, those among them of which nothing is left."""
        logs = dict.fromkeys(self._logs())
        for model, name in [*logs, *(one for one in self._witnesses.logs() if one not in logs)]:
            self._log(model, name)

    def _logs(self) -> Iterator[tuple[str, str]]:
        for model in self._home.models():
            names = [keys.VERSION_LOG, keys.REMOVED_LOG]
            names += [keys.VARIANTS + variant for variant in self._home.variants(model)]
            names += [keys.ALIASES + alias for alias in self._home.aliases(model)]
            for name in names:
                yield model, name

    def _log(self, model: str, name: str) -> None:
        prefix = keys.ref_prefix(model, name)
        hint, hinted = self._hint(prefix)
        there = numbers(self._home, model, name)
        last = max(highest_of(there), hinted, self._witnesses.least(model, name))
        if not last:
            return
        if last - len(there) > MOST_MISSING:
            done = (
                f"of its {last} entries {last - len(there)} or so are lost: restore them from a "
                f"copy of home, then repair again; 'tierstore rm {model} --all' gives the model up"
            )
            self._objects.report.add("lost", prefix, _MISSING, done)
            return
        found = {keys.entry_key(prefix, seq): seq for seq in sorted(there) if seq <= last}

        def parse(key: str, data: memoryview) -> object:
            return parse_entry(data, found[key], key)

        bad = {
            found[one.key]: str(one.why)
            for one in self._objects.broken(Kind.REF, list(found), parse)
        }
        bad |= dict.fromkeys(self._missing(prefix, set(range(1, last + 1)) - there), _MISSING)
        if name == keys.REMOVED_LOG:
            self._removals(model, last, bad)
        else:
            for seq in sorted(bad):
                self._entry(model, name, seq, bad[seq])
        if hint:
            sealed = seal_body(Kind.HINT, Hint(seq=last))
            note = "a search for the newest entry begins there"
            self._objects.put(prefix + keys.HEAD, sealed, hint, "written anew", note)

    def _missing(self, prefix: str, unlisted: set[int]) -> set[int]:
        """Return the numbers of entries that are not there, of those that were not listed.

        One that was written during the listing may not be in it, though one behind it is.
        """
        return {seq for seq in unlisted if not self._objects.is_there(keys.entry_key(prefix, seq))}

    def _hint(self, prefix: str) -> tuple[str, int]:
        """Return what is wrong with the hint of a log, and the number that it says."""
        key = prefix + keys.HEAD
        try:
            data = self._home.blobs.get(key)
        except NotFound:
            return "it is missing", 0
        try:
            return "", unseal_body(Kind.HINT, data, Hint, key).seq
        except Damaged as error:
            return str(error), 0
        except UnsupportedFormat as error:
            return "" if mended(Kind.HINT, data) is None else str(error), 0

    def _entry(self, model: str, name: str, seq: int, why: str) -> None:
        if name == keys.VERSION_LOG:
            self._version(model, seq, why)
        elif name.startswith(keys.ALIASES):
            alias = name.removeprefix(keys.ALIASES)
            done = "replaced by an entry that removes the alias"
            note = f"what it meant is lost, 'tierstore alias set {model}@{alias} REF' sets it anew"
            blank = self._blank(model, name, seq, "remove")
            self._write(model, name, blank, why, done, note, "lost")
        else:
            variant = name.removeprefix(keys.VARIANTS)
            done = (
                f"which variant {variant!r} it named is lost, and whether of {model} at all; "
                "restore the object from a copy of home, or give up what this log has lost with "
                f"'tierstore rm {model}@N+{variant}': 'tierstore derive' makes it anew then"
            )
            key = keys.entry_key(keys.ref_prefix(model, name), seq)
            self._objects.report.add("lost", key, why, done)

    def _version(self, model: str, seq: int, why: str) -> None:
        key = keys.entry_key(keys.ref_prefix(model, keys.VERSION_LOG), seq)
        manifests = self._witnesses.manifests(model, seq)
        kinds = {digest: kind for digest in manifests if (kind := self._kind(digest)) is not None}
        if len(kinds) != 1:
            done = (
                f"which content {model}@{seq} has is lost, as no alias, release or variant says it;"
                " other versions are not affected, but nothing is collected, and where it is the "
                "newest one and damaged, nothing can be saved under that name until the object is "
                f"restored from a copy of home; 'tierstore rm {model}@{seq}' gives it up"
            )
            self._objects.report.add("lost", key, why, done)
            return
        [(manifest, kind)] = kinds.items()
        action: Action = RELEASED if kind == "release" else "publish"
        entry = self._blank(model, keys.VERSION_LOG, seq, action, seq, manifest)
        note = f"another entry says that {model}@{seq} is b3:{manifest[:12]}"
        self._write(model, keys.VERSION_LOG, entry, why, "written anew", note, "repaired")

    def _removals(self, model: str, last: int, bad: Mapping[int, str]) -> None:
        """Replace the damaged entries of a log of removals, the oldest first.

        Args:
            model: Name of the model.
            last: The number of the last entry.
            bad: Why entries cannot be read, by number.
        """
        known = {one.seq: one for one in readable_entries(self._home, model, keys.REMOVED_LOG)}
        for seq in sorted(bad):
            removed, announced = _held_before(known, seq)
            gone = self._gone(model, removed)
            purged = self._purged(model, removed | announced) - _purged_by(known.values())
            back = sorted((removed | announced) - gone - purged)
            rows = [*_rows(PURGE, sorted(purged)), *_rows("undelete", back)]
            here, *more = rows or [("undelete", [NO_VERSION])]
            behind = max(known.keys() | {last}) + 1  # an entry names so many versions at most
            for number, (action, versions) in [(seq, here), *enumerate(more, behind)]:
                known[number] = self._blank(
                    model, keys.REMOVED_LOG, number, action, versions=versions
                )
            also = [known[behind + at] for at in range(len(more))]
            self._removal(model, known[seq], also, sorted(gone), bad[seq])

    def _purged(self, model: str, held: Set[int]) -> set[int]:
        """Return the versions of a model whose purge was begun, as their orders say.

        Args:
            model: Name of the model.
            held: Versions that were removed before an entry that is damaged, or were about to be.
                Where one of them has an order, that entry may have been its purge.
        """
        orders = Orders(self._home.blobs)
        return {
            one.version
            for one in orders.all()
            if one.model == model and (one.version in held or orders.is_begun(one))
        }

    def _gone(self, model: str, numbers: Set[int]) -> set[int]:
        """Return those of a model's versions of which a pack is in no tier: they were collected."""
        manifests = {
            one.seq: Digest.from_hex(one.manifest)
            for one in (readable_entries(self._home, model, keys.VERSION_LOG) if numbers else ())
            if one.manifest is not None and one.seq in numbers
        }
        lost = LostChunks(self._home, set())
        is_gone = cache(lost.is_gone)
        return {
            number
            for number, digest in manifests.items()
            if unread_because_of(self._home, digest, is_gone)
        }

    def _removal(
        self, model: str, entry: RefEntry, more: Sequence[RefEntry], gone: list[int], why: str
    ) -> None:
        """Write an entry in the place of a damaged one, once those that go with it are there.

        Args:
            model: Name of the model.
            entry: The entry.
            more: Those that go with it.
            gone: The versions that stay removed, as they were collected.
            why: What is wrong with the damaged one.
        """
        every = (entry, *more)
        back = [number for one in every if one.action == "undelete" for number in one.versions]
        purged = [number for one in every if one.action == PURGE for number in one.versions]
        done = "replaced by an entry that brings back all that was removed before it"
        whose = f"{_refs(model, back)} and what it removed itself count"
        if not back:
            done = "replaced by an entry that purges what was purged"
            whose = "what else it removed counts"
        elif back == [NO_VERSION]:
            done = "replaced by an entry that changes nothing"
            whose = "what it removed counts"
        note = (
            f"{whose} as not removed; 'tierstore ls {model}' lists what that is, and "
            "'tierstore rm' or 'tierstore forget' removes it again"
        )
        if purged:
            stay = "stays" if len(purged) == 1 else "stay"
            note += f"; {_refs(model, purged)} {stay} purged, as the orders of purges say"
        if gone:
            stay = "stays" if len(gone) == 1 else "stay"
            note += f"; {_refs(model, gone)} {stay} removed: packs of that are in no tier any more"

        def before() -> bool:
            return all(self._create(model, keys.REMOVED_LOG, one) for one in more)

        self._write(model, keys.REMOVED_LOG, entry, why, done, note, "lost", before)

    def _blank(
        self,
        model: str,
        name: str,
        seq: int,
        action: Action,
        version: int | None = None,
        manifest: str | None = None,
        versions: list[int] | None = None,
    ) -> RefEntry:
        return RefEntry(
            seq=seq,
            write_id=uuid.uuid4().hex,
            action=action,
            version=version,
            manifest=manifest,
            time_us=self._time_us(model, name, seq),
            who=whoami(),
            message=_NOTE,
            tool=f"tierstore {package_version('tierstore')}",
            versions=versions or [],
        )

    def _time_us(self, model: str, name: str, seq: int) -> int:
        """Return when an entry was written, as nearly as is known."""
        key = keys.entry_key(keys.ref_prefix(model, name), seq)
        with suppress(NotFound):
            return int(self._home.blobs.info(key).mtime * 1e6)
        with suppress(*_Unread):
            return self._home.log(model, name).entry(seq - 1).time_us
        return time.time_ns() // 1000

    def _write(
        self,
        model: str,
        name: str,
        entry: RefEntry,
        why: str,
        done: str,
        note: str,
        outcome: Outcome,
        before: Callable[[], bool] = lambda: True,
    ) -> None:
        """Write an entry that was damaged or missing; ``before`` is done first, if it can be."""
        key = keys.entry_key(keys.ref_prefix(model, name), entry.seq)

        def act() -> bool:
            if not before():
                return False
            if why == _MISSING:  # a writer may take this very number
                return self._create(model, name, entry)
            self._home.blobs.put(key, seal_body(Kind.REF, entry))
            return True

        self._objects.change(act, key, why, done, note, outcome)

    def _create(self, model: str, name: str, entry: RefEntry) -> bool:
        key = keys.entry_key(keys.ref_prefix(model, name), entry.seq)
        return create_once(self._home.blobs, key, seal_body(Kind.REF, entry))

    def _kind(self, manifest: str) -> str | None:
        """Return the kind of a manifest that is there and whole; else ``None``."""
        with suppress(*_Unread, InvalidName):
            return self._home.manifest(Digest.from_hex(manifest)).kind
        return None


def _purged_by(entries: Iterable[RefEntry]) -> set[int]:
    """Return the versions that entries of a log of removals purge."""
    return {number for one in entries if one.action == PURGE for number in one.versions}


def _rows(action: Action, versions: Sequence[int]) -> Iterator[_Row]:
    """Yield entries about versions: each names so many at most."""
    for at in range(0, len(versions), MAX_REMOVED):
        yield action, [*versions[at : at + MAX_REMOVED]]


def _held_before(entries: Mapping[int, RefEntry], seq: int) -> tuple[set[int], set[int]]:
    """Return the versions that a lost entry in a log of removals may have brought back.

    They are those that entries before it removed, and those whose removal was announced and it may
    have stopped, but for those that are purged, and those of which a later one says anew whether
    they are removed.

    Args:
        entries: The entries that can be read, by number.
        seq: The number of the lost one.
    """
    removed, announced = dict[int, RefEntry](), dict[int, RefEntry]()
    for number in sorted(one for one in entries if one < seq):
        apply_removal(entries[number], removed, announced)
    later = [one for number, one in entries.items() if number > seq and one.action != "announce"]
    said = {version for one in later for version in one.versions}
    said |= {version for version, one in removed.items() if one.action == PURGE}
    return removed.keys() - said, announced.keys() - said - removed.keys()


def _refs(model: str, numbers: Sequence[int]) -> str:
    if len(numbers) <= _MOST_NAMED:
        return ", ".join(f"{model}@{number}" for number in numbers)
    return f"{counted(len(numbers), 'version')} from {model}@{numbers[0]} to {model}@{numbers[-1]}"
