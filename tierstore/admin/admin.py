"""What an administrator does with a store: ``Store.admin``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, Unpack

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
    """Changes which tiers a store has; obtained as ``Store.admin.tiers``.

    A store must be opened anew to use a tier that was added or changed.
    """

    def __init__(self, store: Store) -> None:
        """Administer the tiers of ``store``."""
        self._store = store

    def __repr__(self) -> str:
        return f"<TierAdmin of {self._store.url}>"

    def list(self) -> _Specs:
        """Return the tiers beside home, the fastest first, as all nodes agree on them now."""
        return self._store.tiers()

    def add(self, spec: TierSpec, *, message: str = "") -> TierSpec:
        """Add a tier, once it has proved itself: one object is written, read back and removed.

        Args:
            spec: The new tier; its URL never holds a password or key.
            message: Why; kept in the list.

        Returns:
            The tier as it is now.

        Raises:
            ConfigError: It is not as a tier must be.
            Conflict: Its name is taken, its place is another store's or another tier, or somebody
                else changed the tiers at the same time.
            BackendError: It cannot be written to, read or cleaned.
        """
        from tierstore.admin.manage import add_tier
        from tierstore.modelstore.home.tierlist import find

        return find(add_tier(self._store, spec, message).tiers, spec.name)

    def set(
        self, name: str, *, message: str = "", force: bool = False, **fields: Unpack[TierFields]
    ) -> TierSpec:
        """Change a tier; what is not given stays.

        Args:
            name: The tier's name.
            message: Why; kept in the list.
            force: Allow a quota below what a durable tier holds.
            fields: ``url``, ``size`` (bytes; ``None`` for no quota), ``high`` and ``low`` (percent
                of the quota), ``timeout_ms``, ``options``, ``prices``, as in ``TierSpec``.

        Returns:
            The tier as it is now.

        Raises:
            NotFound: There is no such tier.
            UsageError: There is nothing to change, or the tier holds more than its new quota.
            ConfigError: It would not be as a tier must be.
            Unreachable: What is at its new place is not this tier.
        """
        from tierstore.admin.manage import set_tier

        return set_tier(self._store, name, message, force=force, **fields)

    def drain(
        self,
        name: str,
        *,
        message: str = "",
        dry_run: bool = False,
        budget: Budget | None = None,
        progress: Callable[[Moved], None] | None = None,
    ) -> Drained:
        """Move all packs out of a durable tier, and have nothing new written to it.

        What was moved stays so when this is stopped; call it again to go on. Once nothing is left
        that no other tier has, ``remove`` takes the tier off the list.

        Args:
            name: The tier's name.
            message: Why; kept in the list.
            dry_run: Only say what would be moved.
            budget: What it may take of the bandwidth.
            progress: Is called with each move that was tried.

        Raises:
            NotFound: There is no such tier.
            UsageError: It is a hot tier, which holds copies only.
            Conflict: Another mover is at work.
            BackendError: A tier cannot be asked what it holds.
        """
        from tierstore.admin.manage import drain

        return drain(self._store, name, message, dry_run=dry_run, budget=budget, progress=progress)

    def undrain(self, name: str, *, message: str = "") -> Drained:
        """Have new packs written to a tier again that was being drained.

        Args:
            name: The tier's name.
            message: Why; kept in the list.

        Raises:
            NotFound: There is no such tier.
            UsageError: It is not being drained.
        """
        from tierstore.admin.manage import undrain

        return undrain(self._store, name, message)

    def remove(
        self,
        name: str,
        *,
        message: str = "",
        force: bool = False,
        waiting: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> Removed:
        """Take a tier off the list; nothing in it is deleted.

        Args:
            name: The tier's name.
            message: Why; kept in the list.
            force: Also when a durable tier cannot be asked, and what only it holds is lost.
            waiting: Is called with who saves, while it waits for saves that may still write to the
                tier.

        Raises:
            NotFound: There is no such tier.
            Conflict: It still takes packs, it holds the only copy of one, or a mover is at work.
            Unreachable: A durable tier cannot be asked what it holds.
        """
        from tierstore.admin.manage import remove_tier

        return remove_tier(self._store, name, message, force=force, waiting=waiting)


class Admin:
    """Administration of one store; obtained as ``Store.admin``."""

    def __init__(self, store: Store) -> None:
        """Administer ``store``."""
        self._store = store
        self.tiers = TierAdmin(store)
        """The tiers that the store has: add, set, drain, undrain, remove, list."""

    def __repr__(self) -> str:
        return f"<Admin of {self._store.url}>"

    def df(self) -> list[TierReport]:
        """Ask every tier what it holds and how much it may, home's own packs last.

        Durable tiers are listed, and so is a Redis: the larger they are the longer it takes. A tier
        that cannot be asked says so in its ``error``.
        """
        from tierstore.admin.survey import survey

        return survey(self._store)

    def top(self, count: int = 10) -> Top:
        """Look at what is read from which tier, and which packs are read most.

        Args:
            count: How many packs to name.
        """
        from tierstore.admin.overview import Watch

        return Watch(self._store, count).look()

    def lineage(self, ref: str | Version) -> list[Node]:
        """Return what a version was made from, and what was made from it, as trees.

        Args:
            ref: A reference to the version.

        Raises:
            NotFound: There is no such version.
        """
        from tierstore.variants.lineage import lineage

        return lineage(self._store, ref)

    def validate(
        self,
        url: str,
        role: Role,
        *,
        name: str = "tried",
        options: Mapping[str, str] | None = None,
    ) -> Validation:
        """Try what a place could be used for; whatever is written there is removed again.

        Args:
            url: The place, without secrets: a directory, ``s3://``, ``redis://`` and so on.
            role: How it is opened: ``shared`` for a Redis or Memcached.
            name: The tier in this node's file whose credentials and options are used.
            options: What the kind of backend knows, as in ``TierSpec``.

        Raises:
            ConfigError: The URL holds a secret, or cannot be opened.
            NotFound: A directory is missing.
            BackendError: Nothing can be written there.
        """
        from tierstore.admin.validate import validate

        return validate(url, role, name=name, options=options)

    def doctor(self) -> Diagnosis:
        """Look at this installation and machine, and try the store and each of its tiers.

        What fails is told in the result and raises nothing.
        """
        from tierstore.admin.doctor import diagnose

        return diagnose(self._store)
