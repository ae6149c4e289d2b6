"""Finds the rows that two versions of a tensor share, wherever they moved: pure numpy, no I/O.

Chunks are cut at fixed offsets, so one inserted row moves every later byte. Here every row gets a
key; a key that occurs once on both sides is an anchor, which tells by how many rows the content
moved there. Rows between anchors are taken to have moved as their neighbours did.

A key hashes some words of the row, of floats only sign and exponent, so that a row that training
changed a little still keeps its key. It is a hint: a wrong one makes a worse base, never a wrong
result. Rows of few words are keyed together with those that follow them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from tierstore.deferred import np

if TYPE_CHECKING:
    import numpy.typing as npt

    _U64 = npt.NDArray[np.uint64]
    _I64 = npt.NDArray[np.int64]

KEY_WORDS = 16
"""Words that make a key: 16 signs and exponents of real weights have about 48 bits of entropy."""
MAX_ANCHORS = 1 << 20
"""Keys kept of a tensor; with more rows, those of small hash are kept, on both sides alike."""
_LEAST_RUN = 256
"""Least bytes of a run of moved rows: its piece takes 40 in the frame and 32 in tables."""

_SAMPLES, _SAMPLE_WORDS = 64, 256

_EXPONENTS = {
    "F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "C64": 0x7F80 << 16, "BF16": 0x7F80, "F16": 0x7C00,
    "F8_E4M3": 0x78, "F8_E5M2": 0x7C, "F8_E4M3FNUZ": 0x78, "F8_E5M2FNUZ": 0x7C,
}  # fmt: skip


@cache
def _coefficients() -> _U64:
    """Return the odd coefficients of the multiply-shift hash, as (2, ``KEY_WORDS``)."""
    random = np.random.default_rng(0x7135)
    return random.integers(1 << 63, (1 << 64) - 1, (2, KEY_WORDS), np.uint64) | np.uint64(1)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How the bytes of a tensor divide into rows and words.

    Attributes:
        row_bytes: Bytes of a row, a multiple of ``word``.
        word: Bytes of one word: 1, 2, 4 or 8.
        dtype: Safetensors dtype.
    """

    row_bytes: int
    word: int
    dtype: str

    @property
    def window(self) -> int:
        """Number of rows that make a row's key: the row itself and those that follow it."""
        return -(-KEY_WORDS // (self.row_bytes // self.word))

    def masked(self, data: memoryview) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return the words of ``data``; of floats only their signs and exponents."""
        words: npt.NDArray[Any] = np.frombuffer(
            data[: len(data) // self.word * self.word], f"<u{self.word}"
        )
        exponent = _EXPONENTS.get(self.dtype)
        if exponent is None:
            return words
        masked: npt.NDArray[Any] = words & words.dtype.type(exponent | 1 << 8 * self.word - 1)
        return masked

    def keys(self, data: memoryview) -> _U64:
        """Return the keys of whole rows that lie end to end; the last ``window - 1`` have none."""
        words = self.masked(data).reshape(-1, self.row_bytes // self.word)
        count, width = words.shape
        sums = np.zeros(count, np.uint64)
        for at in range(min(width, KEY_WORDS)):
            column = words[:, at * width // KEY_WORDS if width > KEY_WORDS else at]
            sums += _mix(column.astype(np.uint64) + _coefficients()[0, at])
        found = np.zeros(max(0, count - self.window + 1), np.uint64)
        for at in range(self.window):
            found += sums[at : at + len(found)] * _coefficients()[1, at]
        return _mix(found)


def _mix(values: _U64) -> _U64:
    values = values * np.uint64(0x9E3779B97F4A7C15)
    return (values ^ values >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)


def looks_moved(rows: RowLayout, plain: memoryview, base: memoryview) -> bool:
    """Return whether part of a chunk resembles the base in its place no more than elsewhere.

    Compares 64 samples of 256 words, the chunk's first and last ones among them, each with the same
    place in the base and with another sample's.
    """
    new, old = rows.masked(plain), rows.masked(base)
    size = min(_SAMPLE_WORDS, len(new))
    starts = np.linspace(0, len(new) - size, _SAMPLES).astype(np.int64)
    where = starts[:, None] + np.arange(size)
    new, old = new[where], old[where]
    here = (new == old).mean(1)
    elsewhere = float((new == np.roll(old, _SAMPLES // 3, 0)).mean())
    return bool(here.min() < (1 + 2 * elsewhere) / 3)


@dataclass(frozen=True, slots=True)
class BaseSpan:
    """``plain_bytes`` bytes at ``start`` of the base tensor."""

    start: int
    plain_bytes: int


class RowIndex:
    """The keys of a base tensor's rows, sorted, for lookup.

    Args:
        parts: Parts of the tensor: the number of the first row, and the keys from there on.
        rows: Number of rows of the tensor.
    """

    def __init__(self, parts: Iterable[tuple[int, _U64]], rows: int) -> None:
        self._dropped = max(0, (rows - 1).bit_length() - (MAX_ANCHORS - 1).bit_length())
        kept = [self._sample(keys, first) for first, keys in parts]
        keys = np.concatenate([np.zeros(0, np.uint64), *(keys for keys, _ in kept)])
        where = np.concatenate([np.zeros(0, np.int64), *(where for _, where in kept)])
        order = np.argsort(keys, kind="stable")
        keys, where = keys[order], where[order]
        alone = np.ones(len(keys), bool)
        alone[1:] &= keys[1:] != keys[:-1]
        alone[:-1] &= keys[1:] != keys[:-1]
        self._keys, self._rows = keys[alone], where[alone]

    def _sample(self, keys: _U64, first: int) -> tuple[_U64, _I64]:
        if self._dropped == 0:
            return keys, np.arange(first, first + len(keys))
        kept = np.flatnonzero(keys >> np.uint64(64 - self._dropped) == 0)
        return keys[kept], kept + first

    def anchors(self, keys: _U64, first: int) -> tuple[_I64, _I64]:
        """Return the rows whose key occurs exactly once in both tensors.

        ``keys`` are those of the new tensor's rows from ``first`` on. Returns numbers of rows in
        the new tensor, ascending, and of the same rows in the base.
        """
        keys, rows = self._sample(keys, first)
        keys, index, count = np.unique(keys, return_index=True, return_counts=True)
        keys, rows = keys[count == 1], rows[index[count == 1]]
        if not len(self._keys):
            return rows[:0], rows[:0]
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        hit = self._keys[at] == keys
        rows, found = rows[hit], self._rows[at[hit]]
        order = np.argsort(rows)
        return rows[order], found[order]


def spans_of(
    anchors: tuple[_I64, _I64],
    rows: RowLayout,
    begin: int,
    plain_bytes: int,
    base_bytes: int,
    max_spans: int,
) -> list[BaseSpan]:
    """Return the spans of the base tensor that match a chunk of the new one.

    Rows without an anchor follow the anchor before them, the first ones the one behind them. Where
    the base has no such bytes, its last ones stand in.

    Args:
        anchors: Row numbers in the new tensor and in the base; at least one pair, all in the chunk.
        rows: The row layout of both tensors.
        begin: Offset of the chunk in the new tensor, in bytes.
        plain_bytes: Plain bytes of the chunk.
        base_bytes: Bytes of the base tensor.
        max_spans: The most spans to return; the shortest runs of moved rows are given up for it.

    Returns:
        Spans that lie end to end in the new tensor, ``plain_bytes`` bytes in all.
    """
    targets, bases = anchors
    moves = bases - targets
    least = _LEAST_RUN
    while True:
        starts = np.flatnonzero(np.diff(moves, prepend=moves[0] - 1))
        ends = np.append(targets[starts[1:]], -(-(begin + plain_bytes) // rows.row_bytes))
        kept = (ends - targets[starts]) * rows.row_bytes >= least
        if not kept.any():
            kept[np.argmax(ends - targets[starts])] = True
        if kept.all() and (len(starts) <= max_spans or len(starts) == 1):
            break
        if not kept.all():
            stay = np.repeat(kept, np.diff(np.append(starts, len(moves))))
            targets, moves = targets[stay], moves[stay]
        if len(starts) > max_spans:
            least *= 2
    edges = np.concatenate(([begin], targets[starts[1:]] * rows.row_bytes, [begin + plain_bytes]))
    spans: list[BaseSpan] = []
    for (start, stop), move in zip(itertools.pairwise(edges), moves[starts], strict=True):
        spans += clamped(int(start + move * rows.row_bytes), int(stop - start), base_bytes)
    return spans


def clamped(start: int, span_bytes: int, base_bytes: int) -> list[BaseSpan]:
    """Return ``[start, start + span_bytes)`` of the base, its nearest bytes where it has none."""
    spans = []
    before = min(span_bytes, max(0, -start))
    inside = max(0, min(start + span_bytes, base_bytes) - max(start, 0))
    after = span_bytes - before - inside
    while before:
        spans.append(BaseSpan(0, min(before, base_bytes)))
        before -= spans[-1].plain_bytes
    if inside:
        spans.append(BaseSpan(max(start, 0), inside))
    while after:
        tail_bytes = min(after, base_bytes)
        spans.append(BaseSpan(base_bytes - tail_bytes, tail_bytes))
        after -= tail_bytes
    return spans
