"""What differs between two versions, and what a store's bytes are made of. Reads only metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tierstore.format.frame import CODEC_DELTA
from tierstore.format.manifest import Manifest, named_tensors
from tierstore.format.table import ChunkPlace
from tierstore.ids import split_digests
from tierstore.modelstore.home import Home, chunks_of
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
        stored_bytes: what the frames of these chunks take.
    """

    name: str
    change: Change
    old_bytes: int
    new_bytes: int
    new_chunk_bytes: int
    stored_bytes: int


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
        stored_bytes: what the frames of these take.
        delta_saved: plain bytes minus frame bytes of those that are stored as deltas.
    """

    old: Version
    new: Version
    tensors: tuple[ItemDiff, ...]
    files: tuple[ItemDiff, ...]
    shared_bytes: int
    new_bytes: int
    stored_bytes: int
    delta_saved: int


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
    table = home.layout(new.digest, manifests[1])
    fresh = {
        digest: place
        for digest in chunks_of(manifests[1])
        if digest not in held and (place := table.find(digest)) is not None
    }
    tensors = _compare_items(old_tensors, new_tensors, fresh)
    files = _compare_items(old_files, new_files, fresh)
    items = (*tensors, *files)
    new_bytes = sum(item.new_chunk_bytes for item in items)
    return Diff(
        old, new, tensors, files,
        shared_bytes=sum(item.new_bytes for item in items) - new_bytes,
        new_bytes=new_bytes,
        stored_bytes=sum(place.length for place in fresh.values()),
        delta_saved=sum(p.plain - p.length for p in fresh.values() if p.codec == CODEC_DELTA),
    )  # fmt: skip


def _compare_items(
    old: Mapping[str, _Item], new: Mapping[str, _Item], fresh: Mapping[bytes, ChunkPlace]
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
        own = split_digests(after.chunks) if after else []
        found.append(
            ItemDiff(
                name, change, before.nbytes if before else 0, after.nbytes if after else 0,
                sum(fresh[digest].plain for digest in own if digest in fresh),
                sum(fresh[digest].length for digest in {*own} if digest in fresh),
            )
        )  # fmt: skip
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
        delta_saved: plain bytes minus frame bytes, of chunks stored as a delta; less the frames of
            bases that none of these versions has as a chunk of its own.
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
    own: set[bytes] = set()
    times = Counter(version.digest for every in versions.values() for version in every)
    for digest, count in times.items():
        manifest = home.manifest(digest)
        table = home.layout(digest, manifest)
        logical += count * sum(file.size for file in manifest.files)
        headers += sum(len(file.header) for file in manifest.files)
        own.update(chunks_of(manifest))
        sizes.update(zip(table.pack_ids, table.pack_sizes, strict=True))
        for place in table:
            places.setdefault(place.digest, place)
    used = {place.pack for place in places.values()}
    stored = sum(sizes[pack] for pack in used)
    saved = {True: 0, False: 0}
    for chunk, place in places.items():
        mine = chunk in own
        saved[place.codec == CODEC_DELTA or not mine] += mine * place.plain - place.length
    unique = headers + sum(places[chunk].plain for chunk in own)
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
        chunks=len(own),
    )
