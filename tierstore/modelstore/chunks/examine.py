"""Reads every durable copy of a pack again, and marks the pack when none of them is good."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.storeconfig import check_features
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.modelstore.chunks.copies import read_copies
from tierstore.modelstore.chunks.decode import FrameDecoder
from tierstore.modelstore.chunks.pool import ReadPool
from tierstore.modelstore.home.home import Home
from tierstore.tiers.durable.packcheck import check_frames, places_in
from tierstore.tiers.hot.tiers import HotTiers

_log = logging.getLogger("tierstore.quarantine")
_MEMORY_BYTES = 64 << 20

Suspects = Mapping[ChunkPlace, ChunkTable]
"""Frames that could not be read, each with a layout that has its bases."""


@dataclass(slots=True)
class Examined:
    """The result of reading every copy of a pack.

    Attributes:
        good: Whether a tier has a good copy.
        bad: What is wrong with the copies that are damaged, by the name of the tier.
        chunks: Digests of the chunks in the pack, as far as a copy tells.
        deltas: Digests of those that are deltas; that they give their chunks is not seen here.
    """

    good: bool = False
    bad: dict[str, str] = field(default_factory=dict)
    chunks: set[bytes] = field(default_factory=set)
    deltas: set[bytes] = field(default_factory=set)

    @property
    def unfit(self) -> bool:
        """Whether every copy that could be asked for is damaged."""
        return bool(self.bad) and not self.good


def examine(home: Home, pack: bytes, suspects: Suspects | None = None) -> Examined:
    """Read the copy of a pack in every durable tier that can be asked, until one is good.

    Args:
        home: The store's home.
        pack: Id of the pack.
        suspects: Frames of it that are decoded as well if they are deltas; others always are.
    """
    found = Examined()

    def check(key: str, data: memoryview) -> None:
        _check_copy(home, key, data, suspects or {}, found)

    copies = read_copies(home, pack, check, until_good=True)
    found.good = copies.good is not None
    found.bad = {
        one.tier.name: str(one.why) for one in copies.every if isinstance(one.why, Damaged)
    }
    return found


def quarantine(
    home: Home, pack: bytes, suspects: Suspects | None = None, known: Iterable[bytes] = ()
) -> Examined:
    """Mark a pack if every copy of it that can be asked for is damaged, having read them.

    Args:
        home: The store's home.
        pack: Id of the pack.
        suspects: Frames of it that could not be read.
        known: Digests of chunks that layouts place in it.

    Raises:
        BackendError: Home did not take the mark.
        UnsupportedFormat: The store needs a newer tierstore to be written to.
    """
    found = examine(home, pack, suspects)
    if found.unfit:
        check_features(home.config, "write", home.blobs.url)
        why = next(iter(found.bad.values()))
        home.quarantine.mark(pack, {*found.chunks, *known}, tiers=list(found.bad), why=why)
        _log.info("pack %s is quarantined: saves do not reuse it: %s", pack.hex(), why)
    return found


def _check_copy(
    home: Home, key: str, data: memoryview, suspects: Suspects, found: Examined
) -> None:
    """Check a copy: its index, every standalone chunk, and the deltas that are suspected."""
    places = places_in(key, data)
    found.chunks.update(place.digest for place in places)
    found.deltas.update(place.digest for place in places if place.bases)
    check_frames(key, data, places)
    for place, table in suspects.items():
        if place.bases:
            _check_delta(home, place, table, data)


def _check_delta(home: Home, place: ChunkPlace, table: ChunkTable, data: memoryview) -> None:
    pool = ReadPool(home.blobs, home.packs, table, threads=1, memory_limit_bytes=_MEMORY_BYTES)
    decoder = FrameDecoder(pool, table, len(place.bases), HotTiers())
    out = memoryview(bytearray(place.plain_bytes))
    try:
        for base in place.bases:
            decoder.base_chunk(base)
    except (Damaged, NotFound, BackendError, UnsupportedFormat):
        return  # what is wrong is not here
    decoder.decode(place, data[place.offset : place.offset + place.frame_bytes], out)
