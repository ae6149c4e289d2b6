"""Reads from manifests what stored patches do to which tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tierstore.format.checks import damaged
from tierstore.format.manifest import Manifest, TensorEntry, named_tensors, patch_info
from tierstore.format.patch import PatchPart, parse_patch
from tierstore.format.safetensors import parse_header


@dataclass(frozen=True, slots=True)
class StoredPart:
    """The change that a stored patch makes to one tensor.

    Attributes:
        title: Names the patch in messages.
        part: The change of the tensor.
        entries: Tensors of the patch's file, by their names in it.
        touched: The ranges of the indices by chunk, as the manifest stores them; empty without
            indices.
    """

    title: str
    part: PatchPart
    entries: Mapping[str, TensorEntry]
    touched: bytes


def fitting_parts(full: Manifest, patches: Sequence[tuple[str, Manifest]]) -> Iterator[StoredPart]:
    """Yield what patches do to tensors, in order; ``Damaged`` if the full manifest lacks one."""
    entries = {name: (entry.dtype, entry.shape) for name, _, entry in named_tensors(full)}
    for title, manifest in patches:
        for one in parts_of(manifest, title):
            name, part = one.part.target, one.part
            if entries.get(name) != (part.dtype, part.shape):
                damaged(title, f"it does not fit tensor {name!r} of its base")
            yield one


def parts_of(manifest: Manifest, title: str) -> Iterator[StoredPart]:
    """Yield what one patch does to each tensor."""
    info = patch_info(manifest)
    assert info is not None
    (file,) = manifest.files
    own = {tensor.name: tensor for tensor in file.tensors}
    touched = dict(zip(own, info.touched, strict=True))
    for part in parse_patch(parse_header(file.header, file.size)).parts.values():
        yield StoredPart(title, part, own, touched[part.indices.name] if part.indices else b"")


def touched_files(manifests: Sequence[Manifest], full: Manifest) -> set[str]:
    """Return the paths of the files of a full manifest that patches change."""
    names = {one.part.target for manifest in manifests for one in parts_of(manifest, "")}
    return {file.path for name, file, _ in named_tensors(full) if name in names} if names else set()
