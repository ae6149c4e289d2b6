"""The scrub of the agent: every copy is read in turn, and what is damaged is healed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.kit import condemn, equal, tensors
from tests.integration.test_check_subset import World
from tests.integration.test_quarantine import flip, places
from tierstore.blobs.base import RangeRead
from tierstore.errors import BackendError, NotFound
from tierstore.format.keys import PACKS, SCRUBS, pack_key
from tierstore.format.table import ChunkPlace
from tierstore.ids import Buffer, ByteRange
from tierstore.modelstore.reclaim.repair.scrub import Scrub
from tierstore.modelstore.store import Store
from tierstore.serving.agent import Agent

PERIOD_S = 1000.0


class Turns:
    """A scrub with a clock that is turned by hand."""

    def __init__(self, world: World) -> None:
        self.world, self.now = world, 0.0
        self.stop = threading.Event()
        self.store = world.open()
        self.scrub = self.made()

    def made(self, store: Store | None = None) -> Scrub:
        store = store or self.store
        path = self.world.cache / "checked.sqlite"
        return Scrub(store._parts.home, path, PERIOD_S, stop=self.stop, clock=lambda: self.now)

    def run(self, seconds: float, scrub: Scrub | None = None) -> list[tuple[str, str]]:
        """Let time pass, and return the copies that the next run reads, each once."""
        self.now += seconds
        self.world.read.clear()
        (scrub or self.scrub).run()
        return [*dict.fromkeys(self.world.read)]


@pytest.fixture
def world(cache: Path) -> World:
    return World(cache)


@pytest.fixture
def turns(world: World) -> Iterator[Turns]:
    turns = Turns(world)
    assert turns.run(0) == [], "nothing is due yet; it has the right to scrub now"
    yield turns
    turns.scrub.close()
    turns.store.close()


def contents(world: World) -> dict[tuple[str, str], bytes]:
    return {(name, key): bytes(world.tiers[name].get(key)) for name, key in world.copies}


def place_in(world: World, number: int) -> ChunkPlace:
    """A chunk that the version of this number has alone, and that lies in its own pack."""
    with world.open() as store:
        before = {one.pack for n in range(number) for one in places(store, f"m@{n + 1}", "emb")}
        return next(
            one for one in places(store, f"m@{number + 1}", "emb") if one.pack not in before
        )


# Turns


def test_every_copy_is_read_once_in_the_period(world: World, turns: Turns) -> None:
    seen: list[tuple[str, str]] = []
    sizes = {copy: len(data) for copy, data in contents(world).items()}
    total = sum(sizes.values())
    for step in range(1, 11):
        seen += turns.run(PERIOD_S / 10)
        read = sum(sizes[copy] for copy in seen)
        assert read <= total * step / 10 + max(sizes.values()), "no faster than it is told to"
    assert sorted(seen) == sorted(world.copies), "each once"
    assert turns.scrub.stats.copies == len(seen)
    assert turns.scrub.stats.bytes == total
    assert [turns.run(PERIOD_S / 10) for _ in range(10)] != [[]] * 10, "and then from the start"


def test_it_goes_on_where_the_last_process_ended(world: World, turns: Turns) -> None:
    first = [copy for _ in range(4) for copy in turns.run(PERIOD_S / 10)]
    turns.scrub.close()
    with world.open() as store:
        turns.scrub = turns.made(store)
        turns.run(0)
        later = [copy for _ in range(5) for copy in turns.run(PERIOD_S / 10)]
        assert first
        assert later
        assert not {*first} & {*later}
        turns.scrub.close()
        turns.scrub = turns.made()


def test_one_process_of_a_store_does_it(world: World, turns: Turns) -> None:
    with world.open() as store:
        other = turns.made(store)
        turns.run(0, other)
        assert turns.run(PERIOD_S / 2, other) == [], "another one has the right"
        assert turns.run(0) != []
        turns.scrub.close()
        turns.run(3600, other)
        assert turns.run(PERIOD_S / 2, other) != [], "it was given back"
        assert turns.run(PERIOD_S) == []
        home = world.tiers["home"]
        [key] = [info.key for info in home.list(SCRUBS)]
        data, mtime = home._blobs[key]
        home._blobs[key] = (data, mtime - 4 * 3600 - 60)  # its process was killed long ago
        turns.now += 3600
        turns.run(0)
        assert turns.run(PERIOD_S / 2) != []
        other.close()


def test_it_ends_between_two_copies(world: World, turns: Turns) -> None:
    turns.stop.set()
    assert turns.run(PERIOD_S) == []
    turns.stop.clear()
    assert turns.run(0) != []


def test_a_copy_that_cannot_be_read_is_written_anew(
    world: World, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a bad sector, while the tier answers: its medium may take the bytes elsewhere."""
    warm = world.tiers["warm"]
    bad = min(key for name, key in world.copies if name == "warm")
    written: list[str] = []
    get_ranges, get, put = warm.get_ranges, warm.get, warm.put

    def read(key: str) -> None:
        if key == bad and not written:
            raise BackendError("reading failed: Input/output error")

    def ranges(reads: Sequence[RangeRead]) -> None:
        read(reads[0].key)
        get_ranges(reads)

    def whole(key: str, byte_range: ByteRange | None = None) -> memoryview:
        read(key)
        return get(key, byte_range)

    def write(key: str, data: Buffer | Sequence[Buffer]) -> None:
        written.append(key)
        put(key, data)

    monkeypatch.setattr(warm, "get_ranges", ranges)
    monkeypatch.setattr(warm, "get", whole)
    monkeypatch.setattr(warm, "put", write)
    for _ in range(11):
        turns.run(PERIOD_S / 10)
    assert written == [bad]
    stats = turns.scrub.stats
    assert (stats.damaged, stats.healed, stats.quarantined) == (1, 1, 0)


def test_what_was_deleted_or_is_condemned_is_no_damage(world: World, turns: Turns) -> None:
    gone, condemned = sorted(key for name, key in world.copies if name == "warm")[:2]
    for name in ("warm", "cold"):
        world.tiers[name].delete([gone])
    condemn(world.tiers["home"], condemned)
    turns.now += 3600  # the list of copies is made anew
    read = [copy for _ in range(11) for copy in turns.run(PERIOD_S / 10)]
    assert not {key for _, key in read} & {gone, condemned}
    assert turns.scrub.stats.damaged == 0


def test_a_tier_that_is_down_is_left_out(
    world: World, turns: Turns, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns.now += 3600
    [warm] = [tier for tier in turns.store._parts.home.packs.tiers if tier.name == "warm"]

    def fails(*args: object) -> None:
        raise NotFound("nothing is mounted there")

    with monkeypatch.context() as patch:
        patch.setattr(type(warm), "verify", lambda self: fails() if self.name == "warm" else None)
        with caplog.at_level(logging.WARNING, "tierstore.scrub"):
            read = {copy for _ in range(11) for copy in turns.run(PERIOD_S / 10)}
    assert {name for name, _ in read} == {"cold"}
    assert "tier warm is not scrubbed now" in caplog.text


# Damage


@pytest.mark.parametrize("tier", ["warm", "cold"])
@pytest.mark.parametrize("where", ["frame", "index", "short"])
def test_a_damaged_copy_gets_the_bytes_of_a_good_one(
    world: World, turns: Turns, caplog: pytest.LogCaptureFixture, tier: str, where: str
) -> None:
    before = contents(world)
    place = place_in(world, 3)
    key, blobs = pack_key(place.pack), world.tiers[tier]
    if where == "frame":
        flip(blobs, place)
    else:
        data = bytearray(before[tier, key])
        data[-70] ^= 1
        blobs.put(key, data if where == "index" else data[:-9])
        turns.now += 3600  # its size is seen
    with caplog.at_level(logging.WARNING, "tierstore.scrub"):
        for _ in range(12):
            turns.run(PERIOD_S / 10)
    assert contents(world) == before, "and nothing else was written"
    stats = turns.scrub.stats
    assert (stats.damaged, stats.healed, stats.quarantined) == (1, 1, 0)
    assert f"in tier {tier}: pack {key} is damaged" in caplog.text
    assert f"the copy of {key} in tier {tier} was damaged, and has good bytes" in caplog.text
    assert world.check(read_data=True).findings == []


def test_what_is_damaged_everywhere_is_put_together(world: World, turns: Turns) -> None:
    before = contents(world)
    with world.open() as store:
        first, second = places(store, "m@1", "emb")[0], places(store, "m@1", "bias")[0]
    assert first.pack == second.pack
    flip(world.tiers["warm"], first)
    flip(world.tiers["cold"], second)
    for _ in range(12):
        turns.run(PERIOD_S / 10)
    assert contents(world) == before
    assert turns.scrub.stats.healed == 2


def test_what_no_tier_has_good_is_quarantined_and_healed_by_a_save(
    world: World, turns: Turns
) -> None:
    place = place_in(world, 2)
    for name in ("warm", "cold"):
        flip(world.tiers[name], place)
    for _ in range(25):
        turns.run(PERIOD_S / 10)
    assert turns.scrub.stats.quarantined == 1, "told once"
    assert world.check().quarantined == [pack_key(place.pack)]
    with world.open() as store:
        store.save("again", tensors(2), base=None)
        equal(store.load("m@3").load(), tensors(2))


def test_it_says_once_a_day_what_was_verified(
    world: World, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tierstore.scrub")
    turns.run(PERIOD_S / 3)
    [first] = [one.getMessage() for one in caplog.records]
    assert " of packs verified, " in first
    assert f" of {len(world.copies)} copies were never read by this node" in first
    for _ in range(12):
        turns.run(PERIOD_S / 10)
    assert len(caplog.records) == 1
    turns.run(86_400)
    [second] = [one.getMessage() for one in caplog.records[1:]]
    assert f"; all of {len(world.copies)} copies were read since 20" in second


def test_damage_is_told_once_until_it_was_good_again(
    world: World, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    place = place_in(world, 2)
    for name in ("warm", "cold"):
        flip(world.tiers[name], place)
    for _ in range(40):
        turns.run(PERIOD_S / 10)
    assert turns.scrub.stats.damaged > 4, "what is damaged is read first"
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(told) == 3, "two copies, and that the pack is quarantined"
    assert len([line for line in told if "is quarantined" in line]) == 1
    for name in ("warm", "cold"):
        flip(world.tiers[name], place)
    for _ in range(20):
        turns.run(PERIOD_S / 10)
    flip(world.tiers["warm"], place)
    for _ in range(20):
        turns.run(PERIOD_S / 10)
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(told) == 4


# The agent


def test_the_agent_scrubs_and_tells(world: World) -> None:
    flip(world.tiers["cold"], place_in(world, 1))
    with world.open() as store:
        agent = Agent(store, every_s=0.01, scrub_s=1e-3)
        agent.round()
        agent.round()
        counters = agent.counters()
        assert counters["scrubbed_copies"] >= len(world.copies)
        assert counters["scrubbed_bytes"] > 0
        assert counters["scrub_damaged"] == counters["scrub_healed"] == 1
        assert counters["scrub_quarantined"] == 0
        [cold] = [tier for tier in store._parts.home.packs.tiers if tier.name == "cold"]
        assert cold.stats.damaged == 1
        thread = threading.Thread(target=agent.run)
        thread.start()
        agent.stop.set()
        thread.join()
        lease = [one.why for one in store.reclaim.explain().shares if "scrubs" in one.why]
        assert lease == ["leases of scrubs"]
    with world.open() as store:
        next_one = Agent(store, scrub_s=1e-3)
        next_one.round()
        assert next_one._scrub is not None
        assert next_one._scrub._right is not None, "the right was given back at the end"


def test_it_can_be_switched_off(world: World) -> None:
    with world.open() as store:
        agent = Agent(store, scrub_s=None)
        world.read.clear()
        agent.round()
        agent.round()
        assert not [key for _, key in world.read if key.startswith(PACKS)]
        assert agent.counters()["scrubbed_copies"] == 0
    assert [*world.tiers["home"].list(SCRUBS)] == []
