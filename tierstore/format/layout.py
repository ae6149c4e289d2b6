"""Layouts, index segments, folds, moves and condemned lists (SPEC.md sections 8 and 10)."""

from collections.abc import Iterable, Sequence

from tierstore.format.checks import damaged
from tierstore.format.sealed import Body, Hex64, Kind, seal_body, unseal_body
from tierstore.format.table import ChunkPlace, ChunkTable, TableBody, table_columns
from tierstore.ids import Buffer, Digest


class LayoutBody(TableBody, frozen=True, kw_only=True):
    """A layout as it is stored: a chunk table and the manifest it is for."""

    manifest: bytes


class Move(Body, frozen=True, kw_only=True):
    """The frames of ``pack`` are now in the packs ``into``."""

    pack: Hex64
    into: list[Hex64]


class Fold(Body, frozen=True, kw_only=True):
    """The full manifest that equals a patch version."""

    patch: Hex64
    full: Hex64


def parse_fold(data: Buffer, patch: Digest, name: str) -> Digest:
    """Unseal the fold of ``patch``; the digest of the full manifest that equals it."""
    fold = unseal_body(Kind.FOLD, data, Fold, name)
    if fold.patch != patch.hex:
        damaged(name, "it is the fold of another version")
    return Digest.from_hex(fold.full)


class Condemned(Body, frozen=True, kw_only=True):
    """Packs that will be deleted."""

    run: str
    packs: list[Hex64]


def seal_layout(manifest: Digest, places: Sequence[ChunkPlace], sizes: dict[bytes, int]) -> bytes:
    """The sealed layout of a version.

    Args:
        manifest: of the version.
        places: of every chunk of the version and every base of theirs, in load order.
        sizes: bytes of every pack in ``places``.
    """
    body = LayoutBody(manifest=manifest.raw, **table_columns(places, sizes))
    return seal_body(Kind.LAYOUT, body)


def parse_layout(data: Buffer, manifest: Digest, name: str) -> ChunkTable:
    """Unseal and check the layout of ``manifest``."""
    body = unseal_body(Kind.LAYOUT, data, LayoutBody, name)
    if body.manifest != manifest.raw:
        damaged(name, "it is the layout of another manifest")
    return ChunkTable(body, name)


def seal_segment(places: Sequence[ChunkPlace], sizes: dict[bytes, int]) -> bytes:
    """The sealed index segment of the chunks that one save added."""
    return seal_body(Kind.SEGMENT, TableBody(**table_columns(places, sizes)))


def parse_segment(data: Buffer, name: str) -> ChunkTable:
    """Unseal and check an index segment."""
    return ChunkTable(unseal_body(Kind.SEGMENT, data, TableBody, name), name)


def missing_chunks(table: ChunkTable, digests: Iterable[bytes]) -> list[bytes]:
    """Those of ``digests``, and of the bases of any frame, that the table does not place."""
    known = table.digests
    return [digest for digest in [*digests, *table.bases] if digest not in known]
