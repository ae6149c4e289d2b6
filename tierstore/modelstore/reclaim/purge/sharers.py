"""Who else needs what is purged: each need is looked at once, for all orders (SPEC.md 10.3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from tierstore.format.purge import SharedChunks
from tierstore.ids import Digest
from tierstore.modelstore.reclaim.layouts import Layouts
from tierstore.modelstore.reclaim.mark import Mark
from tierstore.modelstore.reclaim.purge.frames import Frames


@dataclass(slots=True)
class Shared:
    """What others need of the chunks of one order.

    Attributes:
        kept: The chunks that others need.
        for_good: Those of them that others need for more than a while.
        by: Who needs the latter, the largest first.
        waits: Who needs chunks for a while only, in words.
    """

    kept: set[bytes] = field(default_factory=set)
    for_good: set[bytes] = field(default_factory=set)
    by: list[SharedChunks] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


def find_sharing(
    contents: Sequence[Set[bytes]], mark: Mark, layouts: Layouts, frames: Frames
) -> list[Shared]:
    """Find out who else needs the chunks of orders.

    The chunks that one root needs are held in memory at a time, and of each only whose it is.

    Args:
        contents: The chunks of each order.
        mark: What roots need.
        layouts: Tells their chunks.
        frames: Has looked for all these chunks, and tells their bytes.

    Returns:
        What is shared of each order, in the same order.
    """
    found = [Shared() for _ in contents]
    whose = _owners(contents)
    manifests: dict[tuple[str, bool], list[Digest]] = defaultdict(list)
    for manifest, reason in (mark.below | mark.kept).items():
        manifests[reason.why, manifest in mark.firm].append(manifest)
    for (why, is_firm), needed in sorted(manifests.items()):
        by_owners: dict[tuple[int, ...], set[bytes]] = defaultdict(set)
        for manifest in needed:
            for digest in layouts.chunks(manifest):
                if owners := whose.get(digest):
                    by_owners[owners].add(digest)
        for at, parts in _by_order(by_owners, frames).items():
            _note(found[at], why, parts, is_firm=is_firm)
    for one in found:
        one.by.sort(key=lambda by: (-by.plain_bytes, by.why))
    return found


def _owners(contents: Sequence[Set[bytes]]) -> dict[bytes, tuple[int, ...]]:
    """Return whose each chunk is, by the numbers of orders; equal answers are one object."""
    found: dict[bytes, tuple[int, ...]] = {}
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    for at, digests in enumerate(contents):
        for digest in digests:
            owners = (*found.get(digest, ()), at)
            found[digest] = known.setdefault(owners, owners)
    return found


def _by_order(
    by_owners: Mapping[tuple[int, ...], Set[bytes]], frames: Frames
) -> dict[int, list[tuple[Set[bytes], int]]]:
    """Return the chunks of each order, in parts with their plain bytes."""
    found: dict[int, list[tuple[Set[bytes], int]]] = defaultdict(list)
    for owners, chunks in by_owners.items():
        part = chunks, frames.plain_bytes(chunks)
        for at in owners:
            found[at].append(part)
    return found


def _note(one: Shared, why: str, parts: Sequence[tuple[Set[bytes], int]], *, is_firm: bool) -> None:
    """Note who needs chunks of an order, for good or for a while."""
    chunks = [part for part, _ in parts]
    one.kept.update(*chunks)
    if not is_firm:
        one.waits.append(f"{why} needs it for a while")
        return
    one.for_good.update(*chunks)
    plain_bytes = sum(nbytes for _, nbytes in parts)
    one.by.append(SharedChunks(why=why, chunks=sum(map(len, chunks)), plain_bytes=plain_bytes))
