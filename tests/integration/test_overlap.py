"""No source of a save, target of an export or tier may overlap with a place of the store."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB
from tierstore import folders
from tierstore.errors import Conflict, TierstoreError, UsageError
from tierstore.folders import Mount, mounts
from tierstore.format.tiers import Role, TierSpec
from tierstore.modelstore import places
from tierstore.modelstore.loading.exportdir import Others
from tierstore.modelstore.places import StorePlace, overlap
from tierstore.serving.hub.command import serve
from tierstore.store import Store

WEIGHTS = {"w": np.arange(6, dtype=np.float32)}


@pytest.fixture
def store(tmp_path: Path, cache: Path) -> Iterator[Store]:
    tiers = [
        TierSpec(name="hot", role="hot", url=str(tmp_path / "hot"), size=MIB),
        TierSpec(name="warm", role="warm", url=str(tmp_path / "warm"), size=MIB),
    ]
    with tierstore.init(tmp_path / "store", chunk_size=MIB, tiers=tiers) as store:
        store.save("m", WEIGHTS)
        yield store


def everything(root: Path) -> dict[str, bytes | None]:
    """Every file and folder, but for what a store that is open writes meanwhile."""
    names = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
    return {
        name: path.read_bytes() if path.is_file() else None
        for name, path in names.items()
        if not name.startswith(("cache/", "hot/", "store/leases", "store/.tmp~/"))
    }


PLACES = {
    "store": "is the store itself",
    "store/packs": "lies in the store itself",
    "store/new/folder": "lies in the store itself",
    "warm": "is tier 'warm'",
    "warm/new": "lies in tier 'warm'",
    "hot": "is tier 'hot'",
    "cache": "is the cache",
    "cache/out": "lies in the cache",
    ".": "holds the store itself",
    "link": "is the store itself",
    "link/packs": "lies in the store itself",
    "around/..": "holds the store itself",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("others", ["delete", "merge"])
def test_an_export_into_a_place_of_the_store(
    store: Store, tmp_path: Path, place: str, others: Others
) -> None:
    (tmp_path / "link").symlink_to("store")
    (tmp_path / "around").mkdir()
    before = everything(tmp_path)
    with pytest.raises(UsageError, match=f"{PLACES[place]}.*; choose a place apart from it"):
        store.load("m").export(tmp_path / place, others=others)
    if "holds" not in PLACES[place]:
        with pytest.raises(UsageError, match="choose a place apart"):
            store.load("m").export_tensors(["w"], tmp_path / place / "file")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("place", [place for place in PLACES if "new" not in place])
def test_a_save_of_a_place_of_the_store(store: Store, tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to("store")
    (tmp_path / "around").mkdir()
    with pytest.raises(UsageError, match=f"{PLACES[place]}.*; choose a place apart from it"):
        store.save("n", tmp_path / place)
    pack = next(path for path in (tmp_path / "warm").rglob("*") if path.is_file())
    for read in (store.save, store.patch):
        with pytest.raises(UsageError, match="lies in tier 'warm'"):
            read("m", pack)
    assert store.models() == ["m"]


@pytest.mark.parametrize("url", ["s3://bucket/out", "file:///tmp/out", "tierstore://m@1"])
def test_a_url_is_no_file_of_this_machine(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before, model = everything(tmp_path), store.load("m")
    says = f"'{url}' is a URL, where a file or directory of this machine is meant; give its path"
    for action in (
        lambda: model.export(url),
        lambda: model.export_tensors(["w"], url),
        lambda: store.save("n", url),
        lambda: store.patch("m", url),
    ):
        with pytest.raises(UsageError, match=re.escape(says)):
            action()
    assert everything(tmp_path) == before


def test_an_export_to_a_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file is a file, and an export goes to a directory"):
        store.load("m").export(tmp_path / "file", others="delete")
    assert (tmp_path / "file").read_text() == "mine"


def test_places_beside_the_store_are_free(store: Store, tmp_path: Path) -> None:
    store.load("m").export(tmp_path / "storehouse")
    assert store.save("m", tmp_path / "storehouse", allow_no_tensors=True).stats is not None


def test_a_directory_that_is_mounted_twice(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name they are apart, and by what they are the same, also where no list of mounts is."""
    monkeypatch.setattr(folders, "mounts", lambda table="": [])
    again = tmp_path / "again"
    again.mkdir()
    bound = ["mount", "--bind", str(tmp_path / "store"), str(again)]
    if subprocess.run(bound, capture_output=True).returncode:
        again.rmdir()
        again.symlink_to("store")
    try:
        with pytest.raises(UsageError, match="lies in the store itself"):
            store.load("m").export(again / "out", others="delete")
    finally:
        if not again.is_symlink():
            subprocess.run(["umount", str(again)], check=True)


@contextmanager
def mounted(folder: Path, point: Path) -> Iterator[None]:
    """Mount a folder at another place, or say that it is where that is not allowed."""
    point.mkdir()
    bound = ["mount", "--bind", str(folder), str(point)]
    if not subprocess.run(bound, capture_output=True).returncode:
        try:
            yield
        finally:
            subprocess.run(["umount", str(point)], check=True)
        return
    device, inner = places._within(folder)[0]
    said = [*mounts(), Mount(device, PurePosixPath(inner), PurePosixPath(point), "none")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "mounts", lambda table="": said)
        yield


def test_a_part_of_a_place_that_is_mounted_elsewhere(store: Store, tmp_path: Path) -> None:
    """As a subPath of a volume is: none of the folders above it is one of the place's."""
    out = tmp_path / "out"
    with mounted(tmp_path / "store" / "packs", out):
        with pytest.raises(UsageError, match="lies in the store itself"):
            store.load("m").export(out / "of", others="delete")
        with pytest.raises(UsageError, match="lies in the store itself"):
            store.save("m", out, allow_no_tensors=True)
    assert not store.check(read_data=True).damaged


def test_a_place_that_lies_in_what_is_mounted_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "data" / "part").mkdir(parents=True)
    with mounted(tmp_path / "data" / "part", tmp_path / "at"):
        store = tierstore.init(tmp_path / "at" / "store")
        store.save("m", {"w": np.arange(3)})
        with pytest.raises(UsageError, match="holds the store itself"):
            store.load("m").export(tmp_path / "data", others="delete")
        store.close()


@pytest.mark.parametrize(
    ("tiers", "what"),
    [
        ([("hot", "fast"), ("warm", "fast")], "is tier 'hot'"),
        ([("hot", "fast"), ("warm", "fast/warm")], "lies in tier 'hot'"),
        ([("warm", "slow/warm"), ("cold", "slow")], "holds tier 'warm'"),
        ([("warm", "slow"), ("cold", "link")], "is tier 'warm'"),
        ([("warm", "store")], "is the store itself"),
        ([("hot", "store/hot")], "lies in the store itself"),
        ([("warm", "slow"), ("cold", "missing-role-size")], "cannot be written|size"),
    ],
)
def test_an_init_that_is_refused_leaves_nothing(
    tmp_path: Path, cache: Path, tiers: list[tuple[Role, str]], what: str
) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "link").symlink_to("slow")
    (tmp_path / "missing-role-size").write_text("a file")
    before = everything(tmp_path)
    specs = [
        TierSpec(name=role, role=role, url=str(tmp_path / where), size=MIB) for role, where in tiers
    ]
    with pytest.raises(TierstoreError, match=what):
        tierstore.init(tmp_path / "store", tiers=specs)
    assert everything(tmp_path) == before
    (tmp_path / "store").mkdir()
    before = everything(tmp_path)
    with pytest.raises(TierstoreError):
        tierstore.init(tmp_path / "store", tiers=specs)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("where", ["store", "store/hot", "link", "."])
def test_a_hot_tier_of_this_node_in_the_store_is_not_used(
    tmp_path: Path,
    cache: Path,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", WEIGHTS)
    (tmp_path / "link").symlink_to("store")
    before = everything(tmp_path)
    config = tmp_path / "tierstore.toml"
    config.write_text(f'[hot]\nurl = "{tmp_path / where}"\nsize = "1MiB"\n')
    monkeypatch.setenv("TIERSTORE_CONFIG", str(config))
    with tierstore.open(tmp_path / "store") as store:
        assert store._parts.hot.local is None
        assert np.array_equal(store.load("m")["w"], WEIGHTS["w"])
    config.unlink()
    assert everything(tmp_path) == before
    assert any("the store itself" in one and "it is not used" in one for one in caplog.messages)


def test_a_tier_that_is_added_or_moved_into_another(store: Store, tmp_path: Path) -> None:
    for url, what in [("warm", "is tier 'warm'"), ("hot/in", "lies in tier 'hot'")]:
        before = everything(tmp_path)
        with pytest.raises(Conflict, match=f"tier 'cold': .* {what}"):
            store.admin.tiers.add(
                TierSpec(name="cold", role="cold", url=str(tmp_path / url), size=MIB)
            )
        with pytest.raises(Conflict, match=r"tier 'hot': .* is tier 'warm'"):
            store.admin.tiers.set("hot", url=str(tmp_path / "warm"))
        assert everything(tmp_path) == before


def test_a_spool_in_a_place_of_the_store(store: Store, tmp_path: Path) -> None:
    serving = partial(
        serve,
        store,
        "256.0.0.1",
        0,
        ready=print,
        tokens=None,
        certificate=None,
        key=None,
        per_address=1,
    )
    with pytest.raises(UsageError, match="lies in tier 'warm'"):
        serving(spool=tmp_path / "warm/up")
    with pytest.raises(UsageError, match=r"256\.0\.0\.1"):  # goes on as far as the address
        serving(spool=tmp_path / "cache/up")


SAME = [
    ("redis://h", "redis://H:6379/0"),
    ("redis://user@h/1", "rediss://h/1"),
    ("redis://a,b/0", "redis+cluster://b,c"),
    ("redis://localhost", "redis://127.0.0.1"),
    ("memcached://a,b", "memcached://b:11211"),
    ("s3://bucket/prefix", "s3a://bucket/prefix/"),
    ("memory://x", "memory://x"),
    ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
]
APART = [
    ("redis://h/0", "redis://h/1"),
    ("redis://h", "redis://other"),
    ("redis://h:6380", "redis://h"),
    ("s3://bucket/a", "s3://bucket/ab"),
    ("s3://bucket/a", "gs://bucket/a"),
    ("memory://x", "memory://y"),
    ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=2"),
    ("s3://bucket/a", "/bucket/a"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_servers_that_are_one_place(one: str, other: str) -> None:
    assert overlap(StorePlace("a", one), StorePlace("b", other)) == "is"
    assert overlap(StorePlace("a", one, ("p:",)), StorePlace("b", other, ("q:",))) is None


@pytest.mark.parametrize(("one", "other"), APART)
def test_servers_that_are_apart(one: str, other: str) -> None:
    assert overlap(StorePlace("a", one), StorePlace("b", other)) is None


def test_prefixes_of_a_bucket_that_contain_each_other() -> None:
    inner, outer = StorePlace("a", "s3://bucket/a/b"), StorePlace("b", "s3://bucket/a")
    assert (overlap(inner, outer), overlap(outer, inner)) == ("lies in", "holds")
