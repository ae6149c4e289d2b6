"""Compares two versions, and measures what a store's bytes are made of; reads only metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tierstore.codecs import DELTA
from tierstore.errors import OF_ONE, Damaged, NotFound, TierstoreError
from tierstore.format.manifest import Manifest, named_tensors
from tierstore.format.table import ChunkPlace
from tierstore.ids import Digest, check_name, split_digests
from tierstore.modelstore.care.distinct import DistinctChunks
from tierstore.modelstore.home.chain import (
    Chain,
    chain_table,
    find_chain,
    full_manifest,
    patch_manifests,
    readable_chain,
    tables_of,
    unfolded,
)
from tierstore.modelstore.home.home import Home, chunks_of
from tierstore.modelstore.loading.patchparts import parts_of
from tierstore.modelstore.loading.stored import entry_bytes
from tierstore.modelstore.names.listed import list_names
from tierstore.modelstore.names.names import Names
from tierstore.modelstore.version import Version
from tierstore.shown import counted, html_facts, html_table, size

ChangeKind = Literal["added", "removed", "changed", "retyped", "same"]


@dataclass(frozen=True, slots=True)
class ItemDiff:
    """The change of one tensor, or of one file without tensors.

    Attributes:
        name: Name of the tensor, or path of the file.
        change: Kind of change; ``retyped`` when dtype or shape differ.
        old_bytes: Plain bytes before.
        new_bytes: Plain bytes now.
        new_chunk_bytes: Plain bytes of the new item's chunks that the old version does not have
            anywhere.
        stored_bytes: Bytes of the frames of these chunks.
    """

    name: str
    change: ChangeKind
    old_bytes: int
    new_bytes: int
    new_chunk_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference between two versions.

    Attributes:
        old: The first version.
        new: The second version.
        tensors: The tensors of both versions, by name.
        files: The files without tensors of both versions, by path.
        shared_bytes: Plain bytes of the new version's chunks that the old version has.
        new_bytes: Plain bytes of the new version's chunks that the old version does not have.
        stored_bytes: Bytes of the frames of the latter.
        delta_saved: Plain bytes minus frame bytes of those of them that are stored as deltas.
    """

    old: Version
    new: Version
    tensors: tuple[ItemDiff, ...]
    files: tuple[ItemDiff, ...]
    shared_bytes: int
    new_bytes: int
    stored_bytes: int
    delta_saved: int

    @property
    def changed(self) -> tuple[ItemDiff, ...]:
        """The tensors and files that are not the same in both versions."""
        return tuple(item for item in (*self.tensors, *self.files) if item.change != "same")

    def __repr__(self) -> str:
        return f"<Diff {self.old} -> {self.new}: {self._summary()}>"

    @property
    def counts(self) -> str:
        """How many changed, as text: ``1 of 2 tensors and 0 of 3 other files changed``."""
        told = " and ".join(
            f"{sum(item.change != 'same' for item in items)} of {counted(len(items), kind)}"
            for kind, items in (("tensor", self.tensors), ("other file", self.files))
            if items
        )
        return f"{told or 'nothing'} changed"

    def _summary(self) -> str:
        return f"{self.counts}, {size(self.new_bytes)} new, {size(self.stored_bytes)} stored"

    def _repr_html_(self) -> str:
        columns = ("name", "change", "old", "new", "new chunks", "stored")
        rows = (
            (
                item.name,
                item.change,
                size(item.old_bytes),
                size(item.new_bytes),
                size(item.new_chunk_bytes),
                size(item.stored_bytes),
            )
            for item in self.changed
        )
        title = f"{self.old} -> {self.new}: {self._summary()}"
        return html_table(title, columns, rows, len(self.changed))


@dataclass(frozen=True, slots=True)
class _Item:
    kind: tuple[object, ...]
    chunks: bytes
    nbytes: int


@dataclass(frozen=True, slots=True)
class _View:
    """A version as a full manifest and the patches on it."""

    chain: Chain
    full: Manifest
    patches: Sequence[Manifest]

    def items(self) -> tuple[dict[str, _Item], dict[str, _Item]]:
        """Return tensors by name and other files by path; a patch's chunks follow those below."""
        patched: dict[str, bytes] = {}
        for manifest in self.patches:
            for one in parts_of(manifest, ""):
                infos = [info for info in (one.part.indices, one.part.values) if info]
                own = b"".join(one.entries[info.name].chunks for info in infos)
                patched[one.part.target] = patched.get(one.part.target, b"") + own
        tensors = {
            name: _Item((t.dtype, t.shape), t.chunks + patched.get(name, b""), entry_bytes(t))
            for name, _, t in named_tensors(self.full)
        }
        files = {f.path: _Item((), f.chunks, f.size) for f in self.full.files if not f.header}
        return tensors, files


def _view(home: Home, chain: Chain) -> _View:
    return _View(chain, full_manifest(home, chain), patch_manifests(home, chain.patches))


def _views(home: Home, old: Version, new: Version) -> tuple[_View, _View]:
    """Return both versions, as patches on one full manifest where that is possible."""
    try:
        chains = [unfolded(home, version.digest) for version in (old, new)]
    except NotFound:  # what was folded may be gone
        chains = []
    if not chains or chains[0].full != chains[1].full:
        chains = [find_chain(home, version.digest) for version in (old, new)]
    return _view(home, chains[0]), _view(home, chains[1])


def compare(home: Home, old: Version, new: Version) -> Diff:
    """Compare two versions by the digests of their chunks.

    A tensor that a patch touches counts as changed, and its indices and values as the new bytes.
    """
    before, after = _views(home, old, new)
    (old_tensors, old_files), (new_tensors, new_files) = before.items(), after.items()
    held = {
        digest
        for items in (old_tensors, old_files)
        for item in items.values()
        for digest in split_digests(item.chunks)
    }
    table = chain_table(home, after.chain, after.full, after.patches)
    fresh = {
        digest: place
        for items in (new_tensors, new_files)
        for item in items.values()
        for digest in split_digests(item.chunks)
        if digest not in held and (place := table.find(digest)) is not None
    }
    tensors = _compare_items(old_tensors, new_tensors, fresh)
    files = _compare_items(old_files, new_files, fresh)
    items = (*tensors, *files)
    new_bytes = sum(item.new_chunk_bytes for item in items)
    return Diff(
        old,
        new,
        tensors,
        files,
        shared_bytes=max(0, sum(item.new_bytes for item in items) - new_bytes),
        new_bytes=new_bytes,
        stored_bytes=sum(place.frame_bytes for place in fresh.values()),
        delta_saved=sum(p.plain_bytes - p.frame_bytes for p in fresh.values() if p.codec == DELTA),
    )


def _compare_items(
    old: Mapping[str, _Item], new: Mapping[str, _Item], fresh: Mapping[bytes, ChunkPlace]
) -> tuple[ItemDiff, ...]:
    found = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if after is None or before is None:
            change: ChangeKind = "removed" if after is None else "added"
        elif before.kind != after.kind:
            change = "retyped"
        else:
            same = before.chunks == after.chunks and before.nbytes == after.nbytes
            change = "same" if same else "changed"
        own = split_digests(after.chunks) if after else []
        found.append(
            ItemDiff(
                name,
                change,
                before.nbytes if before else 0,
                after.nbytes if after else 0,
                sum(fresh[digest].plain_bytes for digest in own if digest in fresh),
                sum(fresh[digest].frame_bytes for digest in {*own} if digest in fresh),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Usage:
    """The bytes of a store's versions, and what saves or wastes them.

    ``logical`` is what plain files of all versions would take, ``unique`` what is left when equal
    chunks are kept once, ``stored`` what the packs that hold them take: their frames, heads and
    footers. ``overhead`` is the part of ``stored`` that none of these versions needs: footers and
    other versions' frames.

    Attributes:
        models: Number of models.
        versions: Number of versions and variants; one that was published twice counts twice.
        logical: Bytes of all files of all versions.
        unique: Plain bytes of distinct chunks, and of headers.
        stored: Bytes of the packs that hold the versions.
        dedup_saved: Bytes saved by deduplication: ``logical - unique``.
        codec_saved: Plain bytes minus frame bytes, of chunks stored standalone.
        delta_saved: Plain bytes minus frame bytes, of chunks stored as a delta; less the frames of
            bases that none of these versions has as a chunk of its own.
        overhead: Bytes of the packs that hold no frame of these versions.
        packs: Number of packs.
        chunks: Number of distinct chunks.
        left_out: What is counted nowhere, as it cannot be read: versions, and models of which
            nobody knows the versions, each with the error.
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
    left_out: Mapping[str, TierstoreError] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"<Usage of {counted(self.models, 'model')}, {counted(self.versions, 'version')}: "
            f"{size(self.logical)} logical, {size(self.unique)} unique, {size(self.stored)} stored>"
        )

    def _repr_html_(self) -> str:
        packs, chunks = counted(self.packs, "pack"), counted(self.chunks, "chunk")
        facts = [
            ("models", str(self.models)),
            ("versions", str(self.versions)),
            ("logical", size(self.logical)),
            ("unique", size(self.unique)),
            ("stored", f"{size(self.stored)} in {packs}, {chunks}"),
            ("saved by deduplication", size(self.dedup_saved)),
            ("saved by codecs", size(self.codec_saved)),
            ("saved by deltas", size(self.delta_saved)),
            ("overhead", size(self.overhead)),
            *([("left out", ", ".join(self.left_out))] if self.left_out else []),
        ]
        return html_facts("What the store's bytes are made of", facts)


@dataclass(slots=True)
class _Added:
    """What the manifests of versions add up to; each counts once.

    Attributes:
        headers: Bytes of the headers of files.
        chunks: The chunks.
        pack_bytes: The sizes of packs, by id.
    """

    headers: int = 0
    chunks: DistinctChunks = field(default_factory=DistinctChunks)
    pack_bytes: dict[bytes, int] = field(default_factory=dict)
    _seen: set[Digest] = field(default_factory=set)

    def add(self, home: Home, digest: Digest) -> int:
        """Take in all manifests that a version is read by; return the bytes of its files.

        Nothing of them stays in memory: one of 100,000 tensors takes 200 MB with its layout. If one
        of them cannot be read, nothing of the version counts.

        Raises:
            Damaged, NotFound, UnsupportedFormat: Something of it cannot be read.
        """
        chain, full = readable_chain(home, digest)
        patches = dict(zip(chain.patches, patch_manifests(home, chain.patches), strict=True))
        every = {chain.full: full, digest: chain.top, **patches}
        new = [(one, manifest) for one, manifest in every.items() if one not in self._seen]
        for (one, manifest), table in zip(new, list(tables_of(home, new)), strict=True):
            self._seen.add(one)
            self.headers += sum(len(file.header) for file in manifest.files)
            self.chunks.add(table, set(chunks_of(manifest)))
            self.pack_bytes.update(zip(table.pack_ids, table.pack_sizes, strict=True))
        return sum(file.size for file in full.files)


def usage_of(names: Names, model: str | None, cache_dir: Path) -> Usage:
    """Add up the bytes of the versions and variants of a model, or of all; see ``Store.usage``."""
    every, unknown = dict[str, list[Version]](), dict[str, TierstoreError]()
    if model is not None:
        name = check_name("model", model)
        every[name] = [*names.versions(name), *names.all_variants(name)]
    else:
        for name, found in list_names(names, cache_dir).all_versions():
            if isinstance(found, TierstoreError):
                unknown[name] = found
            else:
                every[name] = found
    usage = measure(names.home, every)
    return replace(usage, left_out={**unknown, **usage.left_out})


def measure(home: Home, versions: Mapping[str, Sequence[Version]]) -> Usage:
    """Add up the bytes of these versions; one that was published twice counts twice."""
    logical = 0
    added, left_out = _Added(), dict[str, TierstoreError]()
    by_digest: dict[Digest, list[Version]] = {}
    for version in (one for every in versions.values() for one in every):
        by_digest.setdefault(version.digest, []).append(version)
    for digest, same in by_digest.items():
        try:
            logical += len(same) * added.add(home, digest)
        except OF_ONE as error:
            # of a version that is there: what of it is missing is damage
            why = Damaged(str(error)) if isinstance(error, NotFound) else error
            left_out |= dict.fromkeys(map(str, same), why)
    sums = added.chunks.sums()
    stored = sum(added.pack_bytes[pack] for pack in sums.packs)
    unique = added.headers + sums.plain_bytes
    return Usage(
        models=len(versions),
        versions=sum(map(len, by_digest.values())) - len(left_out),
        logical=logical,
        unique=unique,
        stored=stored,
        dedup_saved=logical - unique,
        codec_saved=sums.codec_saved,
        delta_saved=sums.delta_saved,
        overhead=stored - sums.frame_bytes,
        packs=len(sums.packs),
        chunks=sums.chunks,
        left_out=left_out,
    )
