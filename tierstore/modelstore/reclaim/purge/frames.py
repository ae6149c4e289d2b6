"""Where frames of purged chunks lie: every pack is looked into, of every tier (SPEC.md 10.3).

Of a pack whose footer cannot be read, as it is damaged or in an archive, index segments and layouts
say which chunks it holds. Each may name a part: of equal chunks in two packs those that were merged
or made anew name one. So what a pack holds is known only if what they name fills it up to its
footer; of any other nobody knows whether it has more purged frames.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from tierstore.blobs.base import BlobInfo
from tierstore.errors import Damaged, InvalidName, NotFound, UnsupportedFormat
from tierstore.format.keys import INDEX, LAYOUTS, pack_key, pack_of
from tierstore.format.layout import parse_layout
from tierstore.format.segments import parse_any_segment
from tierstore.format.table import PACK_HEADER_BYTES, ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.home.footers import read_all_chunks
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.reclaim.holdings import Holdings

_FOOTER_BYTES, _ROW_BYTES = 1024, 128
"""The most bytes of a footer with its trailer, and of each row in it."""

_log = logging.getLogger("tierstore.purge")


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a chunk that may be purged, or a delta on one; ``bases`` are those that may be."""

    place: ChunkPlace
    bases: tuple[bytes, ...]


def _is_full(places: Iterable[ChunkPlace], pack_bytes: int) -> bool:
    """Return whether these places fill a pack of so many bytes from its header to its footer."""
    at, rows = PACK_HEADER_BYTES, 0
    for place in sorted(places, key=lambda place: place.offset):
        if place.offset - place.proof_bytes > at:
            return False
        at, rows = max(at, place.offset + place.frame_bytes), rows + 1
    return rows > 0 and pack_bytes - at <= _FOOTER_BYTES + rows * _ROW_BYTES


class Frames:
    """The frames of some chunks in all packs, each of which is read once.

    Each look goes over the frames once, whoever asks for how many chunks afterwards: that costs
    what there is of these chunks alone.

    Args:
        home: The store's home.

    Attributes:
        unknown: The packs of which nothing says all that they hold.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self.unknown: set[bytes] = set()
        self._digests: Set[bytes] = frozenset()
        self._read: dict[bytes, tuple[Frame, ...]] = {}
        self._said: dict[bytes, tuple[Frame, ...]] = {}
        self._told: dict[bytes, tuple[Frame, ...]] = {}
        self._by_chunk: dict[bytes, list[tuple[bytes, Frame]]] = {}

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
        self._said, self.unknown = {}, unread
        if unread:
            self._ask_others({pack: max(holdings.bytes_of(pack).values()) for pack in unread})
        self._by_chunk = {}
        for pack, frame in self.every():
            for digest in (frame.place.digest, *frame.bases):
                if digest in self._digests:
                    self._by_chunk.setdefault(digest, []).append((pack, frame))

    def _ask_others(self, unread: Mapping[bytes, int]) -> None:
        """Note what index segments and layouts say of packs, which are given with their bytes.

        It is asked each time, as footers may come back.
        """
        said: dict[bytes, dict[ChunkPlace, Frame | None]] = {pack: {} for pack in unread}
        for table in self._tables():
            if said.keys().isdisjoint(bytes(one) for one in table.pack_ids):
                continue
            for place in table:
                if place.pack in said:
                    said[place.pack][place] = next(self._of([place]), None)
        # what was said before of one that nothing names now is said still
        self._told |= {
            pack: tuple({*self._told.get(pack, ()), *filter(None, places.values())})
            for pack, places in said.items()
        }
        self._said = {pack: self._told[pack] for pack in unread}
        self.unknown = {pack for pack, places in said.items() if not _is_full(places, unread[pack])}

    def _tables(self) -> Iterator[ChunkTable]:
        """Yield what index segments and layouts say, as far as they can be read."""
        for prefix in (INDEX, LAYOUTS):
            for info in self._home.blobs.list(prefix):
                try:
                    data = self._home.blobs.get(info.key)
                    if prefix == INDEX:
                        yield parse_any_segment(data, f"index segment {info.key}").table
                    else:
                        digest = Digest.from_hex(info.key.removeprefix(prefix))
                        yield parse_layout(data, digest, f"layout {info.key}")
                except (Damaged, NotFound, UnsupportedFormat, InvalidName) as error:
                    _log.info("%s", error)

    def _frames(self, table: ChunkTable) -> Iterator[Frame]:
        digests = self._digests
        if not (digests.isdisjoint(table.digests) and digests.isdisjoint(table.bases)):
            yield from self._of(table)

    def _of(self, places: Iterable[ChunkPlace]) -> Iterator[Frame]:
        for place in places:
            bases = tuple(base for base in place.bases if base in self._digests)
            if place.digest in self._digests or bases:
                yield Frame(place, bases)

    def every(self) -> Iterator[tuple[bytes, Frame]]:
        """Yield all frames that were found, each with its pack."""
        for found in (self._read, self._said):
            for pack, frames in found.items():
                for frame in frames:
                    yield pack, frame

    def _on_or_of(self, digests: Iterable[bytes]) -> Iterator[tuple[bytes, bytes, Frame]]:
        """Yield the frames of these chunks and deltas on them, each with its chunk and pack."""
        for digest in digests:
            for pack, frame in self._by_chunk.get(digest, ()):
                yield digest, pack, frame

    def with_purged(self, gone: Set[bytes]) -> set[bytes]:
        """Return the packs that have a frame of one of these chunks, or a delta on one."""
        return {pack for _, pack, _ in self._on_or_of(gone)}

    def on(self, gone: Set[bytes]) -> set[bytes]:
        """Return the chunks that lie as deltas on one of these, and are none of them."""
        return {frame.place.digest for _, _, frame in self._on_or_of(gone)} - gone

    def deltas(self, gone: Set[bytes]) -> Iterator[ChunkPlace]:
        """Yield the deltas of these chunks, and on them; one that is both comes twice."""
        return (frame.place for _, _, frame in self._on_or_of(gone) if frame.place.bases)

    def plain_bytes(self, digests: Set[bytes]) -> int:
        """Return the plain bytes of these chunks, of those that were found."""
        own = ((d, frame.place) for d, _, frame in self._on_or_of(digests))
        return sum({d: place.plain_bytes for d, place in own if place.digest == d}.values())
