"""Patch manifests and their files: what fits, and what is refused as damage."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, get_args

import msgspec
import pytest

from tierstore.errors import Damaged, InvalidSafetensors, UnsupportedFormat
from tierstore.format import checks
from tierstore.format.checks import KNOWN_FEATURES, digest_of
from tierstore.format.manifest import (
    FileEntry,
    Manifest,
    TensorEntry,
    parse_manifest,
    patch_info,
    patch_manifest,
    seal_manifest,
)
from tierstore.format.patch import (
    PATCH_FORMS,
    PatchForm,
    PatchInfo,
    PatchKind,
    build_patch_header,
    parse_patch,
    touched_ranges,
)
from tierstore.format.safetensors import build_header
from tierstore.format.sealed import Kind, seal
from tierstore.ids import Digest

MIB = 1 << 20
BASE, BELOW = Digest(bytes(range(32))), Digest(bytes(32))
COUNT = 200_000
"""Indices in two chunks of 1 MiB."""


def manifest() -> Manifest:
    header = build_patch_header(
        BASE,
        [
            ("emb", "rows", "I8", (COUNT * 2, 3), COUNT),
            ("w", "elements", "F32", (10, 10), 2),
            ("b", "dense", "F16", (4,), 1),
            ("none", "rows", "F32", (5, 2), 0),
        ],
    )
    tensors = tuple(
        TensorEntry(
            name=info.name, dtype=info.dtype, shape=info.shape, begin=info.begin,
            chunks=bytes(32) * -(-(info.end - info.begin) // MIB),
        )
        for info in header.tensors
    )  # fmt: skip
    touched = {
        "rows.indices/emb": struct.pack("<4Q", 0, 150_000, 150_001, COUNT * 2 - 1),
        "elements.indices/w": struct.pack("<2Q", 7, 99),
    }
    file = FileEntry(
        path="patch.safetensors", size=len(header.raw) + header.data_size, sha256=bytes(32),
        header=header.raw, tensors=tensors,
    )  # fmt: skip
    info = PatchInfo(
        chain=BELOW.raw + BASE.raw,
        touched=tuple(touched.get(info.name, b"") for info in header.tensors),
    )
    return patch_manifest(file, info, MIB)


def parse(fields: Mapping[str, Any]) -> Manifest:
    plain = msgspec.msgpack.encode(fields)
    return parse_manifest(seal(Kind.MANIFEST, plain), digest_of(plain), "manifest X")


def fields() -> dict[str, Any]:
    found: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(manifest()))
    return found


def test_a_patch_manifest_says_what_it_says() -> None:
    digest, sealed = seal_manifest(manifest())
    parsed = parse_manifest(sealed, digest, "X")
    assert parsed == manifest()
    info = patch_info(parsed)
    assert info is not None
    assert (info.digests, info.base) == ([BELOW, BASE], BASE)
    assert parsed.requires == ["patch"]
    assert list(fields()) == [
        "requires", "kind", "chunk_size", "hash", "files", "lineage", "patch",
    ]  # fmt: skip
    assert touched_ranges(info.touched[1]) == [(0, 150_000), (150_001, COUNT * 2 - 1)]


def test_a_full_manifest_is_written_as_ever() -> None:
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(Manifest(files=())))
    assert list(plain) == ["requires", "kind", "chunk_size", "hash", "files", "lineage"]


def changed(**change: Any) -> dict[str, Any]:
    return fields() | change


def with_patch(**change: Any) -> dict[str, Any]:
    return changed(patch=fields()["patch"] | change)


def with_touched(at: int, data: bytes) -> dict[str, Any]:
    touched = list(fields()["patch"]["touched"])
    touched[at] = data
    return with_patch(touched=touched)


FILE = fields()["files"][0]
PLAIN = {
    "path": "patch.safetensors", "size": 0, "sha256": bytes(32), "header": b"", "tensors": [],
    "chunks": b"",
}  # fmt: skip
LAST = COUNT * 2 - 1

DAMAGED: dict[str, dict[str, Any]] = {
    "no chain": with_patch(chain=b""),
    "an odd chain": with_patch(chain=bytes(33)),
    "a chain above the limit": with_patch(chain=bytes(32) * 1024 + BASE.raw),
    "another base": with_patch(chain=BASE.raw + BELOW.raw),
    "a full one with a patch": changed(kind="full"),
    "no feature": changed(requires=[]),
    "no patch": {name: value for name, value in fields().items() if name != "patch"},
    "no lineage": changed(lineage=[]),
    "another lineage": changed(lineage=[{"relation": "patch-of", "digest": BELOW.raw}]),
    "another relation": changed(lineage=[{"relation": "derived-from", "digest": BASE.raw}]),
    "another file": changed(files=[FILE | {"path": "model.safetensors"}]),
    "two files": changed(files=[FILE | {"path": "a"}, FILE]),
    "no file": changed(files=[]),
    "a file that is no safetensors": changed(files=[PLAIN]),
    "one touched too few": with_patch(touched=fields()["patch"]["touched"][:-1]),
    "touched for values": with_touched(-1, struct.pack("<2Q", 0, 1)),
    "touched with a chunk missing": with_touched(1, struct.pack("<2Q", 0, LAST)),
    "touched beyond the tensor": with_touched(1, struct.pack("<4Q", 0, 5, 6, LAST + 1)),
    "touched that falls": with_touched(1, struct.pack("<4Q", 0, 5, 5, LAST)),
    "touched from behind": with_touched(1, struct.pack("<4Q", 6, 5, 7, LAST)),
    "touched beyond 63 bits": with_touched(1, struct.pack("<4Q", 0, 5, 6, 2**64 - 1)),
    "touched cut": with_touched(1, struct.pack("<4Q", 0, 5, 6, LAST)[:-1]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused(case: str) -> None:
    with pytest.raises(Damaged, match="manifest X is damaged"):
        parse(DAMAGED[case])


def test_the_cases_above_are_damage_of_one_thing_each() -> None:
    """The same changes that keep the rules are read."""
    assert manifest().files[0].tensors[1].name == "rows.indices/emb"
    for good in (struct.pack("<4Q", 0, 5, 6, LAST), struct.pack("<4Q", 3, 3, LAST, LAST)):
        parse(with_touched(1, good))
    parse(with_patch(chain=bytes(32) * 1023 + BASE.raw))


def test_a_kind_with_a_feature_of_its_own_is_newer_to_older_readers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PATCH_FORMS, "elements", PatchForm(None, "patch-points"))
    written = manifest()
    assert written.requires == ["patch", "patch-points"]
    with monkeypatch.context() as newer:
        newer.setattr(checks, "KNOWN_FEATURES", KNOWN_FEATURES | {"patch-points"})
        digest, sealed = seal_manifest(written)
    with pytest.raises(UnsupportedFormat, match="the feature 'patch-points'"):
        parse_manifest(sealed, digest, "manifest X")


def test_every_kind_needs_features_that_are_known() -> None:
    assert {form.feature for form in PATCH_FORMS.values()} <= KNOWN_FEATURES
    assert list(PATCH_FORMS) == list(get_args(PatchKind))


@pytest.mark.parametrize(
    ("kind", "count", "limit", "unit_bytes", "values"),
    [("rows", 5, 4, 48, (5, 6, 2)), ("elements", 5, 48, 4, (5,)), ("dense", 1, 1, 192, (4, 6, 2))],
)
def test_what_an_index_stands_for(
    kind: PatchKind, count: int, limit: int, unit_bytes: int, values: tuple[int, ...]
) -> None:
    header = build_patch_header(BASE, [("w", kind, "F32", (4, 6, 2), count)])
    part = parse_patch(header).parts["w"]
    said = part.count, part.limit, part.unit_bytes, part.values.shape
    assert said == (count, limit, unit_bytes, values)


def test_another_kind_is_newer() -> None:
    with pytest.raises(UnsupportedFormat, match="kind 'mosaic'"):
        parse(changed(kind="mosaic"))


GOOD = {"format": "tierstore-patch/1", "base": BASE.hex, "shapes": '{"w":[4,6]}'}
ROWS = [("rows.indices/w", "I64", (2,)), ("rows.values/w", "F32", (2, 6))]

BAD: dict[str, tuple[list[tuple[str, str, tuple[int, ...]]], dict[str, str], str]] = {
    "no metadata": (ROWS, {}, "no format"),
    "another format": (ROWS, GOOD | {"format": "tierstore-patch/9"}, "no format"),
    "no base": (ROWS, GOOD | {"base": ""}, "no base"),
    "shapes that are none": (ROWS, GOOD | {"shapes": "{"}, "shapes"),
    "a shape of text": (ROWS, GOOD | {"shapes": '{"w":"x"}'}, "shapes"),
    "no such tensor": (ROWS, GOOD | {"shapes": '{"v":[4,6]}'}, "no values for tensor 'v'"),
    "something else in it": ([*ROWS, ("x", "U8", (1,))], GOOD, "'x', which belongs"),
    "indices of dense": (
        [("dense.values/w", "F32", (4, 6)), ("dense.indices/w", "I64", (1,))], GOOD, "belongs",
    ),
    "two kinds": ([*ROWS, ("dense.values/w", "F32", (4, 6))], GOOD, "several kinds"),
    "no indices": (ROWS[1:], GOOD, "no 'rows.indices/w'"),
    "no values": (ROWS[:1], GOOD, "no values"),
    "float indices": ([("rows.indices/w", "F32", (2,)), ROWS[1]], GOOD, "not integers"),
    "indices in two dimensions": ([("rows.indices/w", "I64", (2, 1)), ROWS[1]], GOOD, "dimension"),
    "fewer values": ([ROWS[0], ("rows.values/w", "F32", (1, 6))], GOOD, r"instead of \[2, 6\]"),
    "another width": ([ROWS[0], ("rows.values/w", "F32", (2, 5))], GOOD, "instead of"),
    "dense of another shape": ([("dense.values/w", "F32", (6, 4))], GOOD, "instead of"),
    "rows of a scalar": (
        [("rows.indices/w", "I64", (1,)), ("rows.values/w", "F32", (1,))],
        GOOD | {"shapes": '{"w":[]}'}, "no dimensions",
    ),
    "elements of half a byte": (
        [("elements.indices/w", "I64", (2,)), ("elements.values/w", "F4", (2,))], GOOD, "4 bits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_patch_file(case: str) -> None:
    tensors, metadata, text = BAD[case]
    with pytest.raises(InvalidSafetensors, match=text):
        parse_patch(build_header(tensors, metadata))


def test_a_base_may_be_written_as_it_is_shown() -> None:
    spec = parse_patch(build_header(ROWS, GOOD | {"base": str(BASE)}))
    assert spec.base == BASE
    part = spec.parts["w"]
    assert (part.kind, part.count, part.limit, part.unit_bytes) == ("rows", 2, 4, 24)
