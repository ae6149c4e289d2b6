"""What a check finds, and the versions that need it: damage is looked at twice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format import keys
from tierstore.format.layout import parse_layout
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.care.check_parts import NeededParts
from tierstore.modelstore.care.check_users import Named, Users
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.chunks.ways import FrameWays
from tierstore.modelstore.home.home import Home, chunks_of

_ADVICE = re.compile(r"; (run 'tierstore check'[^;]*|restore it from a copy)\Z")

Severity = Literal["damage", "garbage"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem that a check found.

    Attributes:
        severity: ``damage`` loses data or history; ``garbage`` only takes space.
        key: Key of the stored object.
        what: Description of the problem.
        needed_by: Versions that cannot be read in full because of it.
    """

    severity: Severity
    key: str
    what: str
    needed_by: tuple[str, ...] = ()


def without_advice(what: object) -> str:
    """Return what is wrong with an object without what to do about it: the report says that."""
    return _ADVICE.sub("", str(what))


@dataclass(slots=True)
class _Problem:
    """Damage in a pack.

    Attributes:
        pack: The id of the pack.
        what: Description of the problem.
        place: The place of the one chunk that is damaged; ``None`` for all of the pack.
        hits: Whether versions cannot be read because of it, and not one copy of several is bad.
        is_gone: Whether no tier has it, which is no damage to what is removed: it was collected.
        users: The versions that need it.
        is_spare: Whether versions have it in their chain, and are read without it: by a fold, or by
            what lies below one.
    """

    pack: bytes
    what: str
    place: ChunkPlace | None = None
    hits: bool = True
    is_gone: bool = False
    users: set[str] = field(default_factory=set)
    is_spare: bool = False

    def hit(self, named: Named, *, is_needed: bool) -> None:
        """Note versions that have it in their chain, and whether they cannot be read without it."""
        if is_needed:
            self.users.update(named.in_force if self.is_gone else named.every)
        elif not self.is_gone:  # what is gone was collected, as nothing needs it
            self.is_spare = True


class PackProblems:
    """The damage in packs that a check finds, until a second look says which versions need it.

    Args:
        home: The store's home.
        users: Which versions need which manifests.
        parts: What layouts need of packs.

    Attributes:
        unfit: The packs that no tier has, or only with a bad footer.
        reads_data: Whether frames are read; of what lies below a fold that is lost, and that no
            version needs by itself, none are, so that it does not stand in for the fold.
    """

    def __init__(self, home: Home, users: Users, parts: NeededParts) -> None:
        self._home, self._users, self._parts = home, users, parts
        self._found: list[_Problem] = []
        self.unfit: set[bytes] = set()
        self.reads_data = False
        self._looked_for: set[bytes] = set()

    def ways(self) -> FrameWays:
        """Return what follows frames, by the moves as they are now."""
        moves = Moves(self._home.blobs, self._home.packs)
        return FrameWays(moves, lambda place: place.pack not in self.unfit)

    def __len__(self) -> int:
        return len(self._found)

    def lost(
        self, pack: bytes, what: object, place: ChunkPlace | None = None, *, is_gone: bool
    ) -> None:
        """Note that a pack, or one chunk in it, cannot be read from any tier, or is in none."""
        self._found.append(_Problem(pack, without_advice(what), place, is_gone=is_gone))

    def bad_copy(self, pack: bytes, tiers: str, why: str, other: str) -> None:
        """Note a damaged copy; no version is affected as long as there is another one."""
        what = f"its copy in tier {tiers} is bad, {other}: {without_advice(why)}"
        self._found.append(_Problem(pack, what, hits=False))

    def unconfirmed(self) -> list[Finding]:
        """Return what was found as findings, without a second look."""
        return [Finding("damage", keys.pack_key(one.pack), one.what) for one in self._found]

    def look_again(self) -> list[Finding]:
        """Return as findings what is needed still, in the order in which it was found.

        Versions may have been removed meanwhile and their packs collected, or a layout written
        anew: what no version needs as of now is no damage.
        """
        by_pack: dict[bytes, list[_Problem]] = {}
        for problem in self._found:
            if problem.hits:
                by_pack.setdefault(problem.pack, []).append(problem)
        ways = self.ways()
        self._looked_for = set(self._parts.packs())
        hits: dict[Digest, list[_Problem] | None] = {}

        def hits_in(digest: Digest) -> list[_Problem] | None:
            if digest not in hits:
                hits[digest] = self._hits_in(digest, by_pack, ways)
            return hits[digest]

        named_in = self._parts.users([*by_pack])

        def is_lost(digest: Digest) -> bool:
            return hits_in(digest) != [] or (self.reads_data and digest not in looked_at)

        looked_at = {*self._users.each()}
        for named, near, because in self._users.hit(named_in, is_lost):
            for digest in near | because:
                for problem in hits_in(digest) or ():
                    problem.hit(named, is_needed=digest in because)
        return [
            Finding("damage", keys.pack_key(one.pack), one.what, tuple(sorted(one.users)))
            for one in self._found
            if one.users or one.is_spare or not one.hits
        ]

    def _hits_in(
        self, digest: Digest, by_pack: dict[bytes, list[_Problem]], ways: FrameWays
    ) -> list[_Problem] | None:
        """Return the problems that hit a manifest, by its layout as it is now.

        ``None`` if something else is wrong with it, so that it cannot be read.
        """
        key = keys.layout_key(digest)
        try:
            own = set(chunks_of(self._home.manifest(digest)))
            table = parse_layout(self._home.blobs.get(key), digest, key)
        except (Damaged, NotFound, UnsupportedFormat):  # it is what it was at the first look
            named = (pack for pack in by_pack if digest in self._parts.users([pack]))
            return [problem for pack in named for problem in by_pack[pack]] or None
        self._look_for({*table.pack_ids})
        lost = set[bytes]()
        for place in table.places_relying_on(self.unfit):
            # what was a base alone may be gone, where its deltas were stored anew since
            if place.digest in own and isinstance(ways.lost(place, table), NotFound | Damaged):
                lost |= {place.pack, *table.packs_of(place.bases)}
        found = [
            problem
            for pack in by_pack.keys() & set(table.pack_ids)
            for problem in by_pack[pack]
            if (pack in lost if problem.place is None else _is_there(table, problem.place))
        ]
        return found or (None if lost else [])

    def _look_for(self, packs: set[bytes]) -> None:
        """See whether those packs are there that no layout named at the first look."""
        new = packs - self._looked_for
        self._looked_for |= new
        for pack in new:
            try:
                self._home.packs.size(keys.pack_key(pack))
            except NotFound:
                self.unfit.add(pack)
            except BackendError:
                continue  # it may be there


def _is_there(table: ChunkTable, place: ChunkPlace) -> bool:
    return table.find(place.digest) == place
