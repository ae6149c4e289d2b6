"""Read plans against the dumbest possible model of what they must cover."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tierstore.format.table import ChunkPlace
from tierstore.modelstore.chunks.plan import batches, blocks_of_spans, plan_runs, spans_of_rows


def place(pack: int, offset: int, length: int) -> ChunkPlace:
    return ChunkPlace(bytes(32), bytes([pack]) * 32, offset, length, 88, length, 0)


@st.composite
def packs_of_frames(draw: st.DrawFn) -> list[ChunkPlace]:
    """Some frames of up to three packs, in any order, some wanted twice."""
    every = []
    for pack in range(draw(st.integers(1, 3))):
        at = 64
        for length, hole in draw(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30)))):
            every.append(place(pack, at, length))
            at += length + hole
    return draw(st.lists(st.sampled_from(every), max_size=30)) if every else []


@given(packs_of_frames(), st.integers(0, 20), st.integers(1, 100), st.integers(0, 400))
def test_runs_cover_what_is_wanted_once_and_keep_their_bounds(
    places: list[ChunkPlace], max_gap: int, max_run: int, tail: int
) -> None:
    runs = plan_runs(places, max_gap_bytes=max_gap, max_run_bytes=max_run, tail_bytes=tail)
    assert sorted(i for run in runs for i in run.items) == list(range(len(places)))
    for run in runs:
        own = [places[i] for i in run.items]
        assert {one.pack for one in own} == {run.pack}
        assert run.start == min(one.offset for one in own)
        assert run.stop == max(one.offset + one.frame_bytes for one in own)
        covered = sorted({(one.offset, one.offset + one.frame_bytes) for one in own})
        assert len(covered) == 1 or run.stop - run.start <= max_run
        for (_, stop), (start, _) in itertools.pairwise(covered):
            assert start - stop <= max_gap
    # no byte is read twice: a frame that is wanted twice is in one run
    ends = sorted((run.pack, run.start, run.stop) for run in runs)
    for (pack, _, stop), (after, start, _) in itertools.pairwise(ends):
        assert pack != after or stop <= start
    assert [min(run.items) for run in runs] == sorted(min(run.items) for run in runs)


@given(packs_of_frames())
def test_without_bounds_there_is_one_run_a_pack(places: list[ChunkPlace]) -> None:
    runs = plan_runs(places, max_gap_bytes=10**6, max_run_bytes=10**6)
    assert len(runs) == len({one.pack for one in places})


def test_the_last_runs_are_short() -> None:
    places = [place(1, 64 + 10 * at, 10) for at in range(64)]
    runs = plan_runs(places, max_gap_bytes=0, max_run_bytes=80, tail_bytes=120)
    assert [len(run.items) for run in runs] == [8] * 7 + [2] * 4
    runs = plan_runs(places, max_gap_bytes=0, max_run_bytes=80, tail_bytes=10**6)
    assert [len(run.items) for run in runs] == [8] * 6 + [2] * 8, "a quarter at most"


@given(st.lists(st.integers(0, 200)), st.integers(0, 9))
def test_spans_hold_exactly_the_rows(rows: list[int], row_bytes: int) -> None:
    spans = spans_of_rows(np.array(rows, np.int64), row_bytes)
    held = [byte for start, stop in spans for byte in range(start, stop)]
    wanted = {row * row_bytes + at for row in rows for at in range(row_bytes)}
    assert held == sorted(wanted)
    for (_, stop), (start, _) in itertools.pairwise(spans):
        assert stop < start, "neighbours are merged"


@given(
    st.lists(st.integers(0, 60), max_size=12),
    st.integers(0, 400),
    st.integers(1, 120),
    st.integers(1, 50),
)
def test_blocks_are_those_that_hold_a_wanted_byte(
    rows: list[int], begin: int, length: int, block: int
) -> None:
    spans = spans_of_rows(np.array(rows, np.int64), 7)
    wanted = {
        (byte - begin) // block
        for start, stop in spans
        for byte in range(start, stop)
        if begin <= byte < begin + length
    }
    assert blocks_of_spans(spans, begin, length, block) == sorted(wanted)


@given(st.lists(st.integers(0, 12)), st.integers(1, 20))
def test_batches_keep_the_order_and_the_limit(sizes: list[int], limit: int) -> None:
    found = list(batches(sizes, lambda size: size, limit))
    assert [size for batch in found for size in batch] == sizes
    assert all(batch and (len(batch) == 1 or sum(batch) <= limit) for batch in found)
    joined = [sum(a) + b[0] for a, b in itertools.pairwise(found)]
    assert all(size > limit for size in joined), "a batch ends only where the next does not fit"
