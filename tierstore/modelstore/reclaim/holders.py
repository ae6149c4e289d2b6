"""What keeps a version from being removed: who names it now (SPEC.md section 9.1).

A collector asks the same sources for the whole store: see the table of ``roots``.

Entries and manifests never change, so each is read once; what names mean is read anew each time.
Whether a manifest is a patch's is kept in a local file for the next process, by its digest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from tierstore.blobs.base import BlobInfo
from tierstore.errors import Damaged, NotFound
from tierstore.format.keys import ALIASES, VARIANTS, VERSION_LOG, version_key
from tierstore.format.manifest import Member, patch_info
from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.modelstore.home.ahead import parallel
from tierstore.modelstore.home.chain import find_chain
from tierstore.modelstore.home.leases import in_force
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.probe import certain_now_s
from tierstore.modelstore.home.readcache import ReadCache
from tierstore.modelstore.home.readerlease import is_own
from tierstore.modelstore.home.retention import read_set
from tierstore.modelstore.names.aliaslog import current, goes_back_to, meant_since, newest_since
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.names.rollout import HOLDER
from tierstore.modelstore.version import RELEASED
from tierstore.shown import duration_text

HolderKind = Literal["alias", "rollout", "release", "pin", "lease", "patch"]


class Holder(NamedTuple):
    """Who names a version.

    Attributes:
        kind: What does.
        text: Which one, in words that begin with its kind.
    """

    kind: HolderKind
    text: str


Reasons = dict[int, list[Holder]]
"""Who names versions, by their numbers."""

_log = logging.getLogger("tierstore.removal")
_PATCH, _FULL = b"patch", b"full"


@dataclass(frozen=True, slots=True)
class VersionDigests:
    """The entry of a version, and all that nodes may serve of it.

    Attributes:
        entry: Its entry in the model's log.
        digests: Its manifest and those of its variants, in hex.
    """

    entry: RefEntry
    digests: frozenset[str]


class Holders:
    """Finds who names versions. What cannot change is read once by each of these.

    Args:
        names: The names of the store.
        cache_path: A local file that can be lost, where what was read of home is kept; ``None``
            keeps nothing.
    """

    def __init__(self, names: Names, cache_path: Path | None = None) -> None:
        self._names, self._home = names, names.home
        self._cache = ReadCache(cache_path)
        self._now_s: float | None = None
        self._members: dict[str, tuple[Member, ...]] = {}
        self._entries: dict[tuple[str, str, int], RefEntry] = {}
        self._below: dict[str, list[str]] = {}
        self._is_patch: dict[str, bool] = {}

    def now_s(self) -> float:
        """Return the time by which names and pins end: see ``certain_now_s``; asked once."""
        if self._now_s is None:
            self._now_s = certain_now_s(self._home.blobs)
        return self._now_s

    def contents(self, model: str, numbers: Iterable[int]) -> dict[int, VersionDigests]:
        """Return the contents of these versions of a model, by number."""
        entries = {one.seq: one for one in self._read(model, VERSION_LOG, list(numbers))}
        digests = {number: {entry.manifest or ""} for number, entry in entries.items()}
        for variant in self._folders(model, VARIANTS):
            name = VARIANTS + variant
            last = self._last(model, name)
            for entry in self._read(model, name, range(1, last.seq + 1 if last else 1)):
                if entry.version in digests and entry.manifest:
                    digests[entry.version].add(entry.manifest)
        return {
            number: VersionDigests(entry, frozenset(digests[number]))
            for number, entry in entries.items()
        }

    def in_force(self, model: str) -> tuple[list[int], set[int]]:
        """Return the versions of a model that are not removed; see ``numbers_in_force``."""
        return numbers_in_force(self._names, model)

    def removals(self, model: str) -> list[RefEntry]:
        """Return the log of removals of a model, newest first."""
        return self._names.removals.entries(model)

    def _folders(self, model: str, folder: str) -> list[str]:
        """Return the names of a model's aliases or variants, sorted."""
        return self._home.aliases(model) if folder == ALIASES else self._home.variants(model)

    def _last(self, model: str, name: str) -> RefEntry | None:
        return self._home.log(model, name).last()

    def _older(self, model: str, name: str, last: RefEntry) -> Iterable[RefEntry]:
        """Yield the entries of a log before one, newest first, as far as they are asked for."""
        return self._home.log(model, name).numbered(range(last.seq - 1, 0, -1))

    def _alias_history_s(self, model: str) -> int:
        return read_set(self._home.blobs, model).alias_history_s()

    def _read(self, model: str, name: str, numbers: Sequence[int]) -> list[RefEntry]:
        new = [number for number in numbers if (model, name, number) not in self._entries]
        for entry in self._home.log(model, name).numbered(new):
            self._entries[model, name, entry.seq] = entry
        return [self._entries[model, name, number] for number in numbers]

    def aliases(self, model: str) -> dict[str, RefEntry]:
        """Return the newest entry of each alias of a model, as it is now."""
        found = {one: self._last(model, ALIASES + one) for one in self._folders(model, ALIASES)}
        return {alias: last for alias, last in found.items() if last is not None}

    def named(
        self,
        model: str,
        going: Mapping[int, VersionDigests],
        staying: Set[str],
        aliases: Mapping[str, RefEntry],
        releases: Set[tuple[str, int]] = frozenset(),
        *,
        readers: bool = True,
    ) -> Reasons:
        """Return who names versions of a model now, by number.

        Args:
            model: The model's name.
            going: The versions that are asked about.
            staying: The digests of versions that stay in any case: a pin or lease of the same
                content means those.
            aliases: The newest entry of each alias of the model.
            releases: Releases, by name and number, that go as well.
            readers: Whether who reads a version counts.
        """
        found: Reasons = {}
        for number, holder in [*_meant(model, aliases), *self._releases(model, releases)]:
            if number in going:
                found.setdefault(number, []).append(holder)
        by_digest = self._pinned_and_read(readers=readers)
        for number, content in going.items():
            for digest in sorted(content.digests - staying):
                found.setdefault(number, []).extend(by_digest.get(digest, []))
        return {number: sorted(set(holders)) for number, holders in found.items() if holders}

    def left(self, model: str, aliases: Mapping[str, RefEntry]) -> dict[int, list[str]]:
        """Return which versions aliases left lately (SPEC 9.1), or would go back to, and which do.

        Args:
            model: The model's name.
            aliases: The newest entry of each of its aliases.
        """
        found: dict[int, list[str]] = {}
        now_us = self.now_s() * 1e6
        history_s = self._alias_history_s(model)
        since_us = now_us - history_s * 1e6
        lately = f"in the last {duration_text(timedelta(seconds=history_s))}"
        for alias, last in aliases.items():
            older = self._older(model, ALIASES + alias, last)
            newest = newest_since(chain([last], older), since_us)
            before = self._back(model, ALIASES + alias, newest)
            if before is not None and before.version is not None:
                found.setdefault(before.version, []).append(f"rollback of {alias}")
            for one in meant_since(newest, since_us, now_us):
                found.setdefault(one.version, []).append(f"alias {alias} {lately}")
        return found

    def _back(self, model: str, name: str, newest: Sequence[RefEntry]) -> RefEntry | None:
        """Return what a rollback goes back to; the newest entries of the log are read already."""
        self._entries |= {(model, name, entry.seq): entry for entry in newest}
        return goes_back_to(newest[-1], lambda seq: self._read(model, name, [seq])[0])

    def _releases(self, model: str, going: Set[tuple[str, int]]) -> list[tuple[int, Holder]]:
        """Return which versions of a model releases have, and which release, but for some."""
        return [
            (member.version, Holder("release", f"release {name}@{number}"))
            for name, number, member in self._released(going)
            if member.model == model
        ]

    def _released(self, going: Set[tuple[str, int]] = frozenset()) -> list[tuple[str, int, Member]]:
        """Return the members of all releases but some, with the release's name and number."""
        names = self._names.removals.may_be_releases(self._home.models())
        every = parallel(lambda name: self._members_by(name, going), names)
        return [one for found in every for one in found]

    def _members_by(self, name: str, going: Set[tuple[str, int]]) -> list[tuple[str, int, Member]]:
        last, removed = self._names.removals.last(name)
        if last is None or last.action != RELEASED:
            return []
        return [
            (name, entry.seq, member)
            for entry in self._read(name, VERSION_LOG, range(last.seq, 0, -1))
            # one that goes may be lost, and is removed for that
            if entry.seq not in removed and entry.manifest and (name, entry.seq) not in going
            for member in self._members_of(f"{name}@{entry.seq}", entry.manifest)
        ]

    def _members_of(self, release: str, manifest: str) -> tuple[Member, ...]:
        if manifest not in self._members:
            try:
                found = self._home.manifest(Digest.from_hex(manifest)).members
            except (Damaged, NotFound) as error:
                raise Damaged(
                    f"release {release} cannot be read, so nobody knows its members: {error}. "
                    "Nothing was removed: restore it from a copy, or first "
                    f"'tierstore rm {release}'"
                ) from error
            self._members[manifest] = tuple(found or ())
        return self._members[manifest]

    def _pinned_and_read(self, *, readers: bool) -> Mapping[str, list[Holder]]:
        """Return who pins or reads versions, by the digests of their manifests."""
        found: dict[str, list[Holder]] = {}
        for pin in Pins(self._home.blobs).active(self.now_s):
            if not pin.ref.startswith(HOLDER):  # the alias names what a rollout pins
                holder = Holder("pin", f"pin of {pin.who}")
                found.setdefault(pin.version.hex, []).append(holder)
        for lease in in_force(self._home.blobs, "reader") if readers else ():
            # what this process reads itself its lease keeps from being deleted; that is enough
            if not is_own(lease):
                for version in lease.versions:
                    reader = f"lease of {lease.who} (pid {lease.pid} on {lease.host})"
                    found.setdefault(version, []).append(Holder("lease", reader))
        return found

    def chains(self, model: str, staying: Mapping[int, VersionDigests]) -> dict[str, str]:
        """Return what the patches among the versions that stay lie on.

        Returns:
            By the digest of a manifest down to the nearest fold, the version that needs it.
        """
        found: dict[str, str] = {}
        patches = self.patches(staying)

        def needed(content: VersionDigests) -> list[tuple[str, str]]:
            ref = f"{model}@{content.entry.seq}"
            return [(digest, ref) for digest in self._needs(content)]

        for pairs in parallel(needed, [one for at, one in staying.items() if at in patches]):
            for digest, ref in pairs:
                found.setdefault(digest, ref)
        return found

    def _needs(self, patch: VersionDigests) -> list[str]:
        """Return what a patch lies on down to the nearest fold; it never lies on more."""
        manifest = patch.entry.manifest or ""
        if manifest not in self._below:
            below: list[str] = []
            try:
                chain = find_chain(self._home, Digest.from_hex(manifest))
                below = [one.hex for one in (chain.full, *chain.patches[:-1])]
            except (Damaged, NotFound) as error:  # it cannot be loaded, whatever stays
                _log.info("%s; what it lay on can be removed", error)
            self._below[manifest] = below
        return self._below[manifest]

    def patches(self, contents: Mapping[int, VersionDigests]) -> set[int]:
        """Return the numbers of those that are patches on others, folded or not.

        One whose manifest is lost is none. Each manifest is read once.
        """
        manifests = {number: one.entry.manifest or "" for number, one in contents.items()}
        new = [one for one in dict.fromkeys(manifests.values()) if one not in self._is_patch]
        if new:
            self._is_patch |= dict.fromkeys(new, False) | self._are_patches(new)
        return {number for number, one in manifests.items() if self._is_patch[one]}

    def _are_patches(self, manifests: Sequence[str]) -> dict[str, bool]:
        """Return whether manifests are those of patches, but for lost ones."""
        # a manifest never changes: it needs no stamp
        infos = {one: BlobInfo(version_key(Digest.from_hex(one)), 0, 0.0) for one in manifests}
        kept = self._cache.get(infos.values())
        found = {one: kept[info.key] == _PATCH for one, info in infos.items() if info.key in kept}
        new = self._read_kinds([one for one in manifests if one not in found])
        values = [(infos[one], _PATCH if is_patch else _FULL) for one, is_patch in new.items()]
        self._cache.put(values, time.time())
        return found | new

    def _read_kinds(self, manifests: Sequence[str]) -> dict[str, bool]:
        def is_patch(manifest: str) -> bool | None:
            try:
                return patch_info(self._home.manifest(Digest.from_hex(manifest))) is not None
            except (Damaged, NotFound) as error:
                _log.info("%s; whether it is a patch is not known", error)
                return None

        found = zip(manifests, parallel(is_patch, manifests), strict=True)
        return {one: known for one, known in found if known is not None}


def numbers_in_force(names: Names, model: str) -> tuple[list[int], set[int]]:
    """Return the versions of a model that are not removed, newest first.

    With it come those of which a removal is announced.
    """
    last, _ = names.removals.last(model)
    removed, announced = names.removals.both(model)
    top = 0 if last is None else last.seq
    return [number for number in range(top, 0, -1) if number not in removed], set(announced)


def _meant(model: str, aliases: Mapping[str, RefEntry]) -> list[tuple[int, Holder]]:
    """Return which versions aliases mean, and who does."""
    return [
        (
            one.version,
            Holder("rollout", f"rollout of {model}@{alias}")
            if one.is_rollout
            else Holder("alias", f"alias {alias}"),
        )
        for alias, last in aliases.items()
        for one in current([last])
    ]
