"""Condemned lists and their segments: packs that are deleted, or will be (SPEC.md section 10)."""

import itertools
import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from tierstore.format.checks import Broken, damaged
from tierstore.format.reflog import Microseconds, Seq
from tierstore.format.sealed import Body, Hex32, Hex64, Kind, unseal_body
from tierstore.ids import DIGEST_BYTES, Buffer, split_digests

_LEAST_FILTER_BYTES = 64  # a filter of a byte finds every fifth other pack in it
_WORDS = struct.Struct("<6I")


class SegmentOfList(msgspec.Struct, frozen=True, kw_only=True):
    """What a condemned list says of one of its segments.

    Attributes:
        key: The random part of the segment's key.
        time_us: When they were condemned, in microseconds since the epoch by home's clock.
    """

    key: Hex32
    time_us: Microseconds


class CondemnedList(Body, frozen=True, kw_only=True):
    """The segments that hold all condemned packs, and a filter of their ids.

    Attributes:
        seq: The number of the list.
        run: The collector's run that wrote it: random, so that a lost answer can be resolved.
        time_us: When it was written, in microseconds since the epoch by home's clock.
        filter: A Bloom filter of the ids of all packs in the segments.
        segments: The segments.
    """

    seq: Seq
    run: Hex32
    time_us: Microseconds
    filter: bytes
    segments: list[SegmentOfList]

    def check(self) -> None:
        """Raise ``Broken`` unless there is a filter exactly where there are segments."""
        if bool(self.filter) != bool(self.segments):
            raise Broken("it has a filter without segments, or segments without a filter")
        if len({segment.key for segment in self.segments}) < len(self.segments):
            raise Broken("it names a segment twice")

    def may_hold(self, pack: bytes) -> bool:
        """Return whether the filter has a pack: always if it is condemned, else seldom."""
        bits = 8 * len(self.filter)
        return bits > 0 and all(
            self.filter[bit >> 3] >> (bit & 7) & 1
            for bit in (word % bits for word in _WORDS.unpack_from(pack))
        )


class CondemnedSegment(Body, frozen=True, kw_only=True):
    """The ids of condemned packs, or the digests of condemned manifests, 32 bytes each, rising."""

    packs: bytes = b""
    manifests: bytes | msgspec.UnsetType = msgspec.UNSET

    def check(self) -> None:
        """Raise ``Broken`` unless it has either, and they rise."""
        if self.manifests is msgspec.UNSET:
            every = self.packs
        else:
            every = b"" if self.packs else self.manifests
        if not every or len(every) % DIGEST_BYTES:
            raise Broken("its packs are no list of ids")
        ids = split_digests(every)
        if any(low >= high for low, high in itertools.pairwise(ids)):
            raise Broken("its packs do not rise")


class Ids(NamedTuple):
    """What a segment holds: ids of packs, or digests of manifests."""

    packs: frozenset[bytes] = frozenset()
    manifests: frozenset[bytes] = frozenset()

    @property
    def every(self) -> frozenset[bytes]:
        """Both: no id is a digest."""
        return self.packs | self.manifests


class EarlyCondemned(Body, frozen=True, kw_only=True):
    """A list of condemned packs in a form that is not written any more, or a notice.

    A notice has the digests of manifests that are about to be condemned: who knows none takes it
    for an early list, and publishes none of these either.
    """

    run: str
    packs: list[Hex64]


def filter_of(packs: Iterable[bytes]) -> bytes:
    """Return the Bloom filter of these packs, by their ids: a byte for each, 64 at least."""
    ids = list(packs)
    found = bytearray(max(len(ids), _LEAST_FILTER_BYTES) if ids else 0)
    bits = 8 * len(found)
    for pack in ids:
        for word in _WORDS.unpack_from(pack):
            bit = word % bits
            found[bit >> 3] |= 1 << (bit & 7)
    return bytes(found)


def parse_list(data: Buffer, seq: int, name: str) -> CondemnedList:
    """Unseal and check the condemned list of this number."""
    found = unseal_body(Kind.CONDEMNED_LIST, data, CondemnedList, name)
    if found.seq != seq:
        damaged(name, f"it is list {found.seq}")
    return found


def parse_segment(data: Buffer, name: str) -> Ids:
    """Unseal and check a segment of condemned lists; return what it holds."""
    body = unseal_body(Kind.CONDEMNED_SEGMENT, data, CondemnedSegment, name)
    manifests = b"" if body.manifests is msgspec.UNSET else body.manifests
    return Ids(frozenset(split_digests(body.packs)), frozenset(split_digests(manifests)))
