"""The sweep: packs are deleted from every durable tier, and called deleted when each said so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tierstore.errors import BackendError, Damaged, NotFound
from tierstore.format.keys import pack_key
from tierstore.modelstore.reclaim.holdings import Holdings
from tierstore.progress import Progress
from tierstore.tiers.durable.tier import DurableTier

BATCH = 1000
_log = logging.getLogger("tierstore.gc")


class Checked(Protocol):
    """A right that can be lost."""

    def check(self) -> None:
        """Make sure that it holds now; ``Conflict`` when it does not."""


@dataclass(slots=True)
class Swept:
    """What a sweep did.

    Attributes:
        asked: The packs that the tiers were asked to delete.
        down: Why tiers could not be asked, by name: they may have any of these packs still.
        stopped: Which limit ended it; ``None`` if none did.
        freed: The bytes that were deleted, by the tier's name.
    """

    asked: set[bytes] = field(default_factory=set)
    down: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    freed: dict[str, int] = field(default_factory=dict)


def sweep(
    packs: Sequence[bytes],
    holdings: Holdings,
    lease: Checked,
    *,
    max_bytes: int | None,
    is_over: Callable[[], bool],
    progress: Progress | None = None,
) -> Swept:
    """Delete packs, batch by batch, from the fastest tier to the slowest.

    Args:
        packs: Their ids.
        holdings: Which tiers have them.
        lease: The right to do so, which is checked before each batch.
        max_bytes: End before more than this is deleted, counted in all tiers; ``None``: no limit.
        is_over: Asked before each batch: whether the time is over.
        progress: Called with the bytes that were deleted and those to delete, after each batch.

    Raises:
        Conflict: The lease is lost.
    """
    done = Swept(down=dict(holdings.down))
    left = max_bytes
    total, gone = _bytes(packs, holdings), 0
    for batch in _batches(packs):
        if is_over():
            done.stopped = "the time is over"
            return done
        if left is not None:
            batch = _within(batch, holdings, left)
            left -= _bytes(batch, holdings)
        if not batch:
            done.stopped = "the limit of bytes is reached"
            return done
        for tier in holdings.packs.tiers:
            _delete(tier, batch, holdings, lease, done)
        done.asked.update(batch)
        if progress is not None:
            gone += _bytes(batch, holdings)
            progress(gone, total)
    if len(done.asked) < len(packs):
        done.stopped = "the limit of bytes is reached"
    return done


def _bytes(packs: Sequence[bytes], holdings: Holdings) -> int:
    return sum(sum(holdings.bytes_of(pack).values()) for pack in packs)


def _batches(packs: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [packs[at : at + BATCH] for at in range(0, len(packs), BATCH)]


def _within(packs: Sequence[bytes], holdings: Holdings, most: int) -> Sequence[bytes]:
    found = []
    for pack in packs:
        most -= sum(holdings.bytes_of(pack).values())
        if most < 0:
            break
        found.append(pack)
    return found


def _delete(
    tier: DurableTier, batch: Sequence[bytes], holdings: Holdings, lease: Checked, done: Swept
) -> None:
    """Delete a batch from one tier, also what it had not when it was listed: it may have moved."""
    if tier.name in done.down:
        return
    lease.check()
    try:
        tier.verify()
        tier.blobs.delete([pack_key(pack) for pack in batch])
    except (BackendError, Damaged, NotFound) as error:
        _log.warning("tier %s did not delete what is condemned: %s", tier.name, error)
        done.down[tier.name] = str(error)
        return
    held = holdings.by_tier.get(tier.name, {})
    gone = sum(held.get(pack, 0) for pack in batch)
    holdings.packs.room(tier).add(-gone)
    if gone:
        done.freed[tier.name] = done.freed.get(tier.name, 0) + gone
