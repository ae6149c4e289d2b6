"""Publishes patch versions and streams them: cost is that of what changed, never of the model.

::

    changes -> indices that rise, values -> one pack -> manifest -> layout -> ref entry
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tierstore.arguments import wrong
from tierstore.deferred import np
from tierstore.errors import Conflict
from tierstore.format.manifest import Manifest, named_tensors, patch_info
from tierstore.format.patch import PATCH_PATH, PatchInfo, parse_patch
from tierstore.format.reflog import RefEntry
from tierstore.format.safetensors import TensorInfo, parse_header
from tierstore.format.table import ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.home.chain import Chain, patch_manifests, readable_chain, tables_of
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.readerlease import Hold
from tierstore.modelstore.home.settling import Publication
from tierstore.modelstore.loading.model import stats_of
from tierstore.modelstore.loading.opener import Opener
from tierstore.modelstore.loading.stored import StoredTensor, entry_bytes
from tierstore.modelstore.patches.changes import (
    EncodedPatch,
    TargetTensor,
    TensorChange,
    check_targets,
    encode_changes,
    encode_file,
)
from tierstore.modelstore.patches.patches import Patch
from tierstore.modelstore.saving.source import SourceFile
from tierstore.modelstore.saving.transaction import Saving
from tierstore.modelstore.version import SaveStats, Version, version_of

if TYPE_CHECKING:
    from tierstore.deferred import Bytes

FULL_CHAIN = 16
"""The most patches on one another that a reader should have to apply."""
FULL_PART = 0.25
"""The largest share of the model's bytes that they should have together."""

Changes: TypeAlias = Mapping[str, TensorChange] | str | os.PathLike[str] | Patch
"""The changes that ``Store.patch`` takes: values by tensor, a patch file's path, or a patch."""


@dataclass(frozen=True, slots=True)
class Below:
    """The versions that a new patch would lie on.

    Attributes:
        chain: The chain of the base.
        full: The full manifest at its bottom.
        patch_bytes: Plain bytes of the patches in the chain.
    """

    chain: Chain
    full: Manifest
    patch_bytes: int

    def is_full(self, more: int = 0, bytes_more: int = 0) -> bool:
        """Return whether the chain should be folded, with so many more patches and bytes."""
        whole = sum(entry_bytes(tensor) for _, _, tensor in named_tensors(self.full))
        return (
            len(self.chain.patches) + more >= FULL_CHAIN
            or self.patch_bytes + bytes_more > FULL_PART * whole
        )


def look_below(home: Home, digest: Digest) -> Below:
    """Return what a patch of this version would lie on; reads manifests only."""
    chain, full = readable_chain(home, digest)
    patches = patch_manifests(home, chain.patches)
    total = sum(entry_bytes(tensor) for one in patches for tensor in one.files[0].tensors)
    return Below(chain, full, total)


class _PatchFile(SourceFile):
    """An encoded patch as the file that is saved."""

    def __init__(self, encoded: EncodedPatch) -> None:
        self.path, self.header = PATCH_PATH, encoded.header
        self.size = self.data_start + len(encoded.body)
        self._body = encoded.body.data

    def read_into(self, offset: int, out: memoryview) -> None:
        start = offset - self.data_start
        out[:] = self._body[start : start + len(out)]

    def finish(self) -> None:
        """Do nothing: nobody else has this copy."""


def encode_for(base: Version, below: Below, changes: Changes) -> EncodedPatch:
    """Encode a user's changes as a stored patch, checked to fit the base.

    Raises:
        Conflict: The patch is for another version.
        NotFound: There is no such file, or the base has no such tensor.
        UsageError, InvalidSafetensors: The changes do not fit the base's tensors.
    """
    targets = {
        name: TargetTensor(entry.dtype, entry.shape) for name, _, entry in named_tensors(below.full)
    }
    if not isinstance(changes, Mapping | str | os.PathLike | Patch):
        raise wrong(
            "changes",
            "Rows, Elements or Dense by the tensor's name, such as {'w': tierstore.Dense(array)}, "
            "a Patch, or the path of a patch file",
            changes,
        )
    if isinstance(changes, Mapping):
        return encode_changes(base.digest, changes, targets, str(base))
    encoded = changes.encoded() if isinstance(changes, Patch) else encode_file(changes)
    if encoded.spec.base != base.digest:
        raise Conflict(
            f"the patch is for version {encoded.spec.base.short}, but {base} is "
            f"{base.digest.short}: make it for that one, or patch the version that it is for"
        )
    check_targets(encoded.spec, targets, str(base))
    return encoded


def publish_patch(
    saving: Saving,
    below: Below,
    encoded: EncodedPatch,
    how: Publication[RefEntry],
) -> tuple[RefEntry, SaveStats]:
    """Store a patch and publish it.

    Its cost depends on what changes only, so the dedup index is left alone.

    Args:
        saving: Saves to the store.
        below: What the patch lies on.
        encoded: The patch.
        how: How it is published.
    """
    chunk_size = below.full.chunk_size
    chain = [below.chain.start, *below.chain.patches]
    info = PatchInfo(
        chain=b"".join(digest.raw for digest in chain), touched=_touched(encoded, chunk_size)
    )
    with saving.begin(indexed=False, chunk_size=chunk_size) as writer:
        entry = writer.publish(how, [_PatchFile(encoded)], patch=info)
    return entry, writer.stats()


def _touched(encoded: EncodedPatch, chunk_size: int) -> tuple[bytes, ...]:
    indices = {part.indices.name for part in encoded.spec.parts.values() if part.indices}
    found = []
    for info in encoded.header.tensors:
        data = encoded.body[info.begin : info.end] if info.name in indices else encoded.body[:0]
        ends = [
            data[at : at + chunk_size][part].tobytes()
            for at in range(0, len(data), chunk_size)
            for part in (slice(8), slice(-8, None))
        ]
        found.append(b"".join(ends))
    return tuple(found)


def patches_between(home: Home, since: Version, until: Version) -> list[tuple[Digest, Manifest]]:
    """Return the patches that lead from one version to another, the oldest first.

    Raises:
        Conflict: The newer version is not the older one with patches on it.
    """
    found: list[tuple[Digest, Manifest]] = []  # the newest first
    digest = until.digest
    while digest != since.digest:
        manifest = home.manifest(digest)
        info = patch_info(manifest)
        if info is None:
            raise Conflict(
                f"{until} is not {since} with patches on it; load all of it, and go on from there"
            )
        found.append((digest, manifest))
        digest = info.base
    return found[::-1]


def open_patches(
    home: Home, opener: Opener, since: Version, until: Version, hold: Hold
) -> Iterator[Patch]:
    """Return the patches of ``patches_between``, each opened when it is its turn.

    Each of them keeps ``hold``, of the newer version.
    """
    path = patches_between(home, since, until)
    versions = _numbered(home, until, [digest for digest, _ in path])
    return (
        _opened(home, opener, digest, manifest, versions.get(digest), hold)
        for digest, manifest in path
    )


def _opened(
    home: Home,
    opener: Opener,
    digest: Digest,
    manifest: Manifest,
    version: Version | None,
    hold: Hold,
) -> Patch:
    (file,) = manifest.files
    header = parse_header(file.header, file.size)

    def layout() -> ChunkTable:
        return tables_of(home, [(digest, manifest)])[0]

    table = layout()
    content = opener.content(table, manifest.chunk_size, layout).verified()  # stored, or kept
    content.reader.pool.hold = hold
    entries = {entry.name: entry for entry in file.tensors}

    def read(infos: Sequence[TensorInfo]) -> list[Bytes]:
        out = [np.empty(info.end - info.begin, np.uint8) for info in infos]
        wants = [
            want
            for info, data in zip(infos, out, strict=True)
            for want in StoredTensor(content, entries[info.name]).wants(data.data)
        ]
        content.reader.read(wants)
        return out

    stored = sum(place.frame_bytes for place in table)
    return Patch(
        header, parse_patch(header), read, version, stored, lambda: stats_of(content.reader.pool)
    )


def _numbered(home: Home, until: Version, digests: Sequence[Digest]) -> dict[Digest, Version]:
    """Return the versions that patches make, by digest; one whose entry is gone is left out."""
    wanted = {digest.hex for digest in digests}
    found: dict[Digest, Version] = {}
    for entry in home.log(until.model).entries():
        if entry.seq <= until.number and entry.manifest in wanted:
            version = version_of(until.model, entry)
            found.setdefault(version.digest, version)
            if len(found) == len(wanted):
                break
    return found
