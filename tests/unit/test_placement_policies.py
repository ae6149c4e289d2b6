"""Every placement policy of the table, held to the contract of ``placement/base.py``."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import ConfigError
from tierstore.placement.base import Access, Admission, PlacementPolicy
from tierstore.placement.policies import DEFAULT_POLICY, POLICIES, make

every = pytest.mark.parametrize("name", sorted(POLICIES))

CAPACITY = 100
KEYS = [b"%02d" % number for number in range(24)]
Op = tuple[Any, ...]

keys = st.sampled_from(KEYS)
sizes = st.one_of(st.integers(1, 20), st.integers(1, 130))
seeds = st.lists(st.tuples(keys, st.floats(0, 50)), unique_by=lambda one: one[0], max_size=8)
ops = st.lists(
    st.one_of(
        st.tuples(st.just("read"), keys, st.floats(0, 100)),
        st.tuples(st.just("record"), keys, st.floats(0, 100)),
        st.tuples(st.just("victims"), st.integers(-5, 150)),
        st.tuples(st.just("seed"), seeds),
        st.tuples(st.just("forget"), keys),
        st.tuples(st.just("pin"), keys),
        st.tuples(st.just("unpin"), keys),
    ),
    max_size=60,
)


class Checked:
    """Drives a policy beside a plain account of what the cache holds, and compares."""

    def __init__(self, policy: PlacementPolicy, sizes: dict[bytes, int]) -> None:
        self.policy, self.sizes = policy, sizes
        self.held: dict[bytes, int] = {}
        self.pinned: set[bytes] = set()
        self.now = 0.0
        self.log: list[object] = []

    def run(self, op: Op) -> None:
        getattr(self, op[0])(*op[1:])
        assert self.policy.used_bytes == sum(self.held.values()), op
        for key in KEYS[:4]:
            told = self.policy.explain(key, self.now)
            assert told["resident"] == ("yes" if key in self.held else "no"), op
            assert all(isinstance(value, float | str) for value in told.values())

    def access(self, key: bytes, after: float) -> Access:
        self.now += after
        return Access(key, self.sizes[key], self.now)

    def record(self, key: bytes, after: float) -> None:
        self.policy.record(self.access(key, after))

    def read(self, key: bytes, after: float) -> None:
        access = self.access(key, after)
        self.policy.record(access)
        answer = self.policy.admit(access)
        self.log.append(answer)
        if key in self.held:
            assert answer.admitted
            assert not answer.victims, "it was there already"
            return
        self._gone(answer.victims)
        if answer.admitted:
            self.held[key] = access.size_bytes
            assert sum(self.held.values()) <= CAPACITY, "above the capacity"
        else:
            assert not answer.victims, "evicted for nothing"

    def victims(self, nbytes: int) -> None:
        free = {key: size for key, size in self.held.items() if key not in self.pinned}
        gone = self.policy.victims(nbytes, self.now)
        self.log.append(gone)
        self._gone(gone)
        freed = sum(free[key] for key in gone)
        assert freed >= nbytes or len(gone) == len(free), "there was more to evict"
        assert not gone or freed - free[gone[-1]] < nbytes, "more than was asked for"

    def seed(self, objects: list[tuple[bytes, float]]) -> None:
        self.policy.seed([(key, self.sizes[key], heat) for key, heat in objects], self.now)
        self.held.update((key, self.sizes[key]) for key, _ in objects)

    def forget(self, key: bytes) -> None:
        self.policy.forget(key)
        self.held.pop(key, None)

    def pin(self, key: bytes) -> None:
        self.policy.pin(key)
        self.pinned.add(key)

    def unpin(self, key: bytes) -> None:
        self.policy.unpin(key)
        self.pinned.discard(key)

    def _gone(self, victims: tuple[bytes, ...]) -> None:
        assert len(set(victims)) == len(victims)
        for victim in victims:
            assert victim in self.held, "a victim that is not there"
            assert victim not in self.pinned, "a pinned victim"
            del self.held[victim]


def sized(seed: int) -> dict[bytes, int]:
    rng = random.Random(seed)
    return {key: rng.choice([rng.randint(1, 20), rng.randint(1, 130)]) for key in KEYS}


@every
@given(st.fixed_dictionaries(dict.fromkeys(KEYS, sizes)), ops)
def test_keeps_the_contract(name: str, sizes: dict[bytes, int], ops: list[Op]) -> None:
    checked = Checked(make(name, CAPACITY), sizes)
    for op in ops:
        checked.run(op)


def random_ops(seed: int, count: int) -> list[Op]:
    rng = random.Random(seed)
    drawn: list[Callable[[], Op]] = [
        lambda: ("read", rng.choice(KEYS), rng.random() * 3),
        lambda: ("read", KEYS[min(int(rng.expovariate(0.3)), 23)], rng.random()),
        lambda: ("victims", rng.randint(0, 30)),
        lambda: ("seed", [(key, rng.random() * 4) for key in rng.sample(KEYS, 2)]),
        lambda: ("forget", rng.choice(KEYS)),
        lambda: ("pin", rng.choice(KEYS[:3])),
        lambda: ("unpin", rng.choice(KEYS[:3])),
    ]
    return [draw() for draw in rng.choices(drawn, [10, 40, 1, 1, 1, 1, 1], k=count)]


def decisions(name: str, seed: int) -> str:
    checked = Checked(make(name, CAPACITY), sized(seed))
    for op in random_ops(seed, 4000):
        checked.run(op)
    return hashlib.sha256(repr(checked.log).encode()).hexdigest()


@every
def test_keeps_the_contract_over_long_runs(name: str) -> None:
    for seed in range(4):
        decisions(name, seed)


@every
def test_decides_the_same_in_every_process(name: str) -> None:
    code = (
        f"from tests.unit.test_placement_policies import decisions\nprint(decisions({name!r}, 7))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True,
            text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert told == {decisions(name, 7) + "\n"}


@every
def test_an_object_above_the_capacity_is_not_admitted(name: str) -> None:
    policy = make(name, 10)
    for time in range(5):
        access = Access(b"big", 11, float(time))
        policy.record(access)
        assert not policy.admit(access).admitted
    assert policy.used_bytes == 0


@every
def test_nothing_is_evicted_for_what_cannot_fit_beside_pinned_objects(name: str) -> None:
    policy = make(name, 10)
    policy.seed([(b"pinned", 6, 1.0), (b"other", 4, 1.0)], 0.0)
    policy.pin(b"pinned")
    for time in range(9):
        access = Access(b"new", 5, float(time))
        policy.record(access)
        assert policy.admit(access) == Admission(False)
    assert policy.used_bytes == 10
    policy.unpin(b"pinned")
    assert set(policy.victims(100, 9.0)) == {b"pinned", b"other"}


@every
def test_a_pin_comes_before_its_object(name: str) -> None:
    policy = make(name, 10)
    policy.pin(b"a")
    access = Access(b"a", 10, 0.0)
    policy.record(access)
    assert policy.admit(access).admitted
    assert policy.victims(10, 1.0) == ()
    policy.forget(b"a")
    assert policy.used_bytes == 0


@every
def test_an_empty_cache_takes_what_fits(name: str) -> None:
    policy = make(name, 100)
    for number in range(10):
        access = Access(b"%d" % number, 10, float(number))
        policy.record(access)
        assert policy.admit(access) == Admission(True)
    assert policy.used_bytes == 100


@every
def test_seeding_prefers_the_hot(name: str) -> None:
    policy = make(name, 100)
    policy.seed([(b"%02d" % n, 5, 9.0 if n % 2 else 0.1) for n in range(20)], 0.0)
    assert {int(key) % 2 for key in policy.victims(40, 1.0)} == {0}


@every
def test_seeding_again_corrects_a_size(name: str) -> None:
    policy = make(name, 100)
    policy.seed([(b"a", 30, 1.0)], 0.0)
    policy.seed([(b"a", 40, 1.0)], 1.0)
    assert policy.used_bytes == 40


@every
def test_a_scan_spares_what_is_read_often(name: str) -> None:
    policy = make(name, 100)
    hot, missed = [b"hot%d" % number for number in range(5)], 0
    held: set[bytes] = set()
    for number in range(2000):
        for key in (hot[number % 5], b"once%d" % number):
            access = Access(key, 10, float(number))
            policy.record(access)
            if key in held:
                continue
            missed += key in hot
            admission = policy.admit(access)
            held -= set(admission.victims)
            held |= {key} if admission.admitted else set()
    assert missed <= 20, f"{missed} of 2000 reads of five hot objects missed"


def lines_run(policy: PlacementPolicy, accesses: list[Access]) -> int:
    """Python lines that these accesses execute."""
    count = 0

    def tracer(frame: object, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        for access in accesses:
            policy.record(access)
            policy.admit(access)
    finally:
        sys.settrace(before)
    return count


@every
def test_an_access_costs_the_same_in_a_large_cache(name: str) -> None:
    def per_access(objects: int) -> float:
        rng = random.Random(5)
        policy = make(name, objects * 10)

        def accesses(count: int) -> list[Access]:
            return [
                Access(b"%d" % min(int(rng.paretovariate(0.4)), 8 * objects), 10, float(time))
                for time in range(count)
            ]

        for access in accesses(4 * objects):
            policy.record(access)
            policy.admit(access)
        return lines_run(policy, accesses(3000)) / 3000

    small, large = per_access(200), per_access(6400)
    assert large < 2 * small + 20, f"{small:.0f} lines with 200 residents, {large:.0f} with 6400"


def test_are_chosen_by_name() -> None:
    assert DEFAULT_POLICY in POLICIES
    for name in POLICIES:
        policy = make(name, 5)
        assert (policy.name, policy.capacity_bytes, policy.used_bytes) == (name, 5, 0)
    with pytest.raises(ConfigError, match=r"no placement policy 'belady'; use one of: .*s3fifo"):
        make("belady", 5)
    with pytest.raises(ConfigError, match="-1 bytes"):
        make("s3fifo", -1)
