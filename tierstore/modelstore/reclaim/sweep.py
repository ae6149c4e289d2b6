"""The sweep: packs are deleted from every durable tier, and called deleted when each said so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from tierstore.errors import BackendError, Damaged, NotFound, Unreachable
from tierstore.format.keys import pack_key
from tierstore.modelstore.home.identity import Identity
from tierstore.modelstore.home.probe import prove
from tierstore.modelstore.reclaim.holdings import Holdings, held_by
from tierstore.modelstore.reclaim.report import BYTES_REACHED
from tierstore.progress import Progress
from tierstore.tiers.durable.tier import DurableTier

BATCH = 1000
_NOBODYS = "it does not say yet which home deletes there; the next collection writes that down"
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
        answered: Those of them for which a tier that was asked gave an answer, by its name.
        down: Why tiers could not be asked, by name: they may have any of these packs still.
        refused: Why tiers did not delete some of these packs, by name.
        left: The packs that are still in such a tier, by its name.
        stopped: Which limit ended it; ``None`` if none did.
        freed: The bytes that were deleted, by the tier's name.
        kept: The bytes that were deleted and that a tier keeps as older versions, by its name.
    """

    asked: set[bytes] = field(default_factory=set)
    answered: dict[str, set[bytes]] = field(default_factory=dict)
    down: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left: dict[str, Set[bytes]] = field(default_factory=dict)
    stopped: str | None = None
    freed: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)

    def may_have(self, pack: bytes) -> list[str]:
        """Return the names of tiers that may have a pack still which they were asked to delete."""
        return [*self.down, *(name for name, packs in self.left.items() if pack in packs)]


def sweep(
    packs: Sequence[bytes],
    holdings: Holdings,
    lease: Checked,
    identity: Identity,
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
        identity: Tells whether this is the home that deletes in a tier, before each batch, too.
        max_bytes: End before more than this is deleted, counted in all tiers; ``None``: no limit.
        is_over: Asked before each batch: whether the time is over.
        progress: Called with the bytes that were deleted and those to delete, first and after each
            batch.

    Raises:
        Conflict: The lease is lost.
        OtherHome: Another home deletes in a tier.
    """
    done = Swept(down=dict(holdings.down))
    total, gone = _bytes(packs, holdings), 0
    if progress is not None:
        progress(0, total)
    for batch in _limited(packs, holdings, max_bytes, is_over, done):
        for tier in holdings.packs.tiers:
            _delete(tier, batch, lease, identity, done)
        done.asked.update(batch)
        if progress is not None:
            gone += _bytes(batch, holdings)
            progress(gone, total)
    for tier in holdings.packs.tiers:
        _count(tier, holdings, done)
    return done


def _limited(
    packs: Sequence[bytes],
    holdings: Holdings,
    max_bytes: int | None,
    is_over: Callable[[], bool],
    done: Swept,
) -> Iterator[Sequence[bytes]]:
    """Yield batches until a limit is reached, which is noted."""
    left = max_bytes
    for batch in _batches(packs):
        if is_over():
            done.stopped = "the time is over"
            return
        if left is not None:
            batch = _within(batch, holdings, left)
            left -= _bytes(batch, holdings)
        if batch:
            yield batch
    if len(done.asked) < len(packs):
        done.stopped = BYTES_REACHED


def _bytes(packs: Sequence[bytes], holdings: Holdings) -> int:
    return sum(sum(holdings.bytes_of(pack).values()) for pack in packs)


def _batches(packs: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [packs[at : at + BATCH] for at in range(0, len(packs), BATCH)]


def _within(packs: Sequence[bytes], holdings: Holdings, most: int) -> Sequence[bytes]:
    """Return those packs that fit one after the other: a large one keeps no smaller one."""
    found = []
    for pack in packs:
        needs = _bytes([pack], holdings)
        if needs <= most:
            most -= needs
            found.append(pack)
    return found


def _delete(
    tier: DurableTier, batch: Sequence[bytes], lease: Checked, identity: Identity, done: Swept
) -> None:
    """Delete a batch from one tier, also what it had not when it was listed: it may have moved."""
    if tier.name in done.down:
        return
    lease.check()
    try:
        keeper = tier.verify()
        if keeper is None and tier.store_id is not None:
            raise Unreachable(_NOBODYS)  # as one that was down when the tiers were marked
        identity.check(tier, keeper)
        tier.blobs.delete([pack_key(pack) for pack in batch])
    except (Unreachable, Damaged, NotFound) as error:
        said = "tier %s did not delete what is condemned: %s"
        _log.warning(said, tier.name, error, extra={"tier": tier.name})
        done.down[tier.name] = str(error)
        return
    except BackendError as error:  # it is asked for the others all the same: each may be allowed
        _log.warning("tier %s did not delete all that is condemned: %s", tier.name, error)
        done.refused.setdefault(tier.name, str(error))
    done.answered.setdefault(tier.name, set()).update(batch)


def _count(tier: DurableTier, holdings: Holdings, done: Swept) -> None:
    """Find out what is gone from a tier, and whether that gave back any space."""
    held = holdings.by_tier.get(tier.name, {})
    gone = done.answered.get(tier.name, set()) & held.keys()
    if tier.name in done.refused:
        try:
            left = gone & held_by(tier).keys()
        except (BackendError, NotFound) as error:
            done.down[tier.name] = str(error)
            return
        gone, done.left[tier.name] = gone - left, left
        if not left:  # it has deleted all, though a power loss may bring some of it back
            del done.refused[tier.name]
    freed = sum(held[pack] for pack in gone)
    if freed:
        holdings.packs.room(tier).add(-freed)
        (done.kept if _keeps_versions(tier) else done.freed)[tier.name] = freed


def _keeps_versions(tier: DurableTier) -> bool:
    """Return whether a tier keeps what is deleted, as far as it lets that be found out."""
    try:
        return tier.blobs.capabilities.may_keep_versions and prove(tier.blobs)
    except BackendError as error:
        _log.info("whether tier %s keeps older versions is not known: %s", tier.name, error)
        return False
