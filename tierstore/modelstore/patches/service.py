"""Publishes, streams and folds the patches of one store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from tierstore.arguments import as_message, as_whole
from tierstore.errors import Conflict, NotFound, UsageError
from tierstore.format.manifest import summary_of
from tierstore.format.reflog import RefEntry
from tierstore.format.storeconfig import check_features
from tierstore.ids import ModelRef, check_alias
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readerlease import ReaderLease
from tierstore.modelstore.loading.opener import Opened, Opener
from tierstore.modelstore.names.members import refuse_release
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.patches.fold import Folded, fold_version
from tierstore.modelstore.patches.patches import Patch
from tierstore.modelstore.patches.patching import (
    Below,
    Changes,
    encode_for,
    look_below,
    open_patches,
    publish_patch,
)
from tierstore.modelstore.saving.transaction import Saving
from tierstore.modelstore.version import Version, version_of
from tierstore.progress import Progress


class Patching:
    """Publishes, streams and folds patches.

    Args:
        home: The store's home.
        names: Finds and publishes versions.
        opener: Opens versions.
        saving: Saves to the store.
        lease: The readers' lease, which versions that are read are added to.
    """

    def __init__(
        self, home: Home, names: Names, opener: Opener, saving: Saving, lease: ReaderLease
    ) -> None:
        self._home, self._names, self._opener = home, names, opener
        self._saving, self._lease = saving, lease

    def patch(
        self,
        ref: str | Version,
        changes: Changes,
        *,
        alias: str | None,
        message: str | None,
        fold: bool,
    ) -> Version:
        """Publish a version that equals another but for ``changes``; see ``Store.patch``."""
        as_message(message)  # before anything is stored
        check_features(self._home.config, "write", self._home.blobs.url)
        base = self._names.resolve(ref)
        _refuse_others(base)
        parsed = ModelRef.parse(str(ref))
        was = base.number if alias is not None and parsed.alias == alias else None
        if alias is not None:
            self._names.check_movable(base.model, check_alias(alias), was)
        below = look_below(self._home, base.digest)
        encoded = encode_for(base, below, changes)
        if below.is_full():
            below = self._with_room(base, below, fold)

        newest = base.number if parsed == ModelRef(base.model) else None
        how = replace(
            self._names.publication(base.model, summary_of(below.full), message, newest),
            look=lambda entry: self._look_below(base, below, entry),
            below=frozenset(digest.raw for digest in below.chain.needed),
        )
        entry, stats = publish_patch(self._saving, below, encoded, how)
        version = version_of(base.model, entry, stats)
        if alias is not None:
            self._names.point_to_new(base.model, check_alias(alias), entry, message, was)
        if fold and below.is_full(1, len(encoded.body)):
            self._fold(version)
        return version

    def _look_below(self, base: Version, below: Below, entry: RefEntry) -> None:
        """See to it that all stays which a published patch lies on.

        It may have been removed and collected since it was looked up.
        """
        patch = version_of(base.model, entry)
        try:
            self._names.named.look_below(base, str(patch), below.chain)
        except NotFound as error:
            raise NotFound(f"{error}. Patch another version, or save the whole model") from error

    def _with_room(self, base: Version, below: Below, fold: bool) -> Below:
        if not fold:
            raise Conflict(
                f"{base} has {len(below.chain.patches)} patches of {below.patch_bytes} bytes and "
                f"can take no more: run 'tierstore fold {base}', or let this call fold it"
            )
        self._fold(base)
        return look_below(self._home, base.digest)

    def between(self, since: str | Version, until: str | Version | None) -> Iterator[Patch]:
        """Return the patches that lead from one version to a newer one; see ``Store.patches``."""
        first = self._names.resolve(since)
        refuse_release(first)
        last = self._names.resolve(first.model if until is None else until)
        hold = self._lease.hold(last.digest.hex)
        return open_patches(self._home, self._opener, first, last, hold)

    def fold(
        self,
        ref: str | Version,
        at_least: int,
        progress: Progress | None,
        most_bytes: float = math.inf,
    ) -> Folded:
        """Store a version that lies on patches as a whole; see ``Store.fold``.

        With ``most_bytes`` it fails with ``OutOfSpace`` before its packs take more.
        """
        check_features(self._home.config, "write", self._home.blobs.url)
        at_least = as_whole("at_least", at_least, "a number of patches")
        return self._fold(self._names.resolve(ref), at_least, progress, most_bytes)

    def _fold(
        self,
        version: Version,
        at_least: int = 1,
        progress: Progress | None = None,
        most_bytes: float = math.inf,
    ) -> Folded:
        refuse_release(version)
        with self._lease.hold(version.digest.hex):
            return fold_version(
                self._home,
                self._opener,
                self._saving,
                version,
                at_least=at_least,
                progress=progress,
                most_bytes=most_bytes,
            )

    def opened_whole(self, version: Version) -> Opened:
        """Fold a version and open it, for callers that need its whole files."""
        check_features(self._home.config, "write", self._home.blobs.url)
        self._fold(version)
        return self._opener.open(version)


def _refuse_others(base: Version) -> None:
    refuse_release(base)
    if base.variant is not None:
        raise UsageError(f"{base} is a lossy variant; patch {base.model}@{base.number}")
