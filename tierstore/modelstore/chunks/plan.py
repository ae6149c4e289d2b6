"""Plans which byte ranges to read for what is wanted: pure, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tierstore.deferred import np
from tierstore.format.table import ChunkPlace

if TYPE_CHECKING:
    import numpy.typing as npt

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Run:
    """One contiguous read: bytes ``[start, stop)`` of a pack, holding the frames ``items``.

    ``items`` are indexes into the places that were planned.
    """

    pack: bytes
    start: int
    stop: int
    items: tuple[int, ...]


def plan_runs(
    places: Sequence[ChunkPlace], *, max_gap_bytes: int, max_run_bytes: int, tail_bytes: int = 0
) -> list[Run]:
    """Coalesce frames into runs: few requests, without reading much in vain.

    Frames of one pack at most ``max_gap_bytes`` apart are read together, up to ``max_run_bytes``; a
    longer frame is a run of its own. A frame that is wanted twice is read once. Runs come in the
    order in which their first frame was asked for.

    Args:
        places: Places of the wanted frames.
        max_gap_bytes: Bytes between two frames that may be read in vain to save a request.
        max_run_bytes: Longest run, in bytes.
        tail_bytes: This many bytes at the end, but at most a quarter of all, are read in runs a
            quarter as long. Threads that share a link finish together, and what each fetched last
            is decoded while the link is idle; shorter runs keep that short.
    """
    rank: dict[bytes, int] = {}
    for place in places:
        rank.setdefault(place.pack, len(rank))
    order = sorted(range(len(places)), key=lambda i: (rank[places[i].pack], places[i].offset))
    runs: list[Run] = []
    group: list[int] = []
    start = stop = 0
    left_bytes = sum(place.frame_bytes for place in places)
    tail_bytes, limit_bytes = min(tail_bytes, left_bytes // 4), max_run_bytes
    for index in order:
        place = places[index]
        end = place.offset + place.frame_bytes
        if group and (
            place.pack != places[group[0]].pack
            or place.offset - stop > max_gap_bytes
            or (end > stop and end - start > limit_bytes)
        ):
            runs.append(Run(places[group[0]].pack, start, stop, tuple(group)))
            group = []
        if not group:
            start = stop = place.offset
            limit_bytes = max_run_bytes if left_bytes > tail_bytes else max_run_bytes // 4
        group.append(index)
        left_bytes -= place.frame_bytes
        stop = max(stop, end)
    if group:
        runs.append(Run(places[group[0]].pack, start, stop, tuple(group)))
    return sorted(runs, key=lambda run: min(run.items))


def batches(
    items: Iterable[_T], bytes_of: Callable[[_T], int], limit_bytes: int
) -> Iterator[list[_T]]:
    """Yield neighbouring items in batches of at most ``limit_bytes``, or of one larger item."""
    batch: list[_T] = []
    batch_bytes = 0
    for item in items:
        if batch and batch_bytes + bytes_of(item) > limit_bytes:
            yield batch
            batch, batch_bytes = [], 0
        batch.append(item)
        batch_bytes += bytes_of(item)
    if batch:
        yield batch


def spans_of_rows(rows: npt.NDArray[np.int64], row_bytes: int) -> list[tuple[int, int]]:
    """Return the byte ranges ``[start, stop)`` that hold ``rows``, ascending, neighbours merged.

    Args:
        rows: Row numbers in any order; repeats are allowed.
        row_bytes: Bytes of one row.
    """
    if not len(rows) or not row_bytes:
        return []
    unique = np.unique(rows)
    breaks = np.flatnonzero(np.diff(unique) > 1)
    firsts = unique[np.concatenate(([0], breaks + 1))]
    lasts = unique[np.concatenate((breaks, [len(unique) - 1]))]
    return [
        (first * row_bytes, (last + 1) * row_bytes)
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
    ]


def blocks_of_spans(
    spans: Sequence[tuple[int, int]], begin: int, plain_bytes: int, block_bytes: int
) -> list[int]:
    """Return the numbers of the blocks of a chunk that hold bytes of ``spans``, ascending.

    Args:
        spans: Byte ranges of the tensor, ascending and disjoint.
        begin: Offset of the chunk in the tensor, in bytes.
        plain_bytes: Plain bytes of the chunk.
        block_bytes: Plain bytes of a block.
    """
    wanted: dict[int, None] = {}
    for start, stop in spans:
        first = max(start, begin) - begin
        last = min(stop, begin + plain_bytes) - begin
        if first < last:
            wanted.update(dict.fromkeys(range(first // block_bytes, (last - 1) // block_bytes + 1)))
    return list(wanted)
