"""Purge orders with their receipts, and what nodes say to them (SPEC.md section 10.3)."""

import itertools
from typing import Annotated

import msgspec

from tierstore.format.checks import Broken
from tierstore.format.reflog import Microseconds, Seq
from tierstore.format.sealed import Body, Hex32, Hex64
from tierstore.ids import DIGEST_BYTES, split_digests

DELTA_BYTES = DIGEST_BYTES + 16
"""Bytes of the key of a delta in a shared tier: the digest, and half a digest of its bases."""

Count = Annotated[int, msgspec.Meta(ge=0)]


class PurgedPack(msgspec.Struct, frozen=True, kw_only=True):
    """A pack with purged frames in one tier.

    Attributes:
        pack: Its id, in hex.
        tier: The name of the tier.
        bytes: Its length.
        gone: Whether it was deleted from there.
        why: Why it is there still; empty once it is gone.
    """

    pack: Hex64
    tier: str
    bytes: Count
    gone: bool = False
    why: str = ""


class SharedChunks(msgspec.Struct, frozen=True, kw_only=True):
    """Chunks of what was purged that somebody else needs.

    Attributes:
        why: Who needs them: a version, or why it stays.
        chunks: How many.
        plain_bytes: Their bytes, as far as these are known.
    """

    why: str
    chunks: Count
    plain_bytes: Count


class PurgeOrder(Body, frozen=True, kw_only=True):
    """A version that is to be purged, and the receipt of it.

    Attributes:
        id: Its name, random.
        time_us: When it was given, in microseconds since the epoch by the clock of whoever did.
        who: The user and the host.
        message: Why.
        model: The name of the model.
        version: The number of the version.
        manifest: The digest of its manifest, in hex.
        variants: The names of its variants that were found so far.
        digests: The digests of the manifests of the version and its variants, in hex, by the
            variant's name; that of the version by an empty one.
        updated_us: When somebody last went on with it, by the clock of whoever did.
        tries: How often somebody went on with it and did not end it: the next one waits longer.
        done: Whether nothing is left to do but by nodes.
        sweep: A number that rises each time caches have more to drop; not above the content's.
        chunks: How many distinct chunks were found.
        plain_bytes: Their bytes, as far as these are known.
        shared_chunks: How many of them somebody else needs.
        shared_plain_bytes: Their bytes, as far as these are known.
        shared: Who needs them; a chunk counts for each.
        tiers: The durable tiers that were asked.
        packs: The packs that had purged frames, by tier.
        rewritten_bytes: The bytes of new packs for what else was in these, in all tiers together.
        kept_bytes: The bytes that were deleted and that a tier keeps as older versions, by its
            name.
        objects: The keys of other objects that were deleted.
        manifests_left: Why manifests stay, by their digests in hex.
        unread: How many packs of archives, or damaged ones, nobody knows the chunks of.
        down: Why tiers could not be asked, by name.
        waits: Whom it waits for.
        parts: The names of the parts that it counts, rising; ``None`` in one that was written by
            who knows no parts, and may have counted any.
    """

    id: Hex32
    time_us: Microseconds
    who: str
    message: str = ""
    model: str
    version: Seq
    manifest: Hex64
    variants: list[str] = msgspec.field(default_factory=list)
    digests: dict[str, list[Hex64]] = msgspec.field(default_factory=dict)
    updated_us: Microseconds = 0
    tries: Count = 0
    done: bool = False
    sweep: Count = 0
    chunks: Count = 0
    plain_bytes: Count = 0
    shared_chunks: Count = 0
    shared_plain_bytes: Count = 0
    shared: list[SharedChunks] = msgspec.field(default_factory=list)
    tiers: list[str] = msgspec.field(default_factory=list)
    packs: list[PurgedPack] = msgspec.field(default_factory=list)
    rewritten_bytes: Count = 0
    kept_bytes: dict[str, Count] = msgspec.field(default_factory=dict)
    objects: list[str] = msgspec.field(default_factory=list)
    manifests_left: dict[Hex64, str] = msgspec.field(default_factory=dict)
    unread: Count = 0
    down: dict[str, str] = msgspec.field(default_factory=dict)
    waits: list[str] = msgspec.field(default_factory=list)
    parts: list[Hex32] | None = None


class PurgedContent(Body, frozen=True, kw_only=True):
    """The manifests and chunks of what was purged, as far as they were found.

    Attributes:
        id: The order's.
        sweep: A number that rises each time caches have more to drop, at random: no two are equal.
        manifests: The digests of the manifests, 32 bytes each, rising.
        digests: Those of the chunks, likewise.
        kept: One bit for each chunk, whether somebody else needs it: bit b is ``1 << b % 8`` of
            byte ``b // 8``.
        deltas: The keys of deltas in shared tiers, 48 bytes each, rising.
    """

    id: Hex32
    sweep: Count
    manifests: bytes
    digests: bytes
    kept: bytes
    deltas: bytes = b""

    def check(self) -> None:
        """Raise ``Broken`` unless the digests rise, and there is a bit for each chunk."""
        if len(self.kept) != -(-(len(self.digests) // DIGEST_BYTES) // 8):
            raise Broken("its chunks and their bits are not as many")
        _check_columns(self.manifests, self.digests, self.deltas)


class PurgePart(Body, frozen=True, kw_only=True):
    """What one run found or did for an order that its record did not have; never written over.

    Attributes:
        id: The order's.
        manifests: The digests of manifests that were found, 32 bytes each, rising.
        digests: Those of chunks that were found, or that nobody needs any more, likewise.
        deltas: The keys of deltas in shared tiers, 48 bytes each, rising.
        packs: The packs that had purged frames, by tier.
        objects: The keys of other objects that are deleted.
        rewritten_bytes: The bytes of new packs that this run wrote.
        kept_bytes: The bytes that this run deleted and that a tier keeps as older versions.
    """

    id: Hex32
    manifests: bytes = b""
    digests: bytes = b""
    deltas: bytes = b""
    packs: list[PurgedPack] = msgspec.field(default_factory=list)
    objects: list[str] = msgspec.field(default_factory=list)
    rewritten_bytes: Count = 0
    kept_bytes: dict[str, Count] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        """Raise ``Broken`` unless the digests are whole, and rise."""
        _check_columns(self.manifests, self.digests, self.deltas)


def _check_columns(manifests: bytes, digests: bytes, deltas: bytes) -> None:
    for column in (manifests, digests):
        if len(column) % DIGEST_BYTES:
            raise Broken("its digests are not whole")
        if any(low >= high for low, high in itertools.pairwise(split_digests(column))):
            raise Broken("its digests do not rise")
    if len(deltas) % DELTA_BYTES:
        raise Broken("its deltas are not whole")


class Acknowledgement(Body, frozen=True, kw_only=True):
    """What the agent of one place has dropped for a purge.

    Attributes:
        id: The order's.
        node: The node's name.
        place: The place: a cache of that node, by the random name that it was given once.
        who: The user and the host.
        sweep: The number that it had read before.
        time_us: When, in microseconds since the epoch by the node's clock.
        dropped: How many chunks, frames or files were dropped, by the place.
        failed: Why a place could not be asked, by the place.
    """

    id: Hex32
    node: str
    place: Hex32
    who: str
    sweep: Count
    time_us: Microseconds
    dropped: dict[str, Count] = msgspec.field(default_factory=dict)
    failed: dict[str, str] = msgspec.field(default_factory=dict)


class NodeNote(Body, frozen=True, kw_only=True):
    """Says that there is an agent on a node, or that the node will not come back.

    Attributes:
        node: The node's name.
        place: The place, as in acknowledgements, of the agent, or of whoever says so.
        who: The user and the host.
        tool: The program and its version.
        time_us: When, in microseconds since the epoch by the clock of whoever says so.
        message: Why the node will not come back.
    """

    node: str
    place: Hex32
    who: str
    tool: str
    time_us: Microseconds
    message: str = ""
