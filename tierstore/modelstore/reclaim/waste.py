"""Waste in packs that stay: frames that nothing needs (SPEC.md 10.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import blake3

from tierstore.deferred import np
from tierstore.errors import Damaged, NotFound
from tierstore.format.pack import TRAILER_BYTES
from tierstore.format.table import PACK_HEADER_BYTES, ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.reclaim.mark import Mark
from tierstore.modelstore.reclaim.ways import Ways

if TYPE_CHECKING:
    import numpy.typing as npt

_LOOK_INTO = 0.01
"""The share of a pack that may be waste from which on its index is read to find out."""

_ROWS = 1 << 22


@dataclass(frozen=True, slots=True)
class PackWaste:
    """How much of a pack is waste.

    Attributes:
        pack: The id of the pack.
        bytes: The length of the pack.
        share: The share of the bytes of its frames that nothing needs.
    """

    pack: bytes
    bytes: int
    share: float

    @property
    def waste_bytes(self) -> int:
        """The bytes that a pack without the waste would not have, in one tier."""
        return round(self.bytes * self.share)


class NeededFrames:
    """The frames that are needed of some packs.

    Args:
        packs: The ids of these packs.
    """

    def __init__(self, packs: Iterable[bytes]) -> None:
        self._numbers = {pack: number for number, pack in enumerate(packs)}
        # a row is a frame: where it ends, with its pack's number above, and where it begins
        self._ends: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._begins: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._new: list[npt.NDArray[np.int64]] = []
        self._rows = 0

    def add_table(self, table: ChunkTable) -> None:
        """All frames of a layout are needed."""
        packs, begins, ends = table.spans()
        numbers = [self._numbers.get(pack, -1) for pack in table.pack_ids]
        self._add(np.array(numbers, np.int64)[packs], begins, ends)

    def add(self, places: Sequence[ChunkPlace]) -> None:
        """These frames are needed."""
        rows = [
            (self._numbers.get(one.pack, -1), one.offset - one.proof_bytes, _end(one))
            for one in places
        ]
        if rows:
            self._add(*np.array(rows, np.int64).T)

    def _add(
        self,
        numbers: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
    ) -> None:
        known = numbers >= 0
        self._new.append(np.stack([numbers[known] << 32 | ends[known], begins[known]]))
        self._rows += int(known.sum())
        if self._rows >= _ROWS:
            self._merge()

    def _merge(self) -> None:
        """Count every frame once: a proof and its chunk begin at one place, and end at two."""
        ends = np.concatenate([self._ends, *(new[0] for new in self._new)])
        begins = np.concatenate([self._begins, *(new[1] for new in self._new)])
        self._ends, first = np.unique(ends, return_index=True)
        self._begins = begins[first]
        self._new, self._rows = [], 0

    def bytes_by_pack(self) -> dict[bytes, int]:
        """Return the bytes that are needed of each pack."""
        self._merge()
        lengths = (self._ends & 0xFFFFFFFF) - self._begins
        count = len(self._numbers)
        found = np.bincount(self._ends >> 32, weights=lengths, minlength=count)
        return dict(zip(self._numbers, found.astype(np.int64).tolist(), strict=True))

    def among(self, pack: bytes, places: Iterable[ChunkPlace]) -> list[ChunkPlace]:
        """Return those of the frames of a pack that are needed.

        Args:
            pack: The id of the pack.
            places: The places of its frames, by its own index.
        """
        if self._new:
            self._merge()
        number = self._numbers[pack]
        low, high = np.searchsorted(self._ends, [number << 32, (number + 1) << 32])
        ends = set((self._ends[low:high] & 0xFFFFFFFF).tolist())
        return [place for place in places if _end(place) in ends]


def needed_frames(
    mark: Mark, packs: Collection[bytes], below: Iterable[Digest] = ()
) -> NeededFrames:
    """Return which frames of these packs are needed by what stays.

    Args:
        mark: What stays.
        packs: The ids of the packs.
        below: Further manifests of which the frames are needed.

    Raises:
        Damaged, NotFound: A layout that stays cannot be read.
    """
    needed = NeededFrames(packs)
    for digest in (*mark.kept, *below):
        for part in mark.needs.frames(digest):
            if isinstance(part, ChunkTable):
                needed.add_table(part)
            else:
                needed.add(part)
    return needed


def fingerprint(mark: Mark) -> bytes:
    """Return a digest of what waste depends on: as long as it is the same, so is the waste."""
    digest = blake3.blake3()
    kept = [one.raw for one in mark.kept]
    for ids in (kept, mark.live, mark.held, mark.holdings.every(), mark.condemned.packs):
        digest.update(b"".join(sorted(ids)) + bytes(32))
    for tier in mark.holdings.packs.tiers:
        digest.update(f"{tier.name} {tier.spec.state}\n".encode())
    return digest.digest()


def find_waste(mark: Mark, ways: Ways, needed: NeededFrames) -> list[PackWaste]:
    """Return the waste of the packs of ``needed``, the greatest share first.

    A pack of which too little may be waste to matter is not looked into, and one of which the index
    cannot be read has none that could be got rid of.
    """
    found = []
    for pack, needed_bytes in needed.bytes_by_pack().items():
        size = max(mark.holdings.bytes_of(pack).values())
        share = 1 - needed_bytes / (size - PACK_HEADER_BYTES - TRAILER_BYTES)
        if share > _LOOK_INTO:  # its index, too
            try:
                ends = ways.footer(pack).spans()[2]
                share = 1 - needed_bytes / (int(ends.max()) - PACK_HEADER_BYTES)
            except (Damaged, NotFound):
                share = 0.0
        found.append(PackWaste(pack, size, share))
    return sorted(found, key=lambda one: (-one.share, one.pack))


def _end(place: ChunkPlace) -> int:
    return place.offset + place.frame_bytes
