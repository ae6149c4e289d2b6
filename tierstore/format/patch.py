"""Patches: the changes to some tensors as a safetensors file (SPEC.md section 7.1)."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal, NamedTuple, NoReturn

import msgspec

from tierstore.errors import InvalidName, InvalidSafetensors
from tierstore.format.checks import PATCH_FEATURE
from tierstore.format.dtypes import dtype_bits
from tierstore.format.safetensors import Header, TensorInfo, build_header
from tierstore.ids import DIGEST_BYTES, Digest, split_digests

PatchKind = Literal["rows", "elements", "dense"]


class PatchForm(NamedTuple):
    """How the patches of one kind are stored.

    Attributes:
        dimensions: Number of leading dimensions that an index counts through, in C order; ``None``
            for all of them, 0 for a kind that has no indices.
        feature: Feature that manifests with such a patch require.
    """

    dimensions: int | None
    feature: str


PATCH_FORMS: dict[PatchKind, PatchForm] = {
    "rows": PatchForm(1, PATCH_FEATURE),
    "elements": PatchForm(None, PATCH_FEATURE),
    "dense": PatchForm(0, PATCH_FEATURE),
}
"""Every kind of patch, in the order in which they are shown."""

PATCH_PATH = "patch.safetensors"
PATCH_OF = "patch-of"
"""The relation of a patch version to its base, in its lineage."""
MAX_CHAIN = 1024
INDEX_DTYPE = "I64"
_INDEX_BYTES, _TOUCHED_BYTES = 8, 16
_FORMAT = "tierstore-patch/1"
_INDICES, _VALUES = "indices", "values"
_INTEGERS = {"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}

_decode_shapes = msgspec.json.Decoder(
    dict[str, tuple[Annotated[int, msgspec.Meta(ge=0)], ...]]
).decode


class PatchInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a patch manifest that other manifests do not have.

    Attributes:
        chain: The digests of the manifests below it, 32 bytes each, the oldest first. The last is
            its base; the first is a full manifest, or one that has a fold.
        touched: For each tensor of the patch file, in its order: the first and the last index in
            each of its chunks (8 bytes each); empty for a tensor that holds no indices.
    """

    chain: bytes
    touched: tuple[bytes, ...]

    @property
    def digests(self) -> list[Digest]:
        """The digests of the manifests below it, the oldest first."""
        return [Digest(raw) for raw in split_digests(self.chain)]

    @property
    def base(self) -> Digest:
        """The digest of the manifest that the patch was made for."""
        return Digest(self.chain[-DIGEST_BYTES:])


@dataclass(frozen=True, slots=True)
class PatchPart:
    """The change that a patch makes to one tensor.

    Attributes:
        target: The name of the tensor in the version.
        kind: ``rows`` of its first dimension, ``elements`` of the flat tensor, or ``dense``.
        shape: The shape of the target.
        values: The new values: rows (n, *shape[1:]), elements (n,), or the whole tensor.
        indices: Where the values go (n,); ``None`` for ``dense``.
    """

    target: str
    kind: PatchKind
    shape: tuple[int, ...]
    values: TensorInfo
    indices: TensorInfo | None

    @property
    def dtype(self) -> str:
        """The safetensors dtype of the target."""
        return self.values.dtype

    @property
    def count(self) -> int:
        """How many rows or elements are replaced; 1 for the whole tensor."""
        return self.indices.shape[0] if self.indices else 1

    @property
    def limit(self) -> int:
        """The bound that every index must stay below."""
        return index_limit(self.kind, self.shape)

    @property
    def unit_bytes(self) -> int:
        """Bytes of the row or element that one index stands for; all bytes for ``dense``."""
        return prod(unit_shape(self.kind, self.shape)) * dtype_bits(self.dtype) // 8


@dataclass(frozen=True, slots=True)
class PatchSpec:
    """A parsed header of a patch file: the base, and the change to each tensor by its name."""

    base: Digest
    parts: Mapping[str, PatchPart]

    @property
    def features(self) -> list[str]:
        """The features that a manifest with this patch requires."""
        own = {PATCH_FORMS[part.kind].feature for part in self.parts.values()}
        return sorted({PATCH_FEATURE, *own})


def index_limit(kind: PatchKind, shape: tuple[int, ...]) -> int:
    """Return the bound that every index into a tensor must stay below."""
    return prod(shape[: PATCH_FORMS[kind].dimensions])


def unit_shape(kind: PatchKind, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of what one index into a tensor stands for: a row, or () for an element."""
    dimensions = PATCH_FORMS[kind].dimensions
    return () if dimensions is None else shape[dimensions:]


def has_no_units(kind: PatchKind, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor has fewer dimensions than an index counts through."""
    return len(shape) < (PATCH_FORMS[kind].dimensions or 0)


def values_shape(kind: PatchKind, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the shape of the new values of a tensor for ``count`` indices."""
    unit = unit_shape(kind, shape)
    return unit if kind == "dense" else (count, *unit)


def part_names(kind: PatchKind, target: str) -> tuple[str, str]:
    """Return the names in the patch file of a tensor's indices and of its values."""
    return f"{kind}.{_INDICES}/{target}", f"{kind}.{_VALUES}/{target}"


def build_patch_header(
    base: Digest, parts: Iterable[tuple[str, PatchKind, str, tuple[int, ...], int]]
) -> Header:
    """Return the header of a patch file.

    Args:
        base: The digest of the version that the patch is for.
        parts: For each target its name, kind, dtype, shape and count of indices.

    Raises:
        UsageError: A name cannot stand in a header.
    """
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    shapes: dict[str, list[int]] = {}
    for target, kind, dtype, shape, count in parts:
        indices, values = part_names(kind, target)
        shapes[target] = list(shape)
        if kind != "dense":
            tensors.append((indices, INDEX_DTYPE, (count,)))
        tensors.append((values, dtype, values_shape(kind, shape, count)))
    text = json.dumps(shapes, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return build_header(tensors, {"format": _FORMAT, "base": base.hex, "shapes": text})


def parse_patch(header: Header) -> PatchSpec:
    """Parse the header of a patch file.

    Raises ``InvalidSafetensors`` with what is wrong with it.
    """
    metadata = header.metadata or {}
    if metadata.get("format") != _FORMAT:
        _refuse(f"its metadata has no format {_FORMAT!r}")
    try:
        base = Digest.from_hex(metadata.get("base", "").removeprefix("b3:"))
        shapes = _decode_shapes(metadata.get("shapes", ""))
    except InvalidName:
        _refuse("its metadata names no base by 64 hex digits")
    except msgspec.MsgspecError as error:
        _refuse(f"its metadata does not give the shapes of the tensors: {error}")
    infos = {info.name: info for info in header.tensors}
    parts = {target: _part(target, shape, infos) for target, shape in shapes.items()}
    if infos:
        _refuse(f"it holds {next(iter(infos))[:200]!r}, which belongs to no patched tensor")
    return PatchSpec(base, parts)


def _part(target: str, shape: tuple[int, ...], infos: dict[str, TensorInfo]) -> PatchPart:
    """Return the change to ``target``; takes its tensors out of ``infos``."""
    found = [kind for kind in PATCH_FORMS if part_names(kind, target)[1] in infos]
    if len(found) != 1:
        what = "no values" if not found else "several kinds of values"
        _refuse(f"it has {what} for tensor {target[:200]!r}")
    kind = found[0]
    of_indices, of_values = part_names(kind, target)
    values = infos.pop(of_values)
    indices = infos.pop(of_indices, None) if kind != "dense" else None
    if kind != "dense" and indices is None:
        _refuse(f"it has no {of_indices[:200]!r}")
    part = PatchPart(target, kind, shape, values, indices)
    _check_part(part)
    return part


def _check_part(part: PatchPart) -> None:
    target = part.target[:200]
    if part.indices is not None:
        if part.indices.dtype not in _INTEGERS or len(part.indices.shape) != 1:
            _refuse(f"the indices for {target!r} are not integers in one dimension")
        if has_no_units(part.kind, part.shape):
            _refuse(
                f"tensor {target!r} has {len(part.shape) or 'no'} dimensions, so it has no "
                f"{part.kind}"
            )
        unit_bits = prod(unit_shape(part.kind, part.shape)) * dtype_bits(part.dtype)
        if unit_bits % 8:
            _refuse(
                f"one of the {part.kind} of {target!r} is {unit_bits} bits of {part.dtype}: it "
                "does not begin at a byte"
            )
    wanted = values_shape(part.kind, part.shape, part.count)
    if part.values.shape != wanted:
        _refuse(
            f"the values for {target!r} have the shape {list(part.values.shape)} instead of "
            f"{list(wanted)}"
        )


def check_patch_info(
    info: PatchInfo, header: Header, requires: Collection[str], chunk_size: int
) -> str | None:
    """Return how a patch manifest contradicts itself; ``None`` when it does not."""
    count, odd = divmod(len(info.chain), DIGEST_BYTES)
    if odd or not 1 <= count <= MAX_CHAIN:
        return "it does not name the manifests that it lies on"
    try:
        spec = parse_patch(header)
    except InvalidSafetensors as error:
        return str(error)
    if spec.base != info.base:
        return "its file is a patch of another version"
    if missing := [feature for feature in spec.features if feature not in requires]:
        return f"it does not require {missing[0]!r}, which its file needs"
    if len(info.touched) != len(header.tensors):
        return "what it touches does not fit its file"
    limits = {part.indices.name: part.limit for part in spec.parts.values() if part.indices}
    for tensor, touched in zip(header.tensors, info.touched, strict=True):
        limit = limits.get(tensor.name)
        chunks = 0 if limit is None else -(-(tensor.end - tensor.begin) // chunk_size)
        if limit is not None and tensor.dtype != INDEX_DTYPE:
            return f"{tensor.name[:200]!r} is not {INDEX_DTYPE}"
        if len(touched) != _TOUCHED_BYTES * chunks or not _rises(touched, limit or 0):
            return f"what it touches does not fit {tensor.name[:200]!r}"
    return None


def touched_ranges(touched: bytes) -> list[tuple[int, int]]:
    """Return the first and the last index of each chunk."""
    return [
        (
            int.from_bytes(touched[at : at + _INDEX_BYTES], "little"),
            int.from_bytes(touched[at + _INDEX_BYTES : at + _TOUCHED_BYTES], "little"),
        )
        for at in range(0, len(touched), _TOUCHED_BYTES)
    ]


def _rises(touched: bytes, limit: int) -> bool:
    last = -1
    for first, end in touched_ranges(touched):
        if not last < first <= end < limit:
            return False
        last = end
    return True


def _refuse(why: str) -> NoReturn:
    raise InvalidSafetensors(f"not a valid patch: {why}")
