"""Copies versions of one model, with their variants, and releases with their members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from tierstore.copying.report import CopiedVersion
from tierstore.copying.versions import VersionCopy
from tierstore.errors import OF_ONE, BackendError, TierstoreError
from tierstore.format.keys import VARIANTS
from tierstore.format.manifest import summary_of
from tierstore.format.reflog import RefEntry, Summary, that_count
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import bottom_manifest
from tierstore.modelstore.home.settling import Publication
from tierstore.modelstore.names.members import variants_of
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version, version_of
from tierstore.progress import Progress

_HOLDER = "holds the number of a version that was not copied"
"""What the log says of an entry that stands for no version, and is removed at once."""

MOST_HELD = 1000
"""A version before which more numbers are free takes the next one: each costs an entry."""


class ModelCopy:
    """Copies versions of one model to another store.

    Args:
        source: The store that has them.
        target: The store that they come to.
        model: Name of the model in the source.
        into: Its name in the target.
        history: Whether entries keep their times, and who wrote them.
        progress: Called with the bytes done and the bytes in all of what is copied at a time.
        keep_numbers: Whether numbers before that of a version that are free in the target are held
            by entries that are removed at once, so that the version gets its own; that takes a
            target that allows removal.
        is_release: Whether these are releases, which ``copying.copy_release`` makes anew.
    """

    def __init__(
        self,
        source: Store,
        target: Store,
        model: str,
        into: str,
        *,
        history: bool,
        progress: Progress | None,
        keep_numbers: bool = False,
        is_release: bool = False,
    ) -> None:
        self._source, self._target = source, target
        self._model, self._into = model, into
        self._history, self._progress = history, progress
        self._keep_numbers = keep_numbers
        self._versions = VersionCopy(source, target)
        names, log = target._names, target._parts.home.log(into)
        names.check_new(into, None, release=is_release)
        self.entries: dict[int, RefEntry] = {}
        """The entries of the model's versions in the target, by number."""
        self._numbers: dict[str | None, list[int]] = {}
        """Their numbers, rising, by the digests of their manifests."""
        for entry in reversed(list(log.entries())):
            self._note(entry)
        self._is_held = True
        self._held: list[int] = []
        """The numbers that are held for the version that is being copied, rising."""
        self.removed = names.removals.of(into)
        """Those versions of the model that are removed in the target, by number."""

    def _note(self, entry: RefEntry) -> None:
        self.entries[entry.seq] = entry
        self._numbers.setdefault(entry.manifest, []).append(entry.seq)

    def version(self, number: int) -> Version:
        """Return a version of the model in the target, removed or not."""
        return version_of(self._into, self.entries[number])

    def why_removed(self, number: int) -> str:
        """Return in words when a version was removed in the target, and by whom."""
        names = self._target._names
        return names.removals.why(self._into, number, self.removed[number])

    def estimate(self, version: Version, seen: set[bytes]) -> int:
        """Return the bytes that a copy would send; see ``VersionCopy.estimate``."""
        return self._versions.estimate(version, self.find, seen)

    def find(self, digest: Digest) -> Version | None:
        """Return the newest version in force in the target with this manifest; ``None`` if none."""
        numbers = reversed(self._numbers.get(digest.hex, []))
        found = next((number for number in numbers if number not in self.removed), None)
        return None if found is None else self.version(found)

    def copy(
        self, version: Version, there: Version | None, *, heal: bool = False
    ) -> Iterator[CopiedVersion]:
        """Copy a version unless it is there, then its variants; yield what came of each.

        Args:
            version: The version in the source.
            there: The same in the target, if that has it.
            heal: Whether what the target has lost of what is there is put back.

        Raises:
            Conflict: This content was purged from the target.
            Damaged, NotFound: A part of the version cannot be read; nothing of it was published.
        """
        if there is not None:
            yield self._there(version, there, self.entries[there.number], heal=heal)
        else:
            origin = self._source._parts.home.log(self._model).entry(version.number)
            how = self._publication(origin, self._summary(version))
            entry, sent, _ = self._versions.copy(version, how, self.find, self._progress)
            self._note(entry)
            self.remove_holders()
            there = version_of(self._into, entry)
            yield CopiedVersion(version, there, "copied", sent_bytes=sent)
        yield from self._copy_variants(version, there, heal=heal)

    def _there(
        self, version: Version, there: Version, entry: RefEntry, *, heal: bool
    ) -> CopiedVersion:
        """Return what came of a version that is there, and heal it if that is wanted."""
        if not heal:
            return CopiedVersion(version, there, "there")
        how = Publication(lambda _: entry, lambda entry, why: f"{there} stays as it was")
        _, sent, chunks = self._versions.copy(version, how, lambda _: None, self._progress)
        if not chunks:
            return CopiedVersion(version, there, "there")
        return CopiedVersion(version, there, "healed", sent_bytes=sent)

    def _summary(self, version: Version) -> Summary | None:
        """Return how large a version is: by its manifests, whatever its entry in the source says.

        ``None`` where they cannot be read: a copy of the version needs not all of them.
        """
        with suppress(*OF_ONE):
            return summary_of(bottom_manifest(self._source._parts.home, version.digest))
        return None

    def _publication(self, origin: RefEntry, summary: Summary | None) -> Publication[RefEntry]:
        """Return how a version is published in the target.

        Args:
            origin: Its entry in the source.
            summary: How large it is.
        """
        kept = origin if self._history else None
        names = self._target._names
        how = names.publication(self._into, summary, origin.message, origin=kept)

        def append(digest: Digest) -> RefEntry:
            if self._keep_numbers:
                try:
                    self._hold_numbers(origin.seq, digest)
                except BackendError as error:
                    error.unanswered = None  # what that wrote is not the version's entry
                    raise
            return how.append(digest)

        def append_or_give_up(digest: Digest) -> RefEntry:
            try:
                return append(digest)
            except TierstoreError:
                with suppress(TierstoreError):  # else the next sync removes them
                    self._remove_held(self._held)
                raise

        def take_back(entry: RefEntry, why: BaseException) -> str:
            done = how.take_back(entry, why)
            self._remove_held(self._held)
            return done

        return replace(how, append=append_or_give_up, take_back=take_back)

    def _hold_numbers(self, number: int, digest: Digest) -> None:
        """Have all numbers before one taken.

        The entries name the content that is about to be published: whoever takes the newest version
        meanwhile gets that, and never what no version is.
        """
        last = self._target._parts.home.log(self._into).last()
        following = last.seq + 1 if last else 1
        self._held = []
        if number - following > MOST_HELD:
            return
        while following < number:
            held = self._target._names.hold_number(self._into, digest, _HOLDER)
            self._note(held)
            self._held.append(held.seq)
            self._is_held = True
            following = held.seq + 1

    def remove_holders(self) -> None:
        """Remove the entries that hold numbers, those of a copy that was killed, too.

        Those of which the content is not there as a version are left to a collection.
        """
        if not self._is_held:
            return
        held = [n for n, one in self.entries.items() if one.holds_number and n not in self.removed]
        newer = {one.manifest for one in self.entries.values() if not one.holds_number}
        going = [n for n in held if self.entries[n].manifest in newer]
        self._remove_held(sorted(going))
        self._is_held = len(held) > len(going)

    def _remove_held(self, numbers: Sequence[int]) -> None:
        """Remove entries that hold numbers; nobody loads them as the newest version after that."""
        if numbers:
            refs = [f"{self._into}@{number}" for number in numbers]
            self._target.remove(*refs, force=True, message=_HOLDER)
            self.removed = self._target._names.removals.of(self._into)

    def _copy_variants(
        self, version: Version, there: Version, *, heal: bool
    ) -> Iterator[CopiedVersion]:
        for variant in variants_of(self._source._parts.home, version):
            name = VARIANTS + str(variant.variant)
            own = that_count(self._target._parts.home.log(self._into, name).entries())
            made = (one for one in own if one.version == there.number)
            entry = next((one for one in made if one.manifest == variant.digest.hex), None)
            if entry is not None:
                found = version_of(self._into, entry, variant=variant.variant)
                yield self._there(variant, found, entry, heal=heal)
                continue
            origin = self._origin_of(variant, name)
            kept = origin if self._history else None
            label = str(variant.variant)
            names, summary = self._target._names, self._summary(variant)
            how = names.derivation(there, label, summary, origin.message, kept)
            entry, sent, _ = self._versions.copy(variant, how, lambda _: None, self._progress)
            found = version_of(self._into, entry, variant=variant.variant)
            yield CopiedVersion(variant, found, "copied", sent_bytes=sent)

    def _origin_of(self, variant: Version, name: str) -> RefEntry:
        log = self._source._parts.home.log(self._model, name)
        every = (one for one in that_count(log.entries()) if one.version == variant.number)
        return next(entry for entry in every if entry.manifest == variant.digest.hex)
