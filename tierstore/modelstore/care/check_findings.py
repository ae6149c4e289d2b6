"""What a check finds, and the versions that need it: damage is looked at twice."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from tierstore.errors import BackendError, NotFound, TierstoreError
from tierstore.format import keys
from tierstore.format.table import ChunkPlace
from tierstore.ids import Digest
from tierstore.modelstore.care.check_parts import NeededParts
from tierstore.modelstore.care.check_users import Named, Users
from tierstore.modelstore.chunks.findlost import LostChunks, NeededChunks
from tierstore.modelstore.chunks.frameways import FrameWays
from tierstore.modelstore.chunks.moves import Moves
from tierstore.modelstore.home.ahead import parallel
from tierstore.modelstore.home.home import Home

_NAME = re.compile(r"\A.{,300}? is damaged: ")
_ADVICE = re.compile(r"; (run 'tierstore (?:check|repair)'[^;]*|restore it from a copy)\Z")
_AT_ONCE = 8
"""Layouts that are read and kept at a time: one may have 60 MB."""

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


def brief(what: object, key: str = "") -> str:
    """Return what is wrong with an object, without its name and what to do about it.

    Args:
        what: The error, or its message.
        key: The key of the object: another one's name stays.
    """
    text = _ADVICE.sub("", str(what))
    name = _NAME.match(text)
    return text[name.end() :] if name and key in name[0] else text


@dataclass(slots=True)
class _Problem:
    """Damage in a pack, or of a manifest or layout.

    Attributes:
        key: The key of the object.
        what: Description of the problem.
        pack: The id of the pack; ``None`` for a manifest or layout.
        place: The place of the one chunk that is damaged; ``None`` for all of the object.
        hits: Whether versions cannot be read because of it, and not one copy of several is bad.
        is_gone: Whether it is missing, which is no damage to what is removed: it was collected.
        users: The versions that need it.
        is_spare: Whether versions have it in their chain, and are read without it: by a fold, or by
            what lies below one.
    """

    key: str
    what: str
    pack: bytes | None = None
    place: ChunkPlace | None = None
    hits: bool = True
    is_gone: bool = False
    users: set[str] = field(default_factory=set)
    is_spare: bool = False

    def hit(self, named: Named, *, is_needed: bool) -> None:
        """Note versions that have it in their chain, and whether they cannot be read without it."""
        if is_needed:
            self.users.update(named.in_force if self.is_gone else named.every)
        elif not self.is_gone or (self.pack is None and named.in_force):
            self.is_spare = True  # a pack that is gone was collected, as nothing needs it


_ByManifest: TypeAlias = dict[Digest, list[_Problem]]


class Problems:
    """The damage that a check finds, until a second look says which versions need it.

    Args:
        home: The store's home.
        users: Which versions need which manifests.
        parts: What layouts need of packs.

    Attributes:
        unfit: The packs that no tier has, or only with a bad footer.
        hides_packs: Whether a manifest or layout that cannot be read is no damage, as those who had
            it are removed: nobody knows then which packs it needs.
    """

    def __init__(self, home: Home, users: Users, parts: NeededParts) -> None:
        self._home, self._users, self._parts = home, users, parts
        self._found: dict[tuple[str, str, ChunkPlace | None], _Problem] = {}
        self._of_home: _ByManifest = {}
        self.unfit: set[bytes] = set()
        self._bad: set[ChunkPlace] = set()
        self.hides_packs = False

    @cached_property
    def ways(self) -> FrameWays:
        """What follows frames, by the moves as they were at the first look."""
        moves = Moves(self._home.blobs, self._home.packs)
        return FrameWays(moves, lambda place: place.pack not in self.unfit)

    def __len__(self) -> int:
        return len(self._found)

    def _note(self, problem: _Problem) -> _Problem:
        return self._found.setdefault((problem.key, problem.what, problem.place), problem)

    def unread(self, key: str, error: TierstoreError, manifest: Digest) -> None:
        """Note that a manifest, or the layout of one, cannot be read."""
        what = brief(error, key)
        problem = _Problem(key, what, is_gone=isinstance(error, NotFound))
        self._of_home.setdefault(manifest, []).append(self._note(problem))

    def lost(
        self, pack: bytes, what: object, way: Sequence[ChunkPlace] = (), *, is_gone: bool
    ) -> None:
        """Note that a pack, or one chunk in it, cannot be read from any tier, or is in none.

        Args:
            pack: The id of the pack.
            what: Why.
            way: The place of the chunk, and those to which moves lead; empty for all of the pack.
            is_gone: Whether it is in none.
        """
        key = keys.pack_key(pack)
        place = way[0] if way else None
        self._note(_Problem(key, brief(what, key), pack, place, is_gone=is_gone))
        self._bad.update(way)

    def bad_copy(self, pack: bytes, tiers: str, why: object, other: str) -> None:
        """Note a damaged copy; no version is affected as long as there is another one."""
        is_bad = "cannot be read" if isinstance(why, BackendError) else "is bad"
        said = brief(why, keys.pack_key(pack))
        self.unsure(pack, f"its copy in tier {tiers} {is_bad}, {other}: {said}")

    def unsure(self, pack: bytes, what: str) -> None:
        """Note what is wrong with a pack where nobody can say now that anything is lost."""
        self._note(_Problem(keys.pack_key(pack), what, pack, hits=False))

    def unconfirmed(self) -> list[Finding]:
        """Return what was found as findings, without a second look."""
        return [Finding("damage", one.key, one.what) for one in self._found.values()]

    def stand_ins(self, looked_at: Set[Digest]) -> set[Digest]:
        """Return the manifests that are read in the place of folds with losses, but for those.

        They lie below the folds, and no version needs them by itself.
        """
        hits = self._hits()
        folds = hits.manifests & self._users.folds
        found: set[Digest] = set()

        def is_lost(digest: Digest) -> bool:
            if digest not in looked_at:
                found.add(digest)
                return False
            return hits.of(digest) != []

        for _ in self._users.hit(folds, is_lost):
            pass
        return found

    def look_again(self) -> list[Finding]:
        """Return as findings what is needed still, in the order in which it was found first.

        Versions may have been removed meanwhile and their packs collected, or a layout written
        anew: what no version needs as of now is no damage.
        """
        hits = self._hits()
        hits.read_all()
        for named, near, because in self._users.hit(
            hits.manifests, lambda digest: hits.of(digest) != []
        ):
            for digest in near | because:
                for problem in hits.of(digest) or ():
                    problem.hit(named, is_needed=digest in because)
        found: dict[tuple[str, str], set[str]] = {}
        for one in self._found.values():
            if one.users or one.is_spare or not one.hits:  # of many chunks the same may be said
                found.setdefault((one.key, one.what), set()).update(one.users)
            elif one.pack is None:
                self.hides_packs = True
        return [
            Finding("damage", key, what, tuple(sorted(users)))
            for (key, what), users in found.items()
        ]

    def _hits(self) -> _Hits:
        hitting = [one for one in self._found.values() if one.hits]
        known = self._parts.packs() if hitting else ()
        lost = LostChunks(self._home, self.unfit, known, self._bad)
        return _Hits(lost, self._parts, hitting, self._of_home)


class _Hits:
    """Which problems hit a manifest, by its layout as it is now; each is looked at once.

    Args:
        lost: Finds out what readers do not find.
        parts: What layouts need of packs, at the first look.
        found: The problems.
        of_home: Those of manifests and layouts, by the manifest.
    """

    def __init__(
        self,
        lost: LostChunks,
        parts: NeededParts,
        found: Sequence[_Problem],
        of_home: _ByManifest,
    ) -> None:
        self._lost = lost
        self._by_pack: dict[bytes, list[_Problem]] = {}
        for problem in found:
            if problem.pack is not None:
                self._by_pack.setdefault(problem.pack, []).append(problem)
        self._at_first: _ByManifest = {digest: [*those] for digest, those in of_home.items()}
        for pack, problems in self._by_pack.items():
            for digest in parts.users([pack]):
                self._at_first.setdefault(digest, []).extend(problems)
        self._known: dict[Digest, list[_Problem] | None] = {}

    @property
    def manifests(self) -> set[Digest]:
        """The manifests that problems may hit."""
        return {*self._at_first}

    def of(self, digest: Digest) -> list[_Problem] | None:
        """Return the problems that hit a manifest.

        ``None`` if something else is wrong with it, so that it cannot be read.
        """
        if digest not in self._known:
            self._known[digest] = self._find(digest, self._lost.read(digest))
        return self._known[digest]

    def read_all(self) -> None:
        """Look at all manifests that problems may hit, some at a time."""
        left = [digest for digest in self._at_first if digest not in self._known]
        for at in range(0, len(left), _AT_ONCE):
            some = left[at : at + _AT_ONCE]
            for digest, read in zip(some, parallel(self._lost.read, some), strict=True):
                self._known[digest] = self._find(digest, read)

    def _find(self, digest: Digest, needed: NeededChunks | None) -> list[_Problem] | None:
        if needed is None:  # it is what it was at the first look
            return self._at_first.get(digest) or None
        table, lost = self._lost.find(needed)
        packs = {pack for one in lost for pack in (one.pack, *table.packs_of(one.bases))}
        chunks = {chunk for one in lost for chunk in (one.digest, *one.bases)}
        found = [
            problem
            for pack in self._by_pack.keys() & set(table.pack_ids)
            for problem in self._by_pack[pack]
            if (
                pack in packs
                if problem.place is None
                else problem.place.digest in chunks
                and table.find(problem.place.digest) == problem.place
            )
        ]
        return found or (None if lost else [])
