"""Administration of a store from Python: ``Store.admin``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, Unpack

from tierstore.arguments import as_whole
from tierstore.format.tiers import Role, TierSpec
from tierstore.modelstore.store import Store

if TYPE_CHECKING:
    from tierstore.admin.doctor import Diagnosis
    from tierstore.admin.manage import Drained, Removed, TierFields
    from tierstore.admin.overview import Top
    from tierstore.admin.survey import TierReport
    from tierstore.admin.validate import Validation
    from tierstore.modelstore.version import Version
    from tierstore.tiers.durable.budget import Budget
    from tierstore.tiers.durable.mover import Moved
    from tierstore.variants.lineage import Node

_Specs: TypeAlias = list[TierSpec]


class TierAdmin:
    """Changes the tiers of a store; obtained as ``Store.admin.tiers``.

    A store must be opened anew to use a tier that was added or changed.

    Examples:
        >>> tierstore.init("store").admin.tiers.list()
        []
    """

    def __init__(self, store: Store) -> None:
        """Administer the tiers of ``store``."""
        self._store = store

    def __repr__(self) -> str:
        return f"<TierAdmin of {self._store.url}>"

    def __dir__(self) -> Sequence[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def list(self) -> _Specs:
        """Return the tiers beside home, the fastest first, as all nodes agree on them now.

        Examples:
            >>> import os
            >>> warm = tierstore.TierSpec(name="warm", role="warm", url=os.path.abspath("warm"))
            >>> store = tierstore.init("store", tiers=[warm])
            >>> [tier.name for tier in store.admin.tiers.list()]
            ['warm']
        """
        return self._store.tiers()

    def add(self, spec: TierSpec, *, message: str | None = None) -> TierSpec:
        """Try a tier and add it to the list: one object is written, read back and removed.

        Args:
            spec: New tier, without a password or key in its URL.
            message: Note for the list: why this is done; ``None`` for no note.

        Returns:
            The tier as it was added.

        Raises:
            ConfigError: The tier is invalid.
            Conflict: Its name is taken, its place belongs to another store or tier, or somebody
                else changed the tiers at the same time.
            BackendError: It cannot be written to, read or cleaned.

        Examples:
            >>> import os
            >>> os.mkdir("warm")
            >>> store = tierstore.init("store")
            >>> warm = tierstore.TierSpec(name="warm", role="warm", url=os.path.abspath("warm"))
            >>> store.admin.tiers.add(warm, message="more room").url
            'file:///.../warm'
        """
        from tierstore.admin.manage import add_tier
        from tierstore.modelstore.home.tierlist import find

        return find(add_tier(self._store, spec, message).tiers, spec.name)

    def set(
        self,
        name: str,
        *,
        message: str | None = None,
        force: bool = False,
        **fields: Unpack[TierFields],
    ) -> TierSpec:
        """Change fields of a tier; those that are not given stay.

        Args:
            name: Name of the tier.
            message: Note for the list: why this is done; ``None`` for no note.
            force: Whether to allow a quota below what a durable tier holds.
            fields: ``url``, ``size`` (bytes; ``None`` for no quota), ``high`` and ``low`` (percent
                of the quota), ``timeout_ms``, ``options``, ``prices``, as in ``TierSpec``.

        Returns:
            The changed tier.

        Raises:
            NotFound: There is no such tier.
            UsageError: There is nothing to change, a field does not change (``name``, ``role``,
                ``state``), or the tier holds more than its new quota.
            ConfigError: It would not be as a tier must be.
            Unreachable: What is at its new place is not this tier.

        Examples:
            >>> import os
            >>> warm = tierstore.TierSpec(name="warm", role="warm", url=os.path.abspath("warm"))
            >>> store = tierstore.init("store", tiers=[warm])
            >>> store.admin.tiers.set("warm", size=20 << 40, high=90).size
            21990232555520
        """
        from tierstore.admin.manage import set_tier

        return set_tier(self._store, name, message, force=force, **fields)

    def drain(
        self,
        name: str,
        *,
        message: str | None = None,
        dry_run: bool = False,
        budget: Budget | None = None,
        progress: Callable[[Moved], None] | None = None,
    ) -> Drained:
        """Move all packs out of a durable tier, and put no new ones into it.

        It may be stopped at any time; call it again to go on. Once no pack is left that no other
        tier has, ``remove`` removes the tier from the list.

        Args:
            name: Name of the tier.
            message: Note for the list: why this is done; ``None`` for no note.
            dry_run: Whether to move nothing and only return the plan.
            budget: Bandwidth that moves may use; ``None`` for no limit.
            progress: Called with each move that was tried.

        Returns:
            What was planned, what became of it, and what is left in the tier.

        Raises:
            NotFound: There is no such tier.
            UsageError: It is a hot or shared tier, which only holds copies.
            Conflict: Another mover is at work.
            BackendError: A tier cannot be asked what it holds.

        Examples:
            >>> import os
            >>> warm = tierstore.TierSpec(name="warm", role="warm", url=os.path.abspath("warm"))
            >>> store = tierstore.init("store", tiers=[warm])
            >>> _ = store.save("ranker", {"w": np.ones(1000, np.float32)})
            >>> drained = store.admin.tiers.drain("warm")
            >>> [move.status for move in drained.moved], len(drained.left.packs)
            (['done'], 0)
        """
        from tierstore.admin.manage import drain

        return drain(self._store, name, message, dry_run=dry_run, budget=budget, progress=progress)

    def undrain(self, name: str, *, message: str | None = None) -> Drained:
        """Let a tier that is being drained take new packs again.

        Args:
            name: Name of the tier.
            message: Note for the list: why this is done; ``None`` for no note.

        Raises:
            NotFound: There is no such tier.
            UsageError: It is not being drained.

        Examples:
            >>> import os
            >>> warm = tierstore.TierSpec(name="warm", role="warm", url=os.path.abspath("warm"))
            >>> store = tierstore.init("store", tiers=[warm])
            >>> store.admin.tiers.drain("warm").spec.state
            'draining'
            >>> store.admin.tiers.undrain("warm").spec.state
            'active'
        """
        from tierstore.admin.manage import undrain

        return undrain(self._store, name, message)

    def remove(
        self,
        name: str,
        *,
        message: str | None = None,
        force: bool = False,
        waiting: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> Removed:
        """Remove a tier from the list; nothing in it is deleted.

        Args:
            name: Name of the tier.
            message: Note for the list: why this is done; ``None`` for no note.
            force: Whether to remove a durable tier that cannot be asked, and lose what only it
                holds.
            waiting: Called with the users whose saves are waited for, which may still write to it.

        Raises:
            NotFound: There is no such tier.
            Conflict: It still takes packs, it holds a pack that is pinned or the only copy of one,
                or a mover is at work.
            Unreachable: A durable tier cannot be asked what it holds.

        Examples:
            >>> import os
            >>> warm = tierstore.TierSpec(name="warm", role="warm", url=os.path.abspath("warm"))
            >>> store = tierstore.init("store", tiers=[warm])
            >>> _ = store.admin.tiers.drain("warm")
            >>> store.admin.tiers.remove("warm").spec.name
            'warm'
        """
        from tierstore.admin.manage import remove_tier

        return remove_tier(self._store, name, message, force=force, waiting=waiting)


class Admin:
    """Administration of one store; obtained as ``Store.admin``.

    Examples:
        >>> store = tierstore.init("store")
        >>> store.admin
        <Admin of file:///.../store>
    """

    def __init__(self, store: Store) -> None:
        """Administer ``store``."""
        self._store = store
        self.tiers = TierAdmin(store)
        """The tiers of the store: list, add, set, drain, undrain, remove."""

    def __repr__(self) -> str:
        return f"<Admin of {self._store.url}>"

    def __dir__(self) -> Sequence[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def df(self) -> list[TierReport]:
        """Ask every tier for its content and quota; home's own packs come last.

        Durable tiers are listed, and so is a Redis: the larger they are the longer it takes. A tier
        that cannot be asked says so in its ``error``.

        Examples:
            >>> store = tierstore.init("store")
            >>> [(report.spec.name, report.objects) for report in store.admin.df()]
            [('home', 0)]
        """
        from tierstore.admin.survey import survey

        return survey(self._store)

    def top(self, count: int = 10) -> Top:
        """Return what is read from which tier, and the packs that are read most.

        Args:
            count: How many packs to name.

        Raises:
            UsageError: ``count`` is no whole number of at least 0.

        Examples:
            >>> store = tierstore.init("store")
            >>> [tier.name for tier in store.admin.top().overview.tiers]
            ['home']
        """
        from tierstore.admin.overview import Watch

        count = as_whole("count", count, "a number of packs, 0 or more", 0)
        return Watch(self._store, count).look()

    def lineage(self, ref: str | Version) -> list[Node]:
        """Return the trees of versions that a version was made from, and that were made from it.

        Args:
            ref: Reference of the version.

        Raises:
            NotFound: There is no such version.

        Examples:
            >>> store = tierstore.init("store")
            >>> _ = store.save("ranker", {"w": np.ones((8, 8), np.float32)})
            >>> _ = store.derive("ranker", {"cast": "bf16"})
            >>> [root] = store.admin.lineage("ranker@1")
            >>> root.names, root.children[0].names
            (['ranker@1'], ['ranker@1+bf16'])
        """
        from tierstore.variants.lineage import lineage

        return lineage(self._store, ref)

    def validate(
        self,
        url: str | os.PathLike[str],
        role: Role,
        *,
        name: str = "tried",
        options: Mapping[str, str] | None = None,
    ) -> Validation:
        """Try what a storage can be used for, and leave nothing there.

        Args:
            url: Path, or URL of the storage without secrets: ``s3://``, ``redis://`` ...
            role: Role to open it in; ``shared`` for a Redis or Memcached.
            name: Name of the tier in this node's file whose credentials and options are used.
            options: Options of the backend, as in ``TierSpec``.

        Raises:
            ConfigError: The URL holds a secret, or cannot be opened.
            UsageError: There is no such role.
            NotFound: A directory is missing.
            BackendError: Nothing can be written there.

        Examples:
            >>> import os
            >>> os.mkdir("place")
            >>> found = tierstore.init("store").admin.validate("place", "warm")
            >>> found.examination.home, found.examination.durable
            (True, True)
        """
        from tierstore.admin.validate import validate

        return validate(url, role, name=name, options=options)

    def doctor(self) -> Diagnosis:
        """Check this installation and machine, the store and each of its tiers.

        What fails is told in the result and raises nothing.

        Examples:
            >>> found = tierstore.init("store").admin.doctor()
            >>> found.store.put_if_absent, found.tiers
            (True, ())
        """
        from tierstore.admin.doctor import diagnose

        return diagnose(self._store)
