"""Index segments that were merged from others (SPEC.md section 8)."""

import re
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass

from tierstore.deferred import np
from tierstore.format.checks import damaged
from tierstore.format.keys import INDEX
from tierstore.format.sealed import Kind, seal, unseal_body
from tierstore.format.table import (
    ChunkTable,
    TableBody,
    base_counts,
    encode_table,
    join_tables,
    merge_rows,
    pick_rows,
)
from tierstore.ids import Buffer

MOST_ROWS = 1_000_000
_MOST_BASES = 4_000_000  # 128 MB of them: a body has at most 512 MiB
_NAME_BYTES = 16
_KEY = re.compile(re.escape(INDEX) + r"[0-9a-f]{32}\Z")


class MergedBody(TableBody, frozen=True, kw_only=True):
    """A segment as it is stored: a chunk table, and the names of the segments it was made of."""

    replaces: bytes = b""


@dataclass(frozen=True, slots=True)
class Segment:
    """An index segment.

    Attributes:
        table: The places of chunks.
        replaces: The keys of the segments that it was made of; none of one that a save wrote.
    """

    table: ChunkTable
    replaces: Set[str]


def parse_any_segment(data: Buffer, name: str) -> Segment:
    """Unseal and check an index segment, whether it was merged or not."""
    body = unseal_body(Kind.SEGMENT, data, MergedBody, name)
    if len(body.replaces) % _NAME_BYTES:
        damaged(name, "what it replaces is no list of names")
    names = (
        body.replaces[at : at + _NAME_BYTES].hex()
        for at in range(0, len(body.replaces), _NAME_BYTES)
    )
    return Segment(ChunkTable(body, name), frozenset(INDEX + one for one in names))


def merge_tables(
    tables: Sequence[ChunkTable],
    *,
    without: Set[bytes] = frozenset(),
    last: Set[bytes] = frozenset(),
) -> ChunkTable:
    """Return a table of all chunks of these, each once, rising by digest.

    Args:
        tables: The tables.
        without: Ids of packs whose rows are left out.
        last: Ids of packs whose rows stand back behind any other.
    """
    if not tables:
        none = TableBody(digests=b"", offsets=b"", lengths=b"", heads=b"", plains=b"", codecs=b"")
        return ChunkTable(none, "an empty table")
    every = join_tables(tables, "the tables to be merged")
    body = TableBody(**pick_rows(every, merge_rows(every, without, last)))
    return ChunkTable(body, "the merged table")


def seal_merged(table: ChunkTable, replaces: Collection[str]) -> Iterator[bytes]:
    """Return sealed segments that hold the rows of a merged table, in order.

    Args:
        table: What ``merge_tables`` returned.
        replaces: The keys of the segments that it was made of, each a ``is_segment_key``.
    """
    named = b"".join(bytes.fromhex(key.removeprefix(INDEX)) for key in sorted(replaces))
    stops = np.cumsum(base_counts(table))
    first = 0
    while first < len(table):
        before = stops[first - 1] if first else 0
        room = int(np.searchsorted(stops, before + _MOST_BASES, side="right"))
        stop = min(first + MOST_ROWS, max(room, first + 1), len(table))
        body = MergedBody(**pick_rows(table, np.arange(first, stop)), replaces=named)
        yield seal(Kind.SEGMENT, encode_table(Kind.SEGMENT, body))
        first = stop


def is_segment_key(key: str) -> bool:
    """Return whether a key is one that segments have, and that others can name."""
    return _KEY.match(key) is not None
