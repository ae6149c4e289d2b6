"""Repacks: what is needed of packs with much waste goes into new packs (SPEC.md 10.1).

::

    copy into new packs, read back -> moves from the old packs into the new -> condemn the old

From then on the old packs are condemned ones like others: a mark and what it heals stand between
them and their end. So this may stop anywhere, and whatever became needed meanwhile is seen to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field

import blake3

from tierstore.errors import BackendError, Damaged, NotFound, OutOfSpace
from tierstore.format.keys import pack_key
from tierstore.format.pack import PackBuilder
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.chunks.writemove import write_move
from tierstore.modelstore.home.confirm import gone_packs
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.index import write_segment
from tierstore.modelstore.placing.moverlease import HeldLease
from tierstore.modelstore.reclaim.frames import read_frames
from tierstore.modelstore.reclaim.mark import Mark, Marker
from tierstore.modelstore.reclaim.report import BYTES_REACHED
from tierstore.modelstore.reclaim.waste import NeededFrames, PackWaste, find_waste, needed_frames
from tierstore.tiers.durable.tier import DurableTier

STORE_WASTE = 0.05
"""The share of waste in the packs of a store from which on any are repacked."""

PACK_WASTE = 0.20
"""The share of waste in a pack from which on it is repacked."""

MOST_WASTE = 0.10
"""The share of waste in the packs of a store that is left at most."""

_log = logging.getLogger("tierstore.gc")


@dataclass(slots=True)
class Repacked:
    """What a repack did, or would do.

    Attributes:
        packs: The packs that were given up: all that is needed of them lies elsewhere by now.
        into: The packs in which that lies.
        waste_bytes: The waste in packs that may be repacked, before, in one tier.
        written_bytes: The bytes of the new packs, in all tiers together.
        stopped: Which limit ended it; ``None`` if none did.
        tried: Whether there was anything to do, or that is unknown.
    """

    packs: set[bytes] = field(default_factory=set)
    into: set[bytes] = field(default_factory=set)
    waste_bytes: int = 0
    written_bytes: int = 0
    stopped: str | None = None
    tried: bool = True


def plan(found: Sequence[PackWaste]) -> list[PackWaste]:
    """Return which packs to repack, those with the greatest share of waste first.

    Args:
        found: The waste of all packs that may be repacked, the greatest share first.
    """
    total = sum(one.bytes for one in found)
    left = sum(one.waste_bytes for one in found)
    chosen: list[PackWaste] = []
    if left <= STORE_WASTE * total:
        return chosen
    for one in found:
        if one.share <= PACK_WASTE and left <= MOST_WASTE * total:
            break
        chosen.append(one)
        left -= one.waste_bytes
        total -= one.waste_bytes
    return chosen


class Repacker:
    """Repacks packs of one store by what one mark found.

    Args:
        home: The store's home.
        marker: The marker that found it.
        mark: What it found; nothing was lacking.
    """

    def __init__(self, home: Home, marker: Marker, mark: Mark) -> None:
        self._home, self._ways, self._mark = home, marker.ways, mark
        self._done = Repacked()
        self._chosen: set[bytes] = set()
        self._sizes: dict[bytes, int] = {}
        """The bytes of the packs that are relied on, by id."""
        self._bases: dict[bytes, tuple[bytes, ...]] = {}
        """The bases of what is being copied, by digest: a chunk is copied once."""
        self._new: dict[bytes, bytes] = {}
        """The packs in which chunks are from now on, by digest."""
        self._waiting: dict[bytes, set[bytes]] = {}
        """The chunks that must be in other packs before a pack is given up, by that."""
        self._later: list[bytes] = []
        """Packs that have a chunk in another way than it is copied already."""

    def run(
        self, lease: HeldLease | None, max_bytes: int | None, is_over: Callable[[], bool]
    ) -> Repacked:
        """Copy what is needed out of packs with waste, and write moves.

        What cannot be read or written now is left as it is, to a later run.

        Args:
            lease: The right to collect; ``None`` if nothing is to be changed.
            max_bytes: The most bytes of new packs, and of condemned ones that are still there, in
                all tiers together; ``None``: no limit.
            is_over: Asked before each pack: whether the time is over.

        Raises:
            Damaged, NotFound: Metadata of something that stays cannot be read.
            Conflict: The lease is lost.
        """
        done = self._done
        holdings = self._mark.holdings
        if holdings.down:  # nothing would be freed there, and what is there is unknown
            return done
        needed = needed_frames(self._mark, self._allowed())
        found = find_waste(self._mark, self._ways, needed)
        done.waste_bytes = sum(one.waste_bytes for one in found)
        left = None
        if max_bytes is not None:
            waiting = self._mark.condemned.listed & holdings.every()
            left = max_bytes - sum(sum(holdings.bytes_of(one).values()) for one in waiting)
        planned = plan(found)
        done.tried = bool(planned)
        chosen = self._within(planned, left)
        self._chosen = {one.pack for one in chosen}
        if lease is None:
            done.packs = self._chosen
            return done
        try:
            for tiers, packs in self._by_tiers(chosen).items():
                try:
                    self._repack_all(packs, tiers, needed, lease, is_over)
                except OutOfSpace as full:
                    _log.info("packs with waste are repacked one by one: %s", full)
                    self._repack_each(packs, tiers, needed, lease, is_over)
        except (BackendError, Damaged, NotFound) as error:
            _log.warning("packs with waste are left as they are: %s", error)
            done.stopped = f"packs with waste are left as they are: {error}"
            if isinstance(error, OutOfSpace):
                done.stopped = "there was no room to repack packs with waste"
        self._confirm()
        return done

    def give_up(self, packs: Set[bytes], lease: HeldLease) -> Repacked:
        """Copy what is needed out of these packs, however little of them is waste.

        Readers that hold a pack are no hindrance: they follow the moves. What is in archives alone,
        or cannot be read or written now, is left as it is.

        Args:
            packs: The ids of packs that stay.
            lease: The right to collect.

        Raises:
            Damaged, NotFound: Metadata of something that stays cannot be read.
            Conflict: The lease is lost.
        """
        self._chosen = {pack for pack in packs if self._mark.needs.standing(pack) == "good"}
        needed = needed_frames(self._mark, sorted(self._chosen), self._mark.below)
        found = [PackWaste(pack, 0, 1.0) for pack in sorted(self._chosen)]
        for tiers, chosen in self._by_tiers(found).items():
            try:
                self._repack_all(chosen, self._open_tiers(tiers), needed, lease, lambda: False)
            except (BackendError, Damaged, NotFound) as error:
                _log.warning("packs stay as they are: %s", error)
                self._done.stopped = str(error)
        self._confirm()
        return self._done

    def _open_tiers(self, names: Sequence[str]) -> list[str]:
        """Return those of the tiers that take packs and give them at once; else home."""
        tiers = self._mark.holdings.packs.tiers
        fit = [one.name for one in tiers if one.takes_writes and one.archive is None]
        return [name for name in names if name in fit] or [tiers[-1].name]

    def _allowed(self) -> list[bytes]:
        """Return the packs that may be repacked.

        Not those that readers hold, as the copy would be there besides them; not those that are in
        archives, which are not read for that; and not those in tiers that are being emptied.
        """
        mark, holdings = self._mark, self._mark.holdings
        closed = {
            tier.name
            for tier in holdings.packs.tiers
            if tier.archive is not None or not tier.takes_writes
        }
        return [
            pack
            for pack in sorted(mark.live.keys() - mark.held)
            if (tiers := holdings.bytes_of(pack))
            and mark.needs.standing(pack) == "good"
            and closed.isdisjoint(tiers)
        ]

    def _within(self, chosen: Sequence[PackWaste], left: int | None) -> list[PackWaste]:
        """Return those of which the copies are within the limit of bytes."""
        if left is None:
            return list(chosen)
        found = []
        for one in chosen:
            copies = len(self._mark.holdings.bytes_of(one.pack))
            left -= copies * (one.bytes - one.waste_bytes)
            if left < 0:
                self._done.stopped = BYTES_REACHED
                break
            found.append(one)
        return found

    def _by_tiers(self, chosen: Sequence[PackWaste]) -> dict[tuple[str, ...], list[bytes]]:
        found: dict[tuple[str, ...], list[bytes]] = {}
        for one in chosen:
            tiers = tuple(self._mark.holdings.bytes_of(one.pack))
            found.setdefault(tiers, []).append(one.pack)
        return found

    def _repack_all(
        self,
        packs: Sequence[bytes],
        tiers: Sequence[str],
        needed: NeededFrames,
        lease: HeldLease,
        is_over: Callable[[], bool],
    ) -> None:
        """Repack packs that lie in the same tiers; the new ones come into these, too."""
        while packs:
            self._bases, self._new, self._later = {}, {}, []
            builder = PackBuilder()
            for pack in packs:
                if is_over():
                    self._done.stopped = "the time is over"
                    self._later = []
                    break
                lease.check()
                for place, data in self._frames(pack, needed):
                    builder.copy(place, data)
                    if builder.full:
                        self._put(builder, tiers)
                        builder = PackBuilder()
                self._give_up()
            if len(builder):
                self._put(builder, tiers)
            self._give_up()
            packs = self._later if len(self._later) < len(packs) else []

    def _repack_each(
        self,
        packs: Sequence[bytes],
        tiers: Sequence[str],
        needed: NeededFrames,
        lease: HeldLease,
        is_over: Callable[[], bool],
    ) -> None:
        """Repack one pack after the other where there is no room for a whole new one.

        Those of which the least is needed come first. Once they are deleted there is room for more.
        """
        needed_bytes = needed.bytes_by_pack()
        for pack in sorted(packs, key=lambda one: needed_bytes[one]):
            if pack not in self._done.packs:
                self._waiting.clear()  # what did not fit was not written
                self._repack_all([pack], tiers, needed, lease, is_over)

    def _frames(self, pack: bytes, needed: NeededFrames) -> Iterator[tuple[ChunkPlace, bytes]]:
        """Yield what is to be copied of a pack, and note what must be there before it goes."""
        places = needed.among(pack, self._ways.footer(pack))
        if not all(self._stands_in(place) for place in places):
            self._later.append(pack)
            return
        copied: dict[bytes, ChunkPlace] = {}
        for place in sorted(places, key=lambda one: len(one.bases)):  # the standalone ones first
            if place.digest not in self._bases:
                found = self._elsewhere(place)
                if found is None:
                    copied.setdefault(place.digest, place)
                else:
                    self._bases[place.digest] = found.bases
                    self._new[place.digest] = found.pack
        try:
            frames = read_frames(self._home.packs, pack, list(copied.values())) if copied else []
        except (Damaged, NotFound, BackendError) as error:
            _log.warning("pack %s keeps its waste: %s", pack.hex(), error)
            return
        self._bases |= {place.digest: place.bases for place in copied.values()}
        self._waiting[pack] = {place.digest for place in places}
        yield from frames

    def _elsewhere(self, place: ChunkPlace) -> ChunkPlace | None:
        """Return where a move leads to the chunk already, as after a repack that was stopped."""
        found = self._ways.targets(place.pack).find(place.digest)
        if found is None or (found.bases and found.bases != place.bases):
            return None
        sizes = self._mark.holdings.bytes_of(found.pack)
        if not sizes or self._mark.needs.standing(found.pack) != "good":
            return None
        if found.pack in self._chosen:
            return None
        self._sizes[found.pack] = max(sizes.values())
        return found

    def _stands_in(self, place: ChunkPlace) -> bool:
        """Return whether what is copied of a chunk, if anything, serves who comes from this place.

        A standalone frame does, and of deltas only those on the same bases.
        """
        bases = self._bases.get(place.digest, ())
        return not bases or bases == place.bases

    def _put(self, builder: PackBuilder, tiers: Sequence[str]) -> None:
        """Write a new pack into all tiers that the old ones are in, and read it back."""
        pack, buffers, places = builder.close()
        digest = blake3.blake3()
        for buffer in buffers:
            digest.update(buffer)
        size = sum(map(len, buffers))
        for tier in self._home.packs.tiers:
            if tier.name in tiers:
                if not self._home.packs.room(tier).fits(size):
                    raise OutOfSpace(f"tier {tier.name} has no room for what is repacked")
                tier.verify()
                tier.blobs.put(pack_key(pack), buffers)
                self._home.packs.room(tier).add(size)
                self._done.written_bytes += size
                self._compare(tier, pack, digest.digest())
        self._sizes[pack] = size
        self._new |= {place.digest: pack for place in places}
        # saves find the chunks in the new pack then, and not in the old ones alone
        write_segment(self._home.blobs, places, {pack: size})

    def _compare(self, tier: DurableTier, pack: bytes, digest: bytes) -> None:
        tier.verify()  # it is safe only if the tier was there while it was written
        key = pack_key(pack)
        if blake3.blake3(tier.blobs.get(key)).digest() != digest:
            raise Damaged(
                f"the pack {key} in tier {tier.name} is not what was written to it; it is garbage, "
                f"and tier {tier.name} must be looked after"
            )

    def _give_up(self) -> None:
        """Write the moves of the packs of which all that is needed lies elsewhere by now."""
        for pack, digests in list(self._waiting.items()):
            if digests <= self._new.keys():
                del self._waiting[pack]
                targets = self._ways.targets(pack)
                known = {one: targets.find(one) for one in digests}
                into = {
                    self._new[one]
                    for one, place in known.items()
                    if place is None or place.pack != self._new[one]
                }
                if into:
                    write_move(self._home, pack, into)
                self._done.packs.add(pack)

    def _confirm(self) -> None:
        """Give nothing up for packs that another collector has taken for garbage meanwhile."""
        self._done.into = set(self._sizes)
        try:
            gone = gone_packs(self._home, self._sizes)
        except BackendError as error:
            _log.warning("nothing is repacked: %s", error)
            gone = self._done.into
        if gone:
            _log.warning("what was repacked is condemned by now: the old packs stay")
            self._done.packs.clear()
