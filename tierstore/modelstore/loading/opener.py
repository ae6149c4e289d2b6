"""Opens versions: what they hold, where it lies, and what reads it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from tierstore.errors import Damaged, NotFound, UnsupportedFormat
from tierstore.format.keys import version_key
from tierstore.format.manifest import FileEntry, Manifest, named_tensors
from tierstore.format.patch import touched_ranges
from tierstore.format.table import ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.chunks.pool import ReadPool
from tierstore.modelstore.chunks.reader import ChunkReader
from tierstore.modelstore.home.chain import (
    Chain,
    chain_table,
    find_chain,
    full_manifest,
    patch_manifests,
    readable_chain,
)
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.belowfold import BelowFold
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.overlay import Overlay
from tierstore.modelstore.loading.patchedfile import PatchedFileView
from tierstore.modelstore.loading.patchparts import fitting_parts, touched_files
from tierstore.modelstore.loading.stored import Content, StoredTensor, VerifiedContent
from tierstore.modelstore.loading.tensor import Tensor, VerifiedTensor
from tierstore.modelstore.names.members import refuse_release
from tierstore.modelstore.places import StorePlaces
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.version import Version
from tierstore.tiers.hot.tiers import HotTiers

_T = TypeVar("_T", bound=Tensor)
_log = logging.getLogger("tierstore.patches")


@dataclass(frozen=True, slots=True)
class Opened:
    """A version that was opened for reading.

    Attributes:
        digest: Digest of the full manifest that is read: the version's own, its fold's, or the one
            that its patches lie on.
        manifest: Files and tensors of that manifest, with the version's own lineage. A file that
            patches change has no SHA-256.
        content: The version's layout, patches included, and its reader.
        tensors: The tensors, by names that tell them apart.
        patched: Paths of the files that patches change.
        patches: Manifests of the patches that lie on the full manifest, the oldest first.
        titles: The name of each patch in messages.
        places: The places of the store, which no export may overlap with.
    """

    digest: Digest
    manifest: Manifest
    content: Content
    tensors: Mapping[str, Tensor]
    patched: frozenset[str]
    patches: tuple[Manifest, ...]
    titles: tuple[str, ...]
    places: StorePlaces

    @property
    def lacks_sha256s(self) -> bool:
        """Whether patches change a file whose SHA-256 is not known."""
        return bool(self.patched) and not all(file.sha256 for file in self.manifest.files)

    def with_sha256s(self, sha256s: Mapping[str, bytes]) -> Opened:
        """Return this with the SHA-256s, by path, that somebody computed of patched files."""
        files = tuple(
            msgspec.structs.replace(file, sha256=sha256s.get(file.path, file.sha256))
            for file in self.manifest.files
        )
        return replace(self, manifest=msgspec.structs.replace(self.manifest, files=files))

    def view(self, file: FileEntry) -> FileView:
        """Return one of the manifest's files, to be read by ranges."""
        if file.path in self.patched:
            return PatchedFileView(self.content, file, self.tensors.values())
        return FileView(self.content, file)

    def verified(self) -> VerifiedOpened:
        """Return the version as what may be stored again, read at the same counters."""
        content = self.content.verified()
        patches = list(zip(self.titles, self.patches, strict=True))
        return VerifiedOpened(
            self.digest,
            self.manifest,
            content,
            _tensors_of(content, self.manifest, patches, VerifiedTensor),
            self.patched,
            self.patches,
            self.titles,
            self.places,
        )


@dataclass(frozen=True, slots=True)
class VerifiedOpened(Opened):
    """A version whose bytes may be stored again; made by ``Opened.verified``.

    Whatever stores content of the store again, in a version or a file, takes its bytes from here.
    """

    content: VerifiedContent
    tensors: Mapping[str, VerifiedTensor]


class Opener:
    """Opens the versions of one store.

    Args:
        home: The store's home.
        settings: Limits on threads and memory.
        hot: The store's hot tiers.
        places: The places of the store.
    """

    def __init__(self, home: Home, settings: Settings, hot: HotTiers, places: StorePlaces) -> None:
        self._home, self._settings, self._hot, self._places = home, settings, hot, places

    def open(self, version: Version, hot: HotTiers | None = None) -> Opened:
        """Open a version, to be read through ``hot`` or by default the store's hot tiers.

        Raises ``UsageError`` when the version is a release.
        """
        refuse_release(version)
        return self.open_chain(find_chain(self._home, version.digest), hot)

    def open_full(self, version: Version) -> Opened:
        """Open the full manifest that a version lies on, without the patches between."""
        refuse_release(version)
        chain, full = readable_chain(self._home, version.digest)
        return self._opened(replace(chain, top=full, patches=()), full, [])

    def open_alone(self, digest: Digest) -> Opened:
        """Open a manifest without what it lies on, to store its chunks again; no tier is filled."""
        manifest = self._home.manifest(digest)

        def layout() -> ChunkTable:
            return self._home.layout(digest, manifest)

        content = self.content(layout(), manifest.chunk_size, layout, HotTiers())
        return Opened(digest, manifest, content, {}, frozenset(), (), (), self._places)

    def open_chain(self, chain: Chain, hot: HotTiers | None = None) -> Opened:
        """Open a version whose chain is known; what lies below a fold that cannot be read."""
        try:
            full = full_manifest(self._home, chain)
            return self._opened(chain, full, patch_manifests(self._home, chain.patches), hot)
        except (NotFound, Damaged) as error:
            below = self._below(chain, chain.patches[-1] if chain.patches else chain.start)
            if below is None:
                raise
            _log.warning("%s; the patches below the fold are read instead", error)
        return self.open_chain(below, hot)

    def _below(self, chain: Chain, top: Digest) -> Chain | None:
        """Return how a version is read without the fold of a chain, if that is known."""
        if chain.full == chain.start:
            return None
        try:
            return find_chain(self._home, top, chain.ignored | {chain.full})
        except (NotFound, Damaged):
            return None

    def _files_below(self, chain: Chain) -> dict[str, FileView]:
        """Open the files of what a chain's fold stands for, by path; none if that is lost.

        They have no hot tiers: a chunk that both have would wait there for the one who reads them.
        """
        below = self._below(chain, chain.start)
        if below is None:
            return {}
        try:
            opened = self.open_chain(below, HotTiers()).verified()
        except (NotFound, Damaged, UnsupportedFormat) as error:
            _log.warning("%s; nothing below the fold is read instead", error)
            return {}
        return {file.path: opened.view(file) for file in opened.manifest.files}

    def _opened(
        self, chain: Chain, full: Manifest, patches: list[Manifest], hot: HotTiers | None = None
    ) -> Opened:
        def layouts() -> ChunkTable:
            return chain_table(self._home, chain, full, patches)

        content = self.content(layouts(), full.chunk_size, layouts, hot)
        if chain.full != chain.start:
            below = BelowFold(full, lambda: self._files_below(chain))
            content.reader.pool.compute = below.read
        titles = tuple(f"patch {version_key(digest)}" for digest in chain.patches)
        patched = frozenset(touched_files(patches, full))
        files = tuple(
            msgspec.structs.replace(file, sha256=b"") if file.path in patched else file
            for file in full.files
        )
        return Opened(
            chain.full,
            msgspec.structs.replace(full, files=files, lineage=chain.top.lineage),
            content,
            _tensors_of(content, full, list(zip(titles, patches, strict=True)), Tensor),
            patched,
            tuple(patches),
            titles,
            self._places,
        )

    def content(
        self,
        table: ChunkTable,
        chunk_size: int,
        look_again: Callable[[], ChunkTable],
        hot: HotTiers | None = None,
    ) -> Content:
        """Return a layout with a reader of its chunks; ``look_again`` reads the layout anew."""
        pool = ReadPool(
            self._home.blobs,
            self._home.packs,
            table,
            threads=self._settings.threads,
            memory_limit_bytes=self._settings.memory_limit_bytes,
            look_again=look_again,
        )
        whole_parts = self._settings.verify_parts == "chunks"
        hot = self._hot if hot is None else hot  # one that is empty is false
        reader = ChunkReader(pool, table, hot, whole_parts=whole_parts)
        return Content(table, reader, chunk_size)


def _tensors_of(
    content: Content, full: Manifest, patches: Sequence[tuple[str, Manifest]], kind: type[_T]
) -> dict[str, _T]:
    """Return the tensors of a version, by names that tell them apart.

    Args:
        content: The version's layout and reader.
        full: The full manifest that it lies on.
        patches: Manifests of the patches, the oldest first, each with its name in messages.
        kind: The class of the tensors.

    Raises:
        Damaged: A patch does not fit the tensors below it.
    """
    named = {name: (entry, file.path) for name, file, entry in named_tensors(full)}
    bases = {name: StoredTensor(content, entry) for name, (entry, _) in named.items()}
    overlays: dict[str, list[Overlay]] = {}
    for one in fitting_parts(full, patches):
        name, part = one.part.target, one.part
        values = StoredTensor(content, one.entries[part.values.name])
        if part.indices is None:  # all of the tensor is replaced
            bases[name], overlays[name] = values, []
            continue
        indices = StoredTensor(content, one.entries[part.indices.name])
        overlay = Overlay(part, indices, values, touched_ranges(one.touched), one.title)
        overlays.setdefault(name, []).append(overlay)
    return {
        name: kind(entry, name, path, bases[name], overlays.get(name, ()))
        for name, (entry, path) in named.items()
    }
