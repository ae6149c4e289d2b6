"""Reads frames with their proofs, verified, to copy them as they are into other packs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tierstore.blobs.base import BlobStore
from tierstore.errors import BackendError, Damaged, NotFound
from tierstore.format.keys import pack_key
from tierstore.format.table import ChunkPlace
from tierstore.ids import ByteRange
from tierstore.tiers.durable.packcheck import check_frames
from tierstore.tiers.durable.tiers import DurableTiers

_GAP_BYTES = 256 << 10
_RUN_BYTES = 16 << 20


def read_frames(
    packs: DurableTiers, pack: bytes, places: Sequence[ChunkPlace]
) -> list[tuple[ChunkPlace, bytes]]:
    """Return frames of one pack, each with the proof before it, from a tier with a good copy.

    Standalone frames are decoded and compared with their digests, and of deltas the checksums are.

    Args:
        packs: The durable tiers.
        pack: The id of the pack.
        places: The places of the frames, by the pack's own index.

    Raises:
        Damaged, NotFound, BackendError: No tier has a good copy that can be read.
    """
    key = pack_key(pack)
    failed: Damaged | NotFound | BackendError = NotFound(f"{key} is in no tier that can be read")
    for tier in packs.tiers:
        if tier.archive is not None:
            continue
        try:
            return [frame for run in _runs(places) for frame in _read_run(tier.blobs, key, run)]
        except NotFound:
            continue
        except (Damaged, BackendError) as error:
            if not isinstance(failed, BackendError):  # that tier may have a good copy
                failed = error
    raise failed


def _runs(places: Sequence[ChunkPlace]) -> Iterator[list[ChunkPlace]]:
    """Yield the places in the order of the pack, those together that are read together."""
    run: list[ChunkPlace] = []
    for place in sorted(places, key=lambda one: one.offset):
        begin = place.offset - place.proof_bytes
        if run and (begin - _end(run[-1]) > _GAP_BYTES or _end(place) - _begin(run) > _RUN_BYTES):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _begin(run: Sequence[ChunkPlace]) -> int:
    return run[0].offset - run[0].proof_bytes


def _end(place: ChunkPlace) -> int:
    return place.offset + place.frame_bytes


def _read_run(
    blobs: BlobStore, key: str, run: Sequence[ChunkPlace]
) -> Iterator[tuple[ChunkPlace, bytes]]:
    start = _begin(run)
    data = blobs.get(key, ByteRange(start, _end(run[-1])))
    check_frames(key, data, [replace(place, offset=place.offset - start) for place in run])
    for place in run:  # copied: a view would hold what lies between, too
        yield place, bytes(data[place.offset - place.proof_bytes - start : _end(place) - start])
