"""The facade: everything a user does with a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from tierstore.arguments import as_message
from tierstore.blobs.base import BlobStore
from tierstore.errors import NotFound, UsageError
from tierstore.format.reflog import RefEntry
from tierstore.format.storeconfig import StoreConfig
from tierstore.format.tiers import TierSpec
from tierstore.ids import check_alias, check_name
from tierstore.modelstore.defaults import COSTS, HOT
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.tierlist import TierLog
from tierstore.modelstore.names.members import refuse_release
from tierstore.modelstore.names.names import Alias
from tierstore.modelstore.parts import Parts
from tierstore.modelstore.places import StorePlace
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.version import DISTILLED_FROM, Version, version_of
from tierstore.progress import Progress, reported
from tierstore.tiers.durable.tiers import DurableTiers
from tierstore.tiers.hot.tiers import HotTiers

if TYPE_CHECKING:  # a service is imported where it is made, as ``Parts`` does with its own
    from tierstore.modelstore.care.check_report import CheckReport
    from tierstore.modelstore.care.compare import Diff, Usage
    from tierstore.modelstore.care.rebase import Rebased
    from tierstore.modelstore.home.pins import Pins
    from tierstore.modelstore.home.readerlease import Hold
    from tierstore.modelstore.loading.dequantized import Dequantized
    from tierstore.modelstore.loading.model import Model
    from tierstore.modelstore.loading.opener import Opened
    from tierstore.modelstore.names.releases import Releases
    from tierstore.modelstore.names.rollout import Rollouts
    from tierstore.modelstore.patches.fold import Folded
    from tierstore.modelstore.patches.patches import Patch
    from tierstore.modelstore.patches.patching import Changes
    from tierstore.modelstore.placing.placing import Placement
    from tierstore.modelstore.placing.warming import Warming, Warmth
    from tierstore.modelstore.reclaim.forgetting import Forgotten
    from tierstore.modelstore.reclaim.reclaim import Reclaim
    from tierstore.modelstore.reclaim.removal import Removing
    from tierstore.modelstore.reclaim.removedlist import RemovedVersion
    from tierstore.modelstore.reclaim.repair.report import RepairReport
    from tierstore.modelstore.reclaim.retention import Retentions
    from tierstore.tiers.heat.recorder import HeatRecorder, HeatView


class Store:
    """A store of models without what builds on it: see ``tierstore.store.Store``.

    This is the class that the code of tierstore below the administration uses. Thread-safe.
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
        tier_places: Callable[[], Sequence[StorePlace]] = tuple,
    ) -> None:
        """Open the store whose home is ``blobs``.

        Args:
            blobs: The storage that holds the store's metadata.
            settings: What the store may use of the machine.
            packs: The tiers that hold packs; by default they lie in ``blobs`` alone.
            hot: The hot tiers of this process; by default there are none.
            heat: Counts what is read; without it nothing is counted.
            config: The store's config, if it was read already.
            tier_places: Returns where this node has the store's tiers.
        """
        self._blobs = blobs
        hot = hot if hot is not None else HotTiers()
        self._parts = Parts(Home(blobs, packs, config), hot, settings, heat, tier_places)
        """The parts of the store, for the code of tierstore alone; see ``Parts``."""
        self._names = self._parts.names

    @property
    def url(self) -> str:
        """Where the store is, as a URL."""
        return self._blobs.url

    @property
    def node(self) -> str:
        """The name of this node: its turn in rollouts depends on it."""
        return self._parts.settings.node

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._parts.reopen is None:
            raise UsageError(
                f"the store {self.url} cannot be pickled: it is in the memory of this process, or "
                "was made from objects; open a store by its URL in each process"
            )
        return self._parts.reopen

    @property
    def rollouts(self) -> Rollouts:
        """Staged rollouts: aliases that move from version to version, share by share."""
        from tierstore.modelstore.names.rollout import Rollouts

        return self._parts.once("rollouts", lambda: Rollouts(self._names))

    @property
    def releases(self) -> Releases:
        """Releases: versions of several models behind one switch."""
        from tierstore.modelstore.names.releases import Releases

        return self._parts.once("releases", lambda: Releases(self._names))

    @property
    def pins(self) -> Pins:
        """Pins: versions that stay in fast tiers."""
        from tierstore.modelstore.home.pins import Pins

        parts = self._parts
        return parts.once(
            "pins", lambda: Pins(self._blobs, parts.hot_pins.sync, self._names.look_at_pin)
        )

    @property
    def warming(self) -> Warming:
        """Warm-up: what is in hot tiers, brought there and removed again."""
        from tierstore.modelstore.placing.warming import Warming

        parts = self._parts
        return parts.once(
            "warming",
            lambda: Warming(parts.hot, parts.hot_pins, parts.opener.open, parts.settings),
        )

    @property
    def placement(self) -> Placement:
        """Placement: in which durable tiers packs lie, and what moves them."""
        from tierstore.modelstore.placing.placing import Placement

        parts = self._parts
        return parts.once(
            "placement", lambda: Placement(parts.home, self.pins, lambda: self.heat().packs())
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
        """End leases and close files and connections.

        Models that were loaded from here cannot be relied on any more.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.close()
        """
        self._parts.close()
        self._blobs.close()

    def save(
        self,
        model: str,
        source: str | os.PathLike[str] | Mapping[str, Any],
        *,
        alias: str | None = None,
        message: str | None = None,
        metadata: Mapping[str, str] | None = None,
        exclude: Sequence[str] = (),
        allow_no_tensors: bool = False,
        base: str | Version | None = "auto",
        distilled_from: str | Version | None = None,
        progress: Progress | bool | None = None,
    ) -> Version:
        """Store a model as a new version; what the store has already costs nothing.

        Models are cut into chunks (4 MiB unless the store was made otherwise) that are stored once
        by their BLAKE3 digest. A new chunk is stored as a delta where the same tensor of the base
        version, or its rows wherever they moved, make one that is much smaller.

        Args:
            model: The model's name; a slash is fine, as in ``org/ranker``.
            source: A safetensors file, a directory with such files and others, or tensors by
                name: numpy arrays (those of ml_dtypes included) or torch tensors of any shape.
            alias: A name to point to the new version, such as ``prod``.
            message: Why; kept in the log. ``None`` for no message.
            metadata: ``__metadata__`` of the header, for tensors in memory only.
            exclude: Glob patterns of paths in the directory to leave out; ``sub/`` is a folder.
            allow_no_tensors: Whether a directory may be saved that holds no tensors at all.
            base: The version that deltas refer to; ``"auto"`` takes the newest version of the
                model, or else the most alike one of another model; ``None`` stores no deltas.
            distilled_from: The version that taught this one, for its lineage.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all.

        Returns:
            The new version; its ``stats`` say what the save cost, in bytes.

        Raises:
            UsageError: ``source`` is neither a path nor tensors by name, or another argument is
                wrong.
            NotFound: There is no such ``source``, ``base`` or teacher.
            InvalidSafetensors: A file breaks the rules of the format.
            UnsafeSource: The source holds a pickle, a pointer of git-lfs, a link to nothing, or a
                path that leaves its directory.
            SourceError: The directory holds no tensors, is a download cache, or lacks a file that
                its index of shards names.
            SourceChanged: The source changed while it was read.
            Conflict: The name is a release's, or ``alias`` is in a rollout.
            OutOfSpace: A disk, quota or bucket is full.
            PermissionDenied: The storage refused us.
            Unreachable: The storage does not answer. After these nothing is published, or the
                message says that only ``alias`` was not moved.

        Examples:
            >>> store = tierstore.init("store")
            >>> version = store.save("ranker", {"w": np.ones((3, 2), "f4")}, message="nightly")
            >>> version.number, version.stats.logical_bytes > 24, version.message
            (1, True, 'nightly')
            >>> store.save("ranker", {"w": np.ones((3, 2), np.float32)}).stats.new_bytes
            0
        """
        from tierstore.format.manifest import LineageEntry
        from tierstore.modelstore.saving.source import (
            check_source,
            open_source,
            summary_of_files,
        )

        model = check_name("model", model)
        as_message(message)  # before anything is stored
        before = self._names.check_new(model, alias)
        check_source(source, self._parts.places)
        lineage = []
        if distilled_from is not None:
            teacher = self.resolve(distilled_from).digest
            lineage = [LineageEntry(relation=DISTILLED_FROM, digest=teacher.raw)]
        files = open_source(
            source, metadata=metadata, exclude=exclude, allow_no_tensors=allow_no_tensors
        )
        try:
            selection = self._parts.saving.select_base(files, base, model, before)
            with (
                reported(progress, f"saving {model}") as told,
                self._parts.saving.begin(selection, progress=told) as writer,
            ):
                summary = summary_of_files(files)
                how = self._names.publication(model, summary, message, seen=before.last)
                entry = writer.publish(how, files, lineage)
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
            ref: A reference to the version; ``model@12+int8-row`` names a lossy variant of it.
            profile: Which variant suits this hardware, when ``ref`` names none: an order of
                preference such as ``int8-channel,bf16,full`` (``full`` is the version itself), or
                the name of such an order in this node's ``tierstore.toml``. The first that exists
                is taken. By default what that file says, and without it the version itself.
            dequantize: Give a variant's tensors in the original's dtypes, approximated.

        Returns:
            The tensors by name. With ``dequantize`` a mapping of the same kind that computes them.

        Raises:
            NotFound: There is no such model, alias, version or variant.
            Damaged: The version's manifest or layout is damaged.
            UsageError: ``ref`` is no reference or another store's version, or ``dequantize`` was
                given for what is no variant.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.arange(6, dtype=np.float32).reshape(3, 2)})
            >>> model = store.load("ranker")
            >>> model["w"]
            array([[0., 1.],
                   [2., 3.],
                   [4., 5.]], dtype=float32)
            >>> model.tensor("w")[[2, 0]]  # reads a few blocks, not the tensor
            array([[4., 5.],
                   [0., 1.]], dtype=float32)
        """
        from tierstore.modelstore.loading.model import Model

        version = self.choose(ref, profile=profile)
        with self._own(version):
            opened = self._opened(version, self._parts.opener.open)
        model = Model(
            version, opened, lambda: self._opened(version, self._parts.patching.opened_whole)
        )
        if not dequantize:
            return model
        from tierstore.modelstore.loading.dequantized import Dequantized

        return Dequantized(model)

    def _opened(self, version: Version, open_version: Callable[[Version], Opened]) -> Opened:
        from tierstore.modelstore.chunks.origin import Origin

        hold = self._leased(version)
        opened = open_version(version)
        pool = opened.content.reader.pool
        pool.origin, pool.hold = Origin(self, version), hold
        return opened

    def _leased(self, version: Version) -> Hold:
        """A version that will be read: garbage collection leaves it alone while this is held."""
        self._parts.upkeep.start()
        return self._parts.lease.hold(version.digest.hex)

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
        """Return the version or variant that ``load`` would open now.

        Takes the same ``ref`` and ``profile`` and raises the same errors.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> print(store.choose("ranker"))
            ranker@1
        """
        if isinstance(ref, Version):
            return ref
        return self._names.prefer(self.resolve(ref), self._parts.settings.preference(profile))

    def variants(self, ref: str | Version) -> list[Version]:
        """Return the lossy variants of a version, the newest of each name.

        Args:
            ref: A reference to the version.

        Raises:
            NotFound: There is no such version.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((8, 8), np.float32)})
            >>> _ = store.derive("ranker", {"cast": "bf16"})
            >>> [str(variant) for variant in store.variants("ranker")]
            ['ranker@1+bf16']
        """
        return self._names.variants(self.resolve(ref))

    def all_variants(self, model: str) -> list[Version]:
        """Return every lossy variant that any version of a model has or had.

        Args:
            model: The model's name.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((8, 8), np.float32)})
            >>> store.all_variants("ranker")
            []
        """
        return self._names.all_variants(model)

    def resolve(self, ref: str | Version) -> Version:
        """Return the version that a reference means now.

        During a rollout it is this node's; the name of the node decides.

        Args:
            ref: A reference to the version, or the version itself.

        Raises:
            NotFound: Says which part of the reference does not exist.
            UsageError: It is no reference.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)}, alias="prod")
            >>> store.resolve("ranker@prod").number
            1
        """
        return self._names.resolve(ref)

    def tiers(self) -> list[TierSpec]:
        """Return the tiers beside home, the fastest first, as all nodes agree on them now.

        ``store.admin.tiers`` changes them.

        Examples:
            >>> import os
            >>> warm = tierstore.TierSpec(name="warm", role="warm", url=os.path.abspath("warm"))
            >>> store = tierstore.init("store", tiers=[warm])
            >>> [(tier.name, tier.role) for tier in store.tiers()]
            [('warm', 'warm')]
        """
        current = TierLog(self._blobs).current()
        return list(current.tiers) if current else []

    def models(self) -> list[str]:
        """Return the names of all models that have a version which is not removed, sorted.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> store.models()
            ['ranker']
        """
        return self._names.models()

    def versions(self, model: str, limit: int | None = None) -> list[Version]:
        """Return the versions of a model, the newest first.

        Args:
            model: The model's name.
            limit: How many to return at most; all by default.

        Raises:
            NotFound: There is no such model.

        Examples:
            >>> store = tierstore.init("store")
            >>> for value in (1.0, 2.0):
            ...     _ = store.save("ranker", {"w": np.full(3, value, np.float32)})
            >>> [version.number for version in store.versions("ranker")]
            [2, 1]
        """
        return self._names.versions(model, limit)

    def aliases(self, model: str) -> list[Alias]:
        """Return the aliases of a model and the versions that they point to now.

        Args:
            model: The model's name.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)}, alias="prod")
            >>> [(alias.name, str(alias.version)) for alias in store.aliases("ranker")]
            [('prod', 'ranker@1')]
        """
        return self._names.aliases(model)

    def history(
        self, model: str, alias: str | None = None, limit: int | None = None
    ) -> list[RefEntry]:
        """Return who pointed what where, when and why, the newest first.

        Each entry is an object in home that is read, and a log only grows: give a ``limit`` for one
        that may be long.

        Args:
            model: The model's name.
            alias: The alias whose log is meant; by default that of the model's versions.
            limit: How many to return at most; all by default.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, "f4")}, alias="prod", message="first")
            >>> [(entry.action, entry.message) for entry in store.history("ranker", "prod")]
            [('set', 'first')]
        """
        return self._names.history(model, alias, limit)

    def alias(
        self,
        model: str,
        name: str,
        ref: str | Version,
        *,
        message: str | None = None,
        was: int | None = None,
    ) -> Alias:
        """Point an alias of a model to a version of it; moves no bytes.

        Args:
            model: The model's name.
            name: The alias, such as ``prod``.
            ref: A reference to the version.
            message: Why; kept in the log. ``None`` for no message.
            was: The number of the version that it must point to until then; any by default.

        Returns:
            The alias and the version that it points to now.

        Raises:
            NotFound: There is no such version.
            UsageError: It is a variant, or another model's version.
            Conflict: The alias is in a rollout, or does not point to version ``was``.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> print(store.alias("ranker", "prod", "ranker@1").version)
            ranker@1
        """
        return self._names.alias(model, name, ref, message, was)

    def remove_alias(self, model: str, name: str, *, message: str | None = None) -> None:
        """Remove an alias; the versions stay, and so does its log.

        Args:
            model: The model's name.
            name: The alias.
            message: Why; kept in the log. ``None`` for no message.

        Raises:
            NotFound: There is no such alias.
            Conflict: It is in a rollout.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)}, alias="prod")
            >>> store.remove_alias("ranker", "prod")
            >>> store.aliases("ranker")
            []
        """
        self._names.remove_alias(model, name, message)

    def rollback(self, model: str, alias: str, *, message: str | None = None) -> Alias:
        """Point an alias back to the version that it meant before; moves no bytes.

        Twice in a row goes back two steps. In a rollout it gives every node the old version again,
        as ``Rollouts.abort`` does.

        Args:
            model: The model's name.
            alias: The alias.
            message: Why; kept in the log. ``None`` for no message.

        Returns:
            The alias and the version that it points to now.

        Raises:
            NotFound: There is nothing to go back to.

        Examples:
            >>> store = tierstore.init("store")
            >>> for value in (1.0, 2.0):
            ...     _ = store.save("ranker", {"w": np.full(3, value, np.float32)}, alias="prod")
            >>> print(store.rollback("ranker", "prod").version)
            ranker@1
        """
        back = self._names.rollback(model, alias, message)
        self.rollouts.settle(model, alias)
        return back

    @property
    def retention(self) -> Retentions:
        """Retention: for how long removals can be undone, and by which rules agents remove."""
        from tierstore.modelstore.reclaim.retention import Retentions

        cache = self.reclaim._cache_path
        return self._parts.once("retention", lambda: Retentions(self._names, cache))

    @property
    def reclaim(self) -> Reclaim:
        """Garbage collection: gives back the space of what nothing needs any more."""
        from tierstore.modelstore.reclaim.reclaim import Reclaim

        home = self._parts.home
        cache = home.read_cache_path(self._parts.settings.cache_dir)
        return self._parts.once("reclaim", lambda: Reclaim(home, cache))

    @property
    def _removing(self) -> Removing:
        from tierstore.modelstore.reclaim.removal import Removing

        return self._parts.once("removing", lambda: Removing(self._names))

    def remove(
        self, *refs: str | Version, force: bool = False, message: str | None = None
    ) -> list[Version]:
        """Remove versions, all or none; variants and releases go the same way.

        They are not found any more, and ``undelete`` brings them back within the store's window, 7
        days unless it is set otherwise. Their entries and numbers stay. What names a version keeps
        it: an alias or its rollout, a release, a user's pin, somebody who reads it, or a patch that
        lies on it.

        Args:
            refs: References to the versions.
            force: Whether the newest version of a model may go, too.
            message: Why; kept in the log. ``None`` for no message.

        Returns:
            The versions that were removed.

        Raises:
            UsageError: The store does not allow removal yet, or a variant was named alone.
            NotFound: There is no such version, or it is removed already.
            Conflict: A version is needed, and the message says by whom; or it is the newest.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> for value in (1.0, 2.0):
            ...     _ = store.save("ranker", {"w": np.full(3, value, np.float32)})
            >>> [str(version) for version in store.remove("ranker@1")]
            ['ranker@1']
            >>> print(store.undelete("ranker@1"))
            ranker@1
        """
        return self._removing.remove(refs, force=force, message=message)

    def remove_model(self, *models: str, message: str | None = None) -> list[Version]:
        """Remove all versions of models, all or none; they are not listed any more.

        Their numbers go on.

        Args:
            models: The models' names, or the names of releases.
            message: Why; kept in the log. ``None`` for no message.

        Returns:
            The versions that were removed, of each model the newest first.

        Raises:
            UsageError: The store does not allow removal yet, or no model was named.
            NotFound: There is no such model.
            Conflict: A version is needed, and the message says by whom; none is removed.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> _ = store.remove_model("ranker")
            >>> store.models()
            []
        """
        return self._removing.remove_models(models, message=message)

    def forget(
        self,
        model: str,
        *,
        keep_last: int | None = None,
        keep_within: timedelta | None = None,
        keep_hourly: int | None = None,
        keep_daily: int | None = None,
        keep_weekly: int | None = None,
        keep_monthly: int | None = None,
        keep_yearly: int | None = None,
        keep_tag: Sequence[str] = (),
        dry_run: bool = False,
        most_percent: float = 20.0,
        message: str | None = None,
    ) -> Forgotten:
        """Remove the versions of a model that no rule keeps; the rules are those of restic.

        The newest version stays in any case, and so does what ``remove`` would refuse, what a
        rollback would go back to, and what an alias pointed to in the last 30 days, or in the time
        that ``retention.set`` gives as ``alias_history``. Patches are not counted: they stay for 7
        days, and while they are among the newest 64 versions.

        Args:
            model: The model's name.
            keep_last: Keep the newest so many versions.
            keep_within: Keep versions that are no older than that before the newest one.
            keep_hourly: Keep the newest version of each of the last so many hours that have one, in
                UTC.
            keep_daily: The same by days.
            keep_weekly: The same by weeks.
            keep_monthly: The same by months.
            keep_yearly: The same by years.
            keep_tag: Keep versions with an alias or a message that matches one of these globs.
            dry_run: Remove nothing.
            most_percent: The most of the model's versions that may go, in percent.
            message: Why; kept in the log. ``None`` for no message.

        Returns:
            What stays, and why, and what was removed.

        Raises:
            UsageError: There is no rule, or the store does not allow removal yet.
            NotFound: There is no such model.
            Conflict: More would go than ``most_percent``, or a version is needed by now; nothing is
                removed.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> for value in (1.0, 2.0, 3.0):
            ...     _ = store.save("ranker", {"w": np.full(3, value, np.float32)})
            >>> found = store.forget("ranker", keep_last=2, dry_run=True)
            >>> [(str(one.version), one.reasons) for one in found.kept]
            [('ranker@3', ('newest', 'last 2')), ('ranker@2', ('last 2',))]
            >>> [str(version) for version in found.removed]
            ['ranker@1']
        """
        from tierstore.modelstore.reclaim.forgetting import Forgetting
        from tierstore.modelstore.reclaim.rules import rules_of

        rules = rules_of(
            keep_last=keep_last, keep_within=keep_within, keep_hourly=keep_hourly,
            keep_daily=keep_daily, keep_weekly=keep_weekly, keep_monthly=keep_monthly,
            keep_yearly=keep_yearly, keep_tag=keep_tag,
        )  # fmt: skip
        cache = self._parts.home.read_cache_path(self._parts.settings.cache_dir)
        return Forgetting(self._names, cache).forget(
            model, rules, dry_run=dry_run, most_percent=most_percent, message=message
        )

    def undelete(self, ref: str | Version, *, message: str | None = None) -> Version:
        """Bring a version back that was removed, with its variants.

        Within the window that is always possible, and later as long as garbage collection has not
        deleted anything of it.

        Args:
            ref: A reference to the version, by its number or digest.
            message: Why; kept in the log. ``None`` for no message.

        Raises:
            NotFound: There is no such version, or it is too late.
            UsageError: It is not removed.
            Conflict: Somebody else brought it back.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.reclaim.enable(wait_s=0)
            >>> for value in (1.0, 2.0):
            ...     _ = store.save("ranker", {"w": np.full(3, value, np.float32)})
            >>> _ = store.remove("ranker@1")
            >>> print(store.undelete("ranker@1"))
            ranker@1
        """
        return self._removing.undelete(ref, message=message)

    def deleted(self, model: str | None = None) -> list[RemovedVersion]:
        """Return the versions that are removed, with who removed them, and until when they stay.

        Args:
            model: The model's name; all by default.

        Raises:
            NotFound: There is no such model.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.deleted()
            []
        """
        from tierstore.modelstore.reclaim.removedlist import deleted

        return deleted(self._names, model)

    def diff(self, old: str | Version, new: str | Version) -> Diff:
        """Compare two versions tensor by tensor, from their metadata alone.

        Args:
            old: A reference to the first version.
            new: A reference to the second one, of any model.

        Returns:
            What changed, in plain and in stored bytes.

        Raises:
            NotFound: There is no such version.
            UsageError: One of them is a release.

        Examples:
            >>> store = tierstore.init("store")
            >>> zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
            >>> _ = store.save("ranker", {"a": zeros, "b": zeros})
            >>> _ = store.save("ranker", {"a": zeros, "b": ones})
            >>> [(item.name, item.change) for item in store.diff("ranker@1", "ranker@2").tensors]
            [('a', 'same'), ('b', 'changed')]
        """
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
        message: str | None = None,
        fold: bool = True,
    ) -> Version:
        """Publish a version that equals another but for some rows, elements or whole tensors.

        Costs bytes and time in proportion to what changes: the rest is neither read nor hashed. At
        most 16 patches lie on one another, or a quarter of the model's bytes: a version that makes
        them so many is published, and then folded before this call returns.

        Args:
            ref: A reference to the version that is changed. When it is a model's newest, or what
                ``alias`` means, and somebody else changes that meanwhile, ``Conflict`` is raised.
            changes: ``Rows``, ``Elements`` or ``Dense`` by the tensor's name; or a ``Patch`` or the
                path of a patch file, made for exactly this version.
            alias: A name to point to the new version, such as ``prod``.
            message: Why; kept in the log. ``None`` for no message.
            fold: ``False`` leaves folding to ``Store.fold``; with too many patches below
                ``Conflict`` is raised.

        Returns:
            The new version; its ``stats`` are those of the patch alone, in bytes.

        Raises:
            NotFound: There is no such version or file.
            TensorMissing: The version has no such tensor.
            UsageError: A dtype, shape or index does not fit.
            InvalidSafetensors: The file is no patch.
            Conflict: The patch is for another version, or as said above. Nothing is published, or
                the message says that only ``alias`` was not moved.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"emb": np.zeros((4, 2), np.float32)}, alias="prod")
            >>> change = tierstore.Rows([2], np.ones((1, 2), np.float32))
            >>> print(store.patch("ranker@prod", {"emb": change}, alias="prod"))
            ranker@2
            >>> store.load("ranker@prod")["emb"][2]
            array([1., 1.], dtype=float32)
        """
        if isinstance(changes, str | os.PathLike):
            self._parts.places.check(changes)
        return self._parts.patching.patch(ref, changes, alias=alias, message=message, fold=fold)

    def patches(self, since: str | Version, until: str | Version | None = None) -> Iterator[Patch]:
        """Return the patches that lead from one version to a newer one, in order.

        Each is read when it is used, and nothing else of the versions is.

        Args:
            since: A reference to the version that a node has.
            until: A reference to the version that it wants; the model's newest by default.

        Raises:
            Conflict: The newer one is not the older one with patches on it.
            NotFound: One of them does not exist, or a patch between them is gone.

        Examples:
            >>> store = tierstore.init("store")
            >>> state = {"emb": np.zeros((4, 2), np.float32)}
            >>> _ = store.save("ranker", state)
            >>> _ = store.patch("ranker", {"emb": tierstore.Rows([2], np.ones((1, 2), np.float32))})
            >>> for patch in store.patches(since="ranker@1"):
            ...     patch.apply_to(state)
            >>> state["emb"][2]
            array([1., 1.], dtype=float32)
        """
        return self._parts.patching.between(since, until)

    def fold(
        self, ref: str | Version, *, at_least: int = 1, progress: Progress | bool | None = None
    ) -> Folded:
        """Store a version that lies on patches as a whole; its digest and content stay.

        Loads then read it like any other version, and its files have a SHA-256. Safe at any time:
        readers and other writers are not touched, and folding twice does nothing.

        Args:
            ref: A reference to the version.
            at_least: With fewer patches on it nothing is done.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all.

        Raises:
            NotFound: There is no such version.
            UsageError: It is a release.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"emb": np.zeros((1000, 2), np.float32)})
            >>> _ = store.patch("ranker", {"emb": tierstore.Rows([2], np.ones((1, 2), np.float32))})
            >>> store.fold("ranker").patches
            1
            >>> store.fold("ranker").patches
            0
        """
        with reported(progress, f"folding {ref}") as told:
            return self._parts.patching.fold(ref, at_least, told)

    def rebase(self, ref: str | Version, *, above: float = COSTS) -> Rebased:
        """Store a version's deltas as standalone chunks where reading them costs too much.

        Other versions and readers are not touched: the old frames stay while anything needs them.

        Args:
            ref: A reference to the version.
            above: The bytes that are fetched for a delta and its bases, for each byte of a
                standalone frame, from which on it is replaced; 1 replaces every delta.

        Raises:
            NotFound: There is no such version.
            UsageError: ``above`` is less than 1.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
            >>> store.rebase("ranker").chunks
            0
        """
        version = self.resolve(ref)
        with self._leased(version):
            return self._parts.rebasing.version(version, above)

    def warmup(
        self, ref: str | Version, *, tier: str = HOT, progress: Progress | bool | None = None
    ) -> Warmth:
        """Bring a version into a hot tier before it is asked for, whatever the tier's policy.

        Args:
            ref: A reference to the version.
            tier: The tier's name; by default this node's own, or else the first that nodes share.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all.

        Returns:
            How much of the version is there, and what bringing it cost, in bytes.

        Raises:
            NotFound: There is no such version.
            UsageError: This node has no such hot tier.
            OutOfSpace: The tier is smaller than the version.

        Examples:
            >>> import os
            >>> place = os.path.abspath("hot")
            >>> hot = tierstore.TierSpec(name="hot", role="hot", url=place, size=64 << 20)
            >>> with tierstore.init("store", tiers=[hot]) as store:
            ...     _ = store.save("ranker", {"w": np.ones(1 << 20, np.float32)})
            >>> store = tierstore.open("store")
            >>> store.warmup("ranker").resident
            True
        """
        version = self.choose(ref)
        with (
            self._leased(version),
            self._own(version),
            reported(progress, f"warming {version}") as told,
        ):
            return self.warming.bring(version, tier, told)

    def evict(self, ref: str | Version | None = None, *, tier: str = HOT) -> int:
        """Free a hot tier of a version, or of all that is not pinned.

        Args:
            ref: A reference to the version; all of this node's own tier by default.
            tier: The tier's name; by default this node's own.

        Returns:
            The bytes that are free now.

        Raises:
            UsageError: This node has no such hot tier, or all of one that nodes share was meant.

        Examples:
            >>> import os
            >>> place = os.path.abspath("hot")
            >>> hot = tierstore.TierSpec(name="hot", role="hot", url=place, size=64 << 20)
            >>> tierstore.init("store", tiers=[hot]).close()
            >>> tierstore.open("store").evict()
            0
        """
        return self.warming.evict(None if ref is None else self.resolve(ref), tier)

    def heat(self) -> HeatView:
        """Return how often chunks and packs were read of late, by all nodes that share the store.

        Examples:
            >>> store = tierstore.init("store")
            >>> store.heat().packs()
            {}
        """
        from tierstore.tiers.heat.recorder import NO_HEAT

        self._parts.hot.drain()
        return NO_HEAT if self._parts.recorder is None else self._parts.recorder.view()

    def usage(self, model: str | None = None) -> Usage:
        """Add up logical, unique and stored bytes, and what dedup, codecs and deltas saved.

        What cannot be read is left out, and named in ``left_out``.

        Args:
            model: The model to look at; all by default.

        Raises:
            NotFound: There is no such model.
            Damaged: The versions of this model are not known.

        Examples:
            >>> store = tierstore.init("store")
            >>> for name in ("ranker", "copy"):
            ...     _ = store.save(name, {"w": np.ones(1000, np.float32)})
            >>> usage = store.usage()
            >>> usage.versions, usage.dedup_saved
            (2, 4072)
        """
        from tierstore.modelstore.care.compare import usage_of

        return usage_of(self._names, model, self._parts.settings.cache_dir)

    def check(
        self,
        *,
        read_data: bool = False,
        hot: bool = False,
        subset: float | None = None,
        max_time: timedelta | None = None,
        progress: Progress | bool | None = None,
    ) -> CheckReport:
        """Verify everything that the store holds.

        Args:
            read_data: Decode every chunk and compare it with its digest, too, and folds with what
                the patches below them give.
            hot: Compare every chunk in this node's hot tier with its digest, too. A wrong one is
                damage of this node alone: it is removed, and is fetched again when it is read.
            subset: Read the data of this share of the stored bytes, above 0 and up to 1: of the
                copies of packs that this node has not read for longest. Says ``read_data``.
            max_time: Begin to read no further copy after this time. Says ``read_data``. What was
                read is noted on this node (``cache_dir``), and the next such check goes on there.
            progress: ``True`` for a bar (``pip install 'tierstore[progress]'``), or a function that
                is called with the bytes done and the bytes in all.

        Returns:
            What was found, damage first, and how much was looked at.

        Raises:
            UsageError: ``hot``, and this node has no hot tier.
            KeyboardInterrupt: As it was raised; while data is read, it says how to read the rest.
                What was found by then is logged as errors and quarantined.
            BackendError: Home failed, with what was found by then logged. A tier that fails
                meanwhile raises nothing: ``down`` of the report names it.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(1000, np.float32)})
            >>> report = store.check(read_data=True)
            >>> report.findings, report.data_bytes, report.data.copies_left
            ([], 4000, 0)
        """
        from tierstore.modelstore.care.check import check_store
        from tierstore.modelstore.care.check_hot import check_hot
        from tierstore.modelstore.care.check_limits import limits_of

        home, settings, local = self._parts.home, self._parts.settings, self._parts.hot.local
        if hot and local is None:
            raise UsageError("this node has no hot tier to check; 'tierstore tier ls' shows tiers")
        limits = limits_of(read_data, subset, max_time)
        with reported(progress, "checking") as told:
            report = check_store(home, limits, settings=settings, progress=told)
            if hot and local is not None:
                check_hot(local, report, told)
        return report

    def repair(
        self,
        *refs: str | Version,
        dry_run: bool = False,
        progress: Progress | bool | None = None,
    ) -> RepairReport:
        """Put back what is damaged or gone from what is left, and say what is lost.

        Every copy of every pack is read. A bad one gets the bytes of a good one in another tier.
        Where none is good, its good frames are copied into a new pack, and the rest is looked for
        in other packs and in hot tiers; then the pack is quarantined, so that saving the content
        that is lost heals the versions that need it. What is whole is not touched.

        Args:
            refs: The versions of which everything is looked at; without any, the whole store.
            dry_run: Whether nothing is changed: the report says what would be.
            progress: ``True`` for a bar, or a function that is called with the bytes of packs that
                were read and the bytes in all; as in ``save``.

        Returns:
            What was found, and what came of it. Where there was no room for all of it, not even
            with the reserve, ``full`` says so.

        Raises:
            Conflict: Another process moves packs between tiers now.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones(1000, np.float32)})
            >>> report = store.repair()
            >>> report.is_whole, report.packs, report.objects
            (True, 1, [])
        """
        from tierstore.modelstore.reclaim.repair.repairing import repair_store

        versions = [self.resolve(ref) for ref in refs] or None
        home, hot = self._parts.home, self._parts.hot
        with reported(progress, "repairing") as told:
            return repair_store(home, hot, versions, dry_run=dry_run, progress=told)
