"""Reads the footers of packs, which list the chunks that a pack holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tierstore.blobs.base import BlobInfo, BlobStore, RangeRead
from tierstore.errors import BackendError, Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import PACKS, pack_key
from tierstore.format.pack import (
    TRAILER_BYTES,
    Trailer,
    parse_index,
    parse_index_table,
    parse_trailer,
)
from tierstore.format.table import PACK_HEADER_BYTES, ChunkPlace, ChunkTable, in_pack
from tierstore.ids import Buffer
from tierstore.modelstore.home.ahead import ahead
from tierstore.tiers.durable.tiers import DurableTiers

_Parsed = TypeVar("_Parsed")
_TAIL_BYTES = 64 << 10
"""So much of the end of a pack is read at once: the index of a thousand frames."""

_log = logging.getLogger("tierstore.packs")


def read_footer(store: BlobStore, key: str, size: int) -> tuple[Trailer, list[ChunkPlace]]:
    """Read and verify the trailer and the index of one pack.

    Args:
        store: The tier that has the pack, or all of them: then one good footer is enough.
        key: Key of the pack.
        size: Size of the pack in bytes.

    Raises:
        Damaged: The pack is too short, or its footer is not what it should be.
    """

    def parse(trailer: Trailer, header: Buffer, index: Buffer) -> tuple[Trailer, list[ChunkPlace]]:
        return trailer, parse_index(header, index, trailer, f"pack {key}")

    return _from_any(store, key, size, parse)


def _from_any(
    store: BlobStore, key: str, size: int, parse: Callable[[Trailer, Buffer, Buffer], _Parsed]
) -> _Parsed:
    """Return what the first footer says that is good, of the tiers in their order."""
    if not isinstance(store, DurableTiers):
        return parse(*_read(store.get_ranges, key, size))
    bad: set[str] = set()
    failed: Damaged | None = None
    while True:
        asked: set[str] = set()
        try:
            return parse(*_read(partial(_read_noted, store, frozenset(bad), asked), key, size))
        except Damaged as error:
            failed = failed or error
            if not asked:  # all copies are cut short
                raise failed from None
            bad |= asked
        except (NotFound, BackendError):
            if failed is None:
                raise
            raise failed from None


def _read_noted(
    tiers: DurableTiers, avoid: frozenset[str], asked: set[str], reads: Sequence[RangeRead]
) -> None:
    asked.add(tiers.read(reads, avoid))


def _read(
    read: Callable[[Sequence[RangeRead]], object], key: str, size: int
) -> tuple[Trailer, Buffer, Buffer]:
    """Return the trailer of a pack, its header and its index; the id is that of its key."""
    name = f"pack {key}"
    if size < PACK_HEADER_BYTES + TRAILER_BYTES:
        raise Damaged(f"{name} is damaged: {size} bytes are too few; restore it from a copy")
    header = memoryview(bytearray(PACK_HEADER_BYTES))
    tail = memoryview(bytearray(min(size, _TAIL_BYTES)))
    read([RangeRead(key, 0, header), RangeRead(key, size - len(tail), tail)])
    trailer = parse_trailer(tail[-TRAILER_BYTES:], size, name)
    index = tail[:-TRAILER_BYTES][-trailer.index_bytes :] if trailer.index_bytes else tail[:0]
    if len(index) < trailer.index_bytes:
        index = memoryview(bytearray(trailer.index_bytes))
        read([RangeRead(key, trailer.index_offset, index)])
    if pack_key(trailer.pack_id) != key:
        raise Damaged(f"{name} is damaged: it is the pack {trailer.pack_id.hex()}")
    return trailer, header, index


def read_chunks(store: BlobStore, key: str, size: int) -> ChunkTable:
    """Return the chunks that a pack holds, as ``read_footer`` does, as a table."""

    def parse(trailer: Trailer, header: Buffer, index: Buffer) -> ChunkTable:
        table = parse_index_table(header, index, trailer, f"pack {key}")
        return in_pack(table, trailer.pack_id, size)

    return _from_any(store, key, size, parse)


@dataclass(frozen=True, slots=True)
class ListedPacks:
    """The packs of all durable tiers.

    Attributes:
        packs: Key, size and time of each pack, by key.
        down: Why tiers could not be asked, by name: they may have more.
    """

    packs: list[BlobInfo]
    down: dict[str, str]


def list_packs(tiers: DurableTiers, most: int | None = None) -> ListedPacks:
    """List the packs of all durable tiers that can be asked.

    Args:
        tiers: The durable tiers.
        most: End once there are more than so many; ``None``: list all.

    Raises:
        BackendError: No tier can be asked.
    """
    found: dict[str, BlobInfo] = {}
    failed: dict[str, BackendError] = {}
    for tier in tiers.tiers:
        try:
            tier.verify()
            for info in tier.blobs.list(PACKS):
                found.setdefault(info.key, info)
                if most is not None and len(found) > most:
                    break
        except BackendError as error:
            _log.warning(
                "tier %s cannot be listed: %s", tier.name, error, extra={"tier": tier.name}
            )
            failed[tier.name] = error
    if len(failed) == len(tiers.tiers):
        raise next(iter(failed.values()))
    down = {name: str(error) for name, error in failed.items()}
    return ListedPacks(sorted(found.values(), key=lambda info: info.key), down)


def read_all_chunks(
    store: BlobStore, packs: Iterable[BlobInfo]
) -> Iterator[tuple[BlobInfo, ChunkTable | None]]:
    """Yield what packs hold, many read at a time; ``None`` for one that cannot be read.

    These are logged. A pack that an archive alone has, or a tier that cannot be asked, is one.
    """

    def read(info: BlobInfo) -> ChunkTable | None:
        try:
            return read_chunks(store, info.key, info.size)
        except (Damaged, NotFound, UnsupportedFormat, BackendError) as error:
            _log.warning("skipped: %s", error)  # what is wanted may lie elsewhere
            return None

    return ahead(read, packs)
