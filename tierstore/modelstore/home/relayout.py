"""Layouts that are missing are made anew, from the packs' own footers (format/SPEC.md 8 and 11)."""

from __future__ import annotations

import logging
import sqlite3
import struct
from collections.abc import Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Self

from tierstore.errors import BackendError, Damaged, NotFound, TierstoreError, Unreachable
from tierstore.format.keys import layout_key
from tierstore.format.layout import seal_layout
from tierstore.format.manifest import Manifest
from tierstore.format.storeconfig import check_features
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest, split_digests
from tierstore.modelstore.home.clock import running_s
from tierstore.modelstore.home.confirm import gone_packs, lost_since
from tierstore.modelstore.home.footers import ListedPacks, list_packs, read_all_chunks
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.modelstore.home.leases import WriterLease
from tierstore.progress import Progress

MOST_PACKS = 1000
"""So many packs are looked into for a layout that is missing without being asked to."""

_SCHEMA = """
CREATE TABLE places (
    digest BLOB, rank INTEGER, pack INTEGER, place BLOB, bases BLOB, PRIMARY KEY (digest, rank)
) WITHOUT ROWID
"""
_PLACE = struct.Struct("<4IHB")
_SORTED_ROWS = 50_000
_DELTA, _LAST = 1, 2
_log = logging.getLogger("tierstore.packs")


@dataclass(frozen=True, slots=True)
class NewLayout:
    """A layout that was made anew.

    Attributes:
        manifest: The digest of the manifest.
        sealed: The layout as it is stored.
        sizes: The bytes of the packs that it names, by id.
    """

    manifest: Digest
    sealed: bytes
    sizes: dict[bytes, int]


class PackScan:
    """Where chunks lie, by the footers of packs. A context manager; not thread-safe.

    The places are kept in a file of SQLite that has no name and goes with this object, so that
    memory is bounded however many there are.

    Args:
        home: The store's home.

    Attributes:
        unread: The keys of packs whose footers could not be read; what is in them is not known.
        down: Why tiers could not be asked, by name; what they have is not known either.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._packs: list[tuple[bytes, int]] = []
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript(_SCHEMA)
        self.unread: list[str] = []
        self.down: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def read(self, listed: ListedPacks | None = None, progress: Progress | None = None) -> None:
        """Read the footers of packs; what is in a condemned or quarantined one stands back.

        Args:
            listed: The packs; ``None`` for all.
            progress: Called with the bytes of the packs that were looked into, and of all.

        Raises:
            BackendError: Home or every tier cannot be asked.
        """
        if listed is None:
            listed = list_packs(self._home.packs)
        every, self.down = listed.packs, listed.down
        last = self._home.condemned.known() | self._home.quarantine.packs()
        total, done, rows = sum(info.size for info in every), 0, list[tuple[object, ...]]()
        for info, table in read_all_chunks(self._home.packs, every):
            done += info.size
            if table is None:
                self.unread.append(info.key)
            else:
                rows += self._rows(table, last)
            if len(rows) >= _SORTED_ROWS:
                self._add(rows)
                rows = []
            if progress:
                progress(done, total)
        self._add(rows)

    def _rows(self, table: ChunkTable, last: Set[bytes]) -> Iterator[tuple[object, ...]]:
        (pack,), (size,) = table.pack_ids, table.pack_sizes
        number, back = len(self._packs), _LAST * (pack in last)
        self._packs.append((pack, size))
        for place in table:
            packed = _PLACE.pack(
                place.offset,
                place.frame_bytes,
                place.head_bytes,
                place.plain_bytes,
                place.proof_bytes,
                place.codec,
            )
            rank = back + _DELTA * bool(place.bases)
            yield place.digest, rank, number, packed, b"".join(place.bases)

    def _add(self, rows: list[tuple[object, ...]]) -> None:
        rows.sort()  # a tree takes in neighbours faster
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR IGNORE INTO places VALUES (?, ?, ?, ?, ?)", rows)
        self._db.execute("COMMIT")

    def layout(self, digest: Digest, manifest: Manifest) -> NewLayout:
        """Return the layout of a manifest, made anew; nothing is written.

        Raises:
            NotFound: A chunk of the manifest, or the base of a delta, is in no pack that was read.
            Unreachable: The same, but a tier that cannot be asked may have it.
        """
        places = {}
        for chunk in dict.fromkeys(chunks_of(manifest)):
            found = self._whole(chunk)
            if found is None:
                raise self._lacks(chunk, digest)
            places[chunk] = found
        for base in [base for place, _ in places.values() for base in place.bases]:
            if base not in places:
                alone = self._alone(base)
                assert alone is not None  # ``_whole`` has looked
                places[base] = alone
        sizes = {place.pack: size for place, size in places.values()}
        sealed = seal_layout(digest, [place for place, _ in places.values()], sizes)
        return NewLayout(digest, sealed, sizes)

    def _lacks(self, chunk: bytes, digest: Digest) -> NotFound | Unreachable:
        text = (
            f"chunk b3:{chunk.hex()} of version b3:{digest.hex} is in no pack of "
            f"{self._home.packs.url}"
        )
        if self.unread:
            text += f" that can be read; {len(self.unread)} cannot, the first is {self.unread[0]}"
        if self.down:
            why = "; ".join(f"tier {name} could not be asked: {e}" for name, e in self.down.items())
            return Unreachable(f"{text}, but it may exist: {why}")
        return NotFound(f"{text}; run 'tierstore repair', then save the model again")

    def _whole(self, chunk: bytes) -> tuple[ChunkPlace, int] | None:
        """Return the best place of a chunk whose bases are there."""
        for found in self._places(chunk):
            if all(self._alone(base) for base in found[0].bases):
                return found
        return None

    def _alone(self, chunk: bytes) -> tuple[ChunkPlace, int] | None:
        return next((one for one in self._places(chunk) if not one[0].bases), None)

    def _places(self, chunk: bytes) -> Iterator[tuple[ChunkPlace, int]]:
        query = "SELECT pack, place, bases FROM places WHERE digest = ? ORDER BY rank"
        with closing(self._db.execute(query, (chunk,))) as rows:
            for number, place, bases in rows:
                pack, size = self._packs[number]
                offset, frame_bytes, head_bytes, plain_bytes, proof_bytes, codec = _PLACE.unpack(
                    place
                )
                lengths = (offset, frame_bytes, head_bytes, plain_bytes)
                split = tuple(split_digests(bases))
                yield ChunkPlace(chunk, pack, *lengths, codec, split, proof_bytes), size


def write_layouts(home: Home, layouts: Sequence[NewLayout]) -> list[NewLayout]:
    """Write layouts that were missing or damaged, under a writer's lease; any other one is kept.

    Nothing relies on a pack that is condemned or gone because of this. Should one be condemned
    while this runs, then whoever collects sees the layout, or heals the manifest that has none
    before anything is deleted.

    Returns:
        Those whose packs are not all fit; they were not written.

    Raises:
        UnsupportedFormat: The store needs a newer version to be written to.
        BackendError: Home or a tier cannot be asked, or nothing may be written there.
    """
    check_features(home.config, "write", home.blobs.url)
    since_s = running_s()
    with WriterLease(home.blobs):
        gone = gone_packs(home, dict(chain.from_iterable(one.sizes.items() for one in layouts)))
        unfit = [one for one in layouts if not gone.isdisjoint(one.sizes)]
        over = set[bytes]()
        for one in layouts:
            if gone.isdisjoint(one.sizes) and _write(home, one):
                over |= one.sizes.keys()
        # another one may have been written over, and its packs condemned, while this was paused
        if over and lost_since(home, over, since_s):
            raise BackendError(
                f"packs of {home.packs.url} were given up while layouts were made anew; "
                "'tierstore gc' heals the versions that need them"
            )
    return unfit


def _write(home: Home, layout: NewLayout) -> bool:
    """Write a layout unless a whole one is there; return whether a damaged one was written over."""
    digest, key = layout.manifest, layout_key(layout.manifest)
    if home.blobs.put_if_absent(key, layout.sealed):
        return False
    try:
        home.layout_if_there(digest, home.manifest(digest))
    except (Damaged, NotFound) as error:
        _log.warning("%s; it is written anew", error)
        home.blobs.put(key, layout.sealed)
        return True
    return False


def made_anew(home: Home, lacking: Sequence[tuple[Digest, Manifest]]) -> list[NewLayout]:
    """Make layouts that are missing anew from the packs, if these are few, and write them.

    Raises:
        NotFound: A chunk is in no pack, or there are many packs.
    """
    what = f"layout {layout_key(lacking[0][0])} is missing from {home.blobs.url}"
    listed = list_packs(home.packs, MOST_PACKS)
    if len(listed.packs) > MOST_PACKS:
        raise NotFound(
            f"{what}, and the store has too many packs to look into all of them now; 'tierstore "
            "layout rebuild REF' makes the layouts of a version anew, and --all those of all"
        )
    with PackScan(home) as scan:
        scan.read(listed)
        made = [scan.layout(*pair) for pair in lacking]
    try:
        unfit = write_layouts(home, made)
        kept = "one of its packs is condemned; 'tierstore gc' heals it" if unfit else ""
    except TierstoreError as error:
        kept = f"{error}; 'tierstore layout rebuild REF' writes it"
    _log.warning(
        "%s; it was made anew from the footers of %d packs%s", what, len(listed.packs),
        f", and not written: {kept}" if kept else "",
    )  # fmt: skip
    return made
