"""Staged rollouts: who gets what, what is refused, and that going back is one entry."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import created, settings
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, GateClosed, NotFound, UsageError
from tierstore.format.reflog import FULL_SHARE
from tierstore.ids import Digest
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.refs import RefLog
from tierstore.modelstore.names.reports import parse_gate, parse_stages
from tierstore.modelstore.names.rollout import Rollouts, RolloutStatus, advance
from tierstore.modelstore.store import Store

NODES = [f"node-{number}" for number in range(400)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with created(MemoryStore(), tmp_path) as store:
        for number in range(3):
            store.save("m", {"w": np.full(9, number, np.float32)})
        store.alias("m", "prod", "m@1")
        yield store


def served(store: Store, cache: Path, labels: dict[str, str] | None = None) -> list[int]:
    """The version that ``m@prod`` means to each node."""
    found = []
    for name in NODES:
        mine = replace(settings(cache), node=name, labels=labels or {})
        found.append(Store(store._parts.home.blobs, mine).resolve("m@prod").number)
    return found


def test_a_rollout_goes_up_and_ends(store: Store, tmp_path: Path) -> None:
    rollouts = store.rollouts
    status: RolloutStatus | None = rollouts.start(
        "m", "prod", store.resolve("m@2"), message="nightly"
    )
    shares = [served(store, tmp_path)]
    while status is not None:
        assert (status.old.number, status.new.number) == (1, 2)
        status = rollouts.step("m", "prod")
        shares.append(served(store, tmp_path))
    new = [sum(number == 2 for number in share) for share in shares]
    assert new == sorted(new)
    assert new[0] <= 12
    assert new[-2:] == [len(NODES)] * 2
    for before, after in pairwise(shares):
        assert all(late >= early for early, late in zip(before, after, strict=True))
    assert store.resolve("m@prod").number == 2
    actions = [entry.action for entry in store.history("m", "prod")]
    assert actions == ["finish", "step", "step", "step", "start", "set"]
    with pytest.raises(NotFound):
        rollouts.status("m", "prod")


@pytest.mark.parametrize("how", ["abort", "rollback"])
def test_going_back_is_one_small_object(store: Store, tmp_path: Path, how: str) -> None:
    rollouts = store.rollouts
    rollouts.start("m", "prod", store.resolve("m@2"), stages=parse_stages("50,100"))
    assert 2 in served(store, tmp_path)
    before = {info.key for info in store._parts.home.blobs.list("refs/")}
    if how == "abort":
        assert rollouts.abort("m", "prod", message="p99").number == 1
    else:
        assert store.rollback("m", "prod", message="p99").version.number == 1
    after = {info.key for info in store._parts.home.blobs.list("refs/")}
    assert len(after - before) == 1
    assert set(served(store, tmp_path)) == {1}
    assert store.history("m", "prod", limit=1)[0].message == "p99"
    with pytest.raises(NotFound):
        rollouts.abort("m", "prod")


def test_rollback_after_a_rollout_goes_to_the_old_version(store: Store) -> None:
    rollouts = store.rollouts
    store.alias("m", "prod", "m@3")
    rollouts.start("m", "prod", store.resolve("m@2"), stages=parse_stages("100"))
    assert rollouts.step("m", "prod") is None
    assert store.rollback("m", "prod").version.number == 3
    assert store.rollback("m", "prod").version.number == 1


def test_the_old_version_is_pinned_until_it_is_over(store: Store) -> None:
    rollouts, pins = store.rollouts, Pins(store._parts.home.blobs)
    rollouts.start("m", "prod", store.resolve("m@2"), stages=parse_stages("100"))
    assert [(pin.version, pin.roles) for pin in pins.active()] == [
        (store.resolve("m@1").digest, ("hot", "warm"))
    ]
    rollouts.step("m", "prod")
    assert pins.active() == []
    pins.add(store.resolve("m@2").digest, "mine", ["warm"])
    rollouts.start("m", "prod", store.resolve("m@3"))
    assert sorted(pin.ref for pin in pins.active()) == ["mine", "rollout of m@prod"]
    rollouts.abort("m", "prod")
    assert [pin.ref for pin in pins.active()] == ["mine"], "a user's own pin stays"


def test_the_variants_that_nodes_serve_are_pinned_too(tmp_path: Path) -> None:
    with created(MemoryStore(), tmp_path) as store:
        for number in range(2):
            store.save("m", {"w": np.full((64, 64), number, np.float32)})
        store.alias("m", "prod", "m@1")
        kept = tierstore.derive(store, "m@1", {"cast": "bf16"})
        tierstore.derive(store, "m@2", {"cast": "bf16"})
        store.rollouts.start("m", "prod", store.resolve("m@2"))
        assert {pin.version for pin in store.pins.active()} == {
            store.resolve("m@1").digest, kept.digest,
        }  # fmt: skip


def test_each_rollout_holds_a_pin_of_its_own(store: Store) -> None:
    rollouts, pins = store.rollouts, Pins(store._parts.home.blobs)
    store.alias("m", "canary", "m@1")
    for alias in ("prod", "canary"):
        rollouts.start("m", alias, store.resolve("m@2"))
    rollouts.abort("m", "canary")
    assert [(pin.ref, pin.version) for pin in pins.active()] == [
        ("rollout of m@prod", store.resolve("m@1").digest)
    ], "the other rollout still needs it"
    store.rollback("m", "prod")
    assert pins.active() == []


def test_pins_of_a_process_that_died_are_tidied_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts, pins = store.rollouts, Pins(store._parts.home.blobs)
    rollouts.start("m", "prod", store.resolve("m@2"))
    with monkeypatch.context() as dying:
        dying.setattr(Rollouts, "settle", lambda *_: None)
        rollouts.abort("m", "prod")
    assert len(pins.active()) == 1
    rollouts.settle_all()
    assert rollouts.running() == []
    assert pins.active() == []


def test_who_loses_the_start_leaves_no_pin(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = store.rollouts
    held = Rollouts._hold

    def faster(self: Rollouts, log: RefLog, versions: list[Digest]) -> None:
        held(self, log, versions)
        monkeypatch.setattr(Rollouts, "_hold", held)
        store.alias("m", "prod", "m@3")

    monkeypatch.setattr(Rollouts, "_hold", faster)
    with pytest.raises(Conflict, match="somebody else changed"):
        rollouts.start("m", "prod", store.resolve("m@2"))
    assert Pins(store._parts.home.blobs).active() == []


@pytest.mark.parametrize("how", ["abort", "rollback"])
def test_going_back_takes_less_than_a_second(tmp_path: Path, how: str) -> None:
    """The bound of the feature, on a directory, whatever the model's size."""
    with tierstore.init(tmp_path / "store") as store:
        big = np.random.default_rng(0).standard_normal((1024, 4096), np.float32)
        for number in (0, 1):
            store.save("m", {"w": big + np.float32(number)})
        store.alias("m", "prod", "m@1")
        store.rollouts.start("m", "prod", store.resolve("m@2"))
        packs = {info.key for info in store._parts.home.blobs.list("packs/")}
        began = time.monotonic()
        if how == "abort":
            store.rollouts.abort("m", "prod")
        else:
            store.rollback("m", "prod")
        assert time.monotonic() - began < 1
        assert {info.key for info in store._parts.home.blobs.list("packs/")} == packs


def test_gates_wait_for_reports_and_close(store: Store) -> None:
    rollouts = store.rollouts
    new = store.resolve("m@2")
    rollouts.report(new, "early", {"p99_ms": "1"})
    rollouts.start("m", "prod", new, gates=[parse_gate("p99_ms <= 12.5")])
    with pytest.raises(GateClosed, match="no node that serves m@2 has reported p99_ms"):
        rollouts.step("m", "prod")
    rollouts.report(store.resolve("m@1"), "other", {"p99_ms": "1"})
    rollouts.report(new, "slow", {"p99_ms": "40"})
    rollouts.report(new, "fast", {"p99_ms": "2", "auc": "0.7"})
    with pytest.raises(GateClosed, match="its mean is 21, from 2 nodes"):
        rollouts.step("m", "prod")
    (state,) = rollouts.status("m", "prod").gates
    assert (sorted(state.values), state.passes) == (["2", "40"], False)
    rollouts.report(new, "slow", {"p99_ms": "3"})
    status = rollouts.step("m", "prod")
    assert status is not None
    assert status.rollout.stage == 1
    assert status.gates[0].passes is None, "each stage asks anew"
    assert rollouts.step("m", "prod", force=True) is not None


def test_a_damaged_report_counts_as_none(store: Store) -> None:
    rollouts = store.rollouts
    new = store.resolve("m@2")
    rollouts.start("m", "prod", new, gates=[parse_gate("p99_ms<=12.5")])
    rollouts.report(new, "a", {"p99_ms": "1"})
    (info,) = store._parts.home.blobs.list("reports/")
    store._parts.home.blobs.put(info.key, b"cut short")
    with pytest.raises(GateClosed, match="has reported"):
        rollouts.step("m", "prod")


def test_steps_are_not_early_and_keep_to_windows(store: Store) -> None:
    now_s = time.time()
    rollouts = Rollouts(store._names, lambda: now_s)
    status = rollouts.start(
        "m", "prod", store.resolve("m@2"), every_s=1800, windows=["02:00-04:00"]
    )
    assert status.due is not None
    with pytest.raises(GateClosed, match="is due at"):
        rollouts.step("m", "prod")
    assert advance(rollouts, status) == "waiting"
    now_s = status.due.replace(hour=12, minute=0).timestamp() + 86_400
    with pytest.raises(GateClosed, match="window 02:00-04:00 UTC"):
        rollouts.step("m", "prod")
    now_s += 15 * 3600
    assert advance(rollouts, status) == "stepped"
    for _ in range(2):
        assert advance(rollouts, rollouts.status("m", "prod")) in {"stepped", "waiting"}


def test_a_pause_holds_everything(store: Store, tmp_path: Path) -> None:
    rollouts = store.rollouts
    rollouts.start("m", "prod", store.resolve("m@2"), stages=parse_stages("30,100"))
    before = served(store, tmp_path)
    rollouts.pause("m", "prod")
    assert served(store, tmp_path) == before
    for call in (rollouts.step, rollouts.pause):
        with pytest.raises(Conflict, match="paused"):
            call("m", "prod")
    assert not rollouts.resume("m", "prod").rollout.paused
    with pytest.raises(Conflict, match="not paused"):
        rollouts.resume("m", "prod")
    assert rollouts.step("m", "prod") is not None


def test_an_alias_in_a_rollout_is_not_moved_by_others(store: Store) -> None:
    rollouts = store.rollouts
    rollouts.start("m", "prod", store.resolve("m@2"))
    for change in (
        lambda: store.alias("m", "prod", "m@3"),
        lambda: store.remove_alias("m", "prod"),
        lambda: rollouts.start("m", "prod", store.resolve("m@3")),
    ):
        with pytest.raises(Conflict):
            change()
    assert rollouts.status("m", "prod").new.number == 2


def test_bad_starts_change_nothing(store: Store) -> None:
    rollouts = store.rollouts
    two = store.resolve("m@2")
    with pytest.raises(NotFound, match="m@none does not exist"):
        rollouts.start("m", "none", two)
    with pytest.raises(UsageError, match="already"):
        rollouts.start("m", "prod", store.resolve("m@1"))
    with pytest.raises(UsageError):
        rollouts.start("m", "prod", two, windows=["25:00-26:00"])
    # readers would call such an entry damaged, and the alias with it
    for stages in ([50, 100], [], [FULL_SHARE, 100], [100, 100, FULL_SHARE]):
        with pytest.raises(UsageError):
            rollouts.start("m", "prod", two, stages=stages)
    with pytest.raises(NotFound):
        rollouts.start("m", "prod", store.resolve("m@9"))
    assert len(list(store.history("m", "prod"))) == 1
    assert Pins(store._parts.home.blobs).active() == []


@pytest.mark.parametrize("text", ["", "10", "50,10,100", "0,100", "x,100", "10,10,100", "1e400"])
def test_stages_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_stages(text)


@pytest.mark.parametrize("text", ["", "p99", "p99<12", "p99<=x", "<=3", "p99<=1e5"])
def test_gates_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gate(text)


def test_stages_and_gates_as_people_write_them() -> None:
    assert parse_stages("0.5, 1,12.25,100") == [50, 100, 1225, 10000]
    gate = parse_gate("auc >= -0.5")
    assert (gate.metric, gate.op, gate.limit) == ("auc", ">=", "-0.5")


class _Meeting(MemoryStore):
    """Lets two administrators read the same entry before either writes the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier: threading.Barrier | None = None

    def put_if_absent(self, key: str, data: object) -> bool:
        if self.barrier is not None and key.startswith("refs/"):
            self.barrier.wait(60)
        return super().put_if_absent(key, data)  # type: ignore[arg-type]


def test_of_two_who_step_at_once_one_wins(tmp_path: Path) -> None:
    blobs = _Meeting()
    with created(blobs, tmp_path) as store:
        for number in range(2):
            store.save("m", {"w": np.full(9, number, np.float32)})
        store.alias("m", "prod", "m@1")
        store.rollouts.start("m", "prod", store.resolve("m@2"))
        blobs.barrier = threading.Barrier(2)
        results: list[object] = []

        def step(home: BlobStore) -> None:
            try:
                own = Store(home, settings(tmp_path))
                results.append(own.rollouts.step("m", "prod"))
            except Conflict as error:
                results.append(error)

        threads = [threading.Thread(target=step, args=(blobs,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        blobs.barrier = None
        assert sum(isinstance(result, Conflict) for result in results) == 1, results
        assert store.rollouts.status("m", "prod").rollout.stage == 1


def test_a_step_from_what_was_seen_before_another_ones_is_refused(tmp_path: Path) -> None:
    with created(MemoryStore("late"), tmp_path) as store:
        for number in range(2):
            store.save("m", {"w": np.full(9, number, np.float32)})
        store.alias("m", "prod", "m@1")
        late, quick = Rollouts(store._names), Rollouts(store._names)
        seen = quick.start("m", "prod", store.resolve("m@2"))
        quick.step("m", "prod")
        late.status = lambda model, alias: seen  # type: ignore[method-assign]
        with pytest.raises(Conflict):
            late.step("m", "prod")
        assert quick.status("m", "prod").rollout.stage == 1
