"""Whatever a writer accepts, a reader reads.

Each test draws arguments of one call of the public API, right and wrong ones. Either the call is
refused with an error of tierstore's own that says which argument is meant, or a store that is
opened afterwards gives back exactly what was written, and ``check`` finds nothing. Most calls are
right in all they are given: what is refused is read back by nobody.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors_of

import tierstore
from tests.integration.kit import equal
from tierstore import Dense, Elements, Rows
from tierstore.errors import TierstoreError
from tierstore.format.paths import EXPORT_LIST, is_own
from tierstore.ids import Digest
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.commits import Committer, parse_commit
from tierstore.serving.hub.repos import Repos
from tierstore.serving.hub.rights import Caller
from tierstore.serving.hub.spool import UploadSpool

T = TypeVar("T")
api: Any = tierstore
"""The package as a user sees it whose types nobody checks."""

# in memory where there is such a place: thousands of objects wait for the disk otherwise
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

ODD = st.sampled_from([
    "", " ", ".", "..", "/", "a/b", "a//b", "../x", "/etc", "a@b", "m@1", "@", "m+v", "release:m",
    "b3:00", "é", "e\u0301", "ﬁ", "\u212a", "K", "k", "ß", "SS", "\0", "a\nb", "\x7f", "\u0085",
    "\u202e", "\ufeff", "\ud800", "\udce9", "\U0001f600", "a\\b", "C:x", "%00", "x" * 255,
    "é" * 128, "x" * 300, "-", "--to", ".git", EXPORT_LIST, "__metadata__", "config.json",
    "model.safetensors", "x.safetensors", "x.SAFETENSORS", "a.bin", "HEAD", "versions", "full",
])  # fmt: skip
TEXT = st.one_of(ODD, st.text(max_size=8), st.text(st.characters(categories=["Cs", "Ll"])))
TEXT.validate()  # makes the table of all characters: within a test it would count as slow
NUMBER = st.one_of(
    st.integers(-3, 200), st.sampled_from([1 << 31, 1 << 53, 1 << 63, 1 << 70, -(1 << 63)])
)
ANY = st.one_of(
    TEXT, NUMBER, st.none(), st.booleans(), st.floats(), st.binary(max_size=3),
    st.lists(TEXT, max_size=2), st.dictionaries(TEXT, TEXT, max_size=2),
)  # fmt: skip


def mostly(right: st.SearchStrategy[Any], *wrong: st.SearchStrategy[Any]) -> Any:
    """Draw what is right, and now and then what may be wrong: else no call is ever accepted."""
    return st.integers(0, 19).flatmap(lambda chance: right if chance < 19 else st.one_of(*wrong))


NAME = mostly(st.sampled_from(["m", "n", "org/n", "prod", "canary"]), TEXT)
MESSAGE = mostly(st.none() | st.text(max_size=8), TEXT, ANY)
DTYPES = mostly(
    st.sampled_from(["?", "u1", "i1", "<u2", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8"]),
    st.sampled_from([">f4", ">i2", "<c16", "U3", "O", "M8[s]", "V3"]),
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Draw arrays of any dtype, order and stride, with and without elements and dimensions."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = np.dtype(draw(DTYPES))
    size = int(np.prod(shape)) * dtype.itemsize
    if dtype.hasobject:
        return np.full(shape, None, dtype)
    array = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
    form = draw(st.sampled_from(["as it is", "fortran", "reversed", "every second"]))
    if form == "fortran":
        return np.asfortranarray(array)
    if form == "reversed" and array.ndim:
        return array[::-1]
    if form == "every second" and array.ndim:
        return np.repeat(array, 2, axis=0)[::2]
    return array


def as_stored(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array in the order of bytes and elements in which it is stored."""
    return np.array(array, array.dtype.newbyteorder("<"), order="C")


def accepted(call: Callable[[], T], *arguments: str) -> T | None:
    """Return what a call gives, or ``None`` where it is refused, and says for what."""
    try:
        return call()
    except (TierstoreError, HubError) as error:
        said = str(error)
        assert any(word in said for word in arguments), f"which argument is it? {said}"
        said.encode(errors="surrogateescape")
        return None


@contextlib.contextmanager
def made() -> Iterator[tuple[tierstore.Store, Path]]:
    """Make a store with one version, and a folder."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        root = Path(name)
        with tierstore.init(root / "store") as store:
            store.save("m", {"w": np.arange(6, dtype="<f4").reshape(3, 2), "v": np.zeros(4, "i1")})
            yield store, root


@contextlib.contextmanager
def reopened(store: tierstore.Store) -> Iterator[tierstore.Store]:
    """Open the store anew, and check all that it holds."""
    with tierstore.open(store.url) as fresh:
        yield fresh
        report = fresh.check(read_data=True)
        assert report.findings == []


@given(
    model=NAME,
    tensors=st.dictionaries(
        mostly(st.text(max_size=5), TEXT, NUMBER), mostly(arrays(), ANY), min_size=1, max_size=3
    ),
    metadata=mostly(st.none() | st.dictionaries(st.text(), st.text(), max_size=2), ANY),
    alias=mostly(st.none(), NAME, ANY),
    message=MESSAGE,
)
@example("m", {"w": np.float32(1).reshape(1, 1)[:, ::2]}, None, "prod", "why")
def test_tensors(model: Any, tensors: Any, metadata: Any, alias: Any, message: Any) -> None:
    with made() as (store, _):
        version = accepted(
            lambda: store.save(model, tensors, metadata=metadata, alias=alias, message=message),
            "model", "alias", "message", "metadata", "tensor", "array", "mapping", "save takes",
        )  # fmt: skip
        with reopened(store) as fresh:
            if version is None:
                return
            loaded = fresh.load(str(version))
            equal(loaded.load(), {name: as_stored(array) for name, array in tensors.items()})
            assert loaded.metadata == (metadata or {})
            assert fresh.history(version.model)[0].message == (message or "")
            if alias is not None:
                assert fresh.resolve(f"{version.model}@{alias}").digest == version.digest


PART = mostly(
    st.sampled_from(["a", "b", "A", "c.json", "é", "x.bin"]),
    st.sampled_from(["x.safetensors", "y.SAFETENSORS", ".git"]),
    TEXT,
    st.binary(min_size=1, max_size=4).map(os.fsdecode),
)
PATHS = st.lists(PART, min_size=1, max_size=2).map("/".join)
TENSORS = safetensors_of({"w": np.ones(3, "f4")})
CONTENT = mostly(
    st.binary(max_size=9) | st.sampled_from([b"", TENSORS, safetensors_of({})]),
    st.sampled_from([TENSORS[:-1], b"\x80\x04.", b"version https://git-lfs.github.com/spec/v1\n"]),
)


def on_disk(root: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Write the files that a file system takes; return them."""
    done = {}
    for path, data in files.items():
        target = root / path.lstrip("/")
        if ".." in path or target == root:
            continue
        with contextlib.suppress(OSError, ValueError):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            done[target.relative_to(root).as_posix()] = data
    return done


def is_left_out(path: str) -> bool:
    """Return whether a save takes a file for no content, as the reference says."""
    return path.startswith((".git/", ".cache/huggingface/")) or any(map(is_own, path.split("/")))


@given(
    files=st.dictionaries(PATHS, CONTENT, min_size=1, max_size=4),
    exclude=mostly(st.just([]), st.lists(st.sampled_from(["a", "*.json", "[", "x*", "é"]))),
)
def test_directories(files: dict[str, bytes], exclude: list[str]) -> None:
    from fnmatch import fnmatchcase

    with made() as (store, root):
        there = on_disk(root / "in", files)
        (root / "in").mkdir(exist_ok=True)
        version = accepted(
            lambda: store.save("m", root / "in", exclude=exclude, allow_no_tensors=True),
            str(root / "in"),
            "file path",
        )
        with reopened(store) as fresh:
            if version is None:
                return
            loaded = fresh.load(str(version))
            wanted = {path: data for path, data in there.items() if not is_left_out(path)}
            assert {file.path for file in loaded.files} == {
                path
                for path in wanted
                if not any(fnmatchcase(part, one) for one in exclude for part in above(path))
            }
            for file in loaded.files:
                assert loaded.read_file(file.path) == wanted[file.path]
            loaded.export(root / "out")
            for file in loaded.files:
                assert (root / "out" / file.path).read_bytes() == wanted[file.path]


def above(path: str) -> list[str]:
    """Return a path and the folders above it."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def committed(store: tierstore.Store, spool: UploadSpool, lines: bytes) -> tierstore.Version:
    repo = Repos(store).writable("c", Caller(None, (), ("c",)))
    return Committer(store, spool).commit(repo, "main", parse_commit(lines))


LINES = mostly(
    st.tuples(st.just("file"), PATHS, CONTENT),
    st.tuples(st.just("deletedFile"), PATHS, st.just(b"")),
    st.tuples(st.just("deletedFolder"), PATHS, st.just(b"")),
)


def as_lines(summary: str, lines: list[tuple[str, str, bytes]]) -> bytes:
    said: list[dict[str, Any]] = [{"key": "header", "value": {"summary": summary}}]
    for key, path, data in lines:
        said.append({"key": key, "value": {"path": path}})
        if key == "file":
            said[-1]["value"]["content"] = base64.b64encode(data).decode()
    return "\n".join(map(json.dumps, said)).encode()


SUMMARY = mostly(st.text(max_size=8), TEXT)


@given(
    commits=st.lists(
        st.tuples(SUMMARY, st.lists(LINES, min_size=1, max_size=4)), min_size=1, max_size=3
    )
)
@example(commits=[("", [("file", "q/r", b"1")]), ("", [("file", "q", b"2")])])
@example(commits=[("", [("file", "q", b"1"), ("file", "q/r", b"2")])])
@example(commits=[("\ud800", [("file", "q", b"1")])])
def test_commits(commits: list[tuple[str, list[tuple[str, str, bytes]]]]) -> None:
    with made() as (store, root):
        spool = UploadSpool(root / "spool")
        kept: dict[str, bytes] = {}
        last = None
        for summary, lines in commits:
            version = accepted(
                partial(committed, store, spool, as_lines(summary, lines)),
                "file", "path", "safetensors", "summary", "pickle", "folder", "at least one file",
            )  # fmt: skip
            if version is None:
                continue
            gone = [path.rstrip("/") for key, path, _ in lines if key == "deletedFolder"]
            one = {path for key, path, _ in lines if key == "deletedFile"}
            kept = {
                path: data
                for path, data in kept.items()
                if path not in one and not any(path.startswith(f"{each}/") for each in gone)
            } | {path: data for key, path, data in lines if key == "file"}
            last = version, dict(kept), summary
        with reopened(store) as fresh:
            if last is None:
                return
            loaded = fresh.load(str(last[0]))
            assert {file.path: loaded.read_file(file.path) for file in loaded.files} == last[1]


INDICES = mostly(st.sets(st.integers(0, 2)).map(sorted), st.lists(st.integers(-2, 7)), ANY)
WHOLE = {"w": np.ones((3, 2), "<f4"), "v": np.ones(4, "i1")}


def change_of(name: str) -> st.SearchStrategy[Any]:
    """Draw a change of a tensor: its kind, indices or the array, and the first of its values."""
    return mostly(
        st.one_of(
            st.tuples(st.sampled_from([Rows, Elements]), INDICES, st.integers(0, 9)),
            st.tuples(st.just(Dense), st.just(WHOLE.get(name, np.ones(1))), st.just(0)),
        ),
        st.tuples(st.just(Dense), arrays(), st.just(0)),
        ANY,
    )


CHANGES = st.lists(
    mostly(st.sampled_from(["w", "v"]), TEXT).flatmap(
        lambda name: st.tuples(st.just(name), change_of(name))
    ),
    min_size=1,
    max_size=2,
).map(dict)


@given(
    changes=CHANGES,
    fitting=mostly(st.just(True), st.just(False)),
    message=MESSAGE,
    alias=mostly(st.none(), NAME),
)
def test_patches(changes: Any, fitting: bool, message: Any, alias: Any) -> None:
    with made() as (store, _):
        content = dict(store.load("m").load())
        given_: dict[Any, Any] = {}
        for name, change in changes.items():
            if not isinstance(change, tuple):
                given_[name] = change
                continue
            kind, indices, fill = change
            if kind is Dense:
                given_[name] = Dense(indices)
                content[name] = indices
                continue
            old = content.get(name, np.zeros((3, 2), "<f4"))
            count = len(indices) if isinstance(indices, list) else 1
            shape = (count, *old.shape[1:]) if kind is Rows else (count,)
            values = np.arange(fill, fill + int(np.prod(shape))).reshape(shape)
            values = values.astype(old.dtype if fitting else "<i8")
            given_[name] = kind(indices, values)
            new = old.copy()
            target = new if kind is Rows else new.reshape(-1)
            with contextlib.suppress(IndexError, TypeError, ValueError):
                for at, value in zip(indices, values, strict=True):
                    target[at] = value
            content[name] = new
        version = accepted(
            lambda: store.patch("m", given_, message=message, alias=alias),
            "changes", "tensor", "alias", "message", "indices", "values", "patch",
        )  # fmt: skip
        with reopened(store) as fresh:
            if version is None:
                return
            equal(fresh.load(str(version)).load(), content)
            assert fresh.history("m")[0].message == (message or "")
            fresh.fold(str(version))
            equal(fresh.load(str(version)).load(), content)


OF_M, OF_N = st.sampled_from(["m", "m@1", "m@prod"]), st.sampled_from(["n", "n@1"])
NO_REFS = st.sampled_from(["m@2", "release:s", "m+bf16", "m@canary"]) | TEXT


@given(
    name=mostly(st.just("search"), NAME),
    refs=mostly(
        st.tuples(OF_M, OF_N) | st.tuples(OF_N), st.lists(OF_M | OF_N | NO_REFS, max_size=3), ANY
    ),
    alias=mostly(st.none(), NAME),
    message=MESSAGE,
)
def test_releases(name: Any, refs: Any, alias: Any, message: Any) -> None:
    with made() as (store, _):
        store.save("n", {"w": np.ones(2, "f4")})
        store.alias("m", "prod", "m@1")
        release = accepted(
            lambda: store.releases.create(name, refs, alias=alias, message=message),
            "release", "reference", "refs", "alias", "message", "model", "no version", "member",
        )  # fmt: skip
        with reopened(store) as fresh:
            known = [] if release is None else [release.version.model]
            assert fresh.releases.names() == known
            if release is None:
                return
            found = fresh.releases.get(str(release.version))
            assert found.members == release.members
            assert {str(one) for one in found.members.values()} == {
                str(store.resolve(ref)) for ref in refs
            }


@given(
    roles=mostly(
        st.lists(st.sampled_from(["hot", "warm"]), min_size=1, max_size=3),
        st.lists(st.sampled_from(["hot", "cold", "é"]), max_size=3),
        ANY,
    ),
    ref=mostly(st.just("m@1") | st.text(), TEXT, ANY),
    until=mostly(
        st.none() | st.datetimes(datetime.datetime(2200, 1, 1)),
        st.datetimes(),
        st.datetimes(timezones=st.sampled_from([datetime.UTC])),
        ANY,
    ),
)
def test_pins(roles: Any, ref: Any, until: Any) -> None:
    with made() as (store, _):
        digest = store.resolve("m").digest
        pinned = accepted(
            lambda: store.pins.add(digest, ref, roles, until),
            "roles", "pinned in", "ref", "until", "in the past",
        )  # fmt: skip
        with reopened(store) as fresh:
            assert fresh.pins.active() == ([] if pinned is None else [pinned])
            if pinned is None:
                return
            assert (pinned.version, pinned.ref) == (digest, ref)
            assert sorted(pinned.roles) == sorted(set(roles))
            if until is None:
                assert pinned.until is None
            else:
                assert pinned.until is not None
                assert abs(pinned.until.timestamp() - until.timestamp()) < 1e-3


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": mostly(st.just("warm-2"), TEXT, ANY),
        "role": mostly(st.sampled_from(["warm", "cold"]), st.sampled_from(["shared", "hot"]), ANY),
        "size": mostly(st.none() | st.integers(1 << 20, 1 << 62), NUMBER, ANY),
        "high": mostly(st.integers(85, 100), NUMBER, ANY),
        "low": mostly(st.integers(1, 85), NUMBER, ANY),
        "timeout_ms": mostly(st.integers(60_000, 10**6), NUMBER, ANY),
        "state": mostly(st.just("active"), st.just("draining"), ANY),
        "options": mostly(st.just({}), st.dictionaries(TEXT, TEXT, max_size=1), ANY),
        "prices": mostly(
            st.dictionaries(
                mostly(st.sampled_from(["gb_month", "put_1000"]), TEXT),
                mostly(st.sampled_from(["1", "0.02"]), st.sampled_from(["-1", "NaN"]), TEXT),
                max_size=2,
            ),
            ANY,
        ),
    },
)


@given(
    fields=FIELDS,
    url=mostly(st.just("t"), TEXT),
    inside=st.booleans(),
    changed=st.booleans(),
    message=MESSAGE,
)
def test_tiers(fields: Any, url: str, inside: bool, changed: bool, message: Any) -> None:
    said = ("tier", "name", "role", "url", "path", "message", "file:", "store", *FIELD_NAMES)
    with made() as (store, root):
        place = f"{root}/tiers/{url.lstrip('/')}" if inside else (root / "tiers").as_uri()
        spec: dict[str, Any] = {"name": "warm", "role": "warm", "url": place}
        if ".." in place:
            return
        if changed:
            if accepted(lambda: store.admin.tiers.add(api.TierSpec(**spec)), *said) is None:
                return
            given_ = {key: fields[key] for key in fields if key not in {"name", "role", "state"}}
            tier = accepted(
                lambda: store.admin.tiers.set("warm", message=message, **given_),
                "nothing to change", *said,
            )  # fmt: skip
        else:
            tier = accepted(
                lambda: store.admin.tiers.add(api.TierSpec(**{**spec, **fields}), message=message),
                *said,
            )
        with reopened(store) as fresh:
            found = {each.name: each for each in fresh.tiers()}
            if tier is not None:
                assert found[tier.name] == tier
                wanted = {**spec, **fields} if not changed else given_
                for key, value in wanted.items():
                    assert key == "url" or getattr(tier, key) == value
            else:
                assert set(found) <= {"home", "warm"}
            fresh.save("m", {"w": np.ones(3, "f4")})
            equal(fresh.load("m").load(), {"w": np.ones(3, "f4")})


FIELD_NAMES = ("size", "high", "low", "timeout_ms", "state", "options", "prices")


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "stages": mostly(
                st.sets(st.integers(1, 9999), max_size=3).map(lambda few: [*sorted(few), 10_000]),
                st.lists(NUMBER, max_size=3),
                ANY,
            ),
            "every_s": mostly(st.none() | st.integers(1, 10**6), NUMBER, ANY),
            "gates": mostly(st.lists(mostly(st.just("p99_ms<=12.5"), TEXT), max_size=2), ANY),
            "labels": mostly(
                st.dictionaries(st.text(min_size=1), st.text(min_size=1), max_size=2),
                st.dictionaries(TEXT, TEXT, max_size=2),
                ANY,
            ),
            "windows": mostly(st.lists(mostly(st.just("22:00-06:30"), TEXT), max_size=2), ANY),
            "message": MESSAGE,
        },
    ),
    alias=mostly(st.just("prod"), NAME),
)
def test_rollouts(fields: Any, alias: Any) -> None:
    with made() as (store, _):
        store.save("m", {"w": np.ones(2, "f4")})
        store.alias("m", "prod", "m@1")
        status = accepted(
            lambda: store.rollouts.start("m", alias, "m@2", **fields),
            "alias", "stage", "every", "gate", "label", "window", "message",
        )  # fmt: skip
        with reopened(store) as fresh:
            if status is None:
                assert fresh.resolve("m@prod").number == 1
                return
            found = fresh.rollouts.status("m", alias)
            assert found.rollout == status.rollout
            rollout = found.rollout
            if "stages" in fields:
                assert rollout.stages == list(fields["stages"])
            assert rollout.every_s == fields.get("every_s")
            assert rollout.labels == (fields.get("labels") or {})
            assert rollout.windows == list(fields.get("windows", ()))
            assert fresh.history("m", alias)[0].message == (fields.get("message") or "")


@given(
    node=mostly(st.just("node-1") | st.text(min_size=1, max_size=9), TEXT, ANY),
    values=mostly(
        st.dictionaries(
            mostly(st.just("p99_ms"), st.text()),
            mostly(st.decimals(-100, 100, places=3).map(str), st.decimals().map(str), TEXT),
            max_size=2,
        ),
        ANY,
    ),
)
def test_reports(node: Any, values: Any) -> None:
    with made() as (store, _):
        store.save("m", {"w": np.ones(2, "f4")})
        store.alias("m", "prod", "m@1")
        rollouts: Any = store.rollouts
        rollouts.start("m", "prod", "m@2", gates=["p99_ms<=12.5"])
        done = accepted(
            lambda: rollouts.report("m@2", node, values) or True,
            "node", "values", "decimal", "name",
        )  # fmt: skip
        with reopened(store) as fresh:
            (gate,) = fresh.rollouts.status("m", "prod").gates
            wanted = () if done is None or "p99_ms" not in values else (values["p99_ms"],)
            assert gate.values == wanted


@given(
    model=mostly(st.just("m"), NAME),
    alias=mostly(NAME, ANY),
    ref=mostly(st.sampled_from(["m", "m@1"]), NO_REFS, NUMBER, ANY),
    message=MESSAGE,
)
def test_aliases(model: Any, alias: Any, ref: Any, message: Any) -> None:
    with made() as (store, _):
        done = accepted(
            lambda: store.alias(model, alias, ref, message=message),
            "alias", "model", "reference", "message", "version", "release", "name",
        )  # fmt: skip
        with reopened(store) as fresh:
            if done is None:
                assert fresh.aliases("m") == []
                return
            assert fresh.aliases("m") == [done]
            assert fresh.resolve(f"m@{alias}") == fresh.resolve("m@1")
            assert fresh.history("m", done.name)[0].message == (message or "")
            assert isinstance(done.version.digest, Digest)
