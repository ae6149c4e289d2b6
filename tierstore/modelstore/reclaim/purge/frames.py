"""Where frames of purged chunks lie: every pack is looked into, of every tier (SPEC.md 10.3).

Of a pack whose footer cannot be read, as it is damaged or in an archive, index segments say which
chunks it holds. Of one that no segment names nobody knows whether it has purged frames.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

from tierstore.blobs.base import BlobInfo
from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import INDEX, pack_key, pack_of
from tierstore.format.segments import parse_any_segment
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.home.footers import read_all_chunks
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.holdings import Holdings

_log = logging.getLogger("tierstore.purge")


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a chunk that may be purged, or a delta on one; ``bases`` are those that may be."""

    place: ChunkPlace
    bases: tuple[bytes, ...]

    def is_purged(self, gone: Set[bytes]) -> bool:
        """Return whether it is of one of these chunks, or a delta on one."""
        return self.place.digest in gone or not gone.isdisjoint(self.bases)


class Frames:
    """The frames of some chunks in all packs, each of which is read once.

    Args:
        home: The store's home.

    Attributes:
        unknown: The packs of which nothing says what they hold.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self.unknown: set[bytes] = set()
        self._digests: Set[bytes] = frozenset()
        self._read: dict[bytes, tuple[Frame, ...]] = {}
        self._said: dict[bytes, tuple[Frame, ...]] = {}

    def look(self, holdings: Holdings, digests: Set[bytes]) -> None:
        """Look into the packs of all tiers for frames of these chunks, and deltas on them."""
        if not digests <= self._digests:  # what was left out of packs may be wanted now
            self._read.clear()
            self._digests = self._digests | digests
        infos = [
            BlobInfo(pack_key(pack), max(holdings.bytes_of(pack).values()), 0.0)
            for pack in sorted(holdings.every() - self._read.keys())
        ]
        unread = set[bytes]()
        for info, table in read_all_chunks(self._home.packs, infos):
            pack = pack_of(info.key)
            assert pack is not None  # it is the key that was made of it
            if table is None:
                unread.add(pack)
            else:
                self._read[pack] = tuple(self._frames(table))
        self._said = self._in_segments(unread) if unread else {}
        self.unknown = unread - self._said.keys()

    def _in_segments(self, unread: Set[bytes]) -> dict[bytes, tuple[Frame, ...]]:
        """Return what index segments say of packs; it is asked again, as footers may come back."""
        found = dict[bytes, list[Frame]]()
        for info in self._home.blobs.list(INDEX):
            try:
                data = self._home.blobs.get(info.key)
                table = parse_any_segment(data, f"index segment {info.key}").table
            except (Damaged, NotFound, UnsupportedFormat) as error:
                _log.warning("%s", error)
                continue
            for pack in unread & {bytes(one) for one in table.pack_ids}:
                found.setdefault(pack, [])
            for frame in self._frames(table):
                if frame.place.pack in unread:
                    found[frame.place.pack].append(frame)
        return {pack: tuple(frames) for pack, frames in found.items()}

    def _frames(self, table: ChunkTable) -> Iterator[Frame]:
        digests = self._digests
        if digests.isdisjoint(table.digests) and digests.isdisjoint(table.bases):
            return
        for place in table:
            bases = tuple(base for base in place.bases if base in digests)
            if place.digest in digests or bases:
                yield Frame(place, bases)

    def every(self) -> Iterator[tuple[bytes, Frame]]:
        """Yield all frames that were found, each with its pack."""
        for found in (self._read, self._said):
            for pack, frames in found.items():
                for frame in frames:
                    yield pack, frame

    def with_purged(self, gone: Set[bytes]) -> set[bytes]:
        """Return the packs that have a frame of one of these chunks, or a delta on one."""
        return {pack for pack, frame in self.every() if frame.is_purged(gone)}

    def on(self, gone: Set[bytes]) -> set[bytes]:
        """Return the chunks that lie as deltas on one of these, and are none of them."""
        return {f.place.digest for _, f in self.every() if not gone.isdisjoint(f.bases)} - gone

    def deltas(self, gone: Set[bytes]) -> Iterable[ChunkPlace]:
        """Yield the deltas of these chunks, and on them."""
        for _, frame in self.every():
            if frame.place.bases and frame.is_purged(gone):
                yield frame.place

    def sizes(self) -> dict[bytes, int]:
        """Return the bytes of the chunks that were found, by digest."""
        return {frame.place.digest: frame.place.plain_bytes for _, frame in self.every()}
