"""A check that a failing tier, home or Ctrl-C cuts short: what was found is told all the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import tierstore
from tests.integration.kit import MIB, settings, tensors
from tests.integration.test_check_subset import interrupting
from tests.integration.test_collector_schedules import tuned, weights
from tests.integration.test_quarantine import flip, places
from tests.integration.test_repair import flipped, spoil
from tierstore.blobs.local.store import LocalStore
from tierstore.blobs.memory import MemoryStore
from tierstore.cli.kit.app import run
from tierstore.errors import BackendError, Unreachable
from tierstore.format.keys import PACKS, QUARANTINE, pack_key
from tierstore.format.tiers import TierSpec
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import FaultyStore
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier

Plan = Callable[[str, str, int], None]


class World:
    """Versions 1 to 4 with a pack each: the first ones are in warm and cold, the last in one each.

    Attributes:
        keys: The keys of the packs of the four versions.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.tiers = {name: MemoryStore(name) for name in ("home", "warm", "cold")}
        create_config(self.tiers["home"], MIB)
        self.keys: list[str] = []
        with self.open() as store:
            for number in range(4):
                store.save(f"m{number}", tensors(number), base=None)
                self.keys.append(pack_key(places(store, f"m{number}", "emb")[0].pack))
            self.frames = [places(store, f"m{number}", "emb")[0] for number in range(4)]
        warm, cold = self.tiers["warm"], self.tiers["cold"]
        for key in (*self.keys[:2], self.keys[3]):
            cold.put(key, warm.get(key))
        warm.delete([self.keys[3]])

    def open(self, **plans: Plan) -> Store:
        stores = {name: FaultyStore(blobs, plans.get(name)) for name, blobs in self.tiers.items()}
        tiers = [
            DurableTier(TierSpec(name=name, role=name, url=f"memory://{name}"), stores[name])
            for name in ("warm", "cold")
        ]
        home = stores["home"]
        return Store(home, settings(self.cache), packs=DurableTiers([*tiers, home_tier(home)]))

    @property
    def marks(self) -> list[str]:
        return [info.key.rpartition("/")[2] for info in self.tiers["home"].list(QUARANTINE)]


@pytest.fixture
def world(cache: Path) -> World:
    return World(cache)


def failing(after: int = 0, ops: tuple[str, ...] = ("get", "get_ranges", "info")) -> Plan:
    """Let so many calls that read packs through, and fail from then on."""
    calls = iter(range(after))

    def plan(op: str, key: str, n: int) -> None:
        if op in ops and key.startswith(PACKS) and next(calls, None) is None:
            raise Unreachable("it is down")

    return plan


def test_what_is_damaged_elsewhere_is_found_while_a_tier_is_down(world: World) -> None:
    for key in (world.keys[0], world.keys[2]):
        spoil(world.tiers["warm"], key, flipped(-1))
    with world.open(cold=failing()) as store:
        report = store.check()
    found = {one.key: one for one in report.findings}
    assert found.keys() == {world.keys[0], world.keys[2]}
    assert "and tier cold could not be asked for another one" in found[world.keys[0]].what
    assert found[world.keys[0]].needed_by == ()
    assert found[world.keys[2]].needed_by == ("m2@1",)
    assert report.down == {"cold": "it is down"}
    assert report.quarantined == [world.keys[2]]
    assert world.marks == [world.keys[2].rpartition("/")[2]]


@pytest.mark.parametrize("ops", [(), ("list",)])
def test_what_only_a_tier_has_that_fails_is_not_lost(world: World, ops: tuple[str, ...]) -> None:
    """Whether or not it could be asked what it has."""
    with world.open(cold=failing(ops=("get", "get_ranges", "info", *ops))) as store:
        report = store.check(read_data=True)
    assert report.findings == []
    assert report.down.keys() == {"cold"}
    assert (report.data.copies, report.data.copies_left) == (3, 1 if ops else 3)


@pytest.mark.parametrize("after", [4, 5, 6])
def test_data_that_a_failing_tier_leaves_is_read_by_the_next_check(
    world: World, after: int
) -> None:
    flip(world.tiers["warm"], world.frames[2])
    with world.open(cold=failing(after, ("get_ranges",))) as store:
        report = store.check(read_data=True)
    assert {(one.key, one.needed_by) for one in report.findings} == {(world.keys[2], ("m2@1",))}
    assert report.quarantined == [world.keys[2]]
    left = report.data.copies_left
    assert 1 <= left <= 3
    assert report.down.keys() == {"cold"}
    with world.open() as store:
        rest = store.check(subset=float(report.data.rest.rstrip("%")) / 100)
    assert rest.data.copies >= left
    assert rest.down == {}


def test_a_copy_in_a_tier_that_fails_is_left_though_another_one_was_read(world: World) -> None:
    world.tiers["warm"].put(world.keys[3], world.tiers["cold"].get(world.keys[3]))
    world.tiers["cold"].delete([world.keys[3]])
    with world.open(cold=failing(2, ("get_ranges", "info"))) as store:  # the footers of both
        report = store.check(read_data=True)
    assert report.findings == []
    assert report.down == {"cold": "it is down"}
    assert (report.data.copies, report.data.copies_left) == (4, 2)


def test_what_was_found_before_an_interruption_is_told_and_quarantined(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    flip(world.tiers["warm"], world.frames[2])
    with (
        world.open() as store,
        caplog.at_level(logging.ERROR, "tierstore.check"),
        pytest.raises(KeyboardInterrupt, match="copies of packs were read"),
    ):
        store.check(read_data=True, progress=interrupting(5))
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"damage: {world.keys[2]}: ")
    assert said.endswith("(needed by m2@1)")
    assert world.marks == [world.keys[2].rpartition("/")[2]]


def test_what_was_found_before_home_failed_is_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Who needs it cannot be said then, nor can it be quarantined."""
    spoil(world.tiers["warm"], world.keys[2], flipped(-1))
    is_down = []

    def plan(op: str, key: str, n: int) -> None:
        if key.startswith("index/") or (op == "list" and "index/" in key):
            is_down.append(True)
        if is_down:
            raise Unreachable("home is down")

    with (
        world.open(home=plan) as store,
        caplog.at_level(logging.ERROR, "tierstore.check"),
        pytest.raises(Unreachable, match="home is down"),
    ):
        store.check()
    [said] = [r.getMessage() for r in caplog.records if r.name == "tierstore.check"]
    assert said.startswith(f"damage: {world.keys[2]}: ")
    assert world.marks == []


def test_data_that_a_failing_tier_may_have_good_is_not_lost(world: World) -> None:
    flip(world.tiers["warm"], world.frames[0])
    with world.open(cold=failing()) as store:
        report = store.check(read_data=True)
    [finding] = report.findings
    assert (finding.key, finding.needed_by) == (world.keys[0], ())
    assert "tier cold may have it good and could not be asked" in finding.what
    assert report.down == {"cold": "it is down"}
    assert (report.quarantined, world.marks) == ([], [])


def test_what_may_be_in_a_tier_that_was_down_from_the_start_is_not_lost(world: World) -> None:
    spoil(world.tiers["warm"], world.keys[0], flipped(-1))
    with world.open(cold=failing(ops=("list", "get", "get_ranges", "info"))) as store:
        report = store.check(read_data=True)
    [finding] = report.findings
    assert (finding.key, finding.needed_by) == (world.keys[0], ())
    assert "tier cold could not be asked for another one" in finding.what
    assert report.down == {"cold": "it is down"}
    assert world.marks == []


def test_a_copy_that_cannot_be_read_gets_the_bytes_of_another(world: World) -> None:
    """Writing it anew is what mends a bad sector."""
    key, written = world.keys[0], []
    fails = bad_sector(key, 0)

    def plan(op: str, wanted: str, n: int) -> None:
        if op == "put" and wanted == key:
            written.append(key)
        if not written:
            fails(op, wanted, n)

    with world.open(warm=plan) as store:
        report = store.repair()
        assert store.check(read_data=True).findings == []
    [one] = report.objects
    assert (one.outcome, one.key, one.tier) == ("repaired", key, "warm")
    assert "Input/output error" in one.what


def test_a_tier_is_not_blamed_for_another(world: World) -> None:
    """Deltas in warm need bases that only cold has, which is down; what else is in warm is read."""
    with world.open() as store:
        base = store.save("b", weights(1), base=None)
        store.save("b", tuned(weights(1), 2), base="b@1")
        [key] = {pack_key(one.pack) for one in places(store, f"b@{base.number}", "emb")}
    world.tiers["cold"].put(key, world.tiers["warm"].get(key))
    world.tiers["warm"].delete([key])
    flip(world.tiers["warm"], world.frames[2])
    with world.open(cold=failing()) as store:
        report = store.check(read_data=True)
    assert [(one.key, one.needed_by) for one in report.findings] == [(world.keys[2], ("m2@1",))]
    assert report.down == {"cold": "it is down"}
    assert report.data.copies == 3
    assert report.data.copies_left == 5


def bad_sector(key: str, after: int) -> Plan:
    """Let so many reads of one pack through, and fail then."""
    calls = iter(range(after))

    def plan(op: str, wanted: str, n: int) -> None:
        if op in ("get", "get_ranges") and wanted == key and next(calls, None) is None:
            raise BackendError("reading failed: Input/output error")

    return plan


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("number", [0, 2])
def test_a_copy_that_cannot_be_read_is_found_and_no_tier_is_down(
    world: World, after: int, number: int
) -> None:
    """In the footer, and in the data; what else the tier has is read."""
    flip(world.tiers["warm"], world.frames[1])
    key = world.keys[number]
    for _ in range(2):
        with world.open(warm=bad_sector(key, after)) as store:
            report = store.check(read_data=True)
        found = {one.key: one for one in report.findings}
        assert found.keys() == {world.keys[1], key}
        assert "its copy in tier warm cannot be read" in found[key].what
        assert "Input/output error" in found[key].what
        assert ("another one is good" in found[key].what) == (number == 0)
        assert found[key].needed_by == (() if number == 0 else ("m2@1",))
        assert report.down == {}
        assert (report.data.copies, report.data.copies_left) == (6, 0)
        assert report.quarantined == ([key] if number == 2 else []), "no save may reuse it"


def test_a_copy_that_cannot_be_read_is_not_lost_while_a_tier_is_down(world: World) -> None:
    with world.open(warm=bad_sector(world.keys[0], 1), cold=failing()) as store:
        report = store.check(read_data=True)
    [finding] = report.findings
    assert (finding.key, finding.needed_by) == (world.keys[0], ())
    assert "tier cold could not be asked for another one" in finding.what
    assert report.down == {"cold": "it is down"}


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_tells_and_exits_with_3(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(cache))
    url = str(tmp_path / "store")
    tierstore.init(url).close()
    assert run(["tier", "add", "warm", str(tmp_path / "warm"), "--store", url]) == 0
    with tierstore.open(url) as store:
        store.save("m", tensors(1), base=None)
    read = LocalStore.get_ranges

    def get_ranges(self: LocalStore, reads: object) -> None:
        if self.url.endswith("warm"):
            raise Unreachable("it is down")
        read(self, reads)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "get_ranges", get_ranges)
    capsys.readouterr()
    assert run(["check", "--store", url, *(["--json"] if as_json else [])]) == 3
    said = capsys.readouterr().out
    if as_json:
        assert "it is down" in json.loads(said)["down"]["warm"]
    else:
        assert "tier warm could not be asked: " in said
        assert "no damage" in said
