"""Repairs what leads to the chunks of versions: manifests, layouts, folds, moves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format import keys
from tierstore.format.checks import damaged
from tierstore.format.layout import missing_chunks, parse_fold, parse_layout, parse_move
from tierstore.format.manifest import parse_manifest
from tierstore.format.sealed import Kind
from tierstore.format.table import ChunkPlace
from tierstore.ids import Digest
from tierstore.modelstore.chunks.writemove import seal_move
from tierstore.modelstore.home.chain import unfolded
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.modelstore.home.relayout import PackScan, write_layouts
from tierstore.modelstore.reclaim.holdings import Holdings
from tierstore.modelstore.reclaim.repair.objects import Broken, Objects, digest_in
from tierstore.modelstore.reclaim.repair.report import HitVersion, Outcome
from tierstore.modelstore.reclaim.repair.users import Users
from tierstore.modelstore.reclaim.repair.wanted import read_tables
from tierstore.shown import counted

_Unread = (Damaged, NotFound, UnsupportedFormat)
_MISSING = "it is missing"


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
            done = "no other object says what is in it; saving that content again writes it anew"
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
        needed = {keys.layout_key(digest): digest for digest in self._users}
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
                    self._report.add("left", keys.layout_key(digest), reason, str(error))
                return
            for digest in sorted(bad):
                self._layout(scan, digest, bad[digest])

    def _layout(self, scan: PackScan, digest: Digest, why: str) -> None:
        key = keys.layout_key(digest)
        try:
            made = scan.layout(digest, self._home.manifest(digest))
            unfit = [] if self._report.dry_run else write_layouts(self._home, [made])
        except (Damaged, UnsupportedFormat):
            self._report.add("lost", key, why, "its manifest is lost, too")
            return
        except NotFound as error:  # of a chunk, or of the manifest itself
            if digest in self._users.removed:  # it was collected
                return
            self._report.add("lost", key, why, str(error))
            return
        except BackendError as error:  # a tier that may have it cannot be asked, or home written
            self._report.add("left", key, why, str(error))
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

        by_pack: dict[bytes, list[Broken]] = {}
        for one in list(self._objects.broken(Kind.MOVE, packs, parse)):
            by_pack.setdefault(packs[one.key], []).append(one)
        if not by_pack:
            return
        wanted = self._chunks_of(by_pack.keys())
        unfit = self._home.condemned.among(self._every) | self._home.quarantine.packs()
        into = self._packs_with(wanted)
        below = self._bases_below(wanted, into)
        for pack, moves in by_pack.items():
            sealed = seal_move(self._home, pack, into[pack] | below[pack], unfit)
            outcome: Outcome = "repaired"
            note = f"it leads to {counted(len(into[pack]), 'pack')} with chunks of it"
            if wanted[pack] and not into[pack] and not self._holdings.is_there(pack):
                outcome, note = "lost", "no pack has chunks of it any more"
            for one in moves:
                self._objects.put(one.key, sealed, one.why, "written anew", note, outcome)

    def _chunks_of(self, packs: Collection[bytes]) -> dict[bytes, set[bytes]]:
        """Return the chunks that these packs hold or held, as far as layouts and footers tell."""
        found: dict[bytes, set[bytes]] = {pack: set() for pack in packs}
        for _, table in read_tables(self._home, self._users):
            for place in table if not found.keys().isdisjoint(table.pack_ids) else ():
                if place.pack in found:
                    found[place.pack].update([place.digest, *place.bases])
        for pack in packs:
            found[pack] |= self._held(pack)
        return found

    def _held(self, pack: bytes) -> set[bytes]:
        return {place.digest for place in self._places(pack)}

    def _places(self, pack: bytes) -> list[ChunkPlace]:
        """Return the places of the frames in a pack; none where it cannot be looked into."""
        if not self._holdings.is_readable(pack):
            return []
        key = keys.pack_key(pack)
        try:
            return read_footer(self._home.packs, key, self._home.packs.info(key).size)[1]
        except (*_Unread, BackendError):
            return []

    def _packs_with(self, wanted: Mapping[bytes, set[bytes]]) -> dict[bytes, set[bytes]]:
        """Return, for each pack, the others that hold chunks of it."""
        into: dict[bytes, set[bytes]] = {pack: set() for pack in wanted}
        for other in self._every:
            held = self._held(other)
            for pack, chunks in wanted.items():
                if pack != other and not chunks.isdisjoint(held):
                    into[pack].add(other)
        return into

    def _bases_below(
        self, wanted: Mapping[bytes, set[bytes]], into: Mapping[bytes, set[bytes]]
    ) -> dict[bytes, set[bytes]]:
        """Return, for each pack, those that hold bases of the deltas to which its move leads.

        The layouts that lead to the pack need not have a place for these.
        """
        bases = {
            pack: {
                base
                for other in packs
                for place in self._places(other)
                if place.digest in wanted[pack]
                for base in place.bases
            }
            for pack, packs in into.items()
        }
        below: dict[bytes, set[bytes]] = {pack: set() for pack in into}
        for other in self._every if any(bases.values()) else ():
            standalone = {place.digest for place in self._places(other) if not place.bases}
            for pack, needed in bases.items():
                if pack != other and not needed.isdisjoint(standalone):
                    below[pack].add(other)
        return below
