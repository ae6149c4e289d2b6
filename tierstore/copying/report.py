"""What came of a copy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tierstore.modelstore.version import Version

Outcome = Literal["copied", "there", "healed", "left", "failed"]
"""What came of a version; see ``CopiedVersion``."""


@dataclass(frozen=True, slots=True)
class CopiedVersion:
    """A version that was to be copied, and what came of it.

    Attributes:
        source: The version, a variant of one, or a release, in the store that it was copied from.
        version: The same in the store that it was copied to; ``None`` where it is not there.
        outcome: ``copied``; ``there``, as it was before; ``healed``, as it was there, and what that
            store had lost of it is put back; ``left``, as it was not to be copied; or ``failed``.
        why: Why it was left or failed, and what to do about it; empty otherwise.
        sent_bytes: The bytes of packs, manifests and layouts that were written for it.

    Examples:
        >>> store, backup = tierstore.init("store"), tierstore.init("backup")
        >>> _ = store.save("ranker", {"w": np.ones(3, np.float32)})
        >>> [copied] = store.copy("ranker", backup)
        >>> str(copied.version), copied.outcome
        ('ranker@1', 'copied')
    """

    source: Version
    version: Version | None
    outcome: Outcome
    why: str = ""
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CopiedAlias:
    """An alias that was to be the same in both stores.

    Attributes:
        model: The model's name, or a release's.
        name: The alias.
        version: The version that it points to in the target from now on; ``None`` if to none.
        outcome: ``copied``; ``there``, as it was before; ``removed``, as the source has no such
            alias; or ``failed``.
        why: Why it failed; empty otherwise.
    """

    model: str
    name: str
    version: Version | None
    outcome: Literal["copied", "there", "removed", "failed"]
    why: str = ""


@dataclass(frozen=True, slots=True)
class DeletedVersion:
    """A version of the target that the source does not have.

    Attributes:
        version: The version.
        why: Why it stays, and what to do about it; empty where it was removed.
    """

    version: Version
    why: str = ""


@dataclass(slots=True)
class Synced:
    """What came of a sync.

    Attributes:
        dry_run: Whether nothing was changed, and this is what would be.
        versions: The versions, variants and releases that were to be copied.
        is_damaged: Whether any of these failed as it cannot be read in the source.
        aliases: The aliases that were to be the same.
        deleted: The versions that were to be removed.
    """

    dry_run: bool
    versions: list[CopiedVersion] = field(default_factory=list)
    is_damaged: bool = False
    aliases: list[CopiedAlias] = field(default_factory=list)
    deleted: list[DeletedVersion] = field(default_factory=list)

    def of(self, outcome: Outcome) -> list[CopiedVersion]:
        """Return the versions with this outcome."""
        return [one for one in self.versions if one.outcome == outcome]

    @property
    def sent_bytes(self) -> int:
        """The bytes of packs, manifests and layouts that were written, or would be."""
        return sum(one.sent_bytes for one in self.versions)

    @property
    def failed(self) -> list[str]:
        """What failed, each with why, in words."""
        said = [f"{one.source}: {one.why}" for one in self.of("failed")]
        said += [f"{one.model}@{one.name}: {one.why}" for one in self.aliases if one.why]
        return said + [f"{one.version}: {one.why}" for one in self.deleted if one.why]
