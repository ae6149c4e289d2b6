"""Writes the golden stores; run once for a format version, never again after its release.

    python -m tests.golden.make NAME…

``v1`` is a store of format 1 with one of everything but patches, which ``patches`` has, and proofs,
which ``proofs`` has; ``future`` holds stores that this version must refuse; ``quarantine`` has a
damaged pack that is marked, and the moves that heal it; ``removed`` has removed versions, and what
is set about them; ``merged`` has a merged segment of the index; ``service`` has what tiers,
nodes, collections and purges write (``service.py``). Those that are not named stay as they are.
Packs are named by random bytes, so two runs write different stores with the same content.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import tierstore
from tests.golden import content, service
from tierstore import Dense, Elements, Rows, codecs
from tierstore.blobs.base import BlobStore
from tierstore.format.checks import digest_of, xxh3
from tierstore.format.condemned import EarlyCondemned
from tierstore.format.dtypes import DTYPES
from tierstore.format.frame import BasePiece, build_head, parse_frame_head
from tierstore.format.keys import (
    CONFIG,
    GC,
    HEAD,
    INDEX,
    LEASES,
    layout_key,
    move_key,
    pack_key,
    ref_prefix,
    version_key,
)
from tierstore.format.layout import Move, seal_layout
from tierstore.format.manifest import FileEntry, Manifest, TensorEntry, seal_manifest
from tierstore.format.pack import PackBuilder
from tierstore.format.reflog import Hint, Lease
from tierstore.format.safetensors import header_length, parse_header
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.segments import merge_tables, parse_any_segment, seal_merged
from tierstore.format.table import ChunkPlace, ChunkTable
from tierstore.ids import Digest
from tierstore.modelstore.home.footers import read_footer
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.loading.arrays import ArrayBytes
from tierstore.wiring import open_blobs

HERE = Path(__file__).parent
STORE, FUTURE, PATCHES = HERE / "v1", HERE / "future", HERE / "patches"
PROOFS, QUARANTINED, REMOVED = HERE / "proofs", HERE / "quarantine", HERE / "removed"
MERGED, SERVICE = HERE / "merged", HERE / "service"
SUMS, EXPECTED = HERE / "SHA256SUMS.json", HERE / "expected.json"


def main(names: list[str]) -> None:
    if not names or not MAKERS.keys() >= set(names):
        sys.exit(f"name the stores to write: {', '.join(MAKERS)}")
    if not codecs.native_info().built:
        sys.exit("the golden store needs frames of the native kernels: build them first")
    os.environ["LOGNAME"] = "golden"
    socket.gethostname = lambda: "example.org"
    for name in names:
        shutil.rmtree(HERE / name, ignore_errors=True)
        MAKERS[name]()
    EXPECTED.write_text(json.dumps(content.expected(), indent=1) + "\n")
    SUMS.write_text(json.dumps(sums(), indent=1) + "\n")


def _make_v1() -> None:
    versions = content.versions()
    _save_models(versions)
    blobs = open_blobs(str(STORE))
    _write_by_hand(blobs, versions["by hand@1"]["model.safetensors"])
    _move_packs(blobs)
    _leave_traces(blobs)
    _assert_one_of_everything(blobs)
    blobs.close()


def sums() -> dict[str, str]:
    """SHA-256 of every file of the golden stores."""
    files = sorted(path for name in MAKERS for path in (HERE / name).rglob("*"))
    return {
        path.relative_to(HERE).as_posix(): content.sha256(path.read_bytes())
        for path in files
        if path.is_file()
    }


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def _save_models(versions: Mapping[str, Mapping[str, bytes]]) -> None:
    with (
        tempfile.TemporaryDirectory() as scratch,
        tierstore.init(STORE, chunk_size=content.CHUNK) as store,
    ):
        for number, (ref, files) in enumerate(versions.items()):
            model = ref.partition("@")[0]
            if model == "by hand":
                continue
            codecs.use_native(model != "numpy")
            source = write_files(Path(scratch) / str(number), files)
            store.save(model, source, message=f"saved as {ref}")
        codecs.use_native(True)
        store.alias("org/model", "prod", "org/model@1", message="first")
        store.alias("org/model", "prod", "org/model@2", message="second")
        store.rollback("org/model", "prod", message="the second was worse")
        store.alias("org/model", "gone", "org/model@2")
        store.remove_alias("org/model", "gone", message="not needed")
        store.alias("org/model", "a/é", "org/model@3")


class _Raw(ArrayBytes):
    """Plain bytes under any dtype."""

    def __init__(self, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        self.dtype, self.shape, self._data = dtype, shape, data

    def read_into(self, start: int, out: memoryview) -> None:
        out[:] = self._data[start : start + len(out)]


def change_of(tensor: content.Tensor, change: content.Change) -> Rows | Elements | Dense:
    """A change as ``Store.patch`` takes it."""
    packed = DTYPES[tensor.dtype].numpy is None
    count = len(change.indices)
    if change.kind == "dense":
        shape = (len(change.data),) if packed else tensor.shape
        return Dense(_Raw("U8" if packed else tensor.dtype, shape, change.data))
    if change.kind == "elements":
        return Elements(change.indices, _Raw(tensor.dtype, (count,), change.data))
    inner = (len(change.data) // max(1, count),) if packed else tensor.shape[1:]
    values = _Raw("U8" if packed else tensor.dtype, (count, *inner), change.data)
    return Rows(change.indices, values)


def _save_patches() -> None:
    tensors = content.first_tensors()
    with (
        tempfile.TemporaryDirectory() as scratch,
        tierstore.init(PATCHES, chunk_size=content.CHUNK) as store,
    ):
        files = {"model.safetensors": content.file_of(tensors, None)}
        store.save("patched", write_files(Path(scratch), files), alias="prod")
        for number, step in enumerate(content.patch_steps(), 1):
            changes = {name: change_of(tensors[name], change) for name, change in step.items()}
            store.patch("patched@prod", changes, alias="prod", message=f"step {number}", fold=False)
            if number == content.FOLDED_STEP:
                store.fold("patched@prod")


def _save_proofs() -> None:
    with (
        tempfile.TemporaryDirectory() as scratch,
        tierstore.init(PROOFS, chunk_size=content.CHUNK) as store,
    ):
        for number, tensors in enumerate((content.proven_tensors(), content.tuned_tensors())):
            files = {"model.safetensors": content.file_of(tensors, None)}
            store.save("proven", write_files(Path(scratch) / str(number), files))


def _save_removed() -> None:
    """Three versions of which the first is removed, and the second was; one with another window."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        tierstore.init(REMOVED, chunk_size=content.CHUNK) as store,
    ):
        for number in (1, 2, 3):
            tensors = content.small_tensors(f"removed {number}")
            files = {"model.safetensors": content.file_of(tensors, None)}
            source = write_files(Path(scratch) / str(number), files)
            store.save("removed", source, base=None, alias="prod")
        for model in ("gone", "short"):
            store.save(model, Path(scratch) / "1")
        store.reclaim.enable(wait_s=0)
        store.remove("removed@1", "removed@2", message="both")
        store.undelete("removed@2", message="one is needed")
        store.remove_model("gone")
        store.retention.set(None, window=timedelta(days=2), keep_last=10, keep_tag=["v*"])
        store.retention.set("short", window=timedelta(0), message="large")


def _save_merged() -> None:
    """Two versions, the second with a delta; the segments of both saves are merged into one."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        tierstore.init(MERGED, chunk_size=content.CHUNK) as store,
    ):
        for number, tensors in enumerate((content.proven_tensors(), content.tuned_tensors())):
            files = {"model.safetensors": content.file_of(tensors, None)}
            store.save("proven", write_files(Path(scratch) / str(number), files))
        blobs = store._parts.home.blobs
        old = [info.key for info in blobs.list(INDEX)]
        tables = [parse_any_segment(blobs.get(key), key).table for key in old]
        (data,) = seal_merged(merge_tables(tables), old)
        blobs.put(INDEX + "0" * 32, data)
        blobs.delete(old)


def _save_quarantined() -> None:
    """Damage two chunks of a version; a later version has one of them, and another one the other.

    The old pack is marked, and has two moves.
    """
    tensors = content.small_tensors("quarantined")
    with (
        tempfile.TemporaryDirectory() as scratch,
        tierstore.init(QUARANTINED, chunk_size=content.CHUNK) as store,
    ):

        def save(model: str, *names: str) -> None:
            some = {name: tensors[name] for name in names}
            files = {"model.safetensors": content.file_of(some, None)}
            store.save(model, write_files(Path(scratch) / model, files), base=None)

        save("quarantined", *tensors)
        blobs = open_blobs(str(QUARANTINED))
        (info,) = blobs.list("packs/")
        data = bytearray(blobs.get(info.key))
        for place in read_footer(blobs, info.key, info.size)[1][:2]:
            data[place.offset + place.head_bytes] ^= 0x80
        blobs.put(info.key, data)
        assert store.check(read_data=True).quarantined == [info.key]
        for name in tensors:
            save(f"only {name}", name)
        assert len(list(blobs.list("moves/"))) > 1
        blobs.close()


def _write_by_hand(blobs: BlobStore, file: bytes) -> None:
    """A version whose frames have what saving does not write: pieces of bases, small blocks."""
    home = Home(blobs)
    first = home.log("org/model").entry(1)
    digest = Digest.from_hex(first.manifest or "")
    bases = home.layout(digest, home.manifest(digest))
    head = parse_header(file[: 8 + header_length(file[:8])], len(file))
    builder = PackBuilder()
    tensors: list[TensorEntry] = []
    base_places: dict[bytes, ChunkPlace] = {}
    for info in head.tensors:
        start = len(head.raw) + info.begin
        plain = file[start : start + info.end - info.begin]
        own = digest_of(plain).raw
        pieces, base = _bases_of(plain) if info.name == "fine-tuned" else ([], None)
        log2 = 18 if pieces else 16
        one = codecs.encode(plain, info.dtype, block_size=1 << log2, base=base)
        head_bytes = build_head(
            digest=own, codec=one.codec, dtype=info.dtype, plain=plain, codec_head=one.head,
            ends=one.ends, payload=one.payload, block_log2=log2, bases=pieces,
        )  # fmt: skip
        used = tuple(dict.fromkeys(piece.digest for piece in pieces))
        base_places |= {one: _place(bases, one) for one in used}
        frame = head_bytes + bytes(one.payload)
        builder.add(own, frame, len(head_bytes), len(plain), one.codec, used)
        tensors.append(
            TensorEntry(
                name=info.name, dtype=info.dtype, shape=info.shape, begin=info.begin, chunks=own
            )
        )
    pack, buffers, places = builder.close()
    blobs.put(pack_key(pack), buffers)
    sizes = dict(zip(bases.pack_ids, bases.pack_sizes, strict=True))
    sizes[pack] = sum(len(buffer) for buffer in buffers)
    every = [*places, *base_places.values()]
    entry = FileEntry(
        path="model.safetensors", size=len(file), header=head.raw, tensors=tuple(tensors),
        sha256=bytes.fromhex(content.sha256(file)),
    )  # fmt: skip
    manifest, sealed = seal_manifest(Manifest(chunk_size=content.CHUNK, files=(entry,)))
    blobs.put(version_key(manifest), sealed)
    used_sizes = {place.pack: sizes[place.pack] for place in every}
    blobs.put(layout_key(manifest), seal_layout(manifest, every, used_sizes))
    home.log("by hand").append("publish", lambda _: (0, manifest.hex, None), "by hand")


def _place(table: ChunkTable, digest: bytes) -> ChunkPlace:
    place = table.find(digest)
    assert place is not None
    return place


def _bases_of(plain: bytes) -> tuple[list[BasePiece], bytes]:
    """Most of one base chunk, but its first bytes, and a little of another."""
    weight = content.first_tensors()["layer.weight"].data
    half = content.first_tensors()["layer.half"].data
    split = len(plain) - 100
    pieces = [
        BasePiece(digest_of(weight).raw, 2000, split),
        BasePiece(digest_of(half).raw, 6, 100),
    ]
    return pieces, weight[2000 : 2000 + split] + half[6:106]


def _move_packs(blobs: BlobStore) -> None:
    """Rewrite the pack of ``moved`` as two, then one of these again: a move of a move.

    The pack of ``numpy`` is rewritten too, and not deleted yet.
    """
    home = Home(blobs)
    parts = _rewrite(blobs, _pack_of(home, "moved"), 2)
    blobs.delete([pack_key(_pack_of(home, "moved"))])
    _rewrite(blobs, parts[0], 1)
    blobs.delete([pack_key(parts[0])])
    _rewrite(blobs, _pack_of(home, "numpy"), 1)


def _pack_of(home: Home, model: str) -> bytes:
    digest = Digest.from_hex(home.log(model).entry(1).manifest or "")
    (pack,) = home.layout(digest, home.manifest(digest)).pack_ids
    return pack


def _rewrite(blobs: BlobStore, pack: bytes, count: int) -> list[bytes]:
    key = pack_key(pack)
    data = bytes(blobs.get(key))
    _, places = read_footer(blobs, key, len(data))
    new = []
    for part in range(count):
        builder = PackBuilder()
        for place in places[part::count]:
            frame = data[place.offset : place.offset + place.frame_bytes]
            builder.add(
                place.digest, frame, place.head_bytes, place.plain_bytes, place.codec, place.bases
            )
        packed, buffers, _ = builder.close()
        blobs.put(pack_key(packed), buffers)
        new.append(packed)
    move = Move(pack=pack.hex(), into=[one.hex() for one in new])
    blobs.put(move_key(pack), seal_body(Kind.MOVE, move))
    return new


def _leave_traces(blobs: BlobStore) -> None:
    """What a crash, another client or a slow network leaves: it changes no answer."""
    lease = Lease(
        id="0f" * 16, role="writer", who="golden@example.org", host="example.org", pid=1, ttl_s=60
    )
    blobs.put(LEASES + lease.id, seal_body(Kind.LEASE, lease))
    condemned = EarlyCondemned(run="20200101T000000Z", packs=["00" * 32])
    blobs.put(GC + condemned.run, seal_body(Kind.CONDEMNED, condemned))
    stale = ref_prefix("org/model", "alias/prod") + HEAD
    blobs.put(stale, seal_body(Kind.HINT, Hint(seq=1)))
    blobs.delete([ref_prefix("org/model", "versions") + HEAD])


def _assert_one_of_everything(blobs: BlobStore) -> None:
    heads = []
    for info in blobs.list("packs/"):
        data = bytes(blobs.get(info.key))
        _, places = read_footer(blobs, info.key, info.size)
        heads += [parse_frame_head(data[place.offset :], info.key) for place in places]
    assert {head.codec for head in heads} == {0, 1, 2, 3}
    assert any(len(head.bases) == 2 for head in heads)
    assert any(len(head.ends) > 1 for head in heads)
    assert any(head.codec == 2 and head.codec_head for head in heads), "no Huffman plane"


def _write_future() -> None:
    """Stores that need what version 1 has not: each must be refused, none called damaged."""
    for name in ("config", "manifest", "frame", "write-feature"):
        files = {"model.safetensors": content.file_of(content.small_tensors(name), None)}
        with (
            tempfile.TemporaryDirectory() as scratch,
            tierstore.init(FUTURE / name, chunk_size=content.CHUNK) as store,
        ):
            store.save("model", write_files(Path(scratch), files))
    config = FUTURE / "config" / CONFIG
    config.write_text(json.dumps({"format": 2, "stores": [{"home": "."}], "size": 1.5}) + "\n")
    _change_config(FUTURE / "write-feature" / CONFIG, write=["encrypt"])
    for name in ("manifest", "frame"):
        blobs = open_blobs(str(FUTURE / name))
        (_change_manifest if name == "manifest" else _change_frame)(blobs)
        blobs.close()


def _change_config(path: Path, **features: list[str]) -> None:
    fields = json.loads(path.read_bytes())
    del fields["check"]
    fields["features"] |= features
    compact = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps(fields | {"check": f"{xxh3(compact):016x}"}, indent=2) + "\n")


def _change_manifest(blobs: BlobStore) -> None:
    """Publish a second version whose manifest requires a feature."""
    home = Home(blobs)
    first = home.manifest(Digest.from_hex(home.log("model").entry(1).manifest or ""))
    newer = Manifest(requires=["sparse"], chunk_size=first.chunk_size, files=first.files)
    digest, sealed = seal_manifest(newer)
    blobs.put(version_key(digest), sealed)
    home.log("model").append("publish", lambda _: (0, digest.hex, None), "needs more")


def _change_frame(blobs: BlobStore) -> None:
    """Set an unknown flag in the first frame; the layout and the pack's index still hold."""
    (info,) = blobs.list("packs/")
    data = bytearray(blobs.get(info.key))
    place = read_footer(blobs, info.key, info.size)[1][0]
    data[place.offset + 7] = 1 << 5
    end = place.offset + place.head_bytes
    data[end - 8 : end] = xxh3(bytes(data[place.offset : end - 8])).to_bytes(8, "little")
    blobs.put(info.key, bytes(data))


MAKERS = {
    "v1": _make_v1,
    "future": _write_future,
    "patches": _save_patches,
    "proofs": _save_proofs,
    "quarantine": _save_quarantined,
    "removed": _save_removed,
    "merged": _save_merged,
    "service": lambda: service.make(SERVICE),
}
"""What writes each golden store, by the name of its folder."""


if __name__ == "__main__":
    main(sys.argv[1:])
