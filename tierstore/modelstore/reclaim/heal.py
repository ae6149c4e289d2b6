"""Heals what must stay before anything is deleted: by new packs and moves (SPEC.md 8, 10).

A layout that is there is left as it is; only a missing one is written. A chunk in a condemned pack
is copied as it is stored there, and a chunk whose pack is gone is looked for in all packs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import layout_key, pack_key
from tierstore.format.pack import PackBuilder
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.chunks.writemove import write_move
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import write_segment
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.home.relayout import PackScan
from tierstore.modelstore.reclaim.frames import read_frames
from tierstore.modelstore.reclaim.mark import Demand, Mark, Marker
from tierstore.modelstore.reclaim.needs import Lost, Need
from tierstore.modelstore.reclaim.roots import Root
from tierstore.modelstore.reclaim.unloadable import refuse

_LOST = "has lost chunks"
_log = logging.getLogger("tierstore.gc")


@dataclass(slots=True)
class _Plan:
    """What heals a store.

    Attributes:
        layouts: Layouts that are missing, sealed, by manifest.
        copies: The packs from whose moves a copy must be found, by source pack and chunk.
        leads: The packs to which moves are to lead, by the pack that they lead from.
        roots: For what a source pack is read, by its id.
        new: Where the copies lie, once they are made, and the bytes of their packs by id.
    """

    layouts: dict[Digest, bytes] = field(default_factory=dict)
    copies: dict[bytes, dict[bytes, set[bytes]]] = field(default_factory=dict)
    leads: dict[bytes, set[bytes]] = field(default_factory=dict)
    roots: dict[bytes, list[Root]] = field(default_factory=dict)
    new: tuple[list[ChunkPlace], dict[bytes, int]] = field(default_factory=lambda: ([], {}))

    def copy(self, source: bytes, digest: bytes, end: bytes) -> None:
        """Copy a chunk from a pack, with a move from where its way ends."""
        self.copies.setdefault(source, {}).setdefault(digest, set()).add(end)


class Healer:
    """Heals what one mark found to be lacking.

    Args:
        home: The store's home.
        marker: The marker that found it.
        mark: What it found.

    Attributes:
        left: Manifests of removed versions that cannot be brought back any more though their window
            is not over: it was shorter before, or they were lost already.
        spared: Manifests that are read by folds whose own manifests are condemned, as nothing else
            is left of them.
    """

    def __init__(self, home: Home, marker: Marker, mark: Mark) -> None:
        self._home, self._marker, self._mark = home, marker, mark
        self.left: set[Digest] = set()
        self.spared: set[Digest] = set()
        self._lost: dict[str, Damaged | NotFound] = {}
        self._found: dict[bytes, list[ChunkPlace]] | None = None
        self._footers: dict[bytes, ChunkTable] = {}
        self._scan: PackScan | None = None
        self._open = ExitStack()

    def find_left(self) -> None:
        """Find out what ``left`` is; nothing is written."""
        with ExitStack() as self._open:
            for demand in self._mark.lacking:
                if demand.root.digest not in self._mark.in_force:
                    self._plan_root(demand, _Plan())

    def heal(self) -> int:
        """Heal everything; return how many chunks and layouts that were.

        Raises:
            Damaged: Something is lost that is not removed. The message names the versions; some of
                the rest may have been healed.
            BackendError: A tier or home failed.
        """
        with ExitStack() as self._open:
            return self._heal()

    def _heal(self) -> int:
        plan = _Plan()
        for demand in self._mark.lacking:
            self._plan_root(demand, plan)
        refuse(self._lost, _LOST)
        if plan == _Plan():
            return 0
        with WriterLease(self._home.blobs) as lease:
            for digest, sealed in plan.layouts.items():
                self._home.blobs.put_if_absent(layout_key(digest), sealed)
            self._copy(plan, lease)
            lease.renew()
            for pack, into in plan.leads.items():
                write_move(self._home, pack, into)
            places, sizes = plan.new
            if places:
                write_segment(self._home.blobs, places, sizes)
        return len(plan.layouts) + sum(map(len, plan.copies.values())) + len(plan.leads)

    def _plan_root(self, demand: Demand, plan: _Plan) -> None:
        try:
            self._plan(demand, plan)
        except (Damaged, NotFound) as error:
            self._leave([demand.root], error)

    def _plan(self, demand: Demand, plan: _Plan) -> None:
        """Plan to heal the nearest fold that can be healed, or else what the version lies on."""
        for folded in demand.instead:
            try:
                self._plan_needs([folded], demand.root, plan)
            except (Damaged, NotFound):
                continue
            return
        try:
            self._plan_needs(demand.needs, demand.root, plan)
        except (Damaged, NotFound):
            if not any(folded.is_whole for folded in demand.last):
                raise
            self.spared.add(demand.root.digest)

    def _leave(self, roots: Iterable[Root], error: Damaged | NotFound) -> None:
        """Leave removed versions as they are which cannot be healed; all others are lost."""
        for root in roots:
            if root.digest in self._mark.in_force:
                self._lost[str(root)] = error
            else:
                _log.info("%s; it cannot be brought back any more: %s", root, error)
                self.left.add(root.digest)

    def _plan_needs(self, needs: Sequence[Need], root: Root, plan: _Plan) -> None:
        mine = _Plan()
        if root.digest not in self._mark.in_force:  # for what is removed no packs are searched
            for lost in _every_lost(needs):
                if not self._has(lost.pack, lost.digest):
                    raise NotFound(f"chunk b3:{lost.digest.hex()} is not in pack {lost.pack.hex()}")
        for need in needs:
            if not need.is_laid_out:
                mine.layouts[need.digest] = self._layout(need.digest)
            for lost in need.lost:
                self._plan_chunk(lost, mine)
        plan.layouts |= mine.layouts
        for pack, into in mine.leads.items():
            plan.leads.setdefault(pack, set()).update(into)
        for source, chunks in mine.copies.items():
            plan.roots.setdefault(source, []).append(root)
            for digest, ends in chunks.items():
                plan.copies.setdefault(source, {}).setdefault(digest, set()).update(ends)

    def _layout(self, digest: Digest) -> bytes:
        """Return a missing layout, made anew, sealed.

        Raises:
            NotFound: Chunks of it are in no pack.
            BackendError: They may be in one that cannot be read now.
        """
        manifest, scan = self._home.manifest(digest), self._scanned()
        try:
            return scan.layout(digest, manifest).sealed
        except NotFound:
            for key in scan.unread:
                with suppress(Damaged, NotFound, UnsupportedFormat):  # whoever reads it says that
                    read_footer(self._home.packs, key, self._home.packs.info(key).size)
            raise

    def _scanned(self) -> PackScan:
        """Return what is in all packs, whose footers are read once for all layouts."""
        if self._scan is None:
            self._scan = self._open.enter_context(PackScan(self._home))
            self._scan.read()
        return self._scan

    def _plan_chunk(self, lost: Lost, plan: _Plan) -> None:
        if lost.bases:
            bases = _Plan()
            try:
                for base in lost.bases:
                    self._plan_chunk(base, bases)
            except (Damaged, NotFound):
                pass
            else:
                for base in lost.bases:
                    self._plan_chunk(base, plan)
                return
        # a delta is of no use without its bases
        if not lost.bases and self._has(lost.pack, lost.digest):
            plan.copy(lost.pack, lost.digest, lost.pack)
        else:
            self._plan_from_any(lost, plan)

    def _has(self, pack: bytes, digest: bytes) -> bool:
        if not self._mark.holdings.is_readable(pack):
            return False
        return self._chunks_of(pack).find(digest) is not None

    def _chunks_of(self, pack: bytes) -> ChunkTable:
        """Return the chunks of a pack that one mark found lacking; it is read once for each."""
        if pack not in self._footers:
            self._footers[pack] = self._marker.ways.footer(pack)
        return self._footers[pack]

    def _plan_from_any(self, lost: Lost, plan: _Plan) -> None:
        places = [place for place in self._search(lost.digest) if place.pack != lost.pack]
        fit = [place for place in places if self._mark.needs.standing(place.pack) == "good"]
        for place in fit:
            if not place.bases:
                plan.leads.setdefault(lost.pack, set()).add(place.pack)
                return
        for place in sorted(places, key=lambda one: len(one.bases)):
            below = [self._standalone(base) for base in place.bases]
            if None not in below:  # a delta without its bases heals nothing
                for one in (place, *filter(None, below)):
                    plan.copy(one.pack, one.digest, lost.pack)
                return
        raise Damaged(f"chunk b3:{lost.digest.hex()} of pack {lost.pack.hex()} is in no other pack")

    def _standalone(self, digest: bytes) -> ChunkPlace | None:
        return next((one for one in self._search(digest) if not one.bases), None)

    def _search(self, digest: bytes) -> list[ChunkPlace]:
        """Return all places of a chunk that is lost, or is a base of a delta of one."""
        if self._found is None:
            self._found = {}
            wanted = {one.digest for one in _every_lost(_all_needs(self._mark))}
            self._find(wanted, self._found)
            places = [place for every in self._found.values() for place in every]
            bases = {base for place in places for base in place.bases} - self._found.keys()
            if bases:
                self._find(bases, self._found)
        return self._found[digest]

    def _find(self, wanted: Set[bytes], found: dict[bytes, list[ChunkPlace]]) -> None:
        """Note all places of chunks, by the footers of all packs, of which each is read once."""
        found |= {one: [] for one in wanted}
        for pack in sorted(self._mark.holdings.every()):
            for place in self._footer(pack):
                if place.digest in wanted:
                    found[place.digest].append(place)

    def _footer(self, pack: bytes) -> Iterable[ChunkPlace]:
        if not self._mark.holdings.is_readable(pack):
            return ()
        key = pack_key(pack)
        try:
            return read_footer(self._home.packs, key, self._home.packs.info(key).size)[1]
        except (Damaged, NotFound, UnsupportedFormat) as error:
            _log.warning("skipped: %s", error)  # what is wanted may lie elsewhere
            return ()

    def _copy(self, plan: _Plan, lease: WriterLease) -> None:
        """Copy frames into new packs, and note where the moves are to lead."""
        builder, ends = PackBuilder(), set[bytes]()
        for source, chunks in plan.copies.items():
            try:
                frames = self._frames(source, chunks)
            except (Damaged, NotFound) as error:
                self._leave(plan.roots[source], error)
                refuse(self._lost, _LOST)
                continue
            for place, data in frames:
                builder.copy(place, data)
                ends |= chunks[place.digest]
                if builder.full:
                    self._put(builder, ends, plan)
                    builder, ends = PackBuilder(), set()
            lease.keep()
        if len(builder):
            self._put(builder, ends, plan)

    def _put(self, builder: PackBuilder, ends: Iterable[bytes], plan: _Plan) -> None:
        pack, buffers, new = builder.close()
        self._home.packs.put(pack_key(pack), buffers)
        places, sizes = plan.new
        places += new
        sizes[pack] = sum(map(len, buffers))
        for end in ends:
            plan.leads.setdefault(end, set()).add(pack)

    def _frames(
        self, pack: bytes, chunks: Mapping[bytes, object]
    ) -> list[tuple[ChunkPlace, bytes]]:
        """Return frames with their proofs, verified, from any tier that has a good copy."""
        table = self._chunks_of(pack)
        places = [place for one in chunks if (place := table.find(one)) is not None]
        return read_frames(self._home.packs, pack, places)


def _all_needs(mark: Mark) -> Iterable[Need]:
    for demand in mark.lacking:
        yield from (*demand.needs, *demand.instead)


def _every_lost(needs: Iterable[Need]) -> Iterable[Lost]:
    for need in needs:
        for lost in need.lost:
            yield lost
            yield from lost.bases
