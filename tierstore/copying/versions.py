"""Copies one version to another store: frames as they lie, and only what is not there.

Its manifest is the same object in both stores, so it keeps its digest. What a patch lies on comes
along: the manifests of its chain down to that which has a fold, and the fold, or nothing of that
where the version below is in the other store already. Everything is written as a save does it, and
one entry makes the version exist.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from tierstore.errors import Conflict, Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.manifest import patch_info
from tierstore.format.reflog import RefEntry
from tierstore.ids import Digest
from tierstore.modelstore.care.check_folds import FoldCheck
from tierstore.modelstore.home.chain import Chain, find_chain
from tierstore.modelstore.home.settling import Publication, publish
from tierstore.modelstore.patches.fold import name_fold
from tierstore.modelstore.saving.copier import CopyWriter
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version, version_of
from tierstore.progress import Progress

_log = logging.getLogger("tierstore.copy")


@dataclass(frozen=True, slots=True)
class Part:
    """One manifest that a version is read by.

    Attributes:
        digest: Digest of the manifest.
        folds: The patch version of which it is the fold; ``None`` if it is none.
    """

    digest: Digest
    folds: Digest | None = None


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What is copied of a version.

    Attributes:
        parts: Its manifests in the order in which they are written, each behind what it lies on.
        base: The version in the target that it lies on, if that is not copied.
        below: How that is read there.
    """

    parts: tuple[Part, ...]
    base: Version | None = None
    below: Chain | None = None

    @property
    def folded(self) -> list[Digest]:
        """The patch versions of which folds are copied."""
        return [part.folds for part in self.parts if part.folds is not None]


class VersionCopy:
    """Copies versions of one store to another.

    Args:
        source: Where they are.
        target: Where they come.
    """

    def __init__(self, source: Store, target: Store) -> None:
        self._source, self._target = source._parts, target._parts
        self._hold, self._opener = source._leased, source._parts.opener
        self._index, self._named = target._parts.index, target._names.named

    def copy(
        self,
        version: Version,
        how: Publication[RefEntry],
        find: Callable[[Digest], Version | None],
        progress: Progress | None = None,
    ) -> tuple[RefEntry, int, int]:
        """Copy a version, or a variant, and publish it.

        Args:
            version: The version in the source; no release.
            how: How it is published in the target.
            find: Returns the version of the model with this digest that is in force in the target.
            progress: Called with the bytes done and the bytes in all, of one manifest at a time.

        Returns:
            The entry, the bytes that were written to the target, entries not counted, and the
            chunks among them.

        Raises:
            Conflict: This content was purged from the target.
            Damaged, NotFound: A part of the version cannot be read in the source, and the message
                names it; nothing was published.
        """
        published: list[Digest] = []

        def append(digest: Digest) -> RefEntry:
            published.append(digest)
            return how.append(digest)

        once = replace(how, append=append)
        with self._hold(version):
            plan = self._plan(version.digest, find)
            try:
                return self._copy(plan, version.digest, once, progress)
            except (Damaged, NotFound) as error:
                folds = frozenset(part.digest for part in plan.parts if part.folds is not None)
                below = self._without(version.digest, find, folds) if folds else None
                if published or below is None:
                    raise
                _log.warning("%s; the patches below the fold are copied instead", error)
            return self._copy(below, version.digest, once, progress)

    def estimate(
        self, version: Version, find: Callable[[Digest], Version | None], seen: set[bytes]
    ) -> int:
        """Return the bytes of frames that a copy of a version would send now.

        Args:
            version: The version in the source.
            find: As for ``copy``.
            seen: Digests of chunks that others would have brought; those of this one are added.
        """
        home, index = self._source.home, self._index
        total = 0
        with self._hold(version):
            for part in self._plan(version.digest, find).parts:
                for place in home.layout(part.digest, home.manifest(part.digest)):
                    if place.digest not in seen and index.find(place.digest) is None:
                        total += place.frame_bytes + place.proof_bytes
                    seen.add(place.digest)
        return total

    def _copy(
        self,
        plan: CopyPlan,
        digest: Digest,
        how: Publication[RefEntry],
        progress: Progress | None,
    ) -> tuple[RefEntry, int, int]:
        with ExitStack() as stack:
            writers = [self._write(stack, part, progress) for part in plan.parts]
            under = {*(plan.below.needed if plan.below else ()), *plan.folded}
            below = frozenset(one.raw for one in under)

            def write(is_again: bool) -> Digest:
                if is_again:  # a copy keeps its name, which was condemned meanwhile
                    raise Conflict(f"b3:{digest.hex} was purged while it was copied")
                return digest

            def look(_: Digest) -> None:
                for writer in writers:
                    writer.look(below)

            entry = publish(replace(how, look=partial(self._look_below, plan)), write, look)
        stats = [writer.stats() for writer in writers]
        sent = sum(one.stored_bytes for one in stats)
        return entry, sent, sum(one.new_chunks for one in stats)

    def _look_below(self, plan: CopyPlan, entry: RefEntry) -> None:
        """See to it that the version in the target on which a patch lies stays."""
        if plan.base is not None and plan.below is not None:
            patch = str(version_of(plan.base.model, entry))
            self._named.look_below(plan.base, patch, plan.below)

    def _plan(
        self,
        digest: Digest,
        find: Callable[[Digest], Version | None],
        ignored: frozenset[Digest] = frozenset(),
    ) -> CopyPlan:
        chain = find_chain(self._source.home, digest, ignored)
        info = patch_info(chain.top)
        if info is None:
            return CopyPlan((Part(digest),))
        fold = [Part(chain.full, chain.start)] if chain.start != chain.full else []
        own = fold if chain.start == digest else []
        base = find(info.base)
        below = None if base is None else self._below(base)
        if below is not None:
            return CopyPlan((Part(digest), *own), base, below)
        if own:
            return CopyPlan((*own, Part(digest)))
        return CopyPlan((*(fold or [Part(chain.full)]), *map(Part, chain.patches)))

    def _below(self, base: Version) -> Chain | None:
        """Return how a version is read in the target; ``None`` where that has lost a part of it."""
        try:
            return find_chain(self._target.home, base.digest)
        except (Damaged, NotFound) as error:
            _log.warning("%s; it is copied again with what lies on it", error)
            return None

    def _without(
        self,
        digest: Digest,
        find: Callable[[Digest], Version | None],
        folds: frozenset[Digest],
    ) -> CopyPlan | None:
        """Return how a version is copied without folds; ``None`` where nothing else is left."""
        try:
            return self._plan(digest, find, folds)
        except (Damaged, NotFound):
            return None

    def _write(self, stack: ExitStack, part: Part, progress: Progress | None) -> CopyWriter:
        """Write one manifest and its chunks; the writer ends once the version is published."""
        manifest, sealed = self._source.home.manifest_as_stored(part.digest)
        opened = self._opener.open_alone(part.digest)
        is_patch = patch_info(manifest) is not None
        writer = stack.enter_context(
            self._target.saving.begin_copy(manifest.chunk_size, progress, indexed=not is_patch)
        )
        writer.copy(part.digest, sealed, manifest, opened.verified().content)
        if part.folds is not None:
            self._check_fold(part.folds, part.digest)
            self._bring_manifest(part.folds)
            name_fold(self._target.home, part.folds, part.digest)
        return writer

    def _bring_manifest(self, patch: Digest) -> None:
        """Bring the manifest of a patch version of which the fold is copied, without its chunks.

        Readers do not need it, but collectors find by it what the version is. A store to which
        another one was copied by tierstore of before may lack it.
        """
        home = self._target.home
        if home.reclaims and home.condemned.among([patch.raw]):
            raise Conflict(
                f"exactly the content b3:{patch.hex}, on which this patch lies, was purged from "
                f"{home.blobs.url}, and is not copied there; fold the patch, and copy it again"
            )
        try:
            _, sealed = self._source.home.manifest_as_stored(patch)
        except (Damaged, NotFound) as error:
            _log.warning("%s; its fold is copied without it", error)
            return
        home.blobs.put(version_key(patch), sealed)

    def _check_fold(self, patch: Digest, full: Digest) -> None:
        """Compare a fold that was copied with the patches that it stands for, where these are.

        The digest of a patch version does not name its fold: without this, a copy could change
        what a version that the target has reads as.
        """
        for store in (self._target, self._source):
            try:
                check = FoldCheck(store.home, store.settings, patch, full)
                differs = check.differs or check.compare_data(lambda _: None)
            except (Damaged, NotFound, UnsupportedFormat):
                continue  # of what it stands for not all is there
            if not differs:
                return
            raise Damaged(
                f"the fold b3:{full.hex} of b3:{patch.hex} is not what the patches below it say: "
                f"{differs} differs; 'tierstore check --read-data' of the source says more"
            )
