"""What differs between two versions, and what a store's bytes are made of. Reads only metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tierstore.format.frame import CODEC_DELTA
from tierstore.format.manifest import Manifest, named_tensors, pieces
from tierstore.format.table import ChunkPlace
from tierstore.ids import split_digests
from tierstore.modelstore.home import Home
from tierstore.modelstore.tensor import entry_bytes
from tierstore.modelstore.version import Version

Change = Literal["added", "removed", "changed", "retyped", "same"]


@dataclass(frozen=True, slots=True)
class ItemDiff:
    """How one tensor, or one file without tensors, changed.

    Attributes:
        name: of the tensor, or path of the file.
        change: ``retyped`` when dtype or shape differ.
        old_bytes: plain bytes before.
        new_bytes: plain bytes now.
        new_chunk_bytes: plain bytes of chunks of the new one that are nowhere in the old version.
    """

    name: str
    change: Change
    old_bytes: int
    new_bytes: int
    new_chunk_bytes: int


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference between two versions.

    Attributes:
        old: the first version.
        new: the second one.
        tensors: of both, by name.
        files: the files without tensors of both, by path.
        shared_bytes: plain bytes of the new version whose chunks the old one has.
        new_bytes: plain bytes of the new version whose chunks it does not have.
    """

    old: Version
    new: Version
    tensors: tuple[ItemDiff, ...]
    files: tuple[ItemDiff, ...]
    shared_bytes: int
    new_bytes: int


@dataclass(frozen=True, slots=True)
class _Item:
    kind: tuple[object, ...]
    chunks: bytes
    nbytes: int


def _items(manifest: Manifest) -> tuple[dict[str, _Item], dict[str, _Item]]:
    tensors = {
        name: _Item((t.dtype, t.shape), t.chunks, entry_bytes(t))
        for name, _, t in named_tensors(manifest)
    }
    files = {f.path: _Item((), f.chunks, f.size) for f in manifest.files if not f.header}
    return tensors, files


def compare(home: Home, old: Version, new: Version) -> Diff:
    """Compare two versions by the digests of their chunks."""
    manifests = [home.manifest(version.digest) for version in (old, new)]
    (old_tensors, old_files), (new_tensors, new_files) = (_items(m) for m in manifests)
    held = {
        digest
        for items in (old_tensors, old_files)
        for item in items.values()
        for digest in split_digests(item.chunks)
    }
    size = manifests[1].chunk_size
    tensors = _compare_items(old_tensors, new_tensors, held, size)
    files = _compare_items(old_files, new_files, held, size)
    fresh = sum(item.new_chunk_bytes for item in (*tensors, *files))
    total = sum(item.new_bytes for item in (*tensors, *files))
    return Diff(old, new, tensors, files, total - fresh, fresh)


def _compare_items(
    old: Mapping[str, _Item], new: Mapping[str, _Item], held: set[bytes], chunk_size: int
) -> tuple[ItemDiff, ...]:
    found = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if after is None or before is None:
            change: Change = "removed" if after is None else "added"
        elif before.kind != after.kind:
            change = "retyped"
        else:
            same = before.chunks == after.chunks and before.nbytes == after.nbytes
            change = "same" if same else "changed"
        fresh = 0
        if after is not None:
            cut = pieces(after.chunks, after.nbytes, chunk_size)
            fresh = sum(piece.length for piece in cut if piece.digest not in held)
        found.append(
            ItemDiff(
                name, change, before.nbytes if before else 0, after.nbytes if after else 0, fresh
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the versions of a store are made of, in bytes.

    ``logical`` is what plain files of all versions would take, ``unique`` what is left when equal
    chunks are kept once, ``stored`` what the packs that hold them take: their frames, heads and
    footers. ``overhead`` is the part of ``stored`` that none of these versions needs: footers and
    other versions' frames.

    Attributes:
        models: count of models.
        versions: count of versions.
        logical: bytes of all files of all versions.
        unique: plain bytes of distinct chunks, and headers.
        stored: bytes of the packs that hold them.
        dedup_saved: ``logical - unique``.
        codec_saved: plain bytes minus frame bytes, of chunks stored standalone.
        delta_saved: plain bytes minus frame bytes, of chunks stored as a delta.
        overhead: pack bytes that hold no frame of these versions.
        packs: count of packs.
        chunks: count of distinct chunks.
    """

    models: int
    versions: int
    logical: int
    unique: int
    stored: int
    dedup_saved: int
    codec_saved: int
    delta_saved: int
    overhead: int
    packs: int
    chunks: int


def measure(home: Home, versions: Mapping[str, Sequence[Version]]) -> Usage:
    """Add up what these versions take; a version that was published twice counts twice."""
    logical = headers = 0
    places: dict[bytes, ChunkPlace] = {}
    sizes: dict[bytes, int] = {}
    times = Counter(version.digest for every in versions.values() for version in every)
    for digest, count in times.items():
        manifest = home.manifest(digest)
        table = home.layout(digest, manifest)
        logical += count * sum(file.size for file in manifest.files)
        headers += sum(len(file.header) for file in manifest.files)
        sizes.update(zip(table.pack_ids, table.pack_sizes, strict=True))
        for place in table:
            places.setdefault(place.digest, place)
    used = {place.pack for place in places.values()}
    stored = sum(sizes[pack] for pack in used)
    saved = {True: 0, False: 0}
    for place in places.values():
        saved[place.codec == CODEC_DELTA] += place.plain - place.length
    unique = headers + sum(place.plain for place in places.values())
    return Usage(
        models=len(versions),
        versions=sum(times.values()),
        logical=logical,
        unique=unique,
        stored=stored,
        dedup_saved=logical - unique,
        codec_saved=saved[False],
        delta_saved=saved[True],
        overhead=stored - sum(place.length for place in places.values()),
        packs=len(used),
        chunks=len(places),
    )
