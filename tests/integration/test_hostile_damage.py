"""Damage to any object: an error that names it, or the right bytes; never a wrong one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from tests.integration.kit import created, settings
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, NotFound, TierstoreError, UnsupportedFormat
from tierstore.format.checks import digest_of
from tierstore.format.keys import layout_key, version_key
from tierstore.format.layout import LayoutBody
from tierstore.format.manifest import Manifest, parse_manifest
from tierstore.format.paths import EXPORT_LIST
from tierstore.format.safetensors import build_header
from tierstore.format.sealed import Kind, seal, unseal
from tierstore.format.storeconfig import Features, encode_config, parse_config
from tierstore.ids import Digest
from tierstore.modelstore.care.check_report import CheckReport
from tierstore.modelstore.store import Store

RNG = np.random.default_rng(8)
MODEL: dict[str, npt.NDArray[Any]] = {
    "w": RNG.standard_normal((600, 250), np.float32),
    "b": RNG.integers(0, 9, 33).astype(np.int8),
}
REFUSED = (Damaged, NotFound, UnsupportedFormat)


class Made:
    """A small store, and a way to spoil one object of it at a time."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.blobs = MemoryStore("hostile")
        with created(self.blobs, cache) as store:
            store.save("m", MODEL, alias="prod")
        self.good = {info.key: bytes(self.blobs.get(info.key)) for info in self.blobs.list()}

    def key(self, kind: str) -> str:
        found = {
            "entry": "refs/m/versions/000000/000000001",
            "hint": "refs/m/versions/HEAD",
            "alias": "refs/m/alias/prod/000000/000000001",
            "alias hint": "refs/m/alias/prod/HEAD",
        }
        if kind in found:
            return found[kind]
        (key,) = [key for key in self.good if key.split("/")[0] == kind]
        return key

    def restore(self) -> None:
        for key, data in self.good.items():
            self.blobs.put(key, data)

    def opened(self) -> Store:
        options = settings(self.cache)
        return Store(self.blobs, options)


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    with tempfile.TemporaryDirectory() as name:
        yield Made(Path(name))


@pytest.fixture(autouse=True)
def _restored(made: Made) -> Iterator[None]:
    """One test's damage is not the next one's."""
    yield
    made.blobs.delete([i.key for i in made.blobs.list() if i.key not in made.good])
    made.restore()


KINDS = [
    "config.json", "versions", "layouts", "packs", "index", "entry", "hint", "alias", "alias hint",
]  # fmt: skip
HINTS = ("index", "hint", "alias hint")


def read(made: Made, ref: str) -> str | None:
    """Read everything in every way; the error of whatever failed, after it was judged."""
    errors = []
    with tempfile.TemporaryDirectory() as out:
        try:
            with made.opened() as store:
                model = store.load(ref)
                steps = [
                    lambda: model["w"].tobytes() == MODEL["w"].tobytes(),
                    lambda: model["b"].tobytes() == MODEL["b"].tobytes(),
                    lambda: (
                        model.tensor("w")[[0, 300, 599]].tobytes()
                        == MODEL["w"][[0, 300, 599]].tobytes()
                    ),
                    lambda: model.tensor("w")[10:590].tobytes() == MODEL["w"][10:590].tobytes(),
                    lambda: bool(model.export(out)),
                ]
                for number, step in enumerate(steps):
                    try:
                        assert step(), f"step {number} gave wrong data"
                    except REFUSED as error:
                        errors.append(str(error))
        except REFUSED as error:
            errors.append(str(error))
        exported = [path for path in Path(out).iterdir() if path.name != EXPORT_LIST]
        if exported:
            data = exported[0].read_bytes()
            assert [path.name for path in exported] == ["model.safetensors"], "no half file"
            assert data.endswith(MODEL["w"].tobytes()[-1000:]) or MODEL["b"].tobytes() in data
            assert digest_of(data) == EXPORTED
    return " | ".join(errors) or None


def expected_file() -> Digest:
    header = build_header([("w", "F32", (600, 250)), ("b", "I8", (33,))], None)
    return digest_of(header.raw + MODEL["w"].tobytes() + MODEL["b"].tobytes())


EXPORTED = expected_file()


def check(made: Made) -> CheckReport:
    with made.opened() as store:
        return store.check(read_data=True)


def judge(made: Made, kind: str, what: str) -> None:
    key = made.key(kind)
    name = key.rpartition("/")[2] if kind in ("packs", "versions", "layouts") else key
    for ref in ("m@prod",) if "alias" in kind else ("m", "m@prod"):
        error = read(made, ref)
        assert error is None or name in error, f"{what}: {error!r} does not name {name}"
        assert error is None or kind not in HINTS, f"{what}: {error}"
    if kind == "config.json":
        same = json.loads(made.good[key])  # white space behind it is no matter
        try:
            made.opened()
            assert json.loads(bytes(made.blobs.get(key))) == same
        except (Damaged, UnsupportedFormat):
            pass
        return
    report = check(made)
    found = [finding for finding in report.findings if finding.key == key]
    if kind in ("hint", "alias hint"):
        assert not report.damaged, f"{what}: {report.findings}"
    elif kind == "index":
        assert [finding.severity for finding in report.findings] in ([], ["garbage"]), what
        with made.opened() as store:
            store.save("again", MODEL)
            assert store.load("again")["b"].tobytes() == MODEL["b"].tobytes()
        for info in list(made.blobs.list()):
            if info.key not in made.good:
                made.blobs.delete([info.key])
    else:
        assert [finding.severity for finding in found] == ["damage"], f"{what}: {report.findings}"
        assert kind == "alias" or found[0].needed_by == ("m@1",), f"{what}: {found}"
        assert report.garbage_keys == [], f"{what}: damage makes nothing garbage"


def places(kind: str, size: int) -> list[int]:
    """Some bytes of every region of an object."""
    if kind == "packs":
        index = size - 64 - 700
        heads = [*range(64, 64 + 240, 17)]
        payload = [*range(400, index, index // 25)]
        return [*range(0, 64, 7), *heads, *payload, *range(index, size - 64, 41),
                *range(size - 64, size, 5)]  # fmt: skip
    return sorted({*range(0, min(56, size), 5), *range(56, size, max(1, size // 25)), size - 1})


@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_byte(made: Made, kind: str) -> None:
    key = made.key(kind)
    data = made.good[key]
    assert check(made).findings == []
    for at in places(kind, len(data)):
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << at % 8
        made.blobs.put(key, spoiled)
        judge(made, kind, f"{key}: a bit of byte {at}")


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_or_too_long(made: Made, kind: str) -> None:
    key = made.key(kind)
    data = made.good[key]
    for spoiled in (b"", data[:1], data[:60], data[: len(data) // 2], data[:-1], data + b"\0"):
        made.blobs.put(key, spoiled)
        judge(made, kind, f"{key}: {len(spoiled)} bytes of {len(data)}")


@pytest.mark.parametrize("kind", KINDS)
def test_missing(made: Made, kind: str) -> None:
    key = made.key(kind)
    made.blobs.delete([key])
    if kind == "config.json":
        with pytest.raises(NotFound, match=r"config\.json is lost: 'tierstore repair --home'"):
            made.opened()
    elif kind == "layouts":
        assert [f.key for f in check(made).findings] == [key]
        assert read(made, "m") is None, "it is rebuilt"
        assert check(made).findings == [], "and written"
    elif kind in ("entry", "alias"):
        with (
            made.opened() as store,
            pytest.raises(NotFound, match=r"does not exist|entry is missing"),
        ):
            store.load("m@prod")
        report = check(made)
        assert key in [f.key for f in report.findings if f.severity == "damage"], report.findings
        assert report.garbage_keys == []
    else:
        judge(made, kind, f"{key} is missing")


@pytest.mark.parametrize("kind", KINDS)
def test_noise_in_the_place_of_any_object(made: Made, kind: str) -> None:
    key = made.key(kind)
    made.blobs.put(key, np.random.default_rng(1).bytes(len(made.good[key])))
    judge(made, kind, f"{key} is noise")


def test_one_object_in_the_place_of_another(made: Made) -> None:
    """Each is whole by itself, so only what binds it to its key can tell."""
    with made.opened() as store:
        store.save("other", {"w": MODEL["w"] + 1, "b": MODEL["b"]})
    others = {i.key: bytes(made.blobs.get(i.key)) for i in made.blobs.list()}
    for kind in ("versions", "layouts", "packs"):
        key = made.key(kind)
        (wrong,) = [other for other in others if other.split("/")[0] == kind and other != key]
        made.blobs.put(key, others[wrong])
        assert read(made, "m"), f"{wrong} was taken for {key}"
        assert check(made).damaged
        made.blobs.put(key, made.good[key])


@pytest.mark.parametrize("stray", ["%FF", "a%2fb", "~", "%41"])
def test_a_stray_folder_among_the_models_stops_nobody(made: Made, stray: str) -> None:
    made.blobs.put(f"refs/{stray}/x".replace("~", "%7e"), b"stray")
    with made.opened() as store:
        assert store.models() == ["m"]
        store.save("n", MODEL)
        assert store.models() == ["m", "n"]
        assert [f.what.split(":")[0] for f in store.check().findings] == ["not a model's name"]


# Newer formats


def test_a_store_of_a_newer_format_is_refused(made: Made) -> None:
    config = json.loads(made.good["config.json"])
    later = {**config, "format": 2, "new": {"things": 1}}
    made.blobs.put("config.json", json.dumps(later).encode())
    with pytest.raises(UnsupportedFormat, match="newer tierstore; upgrade"):
        made.opened()
    known = parse_config(made.good["config.json"], "config")
    for changes in ({"features": Features(read=["later"])}, {"hash": "blake3-keyed"}):
        changed = msgspec.structs.replace(known, **changes)
        made.blobs.put("config.json", encode_config(changed))
        with pytest.raises(UnsupportedFormat, match="upgrade"):
            made.opened()


def republish(made: Made, manifest: Manifest) -> str:
    """Publish a crafted manifest, its digest right, as ``evil@1``; with the layout of ``m@1``."""
    plain = msgspec.msgpack.encode(manifest)  # seal_manifest would refuse it
    digest, sealed = digest_of(plain), seal(Kind.MANIFEST, plain)
    made.blobs.put(version_key(digest), sealed)
    layout = made.good[made.key("layouts")]
    body = msgspec.msgpack.decode(unseal(Kind.LAYOUT, layout, "layout"), type=LayoutBody)
    body = msgspec.structs.replace(body, manifest=digest.raw)
    made.blobs.put(layout_key(digest), seal(Kind.LAYOUT, msgspec.msgpack.encode(body)))
    with made.opened() as store:
        store._parts.home.log("evil").append("publish", lambda _: (0, digest.hex, None))
    return digest.hex


def manifest_of(made: Made) -> Manifest:
    key = made.key("versions")
    return parse_manifest(made.good[key], Digest.from_hex(key.partition("/")[2]), key)


CRAFTED: dict[str, tuple[dict[str, Any], type[Exception] | None]] = {
    "an unknown feature": ({"requires": ["later"]}, UnsupportedFormat),
    "another kind": ({"kind": "later"}, UnsupportedFormat),
    "a patch without a base": ({"kind": "patch"}, Damaged),
    "a release without members": ({"kind": "release"}, Damaged),
    "another hash": ({"hash": "sha3"}, UnsupportedFormat),
    "a chunk size of its own": ({"chunk_size": 3 << 20}, Damaged),
    "no chunk size": ({"chunk_size": 0}, Damaged),
    "another chunk size": ({"chunk_size": 16 << 20}, None),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_manifest_that_asks_for_what_we_do_not_know(made: Made, what: str) -> None:
    changes, error = CRAFTED[what]
    republish(made, msgspec.structs.replace(manifest_of(made), **changes))
    with made.opened() as store:
        if error is None:
            assert store.load("evil")["w"].tobytes() == MODEL["w"].tobytes()
        else:
            with pytest.raises(error, match="versions/"):
                store.load("evil")
            assert store.load("m")["w"].tobytes() == MODEL["w"].tobytes()
            assert store.check().damaged


PATHS = [
    "../x", "/etc/x", "a/../../x", "./x", "a//x", "", "..", "a/..", "C:/x", "a\\x", "x\0", "a/",
    "cafe\u0301",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_climbs_out_is_refused_when_parsed(
    made: Made, path: str, tmp_path: Path
) -> None:
    manifest = manifest_of(made)
    (file,) = manifest.files
    bad = msgspec.structs.replace(file, path=path)
    republish(made, msgspec.structs.replace(manifest, files=(bad,)))
    target = tmp_path / "inner/target"
    target.mkdir(parents=True)
    with made.opened() as store, pytest.raises(Damaged, match="file path"):
        store.load("evil").export(target)
    assert list(tmp_path.rglob("*")) == [tmp_path / "inner", target]


def file_changes(made: Made) -> dict[str, dict[str, object]]:
    (file,) = manifest_of(made).files
    one, two = file.tensors
    replace = msgspec.structs.replace
    return {
        "a size too large": {"size": file.size + 1},
        "a negative size": {"size": -1},
        "a short SHA-256": {"sha256": b"x"},
        "no tensors": {"tensors": ()},
        "one tensor": {"tensors": (one,)},
        "tensors in another order": {"tensors": (two, one)},
        "another name": {"tensors": (replace(one, name="v"), two)},
        "another shape": {"tensors": (replace(one, shape=(250, 600)), two)},
        "another dtype": {"tensors": (replace(one, dtype="I32"), two)},
        "too few chunks": {"tensors": (replace(one, chunks=b""), two)},
        "too many chunks": {"tensors": (replace(one, chunks=one.chunks * 2), two)},
        "half a digest": {"tensors": (replace(one, chunks=one.chunks[:-1]), two)},
        "a cut we do not know": {"tensors": (replace(one, cut=1), two)},
        "no header": {"header": b""},
        "a header cut short": {"header": file.header[:-1]},
        "chunks beside tensors": {"chunks": one.chunks},
        "a huge shape": {"tensors": (replace(one, shape=(1 << 62, 1 << 62)), two)},
    }


@pytest.mark.parametrize(
    "what",
    [
        "a size too large", "a negative size", "a short SHA-256", "no tensors", "one tensor",
        "tensors in another order", "another name", "another shape", "another dtype",
        "too few chunks", "too many chunks", "half a digest", "a cut we do not know", "no header",
        "a header cut short", "chunks beside tensors", "a huge shape",
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself(made: Made, what: str) -> None:
    manifest = manifest_of(made)
    bad = msgspec.structs.replace(manifest.files[0], **file_changes(made)[what])
    republish(made, msgspec.structs.replace(manifest, files=(bad,)))
    with made.opened() as store, pytest.raises((Damaged, UnsupportedFormat), match="versions/"):
        store.load("evil")


def test_chunks_in_the_wrong_place_are_found_by_every_reader(made: Made) -> None:
    """The manifest names the chunk of ``b`` for ``w``: whole reads, rows and export refuse it."""
    manifest = manifest_of(made)
    (file,) = manifest.files
    w, b = file.tensors
    swapped = (msgspec.structs.replace(w, chunks=b.chunks), b)
    bad = msgspec.structs.replace(file, tensors=swapped)
    republish(made, msgspec.structs.replace(manifest, files=(bad,)))
    with made.opened() as store:
        model = store.load("evil")
        for use in (
            lambda: model["w"],
            lambda: model.tensor("w")[3],
            lambda: model.read_file("model.safetensors"),
            lambda: model.load_into({"w": bytearray(600_000)}),
        ):
            with pytest.raises(Damaged, match="plain bytes instead of"):
                use()


def test_a_wrong_sha256_puts_no_file_in_place(made: Made, tmp_path: Path) -> None:
    manifest = manifest_of(made)
    (file,) = manifest.files
    bad = msgspec.structs.replace(file, sha256=bytes(32))
    republish(made, msgspec.structs.replace(manifest, files=(bad,)))
    (tmp_path / "model.safetensors").write_text("what was there")
    with made.opened() as store, pytest.raises(Damaged, match="SHA-256"):
        store.load("evil").export(tmp_path, others="merge")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "what was there"


def test_every_error_is_one_of_ours(made: Made) -> None:
    """Random bytes behind a right envelope: whatever they say, no other exception comes out."""
    rng = np.random.default_rng(5)
    for kind, sealed in (
        ("layouts", Kind.LAYOUT), ("versions", Kind.MANIFEST), ("entry", Kind.REF),
        ("hint", Kind.HINT), ("index", Kind.SEGMENT),
    ):  # fmt: skip
        key = made.key(kind)
        plain = unseal(sealed, made.good[key], key)
        for _ in range(60):
            body = bytearray(plain)
            for at in rng.integers(0, len(body), rng.integers(1, 6)):
                body[at] = rng.integers(0, 256)
            made.blobs.put(key, seal(sealed, bytes(body)))
            try:
                with made.opened() as store:
                    store.load("m").load()
                    store.load("m").tensor("w")[5]
            except TierstoreError:
                pass
            check(made)
        made.restore()
