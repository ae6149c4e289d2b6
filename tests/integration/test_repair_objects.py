"""A damaged object of each kind: repaired from what says the same, or said to be lost, exactly."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

import tierstore
from tests.flips.world import built, tensors
from tests.integration.kit import condemn, created, equal
from tests.integration.kit import opened as opened_at
from tests.integration.test_collector import packs_of
from tests.integration.test_removal import Elsewhere
from tests.integration.test_repair import flipped
from tierstore.admin.repair import repair_home
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, NotFound, TierstoreError, UsageError
from tierstore.format.condemned import parse_list
from tierstore.format.keys import (
    CONDEMNED,
    PACKS,
    REFS,
    layout_key,
    list_key,
    pack_key,
    version_key,
)
from tierstore.format.sealed import HEADER_BYTES
from tierstore.format.storeconfig import Features, encode_config, parse_config
from tierstore.modelstore.reclaim.repair.report import RepairReport
from tierstore.store import Store

PASSING = ("leases/", "movers/", "sweeps/", "probes/")

Damage = Callable[[bytearray], bytes | bytearray | None]
DAMAGE: dict[str, Damage] = {
    "envelope": flipped(30),
    "version": flipped(5),
    "body": flipped(-1),
    "cut short": lambda data: data[:-3],
    "empty": lambda data: b"",
    "gone": lambda data: None,
}
MENDED = {"envelope", "version"}
"""Damage of an envelope alone."""


@dataclass(frozen=True)
class World:
    """A store on disk with an object of every kind.

    Attributes:
        root: The folder of home and of the tiers.
        files: What is in them when nothing is damaged.
        moved: The id of a pack that is gone, and from which a move leads to what a layout needs.
    """

    root: Path
    files: dict[Path, bytes]
    moved: str

    def now(self) -> dict[Path, bytes]:
        return {
            path: path.read_bytes()
            for place in ("store", "warm", "cold")
            for path in (self.root / place).rglob("*")
            if path.is_file() and not str(path.relative_to(self.root / place)).startswith(PASSING)
        }

    def find(self, prefix: str, at: int = 0) -> Path:
        """The object of home whose key begins so, the n-th by its name."""
        home = self.root / "store"
        found = [
            path for path in self.files if str(path.relative_to(home.parent)).startswith("store/")
        ]
        keys = sorted(path for path in found if str(path.relative_to(home)).startswith(prefix))
        return keys[at]

    def restore(self) -> None:
        now = self.now()
        for path in now.keys() - self.files.keys():
            path.unlink()
        for path, data in self.files.items():
            if now.get(path) != data:
                write(path, data)


def write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def with_a_move(store: Store) -> str:
    """Save again what was lost; return the pack, in hex, that its layout goes on naming."""
    content = {"w": tensors(3)["bias"]}
    store.save("moved", content, base=None)
    [pack] = packs_of(store, "moved")
    for tier in store._parts.home.packs.tiers:
        tier.blobs.delete([pack_key(pack)])
    store.save("moved", content, base=None)
    return pack.hex()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world") / "w"
    world = built(root)
    world.keep.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERSTORE_CACHE_DIR", str(root / "cache"))
        patch.setenv("TIERSTORE_CONFIG", str(root / "plain.toml"))
        with tierstore.open(world.url) as store:
            store.reclaim.enable(wait_s=0)
            store.save("gone", {"w": tensors(1)["bias"]})
            store.save("gone", {"w": tensors(2)["bias"]})
            store.remove("gone@1")
            store.retention.set("gone", window=timedelta(days=3))
            store.reclaim.run(grace=timedelta(0))
            moved = with_a_move(store)
            assert store.repair().is_whole
            assert store.repair().objects == []
        yield (found := World(root, {}, moved))
        del found


@pytest.fixture
def world(made: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(made.root / "cache"))
    monkeypatch.setenv("TIERSTORE_CONFIG", str(made.root / "plain.toml"))
    if not made.files:
        made.files.update(made.now())
    yield made
    made.restore()


def opened(world: World) -> Store:
    return tierstore.open(str(world.root / "store"))


def damaged(world: World, path: Path, damage: str) -> None:
    changed = DAMAGE[damage](bytearray(world.files[path]))
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)


def repaired(world: World, path: Path) -> RepairReport:
    """Repair, and see that nothing but that object was touched; a dry run says the same."""
    before = world.now()
    with opened(world) as store:
        dry = store.repair(dry_run=True)
        assert world.now() == before, "a dry run changes nothing"
        report = store.repair()
        assert [(one.outcome, one.key) for one in report.objects] == [
            (one.outcome, one.key) for one in dry.objects
        ]
        for said, done in zip(dry.of("repaired"), report.of("repaired"), strict=True):
            assert said.done.replace("would be ", "") == done.done
            assert "would be " in said.done or "found in other packs" in said.done
        after = world.now()
        untouched = {one for one, data in before.items() if after.get(one) == data}
        assert before.keys() - untouched <= {path}
        again = store.repair()
        assert again.of("repaired") == []
    return report


def reads_all(world: World) -> None:
    with opened(world) as store:
        for number in (1, 2):
            equal(store.load(f"m@{number}").load(), tensors(number))
        for ref in ("m@3", "m@4", "m@1+bf16", "m@prod", "m@canary", "m@release:bundle@1"):
            store.load(ref).load()
        report = store.check()
        assert not report.damaged, report.findings


@dataclass(frozen=True)
class Kind:
    """What becomes of one kind of object.

    Attributes:
        prefix: What its keys begin with.
        damaged: The outcome when its body is damaged, and a word of what is said.
        gone: The same when it is missing; empty where that is no damage, or nobody can tell.
        at: Which of them by name.
    """

    prefix: str
    damaged: tuple[str, str]
    gone: tuple[str, str] = ("", "")
    at: int = 0


KINDS = {
    "entry of a version": Kind(
        "refs/m/versions/000000/000000002",
        ("repaired", "another entry says that m@2 is"),
        ("repaired", "another entry says that m@2 is"),
    ),
    "entry of a version that nobody names": Kind(
        "refs/healed/versions/000000/000000001",
        ("lost", "which content healed@1 has is lost"),
        ("lost", "which content healed@1 has is lost"),
    ),
    "entry of an alias": Kind(
        "refs/m/alias/prod/000000/000000001",
        ("lost", "'tierstore alias set m@prod REF' sets it anew"),
        ("lost", "'tierstore alias set m@prod REF' sets it anew"),
    ),
    "entry of a variant": Kind(
        "refs/m/variant/bf16/000000/000000001",
        ("lost", "which variant 'bf16'"),
        ("lost", "which variant 'bf16'"),
    ),
    "entry of removals": Kind(
        "refs/gone/removed/000000/000000001",
        ("lost", "counts as not removed"),
        ("lost", "counts as not removed"),
    ),
    "hint": Kind(
        "refs/m/versions/HEAD", ("repaired", "written anew"), ("repaired", "written anew")
    ),
    "layout": Kind("layouts/", ("repaired", "made anew"), ("repaired", "made anew")),
    "fold": Kind("folds/", ("repaired", "'tierstore fold m@4' writes it anew")),
    "move": Kind(
        "moves/",
        ("repaired", "written anew: it leads to"),
        ("repaired", "found in other packs"),
    ),
    "index segment": Kind("index/", ("repaired", "index rebuild")),
    "pin of a user": Kind("pins/", ("repaired", "")),
    "heat": Kind("heat/", ("repaired", "the node writes what it reads anew")),
    "report": Kind("reports/", ("repaired", "reports again")),
    "quarantine mark": Kind("quarantine/", ("repaired", "its pack is in no tier")),
    "retention": Kind("retention/", ("lost", "'tierstore retention set' sets it again")),
    "note of the last collection": Kind("collected", ("repaired", "begin anew")),
    "condemned list": Kind("gc/", ("repaired", ": it has "), at=-1),
    "condemned segment": Kind(
        "condemned/", ("repaired", "in its filter"), ("repaired", "in its filter")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_object(world: World, kind: str, damage: str) -> None:
    about = KINDS[kind]
    path = world.find(about.prefix, about.at)
    if kind == "condemned segment":  # one that the highest list names
        last = world.find("gc/", -1)
        newest = parse_list(world.files[last], int(last.name), last.name)
        path = world.find(f"condemned/{newest.segments[0].key}")
    elif kind == "move":
        path = world.find(f"moves/{world.moved}")
    key = str(path.relative_to(world.root / "store"))
    damaged(world, path, damage)
    report = repaired(world, path)
    found = {one.key: one for one in report.objects}
    if damage == "gone":
        outcome, said = about.gone
        if not outcome:
            assert found == {}
            return
    elif damage in MENDED and kind != "hint" and len(world.files[path]) > HEADER_BYTES:
        assert path.read_bytes() == world.files[path], "it is as it was"
        outcome, said = "repaired", "written as it was: its envelope"
    else:
        outcome, said = about.damaged
    if damage == "gone" and kind == "move":
        key = pack_key(bytes.fromhex(path.name))
    assert list(found) == [key]
    assert found[key].outcome == outcome
    assert said in found[key].done
    if outcome == "repaired":
        assert report.is_whole
        reads_all(world)
        with opened(world) as store:
            store.reclaim.run(dry_run=True)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"hint"}))
def test_a_check_finds_what_a_repair_would(world: World, kind: str) -> None:
    """But for hints of logs, without which the logs say the same."""
    about = KINDS[kind]
    path = world.find(about.prefix, about.at)
    if kind == "condemned segment":
        last = world.find("gc/", -1)
        newest = parse_list(world.files[last], int(last.name), last.name)
        path = world.find(f"condemned/{newest.segments[0].key}")
    damaged(world, path, "body")
    with opened(world) as store:
        found = {one.key: one for one in store.check().findings}
    one = found[str(path.relative_to(world.root / "store"))]
    is_hint = about.prefix in ("index/", "heat/", "reports/", "collected", "folds/")
    assert one.severity == ("garbage" if is_hint else "damage")


@pytest.mark.parametrize("key", ["purges/" + "0" * 32, "purged/" + "0" * 32, "refs/foo/x"])
def test_a_check_finds_what_nobody_can_use(world: World, key: str) -> None:
    path = world.root / "store" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"of another program")
    with opened(world) as store:
        [found] = store.check().findings
    path.unlink()
    path.parent.rmdir()
    assert (found.severity, found.key) == ("damage", key.removesuffix("/x"))


def test_what_others_have_put_below_our_prefixes_is_left_alone(world: World) -> None:
    prefixes = ("index", "reports/m", "acks", "nodes", "purges", "purged", "retention/models/m")
    paths = [world.root / "store" / prefix / "README" for prefix in prefixes]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of another program")
    with opened(world) as store:
        findings, repaired = store.check().findings, store.repair().objects
    assert ([one.key for one in findings], repaired) == ([], [])
    assert all(path.exists() for path in paths)
    for path in paths:
        path.unlink()


def test_a_check_finds_a_config_of_before_removal_was_allowed(world: World) -> None:
    path = world.root / "store" / "config.json"
    whole = path.read_bytes()
    config = parse_config(whole, "config.json")
    old = replace(config, features=Features(config.features.read, config.features.read))
    path.write_bytes(encode_config(old))
    with opened(world) as store:
        found = store.check().findings[0]
    path.write_bytes(whole)
    assert (found.severity, found.key) == ("damage", "config.json")
    assert "it names no feature reclaim" in found.what


def test_a_check_finds_a_lease_that_cannot_be_read(world: World) -> None:
    path = world.root / "store" / "leases" / ("0" * 32)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"no lease")
    with opened(world) as store:
        [found] = store.check().findings
    path.unlink()
    assert found.key == f"leases/{path.name}"
    assert "no garbage is collected until it ends" in found.what


def test_a_check_goes_on_where_a_condemned_segment_is_missing(world: World) -> None:
    last = world.find("gc/", -1)
    newest = parse_list(world.files[last], int(last.name), last.name)
    key = f"condemned/{newest.segments[0].key}"
    world.find(key).unlink()
    with opened(world) as store:
        [found] = store.check(read_data=True).findings
    assert (found.severity, found.key) == ("damage", key)
    assert found.what.startswith("it is missing: ")


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - MENDED))
def test_a_lost_manifest_is_said_with_the_versions_that_need_it(world: World, damage: str) -> None:
    with opened(world) as store:
        digest = store.resolve("m@2").digest
    path = world.root / "store" / "versions" / digest.hex
    damaged(world, path, damage)
    report = repaired(world, path)
    assert [(one.outcome, one.key) for one in report.objects] == [
        ("lost", f"versions/{digest.hex}")
    ]
    assert {hit.version for hit in report.hit} >= {"m@2", "m@3"}
    with opened(world) as store:
        with pytest.raises(TierstoreError):
            store.load("m@2")
        equal(store.load("m@1").load(), tensors(1))
        store.save("m", world.root / "source")
        assert store.repair().is_whole
    assert path.read_bytes() == world.files[path]


def test_a_number_never_means_other_content(world: World) -> None:
    path = world.find("refs/healed/versions/000000/000000001")
    damaged(world, path, "body")
    with opened(world) as store:
        store.repair()
        with pytest.raises(Damaged):
            store.resolve("healed@1")
        store.load("healed@2").load()


@pytest.mark.parametrize("what", ["list", "segment"])
def test_what_was_condemned_stays_condemned(world: World, what: str) -> None:
    """A pack that is listed and still there, as while a tier is down, and one that is gone."""
    with opened(world) as store:
        home = store._parts.home
        digest = store.resolve("healed@1").digest
        named = set(home.layout(digest, home.manifest(digest)).pack_ids)
        other = MemoryStore("other")
        with created(other, world.root / "other-cache") as another:
            another.save("n", tensors(2))
        [key] = [info.key for info in other.list("packs/")]
        home.packs.put(key, other.get(key))
        here = bytes.fromhex(key[-64:])
        home.condemned.condemn([here], run="0" * 32, now_us=1)
        newest = home.condemned.every()
        last = max((world.root / "store" / "gc").iterdir())
        segment = next(one for one, (_, packs) in newest.segments.items() if here in packs)
        path = last if what == "list" else world.root / "store" / "condemned" / segment
        write(path, path.read_bytes()[:-5])
    with opened(world) as store:
        report = store.repair()
        assert report.is_whole, report.objects
        condemned = store._parts.home.condemned
        assert condemned.among([here]) == {here}
        assert condemned.among(named) == set()
        assert condemned.every().listed >= {here}
        reads_all(world)


@pytest.mark.parametrize("what", ["list", "segment"])
def test_what_a_repair_condemns_stays_in_the_lists(cache: Path, what: str) -> None:
    """For 30 days by home's clock, which is an hour ahead of this machine's."""
    blobs, month_us = Elsewhere("ahead"), 30 * 24 * 3600 * 10**6
    blobs.ahead_s = 3600
    with created(blobs, cache) as store:
        for seed in (1, 2):
            store.save("m", {"w": tensors(seed)["bias"]}, base=None)
        packs = {bytes.fromhex(info.key[-64:]) for info in blobs.list(PACKS)}
        condemned, now_us = store._parts.home.condemned, time.time_ns() // 1000
        for pack, time_us in zip(sorted(packs), (now_us - month_us, now_us), strict=True):
            newest = condemned.condemn([pack], run="0" * 32, now_us=time_us)
    lost = [list_key(2)]
    if what == "segment":
        lost = [CONDEMNED + one.key for one in newest.segments]
        blobs.delete([info.key for info in blobs.list(REFS)])
    blobs.put(lost[0], b"damaged")
    blobs.delete(lost[1:])
    with opened_at(blobs, cache) as store:
        store.repair()
        found = store._parts.home.condemned.every()
    assert found.listed == packs
    assert all(since_us >= now_us + 3500 * 10**6 for since_us, _ in found.segments.values())


def test_a_lease_that_cannot_be_read_is_left_until_it_ends(world: World) -> None:
    path = world.root / "store" / "leases" / ("ab" * 16)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"damaged")
    with opened(world) as store:
        [left] = store.repair().objects
        assert (left.outcome, left.key) == ("left", f"leases/{'ab' * 16}")
        assert "no garbage is collected" in left.done
        old = time.time() - 9 * 3600
        os.utime(path, (old, old))
        [done] = store.repair().objects
        assert done.outcome == "repaired"
    assert not path.exists()


def test_an_empty_place_is_not_taken_for_the_tier(world: World) -> None:
    """As where a file system is not mounted."""
    (world.root / "warm").rename(world.root / "unmounted")
    (world.root / "warm").mkdir()
    try:
        with opened(world) as store:
            report = store.repair(dry_run=True)
            assert list(report.down) == ["warm"]
    finally:
        (world.root / "warm").rmdir()
        (world.root / "unmounted").rename(world.root / "warm")


# What the store cannot be opened without


@pytest.mark.parametrize("damage", [one for one in DAMAGE if one != "version"])
def test_a_config_is_written_as_it_was(world: World, damage: str) -> None:
    path = world.root / "store" / "config.json"
    damaged(world, path, damage)
    before = world.now()
    assert [one.key for one in repair_home(world.root / "store", dry_run=True).objects] == [
        "config.json"
    ]
    assert world.now() == before
    report = repair_home(world.root / "store")
    assert [(one.outcome, one.key) for one in report.objects] == [("repaired", "config.json")]
    assert path.read_bytes() == world.files[path]
    assert repair_home(world.root / "store").objects == []
    reads_all(world)


def test_a_config_is_written_as_it_was_by_its_checksum(tmp_path: Path, cache: Path) -> None:
    """Nothing else knows its id, nor the size of chunks of a store without versions."""
    url = tmp_path / "s"
    with tierstore.init(url, chunk_size=8 << 20) as store:
        store.reclaim.enable(wait_s=0)
    path = url / "config.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"hash"', b'"hush"').replace(b"8388608", b"8388609"))
    report = repair_home(url)
    assert "its checksum says so" in report.objects[0].done
    assert path.read_bytes() == whole


def test_a_config_that_nobody_knows_gets_a_new_id_or_the_given_one(
    tmp_path: Path, cache: Path
) -> None:
    url = tmp_path / "s"
    with tierstore.init(url, chunk_size=2 << 20) as store:
        store.save("m", tensors(1))
        old = store._parts.home.config
    (url / "config.json").write_bytes(b"")
    with pytest.raises(UsageError, match="no id of a store"):
        repair_home(url, store_id="mine")
    assert "a new id" in repair_home(url).objects[0].done
    with tierstore.open(url) as store:
        assert store._parts.home.config.chunk_size == 2 << 20
        equal(store.load("m").load(), tensors(1))
    (url / "config.json").write_bytes(b"")
    repair_home(url, store_id=old.store_id)
    with tierstore.open(url) as store:
        assert store._parts.home.config == old


@pytest.mark.parametrize("source", ["given", "tiers", "left"])
def test_the_report_says_where_the_id_of_a_config_is_from(
    tmp_path: Path, cache: Path, source: str
) -> None:
    url, warm = tmp_path / "s", tmp_path / "warm"
    specs = [tierstore.TierSpec(name="warm", role="warm", url=str(warm))]
    with tierstore.init(url, tiers=specs if source != "left" else ()) as store:
        store.save("m", tensors(1))
        own = store._parts.home.config.store_id
    path = url / "config.json"
    left = path.read_bytes().replace(b'"check"', b'"chick"') if source == "left" else b""
    path.write_bytes(left)
    [done] = repair_home(url, store_id=own if source == "given" else None).objects
    words = {
        "given": "the id that was given",
        "tiers": "the id that its tiers name",
        "left": "the id that is left of it",
    }
    assert f"made anew with {words[source]}, and" in done.done
    with tierstore.open(url) as store:
        assert store._parts.home.config.store_id == own


def test_an_id_is_refused_where_the_config_says_another(tmp_path: Path, cache: Path) -> None:
    url = tmp_path / "s"
    with tierstore.init(url) as store:
        store.save("m", tensors(1))
        own = store._parts.home.config.store_id
    path = url / "config.json"
    whole, other = path.read_bytes(), "0" * 32
    for data in (whole, whole.replace(b'"hash"', b'"hush"')):  # its checksum still tells the id
        path.write_bytes(data)
        with pytest.raises(UsageError, match=f"is the store {own}.* and not {other}; an id"):
            repair_home(url, store_id=other)
        assert path.read_bytes() == data
    repair_home(url, store_id=own)
    assert path.read_bytes() == whole
    assert repair_home(url, store_id=own).objects == []


def test_an_id_is_refused_where_the_tiers_say_another(tmp_path: Path, cache: Path) -> None:
    url = tmp_path / "s"
    warm = tierstore.TierSpec(name="warm", role="warm", url=str(tmp_path / "warm"))
    with tierstore.init(url, tiers=[warm]) as store:
        own = store._parts.home.config.store_id
        store.save("m", tensors(1))
    (url / "config.json").unlink()
    with pytest.raises(UsageError, match=f"those of the store {own}, and not of 0000"):
        repair_home(url, store_id="0" * 32)
    assert not (url / "config.json").exists()


@pytest.mark.parametrize("left", ["reserve", "collected", "sweeps", "gc", "nothing"])
def test_whether_versions_can_be_removed_is_known_by_what_is_left(
    tmp_path: Path, cache: Path, left: str
) -> None:
    url = tmp_path / "s"
    with tierstore.init(url) as store:
        store.save("m", tensors(1))
        store.reclaim.enable(wait_s=0)
        store.reclaim.run(grace=timedelta(0))
        condemn(store._parts.home.blobs, pack_key(bytes(32)))
    (url / "config.json").unlink()
    for name in {"reserve", "collected", "sweeps", "gc", "condemned"} - {left}:
        path = url / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    done = repair_home(url).objects[0].done
    assert ("'tierstore gc --enable' allows it again" in done) == (left == "nothing")
    with tierstore.open(url) as store:
        assert store.reclaim.is_enabled == (left != "nothing")


def test_a_place_that_holds_nothing_of_a_store_is_made_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="nothing of a store"):
        repair_home(tmp_path / "empty")
    assert not any((tmp_path / "empty").iterdir())


def test_the_last_list_of_tiers_that_can_be_read_holds_again(world: World) -> None:
    first = world.find("tiers/", -1)
    newer = first.with_name("000000002")
    newer.write_bytes(world.files[first][:-4])
    with pytest.raises(Damaged):
        opened(world)
    report = repair_home(world.root / "store")
    assert [(one.outcome, one.key) for one in report.objects] == [("lost", "tiers/000000002")]
    assert "are those of list 1 again" in report.objects[0].done
    reads_all(world)


def test_everything_but_packs_manifests_and_logs_is_made_anew(world: World) -> None:
    """With the tiers added again, every version is what it was."""
    home = world.root / "store"
    with opened(world) as store:
        specs = store.tiers()
        store_id = store._parts.home.config.store_id
    for path in world.now():
        name = str(path.relative_to(world.root))
        kept = ("store/packs/", "store/refs/", "store/versions/", "warm/", "cold/")
        if not name.startswith(kept) or name.endswith("/HEAD"):
            path.unlink()
    report = repair_home(home, store_id=store_id)
    assert [one.key for one in report.objects] == ["config.json"]
    for spec in specs:
        with opened(world) as store:
            if spec.role in ("warm", "cold"):
                store.admin.tiers.add(spec)
    with opened(world) as store:
        report = store.repair()
        assert report.is_whole, report.objects
        assert {one.key.partition("/")[0] for one in report.objects} >= {"layouts", "refs"}
        assert store.repair().objects == []
    reads_all(world)
    with opened(world) as store:
        assert store.check(read_data=True).damaged is False


def test_a_dry_run_says_what_is_lost_beside_the_config(tmp_path: Path, cache: Path) -> None:
    """Each version once, and how to go on."""
    url = tmp_path / "s"
    with tierstore.init(url) as store:
        for number in (1, 2):
            store.save("m", tensors(number), base=None)
        lost = store.resolve("m@1").digest
        store.retention.set("m", window=timedelta(days=30))
    for key in ("config.json", version_key(lost), layout_key(lost)):
        (url / key).unlink()
    report = repair_home(url, dry_run=True)
    assert [(one.outcome, one.key) for one in report.objects] == [
        ("repaired", "config.json"),
        ("lost", version_key(lost)),
    ]
    config, manifest = (one.done for one in report.objects)
    assert "see to 'tierstore pin' before the next 'tierstore gc'" in config
    assert "m@1 is lost with it" in manifest
    assert "'tierstore rm' removes what is given up" in manifest
    assert [one.version for one in report.hit] == ["m@1"]
    assert not (url / "config.json").exists()
    repair_home(url)
    with tierstore.open(url) as store:
        assert store.repair().objects == report.objects[1:]
