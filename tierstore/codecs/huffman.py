"""Decoding of Huffman planes in numpy, for machines without the native kernels.

Code after code cannot be decoded in parallel, but code lengths can be: every bit position is
taken as the start of a code, which gives the position after it. Composing that map with itself
gives jumps of 2, 4, 8 ... codes, so the positions of n codes are found in log2(n) whole-array
steps (list ranking by pointer jumping, Wyllie 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tierstore.codecs.base import MAX_HEAD
from tierstore.deferred import np
from tierstore.errors import Damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOG = 11
STREAMS = 5
SEGMENT = 1 << 16
MAX_TABLES = 255


@dataclass(frozen=True, slots=True)
class DecodeTable:
    """For each window of 11 bits, the symbol of its first code and the code's length in bits."""

    symbols: NDArray[np.uint8]
    lengths: NDArray[np.uint8]


def _table(first: int, lengths: NDArray[np.uint8]) -> DecodeTable:
    windows = DecodeTable(np.zeros(1 << LOG, np.uint8), np.zeros(1 << LOG, np.uint8))
    code = 0
    for bits in range(1, LOG + 1):
        code <<= 1
        for symbol in np.flatnonzero(lengths == bits):
            start = int(format(code, f"0{bits}b")[::-1], 2)
            windows.symbols[start :: 1 << bits] = first + symbol
            windows.lengths[start :: 1 << bits] = bits
            code += 1
    return windows


def read_head(head: bytes) -> list[DecodeTable]:
    """Parse a head's code tables; ``Damaged`` unless all are complete codes of at most 11 bits."""
    if len(head) > MAX_HEAD:
        raise Damaged(f"a codec head of {len(head)} bytes; the limit is {MAX_HEAD}")
    data = np.frombuffer(head, np.uint8)
    tables: list[DecodeTable] = []
    at = 0
    while at < len(data):
        symbols = int(data[at + 1]) - int(data[at]) + 1 if at + 2 <= len(data) else 0
        stop = at + 2 + (symbols + 1) // 2
        if symbols < 2 or stop > len(data) or len(tables) == MAX_TABLES:
            raise Damaged("a code table is cut short, or there are too many")
        nibbles = np.stack([data[at + 2 : stop] & 15, data[at + 2 : stop] >> 4], axis=1).ravel()
        lengths = nibbles[:symbols]
        kraft = int((1 << (LOG - lengths[lengths > 0].astype(np.int64).clip(0, LOG))).sum())
        bad_ends = not (lengths[0] and lengths[-1]) or nibbles[symbols:].any()
        if bad_ends or lengths.max() > LOG or kraft != 1 << LOG:
            raise Damaged("a code table is not a complete code")
        tables.append(_table(int(data[at]), lengths))
        at = stop
    return tables


def _positions(step: NDArray[np.int32], starts: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """Return the positions of ``count`` codes from each start: shape (len(starts), count)."""
    found = starts[:, None]
    while found.shape[1] < count:
        found = np.concatenate([found, step[found]], axis=1)
        if found.shape[1] < count:
            step = step[step]
    return found[:, :count]


def _decode_segment(
    data: NDArray[np.uint8], ends: NDArray[np.int64], table: DecodeTable, n: int
) -> NDArray[np.uint8]:
    """Decode ``n`` symbols of five streams, end to end in ``data``, ending at ``ends`` (bytes)."""
    beyond = data.size * 8 + 8  # where every code that runs out of the data leads
    padded = np.zeros(data.size + 4, np.uint32)
    padded[: data.size] = data
    three = padded[:-2] | padded[1:-1] << 8 | padded[2:] << 16
    windows = (three[:, None] >> np.arange(8, dtype=np.uint32) & ((1 << LOG) - 1)).ravel()[
        : beyond + 1
    ]
    lengths = table.lengths[windows]
    step = np.minimum(np.arange(beyond + 1, dtype=np.int32) + lengths, beyond).astype(np.int32)
    step[beyond] = beyond
    each = -(-n // STREAMS)
    counts = np.minimum(np.maximum(n - each * np.arange(STREAMS), 0), each)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int32) * 8
    found = _positions(step, starts, each + 1)
    if (-(-found[np.arange(STREAMS), counts] // 8) != ends).any():
        raise Damaged("a Huffman stream does not end where it should")
    symbols = table.symbols[windows[found[:, :-1]]]
    return np.concatenate([symbols[k, : counts[k]] for k in range(STREAMS)])


def decode_plane(stored: NDArray[np.uint8], table: DecodeTable, n: int) -> NDArray[np.uint8]:
    """Decode a Huffman plane of ``n`` symbols; ``Damaged`` unless its segments fill ``stored``."""
    parts: list[NDArray[np.uint8]] = []
    at = 0
    for start in range(0, n, SEGMENT):
        head = stored[at : at + 2 * STREAMS]
        ends = np.cumsum(head[: head.size // 2 * 2].view("<u2"), dtype=np.int64)
        at += 2 * STREAMS
        if ends.size != STREAMS or at + ends[-1] > stored.size:
            raise Damaged("the streams of a plane are longer than the plane")
        stop = at + int(ends[-1])
        parts.append(_decode_segment(stored[at:stop], ends, table, min(SEGMENT, n - start)))
        at = stop
    if at != stored.size:
        raise Damaged("a plane is longer than its streams")
    return np.concatenate(parts)
