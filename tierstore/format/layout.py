"""Layouts, index segments, folds, moves, marks (SPEC.md section 8)."""

from collections.abc import Iterable, Sequence

from tierstore.format.checks import Broken, damaged
from tierstore.format.reflog import Microseconds
from tierstore.format.sealed import Body, Hex64, Kind, seal, unseal_body
from tierstore.format.table import (
    ChunkPlace,
    ChunkTable,
    TableBody,
    encode_table,
    pick_chunks,
    table_columns,
)
from tierstore.ids import DIGEST_BYTES, Buffer, Digest


class LayoutBody(TableBody, frozen=True, kw_only=True):
    """A layout as it is stored: a chunk table and the manifest that it belongs to."""

    manifest: bytes


class Move(Body, frozen=True, kw_only=True):
    """A note that the frames of ``pack`` are now in the packs ``into``."""

    pack: Hex64
    into: list[Hex64]


def parse_move(data: Buffer, pack: bytes, name: str) -> list[bytes]:
    """Unseal and check a move of ``pack``; return the ids of the packs to which it leads."""
    move = unseal_body(Kind.MOVE, data, Move, name)
    if move.pack != pack.hex():
        damaged(name, f"it is a move of pack {move.pack}")
    return [bytes.fromhex(one) for one in move.into]


class Mark(Body, frozen=True, kw_only=True):
    """A note that no durable tier has a good copy of ``pack``.

    Attributes:
        pack: The id of the pack (32 bytes).
        chunks: The digests of the chunks in it, as far as they are known (32 bytes each).
        tiers: The names of the tiers whose copies were read as damaged.
        why: What is wrong with the first of them.
        who: The user and the host that read them.
        time_us: Microseconds since the epoch by that host's clock.
    """

    pack: bytes
    chunks: bytes
    tiers: list[str]
    why: str
    who: str
    time_us: Microseconds

    def check(self) -> None:
        """Raise ``Broken`` unless its chunks are a list of digests."""
        if len(self.chunks) % DIGEST_BYTES:
            raise Broken("its chunks are no list of digests")


def parse_mark(data: Buffer, pack: bytes, name: str) -> Mark:
    """Unseal and check the mark of ``pack``."""
    mark = unseal_body(Kind.QUARANTINE, data, Mark, name)
    if mark.pack != pack:
        damaged(name, "it is the mark of another pack")
    return mark


class Fold(Body, frozen=True, kw_only=True):
    """A note that names the full manifest with the same content as a patch version."""

    patch: Hex64
    full: Hex64


def parse_fold(data: Buffer, patch: Digest, name: str) -> Digest:
    """Unseal the fold of ``patch`` and return the digest of its full manifest."""
    fold = unseal_body(Kind.FOLD, data, Fold, name)
    if fold.patch != patch.hex:
        damaged(name, "it is the fold of another version")
    return Digest.from_hex(fold.full)


def seal_layout(manifest: Digest, places: Sequence[ChunkPlace], sizes: dict[bytes, int]) -> bytes:
    """Return the sealed layout of a version.

    Args:
        manifest: The digest of the version's manifest.
        places: The places of every chunk of the version and of all their bases, in load order.
        sizes: The bytes of every pack in ``places``.
    """
    body = LayoutBody(manifest=manifest.raw, **table_columns(places, sizes))
    return seal(Kind.LAYOUT, encode_table(Kind.LAYOUT, body))


def seal_moved_layout(
    manifest: Digest,
    table: ChunkTable,
    chunks: Iterable[bytes],
    moved: Sequence[ChunkPlace],
    sizes: dict[bytes, int],
) -> bytes:
    """Return the sealed layout of a version some of whose chunks lie elsewhere by now.

    Args:
        manifest: The digest of the version's manifest.
        table: The layout as it was.
        chunks: The digests of the version's chunks, in load order.
        moved: The new places of chunks and of bases; others stay where they were.
        sizes: The bytes of every pack in ``moved``.
    """
    columns = pick_chunks(table, chunks, moved, sizes)
    body = LayoutBody(manifest=manifest.raw, **columns)
    return seal(Kind.LAYOUT, encode_table(Kind.LAYOUT, body))


def parse_layout(data: Buffer, manifest: Digest, name: str) -> ChunkTable:
    """Unseal and check the layout of ``manifest``."""
    body = unseal_body(Kind.LAYOUT, data, LayoutBody, name)
    if body.manifest != manifest.raw:
        damaged(name, "it is the layout of another manifest")
    return ChunkTable(body, name)


def seal_segment(places: Sequence[ChunkPlace], sizes: dict[bytes, int]) -> bytes:
    """Return the sealed index segment of the chunks that one save added."""
    body = TableBody(**table_columns(places, sizes))
    return seal(Kind.SEGMENT, encode_table(Kind.SEGMENT, body))


def parse_segment(data: Buffer, name: str) -> ChunkTable:
    """Unseal and check an index segment."""
    return ChunkTable(unseal_body(Kind.SEGMENT, data, TableBody, name), name)


def missing_chunks(table: ChunkTable, digests: Iterable[bytes]) -> list[bytes]:
    """Return those of ``digests``, and of the bases in the table, that the table does not place."""
    known = table.digests
    return [digest for digest in [*digests, *table.bases] if digest not in known]
