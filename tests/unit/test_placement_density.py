"""Value density: the ranking against a plain scan, the admission, and what the trials choose."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable
from math import exp2, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.placement.base import Access
from tierstore.placement.density import DEFAULT_KNOBS, ValueDensity
from tierstore.placement.ranked import CacheEntry, Knobs, RankedCache

HOUR = 3600.0
KEYS = [b"%02d" % number for number in range(12)]


class Scanned:
    """What ``RankedCache`` promises, by looking at every resident each time."""

    def __init__(self, capacity: int, knobs: Knobs) -> None:
        self.capacity, self.knobs = capacity, knobs
        self.heat: dict[bytes, tuple[float, float]] = {}
        self.held: dict[bytes, int] = {}

    def score(self, key: bytes) -> float:
        heat, last = self.heat[key]
        return log2(heat) + last / self.knobs.half_life_s

    def read(self, key: bytes, time: float) -> None:
        heat, last = self.heat.get(key, (0.0, time))
        self.heat[key] = (1.0 + heat * exp2(-(time - last) / self.knobs.half_life_s), time)

    def admit(self, key: bytes, size: int, time: float) -> set[bytes] | None:
        order = sorted(self.held, key=self.score)
        victims: list[bytes] = []
        while sum(self.held.values()) - sum(self.held[v] for v in victims) + size > self.capacity:
            victims.append(order[len(victims)])
        cost = sum(
            exp2(self.score(v) - time / self.knobs.half_life_s) * self.held[v] for v in victims
        )
        if cost * self.knobs.admission_factor > self.heat[key][0] * size:
            return None
        for victim in victims:
            del self.held[victim]
        self.held[key] = size
        return set(victims)


steps = st.lists(st.tuples(st.sampled_from(KEYS), st.floats(0.001, 5000.0)), max_size=80)
knobs = st.builds(Knobs, st.floats(10.0, 1e5), st.sampled_from([0.0, 0.5, 1.5, 4.0]))


@given(steps, knobs, knobs, st.integers(0, 80), st.randoms(use_true_random=False))
def test_ranks_as_a_scan_of_all_residents_would(
    steps: list[tuple[bytes, float]], first: Knobs, second: Knobs, switch: int, rng: random.Random
) -> None:
    sizes = {key: rng.randint(1, 40) for key in KEYS}
    fast, plain, now = RankedCache(100, first), Scanned(100, first), 0.0
    for number, (key, after) in enumerate(steps):
        now += after
        if number == switch:
            fast.retune(second)
            plain.knobs = second
        entry = fast.read(key, now, 1.0)
        plain.read(key, now)
        if key not in plain.held:
            victims = fast.admit(key, entry, sizes[key], now)
            expected = plain.admit(key, sizes[key], now)
            assert (None if victims is None else set(victims)) == expected
        assert fast.used_bytes == sum(plain.held.values())
        assert fast.heat(key, now) == pytest.approx(plain.heat[key][0])


def filled(threshold: float) -> RankedCache:
    cache = RankedCache(100, Knobs(HOUR, threshold))
    for number in range(10):
        cache.place(b"%d" % number, 10, 2.0, 0.0)
    return cache


def test_a_newcomer_must_be_worth_all_its_victims() -> None:
    cache = filled(1.0)
    # it needs the place of two residents, each worth 2 x 10; its own worth is above that of one
    assert cache.admit(b"new", CacheEntry(2.5, 0.0), 15, 0.0) is None
    assert cache.used_bytes == 100
    assert cache.admit(b"new", CacheEntry(2.7, 0.0), 15, 0.0) == (b"0", b"1")
    assert cache.used_bytes == 95


def test_the_bar_is_what_a_newcomer_is_held_against() -> None:
    cache = filled(1.5)
    assert cache.threshold(0.0) == pytest.approx(3.0)
    assert cache.threshold(HOUR) == pytest.approx(1.5)
    assert cache.admit(b"new", CacheEntry(2.9, 0.0), 10, 0.0) is None
    assert cache.admit(b"new", CacheEntry(3.1, 0.0), 10, 0.0) is not None
    assert filled(0.0).admit(b"new", CacheEntry(0.1, 0.0), 10, 0.0) is not None


def test_what_a_hit_saves_counts_like_reads() -> None:
    policy = ValueDensity(20)
    for key, cost in ((b"dear", 3.0), (b"cheap", 1.0)):
        policy.record(Access(key, 10, 0.0, cost))
        assert policy.admit(Access(key, 10, 0.0, cost)).admitted
    policy.record(Access(b"cheap", 10, 1.0, 1.0))
    assert policy.victims(1, 2.0) == (b"cheap",)


def test_late_reads_count_by_their_time() -> None:
    cache = RankedCache(100, Knobs(HOUR, 0.0))
    cache.read(b"a", 2 * HOUR, 1.0)
    cache.read(b"a", HOUR, 1.0)
    assert cache.heat(b"a", 2 * HOUR) == pytest.approx(1.5)
    assert cache.heat(b"a", 0.0) == pytest.approx(1.5), "a clock that is behind cannot add heat"


def test_heat_survives_eviction_and_is_forgotten_in_the_end() -> None:
    policy = ValueDensity(10)
    for time in range(5):
        policy.record(Access(b"a", 10, float(time)))
    policy.admit(Access(b"a", 10, 5.0))
    assert policy.victims(10, 5.0) == (b"a",)
    assert policy.explain(b"a", 5.0)["heat"] == pytest.approx(5.0, rel=0.01)
    cache = RankedCache(1000, Knobs(HOUR, 0.0), remembered=100)
    for number in range(5000):
        cache.read(b"%d" % number, float(number), 1.0)
    assert sum(1 for _ in cache.known()) <= 200
    assert cache.heat(b"4999", 5000.0) > 0.9


def missed(policy: ValueDensity, accesses: Iterable[Access], *, fixed: bool = False) -> int:
    held: set[bytes] = set()
    count = 0
    for access in accesses:
        policy.record(access)
        if fixed and policy.knobs != DEFAULT_KNOBS:
            policy._cache.retune(DEFAULT_KNOBS)
        if access.key not in held:
            count += 1
            admission = policy.admit(access)
            held -= set(admission.victims)
            held |= {access.key} if admission.admitted else set()
    return count


def lru_missed(capacity: int, accesses: Iterable[Access]) -> int:
    held: OrderedDict[bytes, None] = OrderedDict()
    count = 0
    for access in accesses:
        count += access.key not in held
        held[access.key] = None
        held.move_to_end(access.key)
        if len(held) * access.size_bytes > capacity:
            held.popitem(last=False)
    return count


def popular_and_scans(count: int) -> list[Access]:
    """A fixed popularity over far more than fits, between reads of what never comes again."""
    rng = random.Random(3)
    return [
        Access(
            b"once%d" % n if rng.random() < 0.5 else b"%d" % int(rng.paretovariate(0.6)),
            10,
            n * 20.0,
        )
        for n in range(count)
    ]


def moving_on(count: int) -> list[Access]:
    """Everything is read a few times within a while and then never again: LRU is at its best."""
    rng = random.Random(4)
    return [Access(b"%d" % (n // 12 + rng.randrange(300)), 10, n * 20.0) for n in range(count)]


def test_trials_find_that_scans_are_to_be_kept_out() -> None:
    accesses = popular_and_scans(30_000)
    policy = ValueDensity(2000)
    chosen, default = missed(policy, accesses), missed(ValueDensity(2000), accesses, fixed=True)
    assert policy.knobs.admission_factor > 0
    assert policy.knobs.half_life_s > DEFAULT_KNOBS.half_life_s
    assert chosen < 0.97 * default, f"{chosen} misses, {default} with the knobs left alone"
    once = sum(access.key.startswith(b"once") for access in accesses)
    assert chosen - once < 0.5 * (lru_missed(2000, accesses) - once)


def test_trials_find_that_the_old_is_to_be_let_go() -> None:
    accesses = moving_on(30_000)
    policy = ValueDensity(2000)
    chosen = missed(policy, accesses)
    assert policy.knobs.half_life_s <= DEFAULT_KNOBS.half_life_s
    assert chosen <= 1.02 * lru_missed(2000, accesses)


def test_changing_the_knobs_moves_nothing() -> None:
    cache = filled(0.0)
    cache.pin(b"3")
    cache.retune(Knobs(10.0, 1.5))
    assert cache.used_bytes == 100
    assert len(cache.evict(1000)) == 9
    assert cache.used_bytes == 10
