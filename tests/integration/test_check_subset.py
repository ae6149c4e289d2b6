"""Data is read in turns: what was not read for longest comes first, wherever a check ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, settings, tensors
from tests.integration.test_collector import CHANGES
from tests.integration.test_quarantine import flip, places
from tierstore import Rows
from tierstore.blobs.base import BlobStore, RangeRead
from tierstore.blobs.memory import MemoryStore
from tierstore.cli.kit.app import run
from tierstore.errors import Unreachable, UsageError
from tierstore.format.keys import FOLDS, LAYOUTS, PACKS, REFS, VERSIONS, pack_key
from tierstore.format.table import PACK_HEADER_BYTES
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.care.check_data import PackData
from tierstore.modelstore.care.check_report import CheckReport
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier

VERSIONS_SAVED = 5


class Noted(FaultyStore):
    """Notes of which packs frames are read: not their header, which a footer is read with."""

    def __init__(
        self, inner: MemoryStore, name: str, read: list[tuple[str, str]], down: set[str]
    ) -> None:
        def plan(op: str, key: str, n: int) -> None:
            if name in down:
                raise Unreachable(f"{name} is down")

        super().__init__(inner, plan)
        self._name, self._read = name, read

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        headers = {one.key for one in reads if not one.start and len(one.out) == PACK_HEADER_BYTES}
        keys = {one.key for one in reads if one.key.startswith(PACKS)} - headers
        self._read += [(self._name, key) for key in keys]
        super().get_ranges(reads)


class World:
    """Five versions, each with a pack of its own, in two tiers; and a fold in another model."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.tiers = {name: MemoryStore(name) for name in ("home", "warm", "cold")}
        create_config(self.tiers["home"], MIB)
        self.read: list[tuple[str, str]] = []
        self.down = set[str]()
        with self.open() as store:
            for number in range(VERSIONS_SAVED):
                store.save("m", tensors(number), base=None)
            for info in list(self.tiers["warm"].list(PACKS)):
                self.tiers["cold"].put(info.key, self.tiers["warm"].get(info.key))
        self.copies = {
            (name, info.key) for name in ("warm", "cold") for info in self.tiers[name].list(PACKS)
        }

    def open(self) -> Store:
        tiers = [
            DurableTier(
                TierSpec(name=name, role=name, url=f"memory://{name}"),
                Noted(self.tiers[name], name, self.read, self.down),
            )
            for name in ("warm", "cold")
        ]
        home = self.tiers["home"]
        return Store(home, settings(self.cache), packs=DurableTiers([*tiers, home_tier(home)]))

    def check(self, **how: object) -> CheckReport:
        """One check in a process of its own; ``read`` is what it read of packs."""
        with self.open() as store:
            self.read.clear()
            return store.check(**how)  # type: ignore[arg-type]


@pytest.fixture
def world(cache: Path) -> World:
    return World(cache)


def test_subsets_in_turn_cover_everything_once(world: World) -> None:
    seen: list[tuple[str, str]] = []
    for _ in range(5):
        report = world.check(subset=0.2)
        assert report.findings == []
        new = set(world.read)
        assert len(new) == report.data.copies >= 1
        assert report.data.copies + report.data.copies_left == len(world.copies)
        assert not new & set(seen), "read again before all others were"
        seen += new
        if set(seen) == world.copies:
            break
    assert set(seen) == world.copies
    again = world.check(subset=0.2)
    assert again.data.copies
    assert set(world.read) <= set(seen[: len(world.read) + 1]), "then the first are the oldest"


def test_a_subset_is_read_elsewhere_while_a_tier_is_down(world: World) -> None:
    """What it alone has was not read for longest, and takes nothing of the share."""
    world.down.add("cold")
    for key in sorted(key for tier, key in world.copies if tier == "warm")[:3]:
        world.tiers["warm"].delete([key])  # cold alone has it: nobody can read it now
        world.copies.remove(("warm", key))
    read = set[tuple[str, str]]()
    for _ in range(4):
        report = world.check(subset=0.2)
        assert report.down.keys() == {"cold"}
        assert report.data.copies >= 1
        read |= set(world.read)
    assert read >= {copy for copy in world.copies if copy[0] == "warm"}
    world.down.clear()
    world.check(subset=0.2)
    assert {tier for tier, _ in world.read} == {"cold"}, "what was not read for longest"


@pytest.mark.parametrize("tier", ["warm", "cold"])
@pytest.mark.parametrize("number", range(VERSIONS_SAVED))
def test_damage_is_found_in_its_turn_and_comes_first_from_then_on(
    world: World, tier: str, number: int
) -> None:
    with world.open() as store:
        packs = {one.pack: one for one in places(store, f"m@{number + 1}", "emb")}
        place = list(packs.values())[-1]
    flip(world.tiers[tier], place)
    key = pack_key(place.pack)
    found = [bool(world.check(subset=0.25).findings) for _ in range(4)]
    assert sum(found) >= 1
    first = found.index(True)
    assert all(found[first:]), "what is damaged is read first by the next check"
    report = world.check(subset=0.01)
    assert [(one.severity, one.key) for one in report.findings] == [("damage", key)]
    assert f"its copy in tier {tier} is bad" in report.findings[0].what
    assert set(world.read) >= {(tier, key)}


def test_no_time_reads_nothing_and_says_how_to_go_on(world: World) -> None:
    report = world.check(max_time=timedelta(0))
    assert world.read == []
    assert (report.data.copies, report.data.copies_left) == (0, len(world.copies))
    assert report.data.rest == "100%"
    assert report.packs == VERSIONS_SAVED, "metadata is always looked at as a whole"
    assert world.check(max_time=timedelta(days=1)).data.copies_left == 0
    assert set(world.read) == world.copies


def interrupting(after: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[..., None]:
    told = iter(range(after))

    def progress(done: int, total: int) -> None:
        if next(told, None) is None:
            raise error

    return progress


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_who_interrupts_it_is_told_how_to_go_on(world: World, after: int) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        world.check(read_data=True, progress=interrupting(after))
    said, done = str(caught.value), set(world.read)
    assert said.startswith(f"{after} of 10 copies of packs were read")
    match = re.search(r"'tierstore check --subset ([0-9.]+)%' reads the rest", said)
    assert match
    rest = world.check(subset=float(match[1]) / 100)
    assert done | set(world.read) == world.copies, "the rest, all of it"
    assert rest.data.copies <= 10 - after + 1, "and next to nothing twice, as a share is rounded"


def test_a_check_that_is_killed_goes_on(world: World) -> None:
    class Killed(BaseException):
        pass

    with pytest.raises(Killed):
        world.check(read_data=True, progress=interrupting(6, Killed))
    before = set(world.read)
    assert world.check(subset=0.3).data.copies >= 3
    assert len(set(world.read) & before) <= 1, "the one at which it was killed"


def test_what_it_keeps_can_be_lost(world: World, cache: Path) -> None:
    world.check(read_data=True)
    [path] = cache.rglob("checked.sqlite")
    for content in (b"no database" * 1000, b""):
        path.write_bytes(content)
        assert world.check(subset=0.5).findings == []
        first = set(world.read)
        assert world.check(subset=0.5).findings == []
        assert set(world.read) | first == world.copies
    path.unlink()
    path.mkdir()
    assert world.check(read_data=True).data.copies_left == 0


def test_no_part_of_what_it_keeps_is_mapped(world: World, cache: Path) -> None:
    """On a full disk a process would be killed that maps what has no room (SIGBUS)."""
    found: set[str] = set()

    def look(done: int, total: int) -> None:
        found.update(path.name for path in cache.rglob("checked.sqlite*"))

    world.check(read_data=True, progress=look)
    assert "checked.sqlite" in found
    assert found <= {"checked.sqlite", "checked.sqlite-journal"}


def test_a_pack_that_is_new_comes_first(world: World) -> None:
    world.check(read_data=True)
    with world.open() as store:
        store.save("m", tensors(77), base=None)
        new = {("warm", pack_key(one.pack)) for one in places(store, "m", "emb")} - world.copies
    world.check(subset=0.001)
    assert set(world.read) == new


def test_folds_take_turns_as_copies_do(world: World) -> None:
    with world.open() as store:
        store.patch("m", {"emb": Rows([1], np.ones((1, 1000), np.float32))}, fold=False)
        store.fold("m")
    report = world.check(read_data=True)
    assert (report.data.copies, report.data.copies_left) == (10 + 2 + 1, 0)
    assert world.check(subset=0.5).data.copies_left > 0


def flip_middle(blobs: BlobStore, key: str) -> None:
    data = bytearray(blobs.get(key))
    data[len(data) // 2] ^= 1
    blobs.put(key, data)


@pytest.mark.parametrize("how", [{}, {"read_data": True}, {"subset": 0.01}])
@pytest.mark.parametrize("prefix", [f"{REFS}m/versions/", VERSIONS, LAYOUTS, FOLDS])
def test_damage_in_home_is_found_by_every_mode(
    world: World, prefix: str, how: dict[str, object]
) -> None:
    with world.open() as store:
        store.patch("m", CHANGES, fold=False)
        store.fold("m")
    home = world.tiers["home"]
    for info in list(home.list(prefix)):
        if info.key.endswith("HEAD"):
            continue
        before = bytes(home.get(info.key))
        flip_middle(home, info.key)
        findings = world.check(**how).findings
        # of a fold's full manifest the patch says that it cannot be read
        assert any(info.key in (one.key, *one.what.split()) for one in findings), info.key
        home.put(info.key, before)


@pytest.mark.parametrize("how", [{}, {"read_data": True}, {"subset": 0.01}])
@pytest.mark.parametrize("tier", ["warm", "cold"])
def test_a_damaged_footer_is_found_by_every_mode(
    world: World, tier: str, how: dict[str, object]
) -> None:
    for _, key in world.copies:
        blobs = world.tiers[tier]
        before = bytes(blobs.get(key))
        data = bytearray(before)
        data[-70] ^= 1  # the index, right before the trailer
        blobs.put(key, data)
        report = world.check(**how)
        assert {one.key for one in report.findings} == {key}
        assert any(f"its copy in tier {tier} is bad" in one.what for one in report.findings)
        blobs.put(key, before)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"subset": 0}, "subset"),
        ({"subset": 1.5}, "0.05"),
        ({"subset": "5%"}, "0.05"),
        ({"max_time": 60}, "timedelta"),
    ],
)
def test_wrong_limits_are_refused(world: World, how: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        world.check(**how)


@pytest.mark.parametrize("after", [0, 1])
def test_the_command_says_it_when_it_is_interrupted(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
) -> None:
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(cache))
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", tensors(1), base=None)
        store.save("m", tensors(2), base=None)
    read, left = PackData._read_part, iter(range(after))

    def interrupted(self: PackData, *args: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        read(self, *args)

    monkeypatch.setattr(PackData, "_read_part", interrupted)
    assert run(["check", "--read-data", "--store", str(tmp_path / "store")]) == 130
    said = capsys.readouterr().err
    assert f"interrupted: {after} of 2 copies of packs were read; 'tierstore check --subset" in said
