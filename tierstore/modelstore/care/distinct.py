"""The distinct chunks of many layouts, in 46 bytes each: a store may have ten million of them."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tierstore.codecs import DELTA
from tierstore.deferred import np
from tierstore.format.table import ChunkTable
from tierstore.ids import split_digests

if TYPE_CHECKING:
    import numpy.typing as npt

    _Rows = npt.NDArray[np.void]

_BUCKETS = 16
"""Rows are kept by the first four bits of the digest, so that only a part is sorted at a time."""
_AT_ONCE = 1 << 18
"""Rows that are collected before they are sorted in, at least; a quarter of what is kept, if more:
so each row is sorted a few times, however many there are.
"""


@dataclass(slots=True)
class Sums:
    """What distinct chunks add up to.

    Attributes:
        chunks: Number of the chunks that versions have themselves; the others are bases of deltas.
        plain_bytes: Plain bytes of those.
        frame_bytes: Bytes of the frames of all.
        codec_saved: Plain bytes minus frame bytes of the versions' chunks, but for deltas.
        delta_saved: The same of deltas, less the frames of bases.
        packs: The ids of the packs in which they lie.
    """

    chunks: int = 0
    plain_bytes: int = 0
    frame_bytes: int = 0
    codec_saved: int = 0
    delta_saved: int = 0
    packs: set[bytes] = field(default_factory=set)


class DistinctChunks:
    """Collects the chunks of layouts, each in the place where it was seen first."""

    def __init__(self) -> None:
        self._packs: dict[bytes, int] = {}
        self._kept: list[_Rows] = [_rows(0) for _ in range(_BUCKETS)]
        self._new: list[_Rows] = []
        self._new_rows, self._most_new = 0, _AT_ONCE

    def add(self, table: ChunkTable, own: Set[bytes]) -> None:
        """Take in a layout.

        Args:
            table: The layout.
            own: The digests of those chunks that the manifest has itself.
        """
        found = _rows(len(table))
        numbers = [self._packs.setdefault(pack, len(self._packs)) for pack in table.pack_ids]
        packs, frames, plains, codecs = table.sizes()
        digests = table.digests_by_row()
        found["digest"] = np.frombuffer(digests, "V32")
        found["pack"] = np.array(numbers, "<u4")[packs] if numbers else packs
        found["frame"], found["plain"] = frames, plains
        found["delta"] = codecs == DELTA
        found["own"] = [digest in own for digest in split_digests(digests)]
        self._new.append(found)
        self._new_rows += len(found)
        if self._new_rows >= self._most_new:
            self._sort_in()

    def _sort_in(self) -> None:
        new = np.concatenate([_rows(0), *self._new])
        self._new, self._new_rows = [], 0
        buckets = new["digest"].copy().view("u1")[::32] // (256 // _BUCKETS)
        for number, kept in enumerate(self._kept):
            self._kept[number] = _distinct(np.concatenate([kept, new[buckets == number]]))
        self._most_new = max(_AT_ONCE, sum(map(len, self._kept)) // 4)

    def sums(self) -> Sums:
        """Add up what was collected."""
        self._sort_in()
        sums, used = Sums(), np.zeros(len(self._packs), np.bool_)
        for rows in self._kept:
            own, plain = rows["own"], rows["plain"].astype(np.int64)
            frame = rows["frame"].astype(np.int64)
            saved = np.where(own, plain, 0) - frame
            by_delta = rows["delta"] | ~own
            sums.chunks += int(own.sum())
            sums.plain_bytes += int(plain[own].sum())
            sums.frame_bytes += int(frame.sum())
            sums.codec_saved += int(saved[~by_delta].sum())
            sums.delta_saved += int(saved[by_delta].sum())
            used[rows["pack"]] = True
        sums.packs = {pack for pack, number in self._packs.items() if used[number]}
        return sums


def _rows(count: int) -> _Rows:
    columns: Any = [
        ("digest", "V32"), ("pack", "<u4"), ("frame", "<u4"), ("plain", "<u4"), ("delta", "?"),
        ("own", "?"),
    ]  # fmt: skip
    return np.zeros(count, columns)


def _distinct(rows: _Rows) -> _Rows:
    """Return the first row of each digest, by digest; own is what any of them has."""
    order = np.argsort(rows["digest"], kind="stable")
    rows = rows[order]
    first = np.ones(len(rows), np.bool_)
    first[1:] = rows["digest"][1:] != rows["digest"][:-1]
    starts = np.flatnonzero(first)
    found = rows[starts]
    if len(starts):
        found["own"] = np.logical_or.reduceat(rows["own"], starts)
    return found
