"""The facade: everything a user does with a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from tierstore.blobs.base import BlobStore
from tierstore.errors import NotFound, UsageError
from tierstore.format.manifest import LineageEntry
from tierstore.format.reflog import RefEntry
from tierstore.format.storeconfig import StoreConfig
from tierstore.format.tiers import TierSpec
from tierstore.ids import check_alias, check_name
from tierstore.modelstore.care.rebase import COSTS, Rebased, Rebasing
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.modelstore.home.leases import ReaderLease
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.tierlist import TierLog
from tierstore.modelstore.loading.model import Model
from tierstore.modelstore.loading.opener import Opener
from tierstore.modelstore.names.members import refuse_release
from tierstore.modelstore.names.names import Alias, Names
from tierstore.modelstore.names.releases import Releases
from tierstore.modelstore.names.rollout import Rollouts
from tierstore.modelstore.patches.fold import Folded
from tierstore.modelstore.patches.patches import Patch
from tierstore.modelstore.patches.patching import Changes
from tierstore.modelstore.patches.service import Patching
from tierstore.modelstore.placing.hotpins import HotPins
from tierstore.modelstore.placing.warming import HOT, Warming, Warmth
from tierstore.modelstore.saving.source import check_source, open_source
from tierstore.modelstore.saving.transaction import Saving
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.version import DISTILLED_FROM, Version, version_of
from tierstore.progress import Progress, reported
from tierstore.tiers.durable.tiers import DurableTiers
from tierstore.tiers.heat.recorder import NO_HEAT, HeatRecorder, HeatView
from tierstore.tiers.hot.tiers import HotTiers
from tierstore.tiers.upkeep import Upkeep, upkeep_tasks

_CLOSE_S = 5.0
_T = TypeVar("_T")

if TYPE_CHECKING:  # what most commands do without is imported where it is used
    from tierstore.modelstore.care.check import CheckReport
    from tierstore.modelstore.care.compare import Diff, Usage
    from tierstore.modelstore.loading.dequantized import Dequantized
    from tierstore.modelstore.placing.placing import Placement


@dataclass(slots=True)
class Parts:
    """What a store is made of, for the floors above it: ``store._parts``.

    Nothing of this is part of the public API: it may be another with every version.

    Attributes:
        home: Reads and writes the store's metadata, and knows the durable tiers.
        hot: The hot tiers of this process.
        settings: What the store may use of the machine.
        recorder: Counts what is read; ``None`` where nothing is counted.
        saving: Runs saves that are no plain ``save``: of variants and uploads.
        rebasing: Rebases versions; remembers which it has looked at.
    """

    home: Home
    hot: HotTiers
    settings: Settings
    recorder: HeatRecorder | None
    saving: Saving
    rebasing: Rebasing


class Store:
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
        self._blobs = blobs
        home = Home(blobs, packs, config)
        hot = hot if hot is not None else HotTiers()
        self._hot_pins = HotPins(home, hot.local)
        self._upkeep = Upkeep(upkeep_tasks(hot, heat, self._hot_pins.sync))
        self._index = ChunkIndex(blobs, settings.cache_dir / home.config.store_id / "index.sqlite")
        self._lease = ReaderLease(blobs)
        self._names = Names(home, settings.node, settings.labels)
        self._opener = Opener(home, settings, hot)
        saving = Saving(home, self._index, self._opener, self.resolve, settings.threads)
        rebasing = Rebasing(home, self._index, self._opener.open_full)
        self._parts = Parts(home, hot, settings, heat, saving, rebasing)
        """What the store is made of; for the code of tierstore alone, see ``Parts``."""
        self._patching = Patching(home, self._names, self._opener, saving, self._lease)
        self._services: dict[str, Any] = {}

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._blobs.url

    @property
    def node(self) -> str:
        """This node's name."""
        return self._parts.settings.node

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    def _once(self, name: str, make: Callable[[], _T]) -> _T:
        """Return the service of this name, made when it is asked for first."""
        # setdefault is atomic, where a lock that another thread holds in a fork would stay locked
        found: _T = self._services.get(name) or self._services.setdefault(name, make())
        return found

    @property
    def rollouts(self) -> Rollouts:
        """Staged rollouts: aliases that move from version to version, share by share."""
        return self._once("rollouts", lambda: Rollouts(self._parts.home))

    @property
    def releases(self) -> Releases:
        """Releases: versions of several models behind one switch."""
        return self._once("releases", lambda: Releases(self._names))

    @property
    def pins(self) -> Pins:
        """Versions that stay where they are fast."""
        return self._once("pins", lambda: Pins(self._blobs, self._hot_pins.sync))

    @property
    def warming(self) -> Warming:
        """What is in hot tiers; brings versions there, and out again."""
        return self._once(
            "warming",
            lambda: Warming(
                self._parts.hot, self._hot_pins, self._opener.open, self._parts.settings
            ),
        )

    @property
    def placement(self) -> Placement:
        """Where packs lie in the durable tiers, and what moves them."""
        from tierstore.modelstore.placing.placing import Placement

        return self._once(
            "placement", lambda: Placement(self._parts.home, self.pins, lambda: self.heat().packs())
        )

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
        self._parts.hot.close()
        if self._parts.recorder is not None:
            self._parts.recorder.flush()
        self._index.close()
        self._parts.home.close()
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
        base: str | Version | None = "auto",
        distilled_from: str | Version | None = None,
        progress: Progress | bool | None = None,
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
        check_source(source, self.url)
        lineage = []
        if distilled_from is not None:
            teacher = self.resolve(distilled_from).digest
            lineage = [LineageEntry(relation=DISTILLED_FROM, digest=teacher.raw)]
        files = open_source(source, metadata=metadata, exclude=exclude)
        try:
            basis = self._parts.saving.basis(files, base, model)
            with (
                reported(progress, f"saving {model}") as told,
                self._parts.saving.begin(basis, progress=told) as writer,
            ):
                entry = self._names.publish(model, writer.write(files, lineage), message)
        finally:
            for file in files:
                file.close()
        if alias is not None:
            self._names.point_to_new(model, check_alias(alias), entry, message)
        return version_of(model, entry, writer.stats())

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
        with self._own(version):
            opened = self._opener.open(version)
        model = Model(version, opened, lambda: self._patching.opened_whole(version))
        if not dequantize:
            return model
        from tierstore.modelstore.loading.dequantized import Dequantized

        return Dequantized(model)

    def _leased(self, version: Version) -> Version:
        """A version that will be read: garbage collection leaves it alone from now on."""
        self._lease.add(version.digest.hex)
        self._upkeep.start()
        return version

    @contextmanager
    def _own(self, version: Version) -> Iterator[None]:
        """Tell a version of another store from one whose manifest is missing."""
        try:
            yield
        except NotFound:
            try:
                known = self._names.resolve(str(version)).digest == version.digest
            except NotFound:
                known = False
            if known:
                raise
            raise UsageError(
                f"{version} {version.digest.short} is no version of {self.url}: it may be another "
                f"store's; give a reference, such as {str(version)!r}"
            ) from None

    def choose(self, ref: str | Version, *, profile: str | None = None) -> Version:
        """The version or variant that ``load`` would open now.

        Takes the same arguments and raises the same errors as ``load``.
        """
        if isinstance(ref, Version):
            return ref
        return self._names.prefer(self.resolve(ref), self._parts.settings.preference(profile))

    def variants(self, ref: str | Version) -> list[Version]:
        """The lossy variants of a version, the newest of each name; see ``tierstore.derive``."""
        return self._names.variants(self.resolve(ref))

    def all_variants(self, model: str) -> list[Version]:
        """Every lossy variant that any version of a model has or had."""
        return self._names.all_variants(model)

    def resolve(self, ref: str | Version) -> Version:
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
        return self._parts.home.models()

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
        self,
        model: str,
        name: str,
        ref: str | Version,
        *,
        message: str = "",
        was: int | None = None,
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

    def diff(self, old: str | Version, new: str | Version) -> Diff:
        """What changed between two versions, tensor by tensor; reads only metadata."""
        versions = [self.resolve(old), self.resolve(new)]
        for version in versions:
            refuse_release(version)
        from tierstore.modelstore.care.compare import compare

        return compare(self._parts.home, *versions)

    def patch(
        self,
        ref: str | Version,
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
        return self._patching.patch(ref, changes, alias=alias, message=message, fold=fold)

    def patches(self, since: str | Version, until: str | Version | None = None) -> Iterator[Patch]:
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
        return self._patching.between(since, until)

    def fold(
        self, ref: str | Version, *, at_least: int = 1, progress: Progress | bool | None = None
    ) -> Folded:
        """Store a version that lies on patches as a whole; its digest and content stay.

        Loads then read it like any other version, and its files have a SHA-256. Safe at any time:
        readers and other writers are not touched, and folding twice does nothing.

        Args:
            ref: of the version.
            at_least: with fewer patches on it nothing is done.
            progress: called with bytes done and in all.
        """
        with reported(progress, f"folding {ref}") as told:
            return self._patching.fold(ref, at_least, told)

    def rebase(self, ref: str | Version, *, above: float = COSTS) -> Rebased:
        """Store a version's deltas as standalone chunks where reading them costs too much.

        Other versions and readers are not touched: the old frames stay while anything needs them.

        Args:
            ref: of the version.
            above: bytes fetched for a delta and its bases, for each of a standalone frame, from
                which on it is replaced; 1 replaces every delta.
        """
        return self._parts.rebasing.version(self._leased(self.resolve(ref)), above)

    def warmup(
        self, ref: str | Version, *, tier: str = HOT, progress: Progress | bool | None = None
    ) -> Warmth:
        """Bring a version into a hot tier before it is asked for; see ``Warming.bring``."""
        version = self._leased(self.choose(ref))
        with self._own(version), reported(progress, f"warming {version}") as told:
            return self.warming.bring(version, tier, told)

    def evict(self, ref: str | Version | None = None, *, tier: str = HOT) -> int:
        """Free a hot tier of a version, or of all that is not pinned; the bytes freed."""
        return self.warming.evict(None if ref is None else self.resolve(ref), tier)

    def heat(self) -> HeatView:
        """How often chunks and packs were read of late, by all nodes that share this store."""
        self._parts.hot.drain()
        return NO_HEAT if self._parts.recorder is None else self._parts.recorder.view()

    def usage(self, model: str | None = None) -> Usage:
        """Logical, unique and stored bytes, and what dedup, codec and delta saved."""
        names = self.models() if model is None else [check_name("model", model)]
        every = {name: [*self.versions(name), *self.all_variants(name)] for name in names}
        from tierstore.modelstore.care.compare import measure

        return measure(self._parts.home, every)

    def check(
        self, *, read_data: bool = False, progress: Progress | bool | None = None
    ) -> CheckReport:
        """Verify everything; with ``read_data`` every chunk is decoded and compared too."""
        from tierstore.modelstore.care.check import check_store

        with reported(progress, "checking") as told:
            return check_store(
                self._parts.home, read_data=read_data, settings=self._parts.settings, progress=told
            )
