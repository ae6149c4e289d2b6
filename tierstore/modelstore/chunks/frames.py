"""Reads frames in order to store them as they are: verified in full, deltas with their bases."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias

from tierstore.errors import BackendError, Damaged, NotFound
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.chunks.decode import FrameDecoder
from tierstore.modelstore.chunks.plan import Run, plan_runs
from tierstore.modelstore.chunks.pool import ReadPool

_GAP_BYTES = 256 << 10

Frames: TypeAlias = list[tuple[ChunkPlace, bytes]]


def read_frames(
    pool: ReadPool, decoder: FrameDecoder, places: Sequence[ChunkPlace]
) -> Iterator[tuple[ChunkPlace, bytes]]:
    """Yield frames as they lie, each with the proof before it, several runs read at a time.

    Every frame is decoded, a delta with its bases, and compared with the digest of its chunk. One
    that is damaged in a tier is read from another one, or from where moves lead.

    Args:
        pool: Reads the frames; what is read ahead is bounded by its threads and runs.
        decoder: Decodes them, of a reader that verifies all.
        places: Places of the frames, as the layout has them, each chunk once.

    Yields:
        The place where a frame was found, and the bytes of proof and frame, in the order of the
        packs.

    Raises:
        Damaged, NotFound, BackendError: A frame cannot be read anywhere.
    """
    now = [pool.moves.current(place) for place in places]
    runs = plan_runs(
        [_with_proof(place) for place in now],
        max_gap_bytes=_GAP_BYTES,
        max_run_bytes=pool.max_run_bytes,
    )
    pending: deque[Future[Frames]] = deque()
    with ThreadPoolExecutor(pool.threads, "tierstore-frames") as executor:
        try:
            for run in runs:
                if len(pending) > pool.threads:
                    yield from pending.popleft().result()
                wanted = [now[item] for item in run.items]
                pending.append(executor.submit(_read_run, pool, decoder, run, wanted))
            while pending:
                yield from pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _with_proof(place: ChunkPlace) -> ChunkPlace:
    """Return the place of a frame and the proof before it, as one piece of the pack."""
    proof = place.proof_bytes
    return replace(place, offset=place.offset - proof, frame_bytes=place.frame_bytes + proof)


def _read_run(
    pool: ReadPool, decoder: FrameDecoder, run: Run, places: Sequence[ChunkPlace]
) -> Frames:
    stage = pool.staging(run.stop - run.start)
    try:
        tier = pool.read(run.pack, [(run.start, stage)])
    except Damaged:  # cut short: not every frame has to be
        return [decoder.copy(place) for place in places]
    except (NotFound, BackendError) as error:
        return [decoder.copy(place, error=error) for place in places]
    frames = []
    for place in places:
        start = place.offset - place.proof_bytes - run.start
        data = stage[start : place.offset + place.frame_bytes - run.start]
        try:
            decoder.check(place, data)
        except Damaged as error:
            frames.append(decoder.copy(place, frozenset([tier]), error))
        except (NotFound, BackendError) as error:  # of a base
            frames.append(decoder.copy(place, error=error))
        else:
            frames.append((place, bytes(data)))  # copied: a view would hold what lies between
    return frames
