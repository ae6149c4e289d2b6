"""Heat: forward decay equals the direct sum, keeps its order, and merges like addition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.placement.heat import HeatMap

H = 3600.0
KEYS = [b"a", b"b", b"c", b"d"]
reads = st.lists(
    st.tuples(
        st.sampled_from(KEYS),
        st.floats(0.0, 50 * H, allow_nan=False),
        st.floats(0.01, 100.0),
    ),
    max_size=30,
)
landmarks = st.floats(-100 * H, 100 * H)


def heat_of(events: list[tuple[bytes, float, float]], landmark: float = 0.0) -> HeatMap:
    heat = HeatMap(H, landmark)
    for key, time, weight in events:
        heat.add(key, time, weight)
    return heat


def direct(events: list[tuple[bytes, float, float]], key: bytes, now: float) -> float:
    return math.fsum(w * 2.0 ** -((now - t) / H) for k, t, w in events if k == key)


def close(left: HeatMap, right: HeatMap, now: float) -> bool:
    a, b = dict(left.items(now)), dict(right.items(now))
    return a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=1e-9) for k in a)


@given(reads, landmarks, st.floats(0.0, 100 * H))
def test_equals_the_direct_sum(
    events: list[tuple[bytes, float, float]], landmark: float, now: float
) -> None:
    heat = heat_of(events, landmark)
    for key in KEYS:
        assert math.isclose(heat.value(key, now), direct(events, key, now), rel_tol=1e-9)


@given(reads, landmarks, st.lists(st.floats(0.0, 200 * H), min_size=2, max_size=5))
def test_order_never_changes_with_time(
    events: list[tuple[bytes, float, float]], landmark: float, times: list[float]
) -> None:
    heat = heat_of(events, landmark)
    orders = {tuple(key for key, _ in heat.top(10, now)) for now in times}
    assert len(orders) == 1


@given(reads, reads, landmarks, landmarks)
def test_merge_is_commutative_about_any_landmarks(
    left: list[tuple[bytes, float, float]],
    right: list[tuple[bytes, float, float]],
    one: float,
    other: float,
) -> None:
    a, b = heat_of(left, one), heat_of(right, other)
    a.merge(heat_of(right, other))
    b.merge(heat_of(left, one))
    assert close(a, b, 50 * H)
    assert close(a, heat_of(left + right), 50 * H)


@given(reads, reads, reads)
def test_merge_is_associative(
    x: list[tuple[bytes, float, float]],
    y: list[tuple[bytes, float, float]],
    z: list[tuple[bytes, float, float]],
) -> None:
    left = heat_of(x)
    left.merge(heat_of(y, 7.0))
    left.merge(heat_of(z, -7.0))
    tail = heat_of(y, 7.0)
    tail.merge(heat_of(z, -7.0))
    right = heat_of(x)
    right.merge(tail)
    assert close(left, right, 50 * H)


@given(reads, landmarks, landmarks)
def test_the_serialisable_form_brings_back_the_same_heat(
    events: list[tuple[bytes, float, float]], landmark: float, about: float
) -> None:
    heat = heat_of(events, landmark)
    assert close(HeatMap.from_scores(H, landmark, heat.scores()), heat, 50 * H)
    assert close(HeatMap.from_scores(H, about, heat.scores(about)), heat, 50 * H)


@given(reads, reads)
def test_powers_of_scores_about_one_landmark_add_up(
    left: list[tuple[bytes, float, float]], right: list[tuple[bytes, float, float]]
) -> None:
    sums: dict[bytes, float] = {}
    for heat in (heat_of(left, 3.0), heat_of(right, 99.0)):
        for key, score in heat.scores(25 * H).items():
            sums[key] = sums.get(key, 0.0) + 2.0**score
    both = heat_of(left + right)
    for key, total in sums.items():
        assert math.isclose(total, both.value(key, 25 * H), rel_tol=1e-9)


def test_it_runs_for_ever_without_overflow() -> None:
    heat = HeatMap(1.0, 0.0)
    for step in range(0, 100_000, 10):
        heat.add(b"steady", float(step))
        heat.add(b"late", float(step - 5))
    expected = 1.0 / (1.0 - 2.0**-10)
    assert math.isclose(heat.value(b"steady", 99_990.0), expected, rel_tol=1e-9)
    assert math.isclose(heat.value(b"late", 99_990.0), expected / 32, rel_tol=1e-9)
    heat.add(b"new", 10_000_000.0)
    assert heat.top(5, 10_000_000.0) == [(b"new", 1.0)]


def test_merging_maps_that_are_thousands_of_half_lives_apart() -> None:
    for one, other in ((0.0, 5000.0), (5000.0, 0.0)):
        heat, late = HeatMap(1.0, one), HeatMap(1.0, other)
        heat.add(b"k", one)
        late.add(b"k", other)
        heat.merge(late)
        assert heat.value(b"k", 5000.0) == 1.0


def test_prune_keeps_the_hottest() -> None:
    heat = HeatMap(H, 0.0)
    for number in range(100):
        heat.add(b"%03d" % number, float(number))
    assert heat.prune(10) == 90
    assert heat.prune(10) == 0
    assert sorted(key for key, _ in heat.items(0.0)) == [b"%03d" % n for n in range(90, 100)]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_must_be_a_number_that_is_not_negative(weight: float) -> None:
    with pytest.raises(ValueError, match="no read"):
        HeatMap(H, 0.0).add(b"k", 0.0, weight)


def test_maps_of_other_half_lives_are_refused() -> None:
    with pytest.raises(ValueError, match="half-life"):
        HeatMap(H, 0.0).merge(HeatMap(2 * H, 0.0))
    with pytest.raises(ValueError, match="no half-life"):
        HeatMap(0.0, 0.0)


@pytest.mark.parametrize("time", [math.inf, math.nan])
def test_a_time_must_be_a_number(time: float) -> None:
    with pytest.raises(ValueError, match="no read"):
        HeatMap(H, 0.0).add(b"k", time)
