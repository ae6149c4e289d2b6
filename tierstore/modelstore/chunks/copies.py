"""The copies of one pack in the durable tiers: which are good, and what is good in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from tierstore.errors import BackendError, Damaged, NotFound, Unreachable, UnsupportedFormat
from tierstore.format.checks import digest_of
from tierstore.format.keys import pack_key
from tierstore.format.proof import can_prove, parse_proof
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.home.home import Home
from tierstore.tiers.durable.packcheck import check_frame, check_pack, places_in
from tierstore.tiers.durable.tier import DurableTier


@dataclass(frozen=True, slots=True)
class Copy:
    """One tier's copy of a pack.

    Attributes:
        tier: The tier that has it.
        data: Its bytes; none where the tier says itself that they are damaged, or cannot read them.
        why: What is wrong with it; ``None`` when it is good.
    """

    tier: DurableTier
    data: memoryview
    why: Damaged | UnsupportedFormat | None = None


@dataclass(slots=True)
class Copies:
    """The copies of a pack in the tiers that could be asked, archives left out.

    Attributes:
        pack: The id of the pack.
        every: The copies, that of the fastest tier first.
        down: Why tiers could not be asked for it, by name: they may have a good copy.
        archives: The names of tiers that have it in an archive.
    """

    pack: bytes
    every: list[Copy] = field(default_factory=list)
    down: dict[str, str] = field(default_factory=dict)
    archives: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The key of the pack."""
        return pack_key(self.pack)

    @property
    def good(self) -> Copy | None:
        """A good copy, if there is one."""
        return next((copy for copy in self.every if copy.why is None), None)

    @property
    def bad(self) -> list[Copy]:
        """The damaged copies.

        One that calls itself newer is damaged if another is good: both have the same id, and so
        should have the same bytes.
        """
        good = self.good is not None
        return [
            copy
            for copy in self.every
            if isinstance(copy.why, Damaged) or (good and copy.why is not None)
        ]

    @property
    def newer(self) -> bool:
        """Whether a copy seems to be of a newer version, and none is good."""
        return self.good is None and any(
            isinstance(copy.why, UnsupportedFormat) for copy in self.every
        )

    @property
    def places(self) -> list[ChunkPlace] | None:
        """The places of the chunks by the pack's index; ``None`` where no copy has a good one."""
        for copy in self.every:
            with suppress(Damaged, UnsupportedFormat):
                return _chunks(places_in(self.key, copy.data))
        return None

    def frame(self, place: ChunkPlace) -> memoryview | None:
        """Return the proof and the frame of a chunk from a copy where both are good."""
        begin, end = place.offset - place.proof_bytes, place.offset + place.frame_bytes
        for copy in self.every:
            with suppress(Damaged, UnsupportedFormat):
                frame = copy.data[place.offset : end]
                head = check_frame(frame, place, self.key)
                if place.proof_bytes and can_prove():
                    parse_proof(copy.data[begin : place.offset], head, self.key)
                return copy.data[begin:end]
        return None

    def whole(self) -> memoryview | None:
        """Return the whole pack: a good copy, or one put together from what is good in each."""
        if self.good is not None:
            return self.good.data
        for copy in self.every:
            with suppress(Damaged, UnsupportedFormat):
                data = self._filled(copy)
                check_pack(self.key, data)
                return data
        return None

    def _filled(self, copy: Copy) -> memoryview:
        """Return a copy whose index is good with those frames of others that are bad in it."""
        data = memoryview(bytearray(copy.data))
        for place in places_in(self.key, copy.data):
            end = place.offset + place.frame_bytes
            found = self.frame(replace(place, proof_bytes=0))
            if found is None:
                raise Damaged("this frame is bad in every copy")
            data[place.offset : end] = found
        return data


def _chunks(places: Sequence[ChunkPlace]) -> list[ChunkPlace]:
    """Leave out the frames of proofs, which go with those of their chunks."""
    proofs = {place.offset - place.proof_bytes for place in places if place.proof_bytes}
    return [place for place in places if place.offset not in proofs]


def read_copies(
    home: Home,
    pack: bytes,
    check: Callable[[str, memoryview], None] = check_pack,
    *,
    until_good: bool = False,
) -> Copies:
    """Read the copy of a pack in every durable tier that can be asked, and check each.

    Args:
        home: The store's home.
        pack: The id of the pack.
        check: Checks a copy, by its key and bytes; raises ``Damaged`` or ``UnsupportedFormat``.
        until_good: Whether to read none behind the first good copy.
    """
    found = Copies(pack)
    good: bytes | None = None
    for tier in home.packs.tiers:
        if tier.archive is not None:
            with suppress(NotFound, BackendError):
                tier.blobs.info(found.key)
                found.archives.append(tier.name)
            continue
        data = memoryview(b"")
        why: Damaged | UnsupportedFormat | None = None
        try:
            tier.verify()
            data = tier.blobs.get(found.key)
            if good is None or digest_of(data).raw != good:
                check(found.key, data)
                good = digest_of(data).raw
        except NotFound:
            continue
        except BackendError as error:
            try:
                down = why_down(tier, found.key, error)
            except NotFound:
                continue
            if down is not None:
                found.down[tier.name] = str(down)
                continue
            why = Damaged(f"it cannot be read: {error}")
        except (Damaged, UnsupportedFormat) as error:
            why = error
        found.every.append(Copy(tier, data, why))
        if why is None and until_good:
            break
    return found


def why_down(tier: DurableTier, key: str, error: BackendError) -> BackendError | None:
    """Return why a tier counts as down after a copy in it could not be read.

    Args:
        tier: The tier.
        key: The key of the pack.
        error: What reading it failed with.

    Returns:
        The reason; ``None`` where the tier answers and has the copy: then that copy alone cannot be
        read, as on a bad sector.

    Raises:
        NotFound: The copy is gone.
    """
    if isinstance(error, Unreachable):
        return error
    try:
        tier.verify()
        tier.blobs.info(key)
    except BackendError as other:
        return other
    return None
