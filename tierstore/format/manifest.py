"""Manifests: the content of one version (SPEC.md section 7)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec

from tierstore.errors import InvalidName, InvalidSafetensors, UsageError
from tierstore.format.checks import Broken, Newer, damaged, digest_of
from tierstore.format.chunking import DEFAULT_CHUNK, HASH, is_chunk_size
from tierstore.format.patch import PATCH_OF, PATCH_PATH, PatchInfo, check_patch_info, parse_patch
from tierstore.format.paths import check_path, check_tree
from tierstore.format.reflog import Summary
from tierstore.format.safetensors import parse_header
from tierstore.format.sealed import Body, Kind, decode_body, encode_body, seal, unseal
from tierstore.ids import DIGEST_BYTES, Buffer, Digest, split_digests

FULL_KIND, PATCH_KIND, RELEASE_KIND = "full", "patch", "release"
MAX_MEMBERS = 1000
SALT_BYTES = 16
"""Bytes of what gives equal content another digest."""

_MAX_ITEMS = 1 << 20


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One tensor of a file; ``begin`` counts from the start of the file's data section.

    It is not tracked by the garbage collector, since it can be in no cycle: there are thousands of
    them, and as many tracked objects would start collections of all that a process has loaded.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    cut: int = 0
    chunks: bytes = b""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file: a safetensors file with its header verbatim, or any other with its chunks."""

    path: str
    size: int
    sha256: bytes
    header: bytes = b""
    tensors: tuple[TensorEntry, ...] = ()
    chunks: bytes = b""


class LineageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A version that this content was made from, and how."""

    relation: str
    digest: bytes


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One of the versions that belong to a release."""

    model: str
    version: Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]
    manifest: bytes


class Manifest(Body, frozen=True, kw_only=True):
    """The content of one version: its files, or for a release its members."""

    kind: str = FULL_KIND
    chunk_size: int = DEFAULT_CHUNK
    hash: str = HASH
    files: tuple[FileEntry, ...]
    lineage: tuple[LineageEntry, ...] = ()
    members: tuple[Member, ...] | msgspec.UnsetType = msgspec.UNSET
    patch: PatchInfo | msgspec.UnsetType = msgspec.UNSET
    salt: bytes | msgspec.UnsetType = msgspec.UNSET

    def check(self) -> None:
        """Raise ``Broken`` or ``Newer`` unless its files and members make a version."""
        _check_manifest(self)


def patch_manifest(file: FileEntry, patch: PatchInfo, chunk_size: int) -> Manifest:
    """Return the manifest of a patch version, whose patch file is ``file``."""
    return Manifest(
        requires=parse_patch(parse_header(file.header, file.size)).features,
        kind=PATCH_KIND,
        chunk_size=chunk_size,
        files=(file,),
        patch=patch,
        lineage=(LineageEntry(relation=PATCH_OF, digest=patch.base.raw),),
    )


def patch_info(manifest: Manifest) -> PatchInfo | None:
    """Return the patch fields of a patch manifest; ``None`` for a full one."""
    return None if manifest.patch is msgspec.UNSET else manifest.patch


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a tensor or file: ``plain_bytes`` bytes from ``begin`` on."""

    digest: bytes
    begin: int
    plain_bytes: int


def pieces(chunks: bytes, nbytes: int, chunk_size: int) -> Iterator[Piece]:
    """Yield the chunks of a tensor or file of ``nbytes`` bytes, in order."""
    for at in range(0, nbytes, chunk_size):
        row = 32 * (at // chunk_size)
        yield Piece(chunks[row : row + 32], at, min(chunk_size, nbytes - at))


def summary_of(manifest: Manifest) -> Summary:
    """Return how large the files of a manifest are; of a patch version give the full one below."""
    return Summary(
        bytes=sum(file.size for file in manifest.files),
        files=len(manifest.files),
        tensors=sum(len(file.tensors) for file in manifest.files),
    )


def named_tensors(manifest: Manifest) -> Iterator[tuple[str, FileEntry, TensorEntry]]:
    """Yield the unique name, the file and the entry of every tensor.

    The name is the tensor's own, or ``path::name`` where several files hold one of that name.
    """
    count = Counter(tensor.name for file in manifest.files for tensor in file.tensors)
    for file in manifest.files:
        for tensor in file.tensors:
            alone = count[tensor.name] == 1
            yield tensor.name if alone else f"{file.path}::{tensor.name}", file, tensor


def seal_manifest(manifest: Manifest) -> tuple[Digest, bytes]:
    """Return the manifest's digest and its sealed object.

    Raises ``UsageError`` when it lists more than the format allows.
    """
    if _lists_too_much(manifest):
        raise UsageError(
            f"a version has at most {_MAX_ITEMS} files and as many tensors; save this as several"
        )
    plain = encode_body(Kind.MANIFEST, manifest)
    return digest_of(plain), seal(Kind.MANIFEST, plain)


def parse_manifest(data: Buffer, digest: Digest, name: str) -> Manifest:
    """Unseal, verify and check a manifest.

    Raises:
        Damaged: Its bytes do not match ``digest``, or what they say breaks the format.
        UnsupportedFormat: It was written by a newer version.
    """
    return decode_body(Kind.MANIFEST, _verified(data, digest, name), Manifest, name)


class _TensorChunks(msgspec.Struct, frozen=True, gc=False):
    """What a tensor of a manifest is made of."""

    cut: int = 0
    chunks: bytes = b""


class _FileChunks(msgspec.Struct, frozen=True):
    """What a file of a manifest is made of: its tensors, or chunks of its own."""

    tensors: tuple[_TensorChunks, ...] = ()
    chunks: bytes = b""


class ManifestChunks(Body, frozen=True, kw_only=True):
    """What a manifest is made of, without names and headers: these take ten times as long.

    It says what a valid manifest needs, and no more: ``parse_manifest`` checks whether it is valid.
    """

    kind: str = FULL_KIND
    hash: str = HASH
    files: tuple[_FileChunks, ...]
    patch: PatchInfo | msgspec.UnsetType = msgspec.UNSET

    def check(self) -> None:
        """Raise ``Newer`` or ``Broken`` when it may be made of more than it lists here."""
        _check_kind(self.kind, self.hash)
        for file in self.files:
            _check_cut(max((tensor.cut for tensor in file.tensors), key=abs, default=0))
        if sum(len(column) % DIGEST_BYTES for column in self._columns()):
            raise Broken("the chunks of a file or tensor are not digests")
        if (self.kind == PATCH_KIND) != (self.patch is not msgspec.UNSET):
            raise Broken("its kind does not fit its fields")
        if self.patch is not msgspec.UNSET and (
            not self.patch.chain or len(self.patch.chain) % DIGEST_BYTES
        ):
            raise Broken("the manifests below it are not digests")

    def _columns(self) -> list[bytes]:
        found = []
        for file in self.files:
            found += [file.chunks, *[tensor.chunks for tensor in file.tensors]]
        return found

    @property
    def digests(self) -> list[bytes]:
        """The digests of all chunks in load order, repeats included."""
        return split_digests(b"".join(self._columns()))

    @property
    def base(self) -> Digest | None:
        """The digest of the manifest that a patch was made for; ``None`` for any other manifest."""
        return None if self.patch is msgspec.UNSET else self.patch.base


def parse_manifest_chunks(data: Buffer, digest: Digest, name: str) -> ManifestChunks:
    """Unseal and verify a manifest, and read what it is made of; raises as ``parse_manifest``."""
    return decode_body(Kind.MANIFEST, _verified(data, digest, name), ManifestChunks, name)


def _verified(data: Buffer, digest: Digest, name: str) -> bytes:
    plain = unseal(Kind.MANIFEST, data, name)
    if digest_of(plain) != digest:
        damaged(name, "its content does not match its digest")
    return plain


def _check_kind(kind: str, hash_name: str) -> None:
    if kind not in {FULL_KIND, PATCH_KIND, RELEASE_KIND}:
        raise Newer(f"manifests of kind {kind!r}")
    if hash_name != HASH:
        raise Newer(f"the hash {hash_name!r}")


def _check_cut(cut: int) -> None:
    if cut:
        raise Newer(f"cut {cut} of a tensor")


def _check_manifest(manifest: Manifest) -> None:
    _check_kind(manifest.kind, manifest.hash)
    if not is_chunk_size(manifest.chunk_size):
        raise Broken(f"a chunk size of {manifest.chunk_size} is out of range")
    if _lists_too_much(manifest):
        raise Broken("it lists more files or tensors than the format allows")
    paths = [file.path for file in manifest.files]
    if paths != sorted(paths):
        raise Broken("its files are not in order")
    try:
        check_tree(paths)
    except InvalidName as error:
        raise Broken(str(error)) from None
    for file in manifest.files:
        _check_file(file, manifest.chunk_size)
    if any(len(entry.digest) != DIGEST_BYTES for entry in manifest.lineage):
        raise Broken("its lineage names something that is not a digest")
    if manifest.salt is not msgspec.UNSET and len(manifest.salt) != SALT_BYTES:
        raise Broken(f"its salt has {len(manifest.salt)} bytes")
    _check_members(manifest)
    _check_patch(manifest)


def _check_patch(manifest: Manifest) -> None:
    info = patch_info(manifest)
    if (manifest.kind == PATCH_KIND) != (info is not None):
        raise Broken("its kind does not fit its fields")
    if info is None:
        return
    if [file.path for file in manifest.files] != [PATCH_PATH] or not manifest.files[0].header:
        raise Broken(f"its only file is not {PATCH_PATH}")
    file = manifest.files[0]
    header = parse_header(file.header, file.size)
    wrong = check_patch_info(info, header, manifest.requires, manifest.chunk_size)
    if wrong:
        raise Broken(wrong)
    if [(one.relation, one.digest) for one in manifest.lineage] != [(PATCH_OF, info.base.raw)]:
        raise Broken("its lineage does not name its base")


def _check_members(manifest: Manifest) -> None:
    members = manifest.members
    if (manifest.kind == RELEASE_KIND) != bool(members):
        raise Broken("a release has members, and nothing else has")
    if not members:
        return
    models = [member.model for member in members]
    if manifest.files or manifest.lineage or models != sorted(set(models)):
        raise Broken("it is not a valid release")
    if len(members) > MAX_MEMBERS or any(len(m.manifest) != DIGEST_BYTES for m in members):
        raise Broken("its members are too many, or one has no digest")


def _lists_too_much(manifest: Manifest) -> bool:
    tensors = sum(len(file.tensors) for file in manifest.files)
    return len(manifest.files) > _MAX_ITEMS or tensors > _MAX_ITEMS


def _check_file(file: FileEntry, chunk_size: int) -> None:
    try:
        check_path(file.path)
    except InvalidName as error:
        raise Broken(str(error)) from None
    if file.size < 0 or len(file.sha256) != DIGEST_BYTES:
        raise Broken(f"{file.path!r} has no proper size and SHA-256")
    if not file.header:
        if file.tensors or not _covers(file.chunks, file.size, chunk_size):
            raise Broken(f"the chunks of {file.path!r} do not cover it")
        return
    try:
        header = parse_header(file.header, file.size)
    except InvalidSafetensors as error:
        raise Broken(f"{file.path!r}: {error}") from None
    if file.chunks or len(file.tensors) != len(header.tensors):
        raise Broken(f"the tensors of {file.path!r} are not those of its header")
    for tensor, info in zip(file.tensors, header.tensors, strict=True):
        said = info.name, info.dtype, info.shape, info.begin
        if said != (tensor.name, tensor.dtype, tensor.shape, tensor.begin):
            raise Broken(f"the tensors of {file.path!r} are not those of its header")
        _check_cut(tensor.cut)
        if not _covers(tensor.chunks, info.end - info.begin, chunk_size):
            raise Broken(f"the chunks of tensor {tensor.name!r} do not cover it")


def _covers(chunks: bytes, nbytes: int, chunk_size: int) -> bool:
    return len(chunks) == 32 * -(-nbytes // chunk_size)
