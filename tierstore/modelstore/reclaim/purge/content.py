"""What a purge takes in, found anew in each pass: manifests, chunks, deltas (SPEC.md 10.3)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import dataclass, field

from tierstore.errors import Damaged, InvalidName, NotFound, UnsupportedFormat
from tierstore.format.keys import VARIANTS, VERSIONS, layout_key
from tierstore.format.layout import parse_layout
from tierstore.format.purge import DELTA_BYTES, PurgedContent, PurgeOrder, PurgePart
from tierstore.format.table import ChunkTable
from tierstore.ids import Digest, split_digests
from tierstore.modelstore.home.chain import fold_of
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.modelstore.home.leases import TTL_S, in_force
from tierstore.modelstore.reclaim.mark import Mark, Marker
from tierstore.shown import counted

_RUNS_S = 3.0 * TTL_S
"""Seconds for which a manifest that nothing names may be of a save that runs."""

_log = logging.getLogger("tierstore.purge")


@dataclass(slots=True)
class FoundContent:
    """What was found of the content of one order; it only grows.

    Attributes:
        manifests: The digests of its manifests.
        digests: Those of its chunks.
        kept: The chunks that somebody else needs.
        deltas: Keys of deltas in shared tiers.
        sweep: A number that rises each time there is more to drop.
    """

    manifests: set[bytes] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    kept: set[bytes] = field(default_factory=set)
    deltas: set[bytes] = field(default_factory=set)
    sweep: int = 0

    @classmethod
    def read(cls, stored: PurgedContent | None) -> FoundContent:
        """Return what was found before."""
        if stored is None:
            return cls()
        digests = split_digests(stored.digests)
        return cls(
            manifests=set(split_digests(stored.manifests)),
            digests=set(digests),
            kept={d for at, d in enumerate(digests) if stored.kept[at // 8] >> at % 8 & 1},
            deltas=_split_deltas(stored.deltas),
            sweep=stored.sweep,
        )

    @property
    def gone(self) -> set[bytes]:
        """The chunks that nobody else needs."""
        return self.digests - self.kept

    def stored(self, name: str) -> PurgedContent:
        """Return it as it is kept in home, for the order of that id."""
        digests = sorted(self.digests)
        bits = bytearray(-(-len(digests) // 8))
        for at, digest in enumerate(digests):
            if digest in self.kept:
                bits[at // 8] |= 1 << at % 8
        return PurgedContent(
            id=name,
            sweep=self.sweep,
            manifests=b"".join(sorted(self.manifests)),
            digests=b"".join(digests),
            kept=bytes(bits),
            deltas=b"".join(sorted(self.deltas)),
        )

    def add(self, part: PurgePart) -> None:
        """Take in what a run has found."""
        self.manifests.update(split_digests(part.manifests))
        self.digests.update(split_digests(part.digests))
        self.deltas |= _split_deltas(part.deltas)

    def beyond(self, before: FoundContent) -> FoundContent:
        """Return what is new since, with the chunks that nobody needs any more."""
        return FoundContent(
            manifests=self.manifests - before.manifests,
            digests=(self.digests - before.digests) | (self.gone - before.gone),
            deltas=self.deltas - before.deltas,
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.manifests or self.digests or self.deltas)


def _split_deltas(deltas: bytes) -> set[bytes]:
    return {deltas[at : at + DELTA_BYTES] for at in range(0, len(deltas), DELTA_BYTES)}


def find(
    home: Home, orders: Iterable[PurgeOrder]
) -> dict[str, tuple[dict[str, list[str]], set[bytes]]]:
    """Return the variants of purged versions, and all manifests that have their content.

    The variants come with the digests of their own manifests, in hex. All manifests are the
    version's own, those of every entry of its variants, and the full ones of their folds. The logs
    of a model's variants are read once.

    Returns:
        Both by the id of the order.
    """
    found: dict[str, tuple[dict[str, list[str]], set[bytes]]] = {}
    by_version: dict[str, dict[int, list[tuple[str, bytes]]]] = {}
    for order in orders:
        if order.model not in by_version:
            by_version[order.model] = _variants(home, order.model)
        own = by_version[order.model].get(order.version, [])
        manifests = {bytes.fromhex(order.manifest), *(manifest for _, manifest in own)}
        folds = (fold_of(home, Digest(one)) for one in manifests)
        every = manifests | {full.raw for full in folds if full is not None}
        digests: dict[str, list[str]] = {}
        for name, manifest in dict.fromkeys(own):
            digests.setdefault(name, []).append(manifest.hex())
        found[order.id] = digests, every
    return found


def _variants(home: Home, model: str) -> dict[int, list[tuple[str, bytes]]]:
    """Return the entries of a model's variants by the version: the name, and the manifest."""
    found: dict[int, list[tuple[str, bytes]]] = {}
    for variant in home.variants(model):
        for entry in home.log(model, VARIANTS + variant).entries():
            if entry.version is not None and entry.manifest is not None:
                own = variant, bytes.fromhex(entry.manifest)
                found.setdefault(entry.version, []).append(own)
    return found


def leftovers(home: Home, mark: Mark, marker: Marker) -> tuple[set[bytes], str | None]:
    """Return the manifests that were never published, and whom these may wait for.

    A fold, variant or save that ended before its entry leaves one, and nothing says whose content
    it has. They are listed, then writers, and then what is named is read once more: whoever wrote
    one before that and has no entry then has a lease. One that began and ended since the mark has
    an entry.
    """
    known = mark.named | mark.manifests | {marker.layouts.fold_of(one) for one in mark.named}
    found = dict[Digest, float]()
    for info in home.blobs.list(VERSIONS):
        with suppress(InvalidName):
            digest = Digest.from_hex(info.key.removeprefix(VERSIONS))
            if digest not in known:
                found[digest] = info.mtime
    if not found:
        return set(), None
    writers = in_force(home.blobs, "writer")
    for digest in marker.named_since(mark):
        found.pop(digest, None)
    if not writers or not found:
        return {one.raw for one in found}, None
    since_s = time.time() - _RUNS_S
    old = {digest.raw for digest, written_s in found.items() if written_s < since_s}
    waits = (
        f"writer {writers[0].who} (pid {writers[0].pid} on {writers[0].host}), whose content may "
        f"be in {counted(len(found) - len(old), 'manifest')} that nothing names yet"
    )
    return old, waits if len(old) < len(found) else None


def chunks_in(
    home: Home, manifests: Iterable[bytes], condemned: Set[bytes]
) -> tuple[set[bytes], set[bytes]]:
    """Return the digests of all chunks of manifests, and the manifests of which nobody knows them.

    Of one that cannot be read its layout says it. One that is condemned, and gone, was looked into
    before.
    """
    found, unread = set[bytes](), set[bytes]()
    for manifest in manifests:
        digest = Digest(manifest)
        try:
            found.update(chunks_of(home.manifest(digest)))
            continue
        except (Damaged, NotFound, UnsupportedFormat) as error:
            if isinstance(error, NotFound) and manifest in condemned:
                continue
            _log.warning("%s; its layout says which chunks it has", error)
        table = layout_of(home, digest)
        if table is None:
            unread.add(manifest)
        else:
            found.update(table.digests)
    return found, unread


def layout_of(home: Home, manifest: Digest) -> ChunkTable | None:
    """Return the layout of a manifest; where it cannot be read say so, and return ``None``."""
    key = layout_key(manifest)
    try:
        return parse_layout(home.blobs.get(key), manifest, key)
    except (Damaged, NotFound, UnsupportedFormat) as error:
        _log.warning("%s", error)
        return None
