"""The report of a repair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tierstore.errors import OutOfSpace
from tierstore.modelstore.care.check_findings import brief

Outcome = Literal["repaired", "lost", "left"]


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done about one stored object.

    Attributes:
        outcome: ``repaired`` when nothing of it is lacking any more; ``lost`` when some of it is
            nowhere; ``left`` when it could not be repaired now, and another time it may be.
        key: The key of the object.
        what: Description of the damage.
        done: What was done, or what to do.
        tier: The name of the tier in which it lies; empty for an object of home that is no pack,
            and for a pack as such.
    """

    outcome: Outcome
    key: str
    what: str
    done: str
    tier: str = ""


@dataclass(frozen=True, slots=True)
class HitPart:
    """A tensor, or a file that holds none, of which chunks are lost.

    Attributes:
        name: The name of the tensor as ``Model.tensor`` takes it, or the path of the file.
        lost_bytes: Plain bytes of the chunks that are lost.
        plain_bytes: Plain bytes of all of it.
    """

    name: str
    lost_bytes: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class HitVersion:
    """A version that cannot be read in full.

    Attributes:
        version: The version, such as ``ranker@3`` or ``ranker@3+int8``.
        manifest: The key of the manifest that holds the parts: the version's own, or one that the
            version lies on.
        parts: What is lost of it; empty where the manifest itself is lost.
    """

    version: str
    manifest: str
    parts: tuple[HitPart, ...] = ()

    @property
    def lost_bytes(self) -> int:
        """Plain bytes of the version that are lost, as far as they are known."""
        return sum(part.lost_bytes for part in self.parts)


@dataclass(slots=True)
class RepairReport:
    """What a repair found, and what it did.

    Attributes:
        dry_run: Whether nothing was changed, and ``done`` says what would be.
        objects: Every object that was damaged or lacking.
        hit: Every version of which something is lost, by its name.
        packs: Number of packs that were looked at.
        read_bytes: Bytes of packs that were read.
        hot_bytes: Bytes of hot tiers that were compared.
        down: Why tiers could not be asked, by name.
        full: Why there was no room for what is repaired; empty where there was. Once there is some
            another run goes on.
    """

    dry_run: bool = False
    objects: list[Repaired] = field(default_factory=list)
    hit: list[HitVersion] = field(default_factory=list)
    packs: int = 0
    read_bytes: int = 0
    hot_bytes: int = 0
    down: Mapping[str, str] = field(default_factory=dict)
    full: str = ""

    def of(self, outcome: Outcome) -> list[Repaired]:
        """Return the objects that came to this."""
        return [one for one in self.objects if one.outcome == outcome]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is lost, and nothing was left to another time."""
        return not self.hit and not self.of("lost") and not self.of("left") and not self.full

    def did(self, done: str) -> str:
        """Return a participle, such as "written anew", as it holds of this run."""
        return f"would be {done}" if self.dry_run else done

    def add(self, outcome: Outcome, key: str, what: object, done: str, tier: str = "") -> None:
        """Note what was done about an object."""
        self.objects.append(Repaired(outcome, key, brief(what), done, tier))

    def leave(self, key: str, what: object, done: str, error: Exception, tier: str = "") -> None:
        """Note that an object could not be repaired now, by the error that says why.

        Args:
            key: The key of the object.
            what: Description of the damage.
            done: What was tried, as a participle: ``written anew``.
            error: What came of it.
            tier: The name of the tier in which the object lies.
        """
        why = f": {error}"
        if isinstance(error, OutOfSpace):
            self.full = self.full or str(error)
            why = ", as there is no room"
        self.add("left", key, what, f"it could not be {done}{why}", tier)
