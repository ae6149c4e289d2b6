"""Makes the dedup index and layouts anew, after they were lost (SPEC.md sections 8 and 11)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from tierstore.blobs.base import BlobInfo
from tierstore.errors import (
    BackendError,
    Damaged,
    NotFound,
    TierstoreError,
    Unreachable,
    UnsupportedFormat,
)
from tierstore.format.keys import FOLDS, INDEX, LAYOUTS, MOVES, moved_pack, pack_key
from tierstore.format.layout import parse_layout, parse_move
from tierstore.format.manifest import patch_info
from tierstore.format.segments import Segment, parse_any_segment
from tierstore.format.storeconfig import check_features
from tierstore.format.table import ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.home.ahead import ahead
from tierstore.modelstore.home.chain import fold_of
from tierstore.modelstore.home.footers import list_packs, read_all_chunks
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.relayout import NewLayout, PackScan, write_layouts
from tierstore.modelstore.reclaim.holdings import read_holdings
from tierstore.modelstore.reclaim.indexmerge import Fitness, write_merged
from tierstore.modelstore.reclaim.roots import Root
from tierstore.progress import Progress

Source = Literal["layouts", "packs"]
_PENDING_ROWS = 1 << 18
_WRITTEN_AT_ONCE = 256
_log = logging.getLogger("tierstore.rebuild")


@dataclass(frozen=True, slots=True)
class RebuiltIndex:
    """What became of a dedup index.

    Attributes:
        chunks: How many chunks it knows.
        segments: The number of its segments, of at most 10^6 chunks each.
        replaced: How many segments there were before.
        stored_bytes: The bytes of the new segments.
        unread: Keys of what could not be read; chunks that nothing else names may be stored again.
        down: Why tiers could not be asked for their packs, by name.
    """

    chunks: int
    segments: int
    replaced: int
    stored_bytes: int
    unread: list[str]
    down: dict[str, str] = field(default_factory=dict)


def rebuild_index(
    home: Home, source: Source = "layouts", progress: Progress | None = None
) -> RebuiltIndex:
    """Make the dedup index anew, in few segments that lead to no pack that is condemned or gone.

    What the old segments hold is kept as far as it can be read. They are deleted once the new ones
    are there; what saves add meanwhile stays.

    Args:
        home: The store's home.
        source: ``layouts`` takes what all versions have, in few requests; ``packs`` reads the
            footers of all packs, as where layouts are missing.
        progress: Called with the bytes of the objects that were looked into, and of all.

    Raises:
        UnsupportedFormat: The store needs a newer version to be written to.
        BackendError: Home or a tier cannot be asked.
    """
    check_features(home.config, "write", home.blobs.url)
    old = list(home.blobs.list(INDEX))
    work = _Index(home)
    replaced = work.take_segments(old)
    if source == "packs":
        listed = list_packs(home.packs)
        work.down |= listed.down
        work.take_packs(listed.packs, progress)
    else:
        work.take_layouts(list(home.blobs.list(LAYOUTS)), progress)
        work.take_packs(work.moved_into(), None)
    table = work.finish()
    new = write_merged(home, table, replaces=frozenset())
    home.blobs.delete(replaced)
    return RebuiltIndex(
        chunks=len(table),
        segments=len(new),
        replaced=len(replaced),
        stored_bytes=sum(info.size for info in new),
        unread=work.unread,
        down=work.down,
    )


class _Index:
    """Collects the places of chunks; memory is in proportion to the different ones."""

    def __init__(self, home: Home) -> None:
        self._home = home
        holdings = read_holdings(home.packs)
        self.down = dict(holdings.down)
        self._fitness = Fitness(home, home.condemned.known(), holdings)
        self._tables: list[ChunkTable] = []
        self._pending = 0
        self.unread: list[str] = []

    def _take(self, table: ChunkTable) -> None:
        self._tables.append(table)
        self._pending += len(table)
        if self._pending >= max(_PENDING_ROWS, len(self._tables[0])):
            self._merge()

    def _merge(self) -> None:
        if self._tables:
            self._tables = [self._fitness.merge(self._tables)]
        self._pending = 0

    def finish(self) -> ChunkTable:
        """Return a row for each chunk."""
        self._merge()
        return self._tables[0] if self._tables else self._fitness.merge([])

    def take_segments(self, old: Iterable[BlobInfo]) -> list[str]:
        """Take what old segments hold; return the keys of those that can go."""

        def read(info: BlobInfo) -> Segment | TierstoreError:
            try:
                return parse_any_segment(self._home.blobs.get(info.key), info.key)
            except (Damaged, NotFound, UnsupportedFormat) as error:
                return error

        done = []
        for info, segment in ahead(read, old):
            if isinstance(segment, Segment):
                self._take(segment.table)
            elif isinstance(segment, UnsupportedFormat):
                _log.warning("left as it is: %s", segment)
                continue
            done.append(info.key)
        return done

    def take_layouts(self, layouts: Sequence[BlobInfo], progress: Progress | None) -> None:
        """Take what layouts place."""

        def read(info: BlobInfo) -> ChunkTable | None:
            try:
                digest = Digest.from_hex(info.key.removeprefix(LAYOUTS))
                return parse_layout(self._home.blobs.get(info.key), digest, f"layout {info.key}")
            except (Damaged, NotFound, UnsupportedFormat, ValueError) as error:
                _log.warning("skipped: %s", error)
                return None

        total, done = sum(info.size for info in layouts), 0
        for info, table in ahead(read, layouts):
            done += info.size
            if table is None:
                self.unread.append(info.key)
            else:
                self._take(table)
            if progress:
                progress(done, total)

    def take_packs(self, packs: Sequence[BlobInfo], progress: Progress | None) -> None:
        """Take what packs hold."""
        total, done = sum(info.size for info in packs), 0
        for info, table in read_all_chunks(self._home.packs, packs):
            done += info.size
            if table is None:
                self.unread.append(info.key)
            else:
                self._take(table)
            if progress:
                progress(done, total)

    def moved_into(self) -> list[BlobInfo]:
        """Return the packs to which moves lead: layouts need not name them."""
        found = dict[str, BlobInfo]()
        for key in sorted(pack_key(pack) for pack in self._into()):
            try:
                found[key] = self._home.packs.info(key)
            except NotFound:  # it was moved on, or lies in an archive
                continue
            except BackendError as error:
                _log.info("what %s has is not known: %s", key, error)
                self.unread.append(key)
        return list(found.values())

    def _into(self) -> set[bytes]:
        def read(info: BlobInfo) -> list[bytes]:
            pack = moved_pack(info.key)
            if pack is None:
                return []
            try:
                return parse_move(self._home.blobs.get(info.key), pack, info.key)
            except (Damaged, NotFound, UnsupportedFormat) as error:
                _log.warning("skipped: %s", error)
                return []

        moves = ahead(read, self._home.blobs.list(MOVES))
        return {pack for _, into in moves for pack in into}


@dataclass(frozen=True, slots=True)
class LostVersion:
    """A version that cannot be read, as no layout of it could be made anew.

    Attributes:
        needed_by: What needs it, such as ``ranker@3``.
        manifest: The digest of the manifest that has no layout.
        why: What is missing.
    """

    needed_by: str
    manifest: Digest
    why: str


@dataclass(slots=True)
class RebuiltLayouts:
    """What became of the layouts of versions.

    Attributes:
        whole: How many were there and whole.
        written: How many were written.
        lost: The versions of which one could not be made anew, and that nothing makes up for.
        unread: Keys of packs that could not be read.
        down: Why tiers could not be asked, by name: what is lost may lie there.
    """

    whole: int = 0
    written: int = 0
    lost: list[LostVersion] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    down: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Fact:
    """What is known of one manifest.

    Attributes:
        base: The manifest that it is a patch of.
        full: The manifest of its fold.
        why: Why it has no layout; ``None`` when it has one.
    """

    base: Digest | None = None
    full: Digest | None = None
    why: str | None = None


def rebuild_layouts(
    home: Home, roots: Sequence[Root], progress: Progress | None = None
) -> RebuiltLayouts:
    """Make the layouts anew that are missing or damaged, of manifests and all that they lie on.

    The footers of all packs are read once, if any layout is to be made. Memory is bounded, however
    many packs and layouts there are.

    Args:
        home: The store's home.
        roots: The manifests, each with what needs it.
        progress: Called with the bytes of the packs that were looked into, and of all.

    Raises:
        UnsupportedFormat: The store needs a newer version to be written to.
        BackendError: Home or a tier cannot be asked.
    """
    check_features(home.config, "write", home.blobs.url)
    facts = _facts(home, [root.digest for root in roots])
    lacking = [digest for digest, fact in facts.items() if fact.why is not None]
    done = RebuiltLayouts(whole=len(facts) - len(lacking))
    if lacking:
        with PackScan(home) as scan:
            scan.read(progress=progress)
            done.unread, done.down = scan.unread, scan.down
            for at in range(0, len(lacking), _WRITTEN_AT_ONCE):
                done.written += _rebuild(home, scan, lacking[at : at + _WRITTEN_AT_ONCE], facts)
    # what a removed version has lost may have been collected, whatever its window says
    named = {root.digest: root.why for root in reversed(roots) if root.kind != "window"}
    for digest, why in named.items():
        lost = _lost(digest, facts)
        if lost is not None:
            done.lost.insert(0, LostVersion(why, lost, facts[lost].why or ""))
    return done


def _facts(home: Home, roots: Iterable[Digest]) -> dict[Digest, _Fact]:
    """Look at manifests, and at all patches, folds and full manifests that they lie on."""
    folded = {info.key for info in home.blobs.list(FOLDS)}
    facts: dict[Digest, _Fact] = {}
    todo = set(roots)
    while todo:
        facts |= ahead(lambda digest: _look(home, digest, folded), todo)
        below = {one for digest in todo for one in (facts[digest].base, facts[digest].full)}
        todo = {one for one in below if one is not None} - facts.keys()
    return facts


def _look(home: Home, digest: Digest, folded: Set[str]) -> _Fact:
    fact = _Fact()
    try:
        manifest = home.manifest(digest)
        info = patch_info(manifest)
        if info is not None:
            fact.base = info.base
            fact.full = fold_of(home, digest) if FOLDS + digest.hex in folded else None
        if home.layout_if_there(digest, manifest) is None:
            fact.why = "it has no layout"
    except (Damaged, NotFound) as error:
        fact.why = str(error)
    return fact


def _rebuild(
    home: Home, scan: PackScan, manifests: Sequence[Digest], facts: dict[Digest, _Fact]
) -> int:
    """Write the layouts of manifests; note why others could not, and return how many were."""
    made = list[NewLayout]()
    for digest in manifests:
        try:
            made.append(scan.layout(digest, home.manifest(digest)))
        except (Damaged, NotFound, Unreachable, UnsupportedFormat) as error:
            facts[digest].why = str(error)
    unfit = write_layouts(home, made)
    for one in made:
        facts[one.manifest].why = None
    for one in unfit:
        facts[
            one.manifest
        ].why = "it can be found in condemned packs alone; 'tierstore gc' stores it anew"
    return len(made) - len(unfit)


def _lost(digest: Digest, facts: dict[Digest, _Fact]) -> Digest | None:
    """Return the first manifest without a layout that reading a version needs, if any."""
    while True:
        fact = facts[digest]
        if fact.full is not None and facts[fact.full].why is None:
            return None
        if fact.why is not None:
            return digest
        if fact.base is None:
            return None
        digest = fact.base
