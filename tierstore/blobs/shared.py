"""Helpers of the stores for taking their arguments apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, wait
from typing import TypeVar

from tierstore.blobs.base import RangeRead, check_key
from tierstore.errors import InvalidName, TierstoreError, Unreachable
from tierstore.ids import Buffer

IOV_MAX = 1024
"""The most buffers that one system call takes: Linux's UIO_MAXIOV."""

T = TypeVar("T")
R = TypeVar("R")


def flat_views(data: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """Return ``data`` as flat, read-only, non-empty byte views, in order and without a copy.

    Raises:
        TypeError: A part is not a C-contiguous buffer.
    """
    parts: Iterable[Buffer]
    parts = (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data
    views = (memoryview(part) for part in parts)
    # A zero-sized view of several dimensions cannot be cast, and an empty one writes nothing.
    return [view.cast("B").toreadonly() for view in views if view.nbytes]


def size_of(data: Buffer | Sequence[Buffer]) -> int:
    """Return the bytes of all of ``data`` together."""
    parts = (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data
    return sum(memoryview(part).nbytes for part in parts)


def joined(data: Buffer | Sequence[Buffer]) -> bytes:
    """Return ``data`` as one ``bytes``: the caller's own object if it is one, otherwise a copy."""
    return data if isinstance(data, bytes) else b"".join(flat_views(data))


def by_key(reads: Sequence[RangeRead]) -> dict[str, list[RangeRead]]:
    """Group ``reads`` by key, each group in the order of its offsets."""
    groups: dict[str, list[RangeRead]] = {}
    for read in reads:
        groups.setdefault(read.key, []).append(read)
    for group in groups.values():
        group.sort(key=lambda read: read.start)
    return groups


def writable(out: memoryview) -> memoryview:
    """Return ``out`` as flat bytes; ``TypeError`` or ``ValueError`` when it cannot be filled."""
    if out.readonly:
        raise ValueError("RangeRead.out must be writable")
    return out.cast("B") if out.nbytes else memoryview(bytearray())


def folders_of(keys: Iterable[str], prefix: str) -> Iterator[str]:
    """Return the distinct first segments behind ``prefix`` of those ``keys`` that have a second."""
    tails = (key[len(prefix) :].partition("/") for key in keys)
    return iter(sorted({head for head, slash, _ in tails if slash}))


def runs(reads: Sequence[RangeRead]) -> Iterator[tuple[int, list[memoryview]]]:
    """Join the sorted reads of one blob that touch: one request fills all buffers of a run.

    Yields:
        The start of a run in bytes, and its buffers in order, without empty ones.
    """
    start = stop = 0
    outs: list[memoryview] = []
    for read in reads:
        if not read.out.nbytes:
            continue
        if outs and read.start != stop:
            yield start, outs
            outs = []
        if not outs:
            start = stop = read.start
        outs.append(writable(read.out))
        stop += read.out.nbytes
    if outs:
        yield start, outs


def drop_front(views: list[memoryview], count: int) -> None:
    """Remove ``count`` bytes from the front of ``views``."""
    done = 0
    for view in views:
        if count < view.nbytes:
            break
        count -= view.nbytes
        done += 1
    del views[:done]
    if count:
        views[0] = views[0][count:]


def is_key(path: str) -> bool:
    """Return whether a path can be a blob's key; other files in a storage are not listed."""
    try:
        check_key(path)
    except InvalidName:
        return False
    return True


def batches(sized: Iterable[tuple[T, int]], max_bytes: int, max_items: int) -> Iterator[list[T]]:
    """Yield runs of items within both limits, given their sizes; one too large stands alone."""
    batch: list[T] = []
    room = max_bytes
    for item, size in sized:
        if batch and (size > room or len(batch) == max_items):
            yield batch
            batch, room = [], max_bytes
        batch.append(item)
        room -= size
    if batch:
        yield batch


def without_refusals(
    work: Callable[[T], object], refused: list[TierstoreError]
) -> Callable[[T], None]:
    """Return ``work`` whose errors go into a list, but for that of a storage without an answer."""

    def tried(item: T) -> None:
        try:
            work(item)
        except Unreachable:
            raise
        except TierstoreError as error:
            refused.append(error)

    return tried


def each(pool: Executor, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do ``work`` on all items in parallel and return the results in order.

    When this returns or raises, no item is being worked on. The first error ends it: what has not
    begun is left out.
    """
    if len(items) == 1:
        return [work(items[0])]
    futures = [pool.submit(work, item) for item in items]
    for future in wait(futures, return_when=FIRST_EXCEPTION).not_done:
        future.cancel()
    wait(futures)
    for future in futures:
        if not future.cancelled() and (error := future.exception()):
            raise error
    return [future.result() for future in futures]
