"""Chunk tables: the place of every chunk, stored in columns (SPEC.md section 6)."""

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from tierstore.codecs import CODECS
from tierstore.deferred import np
from tierstore.errors import UsageError
from tierstore.format.checks import Broken, damaged
from tierstore.format.frame import FIXED_BYTES, MAX_PLAIN_BYTES
from tierstore.format.sealed import Body, Kind, encode_body
from tierstore.ids import split_digests

if TYPE_CHECKING:
    import numpy.typing as npt

PACK_HEADER_BYTES = 64
_MAX_FRAME_BYTES = MAX_PLAIN_BYTES + (128 << 10)
_NEEDS_BASE = bytes(code in CODECS and CODECS[code].needs_base for code in range(256))
"""For each codec id whether its frames have bases, for ``bytes.translate``."""


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """The place of one chunk in a pack.

    Attributes:
        digest: The digest of the plain bytes (32 bytes).
        pack: The id of the pack (32 bytes; empty within a pack's own index).
        offset: Where the frame begins in the pack, in bytes.
        frame_bytes: The length of the frame.
        head_bytes: The length of the frame's head.
        plain_bytes: The length of the chunk.
        codec: The id of the frame's codec.
        bases: The digests of the base chunks of a delta.
        proof_bytes: The length of the frame of the chunk's proof, which ends where the chunk's own
            frame begins; 0 when there is none.
    """

    digest: bytes
    pack: bytes
    offset: int
    frame_bytes: int
    head_bytes: int
    plain_bytes: int
    codec: int
    bases: tuple[bytes, ...] = ()
    proof_bytes: int = 0


class TableBody(Body, frozen=True, kw_only=True):
    """A chunk table as it is stored: columns of one length."""

    pack_ids: bytes = b""
    pack_sizes: bytes = b""
    digests: bytes
    packs: bytes = b""
    offsets: bytes
    lengths: bytes
    heads: bytes
    plains: bytes
    codecs: bytes
    base_starts: bytes = b""
    bases: bytes = b""
    proofs: bytes = b""


class ChunkTable:
    """An immutable table of chunk places, found by digest or by row."""

    __slots__ = ("_base_starts", "_columns", "_rows", "_where", "pack_ids", "pack_sizes")

    def __init__(self, body: TableBody, name: str, *, own: bytes | None = None) -> None:
        """Check the columns of ``body``.

        Args:
            body: The stored columns.
            name: How messages call the table.
            own: The id of the pack whose own index it is, where all rows lie in that pack.

        Raises:
            Damaged: The columns break the format.
        """
        try:
            self._fill(body, own is not None)
        except Broken as error:
            damaged(name, str(error))
        if own is not None:
            self.pack_ids = [own]

    def _fill(self, body: TableBody, own: bool) -> None:
        count, odd = divmod(len(body.digests), 32)
        self._columns = body
        if own and (body.pack_ids or body.packs):
            raise Broken("a pack's own index lists packs")
        columns = [body.offsets, body.lengths, body.heads, body.plains]
        packs = np.zeros(count, "<u4") if own else _column(body.packs, count)
        offsets, lengths, heads, plains = (_column(c, count) for c in columns)
        n_packs, odd_packs = divmod(len(body.pack_ids), 32)
        if odd or odd_packs or len(body.codecs) != count or len(body.pack_sizes) != 8 * n_packs:
            raise Broken("the columns of its chunk table differ in length")
        self.pack_ids = split_digests(body.pack_ids)
        self.pack_sizes = np.frombuffer(body.pack_sizes, "<u8").tolist()
        proofs = _proofs(body, count)
        self._rows = np.stack([packs, offsets, lengths, heads, plains, proofs]).astype(np.int64)
        self._base_starts = self._check_bases(body, count)
        self._check_rows(n_packs, own)
        self._where: dict[bytes, int] | None = None

    def _check_rows(self, n_packs: int, own: bool) -> None:
        packs, offsets, lengths, heads, plains, proofs = self._rows
        if not len(packs):
            return
        if not own and packs.max() >= n_packs:
            raise Broken("a chunk lies in a pack that is not listed")
        if (
            plains.max() > MAX_PLAIN_BYTES
            or lengths.max() > _MAX_FRAME_BYTES
            or heads.min() < FIXED_BYTES
            or (heads > lengths).any()
            or (lengths - heads > plains).any()
            or (offsets - proofs).min() < PACK_HEADER_BYTES
            or (not own and (offsets + lengths > np.array(self.pack_sizes)[packs]).any())
        ):
            raise Broken("a chunk's place is out of range")

    def _check_bases(self, body: TableBody, count: int) -> "npt.NDArray[np.int64] | None":
        needs_base = body.codecs.translate(_NEEDS_BASE)
        if not body.base_starts:
            if body.bases or 1 in needs_base:
                raise Broken("a delta has no bases in its chunk table")
            return None
        starts = _column(body.base_starts, count + 1).astype(np.int64)
        if starts[0] or (np.diff(starts) < 0).any() or starts[-1] * 32 != len(body.bases):
            raise Broken("the bases of its chunk table are out of order")
        if (np.frombuffer(needs_base, np.bool_) != (np.diff(starts) > 0)).any():
            raise Broken("the frames with bases in its chunk table are not the deltas")
        return starts

    def __len__(self) -> int:
        return len(self._columns.codecs)

    def __iter__(self) -> Iterator[ChunkPlace]:
        return (self.place(row) for row in range(len(self)))

    def place(self, row: int) -> ChunkPlace:
        """Return the place of the chunk in one row."""
        pack, offset, frame_bytes, head_bytes, plain_bytes, proof = self._rows[:, row].tolist()
        bases: tuple[bytes, ...] = ()
        if self._base_starts is not None:
            first, last = self._base_starts[row : row + 2].tolist()
            bases = tuple(split_digests(self._columns.bases[32 * first : 32 * last]))
        digest = self._columns.digests[32 * row : 32 * row + 32]
        pack_id = self.pack_ids[pack] if self.pack_ids else b""
        codec = self._columns.codecs[row]
        return ChunkPlace(
            digest, pack_id, offset, frame_bytes, head_bytes, plain_bytes, codec, bases, proof
        )

    @property
    def has_deltas(self) -> bool:
        """Whether any of the frames is a delta."""
        return bool(self._columns.bases)

    @property
    def digests(self) -> Set[bytes]:
        """The digests of all chunks."""
        return self._rows_by_digest().keys()

    def find(self, digest: bytes) -> ChunkPlace | None:
        """Return the place of a chunk, or ``None``."""
        row = self._rows_by_digest().get(digest)
        return None if row is None else self.place(row)

    def packs_of(self, digests: Iterable[bytes]) -> set[bytes]:
        """Return the packs in which chunks lie that the table places, all of them."""
        where = self._rows_by_digest()
        rows = [where[digest] for digest in digests]
        return {self.pack_ids[pack] for pack in np.unique(self._rows[0][rows]).tolist()}

    def _rows_by_digest(self) -> dict[bytes, int]:
        if self._where is None:
            every = split_digests(self._columns.digests)
            self._where = {digest: row for row, digest in enumerate(every)}
        return self._where

    def sizes(self) -> "npt.NDArray[np.int64]":
        """Return what is known of each chunk: a column for each row.

        It has the number of the pack, the lengths of the frame and of the chunk, and the codec.
        """
        codecs = np.frombuffer(self._columns.codecs, "u1")
        return np.stack([*self._rows[[0, 2, 4]], codecs])

    def digests_by_row(self) -> bytes:
        """Return the digests of all chunks end to end, row by row."""
        return self._columns.digests

    def spans(self) -> "npt.NDArray[np.int64]":
        """Return where the frames lie: a column for each row.

        It has the number of the pack, where the proof, or without one the frame, begins in it, and
        where the frame ends.
        """
        packs, offsets, lengths, _, _, proofs = self._rows
        return np.stack([packs, offsets - proofs, offsets + lengths])

    def lies_end_to_end(self, start: int, stop: int) -> bool:
        """Return whether the frames, row by row, lie without a gap from ``start`` to ``stop``."""
        stops = self._rows[1] + self._rows[2]
        return bool(
            len(self)
            and self._rows[1][0] == start
            and stops[-1] == stop
            and (self._rows[1][1:] == stops[:-1]).all()
        )

    def places_in(self, pack: bytes) -> Iterator[ChunkPlace]:
        """Yield the places of the chunks that lie in one pack, row by row."""
        for number, one in enumerate(self.pack_ids):
            if one == pack:
                yield from map(self.place, np.flatnonzero(self._rows[0] == number).tolist())

    def places_relying_on(self, packs: Set[bytes]) -> Iterator[ChunkPlace]:
        """Yield the places of chunks in these packs, and of deltas whose bases are among them."""
        found = np.array([pack in packs for pack in self.pack_ids], np.bool_)[self._rows[0]]
        counts = base_counts(self)
        owners, before = np.repeat(np.arange(len(self)), counts), -1
        while counts.any() and before < (before := int(found.sum())):
            there = set(np.frombuffer(self._columns.digests, "V32")[found].tolist())
            found[owners[[base in there for base in self.bases]]] = True
        yield from map(self.place, np.flatnonzero(found).tolist())

    def parts(self) -> "Iterator[TablePart]":
        """Yield for each pack the part of the table that needs it."""
        packs, offsets = self._rows[:2]
        order = np.lexsort((offsets, packs))
        starts = np.searchsorted(packs[order], np.arange(len(self.pack_ids) + 1)).tolist()
        records = np.empty(len(order), [("digest", "V32"), ("codec", "u1"), ("place", "<u4", (5,))])
        records["digest"] = np.frombuffer(self._columns.digests, "V32")[order]
        records["codec"] = np.frombuffer(self._columns.codecs, "u1")[order]
        records["place"] = self._rows[1:, order].T
        data, each = records.tobytes(), records.dtype.itemsize
        for number, pack in enumerate(self.pack_ids):
            first, last = starts[number : number + 2]
            if first < last:
                rows = order[first:last]
                yield TablePart(self, pack, rows, data[first * each : last * each])

    def _bases_elsewhere(self, rows: Sequence[int]) -> list[int]:
        """Return the rows of the bases that these rows need and that are not among them."""
        if self._base_starts is None:
            return []
        where, found = self._rows_by_digest(), set[int]()
        for row in rows:
            first, last = self._base_starts[row : row + 2].tolist()
            bases = split_digests(self._columns.bases[32 * first : 32 * last])
            found.update(where[base] for base in bases if base in where)
        return sorted(
            found.difference(rows), key=lambda row: self._columns.digests[32 * row :][:32]
        )

    @property
    def bases(self) -> list[bytes]:
        """The digests of the bases of all deltas, row by row."""
        return split_digests(self._columns.bases)

    @property
    def frame_bytes(self) -> int:
        """The length of all frames together."""
        return int(self._rows[2].sum())

    @property
    def longest_frame_bytes(self) -> int:
        """The length of the longest frame; 0 in an empty table."""
        return int(self._rows[2].max(initial=0))

    @property
    def longest_chunk_bytes(self) -> int:
        """The plain bytes of the longest chunk; 0 in an empty table."""
        return int(self._rows[4].max(initial=0))


class TablePart:
    """The rows of one pack in a table, by offset.

    Attributes:
        pack: The id of the pack.
    """

    __slots__ = ("_records", "_rows", "_table", "pack")

    def __init__(
        self, table: ChunkTable, pack: bytes, rows: "npt.NDArray[np.int64]", records: bytes
    ) -> None:
        self._table, self.pack, self._rows, self._records = table, pack, rows, records

    def key(self) -> bytes:
        """Return bytes that are equal for parts of one pack whose bodies say the same."""
        if self._table._base_starts is None or not self._bases():
            return self._records
        return encode_body(Kind.SEGMENT, self.body())

    def _bases(self) -> int:
        starts = self._table._base_starts
        return 0 if starts is None else int((starts[self._rows + 1] - starts[self._rows]).sum())

    def body(self) -> TableBody:
        """Return the rows as a table, and behind them those of bases that lie elsewhere."""
        rows = self._rows.tolist()
        every = np.array([*rows, *self._table._bases_elsewhere(rows)])
        return TableBody(**pick_rows(self._table, every))


def encode_table(kind: Kind, body: TableBody, *, own: bool = False) -> bytes:
    """Return the plain bytes of a chunk table.

    Raises ``UsageError`` when a reader would refuse it.
    """
    plain = encode_body(kind, body)
    try:
        ChunkTable.__new__(ChunkTable)._fill(body, own)
    except Broken as error:
        raise UsageError(f"such a {kind.title} cannot be stored: {error}") from None
    return plain


def join_tables(tables: Sequence[ChunkTable], name: str) -> ChunkTable:
    """Return a table of the rows of all ``tables``, in order; ``name`` is for messages.

    A chunk that several of them place is found where the last one says.
    """
    if len(tables) == 1:
        return tables[0]
    bodies = [table._columns for table in tables]
    packs, starts = [], [np.zeros(1, np.int64)]
    number: dict[bytes, int] = {}
    sizes: dict[bytes, int] = {}
    bases, proofs = 0, any(body.proofs for body in bodies)
    for table, body in zip(tables, bodies, strict=True):
        numbers = [number.setdefault(pack, len(number)) for pack in table.pack_ids]
        packs.append(np.array(numbers, np.int64)[np.frombuffer(body.packs, "<u4")])
        sizes.update(zip(table.pack_ids, table.pack_sizes, strict=True))
        own = table._base_starts
        starts.append((np.zeros(len(table), np.int64) if own is None else own[1:]) + bases)
        bases += len(body.bases) // 32

    def column(field: str) -> bytes:
        return b"".join(getattr(body, field) for body in bodies)

    body = TableBody(
        pack_ids=b"".join(sizes),
        pack_sizes=np.array(list(sizes.values()), "<u8").tobytes(),
        digests=column("digests"),
        packs=np.concatenate(packs).astype("<u4").tobytes(),
        offsets=column("offsets"),
        lengths=column("lengths"),
        heads=column("heads"),
        plains=column("plains"),
        codecs=column("codecs"),
        bases=column("bases"),
        base_starts=np.concatenate(starts).astype("<u4").tobytes() if bases else b"",
        proofs=b"".join(b.proofs or bytes(2 * len(b.codecs)) for b in bodies) if proofs else b"",
    )
    return ChunkTable(body, name)


def pick_rows(table: ChunkTable, rows: "npt.NDArray[np.int64]") -> "Columns":
    """Return the columns of these rows of a table, in this order, and the packs that they name."""
    body = table._columns

    def column(data: bytes, kind: str) -> bytes:
        return np.frombuffer(data, kind)[rows].tobytes()

    columns: Columns = {
        "digests": column(body.digests, "V32"),
        "offsets": column(body.offsets, "<u4"),
        "lengths": column(body.lengths, "<u4"),
        "heads": column(body.heads, "<u4"),
        "plains": column(body.plains, "<u4"),
        "codecs": column(body.codecs, "u1"),
    }
    if table.pack_sizes:
        packs = table._rows[0][rows]
        used, firsts, numbers = np.unique(packs, return_index=True, return_inverse=True)
        order = np.argsort(firsts)  # in the order of their first rows, wherever the table has them
        sizes = np.array(table.pack_sizes, "<u8")
        columns["pack_ids"] = b"".join(table.pack_ids[number] for number in used[order])
        columns["pack_sizes"] = sizes[used[order]].tobytes()
        columns["packs"] = np.argsort(order)[numbers].astype("<u4").tobytes()
    if table._base_starts is not None:
        counts = np.diff(table._base_starts)[rows]
        if counts.any():
            stops = np.cumsum(counts)
            firsts = np.repeat(table._base_starts[rows] - (stops - counts), counts)
            picked = firsts + np.arange(len(firsts))
            columns["base_starts"] = np.concatenate([[0], stops]).astype("<u4").tobytes()
            columns["bases"] = np.frombuffer(body.bases, "V32")[picked].tobytes()
    if body.proofs:
        columns["proofs"] = column(body.proofs, "<u2")
    return columns


def pick_chunks(
    table: ChunkTable,
    chunks: Iterable[bytes],
    moved: Sequence[ChunkPlace],
    sizes: dict[bytes, int],
) -> "Columns":
    """Return the columns of these chunks, in this order, and behind them of their bases.

    Args:
        table: Where they lie.
        chunks: The digests of the chunks.
        moved: Places that hold instead.
        sizes: The bytes of every pack in ``moved``.
    """
    name = "the new table"
    there = ChunkTable(TableBody(**table_columns(moved, sizes)), name)
    both = join_tables([table, there], name)
    where = both._rows_by_digest()
    rows = {digest: where[digest] for digest in chunks}
    bases = pick_rows(both, np.array(list(rows.values()), np.int64)).get("bases", b"")
    rows |= {base: where[base] for base in split_digests(bases)}
    return pick_rows(both, np.array(list(rows.values()), np.int64))


def in_pack(table: ChunkTable, pack: bytes, size: int) -> ChunkTable:
    """Return the chunks of a pack's own index as a table that names the pack.

    Frames of proofs, which are no chunks, are left out.

    Args:
        table: The index of the pack.
        pack: The id of the pack.
        size: The bytes of the pack.
    """
    _, offsets, _, _, _, proofs = table._rows
    rows = np.flatnonzero(~np.isin(offsets, (offsets - proofs)[proofs > 0]))
    columns = pick_rows(table, rows)
    columns["pack_ids"] = pack
    columns["pack_sizes"] = struct.pack("<Q", size)
    columns["packs"] = bytes(4 * len(rows))
    return ChunkTable(TableBody(**columns), f"the index of pack {pack.hex()}")


def merge_rows(
    table: ChunkTable, without: Set[bytes] = frozenset(), last: Set[bytes] = frozenset()
) -> "npt.NDArray[np.int64]":
    """Return the rows of a table that hold each chunk once, rising by digest.

    Args:
        table: The table.
        without: Ids of packs whose rows are left out.
        last: Ids of packs whose rows stand back behind any other. Else a standalone frame comes
            before a delta.
    """
    count = len(table)
    out, behind = (
        np.array([pack in ids for pack in table.pack_ids], np.bool_) for ids in (without, last)
    )
    rows = np.arange(count)
    if out.any():
        rows = rows[~out[table._rows[0]]]
    rank = np.zeros(count, np.int8)
    if behind.any():
        rank += 2 * behind[table._rows[0]].astype(np.int8)
    if table._base_starts is not None:
        rank += np.diff(table._base_starts) > 0
    words = np.frombuffer(table._columns.digests, ">u8").reshape(-1, 4)[rows].astype(np.uint64)
    order = np.lexsort((rank[rows], *words.T[::-1]))
    words = words[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (words[1:] != words[:-1]).any(axis=1)
    found: npt.NDArray[np.int64] = rows[order[is_first]]
    return found


def base_counts(table: ChunkTable) -> "npt.NDArray[np.int64]":
    """Return the number of bases of each row."""
    if table._base_starts is None:
        return np.zeros(len(table), np.int64)
    return np.diff(table._base_starts)


def _proofs(body: TableBody, count: int) -> "npt.NDArray[np.uint16]":
    if not body.proofs:
        return np.zeros(count, "<u2")
    if len(body.proofs) != 2 * count:
        raise Broken("the columns of its chunk table differ in length")
    return np.frombuffer(body.proofs, "<u2")


def _column(data: bytes, count: int) -> "npt.NDArray[np.uint32]":
    if len(data) != 4 * count:
        raise Broken("the columns of its chunk table differ in length")
    return np.frombuffer(data, "<u4")


class Columns(TypedDict, total=False):
    """The columns of a ``TableBody`` by name."""

    pack_ids: bytes
    pack_sizes: bytes
    digests: bytes
    packs: bytes
    offsets: bytes
    lengths: bytes
    heads: bytes
    plains: bytes
    codecs: bytes
    base_starts: bytes
    bases: bytes
    proofs: bytes


def table_columns(
    places: Sequence[ChunkPlace], pack_sizes: dict[bytes, int] | None = None
) -> Columns:
    """Return the stored columns of ``places`` as keyword arguments of ``TableBody``.

    Args:
        places: The places, one for each row.
        pack_sizes: The bytes of every pack by id, in the order to list them; ``None`` for a pack's
            own index, where all rows lie in that pack.
    """
    number = {pack: at for at, pack in enumerate(pack_sizes or ())}

    def column(values: Sequence[int], kind: str = "I") -> bytes:
        return struct.pack(f"<{len(values)}{kind}", *values)

    columns: Columns = {
        "digests": b"".join(p.digest for p in places),
        "offsets": column([p.offset for p in places]),
        "lengths": column([p.frame_bytes for p in places]),
        "heads": column([p.head_bytes for p in places]),
        "plains": column([p.plain_bytes for p in places]),
        "codecs": bytes(p.codec for p in places),
    }
    if pack_sizes is not None:
        columns["pack_ids"] = b"".join(pack_sizes)
        columns["pack_sizes"] = column(list(pack_sizes.values()), "Q")
        columns["packs"] = column([number[p.pack] for p in places])
    if any(p.bases for p in places):
        starts = itertools.accumulate((len(p.bases) for p in places), initial=0)
        columns["base_starts"] = column(list(starts))
        columns["bases"] = b"".join(base for p in places for base in p.bases)
    if any(p.proof_bytes for p in places):
        columns["proofs"] = column([p.proof_bytes for p in places], "H")
    return columns
