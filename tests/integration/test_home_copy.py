"""A home that was copied deletes nothing in the tiers that it shares with the one it is a copy of.

Both have the same store id and the same list of tiers, and to either what was saved in the other
one is garbage.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tests.integration.test_cli_gc import noise
from tests.servers.moto import Moto
from tests.waiting import wait_until
from tierstore.admin.doctor import diagnose
from tierstore.admin.manage import add_tier, drain, remove_tier, set_tier
from tierstore.blobs.base import BlobInfo, BlobStore
from tierstore.blobs.local import files
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.cli.kit import app
from tierstore.errors import OtherHome, PermissionDenied, Unreachable, UsageError
from tierstore.format.keys import IDENTITY, PACKS
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.home.identity import Identity
from tierstore.modelstore.reclaim import sweep
from tierstore.modelstore.reclaim.holdings import read_holdings
from tierstore.serving.agent import Agent
from tierstore.serving.collecting import CollectingPlan
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.tiers.durable.marker import MARKER, Keeper, claim, keep, release, verify
from tierstore.tiers.durable.mover import Moved
from tierstore.tiers.durable.tier import DurableTier
from tierstore.wiring.backends import open_blobs

_names = itertools.count()
NOTHING = timedelta(0)


@dataclass
class Place:
    """Where a home and a copy of it are.

    Attributes:
        home: URL or path of the home.
        copied: The same of its copy.
        copy: Makes the copy.
    """

    home: str
    copied: str
    copy: Callable[[], None]


def spec(name: str, folder: Path) -> TierSpec:
    return TierSpec(name=name, role="warm", url=str(folder / name))


def copy_objects(source: str, target: str) -> None:
    """Copy as any tool does that reads objects and writes them elsewhere."""
    with open_blobs(source) as blobs, open_blobs(target) as there:
        made = blobs.info(IDENTITY).mtime
        wait_until(lambda: time.time() > made + 2, "a second of the storage's clock that is later")
        for info in list(blobs.list()):
            there.put(info.key, bytes(blobs.get(info.key)))


@pytest.fixture
def local(tmp_path: Path, cache: Path) -> Place:
    home, copied = str(tmp_path / "home"), str(tmp_path / "copied")
    return Place(home, copied, lambda: check_call("cp", "-a", home, copied))


def check_call(*command: str) -> None:
    subprocess.run(command, check=True)


@pytest.fixture(params=["local", "s3", "memory"])
def place(
    request: pytest.FixtureRequest, local: Place, moto_server: Moto, monkeypatch: pytest.MonkeyPatch
) -> Place:
    if request.param == "local":
        return local
    name = f"copied-{next(_names)}"
    home, copied = f"{request.param}://{name}/home", f"{request.param}://{name}/copied"
    if request.param == "s3":
        for key, value in moto_server.environment.items():
            monkeypatch.setenv(key, value)
        moto_server.client().create_bucket(Bucket=name)
    return Place(home, copied, lambda: copy_objects(home, copied))


@pytest.fixture
def first(place: Place, tmp_path: Path) -> Iterator[tierstore.Store]:
    """A store of m@1 with a warm tier; then it is copied."""
    with made(place, tmp_path) as store:
        yield store


@pytest.fixture
def original(local: Place, tmp_path: Path) -> Iterator[tierstore.Store]:
    """The same in a directory."""
    with made(local, tmp_path) as store:
        yield store


def made(place: Place, folder: Path) -> tierstore.Store:
    store = tierstore.init(place.home, tiers=[spec("warm", folder)])
    store.reclaim.enable(wait_s=0)
    store.save("m", noise(1), base=None)
    place.copy()
    return store


def collect(store: tierstore.Store, **options: Any) -> Any:
    return store.reclaim.run(grace=NOTHING, window=NOTHING, **options)


def is_whole(store: tierstore.Store, ref: str, seed: int) -> bool:
    store._parts.home.packs.refresh()
    return bool(np.array_equal(store.load(ref).load()["w"], noise(seed)["w"]))


def packs(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / PACKS).rglob("*"))


def forget_home(folder: Path) -> dict[str, Any]:
    """Let a tier name no home, as those that an older version marked; return what it said."""
    said: dict[str, Any] = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps({**said, "home": None}))
    return said


def test_a_copy_collects_nothing(place: Place, first: tierstore.Store) -> None:
    first.save("m", noise(2), base=None)
    with tierstore.open(place.copied) as other:
        with pytest.raises(OtherHome, match=r"the home that deletes in tier warm is the one that "):
            collect(other)
        other.remove("m@1", force=True)
        with pytest.raises(OtherHome, match="'tierstore gc --moved' makes this one the home"):
            collect(other)
        other.undelete("m@1")
        assert is_whole(other, "m@1", 1)
        other.save("m", noise(3), base=None)
        assert is_whole(other, "m@2", 3)
    assert is_whole(first, "m@1", 1)
    assert is_whole(first, "m@2", 2)
    first.remove("m@1", force=True)
    assert collect(first).of("deleted"), "the home that was copied goes on"


def test_a_copy_that_took_over_deletes_and_the_other_one_does_not(
    place: Place, first: tierstore.Store
) -> None:
    with tierstore.open(place.copied) as other:
        assert other.reclaim.take_over() == ["warm"]
        other.save("m", noise(2), base=None)
        first.save("m", noise(3), base=None)
        with pytest.raises(OtherHome):
            collect(first)
        assert is_whole(other, "m@2", 2)
        other.remove("m@1", force=True)
        assert collect(other).of("deleted")
        first.reclaim.take_over()
        with pytest.raises(OtherHome):
            collect(other)


def test_a_snapshot_is_told_apart_once_one_of_both_took_over(tmp_path: Path) -> None:
    """A copy that the storage itself makes may have all signs of the first one."""
    blobs, store = MemoryStore("home"), LocalStore(tmp_path / "warm", create=True)
    home, tier = Identity(blobs), DurableTier(spec("warm", tmp_path), store, store_id="s")
    claim(store, "warm", "s", (), home.made)
    twin = MemoryStore("twin")
    twin._blobs = copy.deepcopy(blobs._blobs)
    for one in (home, Identity(twin)):
        one.confirm([(tier, tier.verify())])
    Identity(twin).take_over([tier])
    Identity(twin).check(tier, tier.verify())
    with pytest.raises(OtherHome):
        home.check(tier, tier.verify())


def test_the_home_loses_a_tier_while_it_collects(
    original: tierstore.Store, local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (2, 3, 4):
        original.save("m", noise(seed), base=None)
        original.remove(f"m@{seed - 1}", force=True)
    monkeypatch.setattr(sweep, "BATCH", 1)
    with tierstore.open(local.copied) as other, pytest.raises(OtherHome):
        collect(original, progress=lambda done, total: done and other.reclaim.take_over())
    assert packs(Path(local.home).with_name("warm")) == 3, "one of three was deleted before"


def test_a_copy_drops_nothing_from_a_tier(
    original: tierstore.Store, local: Place, tmp_path: Path
) -> None:
    with tierstore.open(local.copied) as other:
        with pytest.raises(OtherHome):
            drain(other, "warm")
        with pytest.raises(OtherHome):
            remove_tier(other, "warm")
    assert packs(tmp_path / "warm") == 1
    assert (tmp_path / "warm" / MARKER).exists()
    assert is_whole(original, "m@1", 1)


def test_nothing_is_dropped_once_another_home_took_over(
    original: tierstore.Store, local: Place, tmp_path: Path
) -> None:
    original.save("m", noise(2), base=None)
    with tierstore.open(local.copied) as other:

        def take_over(moved: Moved) -> None:
            other.reclaim.take_over()

        with pytest.raises(OtherHome):
            drain(original, "warm", progress=take_over)
    assert packs(tmp_path / "warm") == 1, "of two packs one had left before"


def test_a_copy_takes_no_tier_off_the_list_that_it_shares(tmp_path: Path) -> None:
    """What is undone is what this home has marked, and not what another one has."""
    store = LocalStore(tmp_path, create=True)
    mine, others = Identity(MemoryStore()).made(), Identity(LocalStore(tmp_path)).made()
    claim(store, "warm", "s", (), lambda: others)
    claim(store, "warm", "s", (), lambda: mine)
    assert verify(store, "warm", "s") == others
    release(store, "s", mine.signs)
    assert verify(store, "warm", "s") == others
    release(store, "s", others.signs)
    with pytest.raises(Unreachable):
        verify(store, "warm", "s")


def test_a_copy_does_not_allow_removal(tmp_path: Path, local: Place) -> None:
    with tierstore.init(local.home, tiers=[spec("warm", tmp_path)]):
        local.copy()
    with tierstore.open(local.copied) as other:
        with pytest.raises(OtherHome):
            other.reclaim.enable(wait_s=0)
        assert not other.reclaim.is_enabled
        other.reclaim.take_over()
        other.reclaim.enable(wait_s=0)


def test_a_copy_with_tiers_of_its_own_is_a_store_of_its_own(
    original: tierstore.Store, local: Place, tmp_path: Path
) -> None:
    check_call("cp", "-a", str(tmp_path / "warm"), str(tmp_path / "warm2"))
    with tierstore.open(local.copied) as other:
        set_tier(other, "warm", url=str(tmp_path / "warm2"))
    with tierstore.open(local.copied) as other:
        with pytest.raises(OtherHome):
            collect(other)
        other.reclaim.take_over()
        other.remove("m@1", force=True)
        assert collect(other).of("deleted")
    assert packs(tmp_path / "warm2") == 0
    collect(original)
    assert is_whole(original, "m@1", 1)


def test_a_store_without_tiers_is_not_asked(tmp_path: Path, local: Place) -> None:
    with tierstore.init(local.home) as store:
        store.reclaim.enable(wait_s=0)
        store.save("m", noise(1), base=None)
        local.copy()
        store.save("m", noise(2), base=None)
        with tierstore.open(local.copied) as other:
            other.remove("m@1", force=True)
            assert collect(other).of("deleted"), "each has packs of its own"
            with pytest.raises(UsageError, match="there is nothing to do"):
                other.reclaim.take_over()
        assert is_whole(store, "m@1", 1)
    assert not (tmp_path / "home" / IDENTITY).exists()


# Stores of before, and losses


def test_a_store_of_before_is_known_from_its_next_collection_on(
    original: tierstore.Store, local: Place, tmp_path: Path
) -> None:
    forget_home(tmp_path / "warm")
    (Path(local.home) / IDENTITY).unlink()
    shutil.rmtree(local.copied)
    local.copy()
    original.reclaim.run(dry_run=True)
    assert not (Path(local.home) / IDENTITY).exists()
    original.reclaim.run()
    with tierstore.open(local.copied) as other, pytest.raises(OtherHome, match="has lost its obj"):
        collect(other)
    shutil.rmtree(local.copied)
    local.copy()
    with tierstore.open(local.copied) as other, pytest.raises(OtherHome, match="it is a copy of"):
        collect(other)


def test_a_store_of_before_is_known_from_its_next_move_on(
    original: tierstore.Store, local: Place, tmp_path: Path
) -> None:
    said = forget_home(tmp_path / "warm")
    (Path(local.home) / IDENTITY).unlink()
    drain(original, "warm")
    assert packs(tmp_path / "warm") == 0
    now = json.loads((tmp_path / "warm" / MARKER).read_text())
    assert now.keys() == said.keys()
    assert now["home"]["signs"] != said["home"]["signs"]


@pytest.mark.parametrize("lost", ["home", "tier", "unreadable"])
def test_what_is_lost_of_it_allows_nothing_and_blocks_nothing_for_ever(
    original: tierstore.Store, local: Place, tmp_path: Path, lost: str
) -> None:
    if lost == "home":
        (Path(local.home) / IDENTITY).unlink()
    else:
        said = forget_home(tmp_path / "warm")
        home: dict[str, Any] | None = {} if lost == "unreadable" else None
        (tmp_path / "warm" / MARKER).write_text(json.dumps({**said, "home": home}))
    for url in (local.home, local.copied):
        with tierstore.open(url) as store, pytest.raises(OtherHome):
            collect(store)
    original.reclaim.take_over()
    original.remove("m@1", force=True)
    assert collect(original).of("deleted")
    with tierstore.open(local.copied) as other, pytest.raises(OtherHome):
        collect(other)


def test_a_tier_that_an_older_version_added_is_this_homes_if_another_tier_is(
    original: tierstore.Store, local: Place, tmp_path: Path
) -> None:
    add_tier(original, spec("second", tmp_path))
    forget_home(tmp_path / "second")
    shutil.rmtree(local.copied)
    local.copy()
    with tierstore.open(local.copied) as other, pytest.raises(OtherHome):
        collect(other)
    with tierstore.open(local.home) as store:
        collect(store)
    assert json.loads((tmp_path / "second" / MARKER).read_text())["home"]["signs"]


class Refusing(FaultyStore):
    """A tier that cannot be written to."""

    def __init__(self, inner: BlobStore) -> None:
        super().__init__(inner, self._refused)

    @staticmethod
    def _refused(op: str, key: str, n: int) -> Fault:
        return PermissionDenied("no") if op == "put" else None


def test_a_tier_that_cannot_be_written_to_leaves_no_half_of_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, create=True)
    store.put(MARKER, json.dumps({"store_id": "s", "tier": "warm"}).encode())
    home, refusing = Identity(MemoryStore()), Refusing(store)
    there = DurableTier(spec("warm", tmp_path), refusing, store_id="s")
    home.confirm([(there, there.verify())])
    assert not home.signs()
    with pytest.raises(OtherHome, match="nothing says which home deletes in tier warm"):
        home.check(there, there.verify())
    with pytest.raises(PermissionDenied):
        home.take_over([there])
    later = DurableTier(spec("warm", tmp_path), store, store_id="s")
    home.take_over([later])
    home.check(later, later.verify())


class Right:
    def check(self) -> None:
        """It holds."""


def test_a_tier_that_comes_back_meanwhile_and_names_no_home_is_left_alone(
    original: tierstore.Store, tmp_path: Path
) -> None:
    home = original._parts.home
    holdings = read_holdings(home.packs)
    forget_home(tmp_path / "warm")
    every = sorted(holdings.every())
    done = sweep.sweep(
        every, holdings, Right(), home.identity, max_bytes=None, is_over=lambda: False
    )
    assert "does not say yet which home deletes there" in done.down["warm"]
    assert packs(tmp_path / "warm") == 1


# Signs


def test_what_administrators_do_to_a_home_leaves_it_the_same(tmp_path: Path) -> None:
    home = tmp_path / "home"
    blobs = LocalStore(home, create=True)
    blobs.put(IDENTITY, b"x")
    before = blobs.signs(IDENTITY)
    assert len(before) == 2
    (home / IDENTITY).chmod(0o600)
    after = blobs.signs(IDENTITY)
    assert after != before, "a sign that a change of its inode takes"
    assert after & before
    home.rename(tmp_path / "elsewhere")
    assert LocalStore(tmp_path / "elsewhere").signs(IDENTITY) & before


@pytest.mark.parametrize("way", [("-a",), ("-al",), ("-a", "--reflink=auto")])
def test_a_copied_object_shares_no_sign(tmp_path: Path, way: tuple[str, ...]) -> None:
    blobs = LocalStore(tmp_path / "home", create=True)
    blobs.put(IDENTITY, b"x")
    before = blobs.signs(IDENTITY)
    check_call("cp", *way, str(tmp_path / "home"), str(tmp_path / "copied"))
    assert not LocalStore(tmp_path / "copied").signs(IDENTITY) & before
    assert blobs.signs(IDENTITY) & before, "links to it change the first one, too"


def test_another_file_system_that_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file system, filled in the same order, numbers its inodes alike."""
    blobs = LocalStore(tmp_path / "home", create=True)
    blobs.put(IDENTITY, b"x")
    monkeypatch.setattr(files, "generation", lambda fd: 7)
    before = blobs.signs(IDENTITY)
    (tmp_path / "home" / IDENTITY).chmod(0o600)
    assert blobs.signs(IDENTITY) & before
    monkeypatch.setattr(files, "generation", lambda fd: 8)
    assert not blobs.signs(IDENTITY) & before


def test_where_inodes_have_no_lasting_numbers_their_time_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in some file systems of FUSE, which number what they have seen since they were mounted."""
    blobs = LocalStore(tmp_path / "home", create=True)
    blobs.put(IDENTITY, b"x")
    before = blobs.signs(IDENTITY)
    numbers = itertools.count(1)
    monkeypatch.setattr(files, "generation", lambda fd: next(numbers))
    assert blobs.signs(IDENTITY) & before


class Seconds(MemoryStore):
    """A storage that tells times in seconds, and whose clock stands still."""

    def info(self, key: str) -> BlobInfo:
        return replace(super().info(key), mtime=1_700_000_000.0)


def tier_of(folder: Path) -> DurableTier:
    store = LocalStore(folder, create=True)
    store.put(MARKER, json.dumps({"store_id": "s", "tier": "warm"}).encode())
    return DurableTier(spec("warm", folder), store, store_id="s")


def test_homes_that_take_over_in_one_second_are_told_apart(tmp_path: Path) -> None:
    tier, first, second = tier_of(tmp_path), Identity(Seconds()), Identity(Seconds())
    first.take_over([tier])
    first.check(tier, tier.verify())
    second.take_over([tier])
    second.check(tier, tier.verify())
    with pytest.raises(OtherHome):
        first.check(tier, tier.verify())


def test_a_home_with_a_sign_of_before_goes_on(tmp_path: Path) -> None:
    """Of a time alone, by which the tier names it; what it names itself has more."""
    tier, blobs = tier_of(tmp_path), Seconds()
    blobs.put(IDENTITY, b"tierstore: when and where the storage made this object\n")
    keep(tier.blobs, "warm", "s", Keeper(blobs.signs(IDENTITY), blobs.url, "me", 7))
    home = Identity(blobs)
    home.check(tier, tier.verify())
    home.confirm([(tier, tier.verify())])
    assert tier.verify() == Keeper(blobs.signs(IDENTITY), blobs.url, "me", 7)
    assert not home.made().signs & blobs.signs(IDENTITY)


def test_a_copy_in_the_same_second_is_told_apart_in_a_bucket(
    moto_server: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the same bytes; but not by the endpoint, as nodes name one storage in several ways."""
    for key, value in moto_server.environment.items():
        monkeypatch.setenv(key, value)
    moto_server.client().create_bucket(Bucket="one-second")
    tier = tier_of(tmp_path)
    with open_blobs("s3://one-second/a") as blobs, open_blobs("s3://one-second/b") as copied:
        home = Identity(blobs)
        home.take_over([tier])
        made = blobs.info(IDENTITY)
        copied.put(IDENTITY, blobs.get(IDENTITY))
        monkeypatch.setattr(copied, "info", lambda key: made)
        home.check(tier, tier.verify())
        with pytest.raises(OtherHome):
            Identity(copied).check(tier, tier.verify())


def test_a_collection_costs_one_request_more(tmp_path: Path, cache: Path) -> None:
    with tierstore.init(tmp_path / "home", tiers=[spec("warm", tmp_path)]) as store:
        store.reclaim.enable(wait_s=0)
        store.save("m", noise(1))
        home = FaultyStore(store._parts.home.blobs)
        store._parts.home.identity._blobs = home
        store.reclaim.run()
        assert [op for op, _ in home.calls] == ["signs"]


# What is said


def test_an_agent_of_a_copy_says_so_once(
    original: tierstore.Store, local: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tierstore.agent")
    original.save("m", noise(2), base=None)
    with tierstore.open(local.copied) as other:
        agent = Agent(other, collecting=CollectingPlan(timedelta(microseconds=1)), scrub_s=None)
        for _ in range(3):
            agent.round()
        assert agent.counters()["gc_runs_failed"] == 3
    [said] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "no garbage is collected: the home that deletes in tier warm" in said.getMessage()


def test_doctor_says_so(original: tierstore.Store, local: Place) -> None:
    assert not any("home" in one for one in diagnose(original).problems)
    with tierstore.open(local.copied) as other:
        [said] = [one for one in diagnose(other).problems if "the home that deletes" in one]
    assert said.startswith("tier warm: the home that deletes in tier warm is the one that ")


def test_the_command(
    original: tierstore.Store,
    local: Place,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TIERSTORE_STORE", local.copied)

    def run(*words: str) -> tuple[int, str, str]:
        code = app.run(["gc", *words])
        return code, *capfd.readouterr()

    code, _, err = run()
    assert code == 1
    assert "Nothing is deleted there: what this home does not know the other one may need" in err
    assert run("--dry-run")[0] == 0
    code, _, err = run("--moved")
    assert code == 2
    assert "nobody can answer here: give --yes" in err
    assert run("--moved", "--enable")[0] == 2
    assert run("--moved", "--dry-run")[0] == 2
    code, out, _ = run("--moved", "--yes")
    assert code == 0
    assert "this home deletes in warm from now on" in out
    code, out, _ = run("--moved", "--yes", "--json")
    found: Mapping[str, Any] = json.loads(out)
    assert found["tiers"] == ["warm"]
    assert run()[0] == 0
