"""Checks the copies of each pack that versions need: every tier's footer, against the layouts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property

from tierstore.errors import (
    Archived,
    BackendError,
    Damaged,
    NotFound,
    OutOfSpace,
    UnsupportedFormat,
)
from tierstore.format import keys
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.care.check_findings import Problems
from tierstore.modelstore.care.check_parts import Part
from tierstore.modelstore.chunks.copies import why_down
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.home.home import Home
from tierstore.tiers.durable.tier import DurableTier


@dataclass(frozen=True, slots=True)
class Footer:
    """The footer of one tier's copy of a pack.

    Attributes:
        tier: The name of the tier.
        places: The chunks that it lists.
        error: Why it cannot be read; ``None`` if it can.
    """

    tier: str
    places: Sequence[ChunkPlace]
    error: Damaged | UnsupportedFormat | BackendError | None = None

    def wrong(self, places: Set[ChunkPlace]) -> Damaged | UnsupportedFormat | BackendError | None:
        """Return what is wrong with it, where layouts have these places in the pack."""
        if self.error is None and not places <= set(self.places):
            return Damaged("a layout and the pack's own index do not agree")
        return self.error


class Copies:
    """The packs that each durable tier held when a check began, and the moves that there were.

    Args:
        home: The store's home.

    Attributes:
        down: Why tiers could not be asked then or since, by name. They are asked no more: each
            answer would have to be waited for.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self.down: dict[str, str] = {}
        # each tier's copy of a pack is looked at: another one's being good does not mend it
        self.held: dict[str, dict[str, int]] = {}
        for tier in home.packs.tiers:
            self.held[tier.name] = {}
            with self.asking(tier.name):
                listed = {info.key: info.size for info in tier.blobs.list(keys.PACKS)}
                self.held[tier.name] = listed
        self._unlisted = {*self.down}

    @property
    def every(self) -> Set[str]:
        """The keys of all packs in all tiers."""
        return {key for held in self.held.values() for key in held}

    def of(self, key: str) -> list[tuple[DurableTier, int]]:
        """Return the tiers that have a pack, also one written since the listing, and its size."""
        tiers = self._home.packs.tiers
        found = [(t, self.held[t.name][key]) for t in tiers if key in self.held[t.name]]
        return found or self.now(key)

    def now(self, key: str) -> list[tuple[DurableTier, int]]:
        """Return the tiers that have a pack, having asked each one that is not down; its size."""
        found = []
        for tier in self._home.packs.tiers:
            if tier.name not in self.down:
                with suppress(NotFound), self.asking(tier.name):
                    found.append((tier, tier.blobs.info(key).size))
        return found

    @contextmanager
    def asking(self, tier: str) -> Iterator[None]:
        """Note a tier that fails as down."""
        try:
            yield
        except OutOfSpace:  # of the check itself
            raise
        except BackendError as error:
            self.down.setdefault(tier, str(error))

    def is_of_copy(self, tier: DurableTier, key: str, error: BackendError) -> bool:
        """Return whether reading one copy failed, as on a bad sector, while its tier answers.

        Else the tier is noted as down, unless the copy is gone.
        """
        if tier.name not in self.down:
            with suppress(NotFound):
                why = why_down(tier, key, error)
                if why is None:
                    return True
                self.down[tier.name] = str(why)
        return False

    def read(self, key: str, copies: Iterable[tuple[DurableTier, int]]) -> list[Footer]:
        """Read the footers of those copies that are still there, and neither archived nor down."""
        found: list[Footer] = []
        for tier, size in copies:
            if tier.archive is not None or tier.name in self.down:
                continue
            try:
                found.append(Footer(tier.name, read_footer(tier.blobs, key, size)[1]))
            except NotFound:
                continue
            except (Damaged, UnsupportedFormat) as error:
                found.append(Footer(tier.name, [], error))
            except OutOfSpace:  # of the check itself
                raise
            except BackendError as error:
                if self.is_of_copy(tier, key, error):
                    found.append(Footer(tier.name, [], error))
        return found

    def unread(self, key: str) -> list[str]:
        """Return the names of tiers that are down and had a pack when the check began, or may."""
        return [
            name
            for name, held in self.held.items()
            if name in self.down and (key in held or name in self._unlisted)
        ]

    def other(self, key: str) -> str:
        """Say what is known of other copies of a pack than one that is bad."""
        if unread := self.unread(key):
            return f"and tier {', '.join(unread)} could not be asked for another one"
        return "another one is good"

    @cached_property
    def moves(self) -> dict[bytes, list[str]]:
        """The keys of all moves by the id of their pack."""
        moves: dict[bytes, list[str]] = {}
        for info in self._home.blobs.list(keys.MOVES):
            if pack := keys.moved_pack(info.key):
                moves.setdefault(pack, []).append(info.key)
        return moves


class Suspects(dict[bytes, dict[ChunkPlace, ChunkTable]]):
    """Packs of which a copy is damaged in every tier, with the frames that are."""

    def add(self, way: Sequence[ChunkPlace], table: ChunkTable) -> None:
        """Suspect the packs on the way to a chunk, as it could be read in none of them."""
        for place in way:
            self.setdefault(place.pack, {})[place] = table


@dataclass(slots=True)
class Looked:
    """What was seen of a pack.

    Attributes:
        verified: Whether its footer was read.
        archived: Whether only an archive has it, so that it cannot be verified.
        gone: Whether no tier has any copy.
        bad: Why none of its copies is good; empty if one is, or may be.
    """

    verified: bool = False
    archived: bool = False
    gone: bool = False
    bad: str = ""


class CopyCheck:
    """Checks packs one by one.

    Args:
        home: The store's home.
        copies: Where packs lie.
        problems: Told of damage.
        suspects: Told of packs that may have to be quarantined.
    """

    def __init__(self, home: Home, copies: Copies, problems: Problems, suspects: Suspects) -> None:
        self._home, self._copies = home, copies
        self._problems, self._suspects = problems, suspects

    def read(self, pack: bytes) -> list[Footer]:
        """Read the footers of a pack that can be read now; any thread may."""
        key = keys.pack_key(pack)
        return self._copies.read(key, self._copies.of(key))

    def look(self, pack: bytes, wanted: Set[ChunkPlace], footers: list[Footer]) -> Looked:
        """Check every tier's copy of a pack, and that what layouts place in it agrees with it."""
        key = keys.pack_key(pack)
        if not footers:  # unless it is archived, a mover or a collector was faster than this check
            copies = self._copies.now(key)
            footers = self._copies.read(key, copies)
            if not footers:
                if any(tier.archive is not None for tier, _ in copies):
                    return Looked(archived=True)
                return Looked(gone=not self._copies.down)  # else it may be in one of these
        looked = Looked(verified=True)
        bad = {one.tier: why for one in footers if (why := one.wrong(wanted)) is not None}
        if len(bad) == len(footers) and not self._copies.unread(key):
            self._suspects.setdefault(pack, {})
            looked.bad = why_unread(footers[0].tier, bad[footers[0].tier])
            return looked
        other = self._copies.other(key) if len(bad) == len(footers) else "another one is good"
        for name, why in bad.items():
            self._problems.bad_copy(pack, name, why, other)
        return looked

    def look_behind(
        self, pack: bytes, looked: Looked, parts: Iterable[tuple[Part, list[ChunkPlace]]]
    ) -> bool:
        """Follow what layouts have in an unfit pack; return whether some of it is lost.

        Parts of layouts tell less than whole layouts, so more may seem lost here than is.
        """
        lost: NotFound | Damaged | BackendError | None = None
        for place, table in ((place, part.table) for part, own in parts for place in own):
            lost = self._problems.ways.lost(place, table) or lost
            if lost is not None and not isinstance(lost, Archived):
                break
        if isinstance(lost, Archived):  # moved, and archived there
            looked.archived = True
        elif isinstance(lost, BackendError):  # it may be in a tier that cannot be asked
            self._copies.now(keys.pack_key(pack))
            if not self._copies.down:
                self._problems.unsure(pack, f"what it was moved to cannot be read: {lost}")
        elif lost is not None:
            self._problems.lost(pack, looked.bad or lost, is_gone=looked.gone)
            return True
        return False


def why_unread(tier: str, error: object) -> str:
    """Say why the only copy of a pack is not good."""
    if isinstance(error, BackendError):
        return f"its copy in tier {tier} cannot be read: {error}"
    return str(error)
