"""Moving packs between durable tiers: whatever happens to the mover, no pack is ever lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, condemn, created, equal, python, settings, tensors
from tests.integration.test_forged_frames import WORDS, place, spoil
from tests.waiting import wait_until
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, NotFound, OutOfSpace, Unreachable, UsageError
from tierstore.format.keys import pack_key
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.tiers import MoverLease, TierSpec
from tierstore.modelstore.placing.moverlease import HeldLease, Right
from tierstore.modelstore.placing.placing import Placement
from tierstore.modelstore.store import Store
from tierstore.placement.scene import MoveKind, Plan
from tierstore.testing.faulty import Crashed, Fault, FaultyStore
from tierstore.tiers.durable.budget import Budget
from tierstore.tiers.durable.marker import MARKER, claim
from tierstore.tiers.durable.mover import Moved
from tierstore.tiers.durable.tier import DurableTier
from tierstore.tiers.durable.tiers import DurableTiers, home_tier

FIRST, SECOND = tensors(1), tensors(2)
Plan_ = Callable[[str, str, int], Fault]


class World:
    """A store with a warm and a cold tier in memory; each call to any of them can fail."""

    def __init__(self, folder: Path, **warm: object) -> None:
        self.folder = folder
        self.plans: dict[str, Plan_] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.stores = {name: self._store(name) for name in ("home", "warm", "cold")}
        self.fields: dict[str, object] = {"size": None, **warm}
        self.draining: set[str] = set()
        self.heat: dict[bytes, float] = {}
        created(self.stores["home"], folder).close()

    def _store(self, name: str) -> FaultyStore:
        def plan(op: str, key: str, n: int) -> Fault:
            self.calls.append((name, op, key))
            return self.plans[name](op, key, n) if name in self.plans else None

        return FaultyStore(MemoryStore(name), plan)

    def open(self) -> Store:
        def spec(name: str, **fields: object) -> TierSpec:
            state = "draining" if name in self.draining else "active"
            return TierSpec(
                name=name, role=name, url=f"memory://{name}", state=state,  # type: ignore[arg-type]
                **fields,  # type: ignore[arg-type]
            )  # fmt: skip

        tiers = [
            DurableTier(spec("warm", **self.fields), self.stores["warm"]),
            DurableTier(spec("cold"), self.stores["cold"]),
            home_tier(self.stores["home"]),
        ]
        return Store(self.stores["home"], settings(self.folder), packs=DurableTiers(tiers))

    def placement(self, store: Store | None = None) -> Placement:
        store = store or self.open()
        return Placement(store._parts.home, store.pins, lambda: self.heat)

    def packs(self, name: str) -> set[bytes]:
        listed = self.stores[name].inner.list("packs/")
        return {bytes.fromhex(info.key.rpartition("/")[2]) for info in listed}

    def age(self, seconds: float) -> None:
        """Everything was written so long ago."""
        for store in self.stores.values():
            inner = store.inner
            assert isinstance(inner, MemoryStore)
            for key, (data, mtime) in list(inner._blobs.items()):
                inner._blobs[key] = (data, mtime - seconds)

    def warm_up(self, heat: float = 9) -> None:
        """Every pack was read so often."""
        every = self.packs("warm") | self.packs("cold") | self.packs("home")
        self.heat = dict.fromkeys(every, heat * MIB)

    def forget_movers(self) -> None:
        inner = self.stores["home"].inner
        inner.delete([info.key for info in inner.list("movers/")])

    def deletes(self) -> list[str]:
        return [name for name, op, key in self.calls if op == "delete" and "packs/" in key]


def intact(world: World) -> None:
    """Both versions load, and every copy of every pack is good."""
    world.plans.clear()
    with world.open() as store:
        equal(store.load("m@1").load(), FIRST)
        equal(store.load("m@2").load(), SECOND)
        assert store.check(read_data=True).findings == []


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two versions, 100 days old, in the warm tier."""
    made = World(tmp_path)
    with made.open() as store:
        store.save("m", FIRST, base=None)
        store.save("m", SECOND, base=None)
    made.age(100 * 86_400)
    made.calls.clear()
    return made


def statuses(moved: list[Moved]) -> list[tuple[str, str, str]]:
    return [(one.move.kind, one.status, one.why) for one in moved]


def test_cold_packs_go_and_hot_ones_come_back(world: World) -> None:
    placement = world.placement()
    assert [move.kind for move in placement.plan().moves] == ["demote", "demote"]
    assert not world.packs("cold"), "a plan moves nothing"
    report = placement.rebalance()
    assert statuses(report.moved) == [("demote", "done", "")] * 2
    assert (len(world.packs("warm")), len(world.packs("cold"))) == (0, 2)
    assert placement.stats.moved_bytes == sum(one.copied_bytes for one in report.moved) > MIB
    intact(world)
    assert not placement.rebalance().moved
    world.warm_up()
    assert statuses(placement.rebalance().moved) == [("promote", "done", "")] * 2
    assert world.packs("warm") == world.packs("cold"), "the slower copy stays"
    world.heat.clear()
    world.age(100 * 86_400)
    report = placement.rebalance()
    assert statuses(report.moved) == [("drop", "done", "")] * 2
    assert [one.copied_bytes for one in report.moved] == [0, 0]
    intact(world)


def test_what_is_pinned_stays_also_when_it_is_pinned_after_the_plan(world: World) -> None:
    with world.open() as store:
        first, second = (store.resolve(f"m@{n}").digest for n in (1, 2))
        placement = world.placement(store)
        store.pins.add(first, "m@1", ["warm"])
        plan = placement.plan()
        assert {move.pack for move in plan.moves} == world.packs("warm") - set(
            placement.packs_of(first)
        )
        store.pins.add(second, "m@2", ["warm"])
        placement.plan = lambda: plan  # type: ignore[method-assign]
        report = placement.rebalance()
        assert [one.status for one in report.moved] == ["skipped"]
        assert "it was pinned since" in report.moved[0].why
        assert len(world.packs("warm")) == 2
        store.pins.remove(second)
        del placement.plan
        assert statuses(placement.rebalance().moved) == [("drop", "done", "")]
    intact(world)


def test_the_order_of_a_demotion(world: World) -> None:
    world.placement().rebalance()
    first = [
        (name, op) for name, op, key in world.calls
        if "packs/" in key and op in {"put", "get_ranges", "delete", "info"} and "/" in key[6:]
    ]  # fmt: skip
    assert first[: len(first) // 2] == [
        ("cold", "info"), ("warm", "info"), ("warm", "get_ranges"), ("cold", "put"),
        ("cold", "info"), ("cold", "get_ranges"), ("warm", "delete"), ("cold", "info"),
    ]  # fmt: skip


def jobs(world: World) -> dict[str, Callable[[Placement], object]]:
    """What a mover does: each from a world of its own, prepared in place."""
    return {
        "demote": lambda placement: placement.rebalance(),
        "drain": lambda placement: placement.drain("warm"),
        "move to home": lambda p: p.move(world.packs("warm"), "home"),
    }


@pytest.mark.parametrize("job", ["demote", "drain", "move to home"])
def test_killed_at_every_step(tmp_path: Path, job: str) -> None:
    """The n-th call of any store is the last that has an effect."""

    def fresh(n: int) -> World:
        made = World(tmp_path / f"{n}")
        with made.open() as store:
            store.save("m", FIRST, base=None)
            store.save("m", SECOND, base=None)
        made.age(100 * 86_400)
        made.draining = {"warm"} if job == "drain" else set()
        made.calls.clear()
        return made

    counting = fresh(-1)
    jobs(counting)[job](counting.placement())
    total, target = (
        len(counting.calls),
        {name: len(counting.packs(name)) for name in counting.stores},
    )
    assert total > 20
    killed = 0
    for n in range(total):
        world = fresh(n)
        seen = 0

        def die(op: str, key: str, number: int, n: int = n) -> Fault:
            nonlocal seen
            seen += 1
            if seen > n:
                raise Crashed(op)
            return None

        world.plans = dict.fromkeys(world.stores, die)
        with contextlib.suppress(Crashed):
            jobs(world)[job](world.placement())
            raise AssertionError("it was not killed")
        killed += 1
        intact(world)
        world.forget_movers()
        jobs(world)[job](world.placement())
        intact(world)
        assert {name: len(world.packs(name)) for name in world.stores} == target, n
    assert killed == total


FAULTS: list[tuple[str, str, Fault]] = [
    ("cold", "put", OutOfSpace("the disk is full")),
    ("cold", "put", "lose-response"),
    ("cold", "put", "truncate"),
    ("cold", "put", "flip"),
    ("cold", "get_ranges", "flip"),
    ("cold", "get_ranges", Unreachable("no answer")),
    ("cold", "info", Unreachable("no answer")),
    ("cold", "get_ranges", NotFound("gone")),
    ("warm", "get_ranges", "flip"),
    ("warm", "get_ranges", Unreachable("no answer")),
    ("warm", "delete", Unreachable("no answer")),
    ("warm", "delete", "lose-response"),
]


@pytest.mark.parametrize(("name", "op", "fault"), FAULTS, ids=lambda value: str(value)[:20])
def test_a_tier_that_fails_loses_nothing(world: World, name: str, op: str, fault: Fault) -> None:
    before = world.packs("warm")
    world.plans = {name: lambda o, key, n: fault if o == op and "packs/" in key else None}
    report = world.placement().rebalance()
    assert not report.complete
    assert {one.status for one in report.moved} <= {"failed", "skipped"}
    assert all(one.why for one in report.moved)
    lost = (name, op) == ("warm", "delete") and fault == "lose-response"
    assert world.packs("warm") == (before - world.packs("cold") if lost else before)
    intact(world)
    assert world.placement().rebalance().complete
    assert (world.packs("warm"), world.packs("cold")) == (set(), before)
    intact(world)


def test_a_full_target_is_not_tried_again_and_again(world: World) -> None:
    world.plans = {"cold": lambda op, key, n: OutOfSpace("full") if op == "put" else None}
    report = world.placement().rebalance()
    assert [one.status for one in report.moved] == ["failed", "skipped"]
    assert "has no room" in report.moved[1].why
    assert sum(op == "put" for name, op, _ in world.calls if name == "cold") == 1


def test_a_damaged_source_is_not_copied_and_a_good_copy_elsewhere_is(world: World) -> None:
    store = world.stores["warm"].inner
    keys = [info.key for info in store.list("packs/")]
    good = {key: bytes(store.get(key)) for key in keys}
    for key in keys:
        data = bytearray(good[key])
        data[len(data) // 2] ^= 1
        store.put(key, data)
    world.age(100 * 86_400)
    report = world.placement().rebalance()
    assert [one.status for one in report.moved] == ["failed"] * 2
    assert "is damaged" in report.moved[0].why
    assert not world.packs("cold"), "no damaged copy was made"
    assert len(world.packs("warm")) == 2
    world.stores["home"].inner.put(keys[0], good[keys[0]])
    placement = world.placement()
    wanted = bytes.fromhex(keys[0].rpartition("/")[2])
    assert statuses(placement.move([wanted], "cold").moved) == [("demote", "done", "")]
    assert placement.stats.damaged == 1
    assert bytes(world.stores["cold"].inner.get(keys[0])) == good[keys[0]]


def test_a_damaged_copy_in_the_target_is_not_relied_on(world: World) -> None:
    warm, cold = world.stores["warm"].inner, world.stores["cold"].inner
    for info in list(warm.list("packs/")):
        data = bytearray(warm.get(info.key))
        data[len(data) // 2] ^= 1
        cold.put(info.key, data)
    report = world.placement().rebalance()
    assert statuses(report.moved) == [("drop", "done", "")] * 2
    assert all(one.copied_bytes for one in report.moved), "it was written again"
    intact(world)


@pytest.mark.parametrize("forged", ["warm", "cold"])
def test_a_copy_with_right_checksums_of_other_bytes_is_not_relied_on(
    world: World, forged: str
) -> None:
    """Whoever can write to a tier can make checksums, but no digest."""
    warm, cold = world.stores["warm"].inner, world.stores["cold"].inner
    with world.open() as store:
        store.save("raw", {"w": WORDS}, base=None)
        where = place(store, "raw")
    key = pack_key(where.pack)
    good = bytes(warm.get(key))
    if forged == "cold":
        cold.put(key, good)
    spoil(world.stores[forged].inner, where, 1234, sums=True)
    [moved] = world.placement().move([where.pack], "cold").moved
    if forged == "warm":
        assert moved.status == "failed"
        assert "does not match its digest" in moved.why
        assert not world.packs("cold")
    else:
        assert (moved.status, moved.copied_bytes) == ("done", len(good)), "it was written again"
        assert cold.get(key) == good
        assert where.pack not in world.packs("warm")


def test_a_copy_that_vanishes_while_the_other_one_is_dropped_is_put_back(world: World) -> None:
    """What another mover could do that took this one for dead."""
    cold = world.stores["cold"].inner

    def vanish(op: str, key: str, n: int) -> Fault:
        if op == "delete":
            cold.delete([key])
        return None

    world.plans = {"warm": vanish}
    before = world.packs("warm")
    report = world.placement().rebalance()
    assert all("vanished" in one.why for one in report.moved)
    assert world.packs("warm") == before
    intact(world)


def test_a_pack_that_was_condemned_since_the_plan_is_left_where_it_is(world: World) -> None:
    """A collector deletes it everywhere, and may have done so in the target already."""
    store = world.open()
    before = world.packs("warm")

    gc = world.stores["home"].inner
    done: list[str] = []

    def plan(op: str, key: str, n: int) -> Fault:
        if op == "put" and key.startswith("packs/") and not done:
            done.append(key)
            condemn(gc, *(pack.hex() for pack in before))
        return None

    world.plans = {"cold": plan}
    report = world.placement(store).rebalance()
    assert report.moved
    assert {one.why for one in report.moved} == {"it is condemned: garbage collection deletes it"}
    assert world.packs("warm") == before
    assert "warm" not in world.deletes()


def test_a_collected_pack_is_not_put_back(world: World) -> None:
    cold, home = world.stores["cold"].inner, world.stores["home"].inner

    def collect(op: str, key: str, n: int) -> Fault:
        if op == "delete":
            condemn(home, key)
            cold.delete([key])
        return None

    world.plans = {"warm": collect}
    before = world.packs("warm")
    report = world.placement().rebalance()
    assert [one.status for one in report.moved] == ["done"] * len(before)
    assert not world.packs("warm")
    assert not world.packs("cold")


def test_a_target_that_is_gone_once_it_was_written_lets_nothing_go(world: World) -> None:
    """Its file system was unmounted between the look at the copy and the deletion."""
    cold = world.stores["cold"].inner
    store = world.open()
    store._parts.home.packs.tiers = tuple(
        replace(tier, store_id="s") if tier.name == "cold" else tier
        for tier in store._parts.home.packs.tiers
    )
    claim(cold, "cold", "s", (), store._parts.home.identity.made)

    def unmount(op: str, key: str, n: int) -> Fault:
        if op == "get_ranges":
            cold.delete([MARKER])
        return None

    world.plans = {"cold": unmount}
    before = world.packs("warm")
    report = world.placement(store).rebalance()
    assert {one.status for one in report.moved} <= {"failed", "skipped"}
    assert world.packs("warm") == before
    intact(world)


@pytest.mark.parametrize(
    ("kind", "source", "target"), [("drop", "cold", "warm"), ("drain", "warm", "cold")]
)
def test_a_plan_that_breaks_the_rules_is_not_carried_out(
    world: World, kind: MoveKind, source: str, target: str
) -> None:
    """Nothing is dropped for a faster copy, nor from a tier that is not drained."""
    for info in world.stores["warm"].inner.list("packs/"):
        world.stores["cold"].inner.put(info.key, world.stores["warm"].inner.get(info.key))
    world.age(100 * 86_400)
    placement = world.placement()
    moves = [
        replace(move, kind=kind, source=source, target=target, copies=False)
        for move in placement.plan().moves
    ]
    assert len(moves) == 2
    placement.plan = lambda: Plan(tuple(moves), ())  # type: ignore[method-assign]
    assert [one.status for one in placement.rebalance().moved] == ["failed"] * 2
    assert world.deletes() == []
    intact(world)


def test_a_mover_that_lost_its_lease_deletes_nothing_more(world: World) -> None:
    home = world.stores["home"].inner

    def take_over(moved: Moved) -> None:
        other = MoverLease(seq=2, id="f" * 32, who="o@h", host="h", pid=1, ttl_s=60)
        home.put("movers/000000002", seal_body(Kind.MOVER, other))

    with pytest.raises(Conflict, match="another mover has taken over"):
        world.placement().rebalance(progress=take_over)
    assert world.deletes() == ["warm"]
    intact(world)
    with pytest.raises(Conflict, match="o@h, process 1 on h; if it is gone its lease ends in 6"):
        world.placement().rebalance()


def test_a_lease_that_lapsed_unseen_is_taken_again(world: World) -> None:
    clock = [0.0]
    with HeldLease(world.stores["home"], clock=lambda: clock[0]) as lease:
        clock[0] = 100.0
        lease.check()
        assert [i.key for i in world.stores["home"].inner.list("movers/")][-1] == "movers/000000002"
        clock[0] = 130.0
        world.stores["home"].plan = lambda op, key, n: Unreachable("no answer")
        lease.keep()
        with pytest.raises(Conflict, match="it is unknown whether"):
            lease.check()
        clock[0] = 161.0
        with pytest.raises(Conflict, match="home could not be reached"):
            lease.keep()
        world.stores["home"].plan = None
    with HeldLease(world.stores["home"]):
        assert [i.key for i in world.stores["home"].inner.list("movers/")] == ["movers/000000003"]


def test_who_hangs_keeps_no_right_for_ever(world: World) -> None:
    """It is renewed beside the work, but not after 8 hours in which the work did not go on."""
    now_s, asked = [0.0], [0]

    def clock() -> float:
        asked[0] += 1
        return now_s[0]

    def puts() -> int:
        return len([op for op, key in world.stores["home"].calls if op.startswith("put")])

    right = Right("sweeps/", "garbage collection", ttl_s=1)
    with HeldLease(world.stores["home"], right, clock=clock) as lease, lease.kept():
        wait_until(lambda: asked[0] > 5, "the thread that renews it")
        now_s[0] = 3600.0
        wait_until(lambda: lease._renewed == 3600.0, "that it is renewed")
        now_s[0], before = 8 * 3600.0 + 1, puts()
        asked[0] = 0
        wait_until(lambda: asked[0] > 3, "the thread that renews it")
        assert puts() == before
        lease.check()
        assert lease._renewed == now_s[0], "who goes on has it again, unless another has"


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("successors", [1, 2, 3])
def test_a_mover_that_others_came_after_knows(world: World, asleep: bool, successors: int) -> None:
    """Each of them removes all lower leases, so that the next number is free again."""
    clock = [100.0]
    home = world.stores["home"]
    held = HeldLease(home, clock=lambda: clock[0])
    with held:
        world.age(100)
        clock[0] += 0 if asleep else 100  # a clock that stands still while the machine sleeps
        for number in range(successors):
            last = HeldLease(home)
            last.__enter__()
            if number + 1 < successors:
                last.__exit__(None, None, None)
        with pytest.raises(Conflict, match="another mover has taken over"):
            held.check()
        last.check()
        leases = [info.key for info in home.inner.list("movers/")]
        assert leases == [f"movers/{1 + successors:09d}"]


def test_a_mover_that_is_overtaken_while_it_takes_a_number_stops(world: World) -> None:
    """The number was free again because others came, and had gone on."""
    home = world.stores["home"].inner
    clock = [100.0]

    def overtake(op: str, key: str, n: int) -> Fault:
        if op == "put_if_absent" and key == "movers/000000002":
            home.put("movers/000000005", seal_body(Kind.MOVER, lease_of(5)))
        return None

    def lease_of(seq: int) -> MoverLease:
        return MoverLease(seq=seq, id="a" * 32, who="b", host="c", pid=1, ttl_s=60)

    with HeldLease(FaultyStore(home, overtake), clock=lambda: clock[0]) as held:
        clock[0] += 61
        with pytest.raises(Conflict, match="another mover has taken over"):
            held.keep()


def test_a_lease_whose_answer_is_lost_is_ours(world: World) -> None:
    lost = FaultyStore(
        world.stores["home"].inner,
        lambda op, key, n: "lose-response" if op == "put_if_absent" and "movers" in key else None,
    )
    with HeldLease(lost) as lease:
        lease.check()
        leases = [info.key for info in world.stores["home"].inner.list("movers/")]
        assert leases == ["movers/000000001"], "it was taken again"


def test_a_mover_that_is_asked_to_stop_stops(world: World) -> None:
    stop = Event()
    report = world.placement().rebalance(stop=stop, progress=lambda moved: stop.set())
    assert (len(report.moved), report.stopped, report.complete) == (1, True, False)
    intact(world)
    assert world.placement().rebalance().complete


def test_two_movers_at_once(tmp_path: Path) -> None:
    """One works, the other is refused; whoever wins the race for the lease."""
    wins = 0
    for round_number in range(6):
        world = World(tmp_path / f"{round_number}")
        with world.open() as store:
            store.save("m", FIRST, base=None)
            store.save("m", SECOND, base=None)
        world.age(100 * 86_400)
        barrier = Barrier(3)

        def work(world: World = world, barrier: Barrier = barrier) -> bool:
            placement = world.placement()
            barrier.wait()
            try:
                placement.rebalance(budget=Budget(100 * MIB))
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(3) as pool:
            done = [future.result() for future in [pool.submit(work) for _ in range(3)]]
        wins += sum(done)
        assert any(done)
        assert len(world.packs("cold")) == 2
        assert len(world.deletes()) == 2, "each was dropped once"
        intact(world)
    assert wins < 18, "nobody was ever refused"


def test_a_quota_is_kept_by_saves_and_by_the_mover(tmp_path: Path) -> None:
    world = World(tmp_path, size=3 * MIB, high=90, low=80)
    with world.open() as store:
        for seed in range(1, 5):
            store.save("m", tensors(seed), base=None)
        used = sum(info.size for info in world.stores["warm"].inner.list("packs/"))
        assert used <= 3 * MIB
        assert len(world.packs("cold")) == 0 or used + MIB > 3 * MIB
        assert len(world.packs("warm") | world.packs("cold")) == 4
        world.warm_up()
        report = world.placement(store).rebalance()
        assert not report.moved or report.complete
        assert sum(info.size for info in world.stores["warm"].inner.list("packs/")) <= 3 * MIB
        for seed in range(1, 5):
            equal(store.load(f"m@{seed}").load(), tensors(seed))


def test_deltas_and_their_bases_move_together(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = {"w": np.random.default_rng(5).standard_normal(400_000, np.float32)}
    second = {"w": first["w"] + np.float32(1e-6)}
    with world.open() as store:
        store.save("m", first)
        stats = store.save("m", second).stats
        assert stats is not None
    world.age(100 * 86_400)
    placement = world.placement()
    base, delta = (placement.packs_of(world.open().resolve(f"m@{n}").digest) for n in (1, 2))
    assert set(base) < set(delta), "the second version has deltas"
    moves = placement.plan().moves
    assert [move.pack for move in moves] == [*(set(delta) - set(base)), *base]
    placement.rebalance()
    only = next(iter(set(delta) - set(base)))
    world.heat = {only: 99 * MIB}
    assert [one.move.pack for one in placement.rebalance().moved] == [*base, only]
    with world.open() as store:
        equal(store.load("m@2").load(), second)


def test_moving_and_draining_as_asked(world: World) -> None:
    with world.open() as store:
        packs = store.placement.packs_of(store.resolve("m@1").digest)
    placement = world.placement()
    assert placement.move(packs, "cold").complete
    assert world.packs("cold") == set(packs)
    assert placement.not_warm(world.open().resolve("m@1").digest) == packs
    assert statuses(placement.warm(world.open().resolve("m@1").digest).moved) == [
        ("promote", "done", "")
    ]
    assert placement.warm(world.open().resolve("m@1").digest).moved == []
    assert placement.not_warm(world.open().resolve("m@1").digest) == []
    with pytest.raises(NotFound, match="no durable tier 'ice'; the store's are: warm, cold, home"):
        placement.move(packs, "ice")
    with pytest.raises(UsageError, match="still takes new packs"):
        placement.drain("warm")
    world.draining = {"warm"}
    placement = world.placement()
    with pytest.raises(UsageError, match="is being drained"):
        placement.move(packs, "warm")
    assert placement.drain("warm").complete
    assert (len(world.packs("warm")), len(world.packs("cold"))) == (0, 2)
    intact(world)


def test_a_tier_that_cannot_be_asked_is_left_alone(world: World) -> None:
    world.plans = {"cold": lambda op, key, n: Unreachable("no answer")}
    plan = world.placement().plan()
    assert not plan.moves
    assert "tier cold could not be asked" in plan.notes[0]
    assert isinstance(plan, Plan)


def test_what_is_no_pack_is_left_alone(world: World) -> None:
    world.stores["warm"].inner.put("packs/ab/notes", b"not ours")
    assert world.placement().rebalance().complete
    left = [info.key for info in world.stores["warm"].inner.list("packs/")]
    assert left == ["packs/ab/notes"]


def test_the_budget_is_kept() -> None:
    clock = [0.0]
    budget = Budget(10 * MIB, clock=lambda: clock[0])
    waited = 0.0
    for _ in range(50):
        clock[0] += 0.01
        rest = budget.wait_s(MIB, 0.01)
        waited += rest
        clock[0] += rest
    assert clock[0] == pytest.approx(5, rel=0.05)
    assert Budget(share=0.25).wait_s(MIB, 2.0) == pytest.approx(6)
    assert Budget().wait_s(MIB, 2.0) == 0
    with pytest.raises(ValueError, match="no budget"):
        Budget(share=0)


# A real process that is killed

_MOVE = """
import sys, tierstore
from tierstore.tiers.durable.budget import Budget
from tierstore.tiers.durable.marker import MARKER, claim
store = tierstore.open(sys.argv[1])
placement = store.placement
print("ready", flush=True)
placement.rebalance(
    budget=Budget(20 << 20), progress=lambda moved: print(moved.status, flush=True)
)
"""


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_kill_9_in_the_middle(tmp_path: Path, moves: int) -> None:
    warm, cold = tmp_path / "warm", tmp_path / "cold"
    tiers = [
        TierSpec(name="warm", role="warm", url=warm.as_uri()),
        TierSpec(name="cold", role="cold", url=cold.as_uri()),
    ]
    versions = [tensors(seed) for seed in range(1, 6)]
    with tierstore.init(tmp_path / "store", chunk_size=MIB, tiers=tiers) as store:
        for content in versions:
            store.save("m", content, base=None)
    old = time.time() - 100 * 86_400
    for path in warm.rglob("*"):
        os.utime(path, (old, old))
    process = python(_MOVE, tmp_path / "store")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(moves):
        assert process.stdout.readline() == "done\n"
    wait_until(lambda: any((tmp_path / "store").glob("movers/*")), "it holds its lease")
    process.send_signal(signal.SIGKILL)
    process.communicate()

    def check(store: Store) -> None:
        for number, content in enumerate(versions, 1):
            equal(store.load(f"m@{number}").load(), content)
        assert store.check(read_data=True).findings == []

    with tierstore.open(tmp_path / "store") as store:
        placement = Placement(store._parts.home, store.pins)  # our own reads do not count
        check(store)
        with pytest.raises(Conflict, match=f"process {process.pid} on "):
            placement.rebalance()
        for path in (tmp_path / "store").glob("movers/*"):  # a minute later
            os.utime(path, (old, old))
        report = placement.rebalance()
        assert report.complete, statuses(report.moved)
        check(store)
        assert not list(warm.rglob("packs/*/*"))
        assert len(list(cold.rglob("packs/*/*"))) == 5
