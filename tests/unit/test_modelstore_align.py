"""Rows that moved are found wherever they went, and spans always cover the chunk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.modelstore.saving import align
from tierstore.modelstore.saving.align import RowIndex, RowLayout, clamped, looks_moved, spans_of

Array = npt.NDArray[np.uint8]
CHUNK = 1 << 16


def weights(rows: int, width: int, seed: int = 0) -> Array:
    """Rows of ``width`` f32 weights, as bytes."""
    values = np.random.default_rng(seed).standard_normal((rows, width), np.float32)
    return values.view(np.uint8).reshape(rows, 4 * width)


def aligned(
    new: Array, old: Array, rows: RowLayout, limit: int = 256, chunk: int = CHUNK
) -> tuple[Array, int]:
    """The bytes of ``old`` that stand for those of ``new``, and the most spans of a chunk."""
    index = RowIndex([(0, rows.keys(old.reshape(-1).data))], len(old))
    whole, base = new.reshape(-1).data, old.reshape(-1)
    out, most = [], 0
    for begin in range(0, len(whole), chunk):
        plain = whole[begin : begin + chunk]
        first, last = -(-begin // rows.row_bytes), (begin + len(plain)) // rows.row_bytes
        part = plain[first * rows.row_bytes - begin : last * rows.row_bytes - begin]
        anchors = index.anchors(rows.keys(part), first)
        if not len(anchors[0]):
            out.append(np.zeros(len(plain), np.uint8))
            continue
        spans = spans_of(anchors, rows, begin, len(plain), len(base), limit)
        assert sum(span.plain_bytes for span in spans) == len(plain)
        assert all(s.start >= 0 and s.start + s.plain_bytes <= len(base) for s in spans)
        out += [base[span.start : span.start + span.plain_bytes] for span in spans]
        most = max(most, len(spans))
    return np.concatenate(out).reshape(new.shape), most


def equal_rows(a: Array, b: Array) -> int:
    return int((a == b).all(1).sum())


@given(
    edits=st.lists(
        st.tuples(st.sampled_from("idc"), st.integers(0, 2999), st.integers(1, 40)), max_size=6
    ),
    width=st.sampled_from([16, 24, 100]),
)
def test_every_row_that_is_in_the_base_is_found(
    edits: list[tuple[str, int, int]], width: int
) -> None:
    """But for rows beside an edit, which may fall to the neighbour's move, and short leftovers."""
    old = weights(3000, width)
    new, fresh = old, weights(500, width, 1)
    for kind, at, count in edits:
        if kind == "i":
            new = np.concatenate([new[:at], fresh[:count], new[at:]])
            fresh = fresh[count:]
        elif kind == "d":
            new = np.delete(new, slice(at, at + count), 0)
        else:
            new = new.copy()
            new[at : at + count] = fresh[:count][: len(new[at : at + count])]
            fresh = fresh[count:]
    found, _ = aligned(new, old, RowLayout(4 * width, 4, "F32"))
    known = {row.tobytes() for row in old}
    shared = sum(row.tobytes() in known for row in new)
    # a chunk's first and last rows are cut; a run shorter than 256 bytes is not worth a piece
    chunks = -(-new.size // CHUNK)
    assert equal_rows(found, new) >= shared - 2 * chunks - 8 * len(edits)


def test_rows_that_training_changed_a_little_are_found_after_an_insertion() -> None:
    old = weights(3000, 64)
    values = old.view(np.float32)
    noise = 0.01 * np.random.default_rng(1).standard_normal(values.shape, np.float32)
    tuned = (values * (1 + noise)).view(np.uint8).reshape(old.shape)
    new = np.concatenate([tuned[:100], weights(1, 64, 5), tuned[100:]])
    found, most = aligned(new, old, RowLayout(256, 4, "F32"))
    expected = np.concatenate([old[:100], old[100:101], old[100:]])
    assert equal_rows(found, expected) >= len(new) - 4
    assert most <= 3


@pytest.mark.parametrize("dtype", ["F32", "I32"])
def test_rows_of_one_word_are_known_by_those_that_follow(dtype: str) -> None:
    old = weights(50_000, 1)
    new = np.concatenate([old[:20_000], weights(3, 1, 7), old[20_000:]])
    rows = RowLayout(4, 4, dtype)
    assert rows.window == align.KEY_WORDS
    found, _ = aligned(new, old, rows)
    assert equal_rows(found, new) >= len(new) - 30


def test_of_a_tall_tensor_a_sample_of_the_rows_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "MAX_ANCHORS", 1 << 9)
    old = weights(4096, 32)
    new = np.concatenate([weights(2, 32, 3), old])
    rows = RowLayout(128, 4, "F32")
    index = RowIndex([(0, rows.keys(old.reshape(-1).data))], len(old))
    kept, _ = index.anchors(rows.keys(old.reshape(-1).data), 0)
    assert 0 < len(kept) < 1 << 10
    found, _ = aligned(new, old, rows)
    assert equal_rows(found, new) >= len(new) - 4


def test_equal_rows_follow_their_neighbours() -> None:
    """Rows that occur often say nothing themselves: unused rows of an embedding are all alike."""
    old = weights(3000, 64)
    old[500:2000] = 0
    new = np.concatenate([old[:100], weights(1, 64, 5), old[100:]])
    found, most = aligned(new, old, RowLayout(256, 4, "F32"))
    assert equal_rows(found, new) >= len(new) - 2
    assert most <= 3


def test_a_shuffled_tensor_takes_no_more_spans_than_the_limit() -> None:
    old = weights(4000, 64)
    new = old[np.random.default_rng(3).permutation(4000)]
    _, most = aligned(new, old, RowLayout(256, 4, "F32"), limit=20)
    assert 1 <= most <= 20 + 2  # spans that reach past the base are cut in two


def test_nothing_in_common_gives_no_anchors() -> None:
    rows = RowLayout(256, 4, "F32")
    index = RowIndex([(0, rows.keys(weights(1000, 64).reshape(-1).data))], 1000)
    targets, bases = index.anchors(rows.keys(weights(1000, 64, 1).reshape(-1).data), 0)
    assert len(targets) == len(bases) == 0
    empty = RowIndex([], 0)
    assert len(empty.anchors(rows.keys(weights(10, 64).reshape(-1).data), 0)[0]) == 0


@given(st.integers(-300, 300), st.integers(1, 300), st.integers(1, 100))
def test_clamped_spans_cover_the_length(start: int, length: int, base_bytes: int) -> None:
    spans = clamped(start, length, base_bytes)
    assert sum(span.plain_bytes for span in spans) == length
    assert all(s.start >= 0 and 0 < s.plain_bytes <= base_bytes - s.start for s in spans)
    inside = range(max(start, 0), min(start + length, base_bytes))
    if inside:
        assert any((s.start, s.plain_bytes) == (inside.start, len(inside)) for s in spans)


@pytest.mark.parametrize("at", [0, 1, 500, 990])
def test_a_moved_part_of_a_chunk_is_noticed(at: int) -> None:
    old = weights(1000, 64)
    new = np.concatenate([old[:at], weights(1, 64, 2), old[at:]])[:1000]
    rows = RowLayout(256, 4, "F32")
    assert looks_moved(rows, new.reshape(-1).data, old.reshape(-1).data)


@pytest.mark.parametrize("noise", [0, 1e-4, 1e-2, 0.1])
def test_trained_weights_are_not_taken_for_moved_ones(noise: float) -> None:
    old = weights(1000, 64)
    values = old.view(np.float32)
    step = noise * np.random.default_rng(1).standard_normal(values.shape, np.float32)
    new = memoryview((values * (1 + step)).tobytes())
    assert not looks_moved(RowLayout(256, 4, "F32"), new, old.reshape(-1).data)


@pytest.mark.parametrize("size", [4, 100, 1 << 12])
def test_constants_do_not_look_moved(size: int) -> None:
    plain = memoryview(bytes(size))
    assert not looks_moved(RowLayout(4, 4, "F32"), plain, plain)
