"""Manifests: SPEC.md section 7 by hand, and everything a reader must refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from msgspec.structs import replace

from tests.unit.format_by_hand import b3, msgpack, read_msgpack, read_sealed, sealed
from tierstore.errors import Damaged, InvalidName, UnsupportedFormat, UsageError
from tierstore.format import manifest
from tierstore.format.manifest import (
    FileEntry,
    LineageEntry,
    Manifest,
    ManifestChunks,
    Member,
    Piece,
    TensorEntry,
    parse_manifest,
    parse_manifest_chunks,
    patch_info,
    pieces,
    seal_manifest,
)
from tierstore.format.paths import alike, check_new_path, check_path
from tierstore.ids import Digest
from tierstore.modelstore.home.home import chunks_of
from tierstore.testing.strategies import manifests

MIB = 1 << 20
D = [b3(bytes([n])) for n in range(4)]
SHA = b3(b"stands for a SHA-256")


def header(tensors: dict[str, Any]) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def entry(shape: list[int], begin: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADER = header({"w": entry([MIB + 1], 0, MIB + 1), "none": entry([0], 0, 0)})
NONE = {"name": "none", "dtype": "U8", "shape": [0], "begin": 0, "cut": 0, "chunks": b""}
W = {"name": "w", "dtype": "U8", "shape": [MIB + 1], "begin": 0, "cut": 0, "chunks": D[0] + D[1]}
TENSORS: dict[str, Any] = {
    "path": "model.safetensors", "size": len(HEADER) + MIB + 1, "sha256": SHA, "header": HEADER,
    "tensors": [NONE, W], "chunks": b"",
}  # fmt: skip
PLAIN = {
    "path": "config.json", "size": 3 * MIB, "sha256": SHA, "header": b"", "tensors": [],
    "chunks": D[1] + D[2] + D[3],
}  # fmt: skip
FIELDS: dict[str, Any] = {
    "requires": [], "kind": "full", "chunk_size": MIB, "hash": "blake3",
    "files": [PLAIN, TENSORS], "lineage": [{"relation": "cast of", "digest": D[0]}],
}  # fmt: skip


def parse(fields: dict[str, Any]) -> Manifest:
    plain = msgpack(fields)
    return parse_manifest(sealed(1, plain), Digest(b3(plain)), "manifest X")


def made_of(fields: dict[str, Any]) -> ManifestChunks:
    plain = msgpack(fields)
    return parse_manifest_chunks(sealed(1, plain), Digest(b3(plain)), "manifest X")


def with_file(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return FIELDS | {"files": [base | changes]}


def test_a_manifest_by_hand_is_read() -> None:
    found = parse(FIELDS | {"new": "ignored"})
    tensors = (
        TensorEntry(name="none", dtype="U8", shape=(0,), begin=0),
        TensorEntry(name="w", dtype="U8", shape=(MIB + 1,), begin=0, chunks=D[0] + D[1]),
    )
    size = len(HEADER) + MIB + 1
    model = FileEntry(
        path="model.safetensors", size=size, sha256=SHA, header=HEADER, tensors=tensors
    )
    config = FileEntry(path="config.json", size=3 * MIB, sha256=SHA, chunks=D[1] + D[2] + D[3])
    assert found == Manifest(
        chunk_size=MIB, files=(config, model),
        lineage=(LineageEntry(relation="cast of", digest=D[0]),),
    )  # fmt: skip
    digest, data = seal_manifest(found)
    kind, plain = read_sealed(data)
    assert (kind, read_msgpack(plain)) == (1, FIELDS)
    assert list(read_msgpack(plain)) == list(FIELDS), "the fields stand in the order of the table"
    assert digest.raw == b3(plain)


RELEASE: dict[str, Any] = FIELDS | {
    "kind": "release", "files": [], "lineage": [],
    "members": [{"model": m, "version": n, "manifest": D[n]} for m, n in (("a", 2), ("b/c", 1))],
}  # fmt: skip


def test_a_release_by_hand_is_read_and_ours_is_the_same() -> None:
    found = parse(RELEASE)
    assert found == Manifest(
        kind="release", chunk_size=MIB, files=(),
        members=(Member(model="a", version=2, manifest=D[2]),
                 Member(model="b/c", version=1, manifest=D[1])),
    )  # fmt: skip
    digest, data = seal_manifest(found)
    plain = read_sealed(data)[1]
    assert (read_msgpack(plain), digest.raw) == (RELEASE, b3(plain))
    assert list(read_msgpack(plain)) == list(RELEASE)


@given(manifests())
def test_any_manifest_round_trips(manifest: Manifest) -> None:
    digest, data = seal_manifest(manifest)
    assert parse_manifest(data, digest, "x") == manifest
    made_of = parse_manifest_chunks(data, digest, "x")
    assert made_of.digests == chunks_of(manifest)
    info = patch_info(manifest)
    assert made_of.base == (None if info is None else info.base)
    assert seal_manifest(manifest) == (digest, data)
    plain = read_sealed(data)[1]
    assert b3(plain) == digest.raw
    stored = read_msgpack(plain)
    assert [f["path"] for f in stored["files"]] == [f.path for f in manifest.files]
    assert [[t["chunks"] for t in f["tensors"]] for f in stored["files"]] == [
        [t.chunks for t in f.tensors] for f in manifest.files
    ]
    for file in manifest.files:
        for one in file.tensors:
            listed = list(pieces(one.chunks, file.size, manifest.chunk_size))
            assert all(piece.plain_bytes <= manifest.chunk_size for piece in listed)


def test_the_pieces_of_a_file() -> None:
    assert list(pieces(b"", 0, MIB)) == []
    assert list(pieces(D[0] + D[1], MIB + 5, MIB)) == [Piece(D[0], 0, MIB), Piece(D[1], MIB, 5)]
    assert list(pieces(D[0], MIB, MIB)) == [Piece(D[0], 0, MIB)]


A, B = RELEASE["members"]
DAMAGED: dict[str, dict[str, Any]] = {
    "a release without members": RELEASE | {"members": []},
    "a release that says nothing of members": FIELDS | {"kind": "release", "files": []},
    "members of no release": FIELDS | {"members": [A]},
    "a release with files": RELEASE | {"files": [PLAIN]},
    "a release with lineage": RELEASE | {"lineage": FIELDS["lineage"]},
    "members out of order": RELEASE | {"members": [B, A]},
    "one model twice": RELEASE | {"members": [A, A | {"version": 1}]},
    "a member that is no version": RELEASE | {"members": [A | {"version": 0}]},
    "a member with no digest": RELEASE | {"members": [A | {"manifest": D[0][:31]}]},
    "too many members": RELEASE | {"members": [A | {"model": f"{n:04}"} for n in range(1001)]},
    "chunk size of no power of two": FIELDS | {"chunk_size": 3 * MIB},
    "chunk size below": FIELDS | {"chunk_size": MIB // 2, "files": []},
    "chunk size above": FIELDS | {"chunk_size": 32 * MIB, "files": []},
    "chunk size zero": FIELDS | {"chunk_size": 0, "files": []},
    "files out of order": FIELDS | {"files": [TENSORS, PLAIN]},
    "a file that is a folder": FIELDS
    | {"files": [PLAIN | {"path": p} for p in ("a", "a-b", "a/b")]},
    "a path twice": FIELDS | {"files": [PLAIN, PLAIN]},
    "no files": {name: value for name, value in FIELDS.items() if name != "files"},
    "a short salt": FIELDS | {"salt": bytes(15)},
    "lineage of no digest": FIELDS | {"lineage": [{"relation": "x", "digest": D[0][1:]}]},
    "a bad path": with_file(PLAIN, path="../config.json"),
    "a negative size": with_file(PLAIN, size=-1, chunks=b""),
    "no SHA-256": with_file(PLAIN, sha256=SHA[:31]),
    "a chunk too few": with_file(PLAIN, chunks=D[1] + D[2]),
    "a chunk too many": with_file(PLAIN, chunks=b"".join(D)),
    "odd chunks": with_file(PLAIN, chunks=(D[1] + D[2] + D[3])[:-1]),
    "tensors without a header": with_file(PLAIN, tensors=[NONE]),
    "a header that is none": with_file(TENSORS, header=b"x" * len(HEADER)),
    "a header of another size": with_file(TENSORS, size=TENSORS["size"] + 1),
    "chunks beside tensors": with_file(TENSORS, chunks=D[0]),
    "a tensor less": with_file(TENSORS, tensors=[W]),
    "a tensor more": with_file(TENSORS, tensors=[NONE, W, W]),
    "tensors out of order": with_file(TENSORS, tensors=[W, NONE]),
    **{
        f"a tensor of another {name}": with_file(TENSORS, tensors=[NONE, W | {name: value}])
        for name, value in (("name", "v"), ("dtype", "I8"), ("shape", [1, MIB + 1]), ("begin", 1))
    },
    "a tensor's chunk missing": with_file(TENSORS, tensors=[NONE, W | {"chunks": D[0]}]),
    "a tensor's chunk too many": with_file(TENSORS, tensors=[NONE | {"chunks": D[0]}, W]),
    "a patch that lies on nothing": FIELDS | {"kind": "patch"},
}

UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "feature": (FIELDS | {"requires": ["sparse"]}, "'sparse'"),
    "feature, and fields of another form": ({"requires": ["sparse"], "files": 5}, "'sparse'"),
    "kind": (FIELDS | {"kind": "mosaic"}, "'mosaic'"),
    "keyed hash": (FIELDS | {"hash": "blake3-keyed"}, "blake3-keyed"),
    "content-defined cut": (with_file(TENSORS, tensors=[NONE, W | {"cut": 1}]), "cut 1"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused(case: str) -> None:
    with pytest.raises(Damaged, match="manifest X is damaged"):
        parse(DAMAGED[case])


@pytest.fixture
def few_items(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit that takes little memory, instead of the format's."""
    assert manifest._MAX_ITEMS == MIB, "as SPEC 7 says"
    monkeypatch.setattr(manifest, "_MAX_ITEMS", 1000)
    return 1000


def test_a_file_above_the_limit_of_tensors_is_refused(few_items: int) -> None:
    with pytest.raises(Damaged, match="manifest X is damaged"):
        parse(with_file(PLAIN, tensors=[{}] * (few_items + 1)))


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_newer_is_refused(case: str) -> None:
    fields, what = UNSUPPORTED[case]
    with pytest.raises(UnsupportedFormat, match=what):
        parse(fields)


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_newer_may_be_made_of_more(case: str) -> None:
    fields, what = UNSUPPORTED[case]
    with pytest.raises(UnsupportedFormat, match=what):
        made_of(fields)


@pytest.mark.parametrize("case", ["odd chunks", "no files", "a patch that lies on nothing"])
def test_what_a_manifest_is_made_of_is_whole(case: str) -> None:
    with pytest.raises(Damaged, match="manifest X is damaged"):
        made_of(DAMAGED[case])


def test_the_digest_is_checked_over_the_stored_bytes() -> None:
    plain = msgpack(FIELDS)
    for read in (parse_manifest, parse_manifest_chunks):
        with pytest.raises(Damaged, match="match its digest"):
            read(sealed(1, plain), Digest(D[0]), "x")
    again = seal_manifest(parse(FIELDS))[0]
    assert again.raw != b3(plain), "integers are longer here than in ours: readers do not re-encode"


def test_more_tensors_or_files_than_the_format_allows(few_items: int) -> None:
    one = TensorEntry(name="t", dtype="U8", shape=(0,), begin=0)
    half = FileEntry(path="a", size=0, sha256=SHA, tensors=(one,) * (few_items // 2))
    more = FileEntry(path="b", size=0, sha256=SHA, tensors=(one,) * (few_items // 2 + 1))
    empty = FileEntry(path="c", size=0, sha256=SHA)
    for files in ((half, more), (empty,) * (few_items + 1)):
        with pytest.raises(UsageError, match=f"{few_items} files"):
            seal_manifest(Manifest(files=files))
    seal_manifest(Manifest(files=tuple(replace(empty, path=f"{n:04}") for n in range(few_items))))
    plain = msgpack(FIELDS | {"files": []})
    at = plain.index(b"files") + 5
    row = msgpack({"path": "a", "size": 0, "sha256": SHA})
    count = few_items + 1
    many = plain[:at] + b"\xdd" + count.to_bytes(4, "big") + row * count + plain[at + 5 :]
    with pytest.raises(Damaged, match="more files or tensors"):
        parse_manifest(sealed(1, many, encoding=1), Digest(b3(many)), "x")


BAD_PATHS = [
    "", "/", "/a", "a/", "a//b", ".", "..", "a/.", "a/../b", "./a", "a\0b", "a\\b", "C:", "c:/x",
    "e\u0301", "x" * 4097, "é" * 2049, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS, ids=ascii)
def test_paths_that_leave_their_directory_or_cannot_be_files(path: str) -> None:
    with pytest.raises(InvalidName, match=r"rename|not allowed"):
        check_path(path)


@pytest.mark.parametrize("path", ["a", "a/b/c", ".a", "..a", "a b", "é", "x" * 4096, "ab:c", " "])
def test_paths_that_are_allowed(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "a\n", "\t/b", "a\x7f", "\x9f", "x" * 256, "a/" + "é" * 128, ".tierstore-export.json",
        "a/.tierstore-export.json", ".tierstore-export.tmp/a", f".tierstore-{'0' * 32}.tmp",
    ],
    ids=ascii,
)  # fmt: skip
def test_paths_that_no_writer_may_write_and_readers_accept(path: str) -> None:
    with pytest.raises(InvalidName, match="not allowed"):
        check_new_path(path)
    empty = FileEntry(path=path, size=0, sha256=SHA)
    digest, stored = seal_manifest(Manifest(files=(empty,)))
    assert parse_manifest(stored, digest, "x").files == (empty,)


@pytest.mark.parametrize("path", ["a", "x" * 255, "é" * 127, ".tierstore", "a.tmp", "\xa0"])
def test_paths_that_writers_may_write(path: str) -> None:
    assert check_new_path(path) == path


def test_names_that_differ_only_by_case() -> None:
    assert alike(["a", "b/a", "b/c", "a.b"]) is None
    assert alike(["a/b", "a/B"]) == ("a/b", "a/B")
    assert alike(["A/b", "a/c"]) == ("A", "a"), "folders too"
    assert alike(["É", "e\u0301"]) == ("É", "e\u0301"), "in any normal form"
    assert alike(["ß", "SS", "ss"]) == ("ß", "SS")
