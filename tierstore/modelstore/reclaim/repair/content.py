"""Repairs what leads to the chunks of versions: manifests, layouts, folds, moves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format import keys
from tierstore.format.checks import damaged
from tierstore.format.layout import missing_chunks, parse_fold, parse_layout, parse_move
from tierstore.format.manifest import parse_manifest
from tierstore.format.sealed import Kind
from tierstore.ids import Digest
from tierstore.modelstore.care.check_findings import brief
from tierstore.modelstore.chunks.writemove import seal_move
from tierstore.modelstore.home.chain import unfolded
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.modelstore.home.relayout import PackScan, write_layouts
from tierstore.modelstore.home.reserve import with_reserve
from tierstore.modelstore.reclaim.holdings import Holdings
from tierstore.modelstore.reclaim.repair.footers import read_footers
from tierstore.modelstore.reclaim.repair.objects import Broken, Objects, digest_in
from tierstore.modelstore.reclaim.repair.report import HitVersion, Outcome
from tierstore.modelstore.reclaim.repair.users import Users
from tierstore.modelstore.reclaim.repair.wanted import read_tables
from tierstore.shown import counted

_Unread = (Damaged, NotFound, UnsupportedFormat)
_MISSING = "it is missing"
_MOST_NAMED = 5


def bad_manifests(objects: Objects, found: Iterable[str]) -> dict[Digest, str]:
    """Return why manifests cannot be read, after those with a bad envelope were mended."""

    def parse(key: str, data: memoryview) -> object:
        digest = digest_in(key, keys.VERSIONS)
        return None if digest is None else parse_manifest(data, digest, key)

    broken = objects.broken(Kind.MANIFEST, found, parse)
    named = ((digest_in(one.key, keys.VERSIONS), str(one.why)) for one in broken)
    return {digest: why for digest, why in named if digest is not None}


class ContentRepair:
    """Repairs the objects that lead to chunks.

    Args:
        home: The store's home.
        objects: Reads and writes them.
        users: The versions by the manifests that they need.
    """

    def __init__(self, home: Home, objects: Objects, users: Users) -> None:
        self._home, self._objects, self._users = home, objects, users
        self._report = objects.report
        self._lost: set[Digest] = set()

    def manifests(self, lost: Mapping[Digest, str], there: Collection[Digest]) -> list[HitVersion]:
        """Say which manifests are lost; return the versions that need these.

        Args:
            lost: Why manifests cannot be read.
            there: The manifests that were listed, before the versions were: one that is not among
                them is looked for, as it may have been saved since.
        """
        hits: list[HitVersion] = []
        for digest, names in self._users.items():
            key = keys.version_key(digest)
            why = lost.get(digest, "")
            if not why and (digest in there or self._objects.is_there(key)):
                continue
            if not why and digest in self._users.removed:  # its versions were given up
                continue
            why = why or _MISSING
            self._lost.add(digest)
            done = (
                f"{_every(names)}: no other object says what is in it; restore it from a copy of "
                "home, or save that content again; 'tierstore rm' removes what is given up"
            )
            self._report.add("lost", key, why, done)
            hits += [HitVersion(name, key) for name in names]
        return hits

    def layouts(self, found: Collection[str]) -> None:
        """Make damaged and missing layouts anew, from the footers of packs."""

        def parse(key: str, data: memoryview) -> object:
            digest = digest_in(key, keys.LAYOUTS)
            if digest is None:
                return None
            table = parse_layout(data, digest, key)
            with suppress(*_Unread):  # of a manifest that is lost nothing is known
                if missing := missing_chunks(table, chunks_of(self._home.manifest(digest))):
                    damaged(key, f"it has no place for {len(missing)} chunks")
            return table

        there = set(found)
        broken = self._objects.broken(Kind.LAYOUT, sorted(there), parse)
        why = {one.key: str(one.why) for one in broken}
        needed = {keys.layout_key(one): one for one in self._users if one not in self._lost}
        bad = {
            digest: why.get(key, _MISSING)
            for key, digest in needed.items()
            if key in why or key not in there
        }
        if not bad:
            return
        with PackScan(self._home) as scan:
            try:
                scan.read()
            except BackendError as error:  # what it may be made from cannot be looked into
                for digest, reason in sorted(bad.items()):
                    self._report.leave(keys.layout_key(digest), reason, "made anew", error)
                return
            for digest in sorted(bad):
                self._layout(scan, digest, bad[digest])

    def _layout(self, scan: PackScan, digest: Digest, why: str) -> None:
        key = keys.layout_key(digest)
        try:
            made = scan.layout(digest, self._home.manifest(digest))
            unfit = []
            if not self._report.dry_run:
                write = partial(write_layouts, self._home, [made])
                unfit = with_reserve(self._home.blobs, write)
        except (Damaged, UnsupportedFormat):
            self._report.add("lost", key, why, "its manifest is lost, too")
            return
        except NotFound as error:  # of a chunk, or of the manifest itself
            if digest in self._users.removed:  # it was collected
                return
            done = f"{brief(error)}; saving that content again heals it"
            self._report.add("lost", key, why, done)
            return
        except BackendError as error:  # a tier that may have it cannot be asked, or home written
            self._report.leave(key, why, "made anew", error)
            return
        if unfit:
            done = "its chunks are in condemned packs alone: 'tierstore gc' heals it"
            self._report.add("left", key, why, done)
            return
        done = self._report.did("made anew") + ": from the footers of the packs"
        self._report.add("repaired", key, why, done)

    def folds(self, found: Iterable[str]) -> None:
        """Delete damaged folds where what lies below them is there."""

        def parse(key: str, data: memoryview) -> object:
            digest = digest_in(key, keys.FOLDS)
            return None if digest is None else parse_fold(data, digest, key)

        for one in list(self._objects.broken(Kind.FOLD, found, parse)):
            digest = digest_in(one.key, keys.FOLDS)
            if digest is None:
                continue
            names = self._users.get(digest, [])
            try:
                unfolded(self._home, digest)
            except _Unread as error:
                done = f"what lies below is gone as well ({error}); which content it named is lost"
                self._report.add("lost" if names else "left", one.key, one.why, done)
                continue
            note = "the patches below say the same"
            if names and digest not in self._users.removed:
                note += f"; 'tierstore fold {names[0]}' writes it anew"
            self._objects.delete(one, note)


class MoveRepair:
    """Makes damaged moves anew, by where the chunks of their packs lie now.

    Args:
        home: The store's home.
        objects: Reads and writes them.
        holdings: Which packs are there.
        users: The versions by the manifests that they need.
    """

    def __init__(self, home: Home, objects: Objects, holdings: Holdings, users: Users) -> None:
        self._home, self._objects = home, objects
        self._holdings, self._users = holdings, users
        self._every = sorted(holdings.every())

    def run(self) -> None:
        """Make all of them anew."""
        listed = ((key, keys.moved_pack(key)) for key in self._objects.listed(keys.MOVES))
        packs = {key: pack for key, pack in listed if pack is not None}

        def parse(key: str, data: memoryview) -> object:
            return parse_move(data, packs[key], key)

        every: dict[bytes, _Lost] = {}
        for one in list(self._objects.broken(Kind.MOVE, packs, parse)):
            every.setdefault(packs[one.key], _Lost()).broken.append(one)
        if not every:
            return
        self._find_chunks(every)
        deltas = self._find_packs(every)
        if any(lost.bases for lost in every.values()):
            self._find_bases(every)
        unfit = self._home.condemned.among(self._every) | self._home.quarantine.packs()
        for pack, lost in every.items():
            sealed = seal_move(pack, lost.into | lost.below, unfit=unfit, deltas=deltas)
            outcome: Outcome = "repaired"
            note = f"it leads to {counted(len(lost.into), 'pack')} with chunks of it"
            if lost.chunks and not lost.into and not self._holdings.is_there(pack):
                outcome, note = "lost", "no pack has chunks of it any more"
            for one in lost.broken:
                self._objects.put(one.key, sealed, one.why, "written anew", note, outcome)

    def _find_chunks(self, every: Mapping[bytes, _Lost]) -> None:
        """Note the chunks that the packs hold or held, as far as layouts and footers tell."""
        for _, table in read_tables(self._home, self._users):
            for place in table if not every.keys().isdisjoint(table.pack_ids) else ():
                if place.pack in every:
                    every[place.pack].chunks.update([place.digest, *place.bases])
        for pack, table in read_footers(self._home, self._holdings, every):
            every[pack].chunks.update(table.digests)

    def _find_packs(self, every: Mapping[bytes, _Lost]) -> set[bytes]:
        """Note for each pack the others that hold chunks of it; return those that hold deltas."""
        deltas = set[bytes]()
        for other, table in read_footers(self._home, self._holdings, self._every):
            if table.bases:
                deltas.add(other)
            for pack, lost in every.items():
                if pack != other and (held := lost.chunks & table.digests):
                    lost.into.add(other)
                    places = map(table.find, held)
                    lost.bases.update(base for at in places if at is not None for base in at.bases)
        return deltas

    def _find_bases(self, every: Mapping[bytes, _Lost]) -> None:
        """Note for each pack those that hold bases of the deltas to which its move leads.

        The layouts that lead to the pack need not have a place for these.
        """
        for other, table in read_footers(self._home, self._holdings, self._every):
            for pack, lost in every.items():
                places = map(table.find, lost.bases & table.digests)
                if pack != other and any(at is not None and not at.bases for at in places):
                    lost.below.add(other)


def _every(names: Sequence[str]) -> str:
    """Return that versions are lost, some of them by name."""
    more = len(names) - _MOST_NAMED
    listed = ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{listed} {'is' if len(names) == 1 else 'are'} lost with it"


@dataclass(slots=True)
class _Lost:
    """What is known of a pack whose moves are damaged.

    Attributes:
        broken: The moves.
        chunks: The chunks that it holds or held.
        into: The other packs that hold chunks of it.
        bases: The bases of the deltas in these.
        below: The packs that hold these bases.
    """

    broken: list[Broken] = field(default_factory=list)
    chunks: set[bytes] = field(default_factory=set)
    into: set[bytes] = field(default_factory=set)
    bases: set[bytes] = field(default_factory=set)
    below: set[bytes] = field(default_factory=set)
