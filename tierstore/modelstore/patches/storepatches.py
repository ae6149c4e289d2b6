"""The part of the facade that publishes, streams and folds patches."""

from __future__ import annotations

from collections.abc import Iterator

from tierstore.errors import Conflict, UsageError
from tierstore.format.storeconfig import check_features
from tierstore.ids import ModelRef, check_alias
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.home.leases import ReaderLease
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
from tierstore.modelstore.saving.writer import Progress
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.version import Version, version_of


class StorePatches:
    """What ``Store`` can do with patches."""

    home: Home
    _index: ChunkIndex
    _lease: ReaderLease
    _names: Names
    _opener: Opener
    settings: Settings

    def patch(
        self,
        ref: str,
        changes: Changes,
        *,
        alias: str | None = None,
        message: str = "",
        fold: bool = True,
    ) -> Version:
        """Publish a version that equals another but for some rows, elements or whole tensors.

        Costs bytes and time in proportion to what changes: the rest is neither read nor hashed.
        At most 16 patches lie on one another, or a quarter of the model's bytes: a version that
        makes them so many is published, and then folded before this call returns.

        Args:
            ref: of the version that is changed. When it is a model's newest, or what ``alias``
                means, and somebody else changes that meanwhile, ``Conflict`` is raised.
            changes: ``Rows``, ``Elements`` or ``Dense`` by the tensor's name; or a ``Patch`` or the
                path of a patch file, made for exactly this version.
            alias: a name to point to the new version, such as ``prod``.
            message: why; kept in the log.
            fold: ``False`` leaves that to ``fold``; with too many patches below ``Conflict`` is
                raised.

        Returns:
            The new version; its ``stats`` are those of the patch alone.

        Raises:
            NotFound: there is no such version or file, or the version has no such tensor.
            UsageError, InvalidSafetensors: a dtype, shape or index does not fit.
            Conflict: the patch is for another version, or as said above. Nothing is published, or
                the message says that only ``alias`` was not moved.
        """
        check_features(self.home.config, "write", self.home.blobs.url)
        base = self._names.resolve(ref)
        _refuse_others(base)
        parsed = ModelRef.parse(ref)
        was = base.number if alias is not None and parsed.alias == alias else None
        if alias is not None:
            self._names.check_movable(base.model, check_alias(alias), was)
        below = look_below(self.home, base.digest)
        encoded = encode_for(base, below, changes)
        if below.is_full():
            below = self._with_room(base, below, fold)

        newest = base.number if parsed == ModelRef(base.model) else None
        entry, stats = publish_patch(
            self.home, self._index, below, encoded,
            lambda digest: self._names.publish(base.model, digest, message, newest),
            self.settings.threads,
        )  # fmt: skip
        version = version_of(base.model, entry, stats)
        if alias is not None:
            self._names.point_to_new(base.model, check_alias(alias), entry, message, was)
        if fold and below.is_full(1, len(encoded.body)):
            self._fold(version)
        return version

    def _with_room(self, base: Version, below: Below, fold: bool) -> Below:
        if not fold:
            raise Conflict(
                f"{base} holds {len(below.chain.patches)} patches of {below.patch_bytes} bytes and "
                f"can take no more: run 'tierstore fold {base}', or let this call fold it"
            )
        self._fold(base)
        return look_below(self.home, base.digest)

    def patches(self, since: str, until: str | None = None) -> Iterator[Patch]:
        """The patches that lead from one version to a newer one, in order.

        For a node that trains or serves: ``for patch in store.patches(since="ranker@12"):
        patch.apply_to(state)``. Each is read when it is used, and nothing else of the versions is.

        Args:
            since: reference to the version that the node has.
            until: reference to the version that it wants; the model's newest by default.

        Raises:
            Conflict: the newer one is not the older one with patches on it.
            NotFound: one of them does not exist, or a patch between is gone.
        """
        first = self._names.resolve(since)
        refuse_release(first)
        last = self._names.resolve(first.model if until is None else until)
        self._lease.add(last.digest.hex)
        return open_patches(self.home, self._opener, first, last)

    def fold(self, ref: str, *, at_least: int = 1, progress: Progress | None = None) -> Folded:
        """Store a version that lies on patches as a whole; its digest and content stay.

        Loads then read it like any other version, and its files have a SHA-256. Safe at any time:
        readers and other writers are not touched, and folding twice does nothing.

        Args:
            ref: of the version.
            at_least: with fewer patches on it nothing is done.
            progress: called with bytes done and in all.
        """
        check_features(self.home.config, "write", self.home.blobs.url)
        return self._fold(self._names.resolve(ref), at_least, progress)

    def _fold(
        self, version: Version, at_least: int = 1, progress: Progress | None = None
    ) -> Folded:
        refuse_release(version)
        self._lease.add(version.digest.hex)
        return fold_version(
            self.home, self._index, self._opener, version, at_least=at_least,
            threads=self.settings.threads, progress=progress,
        )  # fmt: skip

    def _folded(self, version: Version) -> Opened:
        check_features(self.home.config, "write", self.home.blobs.url)
        self._fold(version)
        return self._opener.open(version)


def _refuse_others(base: Version) -> None:
    refuse_release(base)
    if base.variant is not None:
        raise UsageError(f"{base} is a lossy variant; patch {base.model}@{base.number}")
