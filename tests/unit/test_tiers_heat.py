"""Heat of several nodes: the same numbers, whoever carries them and whatever their clocks say."""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tierstore.blobs.base import BlobInfo
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import BackendError, Unreachable
from tierstore.format.heat import parse_heat
from tierstore.placement.heat import HALF_LIFE_S, REMEMBERED, HeatMap
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.tiers.base import ChunkRead
from tierstore.tiers.heat.home import HomeLedger
from tierstore.tiers.heat.recorder import (
    HeatLedger,
    HeatRecorder,
    HeatView,
    SumsLedger,
    chunk_key,
    pack_key,
)

NOW = 1.8e9
HOUR = 3600.0


class World:
    """The true time, and the clocks that nodes, home and the server have of it."""

    def __init__(self) -> None:
        self.time = NOW


class Home(MemoryStore):
    """A home whose clock is right."""

    def __init__(self, world: World) -> None:
        super().__init__("home")
        self.world = world

    def info(self, key: str) -> BlobInfo:
        found = super().info(key)
        return BlobInfo(found.key, found.size, self.world.time)


class Sums:
    """What Redis does, in memory."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.periods: dict[int, dict[str, float]] = {}
        self.fail: set[str] = set()

    def _call(self, what: str) -> None:
        if what in self.fail:
            raise Unreachable(what)

    def time(self) -> float:
        self._call("time")
        return self.world.time

    def add(self, increments: dict[str, float], period: int) -> None:
        self._call("add")
        sums = self.periods.setdefault(period, {})
        for name, by in increments.items():
            assert math.isfinite(by)
            sums[name] = sums.get(name, 0.0) + by

    def top(self, count: int, period: int) -> list[tuple[str, float]]:
        sums = self.periods.get(period, {})
        return sorted(sums.items(), key=lambda item: -item[1])[:count]

    def trim(self, keep: int, period: int) -> int:
        return 0

    def drop(self, period: int) -> None:
        self.periods.pop(period, None)


def read_of(n: int, nbytes: int = 100) -> ChunkRead:
    return ChunkRead(bytes([n]) * 32, bytes([n % 3]) * 32, 1000, nbytes)


def recorders(
    make: Callable[[int], HeatLedger], world: World, count: int = 3
) -> list[HeatRecorder]:
    """Nodes whose own clocks began anywhere."""
    return [
        HeatRecorder(make(n), clock=lambda off=n * 1e5: world.time - NOW + off)  # type: ignore[misc]
        for n in range(count)
    ]


def play(nodes: list[HeatRecorder], world: World) -> tuple[dict[bytes, float], HeatView]:
    """Ten days of reads on all nodes; the sums counted directly, and what a node sees of them."""
    rng = random.Random(1)
    events = []
    for _ in range(2000):
        world.time += rng.expovariate(1 / 432.0)
        node, what = rng.choice(nodes), read_of(rng.randrange(9), rng.randrange(1, 10**6))
        node.record([what])
        events.append((world.time, what))
        if rng.random() < 0.05:
            assert node.flush()
    for node in nodes:
        assert node.flush()
    expected: dict[bytes, float] = {}
    for when, what in events:
        weight = 2 ** -((world.time - when) / HALF_LIFE_S)
        expected[chunk_key(what.digest)] = expected.get(chunk_key(what.digest), 0.0) + weight
        expected[pack_key(what.pack)] = (
            expected.get(pack_key(what.pack), 0.0) + weight * what.read_bytes
        )
    return expected, nodes[0].view()


def assert_heat(view: HeatView, expected: dict[bytes, float], tolerance: float) -> None:
    found = dict(view.heat.items(view.now))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert math.isclose(found[key], value, rel_tol=tolerance), (key, found[key], value)
    assert len(view.packs()) == 3
    assert len(view.chunks()) == 9
    assert view.pack(bytes(32)) == pytest.approx(expected[pack_key(bytes(32))], rel=tolerance)
    assert view.chunk(bytes(32)) == pytest.approx(expected[chunk_key(bytes(32))], rel=tolerance)


def test_a_server_and_home_give_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the wall clocks of two nodes are an hour apart, which nothing depends on."""
    world = World()
    skews = iter(range(10**9))
    monkeypatch.setattr("time.time", lambda: world.time + (next(skews) % 3 - 1) * HOUR)
    sums = Sums(world)
    expected, view = play(recorders(lambda n: SumsLedger(sums), world), world)
    assert_heat(view, expected, 1e-9)
    assert view.now == world.time

    world = World()
    home = Home(world)
    nodes = recorders(
        lambda n: HomeLedger(
            home, f"node/{n}", tmp_path / "lock", clock=lambda: world.time - NOW - n * 77
        ),
        world,
    )
    again, other = play(nodes, world)
    assert again == expected
    assert_heat(other, expected, 1e-3)  # 1/65536 of a power of two, once for each flush
    assert sorted(i.key for i in home.list()) == [f"heat/node%2F{n}" for n in range(3)]


def test_a_nodes_object_says_how_wrong_its_clock_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, off = World(), HOUR
    monkeypatch.setattr("time.time", lambda: world.time + off)
    home = Home(world)
    ledger = HomeLedger(home, "n", tmp_path / "lock", clock=lambda: world.time)
    recorder = HeatRecorder(ledger, clock=lambda: world.time)
    recorder.record([read_of(1)])
    recorder.flush()
    body = parse_heat(home.get("heat/n"), "heat")
    assert body.offset_us == 3600 * 10**6
    assert body.landmark_us - body.offset_us == int(NOW * 1e6)
    assert body.node == "n"


def test_sums_stay_finite_for_ever_and_go_on_from_one_period_to_the_next() -> None:
    world = World()
    sums = Sums(world)
    ledger = SumsLedger(sums)
    recorder = HeatRecorder(ledger, clock=lambda: world.time)
    world.time = 139 * REMEMBERED * HALF_LIFE_S - 10.0  # the end of a period
    recorder.record([read_of(1)] * 8)
    assert recorder.view().chunk(bytes([1]) * 32) == pytest.approx(8.0)
    world.time += HALF_LIFE_S  # in the next one
    assert recorder.view().chunk(bytes([1]) * 32) == pytest.approx(4.0)
    recorder.record([read_of(1)])
    assert recorder.view().chunk(bytes([1]) * 32) == pytest.approx(5.0)
    for _ in range(40):
        world.time += 350 * HALF_LIFE_S
        recorder.record([read_of(1)])
        assert recorder.view().chunk(bytes([1]) * 32) == pytest.approx(1.0)
        assert len(sums.periods) <= 3


def test_what_could_not_be_sent_is_sent_later_and_what_may_have_been_is_not() -> None:
    world = World()
    sums = Sums(world)
    recorder = HeatRecorder(SumsLedger(sums), clock=lambda: world.time)
    recorder.record([read_of(1)])
    sums.fail = {"time"}
    assert not recorder.flush()
    recorder.record([read_of(1)])
    sums.fail = set()
    assert recorder.flush()
    assert recorder.view().chunk(bytes([1]) * 32) == pytest.approx(2.0)
    recorder.record([read_of(1)])
    sums.fail = {"add"}
    assert not recorder.flush()
    sums.fail = set()
    assert recorder.view().chunk(bytes([1]) * 32) == pytest.approx(2.0)
    assert (recorder.stats.flushes, recorder.stats.failures, recorder.stats.keys) == (1, 2, 2)


def test_a_home_that_fails_loses_heat_and_nothing_else(tmp_path: Path) -> None:
    world = World()
    fault: list[Fault] = [None]
    home = FaultyStore(Home(world), lambda op, key, n: fault[0])
    recorder = HeatRecorder(
        HomeLedger(home, "n", tmp_path / "l", clock=lambda: world.time), clock=lambda: world.time
    )
    for fault[0] in (Unreachable("x"), "lose-response"):
        recorder.record([read_of(1)])
        assert not recorder.flush()
    fault[0] = None
    home.inner.put("heat/n", b"no heat at all")
    home.inner.put("heat/other", b"")
    assert recorder.flush()
    assert recorder.view().chunk(bytes([1]) * 32) == pytest.approx(2.0, rel=1e-4)
    assert [info.key for info in home.inner.list("probes/")] == []


def test_processes_of_one_node_add_up(tmp_path: Path) -> None:
    world = World()
    home = Home(world)
    nodes = [
        HeatRecorder(
            HomeLedger(home, "n", tmp_path / "lock", clock=lambda: world.time),
            clock=lambda: world.time,
        )
        for _ in range(4)
    ]

    def work(node: HeatRecorder) -> None:
        for _ in range(50):
            node.record([read_of(1)])
            assert node.flush()

    threads = [threading.Thread(target=work, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nodes[0].view().chunk(bytes([1]) * 32) == pytest.approx(200.0, rel=1e-2)


def test_a_nodes_object_is_bounded(tmp_path: Path) -> None:
    world = World()
    home = Home(world)
    ledger = HomeLedger(home, "n", tmp_path / "lock", clock=lambda: world.time)
    heat = HeatMap(HALF_LIFE_S, world.time)
    for n in range(20_000):
        heat.add(chunk_key(n.to_bytes(32, "big")), world.time, 1 + n)
        heat.add(pack_key(n.to_bytes(32, "big")), world.time, 1 + n)
    ledger.add(heat)
    assert home.info("heat/n").size < 500_000
    kept = {int.from_bytes(key[1:], "big") for key, _ in ledger.load().items(world.time)}
    assert min(kept) == 20_000 - 8192


def test_memory_is_bounded_while_nobody_takes_it() -> None:
    sums = Sums(World())
    sums.fail = {"time"}
    recorder = HeatRecorder(SumsLedger(sums), clock=lambda: 0.0, max_keys=100)
    for n in range(5000):
        recorder.record([ChunkRead(n.to_bytes(32, "big"), bytes(32), 1, 1)])
    assert len(recorder._heat) <= 200
    assert not recorder.flush()


def test_a_forked_child_counts_its_own(tmp_path: Path) -> None:
    sums = Sums(World())
    recorder = HeatRecorder(SumsLedger(sums), clock=lambda: 0.0)
    recorder.record([read_of(1)] * 5)
    with recorder._lock, recorder._flushing:
        pid = os.fork()
        if not pid:
            recorder.record([read_of(1)])
            os._exit(0 if round(recorder.view().chunk(bytes([1]) * 32), 6) == 1.0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert recorder.flush()


def test_a_ledger_that_cannot_be_asked_is_said_to_be() -> None:
    sums = Sums(World())
    sums.fail = {"time"}
    with pytest.raises(BackendError):
        HeatRecorder(SumsLedger(sums)).view()
