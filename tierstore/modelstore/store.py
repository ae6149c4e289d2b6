"""The facade: everything a user does with a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from tierstore.blobs.base import BlobStore
from tierstore.format.manifest import LineageEntry
from tierstore.format.reflog import RefEntry
from tierstore.format.storeconfig import StoreConfig, check_features
from tierstore.format.tiers import TierSpec
from tierstore.ids import Digest, check_alias, check_name
from tierstore.modelstore.care.rebase import COSTS, Rebased, Rebasing
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.home.leases import ReaderLease, WriterLease
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.tierlist import TierLog
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.loading.opener import Opener
from tierstore.modelstore.names.members import refuse_release
from tierstore.modelstore.names.names import Alias, Names
from tierstore.modelstore.names.releases import Releases
from tierstore.modelstore.names.rollout import Rollouts
from tierstore.modelstore.patches.storepatches import StorePatches
from tierstore.modelstore.placing.hotpins import HotPins
from tierstore.modelstore.placing.warming import HOT, Warming, Warmth
from tierstore.modelstore.saving.basis import basis_of, open_base
from tierstore.modelstore.saving.source import SourceFile, open_source, refuse_store
from tierstore.modelstore.saving.writer import Progress, Writer
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.version import DISTILLED_FROM, SaveStats, Version, version_of
from tierstore.tiers.durable.tiers import DurableTiers
from tierstore.tiers.heat.recorder import NO_HEAT, HeatRecorder, HeatView
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.upkeep import Upkeep, upkeep_tasks

_CLOSE_S = 5.0

if TYPE_CHECKING:  # what most commands do without is imported where it is used
    from tierstore.modelstore.care.check import CheckReport
    from tierstore.modelstore.care.compare import Diff, Usage
    from tierstore.modelstore.loading.dequantized import Dequantized
    from tierstore.modelstore.placing.placing import Placement


class Store(StorePatches):
    """A store of models. Get one from ``tierstore.init`` or ``tierstore.open``.

    Thread-safe; a context manager that closes it. References are written ``model`` (the newest
    version), ``model@alias``, ``model@12`` or ``model@b3:<at least 8 hex digits of the digest>``;
    ``model@release:search`` is the version that a release names.
    """

    def __init__(
        self,
        blobs: BlobStore,
        settings: Settings,
        *,
        packs: DurableTiers | None = None,
        hot: HotTiers | None = None,
        heat: HeatRecorder | None = None,
        config: StoreConfig | None = None,
    ) -> None:
        """Open the store whose home is ``blobs``; see ``Home`` for ``packs`` and ``config``.

        ``heat`` counts what is read; without it nothing is counted.
        """
        self._blobs, self.settings = blobs, settings
        self.home = Home(blobs, packs, config)
        self.hot = hot if hot is not None else HotTiers()
        self.recorder = heat
        self._hot_pins = HotPins(self.home, self.hot.local)
        self._upkeep = Upkeep(upkeep_tasks(self.hot, heat, self._hot_pins.sync))
        cache = settings.cache_dir / self.home.config.store_id / "index.sqlite"
        self._index = ChunkIndex(blobs, cache)
        self._lease = ReaderLease(blobs)
        self._names = Names(self.home, settings.node, settings.labels)
        self._opener = Opener(self.home, settings, self.hot)

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._blobs.url

    @property
    def node(self) -> str:
        """This node's name."""
        return self.settings.node

    @property
    def rollouts(self) -> Rollouts:
        """Staged rollouts: aliases that move from version to version, share by share."""
        return Rollouts(self.home)

    @property
    def releases(self) -> Releases:
        """Releases: versions of several models behind one switch."""
        return Releases(self._names)

    @property
    def rebasing(self) -> Rebasing:
        """What ``rebase`` is made of, and what an agent runs over all versions."""
        return Rebasing(self.home, self._index, self._opener.open_full)

    @property
    def pins(self) -> Pins:
        """Versions that stay where they are fast."""
        return Pins(self._blobs, self._hot_pins.sync)

    @property
    def warming(self) -> Warming:
        """What is in hot tiers; brings versions there, and out again."""
        return Warming(self.hot, self._hot_pins, self._opener.open, self.settings)

    @property
    def placement(self) -> Placement:
        """Where packs lie in the durable tiers, and what moves them."""
        from tierstore.modelstore.placing.placing import Placement

        return Placement(self.home, self.pins, lambda: self.heat().packs())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End leases and close files; models loaded from here can no longer be read for sure."""
        self._lease.close()
        self._upkeep.close(_CLOSE_S)
        self.hot.close()
        if self.recorder is not None:
            self.recorder.flush()
        self._index.close()
        self.home.close()
        self._blobs.close()

    def save(
        self,
        model: str,
        source: str | os.PathLike[str] | Mapping[str, Any],
        *,
        alias: str | None = None,
        message: str = "",
        metadata: Mapping[str, str] | None = None,
        exclude: Sequence[str] = (),
        base: str | None = "auto",
        distilled_from: str | None = None,
        progress: Progress | None = None,
    ) -> Version:
        """Store a model as a new version; what the store has already costs nothing.

        A chunk that is new is stored as a delta where the same tensor of the base version, or its
        rows wherever they moved, make one that is much smaller.

        Args:
            model: its name; ``org/model`` is fine.
            source: a ``.safetensors`` file, a directory with such files and others, or tensors by
                name (numpy arrays, ml_dtypes included, or torch tensors).
            alias: a name to point to the new version, such as ``prod``.
            message: why; kept in the log.
            metadata: ``__metadata__`` of the header, for tensors in memory.
            exclude: glob patterns of paths in the directory to leave out.
            base: a reference to the base version; ``"auto"`` takes the newest version of the model
                or else the most alike one of another model; ``None`` stores no deltas.
            distilled_from: a reference to the version that taught this one, for its lineage.
            progress: called with bytes done and bytes in all.

        Raises:
            NotFound: there is no such ``source``, ``base`` or teacher.
            InvalidSafetensors, UnsafeSource, SourceChanged: of the source; nothing is published.
            OutOfSpace, PermissionDenied, Unreachable: of the storage; nothing is published, or the
                message says that only ``alias`` was not moved.
        """
        model = check_name("model", model)
        self._names.check_new(model, alias)
        if not isinstance(source, Mapping):
            refuse_store(Path(source), self.url)
        lineage = []
        if distilled_from is not None:
            teacher = self.resolve(distilled_from).digest
            lineage = [LineageEntry(relation=DISTILLED_FROM, digest=teacher.raw)]
        files = open_source(source, metadata=metadata, exclude=exclude)
        try:
            entry, stats = self.publish(
                files, lambda digest: self._names.publish(model, digest, message), base=base,
                model=model, lineage=lineage, progress=progress,
            )  # fmt: skip
        finally:
            for file in files:
                file.close()
        if alias is not None:
            self._names.point_to_new(model, check_alias(alias), entry, message)
        return version_of(model, entry, stats)

    def publish(
        self,
        files: Sequence[SourceFile],
        append: Callable[[Digest], RefEntry],
        *,
        model: str,
        base: str | None,
        lineage: Sequence[LineageEntry] = (),
        progress: Progress | None = None,
    ) -> tuple[RefEntry, SaveStats]:
        """Store files and publish them by the entry that ``append`` writes; what ``save`` is
        made of.

        Args:
            files: open sources, which the caller closes.
            append: writes the ref log entry for the manifest's digest, once all is durable.
            model: whose newest version ``base="auto"`` looks at first.
            base: as for ``save``.
            lineage: what the content was made from.
            progress: called with bytes done and bytes in all.
        """
        check_features(self.home.config, "write", self.url)
        with WriterLease(self._blobs) as lease:
            self.home.packs.refresh()  # no pack goes to a tier that is being drained
            self._index.sync()
            as_base = partial(
                open_base, opener=self._opener, index=self._index, threads=self.settings.threads
            )
            writer = Writer(
                self._blobs, self.home.packs, self._index, lease,
                chunk_size=self.home.config.chunk_size, threads=self.settings.threads,
                basis=basis_of(files, base, model, self.home, as_base, self.resolve),
                progress=progress,
            )  # fmt: skip
            entry = append(writer.write(files, lineage))
            writer.publish_index()
            return entry, writer.stats()

    @overload
    def load(
        self, ref: str | Version, *, profile: str | None = None, dequantize: Literal[False] = False
    ) -> Model: ...

    @overload
    def load(
        self, ref: str | Version, *, profile: str | None = None, dequantize: Literal[True]
    ) -> Dequantized: ...

    def load(
        self, ref: str | Version, *, profile: str | None = None, dequantize: bool = False
    ) -> Model | Dequantized:
        """Open a version for reading; nothing but its metadata is read yet.

        Args:
            ref: of the version, or itself; ``model@12+int8-row`` names a lossy variant of it.
            profile: which variant suits this hardware, when ``ref`` names none: an order of
                preference such as ``int8-channel,bf16,full`` (``full`` is the version itself), or
                the name of one in ``Settings.profiles``. The first that exists is taken. By
                default ``Settings.profile``, and without that the version itself.
            dequantize: give a variant's tensors in the original's dtypes, approximated.

        Raises:
            NotFound: no such model, alias, version or variant.
            Damaged: its manifest or layout is damaged.
            UsageError: ``dequantize`` for what is no variant.
        """
        version = self._leased(self.choose(ref, profile=profile))
        model = Model(version, self._opener.open(version), lambda: self._folded(version))
        if not dequantize:
            return model
        from tierstore.modelstore.loading.dequantized import Dequantized

        return Dequantized(model)

    def _leased(self, version: Version) -> Version:
        """A version that will be read: garbage collection leaves it alone from now on."""
        self._lease.add(version.digest.hex)
        self._upkeep.start()
        return version

    def choose(self, ref: str | Version, *, profile: str | None = None) -> Version:
        """The version or variant that ``load`` would open now; arguments and errors are its."""
        if isinstance(ref, Version):
            return ref
        return self._names.prefer(self.resolve(ref), self.settings.preference(profile))

    def variants(self, ref: str) -> list[Version]:
        """The lossy variants of a version, the newest of each name; see ``tierstore.derive``."""
        return self._names.variants(self.resolve(ref))

    def all_variants(self, model: str) -> list[Version]:
        """Every lossy variant that any version of a model has or had."""
        return self._names.all_variants(model)

    def resolve(self, ref: str) -> Version:
        """The version that a reference means now; ``NotFound`` says which part does not exist.

        During a rollout it is this node's: ``Settings.node`` decides.
        """
        return self._names.resolve(ref)

    def tiers(self) -> list[TierSpec]:
        """The tiers beside home, the fastest first, as all nodes agree on them now."""
        current = TierLog(self._blobs).current()
        return list(current.tiers) if current else []

    def models(self) -> list[str]:
        """The names of all models, sorted."""
        return self.home.models()

    def versions(self, model: str, limit: int | None = None) -> list[Version]:
        """The versions of a model, newest first; ``NotFound`` when there is no such model."""
        return self._names.versions(model, limit)

    def aliases(self, model: str) -> list[Alias]:
        """The aliases of a model and the versions that they point to now."""
        return self._names.aliases(model)

    def history(self, model: str, alias: str | None = None) -> Iterator[RefEntry]:
        """Who pointed what where, when and why, newest first: of the versions or of one alias."""
        return self._names.history(model, alias)

    def alias(
        self, model: str, name: str, ref: str, *, message: str = "", was: int | None = None
    ) -> Alias:
        """Point an alias of ``model`` to a version of it (``ref``).

        Raises:
            Conflict: the alias is in a rollout, or does not point to version ``was``, if given.
        """
        return self._names.alias(model, name, ref, message, was)

    def remove_alias(self, model: str, name: str, *, message: str = "") -> None:
        """Remove an alias; the versions stay, and so does its log."""
        self._names.remove_alias(model, name, message)

    def rollback(self, model: str, alias: str, *, message: str = "") -> Alias:
        """Point an alias back to what it meant before; moves no bytes.

        Twice in a row goes back two steps. Raises ``NotFound`` when there is nothing before. In a
        rollout it gives every node the old version again, as ``Rollouts.abort`` does.
        """
        back = self._names.rollback(model, alias, message)
        self.rollouts.settle(model, alias)
        return back

    def diff(self, old: str, new: str) -> Diff:
        """What changed between two versions, tensor by tensor; reads only metadata."""
        versions = [self.resolve(old), self.resolve(new)]
        for version in versions:
            refuse_release(version)
        from tierstore.modelstore.care.compare import compare

        return compare(self.home, *versions)

    def rebase(self, ref: str, *, above: float = COSTS) -> Rebased:
        """Store those deltas of a version standalone whose reading costs too much.

        Other versions and readers are not touched: the old frames stay while anything needs them.

        Args:
            ref: of the version.
            above: bytes fetched for a delta and its bases, for each of a standalone frame, from
                which on it is replaced; 1 replaces every delta.
        """
        return self.rebasing.version(self._leased(self.resolve(ref)), above)

    def warmup(
        self, ref: str | Version, *, tier: str = HOT, progress: Progress | None = None
    ) -> Warmth:
        """Bring a version into a hot tier before it is asked for; see ``Warming.bring``."""
        return self.warming.bring(self._leased(self.choose(ref)), tier, progress)

    def evict(self, ref: str | None = None, *, tier: str = HOT) -> int:
        """Free a hot tier of a version, or of all that is not pinned; the bytes freed."""
        return self.warming.evict(None if ref is None else self.resolve(ref), tier)

    def heat(self) -> HeatView:
        """How often chunks and packs were read of late, by all nodes that share this store."""
        self.hot.drain()
        return NO_HEAT if self.recorder is None else self.recorder.view()

    def usage(self, model: str | None = None) -> Usage:
        """Logical, unique and stored bytes, and what dedup, codec and delta saved."""
        names = self.models() if model is None else [check_name("model", model)]
        every = {name: [*self.versions(name), *self.all_variants(name)] for name in names}
        from tierstore.modelstore.care.compare import measure

        return measure(self.home, every)

    def check(self, *, read_data: bool = False, progress: Progress | None = None) -> CheckReport:
        """Verify everything; with ``read_data`` every chunk is decoded and compared too."""
        from tierstore.modelstore.care.check import check_store

        return check_store(self.home, read_data=read_data, settings=self.settings,
                           progress=progress)  # fmt: skip
