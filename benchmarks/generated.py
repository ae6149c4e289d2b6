"""A home with very many objects, made through ``tierstore.format`` and not by saving.

Chunks are small and packs hold few of them, so that the numbers of objects are those of a large
store and its bytes are not. Each version of a model takes over most chunks of the one before.
The files are written without ``fsync``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import blake3

import tierstore
from tierstore.codecs import RAW
from tierstore.format.frame import build_head
from tierstore.format.keys import (
    HEAD,
    VERSION_LOG,
    entry_key,
    layout_key,
    pack_key,
    ref_prefix,
    version_key,
)
from tierstore.format.layout import seal_layout, seal_segment
from tierstore.format.manifest import FileEntry, Manifest, TensorEntry, seal_manifest, summary_of
from tierstore.format.pack import PackBuilder
from tierstore.format.reflog import Hint, RefEntry, Summary
from tierstore.format.safetensors import build_header
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.table import ChunkPlace
from tierstore.ids import Buffer, Digest

_HOUR_US = 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a generated home is.

    Attributes:
        models: So many models.
        versions: So many versions of each.
        chunks: So many tensors, of one chunk each, in a version.
        fresh: So many of these are not in the version before.
        per_pack: So many chunks are in a pack at most.
        chunk_bytes: The size of each. Where it is tiny, the index of a pack is as large as its
            chunks, so that it may be waste, and garbage collection looks into every pack.
    """

    models: int = 100
    versions: int = 100
    chunks: int = 1000
    fresh: int = 91
    per_pack: int = 16
    chunk_bytes: int = 64


@dataclass(slots=True)
class Made:
    """What was generated."""

    packs: int = 0
    chunks: int = 0
    versions: int = 0


def generate(folder: Path, shape: Shape) -> Made:
    """Make a store in an empty folder, as if its versions had been saved an hour apart."""
    tierstore.init(folder).close()
    made = Made()
    for number in range(shape.models):
        _model(folder, f"model-{number:05d}", shape, made)
    return made


def _model(folder: Path, name: str, shape: Shape, made: Made) -> None:
    header = build_header(
        [(f"t{at:06d}", "U8", (shape.chunk_bytes,)) for at in range(shape.chunks)], None
    )
    now_us, places, sizes = time.time_ns() // 1000, list[ChunkPlace](), dict[bytes, int]()
    log = ref_prefix(name, VERSION_LOG)
    for number in range(1, shape.versions + 1):
        fresh = shape.chunks if number == 1 else shape.fresh
        added = _packs(folder, fresh, shape, sizes)
        if number == 1:
            places = added
        else:
            begin = number * shape.fresh % (shape.chunks - shape.fresh + 1)
            places = [*places[:begin], *added, *places[begin + shape.fresh :]]
        tensors = tuple(
            TensorEntry(
                name=one.name,
                dtype=one.dtype,
                shape=one.shape,
                begin=one.begin,
                chunks=place.digest,
            )
            for one, place in zip(header.tensors, places, strict=True)
        )
        file = FileEntry(
            path="model.safetensors", size=len(header.raw) + header.data_size, sha256=bytes(32),
            header=header.raw, tensors=tensors,
        )  # fmt: skip
        version = Manifest(files=(file,))
        digest, manifest = seal_manifest(version)
        used = {place.pack: sizes[place.pack] for place in places}
        _put(folder, version_key(digest), [manifest])
        _put(folder, layout_key(digest), [seal_layout(digest, places, used)])
        new = {place.pack: sizes[place.pack] for place in added}
        _put(folder, f"index/{os.urandom(16).hex()}", [seal_segment(added, new)])
        age_us = (shape.versions - number + 1) * _HOUR_US
        entry = _entry(number, digest, now_us - age_us, summary_of(version))
        _put(folder, entry_key(log, number), [entry])
        made.packs += len(new)
        made.chunks += fresh
        made.versions += 1
    _put(folder, log + HEAD, [seal_body(Kind.HINT, Hint(seq=shape.versions))])


def _entry(number: int, digest: Digest, time_us: int, summary: Summary) -> bytes:
    entry = RefEntry(
        seq=number, write_id=os.urandom(16).hex(), action="publish", version=number,
        manifest=digest.hex, time_us=time_us, who="ada@host", tool="tierstore", summary=summary,
    )  # fmt: skip
    return seal_body(Kind.REF, entry)


def _packs(folder: Path, chunks: int, shape: Shape, sizes: dict[bytes, int]) -> list[ChunkPlace]:
    places = list[ChunkPlace]()
    for begin in range(0, chunks, shape.per_pack):
        builder = PackBuilder()
        for _ in range(begin, min(begin + shape.per_pack, chunks)):
            plain = os.urandom(shape.chunk_bytes)
            digest = blake3.blake3(plain).digest()
            head = build_head(
                digest=digest, codec=RAW, dtype="U8", plain=plain, codec_head=b"",
                ends=[shape.chunk_bytes], payload=plain,
            )  # fmt: skip
            builder.add(digest, [head, plain], len(head), shape.chunk_bytes, RAW)
        pack, parts, laid = builder.close()
        sizes[pack] = _put(folder, pack_key(pack), parts)
        places += laid
    return places


def _put(folder: Path, key: str, parts: Iterable[Buffer]) -> int:
    data = b"".join(parts)
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return len(data)
